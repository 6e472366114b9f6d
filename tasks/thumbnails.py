"""Thumbnails: small pictures of photographs for the page, made when they are first looked at.

A projection that can be thrown away: a folder of this machine beside the catalog, by the SHA-256 of the photograph's bytes.
`forget` removes what shows erased photographs.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from infra.settings import Settings
from infra.storage import open_store
from tasks.decode import DecodeLimits, decode

QUALITY = 82


class Size(IntEnum):
    """Pixels of the longer side. The two small ones, of the wall, are kept; the others are looked at too seldom."""

    SMALL = 320
    WALL = 640
    LARGE = 1280
    FULL = 2048


KEPT = (Size.SMALL, Size.WALL)


def thumbnails_folder(settings: Settings) -> Path:
    """Where thumbnails lie."""
    return settings.home_folder / "thumbnails"


def thumbnail(settings: Settings, collection_uri: str, key: str, etag: str, sha256: str, size: Size) -> bytes:
    """A photograph as JPEG whose longer side has `size` pixels, or as many as there are: as it was kept, or drawn.

    Raises:
        StoreError: if the photograph cannot be read, or is not the one any more that the catalog knows.
        DecodeFailure, MemoryError: if it cannot be decoded.
    """
    if size in KEPT:
        with suppress(FileNotFoundError):
            return _path(settings, sha256, size).read_bytes()
    store = open_store(collection_uri, settings.storage_options)
    data = store.read(key, settings.max_bytes, etag).data
    limits = DecodeLimits(max_bytes=settings.max_bytes, max_megapixels=settings.max_megapixels)
    picture = Image.fromarray(decode(data, limits, long_side=size).pixels)
    picture.thumbnail((size, size))
    return bytes(simplejpeg.encode_jpeg(np.asarray(picture), quality=QUALITY, colorspace="RGB", colorsubsampling="420"))


def to_keep(settings: Settings, sha256: str, size: Size) -> bool:
    """Whether a thumbnail of this size is to be kept and is not yet."""
    return size in KEPT and not _path(settings, sha256, size).is_file()


def keep(settings: Settings, sha256: str, size: Size, jpeg: bytes) -> None:
    """Keep a thumbnail.

    Call it in a transaction that holds the photograph's row: an erasure removes thumbnails once it has removed the row, and so
    finds this one, even if this process is killed here.
    """
    _write(_path(settings, sha256, size), jpeg)


def made_thumbnails(settings: Settings, sha256: str) -> list[Path]:
    """The files of a photograph that were made so far, by the SHA-256 of its bytes."""
    return [path for size in KEPT if (path := _path(settings, sha256, size)).is_file()]


def take_thumbnail(settings: Settings, sha256: str, name: str, jpeg: bytes) -> bool:
    """Keep a thumbnail that another Visage has made, unless there is one already; says whether it was kept.

    Raises:
        ValueError: if no thumbnail is called so.
    """
    if name not in {f"{size.value}.jpg" for size in KEPT}:
        raise ValueError(f"{name!r} is no thumbnail")
    path = _folder(settings, sha256) / name
    if not path.exists():
        _write(path, jpeg)
        return True
    return False


def forget(settings: Settings, contents_sha256: Iterable[str]) -> int:
    """Remove every thumbnail of photographs, by the SHA-256 of their bytes; returns how many files went."""
    removed = 0
    for sha256 in contents_sha256:
        folder = _folder(settings, sha256)
        if folder.is_dir():
            removed += sum(1 for _ in folder.iterdir())
            shutil.rmtree(folder)
    return removed


def _path(settings: Settings, sha256: str, size: Size) -> Path:
    return _folder(settings, sha256) / f"{size.value}.jpg"


def _folder(settings: Settings, sha256: str) -> Path:
    return thumbnails_folder(settings) / sha256[:2] / sha256


def _write(path: Path, data: bytes) -> None:
    """Put a file there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
