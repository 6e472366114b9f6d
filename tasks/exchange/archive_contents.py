"""What an archive holds, read with suspicion: its collection, its objects with their places here, and what is kept out.

Digests prove that a file is as it was written, not who wrote it. Whatever becomes a path or a key here is put together anew
from parts that can be nothing else.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet
from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.archive_file import ArchiveReader, InvalidArchive
from infra.catalog.custody.erasing import Erased
from infra.catalog.database import knows
from infra.catalog.exchange.portable import CARRIED, Carried
from infra.catalog.tables.custody import Suppression
from infra.storage import Entry
from tasks.exchange.archive import CROP, ERASED, OBJECTS, THUMBNAIL
from tasks.exchange.arrow_rows import UnreadableTable, read_rows
from tasks.record import folder_of

OBJECT_KEYS = {"face": "crop_key", "restoration": "crop_key", "attribute": "mask_key"}  # columns that name an object
BY_NAME = {carried.name: carried for carried in CARRIED}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")


def rows_of(file: ArchiveReader, carried: Carried) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table, in pages.

    Raises:
        InvalidArchive: if they cannot be read as rows of this table, or a photograph has no SHA-256.
    """
    try:
        for page in read_rows(file.tables[carried.name], carried.table, carried.alone):
            if carried.name == "content" and not all(_SHA256.fullmatch(row["sha256"]) for row in page):
                raise InvalidArchive(f"{file.path}: a photograph's SHA-256 is none; Visage has not written this file")
            yield page
    except UnreadableTable as error:
        raise InvalidArchive(f"{file.path}: {error}") from error


def collection_of(file: ArchiveReader) -> dict[str, Any]:
    """The row of the archived collection, if this version of Visage can read all of the archive.

    Raises:
        InvalidArchive: if a later version has written it, or a table is missing.
    """
    if not knows(str(file.manifest["schema"])):
        raise InvalidArchive(
            f"{file.path}: made by a later Visage (catalog revision {file.manifest['schema']}). Update Visage here"
        )
    missing = {*BY_NAME, "objects", "erased"} - set(file.tables)
    if missing:
        raise InvalidArchive(f"{file.path}: it lacks {', '.join(sorted(missing))}; archive the collection anew")
    rows = [row for page in rows_of(file, BY_NAME["collection"]) for row in page]
    if len(rows) != 1:
        raise InvalidArchive(f"{file.path}: it holds {len(rows)} collections instead of one")
    return rows[0]


def erased_there(file: ArchiveReader) -> tuple[list[tuple[bytes, int]], list[tuple[str, list[float] | None]]]:
    """The secrets that hashes of what was erased were made with, each with the collection's number then; and the hashes."""
    rows = _plain_rows(file, "erased", ERASED.names)
    keys = [(bytes.fromhex(key), int(of)) for key, of in file.manifest.get("erasure_keys", [])]
    return keys, [(row["digest"], row["box"]) for row in rows]


@dataclass(frozen=True)
class HeldBack:
    """What was erased here and is in an archive all the same, by the archive's numbers.

    `marks`: the SHA-256 of each photograph, with the face's box if the photograph itself is not meant.
    """

    images: frozenset[int]
    contents: frozenset[int]
    faces: frozenset[int]
    marks: tuple[tuple[str, tuple[float, ...] | None], ...]

    @property
    def photos(self) -> frozenset[str]:
        """The SHA-256 of all photographs that show what was erased."""
        return frozenset(sha256 for sha256, _ in self.marks)


def held_back(session: Session, file: ArchiveReader) -> HeldBack:
    """Look for what was erased from any collection of this catalog. Costs nothing where nothing was.

    A photograph may have been erased before anybody had read it: then its bytes are those that its object has in the archive.
    """
    collections = session.scalars(select(Suppression.collection_id).distinct().order_by(Suppression.collection_id))
    erased = [Erased(session, collection) for collection in collections]
    images, contents, faces = set[int](), set[int](), set[int]()
    marks: list[tuple[str, tuple[float, ...] | None]] = []
    photos: dict[int, str] = {}
    for page in rows_of(file, BY_NAME["image"]) if erased else ():
        for row in page:
            entry = Entry(row["key"], row["etag"], row["size"], row["modified_at"])
            if any(e.object(entry) for e in erased):
                images.add(row["id"])
                contents |= {row["content_id"]} - {None}
    for page in rows_of(file, BY_NAME["content"]) if erased else ():
        for row in page:
            if row["id"] in contents or any(e.content(row["sha256"]) for e in erased):
                contents.add(row["id"])
                marks.append((row["sha256"], None))
            elif any(e.boxes for e in erased):
                photos[row["id"]] = row["sha256"]
    for page in rows_of(file, BY_NAME["image"]) if contents else ():
        images |= {row["id"] for row in page if contents & {row["content_id"], row.get("former_content_id")}}
    for page in rows_of(file, BY_NAME["face"]) if erased else ():
        for row in page:
            box = row["x1"], row["y1"], row["x2"], row["y2"]
            photo = photos.get(row["content_id"])
            if row["content_id"] in contents:
                faces.add(row["id"])
            elif photo is not None and any(e.faces(photo, np.array([box])).any() for e in erased):
                faces.add(row["id"])
                marks.append((photo, box))
    return HeldBack(frozenset(images), frozenset(contents), frozenset(faces), tuple(marks))


@dataclass(frozen=True)
class Places:
    """Where objects go. `keys`: the new key of each old one; `crops`: new keys by SHA-256 of the bytes; `thumbnails`: likewise
    photograph and name."""

    keys: dict[str, str]
    crops: dict[str, list[str]]
    thumbnails: dict[str, list[tuple[str, str]]]


def places(file: ArchiveReader, collection_id: int, held: HeldBack) -> Places:
    """Say where each object of the archive goes in this catalog, without those that show what was erased.

    Raises:
        InvalidArchive: for an object that is not there, or whose name is none.
    """
    unwanted = _keys_of(file, held.faces)
    found = Places({}, {}, {})
    for row in _plain_rows(file, "objects", OBJECTS.names):
        kind, key, photo, name, sha256 = (row[column] for column in OBJECTS.names)
        if not (_SHA256.fullmatch(photo or "") and _NAME.fullmatch(name or "") and kind in (CROP, THUMBNAIL)):
            raise InvalidArchive(
                f"{file.path}: {kind} {name!r} of photograph {photo!r} is no object that Visage has written"
            )
        if sha256 not in file.stored:
            raise InvalidArchive(f"{file.path}: {name} is missing; copy the file again, or archive the collection anew")
        if kind == THUMBNAIL and photo not in held.photos:
            found.thumbnails.setdefault(sha256, []).append((photo, name))
        elif kind == CROP and key not in unwanted:
            found.keys[key] = f"{folder_of(collection_id)}{photo[:2]}/{photo}/{name}"
            found.crops.setdefault(sha256, []).append(found.keys[key])
    return found


def _keys_of(file: ArchiveReader, faces: frozenset[int]) -> set[str]:
    """The keys of the objects that show some faces."""
    keys: set[str] = set()
    for table, column in OBJECT_KEYS.items() if faces else ():
        number = "id" if table == "face" else "face_id"
        for page in rows_of(file, BY_NAME[table]):
            keys.update(row[column] for row in page if row[number] in faces and row[column])
    return keys


def _plain_rows(file: ArchiveReader, name: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        for batch in pyarrow.parquet.ParquetFile(file.tables[name]).iter_batches(columns=columns):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidArchive(f"{file.path}: {name} cannot be read: {error}") from error
