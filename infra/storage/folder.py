"""A folder as an object store.

Keys are paths relative to the folder, with "/". A name that is not valid UTF-8 (or begins with "bytes:" itself) stands in
its key as "bytes:" and its percent-encoded bytes, name by name, so that every file has exactly one key and back.

Symbolic links to files inside the folder are files like any other. Links to directories are not followed: what they lead
to inside the folder is listed in its own place, which also rules out circles. A link that leads out of the folder is a
problem to report, never a way out.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from infra.storage.base import (
    PAGE_SIZE,
    AccessDenied,
    Blob,
    Entry,
    InvalidKey,
    ListingProblem,
    ObjectChanged,
    ObjectMissing,
    ObjectTooLarge,
    Page,
    Store,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
    ascending,
)

ESCAPE = "bytes:"


@dataclass(frozen=True)
class Folder:
    """A folder on this machine as a `Store`.

    The etag is time of last modification (ns) and size, as rsync compares files: it survives a copy or backup that keeps
    times (cp -p, rsync -a) and the move to another disk, and changes with every ordinary write. Memory while listing is
    the names of the directories on one path at a time, not all keys.
    """

    root: Path

    def __post_init__(self) -> None:
        if "\0" in str(self.root):
            raise ValueError(f"{str(self.root)!r}: no folder has a NUL character in its name")
        object.__setattr__(self, "root", Path(os.path.abspath(self.root)))

    @property
    def uri(self) -> str:
        path = str(self.root)
        return path if path.isprintable() else self.root.as_uri()  # a name that is no UTF-8 fits into no catalog

    def url(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def prefix_of(self, place: Store) -> str | None:
        if not isinstance(place, Folder):
            return None
        root, other = (os.path.realpath(os.fsencode(folder.root)) for folder in (self, place))
        if other != root and not other.startswith(os.path.join(root, b"")):
            return None
        return "".join(f"{_name(name)}/" for name in other[len(root) :].split(b"/") if name)

    def list(self, prefix: str = "", start_after: str | None = None) -> Iterator[Page]:
        return ascending(self._pages(prefix, start_after), self.uri)

    def read(self, key: str, max_bytes: int, etag: str | None = None) -> Blob:
        path = self._resolve(key)
        try:
            with open(path, "rb", opener=_open_without_waiting) as file:
                before = os.fstat(file.fileno())
                self._check_readable(key, before, max_bytes, etag)
                data = file.read(before.st_size + 1)
                after = os.fstat(file.fileno())
        except IsADirectoryError as error:
            raise ObjectMissing(f"{self.url(key)}: a directory, not a file.") from error
        except OSError as error:
            raise self._error(error, key) from error
        if len(data) != before.st_size or _etag(after) != _etag(before):
            raise ObjectChanged(
                f"{self.url(key)}: the file changed while it was read. It is read again by the next run."
            )
        return Blob(data, _etag(before), len(data))

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str] | None = None) -> str:
        path = self._path(key)
        directory = os.path.dirname(path)
        self._check_way(directory, key)
        temporary = os.path.join(directory, b".visage-" + secrets.token_hex(8).encode() + b".part")
        try:
            os.makedirs(directory, exist_ok=True)
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(
                        file.fileno()
                    )  # else a power cut leaves an empty file under a name that the catalog trusts
                    etag = _etag(os.fstat(file.fileno()))
                os.replace(temporary, path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise self._error(error, key) from error
        return etag

    def delete(self, key: str) -> None:
        path = self._path(key)
        self._check_way(os.path.dirname(path), key)
        try:
            os.unlink(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
                raise self._error(error, key) from error

    def exists(self, key: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(self._resolve(key)).st_mode)
        except ObjectMissing:
            return False
        except OSError as error:
            raise self._error(error, key) from error

    def _pages(self, prefix: str, start_after: str | None) -> Iterator[Page]:
        entries = (entry for found in self._walk(prefix, start_after) if (entry := self._entry(found)) is not None)
        while page := [*islice(entries, PAGE_SIZE)]:
            yield page

    def _walk(self, prefix: str, start_after: str | None) -> Iterator[str | ListingProblem]:
        """Yield the keys of everything but directories, in order, and a problem for each directory that cannot be read."""
        pending = [self._names("")]  # one iterator per open directory: recursion would end at 1,000 levels
        parents = [""]
        while pending:
            name = next(pending[-1], None)
            if name is None:
                pending.pop()
                parents.pop()
                continue
            key = parents[-1] + name
            behind = start_after is None or key > start_after
            if not name.endswith("/"):
                if behind and key.startswith(prefix):
                    yield key
            elif (behind or (start_after or "").startswith(key)) and (key.startswith(prefix) or prefix.startswith(key)):
                try:
                    pending.append(self._names(key))
                    parents.append(key)
                except FileNotFoundError:
                    continue  # removed since its parent was read
                except OSError as error:
                    yield ListingProblem(key, str(self._error(error, key)))

    def _names(self, parent: str) -> Iterator[str]:
        """Return the names in a directory as they stand in keys, sorted as keys are: directories end in "/"."""
        try:
            with os.scandir(self._path(parent.removesuffix("/")) if parent else os.fsencode(self.root)) as directory:
                names = [_name(e.name) + ("/" if e.is_dir(follow_symlinks=False) else "") for e in directory]
        except OSError as error:
            if parent:
                raise
            if isinstance(error, FileNotFoundError | NotADirectoryError):
                raise StoreMissing(
                    f"{self.uri}: there is no such folder. Is the drive mounted, the path right?"
                ) from error
            raise self._error(error, "") from error
        return iter(sorted(names))

    def _entry(self, found: str | ListingProblem) -> Entry | ListingProblem | None:
        """Describe what lies under a key; None for what is gone by now and for links to directories of this folder."""
        if isinstance(found, ListingProblem):
            return found
        try:
            path = self._path(found)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                path = self._resolve(found)
                status = os.stat(path)
                if stat.S_ISDIR(status.st_mode):
                    return None
            if not stat.S_ISREG(status.st_mode):
                return ListingProblem(found, f"{self.url(found)}: {_kind(status)}, not a file. Nothing was opened.")
        except FileNotFoundError:
            return None
        except (OSError, StoreError) as error:
            problem = self._error(error, found) if isinstance(error, OSError) else error
            return ListingProblem(found, str(problem))
        return Entry(found, _etag(status), status.st_size, _moment(status.st_mtime_ns))

    def _path(self, key: str) -> bytes:
        """Return the path of a key. There is no other way from a key to a path, so no key leads out of the folder."""
        try:
            names = [_raw(part) for part in key.split("/")]
        except ValueError:
            raise InvalidKey(
                f"{self.uri}: {key!r} is not the key of a file: no '', '.' or '..' between slashes, no NUL, "
                f"and '{ESCAPE}' only before percent-encoded names."
            ) from None
        return os.path.join(os.fsencode(self.root), *names)

    def _resolve(self, key: str) -> bytes:
        """Return the real path of an existing file, with all links followed; it lies inside the folder."""
        path = self._path(key)
        try:
            if not self._linked(path):
                return path
            path = os.path.realpath(path, strict=True)
        except OSError as error:
            raise self._error(error, key) from error
        self._check_inside(path, key)
        return path

    def _check_way(self, directory: bytes, key: str) -> None:
        """Refuse a directory to which a link leads out of the folder. It need not be there yet."""
        try:
            linked = self._linked(directory)
        except FileNotFoundError:
            linked = False  # nothing lies behind what is not there
        except OSError:
            linked = True  # as far as it can be followed
        if linked:
            self._check_inside(os.path.realpath(directory), key)

    def _linked(self, path: bytes) -> bool:
        """Whether a name of a path below the folder is a symbolic link. Without one it lies inside, and realpath is slow."""
        place = os.fsencode(self.root)
        for name in filter(None, path[len(place) :].split(b"/")):
            place = os.path.join(place, name)
            if stat.S_ISLNK(os.lstat(place).st_mode):
                return True
        return False

    def _check_inside(self, path: bytes, key: str) -> None:
        root = os.path.realpath(os.fsencode(self.root))
        if path != root and not path.startswith(os.path.join(root, b"")):
            raise AccessDenied(
                f"{self.url(key)}: a symbolic link leads out of the folder, to {os.fsdecode(path)!a}. "
                "Add that place as a collection of its own."
            )

    def _check_readable(self, key: str, status: os.stat_result, max_bytes: int, etag: str | None) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise ObjectMissing(f"{self.url(key)}: {_kind(status)}, not a file.")
        if etag is not None and _etag(status) != etag:
            raise ObjectChanged(f"{self.url(key)}: the file changed since it was listed. The next run lists it anew.")
        if status.st_size > max_bytes:
            raise ObjectTooLarge(
                f"{self.url(key)}: {status.st_size:,} bytes, more than the {max_bytes:,} allowed. Raise the limit to read it."
            )

    def _error(self, error: OSError, key: str) -> StoreError:
        where, why = self.url(key), os.strerror(error.errno) if error.errno else str(error)
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR:
                return ObjectMissing(f"{where}: there is no such file. Removed since it was listed?")
            case errno.ELOOP:
                return ObjectMissing(f"{where}: symbolic links lead in a circle. Remove them.")
            case errno.EACCES | errno.EPERM | errno.EROFS:
                return AccessDenied(f"{where}: {why}. Give this user the right to it.")
            case errno.EEXIST | errno.EISDIR | errno.ENAMETOOLONG | errno.EINVAL | errno.EILSEQ:
                return InvalidKey(f"{where}: {why}. No file can be kept under this key.")
            case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
                return StoreFull(f"{where}: {why}. Free some room, then run again; nothing is half-written.")
            case _:
                return StoreUnavailable(f"{where}: {why}. Look after the disk or its connection, then run again.")


def _open_without_waiting(path: str | bytes, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)  # a named pipe would wait for somebody to write into it


def _name(raw: bytes) -> str:
    """Return a file's name as it stands in a key."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        return ESCAPE + quote_from_bytes(raw, safe="")
    return ESCAPE + quote_from_bytes(raw, safe="") if name.startswith(ESCAPE) else name


def _raw(name: str) -> bytes:
    """The inverse of `_name`. Raises ValueError for what no file's name gives."""
    raw = unquote_to_bytes(name.removeprefix(ESCAPE)) if name.startswith(ESCAPE) else name.encode()
    if raw in (b"", b".", b"..") or b"/" in raw or b"\0" in raw or _name(raw) != name:
        raise ValueError(name)
    return raw


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _moment(nanoseconds: int) -> datetime:
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:  # file systems know times beyond the year 9999
        return (datetime.max if nanoseconds > 0 else datetime.min).replace(tzinfo=UTC)


def _kind(status: os.stat_result) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(status.st_mode), "something special")
