"""What is proposed is judged by the rows, and what a rare filter keeps is compared as a whole."""

from typing import Any, cast

import numpy as np
import pytest
from sqlalchemy.orm import Session

from infra.catalog.search import neighbours
from infra.catalog.search.neighbours import EXACT, nearest_faces


class Index:
    """Holds faces of which a filter keeps those from `FIRST` on, all equally near and behind all others."""

    method, exact, most = "approximate", False, 100
    FIRST, LAST = 1_000_000, 1_002_000

    def __init__(self) -> None:
        self.scanned: list[int] = []

    def scan(
        self, session: Session, queries: np.ndarray, count: int, effort: float = 1.0, bounded: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        self.scanned.append(count)
        return np.arange(1, count + 1)[None], np.full((1, count), 0.95)

    def within(self, session: Session, query: np.ndarray, count: int, clauses: object) -> tuple[np.ndarray, np.ndarray]:
        found = np.arange(self.FIRST, min(self.FIRST + count, self.LAST))
        return found, np.full(len(found), 0.9)


def test_what_a_rare_filter_keeps_is_compared_until_none_that_is_as_near_can_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def judged(session: object, version: int, query: object, proposed: np.ndarray, *_: object) -> Any:
        ids = proposed[proposed >= Index.FIRST]
        return ids, np.full(len(ids), 0.9)

    monkeypatch.setattr(neighbours, "_judged", judged)
    index = Index()
    found = nearest_faces(cast(Session, None), index, 1, np.ones(1), 3, [])
    assert len(index.scanned) == 1  # and never again, once all that the filter keeps were compared
    assert found.ids.tolist() == [Index.FIRST, Index.FIRST + 1, Index.FIRST + 2]
    assert found.method == EXACT
