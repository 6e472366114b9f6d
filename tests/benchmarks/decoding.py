"""Decode just enough: 12-megapixel JPEGs at the size that detection wants, against decoding them whole and reducing them.

What bounds it is the file's entropy coding, which has to be read whatever the size: "floor" is a decode to an eighth of each
side, in which little else is left to do.
"""

import io
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from infra.settings import Settings
from tasks.decode import decode
from tests.benchmarks import photo_sets
from tests.benchmarks.table import Row, seconds
from tests.portraits import Pixels

FILES: dict[str, dict[str, Any]] = {
    "quality 75, 4:2:0": {"quality": 75, "subsampling": 2},
    "quality 90, 4:2:0": {"quality": 90, "subsampling": 2},
    "quality 95, 4:4:4": {"quality": 95, "subsampling": 0},
    "quality 90, 4:2:0, progressive": {"quality": 90, "subsampling": 2, "progressive": True},
}


def measure(width: int = 4000, height: int = 3000, rounds: int = 11) -> dict[str, Any]:
    """Go from each file to the picture for detection in three ways, by turns; seconds are medians."""
    picture = Image.fromarray(photo_sets.mosaic(width, height))
    return {name: {"pixels": width * height, **of_file(picture, options, rounds)} for name, options in FILES.items()}


def of_file(picture: Image.Image, options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The same for one file."""
    file = io.BytesIO()
    picture.save(file, "jpeg", **options)
    data, long_side = file.getvalue(), Settings().detect_long_side
    found = decode(data, long_side=long_side).pixels
    size = (found.shape[1], found.shape[0])

    def reduced(image: Image.Image) -> Pixels:
        return np.asarray(image.resize(size, Image.Resampling.BOX))

    ways: dict[str, Callable[[], object]] = {
        "just_enough": lambda: decode(data, long_side=long_side).pixels,
        "whole": lambda: reduced(Image.fromarray(decode(data).pixels)),
        "pillow": lambda: reduced(Image.open(io.BytesIO(data)).convert("RGB")),
        "floor": lambda: simplejpeg.decode_jpeg(data, "RGB", min_width=1, min_height=1),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
    return {"bytes": len(data), "size": size, "seconds": {name: median(values) for name, values in taken.items()}}


def rows(measured: dict[str, Any]) -> list[Row]:
    """What the table says of it."""
    return [_row(name, file, file["seconds"]) for name, file in measured.items()]


def _row(name: str, file: dict[str, Any], taken: dict[str, float]) -> Row:
    width, height = file["size"]
    return Row(
        f"Decoding just enough: from a JPEG of {file['pixels'] / 1e6:.0f} megapixels ({name}, {file['bytes'] / 1e6:.1f} MB) "
        f"to the {width} x {height} pixels that detection wants",
        seconds(taken["just_enough"]),
        f"{taken['pillow'] / taken['just_enough']:.1f}x faster than Pillow in full and reducing ({seconds(taken['pillow'])}), "
        f"{taken['whole'] / taken['just_enough']:.1f}x faster than TurboJPEG so ({seconds(taken['whole'])}); reading "
        f"the file's codes alone {seconds(taken['floor'])}",
    )
