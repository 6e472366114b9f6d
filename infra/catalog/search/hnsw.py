"""Nearest faces by PostgreSQL itself: pgvector's HNSW index over half-precision vectors, or a scan where there are few."""

from collections.abc import Sequence
from functools import cache
from math import ceil

import numpy as np
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.orm import Session

from infra.catalog.search.neighbours import EXACT
from infra.catalog.search.vectors import has_many, links_for
from infra.catalog.tables.schema import Embedding, Face

EXACT_UP_TO = 10_000  # vectors: a scan takes about as long as the index then
SEARCHED = {16: 160, 32: 64}  # nodes that a search keeps in sight (ef_search), by how many links each has
LEAST_SEARCHED = 40  # with whatever effort
LARGEST_SEARCHED = 1000  # pgvector's limit; beyond it the scan goes on iteratively
BY_INDEX = (
    "SET LOCAL hnsw.iterative_scan = relaxed_order; SET LOCAL hnsw.max_scan_tuples = 200000; "
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off"
)
AS_EVER = "SET LOCAL enable_seqscan = on; SET LOCAL enable_sort = on"

HALF: ColumnElement[object] = literal_column("embedding.half", HALFVEC)


class HnswIndex:
    """The index that the database keeps over one version's vectors; without it, or with few vectors, a scan."""

    def __init__(self, session: Session, model_version_id: int, dimension: int) -> None:
        self.model_version_id, self.dimension = model_version_id, dimension
        self.exact = not has_many(session, model_version_id, dimension, EXACT_UP_TO)
        self.method = EXACT if self.exact else "hnsw"
        self.most = LARGEST_SEARCHED  # beyond, a filter that keeps 1% of a million lost 6 of 100

    def scan(
        self, session: Session, queries: np.ndarray, count: int, effort: float = 1.0, bounded: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.exact:
            found, similarities = zip(*(self.within(session, query, count, ()) for query in queries), strict=True)
            return np.stack(found), np.stack(similarities)
        searched = max(ceil(effort * SEARCHED[links_for(self.dimension)]), LEAST_SEARCHED, count)
        searched = min(searched, LARGEST_SEARCHED)  # never more, however many faces there are
        session.connection().exec_driver_sql(f"SET LOCAL hnsw.ef_search = {searched}; {BY_INDEX}")
        if len(queries) == 1:
            one = _nearest_to_one(self.model_version_id, self.dimension, indexed=True)
            found, similarities = (part[None] for part in self._nearest(session, one, queries[0], count))
        else:
            found, similarities = self._nearest_to_each(session, queries, count)
        session.connection().exec_driver_sql(AS_EVER)
        return found, similarities

    def within(
        self, session: Session, query: np.ndarray, count: int, clauses: Sequence[ColumnElement[bool]]
    ) -> tuple[np.ndarray, np.ndarray]:
        statement = _nearest_to_one(self.model_version_id, self.dimension, indexed=False)
        if not clauses:
            return self._nearest(session, statement, query, count)
        # In one statement, the planner takes the filter for whatever it likes, and reads all vectors: seconds among a million.
        kept = session.scalars(select(Face.id).where(*clauses)).all()
        among_kept = statement.where(Embedding.face_id == any_(cast([*kept], ARRAY(BigInteger))))
        return self._nearest(session, among_kept, query, count)

    def _nearest(
        self, session: Session, statement: Select[tuple[int, float]], query: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = session.execute(statement, {"asked": query.astype(np.float32), "count": count}).all()
        ids = np.array([face for face, _ in rows], np.int64)
        similarities = -np.array([distance for _, distance in rows], np.float64)
        order = np.argsort(-similarities, kind="stable")
        return ids[order], similarities[order]

    def _nearest_to_each(self, session: Session, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As `_nearest` for a block (Q, D), asked once: the database goes through it by itself."""
        vector = HALFVEC(self.dimension)
        block = cast(bindparam("asked", [*queries.astype(np.float32)], ARRAY(vector)), ARRAY(vector))
        vectors = func.unnest(block).table_valued(column("vector", vector), with_ordinality="place")
        asked = vectors.render_derived(name="asked")
        nearest = _nearest(self.model_version_id, self.dimension, asked.c.vector, literal(count)).lateral("nearest")
        statement = select(asked.c.place, nearest.c.face_id, nearest.c.distance)
        found = session.execute(statement.select_from(asked.join(nearest, true()))).all()
        rows = np.array(found, np.float64).reshape(-1, 3)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
        place = rows[:, 0].astype(np.int64) - 1
        rank = np.arange(len(place)) - np.searchsorted(place, place)
        shape = len(queries), int(rank.max(initial=-1)) + 1
        ids, similarities = np.full(shape, -1, np.int64), np.full(shape, -np.inf)
        ids[place, rank], similarities[place, rank] = rows[:, 1].astype(np.int64), -rows[:, 2]
        return ids, similarities


@cache
def _nearest_to_one(model_version_id: int, dimension: int, indexed: bool) -> Select[tuple[int, float]]:
    """The `count` faces nearest to a vector `asked`: made once, as the statements of `infra.catalog.queries.views`."""
    asked = bindparam("asked", type_=HALFVEC(dimension))
    return _nearest(model_version_id, dimension, asked, bindparam("count", type_=Integer), indexed)


def _nearest(
    model_version_id: int, dimension: int, asked: ColumnElement[object], count: ColumnElement[int], indexed: bool = True
) -> Select[tuple[int, float]]:
    half = cast(HALF, HALFVEC(dimension)) if indexed else HALF  # only the first is an expression that an index is over
    distance = half.op("<#>", return_type=Float())(cast(asked, HALFVEC(dimension)))
    # A number in the text, not a parameter: only so does the planner know that the partial index is meant.
    version = bindparam("version", model_version_id, Integer, literal_execute=True)
    statement = select(Embedding.face_id, distance.label("distance")).where(Embedding.model_version_id == version)
    return statement.order_by(distance).limit(count)
