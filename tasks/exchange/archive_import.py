"""Take in a collection that another Visage has archived (`archive.py`): all of it or nothing, and nothing is processed.

First the whole file is read and every digest compared. Then the collection is entered, empty, with a run that stands for the
import: nobody else can work on it meanwhile. Crops are written, and at last all rows in one transaction. A process that dies
before it leaves an empty collection, which the same import goes on with.

What was erased here is kept out, whatever collection it was erased from, and what had been erased there stays away as well.
"""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from infra.archive_file import ArchiveReader, open_archive
from infra.catalog import encryption
from infra.catalog.collections import CollectionExists
from infra.catalog.custody import audit
from infra.catalog.custody import places as outside
from infra.catalog.database import Catalog
from infra.catalog.identities import enforcement
from infra.catalog.statements import exclusive
from infra.catalog.tables.custody import Keeps
from infra.catalog.tables.schema import Collection as CollectionRow
from infra.catalog.tables.schema import Image, ModelVersion, Run, RunStatus
from infra.catalog.versioning.upgrades import SERVING
from infra.catalog.work.heartbeat import beating
from infra.catalog.work.runs import LeaseLost, close_run, hold, open_run
from infra.patience import patient
from infra.settings import Settings
from infra.storage import Store, StoreMissing, open_store
from models.spec import Role
from tasks.custody import errands
from tasks.exchange.archive import Progress
from tasks.exchange.archive_contents import BY_NAME, HeldBack, Places, collection_of, held_back, places, rows_of
from tasks.exchange.arrival import Arrived, enter_rows
from tasks.nights.collections import InvalidCollection, check_name
from tasks.record import folder_of
from tasks.thumbnails import forget, take_thumbnail

WRITERS = 8
GROUP = 64  # objects that are written side by side
TYPES = {".jpg": "image/jpeg", ".png": "image/png"}


class VersionConflict(ValueError):
    """The archive's vectors were made by a model version that is another one here."""


class ErasedMeanwhile(RuntimeError):
    """Something of the archive was erased from this catalog while it was taken in."""


@dataclass(frozen=True)
class Imported:
    """What was taken in. `lacking`: faces that the version which queries use here has not embedded; the next run makes them.

    `held_photos`, `held_faces`: kept out because they were erased here. `left`: what an erasure's clean-up could not do yet.
    """

    collection: str
    uri: str
    photos: int
    faces: int
    identities: int
    lacking: int
    held_photos: int
    held_faces: int
    digest: str
    left: tuple[str, ...] = ()


@dataclass
class _Stay:
    """The collection while it is taken in: its number and run, and of which photographs thumbnails were written so far."""

    collection_id: int
    run_id: int
    goes_on: bool
    thumbnails: list[str] = field(default_factory=list)


def import_archive(
    catalog: Catalog,
    settings: Settings,
    path: Path,
    who: str,
    name: str | None = None,
    uri: str | None = None,
    on_progress: Progress = lambda step, done: None,
) -> Imported:
    """Take a collection in, under another name or with photographs in another place if wanted. Call it without a transaction.

    Raises:
        InvalidArchive: naming what of the file is damaged, missing, or of a later version. Nothing was changed.
        CollectionExists: if the name is taken.
        InvalidCollection: if the name or the place is none.
        VersionConflict: if vectors of the archive and of this catalog bear one model version's name and cannot be compared.
        EmbeddingsLocked: if this catalog's vectors are encrypted, and the key is not at hand.
        RunInProgress: if another process takes the same archive in.
        StoreError: if crops cannot be written; then all is as before.
    """
    file = open_archive(path, settings.max_bytes)
    row = _as_wanted(collection_of(file), name, uri, settings)
    with catalog.read() as session:
        encryption.check_open(session)
        _check_versions(session, file)
        held = held_back(session, file)
    outside.enter(catalog, settings, Keeps.OBJECTS, Keeps.CACHE)
    with catalog.write() as session:
        stay = _enter(session, row, f"import {file.digest[:16]}")
    try:
        with beating(catalog, stay.run_id):
            where = places(file, stay.collection_id, held)
            _write_objects(settings, file, where, stay, on_progress)
            arrived = _commit(catalog, file, stay, who, where, held)
    except LeaseLost:
        raise  # another process has the collection now
    except BaseException:
        _undo(catalog, settings, stay)
        raise
    finished = errands.finish(catalog, settings)
    return Imported(
        row["name"],
        row["uri"],
        arrived.photos,
        arrived.faces,
        arrived.identities,
        arrived.lacking,
        len(held.images),
        len(held.faces),
        file.digest,
        finished.left,
    )


def _as_wanted(row: dict[str, Any], name: str | None, uri: str | None, settings: Settings) -> dict[str, Any]:
    """The collection's row with the name and place it gets here."""
    wanted = row | {"name": row["name"] if name is None else name}
    check_name(wanted["name"])
    try:
        wanted["uri"] = open_store(row["uri"] if uri is None else uri, settings.storage_options).uri
    except ValueError as error:
        raise InvalidCollection(str(error)) from error
    del wanted["id"], wanted["created_at"]  # here it is added now, after what was removed here
    return wanted


def _check_versions(session: Session, file: ArchiveReader) -> None:
    here = {
        (version.name, version.version): version.contract
        for version in session.scalars(select(ModelVersion).where(ModelVersion.role == Role.EMBED.value))
    }
    for page in rows_of(file, BY_NAME["model_version"]):
        for row in page:
            contract = here.get((row["name"], row["version"]), row["contract"])
            if row["role"] == Role.EMBED.value and contract != row["contract"]:
                raise VersionConflict(
                    f"{file.path}: its vectors are of {row['name']}@{row['version']} with contract {row['contract']}; here "
                    f"that name is contract {contract}, and the two cannot be compared. Import it into a catalog of its own, "
                    "or bring both to one model version first ('visage models promote') and archive the collection anew"
                )


def _enter(session: Session, row: dict[str, Any], recipe: str) -> _Stay:
    """Enter the empty collection and the run that stands for the import, or take up those of one that died."""
    exclusive(session, "collections")
    found = session.scalar(select(CollectionRow).where(CollectionRow.name == row["name"]))
    goes_on = found is not None
    if found is None:
        found = CollectionRow(**row)
        session.add(found)
        session.flush()
    else:
        others = select(Run.id).where(Run.collection_id == found.id, Run.recipe != recipe)
        begun = select(Run.id).where(Run.collection_id == found.id, Run.recipe == recipe)
        images = select(Image.id).where(Image.collection_id == found.id)
        if session.scalar(begun.limit(1)) is None or session.scalar(others.union(images).limit(1)) is not None:
            raise CollectionExists(f"a collection called {row['name']!r} exists already; choose another name with --as")
        found.uri = row["uri"]
    return _Stay(found.id, open_run(session, found.id, recipe).id, goes_on)


def _write_objects(settings: Settings, file: ArchiveReader, where: Places, stay: _Stay, on_progress: Progress) -> None:
    store = open_store(settings.crops_uri, settings.storage_options)

    def write(found: tuple[str, bytes]) -> None:
        sha256, data = found
        for key in where.crops.get(sha256, ()):
            if not (stay.goes_on and patient(store.exists)(key)):  # stores write as a whole or not at all
                patient(store.put)(key, data, TYPES.get(Path(key).suffix, "application/octet-stream"))
        for photo, name in where.thumbnails.get(sha256, ()):
            if take_thumbnail(settings, photo, name, data):
                stay.thumbnails.append(photo)

    if stay.goes_on:
        _sweep(store, stay, set(where.keys.values()))
        stay.thumbnails += [photo for found in where.thumbnails.values() for photo, _ in found]  # made then, perhaps
    objects, done = file.objects(), 0
    with ThreadPoolExecutor(WRITERS) as writers:
        while group := list(islice(objects, GROUP)):
            list(writers.map(write, group))
            done += len(group)
            on_progress("objects", done)


def _sweep(store: Store, stay: _Stay, wanted: Collection[str] = ()) -> None:
    """Remove crops of the collection but those that are wanted, as a process leaves them that died."""
    with suppress(StoreMissing):
        for page in store.list(folder_of(stay.collection_id)):
            for entry in page:
                if entry.key not in wanted:
                    patient(store.delete)(entry.key)


def _commit(catalog: Catalog, file: ArchiveReader, stay: _Stay, who: str, where: Places, held: HeldBack) -> Arrived:
    with catalog.write() as session:
        exclusive(session, SERVING)
        exclusive(session, enforcement.PEOPLE)
        hold(session, stay.run_id)
        if held_back(session, file) != held:
            raise ErasedMeanwhile(f"{file.path}: something of it was erased here just now; import it again")
        arrived = enter_rows(session, file, stay.collection_id, stay.run_id, who, where, held)
        audit.append(session, who, "import", {"collection": stay.collection_id, "archive": file.digest})
        counts = {"imported": arrived.photos, "faces": arrived.faces}
        close_run(session, stay.run_id, RunStatus.DONE, counts)
        return arrived


def _undo(catalog: Catalog, settings: Settings, stay: _Stay) -> None:
    """Leave nothing of an import that did not work."""
    _sweep(open_store(settings.crops_uri, settings.storage_options), stay)
    forget(settings, stay.thumbnails)
    with catalog.write() as session:
        session.execute(delete(CollectionRow).where(CollectionRow.id == stay.collection_id))
