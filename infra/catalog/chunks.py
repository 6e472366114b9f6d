"""Ids in parts that fit into one statement."""

from collections.abc import Iterable, Iterator

CHUNK = 10_000


def chunks(ids: Iterable[int]) -> Iterator[list[int]]:
    """Parts that fit into one IN list, in order."""
    ordered = sorted(ids)
    return (ordered[start : start + CHUNK] for start in range(0, len(ordered), CHUNK))
