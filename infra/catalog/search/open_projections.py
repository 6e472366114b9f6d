"""The projections that a process has open, for all its threads."""

import threading
from collections import OrderedDict
from pathlib import Path

import faiss
from sqlalchemy.orm import Session

from infra.catalog.search import projection
from infra.catalog.search.projection import Projection
from infra.catalog.search.projection_files import load, save
from infra.catalog.tables.schema import ModelVersion

KEPT_FROM = 10_000  # vectors from which reading a file is worth it; fewer are read from the rows at once
KEPT_OPEN = 4

_open: OrderedDict[tuple[str, int, int], Projection] = OrderedDict()
_opening = threading.Lock()


def open_projection(session: Session, version: ModelVersion, folder: Path | None) -> Projection:
    """The index of a version, as the session sees its rows: from memory, from disk (`folder`), or built.

    It is written to disk if it is large and has changed enough, and at once if a face has left it; but nothing that was erased
    while it was made.
    """
    url = session.get_bind().engine.url
    file = Path(url.database or "")
    key = (url.render_as_string(), file.stat().st_ino if file.is_file() else 0, version.id)  # another file: other rows
    with _opening:
        found = _open.get(key)
        if found is None or found.note.contract != version.contract or not found.follow(session):
            found = _load_or_build(session, version, folder)
        kept = folder is not None and (found.note.file or found.view.count >= KEPT_FROM)
        if kept and folder is not None and (found.stale or not found.note.file):
            try:
                save(session, found, folder)
            except (RuntimeError, FileNotFoundError):  # what another process put in place of ours holds as much
                found = _load_or_build(session, version, folder)
                save(session, found, folder)
        elif found.stale:
            found.view, found.erased = found.view.merged(faiss.clone_index(found.view.base)), False
        _open[key] = found
        _open.move_to_end(key)
        while len(_open) > KEPT_OPEN:
            _open.popitem(last=False)
        return found


def _load_or_build(session: Session, version: ModelVersion, folder: Path | None) -> Projection:
    return (load(session, version, folder) if folder is not None else None) or projection.build(session, version)
