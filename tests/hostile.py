"""A folder full of everything that breaks photo software, and what must become of each file."""

import base64
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from tests.photographs import cmyk_profile, encode, exif, rgb_profile, save, scene

PICTURE = scene(96, 64)
FORMATS = {
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "tif": "TIFF",
    "bmp": "BMP",
    "gif": "GIF",
    "heic": "HEIF",
    "avif": "AVIF",
}


class Outcome(StrEnum):
    """What a run makes of a file."""

    PROCESSED = "processed"
    FAILED = "failed"  # with a reason
    UNLISTABLE = "unlistable"  # told as a listing problem, never opened
    IGNORED = "ignored"  # no image by its name
    ABSENT = "absent"  # never listed


@dataclass(frozen=True)
class Expectation:
    """What must become of a file, and the reason of its failure."""

    outcome: Outcome
    reason: str | None = None


PROCESSED = Expectation(Outcome.PROCESSED)
Case = tuple[str, bytes, str | None]  # name, content, reason of failure or None if it is a picture


def make_hostile_folder(path: Path) -> dict[str, Expectation]:
    """Fill `path` and return what must become of each key, by the keys of `infra.storage.Folder`."""
    path.mkdir(parents=True, exist_ok=True)
    expected = {}
    for name, content, reason in hostile_files():
        (path / name).write_bytes(content)
        expected[name] = PROCESSED if reason is None else Expectation(Outcome.FAILED, reason)
    return expected | _names(path) | _no_files(path)


def hostile_files() -> Iterator[Case]:
    """Every hostile content under a plain name."""
    yield from _cut_off()
    yield from _misnamed()
    yield from _bombs()
    yield from _sizes()
    yield from _metadata()
    yield from _samples()
    yield from _several_pictures()
    yield from _jpeg_oddities()
    yield from _header_mistakes()


def _cut_off() -> Iterator[Case]:
    yield "empty.jpg", b"", "empty"
    yield "one-byte.jpg", b"\xff", "not_an_image"
    yield "zeros.jpg", bytes(5000), "not_an_image"
    for suffix, format in FORMATS.items():
        whole = encode(PICTURE, format)
        yield f"whole.{suffix}", whole, None
        yield f"half.{suffix}", whole[: len(whole) // 2], "truncated"
    jpeg, progressive = encode(PICTURE), encode(PICTURE, progressive=True)
    yield "header-only.jpg", jpeg[:100], "truncated"
    yield "end-missing.jpg", jpeg[:-2], "truncated"
    yield "progressive.jpg", progressive, None
    yield "progressive-cut.jpg", progressive[: len(progressive) * 2 // 3], "truncated"
    yield "cut-and-mended.jpg", jpeg[: len(jpeg) // 2] + b"\xff\xd9", "truncated"
    yield "zeros-in-the-second-half.jpg", jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2), "truncated"
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    for suffix in ("heic", "avif", "webp"):
        whole = encode(noise, FORMATS[suffix])
        yield f"zeros-in-the-second-half.{suffix}", whole[: len(whole) // 2] + bytes(len(whole) // 2), "truncated"
    thumbnail = encode(scene(32, 24))
    only = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    yield "thumbnail-only.jpg", jpeg[:2] + only, "truncated"
    yield "erased-flash-behind-the-header.jpg", jpeg[:100] + b"\xff" * 200_000, "truncated"
    png = encode(PICTURE, "PNG")
    yield "data-missing.png", b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", png[16:29]) + _chunk(b"IEND", b""), "corrupt"
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 1
    yield "one-bit-flipped.png", bytes(damaged), "corrupt"


def _misnamed() -> Iterator[Case]:
    yield "is-a-png.jpg", encode(PICTURE, "PNG"), None
    yield "is-a-jpeg.png", encode(PICTURE), None
    yield "is-a-webp.heic", encode(PICTURE, "WEBP"), None
    yield "text.jpg", b"I am not a picture.\n", "not_an_image"
    yield "page.png", b"\n<!DOCTYPE html>\n<html><body>404 <svg></svg></body></html>", "not_an_image"
    yield "drawing.png", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"
    yield "document.jpg", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "unsupported_format"
    yield "film.heic", struct.pack(">I", 24) + b"ftypqt  \0\0\0\0qt  mp42" + bytes(100), "unsupported_format"
    yield "layers.tif", b"8BPS\0\1" + bytes(100), "unsupported_format"
    yield "camera-raw.tif", save(Image.fromarray(PICTURE), "TIFF", tiffinfo={254: 1}), "unsupported_format"


def _bombs() -> Iterator[Case]:
    rows = zlib.compress(bytes(50_000), 9)
    yield "bomb.png", _png(50_000, 50_000, 1, 0, rows), "too_many_pixels"
    yield "bomb-in-the-header.png", _png(2**31 - 1, 2**31 - 1, 8, 2, rows), "too_many_pixels"
    yield "too-little-data.png", _png(10_000, 10_000, 1, 0, rows[:100]), "truncated"
    bulk = b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9)
    white = _png(8, 8, 8, 0, zlib.compress((b"\0" + b"\xff" * 8) * 8))
    for name, kind in (("text-bomb.png", b"zTXt"), ("profile-bomb.png", b"iCCP")):
        yield name, white[:33] + _chunk(kind, bulk) + white[33:], None
    yield "text-bomb-behind-the-pixels.png", white[:-12] + _chunk(b"zTXt", bulk) + white[-12:], None
    small = encode(PICTURE)
    frame = small.index(b"\xff\xc0") + 5
    yield "bomb.jpg", small[:frame] + b"\xff\xff\xff\xff" + small[frame + 4 :], "too_many_pixels"
    gif = encode(PICTURE, "GIF")
    yield "bomb.gif", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], "too_many_pixels"
    scan = encode(PICTURE, progressive=True)
    first = scan.index(b"\xff\xda")
    second = scan.index(b"\xff\xda", first + 2)
    scans = scan[first:second] * 10_000
    yield "ten-thousand-scans.jpg", scan[:second] + scans + scan[second:], "corrupt"
    comment = b"\xff\xfe\0\4\xff\xd9"
    yield "scans-behind-a-false-end.jpg", scan[:second] + comment + scans + scan[second:], "corrupt"


def _sizes() -> Iterator[Case]:
    yield "no-size.png", _png(0, 0, 8, 2, b""), "corrupt"
    jpeg = encode(PICTURE)
    frame = jpeg.index(b"\xff\xc0") + 5
    yield "no-height.jpg", jpeg[:frame] + b"\0\0" + jpeg[frame + 2 :], "corrupt"
    for name, width, height in (("1x1", 1, 1), ("30000x1", 30_000, 1), ("1x30000", 1, 30_000), ("2x3", 2, 3)):
        pixels = np.full((height, width, 3), 127, np.uint8)
        yield f"{name}.png", encode(pixels, "PNG"), None
        yield f"{name}.jpg", encode(pixels), None


def _metadata() -> Iterator[Case]:
    for orientation in (0, 9, 65_535):
        yield f"orientation-{orientation}.jpg", encode(PICTURE, exif=exif(orientation)), None
    yield "exif-rubbish.jpg", encode(PICTURE, exif=b"Exif\0\0" + b"\xde\xad\xbe\xef" * 20), None
    yield "exif-points-nowhere.jpg", encode(PICTURE, exif=b"Exif\0\0II*\0\xf0\xff\xff\x7f"), None
    circle = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    yield "exif-in-a-circle.jpg", encode(PICTURE, exif=circle), None
    yield "time-is-nonsense.jpg", encode(PICTURE, exif=exif(taken="9999:99:99 99:99:99")), None
    yield "profile-rubbish.jpg", encode(PICTURE, icc_profile=b"no profile at all" * 10), None
    yield "profile-cut.png", encode(PICTURE, "PNG", icc_profile=rgb_profile()[:200]), None
    yield "profile-of-cmyk.jpg", encode(PICTURE, icc_profile=cmyk_profile()), None


def _samples() -> Iterator[Case]:
    rgb, ramp = Image.fromarray(PICTURE), np.linspace(0, 65_535, 64 * 96).reshape(64, 96)
    cmyk = rgb.convert("CMYK")
    yield "cmyk.jpg", save(cmyk, "JPEG"), None
    yield "cmyk-profile.jpg", save(cmyk, "JPEG", icc_profile=cmyk_profile()), None
    yield "cmyk.tif", save(cmyk, "TIFF"), None
    sixteen = Image.fromarray(ramp.astype(np.uint16))
    yield "grey-16-bit.png", save(sixteen, "PNG"), None
    yield "grey-16-bit.tif", save(sixteen, "TIFF"), None
    yield "rgb-16-bit.png", rgb_16_bit_png(PICTURE.astype(np.uint16) * 257), None
    yield "grey-32-bit.tif", save(Image.fromarray(ramp.astype(np.int32)), "TIFF"), "unsupported_format"
    yield "float.tif", save(Image.fromarray(ramp.astype(np.float32)), "TIFF"), "unsupported_format"
    yield "lab.tif", save(Image.frombytes("LAB", (8, 8), bytes(192)), "TIFF"), "unsupported_format"
    yield "one-bit.png", save(rgb.convert("1"), "PNG"), None
    yield "one-bit-fax.tif", save(rgb.convert("1"), "TIFF", compression="group4"), None
    yield "palette-transparent.png", save(rgb.quantize(16), "PNG", transparency=3), None
    yield "palette-transparent.gif", save(rgb.quantize(16), "GIF", transparency=3), None
    yield "grey-alpha.png", save(rgb.convert("LA"), "PNG"), None
    yield "grey-transparent.png", save(rgb.convert("L"), "PNG", transparency=0), None
    clear = np.dstack([PICTURE, np.zeros((64, 96), np.uint8)])
    for suffix in ("png", "webp", "tif", "heic", "avif"):
        yield f"all-transparent.{suffix}", save(Image.fromarray(clear), FORMATS[suffix]), None


def _several_pictures() -> Iterator[Case]:
    frames = [Image.fromarray(scene(48, 32, seed)) for seed in range(3)]
    for suffix, format in (
        ("gif", "GIF"),
        ("webp", "WEBP"),
        ("png", "PNG"),
        ("tif", "TIFF"),
        ("heic", "HEIF"),
        ("avif", "AVIF"),
    ):
        yield f"several.{suffix}", save(frames[0], format, save_all=True, append_images=frames[1:]), None
    animated = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "last-frame-cut.gif", animated[:-200], None
    yield "mpo.jpg", save(frames[0], "MPO", save_all=True, append_images=frames[1:]), None


def _jpeg_oddities() -> Iterator[Case]:
    jpeg = encode(PICTURE)
    scan = jpeg.index(b"\xff\xda")
    yield "more-after-the-end.jpg", jpeg + b"appended by somebody" * 50, None
    yield "film-after-the-end.jpg", jpeg + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 200, None
    yield "zeros-before-the-end.jpg", jpeg[:-2] + bytes(100) + b"\xff\xd9", None
    yield "a-few-bytes-before-the-end.jpg", jpeg[:-2] + b"leftover" + jpeg[-2:], None
    yield "unknown-marker.jpg", jpeg[: scan + 200] + b"\xff\xf3" + jpeg[scan + 200 :], "corrupt"
    yield "comment-of-64k.jpg", jpeg[:2] + b"\xff\xfe\xff\xff" + b"x" * 65_533 + jpeg[2:], None
    frame = jpeg.index(b"\xff\xc0")
    yield "12-bit.jpg", jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], "unsupported_format"
    yield "no-tables.jpg", jpeg[:2] + jpeg[frame:], "corrupt"
    yield "no-scan.jpg", jpeg[:scan] + b"\xff\xd9", "corrupt"
    yield "unusual-sampling.jpg", _unusual_sampling(), "unsupported_format"
    arithmetic = base64.b64decode(_ARITHMETIC)
    yield "arithmetic-coding.jpg", arithmetic, "unsupported_format"
    yield "arithmetic-coding-cut.jpg", arithmetic[:230] + b"\xff\xd9", "unsupported_format"
    for sampling in ("440", "411"):  # a 4:2:2 that was turned without loss, and a video camera's
        coded = simplejpeg.encode_jpeg(PICTURE, colorspace="RGB", colorsubsampling=sampling)
        yield f"{sampling}.jpg", coded, None
        yield f"{sampling}-cut.jpg", coded[: len(coded) * 3 // 4] + b"\xff\xd9", "truncated"
        yield f"{sampling}-zeros.jpg", coded[: len(coded) * 3 // 4] + bytes(500) + b"\xff\xd9", "truncated"
    restarts = encode(PICTURE, restart_marker_blocks=2)
    second = restarts.index(b"\xff\xd1")
    yield "restarts.jpg", restarts, None
    yield "part-missing.jpg", restarts[: second - 30] + restarts[second + 60 :], "truncated"


def _header_mistakes() -> Iterator[Case]:
    """JPEGs whose headers no standard allows and every viewer shows; and the same with half of the picture gone."""
    jpeg = encode(PICTURE)
    version, table, scan = jpeg.index(b"JFIF\0") + 5, jpeg.index(b"\xff\xdb"), jpeg.index(b"\xff\xda")
    for part, data, reason in (("whole", jpeg, None), ("cut", jpeg[: len(jpeg) * 3 // 4] + b"\xff\xd9", "truncated")):
        yield f"jfif-version-3-{part}.jpg", data[:version] + b"\3" + data[version + 1 :], reason
        yield f"stray-bytes-between-segments-{part}.jpg", data[:table] + bytes(3) + data[table:], reason
        yield f"stray-byte-before-the-scan-{part}.jpg", data[:scan] + b"x" + data[scan:], reason
        yield f"scan-of-no-frequencies-{part}.jpg", data[: scan + 12] + b"\0" + data[scan + 13 :], reason


# A scene of 48 x 32 pixels by libjpeg-turbo's `cjpeg -arithmetic -quality 50`.
_ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBkeFxl"
    "Z2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/yQARCAAgADADASIAAhEB"
    "AxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD+wZmDnnxBRPa/C0rC/wDit/S4kh7z+BvoLsIK95cg6DrinyfvJrPape9KQjTJE+Sqgbrq+a5veWYN"
    "9APsvezmj0dN4G3d1//Z"
)


def _unusual_sampling() -> bytes:
    """A mid-grey JPEG of 96 x 64 pixels whose blue-difference is halved in one direction, its red-difference in both.

    Every block is a zero DC difference and an end of block: 00 1010 for luma, 00 00 for chroma (T.81, tables K.3 to K.6).
    """
    jpeg = encode(np.full((64, 96, 3), 128, np.uint8))
    frame, scan = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
    sampling = bytearray(jpeg[frame : frame + 19])
    sampling[11], sampling[14], sampling[17] = 0x22, 0x21, 0x11
    bits = ("001010" * 4 + "0000" * 3) * 24
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return jpeg[:frame] + bytes(sampling) + jpeg[frame + 19 : scan + 14] + coded + b"\xff\xd9"


def _names(path: Path) -> dict[str, Expectation]:
    """Good pictures under names that break software."""
    picture = encode(PICTURE)
    plain = [
        "new\nline.jpg", "-rf.jpg", " .jpg", "a'b\"c;$(x)`y`.jpg", "%2e%2e%2fx.jpg", "back\\slash.jpg", "x" * 251 + ".jpg",
        "caf\u00e9.jpg", "cafe\u0301.jpg", "\u202egpj.exe.jpg", "日本の写真.jpg", "😀.jpg", "UPPER.JPG", ".hidden.jpg",
    ]  # fmt: skip
    for name in plain:
        (path / name).write_bytes(picture)
    for raw in (b"caf\xe9.jpg", b"bytes:x.jpg"):
        Path(os.fsdecode(os.path.join(os.fsencode(path), raw))).write_bytes(picture)
    (path / "notes.txt").write_bytes(b"not meant to be a picture")
    (path / "._resource.jpg").write_bytes(b"\0\5\x16\7" + bytes(50))  # macOS writes these beside each photo
    ignored = Expectation(Outcome.IGNORED)
    escaped = ("bytes:caf%E9.jpg", "bytes:bytes%3Ax.jpg")
    return dict.fromkeys((*plain, *escaped), PROCESSED) | dict.fromkeys(("notes.txt", "._resource.jpg"), ignored)


def _no_files(path: Path) -> dict[str, Expectation]:
    """What stands in a folder beside files."""
    directory = path / "directory.jpg"
    directory.mkdir()
    (directory / "inside.jpg").write_bytes(encode(PICTURE))
    (directory / "up").symlink_to("..")
    (path / "dangling.jpg").symlink_to("nowhere.jpg")
    (path / "circle.jpg").symlink_to("circle.jpg")
    (path / "outside.jpg").symlink_to("/dev/zero")
    (path / "link.jpg").symlink_to("whole.jpg")
    os.mkfifo(path / "pipe.jpg")
    closed = path / "closed.jpg"
    closed.write_bytes(encode(PICTURE))
    closed.chmod(0)  # root reads it all the same
    readable = os.access(closed, os.R_OK)
    unlistable = ("dangling.jpg", "circle.jpg", "outside.jpg", "pipe.jpg")
    return {
        **dict.fromkeys(unlistable, Expectation(Outcome.UNLISTABLE)),
        "directory.jpg": Expectation(Outcome.ABSENT),
        "directory.jpg/inside.jpg": PROCESSED,
        "directory.jpg/up": Expectation(Outcome.ABSENT),
        "link.jpg": PROCESSED,
        "closed.jpg": PROCESSED if readable else Expectation(Outcome.FAILED, "access_denied"),
    }


def rgb_16_bit_png(
    pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]", clear: tuple[int, int, int] | None = None
) -> bytes:
    """A PNG with 16 bits per channel from (H, W, 3) uint16, which Pillow cannot write; the colour `clear` is transparent."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    extra = b"" if clear is None else _chunk(b"tRNS", struct.pack(">3H", *clear))
    return _png(width, height, 16, 2, zlib.compress(rows), extra)


def _png(width: int, height: int, bits: int, kind: int, data: bytes, extra: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
