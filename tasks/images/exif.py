"""What EXIF says of a picture: how it is to be turned, and when it was taken."""

from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from tasks.images.image_format import Format

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom, half open."""


def read_exif(file: Image.Image, format: Format, notes: list[str]) -> tuple[int, datetime | None]:
    """Return the orientation that is still to be applied, and when the photograph was taken; broken EXIF is noted."""
    try:
        exif = file.getexif()
        orientation, exif_time = exif.get(ExifTags.Base.Orientation, 1), _time(exif)
    except Exception:  # whatever a parser raises at broken EXIF, the picture is fine
        notes.append("exif_ignored")
        return 1, None
    if format in (Format.HEIF, Format.TIFF):  # libheif and Pillow's TIFF reader have turned the picture already
        orientation = 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1, exif_time


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation."""
    if orientation == 1:
        return pixels
    stored = pixels.view("V3")[..., 0]  # whole pixels instead of bytes: turning them takes half the time
    turned = _turned(stored, orientation)
    return np.ascontiguousarray(turned).view(np.uint8).reshape(*turned.shape, 3)


def stored_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Where the pixels in a box of the upright picture lie in the stored one, of `size` (width, height)."""
    left, top, right, bottom = box
    width, height = size
    rows, columns = (
        _turned(np.broadcast_to(axis, (height, width)), orientation)[[top, bottom - 1], [left, right - 1]]
        for axis in np.ogrid[:height, :width]
    )
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _turned(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of stored pixels (H, W) as an EXIF orientation, 1 to 8, shows them (EXIF 2.32, table 6)."""
    match orientation:
        case 1:
            turned = stored
        case 2:
            turned = stored[:, ::-1]
        case 3:
            turned = stored[::-1, ::-1]
        case 4:
            turned = stored[::-1]
        case 5:
            turned = stored.T
        case 6:
            turned = stored[::-1].T
        case 7:
            turned = stored[::-1, ::-1].T
        case _:
            turned = stored[:, ::-1].T
    return turned


def _time(exif: Image.Exif) -> datetime | None:
    taken, tags = exif.get_ifd(ExifTags.IFD.Exif), ExifTags.Base
    for text, zone in (
        (taken.get(tags.DateTimeOriginal), taken.get(tags.OffsetTimeOriginal)),
        (taken.get(tags.DateTimeDigitized), taken.get(tags.OffsetTimeDigitized)),
        (exif.get(tags.DateTime), taken.get(tags.OffsetTime)),
    ):
        for value, pattern in ((f"{text}{zone}", "%Y:%m:%d %H:%M:%S%z"), (str(text), "%Y:%m:%d %H:%M:%S")):
            try:
                return datetime.strptime(value.replace("\0", "").strip(), pattern)
            except ValueError:  # absent, blank ("    :  :     ") or nonsense
                continue
    return None
