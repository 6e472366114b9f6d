"""Decode just enough: a 12-megapixel JPEG at the size that detection wants, against decoding it whole and reducing it."""

import io
import time
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from infra.settings import Settings
from tasks.decode import decode
from tests.benchmarks import photo_sets
from tests.benchmarks.table import Row, seconds
from tests.portraits import Pixels, jpeg


def measure(width: int = 4000, height: int = 3000, rounds: int = 15) -> dict[str, Any]:
    """Go from the file to the picture for detection in three ways, by turns; seconds are medians, on one thread."""
    data = jpeg(photo_sets.mosaic(width, height), quality=90)
    long_side = Settings().detect_long_side
    picture = decode(data, long_side=long_side).pixels
    size = (picture.shape[1], picture.shape[0])

    def reduced(image: Image.Image) -> Pixels:
        return np.asarray(image.resize(size, Image.Resampling.BOX))

    ways = {
        "just_enough": lambda: decode(data, long_side=long_side).pixels,
        "whole": lambda: reduced(Image.fromarray(decode(data).pixels)),
        "pillow": lambda: reduced(Image.open(io.BytesIO(data)).convert("RGB")),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
    return {
        "bytes": len(data),
        "pixels": width * height,
        "size": size,
        "seconds": {name: median(values) for name, values in taken.items()},
    }


def rows(measured: dict[str, Any]) -> list[Row]:
    """What the table says of it."""
    taken = measured["seconds"]
    width, height = measured["size"]
    return [
        Row(
            f"Decoding just enough: from a JPEG of {measured['pixels'] / 1e6:.0f} megapixels ({measured['bytes'] / 1e6:.1f} "
            f"MB) to the {width} x {height} pixels that detection wants, one thread",
            seconds(taken["just_enough"]),
            f"{taken['whole'] / taken['just_enough']:.1f}x faster than TurboJPEG in full and reducing "
            f"({seconds(taken['whole'])}), {taken['pillow'] / taken['just_enough']:.1f}x faster than Pillow so "
            f"({seconds(taken['pillow'])})",
        )
    ]
