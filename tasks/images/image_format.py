"""What a file is, by its first bytes and never by its name; whether it is all there; and what in it can be mended or spared."""

import re
import struct
import zlib
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from typing import Literal

import numpy as np


class Format(StrEnum):
    """The formats that are decoded."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    TIFF = "tiff"
    BMP = "bmp"
    GIF = "gif"
    HEIF = "heif"
    AVIF = "avif"


class Reason(StrEnum):
    """Why a file gives no picture."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TOO_MANY_PIXELS = "too_many_pixels"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"


class DecodeFailure(Exception):
    """The file gives no picture. `reason` is for statistics, the message for people; it does not know the file's name."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


_SIGNATURES = {
    Format.JPEG: re.compile(rb"\xff\xd8\xff"),
    Format.PNG: re.compile(rb"\x89PNG\r\n\x1a\n"),
    Format.GIF: re.compile(rb"GIF8[79]a"),
    Format.TIFF: re.compile(rb"II[*+]\0|MM\0[*+]"),  # + is BigTIFF
    Format.WEBP: re.compile(rb"RIFF....WEBP", re.DOTALL),
    Format.BMP: re.compile(rb"BM....\0\0\0\0", re.DOTALL),  # the reserved field is always zero
}
_BRANDS = {
    Format.AVIF: {b"avif", b"avis"},  # first, as these files may call themselves mif1 too
    Format.HEIF: {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"},
}
# What people keep beside photographs, so that a failure says what it is rather than what it is not.
_OTHERS = (
    (re.compile(rb"8BPS"), "a Photoshop file"),
    (re.compile(rb"%PDF"), "a PDF"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL picture"),
    (re.compile(rb"II\xbc"), "a JPEG XR picture"),
    (re.compile(rb"\0\0\x01\0"), "an icon"),
    (re.compile(rb"FUJIFILMCCD-RAW|IIRO|IIRS|IIU\0|....ftypcr[xX]", re.DOTALL), "a camera's raw file"),
    (re.compile(rb"....ftyp|RIFF....AVI |\x1aE\xdf\xa3", re.DOTALL), "a film"),
)


def sniff(data: bytes) -> Format:
    """Tell the format from the first bytes.

    Raises:
        DecodeFailure: EMPTY, UNSUPPORTED_FORMAT for pictures and documents that are known but not decoded, else NOT_AN_IMAGE.
    """
    if not data:
        raise DecodeFailure(Reason.EMPTY, "the file is empty (0 bytes)")
    for format, signature in _SIGNATURES.items():
        if signature.match(data):
            return format
    brands = _brands(data)
    for format, own in _BRANDS.items():
        if brands & own:
            return format
    raise _unknown(data[:4096])


def _brands(data: bytes) -> set[bytes]:
    """The brands of an ISO media file (ISO/IEC 14496-12, 4.3): major and compatible ones."""
    if data[4:8] != b"ftyp":
        return set()
    box = data[: int.from_bytes(data[:4], "big")]
    return {data[8:12]} | {box[at : at + 4] for at in range(16, min(len(box), 400), 4)}


def _unknown(start: bytes) -> DecodeFailure:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<") and (b"<html" in text or text.startswith(b"<!doctype html")):
        return DecodeFailure(
            Reason.NOT_AN_IMAGE, "this is a web page, not a picture (an error page saved by a download?)"
        )
    other = next((name for signature, name in _OTHERS if signature.match(start)), None)
    if text.startswith(b"<") and b"<svg" in text:
        other = "an SVG drawing"
    if other is not None:
        return DecodeFailure(
            Reason.UNSUPPORTED_FORMAT, f"this is {other}, which is not decoded; convert it to JPEG or PNG"
        )
    if not start.strip(b"\0"):
        return DecodeFailure(
            Reason.NOT_AN_IMAGE, "the file begins with nothing but zeros (a copy that was never finished?)"
        )
    return DecodeFailure(Reason.NOT_AN_IMAGE, f"this is no picture: the file begins with {start[:8]!r}")


def check_complete(data: bytes, format: Format) -> None:
    """See by the container's own structure that the file was not cut off, where the format tells.

    Decoders differ in how readily they fill what is missing with grey; this does not depend on them.

    Raises:
        DecodeFailure: TRUNCATED or CORRUPT.
    """
    match format:
        case Format.JPEG:
            _check_jpeg(data)
        case Format.PNG:
            _check_png(data)
        case Format.WEBP:
            _require(data, int.from_bytes(data[4:8], "little") + 8)
        case Format.HEIF | Format.AVIF:
            _check_boxes(data)
        case Format.TIFF:
            _check_tiff(data)
        case Format.GIF | Format.BMP:
            pass  # their decoders refuse a file that ends early


def _require(data: bytes, size: int) -> None:
    if size > len(data):
        raise DecodeFailure(
            Reason.TRUNCATED, f"the file ends after {len(data):,} of {size:,} bytes; upload or copy it again"
        )


def _broken_off(data: bytes, name: str) -> DecodeFailure:
    return DecodeFailure(
        Reason.TRUNCATED,
        f"the {name} breaks off after {len(data):,} bytes, before its end mark; upload or copy it again",
    )


MAX_SCANS = 100  # a progressive JPEG has about ten; thousands of tiny ones keep a decoder busy for hours
# TEM, RSTn and SOI stand alone, without a length. Before a marker there may be any number of FF, of which the last is taken.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\x01\xd0-\xd8])")
_EOI, _SOS = 0xD9, 0xDA
_ARITHMETIC = {0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # the frames whose data are not Huffman codes (T.81, table B.1)


def _jpeg_segments(data: bytes, at: int = 2) -> Iterator[tuple[int, int, int]]:
    """Walk a JPEG's segments to its end-of-image marker (ITU-T T.81, B.1.1): each one's marker, start and end.

    What lies between two segments is coded picture data if the first is SOS, and nothing in a file that keeps to the standard.
    """
    while found := _JPEG_MARKER.search(data, at):
        at = found.end()
        if found[1][0] != _EOI:
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
        yield found[1][0], found.start(), at
        if found[1][0] == _EOI:
            return


def _check_jpeg(data: bytes) -> None:
    """Walk the segments to the first scan; behind it, look for the end-of-image marker.

    Coded picture data never contains the markers' byte pairs. That every scan is whole, the decoder sees.
    """
    ends = _ARITHMETIC | {_EOI, _SOS}
    first = next((segment for segment in _jpeg_segments(data) if segment[0] in ends), None)
    if first is not None and first[0] in _ARITHMETIC:
        # Where they break off or are damaged, decoders go on with invented ones and see nothing wrong.
        raise DecodeFailure(
            Reason.UNSUPPORTED_FORMAT,
            "this JPEG's arithmetic coding is not decoded, as nothing would tell whether it is whole; save it as ordinary JPEG",
        )
    if first is not None and first[0] == _EOI:
        raise DecodeFailure(Reason.CORRUPT, "the JPEG ends without any picture data")
    if first is None or data.rfind(b"\xff\xd9", first[2]) < 0:
        raise _broken_off(data, "JPEG")
    _, start, _ = first
    # The quick count takes in what follows the picture, too: phones append a film, in which any pair of bytes occurs.
    if _count(data, b"\xff\xda", start) > MAX_SCANS:
        scans = (start for marker, start, _ in _jpeg_segments(data, start) if marker == _SOS)
        if next(islice(scans, MAX_SCANS, None), None) is not None:
            raise DecodeFailure(
                Reason.CORRUPT, f"the JPEG has more than {MAX_SCANS} scans, as no camera or editor writes"
            )


_SOF0, _SOF1, _APP0 = 0xC0, 0xC1, 0xE0


def mend_jpeg(data: bytes) -> bytes:
    """Rewrite what some cameras and editors get wrong around the coded picture data, which themselves stay as they are.

    That is: stray bytes between two segments, a JFIF version that does not exist, and the progressive parameters of a
    sequential scan, which have only one legal value (ITU-T T.81, table B.3).
    """
    parts, at, sequential, coded = [data[:2]], 2, False, False
    for marker, start, end in _jpeg_segments(data):
        segment = data[start:end]
        if marker == _APP0 and segment[4:9] == b"JFIF\0":
            segment = segment[:9] + b"\1" + segment[10:]
        elif marker == _SOS and sequential:
            segment = segment[:-3] + b"\0\x3f\0"
        parts += [data[at:start] if coded else b"", segment]
        at, sequential, coded = end, sequential or marker in (_SOF0, _SOF1), marker == _SOS
    return b"".join([*parts, data[at:]])


def padding_before_end(data: bytes, length: int) -> bool:
    """Tell whether the last bytes before a JPEG's end-of-image marker, `length` of them, are nothing but padding."""
    end = next(start for marker, start, _ in _jpeg_segments(data) if marker == _EOI)
    return not data[end - length : end].strip(b"\0\xff")


def _count(data: bytes, pair: bytes, start: int) -> int:
    """Count a pair of unlike bytes from `start` on, in a tenth of the time of bytes.count."""
    wanted = int.from_bytes(pair, "little")
    found = (np.frombuffer(data, "<u2", (len(data) - at) // 2, at) == wanted for at in (start, start + 1))
    return sum(map(np.count_nonzero, found))


def _check_png(data: bytes) -> None:
    """Walk the chunks to IEND, with the checksums of those that matter to the pixels (PNG specification, 5.3)."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        _require(data, end)
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise DecodeFailure(
                Reason.CORRUPT, f"the PNG's {kind.decode('latin-1')!r} chunk does not match its checksum"
            )
        if kind == b"IEND":
            return
        at = end
    raise _broken_off(data, "PNG")


def without_chunks(data: bytes, kinds: set[bytes]) -> bytes:
    """Return a whole PNG without its chunks of these kinds."""
    parts, at = [data[:8]], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in kinds:
            parts.append(data[at:end])
        at = end
    return b"".join(parts)


def _check_boxes(data: bytes) -> None:
    for _, _, end in _boxes(data):
        _require(data, end)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Walk the top-level boxes of an ISO media file (ISO/IEC 14496-12, 4.2): each one's kind, start and end.

    Some cameras append what is no box.
    """
    at = 0
    while at + 8 <= len(data) and data[at + 4 : at + 8] in (
        b"ftyp",
        b"meta",
        b"mdat",
        b"moov",
        b"free",
        b"skip",
        b"uuid",
    ):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        end = at + max(size, 8) if size else len(data)
        yield data[at + 4 : at + 8], at, end
        at = end


UNFINISHED = "the picture data end in zeros (a copy that was never finished?); upload or copy it again"
MAX_ZEROS = 4096  # HEVC escapes more than two (ITU-T H.265, 7.3.1.1); flat pictures in AV1 have up to five (measured)


def check_filled(data: bytes, metadata: int) -> None:
    """See that the media data of HEIF or AVIF do not end in zeros, as in a copy that was given its size and never finished.

    `metadata`, a number of bytes, may lie among them, and may rightly end in zeros.

    Raises:
        DecodeFailure: TRUNCATED.
    """
    for kind, start, end in _boxes(data):
        if kind == b"mdat" and not data[max(end - MAX_ZEROS - metadata, start) : end].strip(b"\0"):
            raise DecodeFailure(Reason.TRUNCATED, UNFINISHED)


SPARED = 1024  # of MAX_ZEROS; encoders write a few bytes more than decoders need, at most


def webp_without_end(data: bytes) -> bytes | None:
    """Return a whole WebP whose picture data end in zeros without the last of these; None if they do not.

    They may rightly end so: flat pictures are coded in zeros. But then the decoder needs every one of them.
    """
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        end = at + 8 + size
        if kind in (b"VP8 ", b"VP8L"):
            if size <= MAX_ZEROS or data[end - MAX_ZEROS : end].strip(b"\0"):
                return None
            shorter = struct.pack("<4sI", kind, size - SPARED) + data[at + 8 : end - SPARED]
            return data[:4] + struct.pack("<I", len(data) - SPARED - 8) + data[8:at] + shorter + data[end:]
        at = end + size % 2
    return None


def _check_tiff(data: bytes) -> None:
    """Require the whole first directory (TIFF 6.0, section 2; BigTIFF has wider fields); it often is at the end."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    big = b"+" in data[2:4]
    pointer, counter, entry = (slice(8, 16), 8, 20) if big else (slice(4, 8), 2, 12)
    start = int.from_bytes(data[pointer], order) + counter
    _require(data, max(start, pointer.stop))
    _require(data, start + entry * int.from_bytes(data[start - counter : start], order))
