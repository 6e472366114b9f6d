"""What every object store offers: entries in key order, bounded reads, atomic writes, and errors that say what to do."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Protocol

PAGE_SIZE = 1000  # entries; what S3 returns at most for one request

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".heic", ".heics", ".heif", ".hif", ".avif",
)  # fmt: skip
# Written beside photographs by macOS (._IMG_1.jpg, __MACOSX) and Synology (@eaDir): picture names, no photographs inside.
# Every ext file system has a lost+found, which only root may read.
LITTER = ("._*", "**/__MACOSX/**", "**/@eaDir/**", "**/lost+found/**")


@dataclass(frozen=True)
class Entry:
    """An object as listed. `etag` changes whenever the content does; `size` in bytes; `modified` in UTC."""

    key: str
    etag: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class ListingProblem:
    """Something that could not be listed, in its place among the entries.

    A `key` that ends in "/" is a whole directory: nothing is known about the keys that begin with it, so they must not be
    taken for deleted.
    """

    key: str
    message: str


Page = list[Entry | ListingProblem]


@dataclass(frozen=True)
class Blob:
    """The content of an object, and the etag that belongs to exactly this content."""

    data: bytes = field(repr=False)
    etag: str
    size: int


class StoreError(Exception):
    """An object store refused or failed. The message names the full path or URL and says what to do."""

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later without anybody changing anything."""
        return False


class ObjectMissing(StoreError):
    """There is no such object (any more)."""


class ObjectTooLarge(StoreError):
    """The object is larger than the caller allowed; nothing of it was read."""


class ObjectChanged(StoreError):
    """The object is no longer the one that was listed, or changed while it was read. The next listing shows the new one."""


class AccessDenied(StoreError):
    """The credentials or permissions do not allow it."""


class InvalidKey(StoreError):
    """The key cannot exist in this store."""


class StoreMissing(StoreError):
    """The folder or bucket itself does not exist (a drive that is not mounted?)."""


class StoreEmpty(StoreError):
    """Nothing is there any more of what was (a drive that is not mounted?)."""


class ListingOutOfOrder(StoreError):
    """The server does not list in ascending order of keys, on which resuming and detecting deletions rest."""


class StoreFull(StoreError):
    """There is no room left to write to. Nothing of the object was written."""


class StoreUnavailable(StoreError):
    """The store did not answer, or answered with an error of its own, after bounded retries."""

    @property
    def retryable(self) -> bool:
        return True


@dataclass(frozen=True)
class S3Options:
    """How to reach an S3 server. What is left out comes from boto3's usual places: AWS_* variables, profiles, the instance."""

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"the S3 endpoint {self.endpoint!r} is no URL; write http:// or https:// before it")
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("an S3 access key and its secret key go together; give both or neither")


class Store(Protocol):
    """A place that holds objects under text keys: a collection of photographs, or our own crops.

    Stores are cheap values without open connections: they can be pickled and shared between threads.
    """

    @property
    def uri(self) -> str:
        """Where the store is, as `open_store` takes it."""
        ...

    def url(self, key: str) -> str:
        """Return the full path or URL of an object, for people to read."""
        ...

    def prefix_of(self, place: "Store") -> str | None:
        """Return what the keys begin with that lie in another place: "" if all do, None if none does."""
        ...

    def list(self, prefix: str = "", start_after: str | None = None) -> Iterator[Page]:
        """Yield pages of at most `PAGE_SIZE`, strictly ascending by the UTF-8 bytes of the key.

        `prefix` selects keys that begin with it; `start_after` continues an interrupted listing behind that key.

        Raises:
            StoreError: if the store as a whole cannot be listed. What concerns one key is a `ListingProblem` instead.
        """
        ...

    def read(self, key: str, max_bytes: int, etag: str | None = None) -> Blob:
        """Read a whole object. With `etag`, only if it still is the one that was listed so.

        Raises:
            ObjectTooLarge: before reading, if it has more than `max_bytes`.
            ObjectChanged, ObjectMissing, AccessDenied, InvalidKey, StoreUnavailable: as their names say.
        """
        ...

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str] | None = None) -> str:
        """Write an object as a whole or not at all, replacing any other; return its etag.

        `content_type` and `metadata` are for people who look into a bucket; a folder has no place for them.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object with everything a store keeps of it, older versions included. A missing one is no error."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is an object under the key."""
        ...


def ascending(pages: Iterable[Page], uri: str) -> Iterator[Page]:
    """Pass `pages` on while their keys strictly ascend. Text compares by code point, which is the order of UTF-8 bytes.

    Raises:
        ListingOutOfOrder: at the first key that does not.
    """
    last: str | None = None
    for page in pages:
        for entry in page:
            if last is not None and entry.key <= last:
                raise ListingOutOfOrder(
                    f"{uri}: the server lists {entry.key!r} after {last!r}, not in ascending order of keys (an S3 directory "
                    "bucket?). Use a general purpose bucket, or a server that lists in order."
                )
            last = entry.key
        if page:
            yield page


@dataclass(frozen=True)
class Filter:
    """Which keys of a collection are photographs to process: some pattern of `include` and none of `exclude` matches.

    `*` and `?` stay inside one directory, `**` crosses them, `[abc]` is one of these characters; case does not matter. A
    pattern without "/" is matched against the name alone, in whatever directory. Without `include`, every name with the
    suffix of an image format is taken. `exclude` replaces the default, which skips what macOS and NAS boxes strew about.
    Nothing behind the prefixes of `own` is taken: Visage keeps files of its own there.

    Raises:
        ValueError: for a pattern that cannot be understood.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = LITTER
    own: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _ = self._included, self._excluded  # a bad pattern is reported here, not at the first key

    def __call__(self, key: str) -> bool:
        wanted = any(p.fullmatch(key) for p in self._included) if self.include else is_image_name(key)
        return wanted and not key.startswith(self.own) and not any(p.fullmatch(key) for p in self._excluded)

    def may_want(self, key: str) -> bool:
        """Whether a key is wanted, or, if it is that of a directory and ends in "/", something in it may be."""
        if not key.endswith("/"):
            return self(key)
        whole = (p for told, p in zip(self.exclude, self._excluded, strict=True) if told.endswith("**"))
        return not key.startswith(self.own) and not any(p.fullmatch(key) for p in whole)

    @cached_property
    def _included(self) -> list[re.Pattern[str]]:
        return [_compile(pattern) for pattern in self.include]

    @cached_property
    def _excluded(self) -> list[re.Pattern[str]]:
        return [_compile(pattern) for pattern in self.exclude]


def is_image_name(key: str) -> bool:
    """Whether the key's suffix is that of an image format. Other objects are ignored, not failures."""
    return key.lower().endswith(IMAGE_SUFFIXES)


_GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\[!?[^!\]/][^\]/]*\]|.", re.DOTALL)


def _compile(pattern: str) -> re.Pattern[str]:
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = []
    for token in _GLOB.findall(pattern):
        if token in wildcards:
            parts.append(wildcards[token])
        elif len(token) > 1:
            negated, characters = token[1] == "!", token[1:-1].removeprefix("!")
            escaped = "-".join(re.escape(part) for part in characters.split("-"))
            parts.append(f"[{'^/' if negated else ''}{escaped}]")
        else:
            parts.append(re.escape(token))
    anywhere = "" if "/" in pattern else "(?:.*/)?"
    try:
        return re.compile(anywhere + "".join(parts), re.IGNORECASE | re.DOTALL)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} cannot be understood: {error}") from None
