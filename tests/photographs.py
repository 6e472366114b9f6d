"""Small pictures for tests: made up or cut from real photographs, in any format, turned any way, with any profile."""

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pillow_heif import register_heif_opener

register_heif_opener()

Pixels = NDArray[np.uint8]
FAITHFUL = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
    "HEIF": {"quality": 90},
    "AVIF": {"quality": 90},
}


def scene(width: int = 96, height: int = 64, seed: int = 0) -> Pixels:
    """A smooth picture (H, W, 3) that looks different however it is turned or mirrored; no face is in it."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    phase = np.random.default_rng(seed).uniform(0, 1, 3)
    channels = [0.55 + 0.25 * x - 0.3 * y, 0.35 + 0.5 * y, 0.3 + 0.3 * x * y + 0.15 * np.sin(5 * (x + phase[0]))]
    picture = np.stack(channels, axis=-1)
    picture[: max(height // 4, 1), : max(width // 4, 1)] = (0.9, 0.15, 0.1)  # red in the upper left corner
    return (picture * 255).clip(0, 255).astype(np.uint8)


def photograph(path: Path, long_side: int | None = None) -> Pixels:
    """The pixels (H, W, 3) of a real photograph, upright, reduced to `long_side` if given."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    if long_side is not None:
        upright.thumbnail((long_side, long_side))
    return np.array(upright)


def encode(pixels: Pixels, format: str = "JPEG", orientation: int | None = None, **options: object) -> bytes:
    """Encode in one of Pillow's formats, nearly without loss, as a camera that was held so that `orientation` results."""
    image = Image.fromarray(pixels if orientation is None else as_stored(pixels, orientation))
    if orientation is not None:
        options["exif"] = exif(orientation)
    return save(image, format, **(FAITHFUL.get(format, {}) | options))


def save(image: Image.Image, format: str, **options: object) -> bytes:
    """Encode a Pillow image exactly as the options say."""
    buffer = BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def as_stored(pixels: Pixels, orientation: int) -> Pixels:
    """Turn upright pixels so that applying the EXIF orientation gives them back."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return np.array(Image.fromarray(pixels).transpose(undo[orientation])) if orientation in undo else pixels


def exif(orientation: int | None = None, taken: str | None = None, zone: str | None = None) -> bytes:
    """EXIF data with an orientation, a time like "2024:05:17 18:30:00", and its offset from UTC like "+02:00"."""
    tags = Image.Exif()
    if orientation is not None:
        tags[0x0112] = orientation
    details = {tag: value for tag, value in ((0x9003, taken), (0x9011, zone)) if value is not None}
    if details:
        tags.get_ifd(0x8769).update(details)
    return tags.tobytes()


def rgb_profile() -> bytes:
    """An ICC profile with Display P3's primaries (SMPTE EG 432-1, adapted to D50) and gamma 2.2."""
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
        b"wtpt": (0.9642, 1.0, 0.8249),
    }
    tags = {name: b"XYZ \0\0\0\0" + b"".join(_fixed(v) for v in xyz) for name, xyz in primaries.items()}
    gamma = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(2.2 * 256))
    return _profile(b"RGB ", b"XYZ ", tags | {b"rTRC": gamma, b"gTRC": gamma, b"bTRC": gamma})


def grey_profile() -> bytes:
    """An ICC profile for grey samples that are linear in light."""
    linear = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, 256)
    return _profile(
        b"GRAY", b"XYZ ", {b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(_fixed, (0.9642, 1, 0.8249))), b"kTRC": linear}
    )


def cmyk_profile() -> bytes:
    """An ICC profile for printing inks so weak that even full ink on full ink is only a mid grey."""
    corners = np.indices((2, 2, 2, 2)).reshape(4, -1).T  # cyan, magenta, yellow, black: last varies fastest
    lightness = 255 - 30 * corners.sum(axis=1)
    lab = np.stack([lightness, np.full(16, 128), np.full(16, 128)], axis=1).astype(np.uint8).tobytes()
    identity = b"".join(_fixed(v) for v in np.eye(3).ravel())
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + lab + ramp * 3
    return _profile(
        b"CMYK", b"Lab ", {b"A2B0": table, b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(_fixed, (0.9642, 1, 0.8249)))}
    )


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """Put an ICC profile together: header of 128 bytes, tag table, data (ICC.1:2001-04, 6)."""
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", **tags}
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    header = struct.pack(
        ">I4sI4s4s4s12s4s", at + len(body), b"", 0x02400000, kind, space, connection, bytes(12), b"acsp"
    )
    header = header.ljust(68, b"\0") + b"".join(map(_fixed, (0.9642, 1.0, 0.8249)))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
