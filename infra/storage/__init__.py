"""Object stores: a folder or an S3 bucket behind one interface."""

from pathlib import Path
from urllib.parse import unquote

from infra.storage.base import (
    AccessDenied,
    Blob,
    Entry,
    Filter,
    InvalidKey,
    ListingOutOfOrder,
    ListingProblem,
    ObjectChanged,
    ObjectMissing,
    ObjectTooLarge,
    Page,
    S3Options,
    Store,
    StoreEmpty,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
)
from infra.storage.folder import Folder

__all__ = [
    "AccessDenied",
    "Blob",
    "Entry",
    "Filter",
    "Folder",
    "InvalidKey",
    "ListingOutOfOrder",
    "ListingProblem",
    "ObjectChanged",
    "ObjectMissing",
    "ObjectTooLarge",
    "Page",
    "S3Options",
    "Store",
    "StoreEmpty",
    "StoreError",
    "StoreFull",
    "StoreMissing",
    "StoreUnavailable",
    "open_store",
]


def open_store(uri: str, options: S3Options | None = None) -> Store:
    """Return the store at a path, a file:// URL, or s3://bucket/prefix. Nothing is contacted yet.

    `options` say how to reach an S3 server; without them boto3 looks in its usual places.

    Raises:
        ValueError: for any other kind of URI.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if not uri:
            raise ValueError("an empty path names no folder; give a path, or s3://bucket/prefix")
        return Folder(Path(uri).expanduser())
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError(f"{uri}: a file URL looks like file:///absolute/path, with three slashes")
        return Folder(Path("/" + unquote(path, errors="surrogateescape")))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise ValueError(f"{uri}: the bucket is missing; write s3://bucket/prefix")
        from infra.storage.s3 import S3  # noqa: PLC0415 - boto3 takes a fifth of a second

        return S3(bucket, prefix, options or S3Options())
    raise ValueError(f"{uri}: cannot open {scheme}://; give a path, file:///path or s3://bucket/prefix")
