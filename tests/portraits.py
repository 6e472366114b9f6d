"""Photographs with real faces that need no download: the astronaut of scikit-image (NASA, public domain), arranged anew."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

Pixels = NDArray[np.uint8]


def portrait(side: int = 384) -> Pixels:
    """Eileen Collins, one face; its eyes are a twelfth of the side apart."""
    return np.asarray(Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.LANCZOS))


def mirrored(side: int = 384) -> Pixels:
    """The same, mirrored: other bytes, another face to the network, the same person."""
    return portrait(side)[:, ::-1].copy()


def pair(side: int = 384) -> Pixels:
    """Both side by side: two faces in one photo."""
    return np.concatenate([portrait(side), mirrored(side)], axis=1)


def landscape(side: int = 256) -> Pixels:
    """A photo without a face."""
    return np.asarray(Image.fromarray(data.coffee()).resize((side, side)))


def jpeg(pixels: Pixels, quality: int = 92) -> bytes:
    """Encode as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=quality)
    return file.getvalue()


def small_collection(folder: Path) -> Path:
    """Five files: two portraits, a pair, a landscape, and a copy of the first under another name."""
    folder.mkdir(parents=True)
    files = {"a.jpg": portrait(), "b.jpg": mirrored(200), "c/pair.jpg": pair(), "d.jpg": landscape()}
    for name, pixels in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(pixels))
    (folder / "z_copy_of_a.jpg").write_bytes((folder / "a.jpg").read_bytes())
    return folder
