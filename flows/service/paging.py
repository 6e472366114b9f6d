"""Cursors: where a page ends, as text that the client hands back unread."""

import base64
import binascii
import json
from collections.abc import Sequence

from flows.service.problems import LARGEST_ID, Problem

Place = tuple[int, ...]


def cursor(place: Sequence[int]) -> str:
    """Write a place down."""
    return base64.urlsafe_b64encode(json.dumps(list(place)).encode()).decode().rstrip("=")


def place(text: str | None, length: int = 1) -> Place | None:
    """Read a cursor of `length` numbers; None stays None.

    Raises:
        Problem: 422, if it is none of ours.
    """
    if text is None:
        return None
    try:
        numbers = json.loads(base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        numbers = None
    if not _fits(numbers, length):
        raise Problem(422, "cursor", "Not a cursor", "Take the cursor from 'next' of the page before, unchanged.")
    return tuple(numbers)


def _fits(numbers: object, length: int) -> bool:
    return (
        isinstance(numbers, list)
        and len(numbers) == length
        and all(type(number) is int and abs(number) <= LARGEST_ID for number in numbers)
    )
