"""A collection as one file, to be taken in by another Visage without processing anything again.

All rows of it, people and what was decided about them included; its crops, restored crops, masks and thumbnails; the model
versions that made them; and keyed hashes of what was erased from it, so that it does not come back there either. Not the
photographs. The file can be read by whoever has it, faces and vectors, even where the catalog's vectors are encrypted.
"""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from infra.archive_file import ArchiveWriter, part_of
from infra.catalog import collections, encryption
from infra.catalog.custody import audit, exhibits
from infra.catalog.custody.erasing import Erased, suppressions
from infra.catalog.database import Catalog, head
from infra.catalog.exchange.portable import CARRIED, Selection
from infra.catalog.sides import unindexed
from infra.catalog.tables.schema import Attribute, Content, Face, Restoration, now
from infra.catalog.versioning.versions import serving
from infra.catalog.work.runs import close_dead_runs
from infra.settings import Settings
from infra.storage import ObjectMissing, Store, open_store
from tasks.exchange.arrow_rows import schema_of, write_rows
from tasks.thumbnails import made_thumbnails

PAGE = 1000
READERS = 8  # crops that are read at once: most of the time is waiting for the store
CROP, THUMBNAIL = "crop", "thumbnail"
OBJECTS = pa.schema([(name, pa.string()) for name in ("kind", "key", "photo", "name", "sha256")])
"""What an object is: `key` as rows refer to it, `photo` the SHA-256 of the photograph that it shows, `name` its own."""
ERASED = pa.schema([("digest", pa.string()), ("box", pa.list_(pa.float64()))])

Progress = Callable[[str, int], None]


class CannotArchive(ValueError):
    """The collection cannot be archived now, or not there; the message says what to do."""


@dataclass(frozen=True)
class Archived:
    """What was written. `digest` stands for all of it. `decrypted`: vectors are encrypted in the catalog, not in the file."""

    path: Path
    collection: str
    photos: int
    faces: int
    objects: int
    digest: str
    decrypted: bool


def archive(
    catalog: Catalog,
    settings: Settings,
    name: str,
    path: Path,
    who: str,
    on_progress: Progress = lambda step, done: None,
) -> Archived:
    """Write a collection into a new file, of one moment. An erasure that concerns the collection removes the file.

    Raises:
        UnknownCollection: with the names there are.
        CannotArchive: if the file is there already, a run is at work on the collection, a crop is missing, or an erasure came.
        EmbeddingsLocked: if the catalog's vectors are encrypted, and the key is not at hand.
    """
    if path.exists() or not path.parent.is_dir():
        what = "is there already; name a new file" if path.exists() else f"cannot be made: {path.parent} is no folder"
        raise CannotArchive(f"{path} {what}")
    with catalog.write() as session:
        encryption.check_open(session)
        collection = collections.by_name(session, name)
        places = path, part_of(path)
        noted = [exhibits.note(session, settings, "archive", place, collection.id) for place in places]
        if alive := close_dead_runs(session, collection.id):
            raise CannotArchive(f"run {alive[0].id} is at work on {name!r}; wait for it, or stop it first")
        audit.append(session, who, "archive", {"collection": collection.id})
    marks = " ".join(exhibit.mark for exhibit in noted)
    with exhibits.written(catalog, *noted), catalog.read() as session, ArchiveWriter(path, marks) as file:
        rows = _write_tables(session, collection.id, file, on_progress)
        objects = _write_objects(session, settings, collection.id, file, on_progress)
        about, decrypted = _about(session, collection.id, name), encryption.is_encrypted(session)
        with catalog.write() as writing:
            if not all(exhibits.stands(writing, exhibit) for exhibit in noted):
                raise CannotArchive(f"something was erased while {name!r} was archived; archive it again")
            digest = file.finish(about)
    return Archived(path, name, rows["image"], rows["face"], objects, digest, decrypted)


def _about(session: Session, collection_id: int, name: str) -> dict[str, Any]:
    served, erased = serving(session), Erased(session, collection_id)
    return {
        "schema": head(),
        "collection": name,
        "made_at": now().isoformat(timespec="seconds"),
        "serving": None if served is None else served.contract,
        "erasure_keys": [[key.hex(), of] for key, of in erased.keys if erased.whole or erased.boxes],
    }


def _write_tables(session: Session, collection_id: int, file: ArchiveWriter, on_progress: Progress) -> dict[str, int]:
    selection, counts = Selection(session, collection_id), dict[str, int]()
    for carried in CARRIED:
        schema = schema_of(carried.table, carried.alone)
        counts[carried.name] = _write(file, carried.name, schema, selection.rows(carried))
        on_progress(carried.name, counts[carried.name])
    erased = [{"digest": digest, "box": box} for digest, box in suppressions(session, collection_id)]
    _write(file, "erased", ERASED, iter([erased]))
    return counts


def _write(file: ArchiveWriter, name: str, schema: pa.Schema, pages: Iterator[Any]) -> int:
    with tempfile.TemporaryFile() as rows:
        count = write_rows(rows, schema, pages)
        file.table(name, count, rows)
    return count


def _write_objects(
    session: Session, settings: Settings, collection_id: int, file: ArchiveWriter, on_progress: Progress
) -> int:
    store = open_store(settings.crops_uri, settings.storage_options)

    def index() -> Iterator[list[dict[str, str]]]:
        done = 0
        with ThreadPoolExecutor(READERS) as readers:
            for page in _crops(session, collection_id):
                read = readers.map(lambda found: _read(store, settings, found[1]), page)
                yield [_entry(file, CROP, key, photo, data) for (photo, key), data in zip(page, read, strict=True)]
                done += len(page)
                on_progress("objects", done)
        for photos in _photos(session, collection_id):
            found = ((photo, path) for photo in photos for path in made_thumbnails(settings, photo))
            yield [_entry(file, THUMBNAIL, path.name, photo, path.read_bytes()) for photo, path in found]

    return _write(file, "objects", OBJECTS, index())


def _entry(file: ArchiveWriter, kind: str, key: str, photo: str, data: bytes) -> dict[str, str]:
    name = key.rpartition("/")[2]
    sha256 = file.object(data, Path(name).suffix)
    return {"kind": kind, "key": key, "photo": photo, "name": name, "sha256": sha256}


def _read(store: Store, settings: Settings, key: str) -> bytes:
    try:
        return store.read(key, settings.max_bytes).data
    except ObjectMissing as error:
        raise CannotArchive(
            f"{store.url(key)}: this crop is missing, so the archive would not be whole. Bring it back from a backup, or "
            "have its photograph processed anew"
        ) from error


def _crops(session: Session, collection_id: int) -> Iterator[list[tuple[str, str]]]:
    """The objects that rows of the collection refer to, in pages: the SHA-256 of the photograph, and the key."""
    after = 0
    of_collection = unindexed(session, Content.collection_id) == collection_id
    while True:
        ids = select(Face.id).join(Content, Content.id == Face.content_id).where(of_collection, Face.id > after)
        last = session.scalar(select(func.max(ids.order_by(Face.id).limit(PAGE).subquery().c.id)))
        if last is None:
            return
        page = Face.id > after, Face.id <= last, of_collection
        keys: list[tuple[str, str]] = []
        for column, joined in (
            (Face.crop_key, None),
            (Restoration.crop_key, Restoration.face_id),
            (Attribute.mask_key, Attribute.face_id),
        ):
            statement = select(Content.sha256, column).select_from(Face).join(Content, Content.id == Face.content_id)
            if joined is not None:
                statement = statement.join(joined.class_, joined == Face.id)
            rows = session.execute(statement.where(*page).order_by(Face.id)).tuples()
            keys += [(photo, key) for photo, key in rows if key is not None]
        yield keys
        after = last


def _photos(session: Session, collection_id: int) -> Iterator[list[str]]:
    after = 0
    while True:
        rows = session.execute(
            select(Content.id, Content.sha256)
            .where(unindexed(session, Content.collection_id) == collection_id, Content.id > after)
            .order_by(Content.id)
            .limit(PAGE)
        ).all()
        if not rows:
            return
        yield [sha256 for _, sha256 in rows]
        after = rows[-1][0]
