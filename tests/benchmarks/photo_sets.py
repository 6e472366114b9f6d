"""The photographs that are measured on: the shared ones where they are, else arrangements of one free portrait."""

import tarfile
from collections.abc import Iterator
from itertools import count, islice, product
from pathlib import Path

import numpy as np

from tests.photographs import photograph
from tests.portraits import Pixels, jpeg, landscape, mirrored, pair, portrait
from tests.reference import SHARED

PHOTOS, CROPS = SHARED / "data" / "photos", SHARED / "data" / "lfw_grey_128.tar"


def origin() -> str:
    """Where the photographs come from, for whoever compares figures."""
    photos = "the 21 shared photographs" if PHOTOS.exists() else "a portrait of scikit-image, arranged anew"
    return (
        f"photographs: {photos}; crops: {'Labeled Faces in the Wild' if CROPS.exists() else 'the portrait, in noise'}"
    )


def photographs(folder: Path, number: int) -> Path:
    """Write `number` photographs with about one face each, all of different bytes: the same pictures, encoded anew."""
    folder.mkdir(parents=True)
    pictures = _pictures()
    files = ((again, i, picture) for again in count() for i, picture in enumerate(pictures))
    for again, i, picture in islice(files, number):
        (folder / f"{again:03}_{i:02}.jpg").write_bytes(jpeg(picture, quality=95 - again))
    return folder


def crops(folder: Path, number: int) -> Path:
    """Write `number` different pictures of 128 x 128 pixels, one face each."""
    folder.mkdir(parents=True)
    for name, data in islice(_crops(), number):
        (folder / name).write_bytes(data)
    return folder


def composites(folder: Path, number: int, width: int = 4000, height: int = 3000) -> Path:
    """Write `number` JPEGs of 12 megapixels with many faces each, all different."""
    folder.mkdir(parents=True)
    for n in range(number):
        (folder / f"{n:03}.jpg").write_bytes(jpeg(np.roll(mosaic(width, height), 500 * n, axis=1), quality=90))
    return folder


def mosaic(width: int, height: int, tile: int = 500) -> Pixels:
    """One large picture (H, W, 3) of squares cut from the photographs, with the detail and grain of each pixel their own."""
    large = [picture for picture in _pictures() if min(picture.shape[:2]) >= tile]
    result = np.zeros((height, width, 3), np.uint8)
    for i, (y, x) in enumerate(product(range(0, height, tile), range(0, width, tile))):
        picture = large[i % len(large)]
        top, left = (picture.shape[0] - tile) // 2, (picture.shape[1] - tile) // 2
        square = picture[top : top + tile, left : left + tile]
        place = result[y : y + tile, x : x + tile]
        place[:] = square[: place.shape[0], : place.shape[1]]
    return result


def _pictures() -> list[Pixels]:
    if PHOTOS.exists():
        return [photograph(path) for path in sorted(PHOTOS.iterdir())]
    single = [picture(side) for picture in (portrait, mirrored) for side in range(200, 1281, 120)]
    return [*single, pair(480), pair(640), landscape(1024)]


def _crops() -> Iterator[tuple[str, bytes]]:
    if not CROPS.exists():
        face = portrait(128).astype(np.float32)
        for seed in count():
            noise = np.random.default_rng(seed).normal(0, 4, face.shape)
            yield f"{seed:05}.jpg", jpeg((face + noise).clip(0, 255).astype(np.uint8))
    with tarfile.open(CROPS) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                yield Path(member.name).name, file.read()
