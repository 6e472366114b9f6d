"""Nearest faces outside of the database: a faiss index that follows SQLite's rows, and can be thrown away at any time.

It holds half-precision vectors: all compared up to about 100 thousand (flat), above that those of the nearest cells (IVF). How
many cells is measured when it is built, on faces of its own that its cells were not made from.

What is indexed is never changed in place, so any number of threads search it. The journal of changed embeddings tells which
faces it shows no longer as they are: those are hidden, and their new vectors compared beside it. That costs one look-up per
search when nothing changed. When they are many they are merged into a new file; at once, if a face was erased.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, cast

import faiss
import numpy as np
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from infra.catalog.search import neighbours
from infra.catalog.search.neighbours import EXACT
from infra.catalog.search.vectors import (
    CHUNK,
    changed_faces,
    count_vectors,
    journal_position,
    stored_vectors,
    vectors_of,
)
from infra.catalog.tables.schema import Face, ModelVersion

FLAT_UP_TO = 100_000
WRITE_AFTER = 0.02  # share of vectors changed since the file was written, from which it is written again
REBUILD_AFTER = 0.3  # share changed at once from which building anew is cheaper
GROWN = 2.0  # times as many as its cells were made for: they have become too large
CELLS = 4.0  # times the square root of the number of vectors (faiss's guidelines)
TRAINED_ON = 40  # vectors per cell
ITERATIONS = 8
RECALL = 0.995  # of the 10 nearest others that probing must reach on faces of the index itself: 0.99, and what chance may take
PROBED_WITH = 256
# With how many faces a bounded scan compares at most: among 4 million, 56 thousand hold the person that a face belongs to for
# 99.3 in 100 faces, 28 thousand for 98.7 (128-D; docs/grouping.md).
BOUND = 65_536
NEAR = 84  # candidates that so many probes are meant for (10 wanted); more candidates lie in more cells


@dataclass(frozen=True)
class Note:
    """What a file of so many bytes on disk is. `position`: the journal's when it was written; `probes` 0: flat."""

    file: str
    size: int
    contract: str
    dimension: int
    position: int
    count: int
    trained_for: int
    probes: int
    recall: float


class View:
    """What is searched at one moment: `base`, without the faces `hidden` (H,) int64, and `recent`, what came instead.

    `held`: one bit for each face of the base, which the first change of it needs, and the next ones inherit.
    """

    def __init__(self, base: Any, hidden: np.ndarray, recent: Any, held: np.ndarray | None = None) -> None:
        self.base, self.hidden, self.recent, self.held = base, hidden, recent, held
        self.count = int(base.ntotal) - len(hidden) + int(recent.ntotal)
        self.changes = max(len(hidden), int(recent.ntotal))  # that the base lacks
        self._shown = faiss.IDSelectorNot(_only(hidden)) if len(hidden) else None

    def search(
        self, queries: np.ndarray, count: int, kept: np.ndarray | None, probes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """About the `count` most similar to each of (Q, D), of the faces `kept` (K,) if given, in so many cells; 0: no cells.

        Ids (Q, N) int64, similarities (Q, N); -1 behind the others, where there are no more.
        """
        kinds = cast(Any, faiss)  # which takes keywords that its stubs do not know
        shown = self._shown if kept is None else _only(np.setdiff1d(kept, self.hidden))
        flat = kinds.SearchParameters(sel=None if kept is None else _only(kept))
        cells = kinds.SearchParametersIVF(sel=shown, nprobe=min(probes, self.base.nlist)) if probes else None
        asked = queries.astype(np.float32)
        parts = [(np.zeros((len(asked), 0), np.float32), np.zeros((len(asked), 0), np.int64))]
        for index, parameters in ((self.base, cells or kinds.SearchParameters(sel=shown)), (self.recent, flat)):
            if index.ntotal:
                parts.append(index.search(asked, min(count, int(index.ntotal)), params=parameters))
        near, found = (np.concatenate(column, axis=1) for column in zip(*parts, strict=True))
        order = np.argsort(np.where(found < 0, np.inf, -near), axis=1, kind="stable")[:, :count]
        return np.take_along_axis(found, order, axis=1), np.take_along_axis(near, order, axis=1).astype(np.float64)

    def after(self, changed: np.ndarray, ids: np.ndarray, vectors: np.ndarray) -> "View":
        """Show (N, D) vectors of `ids` instead of the faces `changed` (C,), of which some may be gone."""
        held = _bits(ids_in(self.base)) if self.held is None else self.held
        recent: Any = faiss.clone_index(self.recent)
        recent.remove_ids(changed)
        recent.add_with_ids(vectors, ids)
        return View(self.base, np.union1d(self.hidden, changed[_among(changed, held)]), recent, held)

    def merged(self, base: Any) -> "View":
        """Show the same by one index, made of a copy of the base that may change."""
        base.remove_ids(self.hidden)
        ids = ids_in(self.recent)
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            base.add_with_ids(self.recent.index.reconstruct_n(start, len(part)), part)
        return View(base, ids[:0], _flat(base.d))


class Projection:
    """An index over one version's vectors that follows the rows."""

    def __init__(self, version: ModelVersion, base: Any, note: Note) -> None:
        self.version_id, self.note, self.position = version.id, note, note.position
        self.view = View(base, np.zeros(0, np.int64), _flat(note.dimension))
        self.erased = False  # whether the base holds what is gone

    @property
    def exact(self) -> bool:
        return self.note.probes == 0

    @property
    def most(self) -> int:
        return neighbours.MOST

    @property
    def method(self) -> str:
        return EXACT if self.exact else "ivf"

    @property
    def outgrown(self) -> bool:
        return self.view.count > (FLAT_UP_TO if self.exact else GROWN * self.note.trained_for)

    @property
    def stale(self) -> bool:
        """Whether it is time to merge what changed."""
        return self.erased or self.view.changes > WRITE_AFTER * self.view.count

    def scan(
        self, session: Session, queries: np.ndarray, count: int, effort: float = 1.0, bounded: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        probes = ceil(effort * self.note.probes) * max(1, count // NEAR)
        if bounded and probes:
            probes = min(probes, max(BOUND * self.view.base.nlist // self.view.base.ntotal, 1))
        return self.view.search(queries, count, None, probes)

    def within(
        self, session: Session, query: np.ndarray, count: int, clauses: Sequence[ColumnElement[bool]]
    ) -> tuple[np.ndarray, np.ndarray]:
        kept = np.array(list(session.scalars(select(Face.id).where(*clauses))), np.int64)
        view = self.view
        found, near = view.search(query[None], count, kept, 0 if self.exact else view.base.nlist)
        return found[found >= 0], near[found >= 0]

    def follow(self, session: Session) -> bool:
        """Take over what changed in the rows; False if building anew is cheaper. One thread at a time."""
        position = journal_position(session)
        if position <= self.position:
            return True
        limit = int(REBUILD_AFTER * self.view.count) + 100
        changed = changed_faces(session, self.version_id, self.position, limit)
        if changed is None:
            return False
        if len(changed):
            ids, vectors = vectors_of(session, self.version_id, self.note.dimension, changed)
            self.view = self.view.after(changed, ids, vectors)
            self.erased = self.erased or len(ids) < len(changed)
        self.position = position
        return not self.outgrown


def _flat(dimension: int) -> Any:
    half = faiss.ScalarQuantizer.QT_fp16
    return faiss.IndexIDMap(faiss.IndexScalarQuantizer(dimension, half, faiss.METRIC_INNER_PRODUCT))


def _only(faces: np.ndarray) -> Any:
    """Select faces (N,) int64."""
    return cast(Any, faiss).IDSelectorBitmap(_bits(faces))


def _bits(faces: np.ndarray) -> np.ndarray:
    """Faces (N,) int64 as one bit for each number up to the largest, (B,) uint8, the lowest bit first."""
    chosen = np.zeros(int(faces.max(initial=0)) + 1, bool)
    chosen[faces] = True
    return np.packbits(chosen, bitorder="little")


def _among(faces: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Which faces (N,) have their bit set."""
    byte = np.minimum(faces >> 3, len(bits) - 1)
    return (bits[byte] >> (faces & 7) & 1).astype(bool) & (faces >> 3 < len(bits))


def ids_in(index: Any, enough: int | None = None) -> np.ndarray:
    """The faces (N,) int64 that an index holds, of a flat one in its order; or some of them, about so many."""
    if isinstance(index, faiss.IndexIDMap):
        return faiss.vector_to_array(index.id_map)[:enough]
    parts, held = [np.zeros(0, np.int64)], 0
    for cell in range(index.nlist):
        size = index.invlists.list_size(cell)
        if size:
            parts.append(faiss.rev_swig_ptr(index.invlists.get_ids(cell), size)[:enough].copy())
            held += size
        if enough is not None and held >= enough:
            break
    return np.concatenate(parts)


def build(session: Session, version: ModelVersion) -> Projection:
    """Index all vectors of a version from its rows, holding a chunk of them beside the index."""
    dimension, position = version.dimension or 0, journal_position(session)
    count = count_vectors(session, version.id)
    flat = count <= FLAT_UP_TO
    if flat:
        index, kept = _flat(dimension), np.zeros((0, dimension), np.float32)
    else:
        every = max(1, count // (TRAINED_ON * cells_for(count)))
        index, kept = with_cells(count, [v for _, v in stored_vectors(session, version.id, dimension, every)])
    for ids, vectors in stored_vectors(session, version.id, dimension):
        index.add_with_ids(vectors, ids)
    probes, recall = (0, 1.0) if flat else probes_for(index, kept)
    note = Note("", 0, version.contract, dimension, position, int(index.ntotal), count, probes, recall)
    return Projection(version, index, note)


def cells_for(count: int) -> int:
    """How many cells so many vectors are laid in."""
    return int(CELLS * count**0.5)


def with_cells(count: int, chunks: Sequence[np.ndarray]) -> tuple[Any, np.ndarray]:
    """Make cells for `count` vectors from some of them (N, D): an index without vectors, and (Q, D) that it does not know."""
    sample = np.random.default_rng(0).permutation(np.concatenate(chunks))
    asked, known = np.split(sample, [min(PROBED_WITH, len(sample) // 4)])
    dimension, half = sample.shape[1], faiss.ScalarQuantizer.QT_fp16
    index: Any = faiss.IndexIVFScalarQuantizer(  # its Python signatures take arrays, its stubs those of C++
        faiss.IndexFlatIP(dimension), dimension, cells_for(count), half, faiss.METRIC_INNER_PRODUCT, False
    )
    index.cp.spherical, index.cp.niter, index.cp.min_points_per_centroid = True, ITERATIONS, 1
    index.train(known)
    return index, asked


def probes_for(index: Any, faces: np.ndarray) -> tuple[int, float]:
    """The fewest cells to probe that find enough of the 10 nearest others of faces (N, D), and how much that is."""
    every = cast(Any, faiss).SearchParametersIVF(nprobe=index.nlist)
    nearest = index.search_and_reconstruct(faces, 11, params=every)[2][:, 1:]  # the first is the face itself
    cells = index.quantizer.search(nearest.reshape(-1, index.d), 1)[1].reshape(len(faces), -1)
    order = index.quantizer.search(faces, index.nlist)[1]
    probed = np.empty_like(order)  # after how many probes each cell is
    np.put_along_axis(probed, order, np.arange(1, index.nlist + 1)[None], axis=1)
    needed = np.take_along_axis(probed, cells, axis=1)
    probes = int(np.quantile(needed, RECALL, method="higher"))
    return probes, float((needed <= probes).mean())
