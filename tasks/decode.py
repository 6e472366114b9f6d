"""Decode: from an object's bytes to upright sRGB pixels, or a reason why not. Never anything else, whatever the bytes, unless
this machine's memory does not suffice.

Decode just enough: where a smaller picture will do, a JPEG is shrunk while it is decoded. Limits are kept before any pixel
exists, by the header's word. A file that breaks off is a failure, never a picture with a grey half.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from io import BytesIO

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pillow_heif.as_plugin import HeifImageFile

from tasks.execution.guard import out_of_memory
from tasks.images.color_profile import is_srgb, to_srgb
from tasks.images.exif import Box, read_exif, stored_box, upright
from tasks.images.image_format import (
    UNFINISHED,
    DecodeFailure,
    Format,
    Reason,
    check_complete,
    check_filled,
    mend_jpeg,
    padding_before_end,
    sniff,
    webp_without_end,
    without_chunks,
)

__all__ = ["DecodeFailure", "DecodeLimits", "Format", "Photo", "Reason", "decode"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class DecodeLimits:
    """What a file may ask for. Far above any camera, far below what brings a machine down.

    Pillow refuses WebP above 179 megapixels by itself.
    """

    max_bytes: int = 200 * 2**20
    max_megapixels: float = 200.0
    max_side: int = 65_535
    formats: frozenset[Format] = frozenset(Format)


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded picture.

    `pixels` (H, W, 3) uint8, sRGB, upright, writable; of the part alone, if one was asked for. `width` and `height` are the
    original's, upright; `scale` >= 1 tells how many original pixels one pixel spans: x_original = (x + 0.5) * scale - 0.5, to
    half a decoded pixel at the far edges, where sizes are rounded. `mode` and `bits` describe the samples as stored: Pillow's
    mode, and bits per channel where the format tells. `exif_time` is when the photograph was taken, with a time zone only if
    the camera wrote one. `notes` name what was passed over: icc_ignored, exif_ignored, text_ignored, jpeg_extra_bytes,
    jpeg_mended, first_frame_only.
    """

    pixels: Pixels = field(repr=False)
    scale: float
    width: int
    height: int
    format: Format
    mode: str
    bits: int | None
    exif_time: datetime | None
    notes: tuple[str, ...]


def decode(
    data: bytes, limits: DecodeLimits | None = None, long_side: int | None = None, part: Box | None = None
) -> Photo:
    """Decode a picture so that its longer side has `long_side` pixels, or as many as there are if fewer or if None.

    Of a `part` of the upright original, `pixels` are what they would be there in the whole, which is not turned and given its
    colours for nothing.

    The EXIF orientation is applied exactly once. Grey, palette, 16-bit and CMYK become RGB, embedded colour profiles sRGB;
    transparency is laid on white, but for that of a single 16-bit colour, which stays. Of animations and multi-page files the
    first picture counts. 16-bit samples are scaled; 32-bit and floating-point samples, which have no agreed white, are refused.
    Safe to call from threads.

    Raises:
        DecodeFailure: with the reason.
        MemoryError: if memory does not suffice. The file may be a good one.
    """
    limits = limits or DecodeLimits()
    if long_side is not None and long_side < 1:
        raise ValueError(f"long_side must be at least 1, not {long_side}")
    if long_side is not None and part is not None:
        raise ValueError("a part is decoded in full: long_side must be None")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: half pictures would pass as whole. Do not set it."
        )
    if len(data) > limits.max_bytes:
        raise DecodeFailure(
            Reason.TOO_LARGE, f"the file has {len(data):,} bytes, more than the {limits.max_bytes:,} allowed"
        )
    format = sniff(data)
    if format not in limits.formats:
        raise DecodeFailure(Reason.UNSUPPORTED_FORMAT, f"{format.upper()} pictures are switched off")
    check_complete(data, format)
    try:
        if format is Format.PNG:
            return _decode_png(data, limits, long_side, part)
        return _decode(data, format, limits, long_side, part)
    except DecodeFailure:
        raise
    except Exception as error:  # decoders raise whatever they like at broken files
        if not (out_of_memory(error) or _NO_MEMORY.search(str(error))):
            raise _failure(error) from error
    # Outside of the except clause, where the error's trace would keep alive what filled the memory.
    raise MemoryError("the picture needs more memory than there is")


class _TiffFile(TiffImageFile):
    """A TIFF without Pillow's process-wide limit of pixels: `_check_size` has seen to ours."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.core.new(self.mode, self._tile_size)
        super().load_prepare()


_READERS: dict[Format, type[ImageFile.ImageFile]] = {
    # Opened by name, not through Image.open: no guessing, no registration, no process-wide pixel limit.
    Format.JPEG: JpegImageFile,
    Format.PNG: PngImageFile,
    Format.WEBP: WebPImageFile,
    Format.TIFF: _TiffFile,
    Format.BMP: BmpImageFile,
    Format.GIF: GifImageFile,
    Format.HEIF: HeifImageFile,
    Format.AVIF: AvifImageFile,
}


def _decode(data: bytes, format: Format, limits: DecodeLimits, long_side: int | None, part: Box | None) -> Photo:
    notes: list[str] = []
    file = _READERS[format](BytesIO(data))
    _check_size(file.size, limits)
    if isinstance(file, HeifImageFile | AvifImageFile):
        check_filled(data, len(file.info.get("exif") or b""))
    mode, bits, profile = file.mode, _bits(file, data), file.info.get("icc_profile")
    scale, shrink = max(max(file.size) / (long_side or math.inf), 1.0), 1
    width, height = file.size
    if isinstance(file, JpegImageFile):
        shrink = next(n for n in (8, 4, 2, 1) if n <= scale)
        raster = _jpeg_pixels(file, data, shrink, bool(profile), notes)
    else:
        if isinstance(file, TiffImageFile):
            _check_tiff(file, len(data), limits)
        file.load()
        if isinstance(file, WebPImageFile):
            _check_needed(data)
        width, height = file.size  # known for certain only now (HEIF), and upright (TIFF)
        _check_size(file.size, limits)
        if getattr(file, "is_animated", False):
            notes.append("first_frame_only")
        raster = _eight_bits(file, bits)
    orientation, exif_time = read_exif(file, format, notes)
    if scale > shrink:
        size = (max(round(width / scale), 1), max(round(height / scale), 1))
        raster = _reduced(raster, size, (width / shrink, height / shrink))
    if part is not None:
        raster = _cut(raster, stored_box(part, (width, height), orientation))
    if profile or isinstance(raster, Image.Image):
        raster = _srgb(raster, profile, notes)
    if orientation > 4:
        width, height = height, width
    return Photo(upright(raster, orientation), scale, width, height, format, mode, bits, exif_time, tuple(notes))


_PNG_EXTRAS = (("text_ignored", {b"tEXt", b"zTXt", b"iTXt"}), ("icc_ignored", {b"iCCP"}))


def _decode_png(
    data: bytes,
    limits: DecodeLimits,
    long_side: int | None,
    part: Box | None,
    extras: Sequence[tuple[str, set[bytes]]] = _PNG_EXTRAS,
) -> Photo:
    """Decode a PNG, leaving out its texts, then its colour profile, if they inflate to more than Pillow holds in memory."""
    try:
        return _decode(data, Format.PNG, limits, long_side, part)
    except ValueError as error:
        if not extras or "MAX_TEXT" not in str(error):
            raise
    (note, kinds), *rest = extras
    lighter = without_chunks(data, kinds)
    photo = _decode_png(lighter, limits, long_side, part, rest)
    return photo if lighter == data else replace(photo, notes=(*photo.notes, note))


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width * height > limits.max_megapixels * 1e6:
        raise DecodeFailure(
            Reason.TOO_MANY_PIXELS,
            f"{width:,} x {height:,} pixels are more than the {limits.max_megapixels:g} million allowed",
        )
    if max(width, height) > limits.max_side:
        raise DecodeFailure(
            Reason.TOO_MANY_PIXELS, f"{width:,} x {height:,} pixels: no side may have more than {limits.max_side:,}"
        )


def _check_tiff(file: TiffImageFile, length: int, limits: DecodeLimits) -> None:
    """Refuse what the first directory of a TIFF gives away before decoding."""
    tags = file.tag_v2
    if tags.get(ExifTags.Base.NewSubfileType, 0) & 1 or ExifTags.Base.DNGVersion in tags:
        raise DecodeFailure(
            Reason.UNSUPPORTED_FORMAT,
            "this is a camera's raw file with a small preview; develop it to JPEG or TIFF first",
        )
    _check_size((tags.get(ExifTags.Base.TileWidth, 1), tags.get(ExifTags.Base.TileLength, 1)), limits)
    for offsets, counts in ((273, 279), (324, 325)):  # strips, tiles: where they lie and how long they are
        ends = [offset + count for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)]
        if max(ends, default=0) > length:
            raise DecodeFailure(
                Reason.TRUNCATED, f"the TIFF ends after {length:,} of {max(ends):,} bytes; upload or copy it again"
            )


def _check_needed(data: bytes) -> None:
    """See that a decoder needs the zeros that a WebP ends in, which are else those of a copy that was never finished."""
    shorter = webp_without_end(data)
    if shorter is None:
        return
    try:
        WebPImageFile(BytesIO(shorter)).load()
    except (OSError, ValueError):
        return
    raise DecodeFailure(Reason.TRUNCATED, UNFINISHED)


def _jpeg_pixels(
    header: JpegImageFile, data: bytes, shrink: int, has_profile: bool, notes: list[str]
) -> Image.Image | Pixels:
    """Decode a JPEG, shrunk by 1, 2, 4 or 8; RGB comes as an array.

    Only these factors: for others TurboJPEG has no vector code, and 5/8 takes longer than the full picture (measured).
    """
    width, height = math.ceil(header.width / shrink), math.ceil(header.height / shrink)
    colours = "CMYK" if header.mode == "CMYK" else "GRAY" if header.mode == "L" and has_profile else "RGB"
    try:
        pixels = _whole_jpeg(data, colours, width, height, notes)
    except ValueError:
        mended = mend_jpeg(data)
        if mended == data:
            raise
        pixels = _whole_jpeg(mended, colours, width, height, notes)
        notes.append("jpeg_mended")
    if pixels.shape[:2] != (height, width):
        raise DecodeFailure(Reason.CORRUPT, f"the JPEG's header says {header.size} pixels, its picture has others")
    if colours == "CMYK":
        pixels = 255 - pixels  # as Adobe writes them: how much ink is missing
        return Image.frombytes("CMYK", (width, height), pixels.tobytes())
    return Image.fromarray(pixels[..., 0]) if colours == "GRAY" else pixels


_BYTES_LEFT = re.compile(r"\b(\d+) extraneous bytes before marker 0xd9")
# Encoders may flush too much; of 1,080 photographs damaged inside, 503 left bytes before the end, all of them more than this.
MAX_BYTES_LEFT = 4


def _whole_jpeg(data: bytes, colours: str, width: int, height: int, notes: list[str]) -> Pixels:
    """Decode a JPEG that gives TurboJPEG nothing to warn of, but for padding or a few bytes before its end.

    TurboJPEG tells its first warning. One about the end means that none came before it and none can follow.

    Raises:
        ValueError: at any other warning, and at coded data before the end, which show that the decoder lost its place.
    """
    try:
        return simplejpeg.decode_jpeg(data, colours, min_width=width, min_height=height)
    except ValueError as error:
        left = _BYTES_LEFT.search(str(error))
        if left is None or (int(left[1]) > MAX_BYTES_LEFT and not padding_before_end(data, int(left[1]))):
            raise
    notes.append("jpeg_extra_bytes")
    return simplejpeg.decode_jpeg(data, colours, min_width=width, min_height=height, strict=False)


def _eight_bits(image: Image.Image, bits: int | None) -> Image.Image:
    """Bring a decoded image to 8-bit L, RGB, RGBA or CMYK."""
    mode = image.mode
    if mode.startswith("I;16"):
        # Only TIFF's reader leaves samples of fewer bits as they are.
        white = 2 ** (bits or 16) - 1 if isinstance(image, TiffImageFile) else 65_535
        greys = ((np.minimum(np.arange(65_536), white) * 255 + white // 2) // white).astype(np.uint8)
        if isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:
            greys = 255 - greys  # white is zero, which Pillow honours only in 8 bits
        if "transparency" in image.info:
            greys[image.info["transparency"]] = 255
        return Image.fromarray(greys[np.asarray(image)])
    if mode in ("I", "F"):
        raise DecodeFailure(
            Reason.UNSUPPORTED_FORMAT,
            f"{'32-bit integer' if mode == 'I' else 'floating-point'} samples have no agreed white; save it with 8 or 16 bits",
        )
    if bits == 16:
        image.info.pop("transparency", None)  # Pillow takes other colours for the clear one
    if image.has_transparency_data:
        return image.convert("RGBA")
    if mode in ("L", "RGB", "CMYK"):
        return image
    if mode in ("1", "P", "YCbCr", "RGBX"):
        return image.convert("L" if mode == "1" else "RGB")
    raise DecodeFailure(Reason.UNSUPPORTED_FORMAT, f"colours of the kind {mode} are not decoded; save it as RGB")


def _reduced(raster: Image.Image | Pixels, size: tuple[int, int], span: tuple[float, float]) -> Image.Image | Pixels:
    """Reduce the first `span` of a raster's pixels, (width, height) and maybe a fraction, to `size`.

    RGB by torch, whose vector code does what Pillow does (to a grey level) in a third of the time.
    """
    if isinstance(raster, Image.Image):
        if raster.mode != "RGB":
            return raster.resize(size, Image.Resampling.BICUBIC, box=(0, 0, *span))
        raster = np.array(raster)
    (width, height), (across, down) = size, span
    reduced = np.empty((height, width, 3), np.uint8)
    pixels, target = (torch.from_numpy(array).permute(2, 0, 1)[None] for array in (raster, reduced))
    # Not through torch.nn.functional, which knows no span and gives the channels one after the other.
    torch.ops.aten._upsample_bicubic2d_aa.out(pixels, (height, width), False, height / down, width / across, out=target)
    return reduced


def _cut(raster: Image.Image | Pixels, box: Box) -> Image.Image | Pixels:
    left, top, right, bottom = box
    return raster.crop(box) if isinstance(raster, Image.Image) else raster[top:bottom, left:right]


def _srgb(raster: Image.Image | Pixels, profile: bytes | None, notes: list[str]) -> Pixels:
    """Lay on white, and bring to sRGB."""
    if isinstance(raster, np.ndarray) and profile and is_srgb(profile):
        return raster
    image = raster if isinstance(raster, Image.Image) else Image.fromarray(raster)
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image)
        image = white
    if profile:
        try:
            return np.array(to_srgb(image, profile))
        except ValueError:
            notes.append("icc_ignored")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _bits(file: Image.Image, data: bytes) -> int | None:
    """Bits per channel as stored; None for AVIF, whose reader does not tell."""
    match file:
        case JpegImageFile():
            return int(file.bits)
        case PngImageFile():
            return data[24]
        case TiffImageFile():
            return int(max(file.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))))
        case HeifImageFile():
            return int(file.info.get("bit_depth", 8))
        case AvifImageFile():
            return None
        case _:
            return 8


_NO_MEMORY = re.compile(r"insufficient memory|allocating \d+ bytes failed", re.IGNORECASE)  # libjpeg's and libheif's
_BREAKS_OFF = re.compile(r"truncated|premature end|end of file|insufficient input|no more images", re.IGNORECASE)
_FOREIGN = re.compile(
    r"unsupported(?! marker)|not (?:yet )?supported|cannot handle|not implemented|precision|subsampling", re.IGNORECASE
)


def _failure(error: Exception) -> DecodeFailure:
    """Say why a decoder gave up, by what it said."""
    said = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        return DecodeFailure(Reason.TOO_MANY_PIXELS, f"the picture needs more memory than is allowed ({said})")
    if _BREAKS_OFF.search(said):
        return DecodeFailure(Reason.TRUNCATED, f"part of the picture is missing ({said}); upload or copy it again")
    if _FOREIGN.search(said):
        return DecodeFailure(
            Reason.UNSUPPORTED_FORMAT, f"this variant is not decoded ({said}); save it as ordinary JPEG or PNG"
        )
    return DecodeFailure(Reason.CORRUPT, f"the file is damaged ({said}); look for another copy")
