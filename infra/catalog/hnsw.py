"""Nearest faces by PostgreSQL itself: pgvector's HNSW index over half-precision vectors, or a scan where there are few."""

from collections.abc import Sequence
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
    literal_column,
    select,
    true,
)
from sqlalchemy.orm import Session

from infra.catalog.neighbours import EXACT
from infra.catalog.schema import Embedding, Face
from infra.catalog.vectors import has_many

EXACT_UP_TO = 10_000  # vectors: a scan takes about as long as the index then
SEARCHED = 160  # nodes that a search keeps in sight (ef_search); pgvector's 40 loses one of ten at a million
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
        self, session: Session, queries: np.ndarray, count: int, effort: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.exact:
            found, similarities = zip(*(self.within(session, query, count, ()) for query in queries), strict=True)
            return np.stack(found), np.stack(similarities)
        searched = min(max(ceil(effort * SEARCHED), count), LARGEST_SEARCHED)
        session.connection().exec_driver_sql(f"SET LOCAL hnsw.ef_search = {searched}; {BY_INDEX}")
        half = cast(HALF, HALFVEC(self.dimension))  # what the index is over
        if len(queries) == 1:
            found, similarities = (part[None] for part in self._nearest(session, half, queries[0], count))
        else:
            found, similarities = self._nearest_to_each(session, half, queries, count)
        session.connection().exec_driver_sql(AS_EVER)
        return found, similarities

    def within(
        self, session: Session, query: np.ndarray, count: int, clauses: Sequence[ColumnElement[bool]]
    ) -> tuple[np.ndarray, np.ndarray]:
        if not clauses:
            return self._nearest(session, HALF, query, count)  # an expression that no index is over
        # In one statement, the planner takes the filter for whatever it likes, and reads all vectors: seconds among a million.
        kept = session.scalars(select(Face.id).where(*clauses)).all()
        return self._nearest(session, HALF, query, count, Embedding.face_id == any_(cast([*kept], ARRAY(BigInteger))))

    def _nearest(
        self,
        session: Session,
        half: ColumnElement[object],
        query: np.ndarray,
        count: int,
        *conditions: ColumnElement[bool],
    ) -> tuple[np.ndarray, np.ndarray]:
        asked = bindparam("asked", query.astype(np.float32), HALFVEC(self.dimension))
        rows = session.execute(self._statement(half, asked, count).where(*conditions)).all()
        ids = np.array([face for face, _ in rows], np.int64)
        similarities = -np.array([distance for _, distance in rows], np.float64)
        order = np.argsort(-similarities, kind="stable")
        return ids[order], similarities[order]

    def _nearest_to_each(
        self, session: Session, half: ColumnElement[object], queries: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `_nearest` for a block (Q, D), asked once: the database goes through it by itself."""
        vector = HALFVEC(self.dimension)
        block = cast(bindparam("asked", [*queries.astype(np.float32)], ARRAY(vector)), ARRAY(vector))
        vectors = func.unnest(block).table_valued(column("vector", vector), with_ordinality="place")
        asked = vectors.render_derived(name="asked")
        nearest = self._statement(half, asked.c.vector, count).lateral("nearest")
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

    def _statement(
        self, half: ColumnElement[object], asked: ColumnElement[object], count: int
    ) -> Select[tuple[int, float]]:
        distance = half.op("<#>", return_type=Float())(cast(asked, HALFVEC(self.dimension)))
        # A number in the text, not a parameter: only so does the planner know that the partial index is meant.
        version = bindparam("version", self.model_version_id, Integer, literal_execute=True)
        statement = select(Embedding.face_id, distance.label("distance")).where(Embedding.model_version_id == version)
        return statement.order_by(distance).limit(count)
