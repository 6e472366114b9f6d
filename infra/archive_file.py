"""The file that a portable archive is: a plain tar of tables, objects and, at its end, a manifest with every part's digest.

Nothing of it is ever unpacked by name: tables are read under names that the reader asks for, and an object is known by the
SHA-256 of its bytes alone. So no name inside can lead anywhere, and a file that was cut short, damaged or changed is told by
its digests.
"""

import hashlib
import io
import json
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

FORMAT = "visage archive"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 16 * 2**20
CHUNK = 2**20
_OBJECT = re.compile(r"objects/([0-9a-f]{64})(?:\.[a-z]{3,4})?")
_TABLE = re.compile(r"tables/([a-z_]{1,64})\.parquet")


class InvalidArchive(ValueError):
    """The file is no archive, or not a whole one, or not one that this version reads; the message says which."""


class ArchiveWriter:
    """Writes beside its place, and takes the place only when all is written: `with ArchiveWriter(path, comment) as archive`.

    `comment` stands at the beginning of the file, for whoever has to know it again.

    Raises:
        FileExistsError: if something is there already.
    """

    def __init__(self, path: Path, comment: str) -> None:
        self.path, self.partial, self.comment = path, part_of(path), comment
        if path.exists():
            raise FileExistsError(path)
        self.objects: set[bytes] = set()
        self._tables: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "ArchiveWriter":
        self._file = self.partial.open("wb")
        headers = {"comment": self.comment}
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers)
        return self

    def table(self, name: str, rows: int, file: IO[bytes]) -> None:
        """Add a table, as a Parquet file from its beginning."""
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # typeshed wants readinto's type
        file.seek(0)
        self._add(f"tables/{name}.parquet", size, file)
        self._tables[name] = {"rows": rows, "bytes": size, "sha256": digest}

    def object(self, data: bytes, suffix: str) -> str:
        """Add some bytes, once however often they come, and return their SHA-256."""
        digest = hashlib.sha256(data)
        if digest.digest() not in self.objects:
            self.objects.add(digest.digest())
            self._add(f"objects/{digest.hexdigest()}{suffix}", len(data), io.BytesIO(data))
        return digest.hexdigest()

    def finish(self, about: dict[str, Any]) -> str:
        """Write the manifest, put the file in its place, and return the SHA-256 of the manifest: it stands for all parts."""
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **about, "tables": self._tables}
        manifest["objects"] = len(self.objects)
        data = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
        self._add(MANIFEST, len(data), io.BytesIO(data))
        self._tar.close()
        self._file.close()
        self.partial.rename(self.path)
        return hashlib.sha256(data).hexdigest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            self.partial.unlink()

    def _add(self, name: str, size: int, file: IO[bytes]) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = size, int(time.time()), 0o600
        self._tar.addfile(member, file)
        self._tar.members = []  # type: ignore[attr-defined]  # which would grow by every object


def part_of(path: Path) -> Path:
    """What an archive is called while it is written."""
    return path.with_name(f".{path.name}.part")


@dataclass(frozen=True)
class ArchiveReader:
    """An archive all of whose parts are there and undamaged. `tables`: open files, by name. `digest`: of the manifest."""

    path: Path
    manifest: dict[str, Any]
    tables: dict[str, IO[bytes]]
    stored: frozenset[str]
    digest: str

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """The objects once more, as SHA-256 and bytes, in the order of the file.

        Raises:
            InvalidArchive: if the file was changed since it was opened.
        """
        for member, file in _members(self.path):
            found = _OBJECT.fullmatch(member.name)
            if found is not None:
                data = file.read()
                if hashlib.sha256(data).hexdigest() != found[1]:
                    raise InvalidArchive(f"{self.path}: the file was changed while it was read")
                yield found[1], data


def open_archive(path: Path, most_object_bytes: int) -> ArchiveReader:
    """Read an archive from end to end, and return it if every part of it has the digest that it should have.

    Raises:
        InvalidArchive: naming the part that is missing, damaged, too large or strange.
        OSError: if the file cannot be read.
    """
    tables: dict[str, IO[bytes]] = {}
    digests: dict[str, str] = {}
    stored: set[str] = set()
    manifest: bytes | None = None
    for member, file in _members(path):
        found, table = _OBJECT.fullmatch(member.name), _TABLE.fullmatch(member.name)
        if found is not None:
            if member.size > most_object_bytes:
                raise InvalidArchive(
                    f"{path}: {member.name} has {member.size:,} bytes, more than VISAGE_MAX_BYTES allows"
                )
            if hashlib.sha256(file.read()).hexdigest() != found[1]:
                raise _damaged(path, member.name)
            stored.add(found[1])
        elif table is not None and table[1] not in tables:
            tables[table[1]], digests[table[1]] = _spooled(file)
        elif member.name == MANIFEST and member.size <= MOST_MANIFEST_BYTES:
            manifest = file.read()
        else:
            raise InvalidArchive(f"{path}: {member.name!r} is no part of an archive of Visage, or is there twice")
    if manifest is None:
        raise InvalidArchive(
            f"{path}: the file ends without its manifest: it was cut short (an interrupted copy?), or is no archive of "
            "'visage archive'. Copy it again"
        )
    told = _told(path, manifest)
    parts = {name: part["sha256"] for name, part in told["tables"].items()}
    for name in sorted(parts.keys() | digests.keys()):
        if parts.get(name) != digests.get(name):
            raise _damaged(path, f"tables/{name}.parquet")
    if len(stored) != told["objects"]:
        raise _damaged(path, f"{len(stored)} of {told['objects']} objects are there: it")
    return ArchiveReader(path, told, tables, frozenset(stored), hashlib.sha256(manifest).hexdigest())


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The plain files in a tar, in their order."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, mode="r:") as tar:
            while (member := tar.next()) is not None:
                file = tar.extractfile(member) if member.isreg() else None
                if file is None:
                    raise InvalidArchive(
                        f"{path}: {member.name!r} is no plain file; this is no archive of 'visage archive'"
                    )
                if member.offset_data + member.size > size:
                    raise InvalidArchive(f"{path}: the file was cut short in {member.name}. Copy it again")
                yield member, file
                tar.members = []  # type: ignore[attr-defined]  # as above
    except (tarfile.TarError, EOFError) as error:
        raise InvalidArchive(
            f"{path}: no archive of 'visage archive', or a damaged one ({error}). Copy it again"
        ) from error


def _spooled(file: IO[bytes]) -> tuple[IO[bytes], str]:
    """A copy of a part in a file without a name, and its SHA-256."""
    copy, digest = tempfile.TemporaryFile(), hashlib.sha256()  # noqa: SIM115 - it lives as long as the reader
    while data := file.read(CHUNK):
        digest.update(data)
        copy.write(data)
    copy.seek(0)
    return copy, digest.hexdigest()


def _told(path: Path, manifest: bytes) -> dict[str, Any]:
    try:
        told = json.loads(manifest)
        if told["format"] != FORMAT:
            raise ValueError(f"format {told['format']!r}")
        if told["format_version"] > FORMAT_VERSION:
            raise InvalidArchive(
                f"{path}: made by a later Visage (format {told['format_version']}, this one reads {FORMAT_VERSION}). "
                "Update Visage here, then import it"
            )
        _ = {name: part["sha256"] for name, part in told["tables"].items()}, told["objects"], told["schema"]
    except InvalidArchive:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidArchive(
            f"{path}: its manifest cannot be read ({error}); it is damaged, or none of Visage's"
        ) from error
    assert isinstance(told, dict)
    return told


def _damaged(path: Path, part: str) -> InvalidArchive:
    return InvalidArchive(
        f"{path}: {part} does not fit its digest: damaged, or changed since. Copy the file again, or archive anew"
    )
