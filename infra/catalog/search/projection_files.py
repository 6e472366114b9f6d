"""Projections on disk: a file per model version, with a note beside it that says which state of which rows it is.

What does not fit the rows is made anew. The file is mapped, not read: it opens at once, only the cells that a search probes
come from the disk, and processes share the memory.
"""

import json
import shutil
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from filelock import FileLock
from sqlalchemy import exists, not_, select
from sqlalchemy.orm import Session

from infra.catalog.encryption import is_encrypted
from infra.catalog.search.projection import Note, Projection, View, ids_in
from infra.catalog.search.vectors import changed_faces, count_vectors, journal_position, vectors_of
from infra.catalog.tables.schema import Embedding, EmbeddingChange, ModelVersion

SPOT_CHECKS = 16
SAME = 64  # faces that may be as near to a face as it is to itself: copies in several collections


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
        if (folder / note.file).stat().st_size != note.size:
            return None
        found = Projection(version, _mapped(folder / note.file), note)
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
    ):  # none, damaged, or written by another version: it is disposable
        return None
    if found.view.count != note.count or not _fits(session, found) or not found.follow(session):
        return None
    return found if found.view.count == count_vectors(session, version.id) else None


def _mapped(file: Path) -> Any:
    return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)


def _fits(session: Session, found: Projection) -> bool:
    """Whether an index is of these rows: its place in their journal exists, and rows look up themselves."""
    position = found.note.position
    if position > journal_position(session) or (position and session.get(EmbeddingChange, position) is None):
        return False
    before = changed_faces(session, found.version_id, position, 100_000)
    changed = np.zeros(0, np.int64) if before is None else before
    spots = np.setdiff1d(ids_in(found.view.base, SPOT_CHECKS), changed)
    faces, vectors = vectors_of(session, found.version_id, found.note.dimension, spots)
    if len(faces) < len(spots):
        return False
    return bool((found.scan(session, vectors, SAME)[0] == faces[:, None]).any(axis=1).all())


def save(session: Session, found: Projection, folder: Path) -> bool:
    """Write an index to disk: the file first, then the note that makes it count, then what it replaces goes.

    Not if it holds what was erased since the session began, or embeddings were encrypted: says whether it was written.

    Raises:
        RuntimeError, FileNotFoundError: if its own file or folder is gone, since another process replaced or removed it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _note_path(folder, found.note.contract)
    with FileLock(folder / ".lock"):
        if not _may_be_kept(session, found):
            return False
        base = (
            faiss.read_index(str(folder / found.note.file)) if found.note.file else faiss.clone_index(found.view.base)
        )
        view = found.view.merged(base)
        file = f"{path.stem}-{found.position}-{view.count}.faiss"
        partial = folder / f"{file}.part"
        faiss.write_index(view.base, str(partial))
        now = {"file": file, "size": partial.stat().st_size, "position": found.position, "count": view.count}
        note = Note(**{**asdict(found.note), **now})
        if not _may_be_kept(session, found):  # writing takes long; an erasure from now on finds the file
            partial.unlink(missing_ok=True)
            return False
        partial.replace(folder / file)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(asdict(note)), encoding="utf-8")
        partial.replace(path)
        for other in folder.glob(f"{path.stem}-*"):
            if other.name != file:
                other.unlink()
        found.note, found.erased = note, False
        found.view = View(_mapped(folder / file), view.hidden, view.recent)
        return True


def _may_be_kept(session: Session, found: Projection) -> bool:
    """Whether, by now and not at the session's moment, no face is gone that an index shows, and nothing is encrypted."""
    there = exists().where(Embedding.face_id == EmbeddingChange.face_id, Embedding.model_version_id == found.version_id)
    gone = exists().where(
        EmbeddingChange.id > found.position, EmbeddingChange.model_version_id == found.version_id, not_(there)
    )
    with Session(session.get_bind().engine.execution_options(read_only=True)) as latest:
        return not is_encrypted(latest) and not latest.scalar(select(gone))


def remove(folder: Path) -> None:
    """Remove a catalog's index from disk, if there is one."""
    shutil.rmtree(folder, ignore_errors=True)


def forget(session: Session, folder: Path) -> None:
    """Bring the files on disk up to the rows now: what was erased leaves them. Doing it twice changes nothing.

    Other processes let go of the old file at their next search, before they answer.
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
        if found is None or (found.view.changes and not save(session, found, folder)):
            note.unlink()  # of no use any more; the next search builds another
            continue
        named.add(found.note.file)
    with FileLock(
        folder / ".lock"
    ):  # what no note names: another's, or left by a process that was killed while writing
        for file in folder.iterdir():
            if file.suffix == ".part" or (file.suffix == ".faiss" and file.name not in named):
                file.unlink()
