"""Ids or keys in parts that fit into one statement."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

CHUNK = 10_000
Given = TypeVar("Given", int, str)


def chunks(ids: Iterable[Given]) -> Iterator[list[Given]]:
    """Parts that fit into one IN list, in order."""
    ordered = sorted(ids)
    return (ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK))
