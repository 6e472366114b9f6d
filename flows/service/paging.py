"""Cursors: where a page ends, as text that the client hands back unread."""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from flows.service.problems import LARGEST_ID, Problem

Place = tuple[int, ...]


def cursor(place: Sequence[float]) -> str:
    """Write a place down."""
    return base64.urlsafe_b64encode(json.dumps(list(place)).encode()).decode().rstrip("=")


def place(text: str | None, length: int = 1) -> Place | None:
    """Read a cursor of `length` numbers; None stays None.

    Raises:
        Problem: 422, if it is none of ours.
    """
    return None if text is None else tuple(_read(text, [int] * length))


def ranked_place(text: str | None) -> tuple[float, int, int] | None:
    """Read a cursor of a measure and two ids; None stays None.

    Raises:
        Problem: 422, if it is none of ours.
    """
    if text is None:
        return None
    measure, first, second = _read(text, [float, int, int])
    return measure, first, second


def _read(text: str, kinds: Sequence[type]) -> list[Any]:
    try:
        numbers = json.loads(base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        numbers = None
    if not _fits(numbers, kinds):
        raise Problem(422, "cursor", "Not a cursor", "Take the cursor from 'next' of the page before, unchanged.")
    return list(numbers)


def _fits(numbers: object, kinds: Sequence[type]) -> bool:
    return (
        isinstance(numbers, list)
        and [type(number) for number in numbers] == kinds
        and all(abs(number) <= LARGEST_ID for number in numbers)
    )
