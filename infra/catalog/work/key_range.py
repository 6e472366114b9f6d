"""A stretch of a collection's keys, so that several runs can share one collection without overlap."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, and_, true


@dataclass(frozen=True)
class KeyRange:
    """Keys after one and up to and including another, in the order of their bytes; None: no end on that side.

    Raises:
        ValueError: if no key can lie in it.
    """

    after: str | None = None
    through: str | None = None

    def __post_init__(self) -> None:
        if self.after is not None and self.through is not None and self.after >= self.through:
            raise ValueError(
                f"no key lies after {self.after!r} and up to {self.through!r}: they are in the wrong order"
            )

    def __contains__(self, key: str) -> bool:  # text compares by code point, which is the order of UTF-8 bytes
        return (self.after is None or key > self.after) and (self.through is None or key <= self.through)

    def __str__(self) -> str:
        if self == EVERY_KEY:
            return "all keys"
        after = "" if self.after is None else f"after {self.after!r} "
        return f"keys {after}{'to the end' if self.through is None else f'up to {self.through!r}'}"

    def overlaps(self, other: "KeyRange") -> bool:
        """Whether some key may lie in both."""

        def begins_before_the_end(first: KeyRange, second: KeyRange) -> bool:
            return first.after is None or second.through is None or first.after < second.through

        return begins_before_the_end(self, other) and begins_before_the_end(other, self)

    def within(self, others: Iterable["KeyRange"]) -> bool:
        """Whether each of its keys lies in one of some others."""
        reached = self.after or ""
        for other in sorted(others, key=lambda other: other.after or ""):
            if (other.after or "") > reached:
                break
            if other.through is None:
                return True
            reached = max(reached, other.through)
        return self.through is not None and self.through <= reached

    def holds(self, column: Any) -> ColumnElement[bool]:
        """The same as a condition on a column of keys."""
        after = true() if self.after is None else column > self.after
        return and_(after, true() if self.through is None else column <= self.through)


EVERY_KEY = KeyRange()


def ranges(boundaries: Sequence[str]) -> list[KeyRange]:
    """The ranges that ascending boundaries cut all keys into: one more than there are boundaries."""
    ends = [None, *boundaries, None]
    return [KeyRange(after, through) for after, through in pairwise(ends)]
