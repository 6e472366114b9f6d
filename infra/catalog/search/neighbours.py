"""The nearest faces: candidates from an index, judged by the rows.

Both kinds of index hold half-precision vectors and only propose. Whether a proposed face is still there, and whether a filter
keeps it, the database says; how similar it is, its full vector. So an index that lags behind can never show what is gone, and
similarities are the same on both engines. Where a filter lets too few candidates through, more are asked for, and at last
all faces that it keeps are compared: a filter never costs results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sqlalchemy import ColumnElement, Integer, bindparam, select
from sqlalchemy.orm import Session

from infra.catalog.search.vectors import CHUNK
from infra.catalog.tables.schema import Embedding, Face

HALF_ERROR = 1e-3  # what rounding both vectors to 11 bits can change of a product of unit vectors: 2 * 2**-11
SPARE = 24  # candidates beyond those wanted: for what half precision put in a wrong place, and for photos that are gone
MORE = 4  # times as many candidates at least, when they were too few
AMPLE = 2.0  # times as many as should be enough, by the share that a filter kept so far
MOST = 20_000  # candidates after which comparing all faces that a filter keeps is cheaper
RARE = 0.05  # share kept by a filter that keeps few: of a million faces 50 thousand, compared in half a second


# Made once, as those of `infra.catalog.queries.views`.
_VECTORS = (
    select(Embedding.face_id, Embedding.vector)
    .join(Face, Face.id == Embedding.face_id)
    .where(
        Embedding.model_version_id == bindparam("version", type_=Integer),
        Embedding.face_id.in_(bindparam("faces", expanding=True)),
    )
)


class VectorIndex(Protocol):
    """An index over the vectors of one model version."""

    @property
    def method(self) -> str:
        """What an answer calls it."""
        ...

    @property
    def exact(self) -> bool:
        """Whether `scan` misses nothing, but for half precision."""
        ...

    @property
    def most(self) -> int:
        """Candidates after which comparing all faces that a filter keeps finds more, where it keeps few."""
        ...

    def scan(
        self, session: Session, queries: np.ndarray, count: int, effort: float = 1.0, bounded: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """About the `count` most similar of all faces to each of (Q, D): ids (Q, N) int64 and similarities (Q, N).

        With less than the usual `effort` the nearest are still found, and more of the others missed. A `bounded` scan compares
        with no more than a fixed number of faces, however many there are. N may be less than `count`; id -1, always behind
        the others, where there are no more.
        """
        ...

    def within(
        self, session: Session, query: np.ndarray, count: int, clauses: Sequence[ColumnElement[bool]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` most similar of the faces that the clauses keep, none missed."""
        ...


@dataclass(frozen=True)
class Neighbours:
    """Faces (N,) int64 by falling similarity (N,) float64, equal ones by their ids, and how they were found."""

    ids: np.ndarray
    similarities: np.ndarray
    method: str


EXACT = "exact"


def nearest_faces(
    session: Session,
    index: VectorIndex,
    model_version_id: int,
    query: np.ndarray,
    wanted: int,
    clauses: Sequence[ColumnElement[bool]],
    after: tuple[float, int] | None = None,
    seen: int = 0,
) -> Neighbours:
    """Find the faces most similar to a query vector (D,) of unit length that all clauses keep.

    `after` is the similarity and id of the last face of an earlier answer, of the `seen` first ones: this one begins behind it.
    """
    exact = index.exact
    count = 2 * (seen + wanted) + SPARE
    most = MOST
    while True:
        if count > most:
            exact = True
            proposed, roughly = index.within(session, query, count, clauses)
        else:
            found, near = index.scan(session, query[None], count)
            proposed, roughly = found[found >= 0], near[found >= 0]
        ids, similarities = _judged(session, model_version_id, query, proposed, clauses, after)
        if len(proposed) < count:
            if exact:
                break
            count = MOST + 1  # the index gives no more: compare all
            continue
        enough = len(ids) >= wanted
        if enough and exact:  # could any that was not proposed belong here?
            enough = similarities[wanted - 1] > roughly[-1] + HALF_ERROR
        if enough:
            break
        kept = (len(ids) + 1) / (len(proposed) + 1)
        if kept < RARE:
            most = index.most
        count = max(MORE * count, int(AMPLE * wanted / kept))
    return Neighbours(ids[:wanted], similarities[:wanted], EXACT if exact else index.method)


def _judged(
    session: Session,
    model_version_id: int,
    query: np.ndarray,
    proposed: np.ndarray,
    clauses: Sequence[ColumnElement[bool]],
    after: tuple[float, int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the proposed faces that the clauses keep, with similarities from full vectors, in order."""
    rows: list[tuple[int, np.ndarray]] = []
    for start in range(0, len(proposed), CHUNK):
        asked = {"version": model_version_id, "faces": proposed[start : start + CHUNK].tolist()}
        rows += session.execute(_VECTORS.where(*clauses), asked).tuples()
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0)
    ids = np.array([face for face, _ in rows], np.int64)
    # Row by row, so that a similarity does not depend on what it is computed along with, and paging stays in step.
    similarities = (np.array([vector for _, vector in rows], np.float64) * query.astype(np.float64)).sum(axis=1)
    if after is not None:
        behind = (similarities < after[0]) | ((similarities == after[0]) & (ids > after[1]))
        ids, similarities = ids[behind], similarities[behind]
    order = np.lexsort((ids, -similarities))
    return ids[order], similarities[order]
