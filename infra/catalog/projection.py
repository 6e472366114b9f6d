"""Nearest faces outside of the database: a faiss index that follows SQLite's rows, and can be thrown away at any time.

It holds half-precision vectors: all compared up to about 100 thousand (flat), above that those of the nearest cells (IVF). How
many cells is measured when it is built, on faces of its own. The journal of changed embeddings tells which rows it has yet to
follow; that costs one look-up per search when nothing changed. On disk it is a file per model version, with a note beside it
that says which state of which rows it is; what does not fit the rows is made anew.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np
from filelock import FileLock
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from infra.catalog.neighbours import EXACT
from infra.catalog.schema import Embedding, EmbeddingChange, Face, ModelVersion
from infra.catalog.vectors import changed_faces, count_vectors, journal_position, stored_vectors, vectors_of

FLAT_UP_TO = 100_000
KEPT_FROM = 10_000  # vectors from which reading a file is worth it; fewer are read from the rows at once
WRITE_AFTER = 0.02  # share of vectors changed since the file was written, from which it is written again
REBUILD_AFTER = 0.3  # share changed at once from which building anew is cheaper
GROWN = 2.0  # times as many as its cells were made for: they have become too large
CELLS = 4.0  # times the square root of the number of vectors (faiss's guidelines)
TRAINED_ON = 40  # vectors per cell
ITERATIONS = 8
RECALL = 0.997  # of the 10 nearest, that probing must reach on faces of the index itself
PROBED_WITH = 256
PROBES = (4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)
NEAR = 84  # candidates that so many probes are meant for (10 wanted); more candidates lie in more cells
KEPT_OPEN = 4
SPOT_CHECKS = 16
SAME = 64  # faces that may be as near to a face as it is to itself: copies in several collections


@dataclass(frozen=True)
class Note:
    """What a file on disk is. `position`: the journal's when it was written; `probes` 0: flat."""

    file: str
    contract: str
    dimension: int
    position: int
    count: int
    trained_for: int
    probes: int
    recall: float


class Projection:
    """An index over one version's vectors that follows the rows. One thread at a time searches it."""

    def __init__(self, version: ModelVersion, index: Any, note: Note) -> None:
        self.version_id, self.index, self.note = version.id, index, note
        self.position = note.position
        self.unwritten, self.erased = 0, False  # changes that the file on disk lacks, and whether it holds what is gone
        self.lock = threading.Lock()

    @property
    def exact(self) -> bool:
        return self.note.probes == 0

    @property
    def method(self) -> str:
        return EXACT if self.exact else "ivf"

    @property
    def outgrown(self) -> bool:
        limit = FLAT_UP_TO if self.exact else GROWN * self.note.trained_for
        return bool(self.index.ntotal > limit)

    def scan(self, session: Session, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        probes = min(self.note.probes * max(1, count // NEAR), self.index.nlist) if not self.exact else 0
        return self._search(query, count, None, probes)

    def within(
        self, session: Session, query: np.ndarray, count: int, clauses: Sequence[ColumnElement[bool]]
    ) -> tuple[np.ndarray, np.ndarray]:
        kept = np.array(list(session.scalars(select(Face.id).where(*clauses))), np.int64)
        return self._search(query, count, faiss.IDSelectorBatch(kept), 0 if self.exact else self.index.nlist)

    def _search(
        self, query: np.ndarray, count: int, kept: faiss.IDSelector | None, probes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        kinds = cast(Any, faiss)  # which takes keywords that its stubs do not know
        parameters = kinds.SearchParametersIVF(sel=kept, nprobe=probes) if probes else kinds.SearchParameters(sel=kept)
        with self.lock:
            count = min(count, self.index.ntotal)
            if not count:
                return np.zeros(0, np.int64), np.zeros(0)
            similarities, ids = self.index.search(query[None].astype(np.float32), count, params=parameters)
        found = ids[0] >= 0
        return ids[0][found], similarities[0][found].astype(np.float64)

    def follow(self, session: Session) -> bool:
        """Take over what changed in the rows; False if building anew is cheaper."""
        position = journal_position(session)
        if position <= self.position:
            return True
        with self.lock:
            limit = int(REBUILD_AFTER * self.index.ntotal) + 100
            changed = changed_faces(session, self.version_id, self.position, limit)
            if changed is None:
                return False
            if len(changed):
                ids, vectors = vectors_of(session, self.version_id, self.note.dimension, changed)
                self.index.remove_ids(changed)
                self.index.add_with_ids(vectors, ids)
                self.unwritten += len(changed)
                self.erased = self.erased or len(ids) < len(changed)
            self.position = position
        return not self.outgrown


def build(session: Session, version: ModelVersion) -> Projection:
    """Index all vectors of a version from its rows, holding a chunk of them beside the index."""
    dimension, position = version.dimension or 0, journal_position(session)
    count = count_vectors(session, version.id)
    half = faiss.ScalarQuantizer.QT_fp16
    index: Any  # faiss's Python signatures take arrays, its stubs those of C++
    if count <= FLAT_UP_TO:
        index = faiss.IndexIDMap(faiss.IndexScalarQuantizer(dimension, half, faiss.METRIC_INNER_PRODUCT))
    else:
        cells = int(CELLS * count**0.5)
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(dimension), dimension, cells, half, faiss.METRIC_INNER_PRODUCT, False
        )
        index.cp.spherical, index.cp.niter, index.cp.min_points_per_centroid = True, ITERATIONS, 1
        every = max(1, count // (TRAINED_ON * cells))
        sample = np.concatenate([v for _, v in stored_vectors(session, version.id, dimension, every)])
        index.train(sample)
    for ids, vectors in stored_vectors(session, version.id, dimension):
        index.add_with_ids(vectors, ids)
    probes, recall = (0, 1.0) if count <= FLAT_UP_TO else _probes(index, sample)
    note = Note("", version.contract, dimension, position, int(index.ntotal), count, probes, recall)
    return Projection(version, index, note)


def _probes(index: Any, sample: np.ndarray) -> tuple[int, float]:
    """The fewest cells to probe that find enough of what a search of all cells finds, and how much that is."""
    queries = sample[:: max(1, len(sample) // PROBED_WITH)][:PROBED_WITH]
    index.nprobe = index.nlist
    truth = index.search(queries, 10)[1]
    recall, probes = 0.0, 0
    for probes in (*(p for p in PROBES if p < index.nlist), index.nlist):
        index.nprobe = probes
        found = index.search(queries, 10)[1]
        recall = float(np.mean([len(np.intersect1d(f, t)) / len(t) for f, t in zip(found, truth, strict=True)]))
        if recall >= RECALL:
            break
    return probes, recall


# --- on disk


def folder_of(home: Path, url: str) -> Path:
    """Where the index files of a catalog lie."""
    return home / "index" / sha256(url.encode()).hexdigest()[:12]


def _note_path(folder: Path, contract: str) -> Path:
    return folder / f"{sha256(contract.encode()).hexdigest()[:12]}.json"


def load(session: Session, version: ModelVersion, folder: Path) -> Projection | None:
    """Read an index from disk and bring it up to the rows; None if there is none, or none that fits them."""
    try:
        note = Note(**json.loads(_note_path(folder, version.contract).read_text(encoding="utf-8")))
        if (note.contract, note.dimension) != (version.contract, version.dimension):
            return None
        index = faiss.read_index(str(folder / note.file))
        found = Projection(version, index, note)
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
    ):  # none, damaged, or written by another version: it is disposable
        return None
    if index.ntotal != note.count or not _fits(session, found) or not found.follow(session):
        return None
    return found if index.ntotal == count_vectors(session, version.id) else None


def _fits(session: Session, found: Projection) -> bool:
    """Whether an index is of these rows: its place in their journal exists, and rows look up themselves."""
    position = found.note.position
    if position > journal_position(session) or (position and session.get(EmbeddingChange, position) is None):
        return False
    before = changed_faces(session, found.version_id, position, 100_000)
    untouched = select(Embedding.face_id, Embedding.vector).where(Embedding.model_version_id == found.version_id)
    rows = session.execute(untouched.order_by(Embedding.face_id.desc()).limit(SPOT_CHECKS)).tuples().all()
    changed = set() if before is None else set(before.tolist())
    for face, vector in rows:
        if face in changed:
            continue
        ids, _ = found.scan(session, vector, SAME)
        if face not in ids:
            return False
    return True


def save(found: Projection, folder: Path) -> None:
    """Write an index to disk: the file first, then the note that makes it count, then what it replaces goes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _note_path(folder, found.note.contract)
    with FileLock(folder / ".lock"), found.lock:
        file = f"{path.stem}-{found.position}-{found.index.ntotal}.faiss"
        note = Note(
            **{**asdict(found.note), "file": file, "position": found.position, "count": int(found.index.ntotal)}
        )
        partial = folder / f"{file}.part"
        faiss.write_index(found.index, str(partial))
        partial.replace(folder / file)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(asdict(note)), encoding="utf-8")
        partial.replace(path)
        for other in folder.glob(f"{path.stem}-*"):
            if other.name != file:
                other.unlink()
        found.note, found.unwritten, found.erased = note, 0, False


# --- open ones

_open: OrderedDict[tuple[str, int, int], Projection] = OrderedDict()
_opening = threading.Lock()


def open_projection(session: Session, version: ModelVersion, folder: Path | None) -> Projection:
    """The index of a version, as the session sees its rows: from memory, from disk (`folder`), or built.

    It is written to disk if it is large and has changed enough, and at once if a face has left it.
    """
    url = session.get_bind().engine.url
    file = Path(url.database or "")
    key = (url.render_as_string(), file.stat().st_ino if file.is_file() else 0, version.id)  # another file: other rows
    with _opening:
        found = _open.get(key)
        if found is None or found.note.contract != version.contract or not found.follow(session):
            found = (load(session, version, folder) if folder is not None else None) or build(session, version)
        _open[key] = found
        _open.move_to_end(key)
        while len(_open) > KEPT_OPEN:
            _open.popitem(last=False)
        stale = found.erased or found.unwritten > WRITE_AFTER * found.index.ntotal
        if (
            folder is not None
            and (found.note.file or found.index.ntotal >= KEPT_FROM)
            and (not found.note.file or stale)
        ):
            save(found, folder)
        return found


def forget(session: Session, folder: Path) -> None:
    """Bring the files on disk up to the rows now: what was erased leaves them. Doing it twice changes nothing.

    Indexes in the memory of other processes follow at their next search, before they answer.
    """
    if not folder.exists():
        return
    named = set()
    for note in folder.glob("*.json"):
        try:
            contract = json.loads(note.read_text(encoding="utf-8"))["contract"]
        except (ValueError, KeyError, TypeError):
            contract = None
        version = session.scalar(select(ModelVersion).where(ModelVersion.contract == contract))
        found = None if version is None else load(session, version, folder)
        if found is None:
            note.unlink()  # of no use any more; the next search builds another
            continue
        if found.unwritten:
            save(found, folder)
        named.add(found.note.file)
    with FileLock(
        folder / ".lock"
    ):  # what no note names: another's, or left by a process that was killed while writing
        for file in folder.iterdir():
            if file.suffix == ".part" or (file.suffix == ".faiss" and file.name not in named):
                file.unlink()
