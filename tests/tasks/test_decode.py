"""Whatever the bytes: upright sRGB pixels of a whole picture, or a reason why not."""

import io
import pickle
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, PngImagePlugin

from infra.storage import AccessDenied, Entry, Filter, Folder
from tasks.decode import DecodeFailure, DecodeLimits, Format, Photo, Reason, decode
from tests.hostile import PROCESSED, Expectation, Outcome, hostile_files, make_hostile_folder, rgb_16_bit_png
from tests.photographs import cmyk_profile, encode, exif, grey_profile, photograph, rgb_profile, save, scene
from tests.reference import shared

PICTURE = scene(96, 64)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TOLERANCE = {"JPEG": 4, "HEIF": 6, "AVIF": 60, "GIF": 12}  # grey levels; AVIF halves the resolution of colour
TURNABLE = ("JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF")


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max())


def outcome(data: bytes, limits: DecodeLimits | None = None, long_side: int | None = None) -> Photo | Reason:
    try:
        return decode(data, limits, long_side)
    except DecodeFailure as failure:
        return failure.reason


# What comes out


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "HEIF", "AVIF"])
def test_every_format_gives_the_picture(format: str) -> None:
    photo = decode(encode(PICTURE, format))
    assert difference(photo.pixels, PICTURE) <= TOLERANCE.get(format, 0)
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.flags.writeable
    assert photo.pixels.flags.c_contiguous
    assert (photo.width, photo.height, photo.scale, photo.notes) == (96, 64, 1.0, ())
    assert photo.format == Format(format.lower())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", TURNABLE)
def test_orientation_is_applied_exactly_once(format: str, orientation: int) -> None:
    photo = decode(encode(PICTURE, format, orientation))
    assert (photo.width, photo.height) == (96, 64)
    assert difference(photo.pixels, PICTURE) <= TOLERANCE.get(format, 0)


@cache
def stored(kind: str, orientation: int) -> tuple[bytes, Photo]:
    """A file, and the whole of its picture."""
    picture = scene(37, 26)
    turned = exif(orientation)
    data = {
        "JPEG": lambda: encode(picture, "JPEG", orientation),
        "JPEG, sRGB": lambda: encode(picture, "JPEG", orientation, icc_profile=SRGB),
        "JPEG, wide": lambda: encode(picture, "JPEG", orientation, icc_profile=rgb_profile()),
        "JPEG, grey": lambda: save(
            Image.fromarray(picture).convert("L"), "JPEG", exif=turned, icc_profile=grey_profile()
        ),
        "JPEG, inks": lambda: save(
            Image.fromarray(picture).convert("CMYK"), "JPEG", exif=turned, icc_profile=cmyk_profile()
        ),
        "PNG, transparent": lambda: save(a_transparent(picture), "PNG", exif=turned, icc_profile=rgb_profile()),
        "HEIF": lambda: encode(picture, "HEIF", orientation),
    }[kind]()
    return data, decode(data)


def a_transparent(picture: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(picture)
    image.putalpha(image.getchannel(1))
    return image


@given(
    kind=st.sampled_from(["JPEG", "JPEG, sRGB", "JPEG, wide", "JPEG, grey", "JPEG, inks", "PNG, transparent", "HEIF"]),
    orientation=st.integers(1, 8),
    corners=st.tuples(*[st.integers(0, 25)] * 2, *[st.integers(1, 40)] * 2),
)
def test_a_part_is_to_the_bit_what_the_whole_shows_there(
    kind: str, orientation: int, corners: tuple[int, int, int, int]
) -> None:
    data, whole = stored(kind, orientation)
    left, top = corners[:2]
    right, bottom = min(left + corners[2], whole.width), min(top + corners[3], whole.height)
    part = decode(data, part=(left, top, right, bottom))
    np.testing.assert_array_equal(part.pixels, whole.pixels[top:bottom, left:right])
    assert part.pixels.flags.writeable
    assert (part.width, part.height, part.notes) == (whole.width, whole.height, whole.notes)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", TURNABLE)
def test_orientation_is_applied_exactly_once_to_a_reduced_picture(format: str, orientation: int) -> None:
    picture = scene(300, 200)
    photo = decode(encode(picture, format, orientation), long_side=60)
    assert (photo.width, photo.height, photo.scale) == (300, 200, 5.0)
    assert photo.pixels.shape == (40, 60, 3)
    expected = np.array(Image.fromarray(picture).resize((60, 40), Image.Resampling.BOX))
    assert np.abs(photo.pixels.astype(int) - expected).mean() < 3


def test_real_photographs_come_out_as_pillow_decodes_them() -> None:
    for path in sorted(shared("data/photos").iterdir()):
        photo = decode(path.read_bytes())
        if not {"icc_ignored"} & set(photo.notes) and not Image.open(path).info.get("icc_profile"):
            assert difference(photo.pixels, photograph(path)) <= 2, path.name


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 400), st.sampled_from(["JPEG", "PNG"]))
def test_long_side_is_what_was_asked_for_and_never_more_than_there_is(
    w: int, h: int, long_side: int, format: str
) -> None:
    photo = decode(encode(np.full((h, w, 3), 90, np.uint8), format), long_side=long_side)
    height, width, _ = photo.pixels.shape
    assert max(height, width) == min(long_side, max(w, h))
    assert photo.scale == max(max(w, h) / long_side, 1)
    assert abs(width - w / photo.scale) <= 1
    assert abs(height - h / photo.scale) <= 1
    assert (photo.width, photo.height) == (w, h)
    assert difference(photo.pixels, np.full_like(photo.pixels, 90)) <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("long_side", [999, 640, 500, 313, 200, 125, 100])
def test_scale_leads_back_to_the_place_in_the_original(format: str, long_side: int) -> None:
    picture = np.zeros((601, 999, 3), np.uint8)
    places = [(40, 30), (500, 300), (980, 590), (20, 580)]
    for x, y in places:
        picture[y - 8 : y + 9, x - 8 : x + 9] = 255
    photo = decode(encode(picture, format), long_side=long_side)
    for x, y in places:
        window = np.zeros(photo.pixels.shape[:2])
        rows, columns = (slice(int(max(c - 25, 0) / photo.scale), int((c + 25) / photo.scale) + 1) for c in (y, x))
        window[rows, columns] = photo.pixels[rows, columns, 1]
        cy, cx = np.indices(window.shape)
        found = [(float((axis * window).sum() / window.sum()) + 0.5) * photo.scale - 0.5 for axis in (cx, cy)]
        assert np.abs(np.subtract(found, (x, y))).max() <= photo.scale / 2 + 0.25


def test_shrunk_jpeg_looks_like_the_reduced_full_picture() -> None:
    path = shared("data/photos/biden.jpg")
    for long_side in (1000, 640, 400, 200):
        reduced = decode(path.read_bytes(), long_side=long_side)
        full = Image.fromarray(decode(path.read_bytes()).pixels)
        expected = full.resize(reduced.pixels.shape[1::-1], Image.Resampling.BOX)
        assert np.abs(reduced.pixels.astype(int) - np.array(expected)).mean() < 2.5


@pytest.mark.parametrize("size", [(999, 601), (601, 999), (641, 9), (1280, 1279)])
@pytest.mark.parametrize("long_side", [640, 333, 90])
def test_rgb_is_reduced_as_pillow_would(size: tuple[int, int], long_side: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    reduced = decode(save(Image.fromarray(picture), "PNG"), long_side=long_side).pixels
    expected = Image.fromarray(picture).resize(reduced.shape[1::-1], Image.Resampling.BICUBIC)
    assert difference(reduced, np.array(expected)) <= 2
    assert reduced.flags.c_contiguous


def test_mistakes_in_a_jpegs_header_do_not_cost_the_picture() -> None:
    mistaken = [data for name, data, _ in hostile_files() if name.endswith("-whole.jpg")]
    assert len(mistaken) == 4
    for data in mistaken:
        photo = decode(data)
        assert photo.notes == ("jpeg_mended",)
        assert difference(photo.pixels, decode(encode(PICTURE)).pixels) == 0


def test_samples_of_16_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    for format in ("PNG", "TIFF"):
        photo = decode(save(Image.fromarray(ramp), format))
        assert photo.pixels[..., 0].ravel().tolist() == list(range(256))
        assert (photo.mode, photo.bits) == ("I;16", 16)
    rgb = decode(rgb_16_bit_png(PICTURE.astype(np.uint16) * 257))
    assert difference(rgb.pixels, PICTURE) == 0
    assert rgb.bits == 16


def test_samples_of_16_bits_take_little_memory() -> None:
    data = save(Image.fromarray(np.zeros((1000, 1000), np.uint16)), "PNG")
    tracemalloc.start()
    try:
        decode(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1000 * 1000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bits", [10, 12])
def test_heif_of_more_than_8_bits_keeps_its_greys_and_colours(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    grey, wide = PICTURE[..., 1], PICTURE.astype(np.uint16) * 257
    colour = io.BytesIO()
    pillow_heif.from_bytes(mode="RGB;16", size=(96, 64), data=wide.tobytes()).save(colour, quality=90)
    for data, expected in (
        (save(Image.fromarray(wide[..., 1]), "HEIF", quality=90), np.dstack([grey] * 3)),
        (colour.getvalue(), PICTURE),
    ):
        photo = decode(data)
        assert photo.bits == bits
        assert np.abs(photo.pixels.astype(int) - expected).mean() < 3


def test_white_is_zero_is_honoured_at_every_depth() -> None:
    for samples in (np.uint8, np.uint16):
        tiff = save(Image.fromarray(np.zeros((8, 8), samples)), "TIFF")
        entry = b"\x06\x01\x03\x00\x01\x00\x00\x00"  # PhotometricInterpretation, one short
        at = tiff.index(entry) + len(entry)
        assert decode(tiff).pixels.max() == 0
        assert decode(tiff[:at] + b"\0\0" + tiff[at + 2 :]).pixels.min() == 255


def test_transparency_is_laid_on_white() -> None:
    alpha = np.dstack([PICTURE, np.zeros(PICTURE.shape[:2], np.uint8)])
    alpha[:, 48:, 3] = 255
    for format in ("PNG", "WEBP", "TIFF"):
        photo = decode(save(Image.fromarray(alpha), format, **({"lossless": True} if format == "WEBP" else {})))
        assert photo.pixels[:, :48].min() == 255
        assert difference(photo.pixels[:, 48:], PICTURE[:, 48:]) == 0
    grey = decode(save(Image.fromarray(np.zeros((8, 8), np.uint8)), "PNG", transparency=0))
    assert grey.pixels.min() == 255
    alpha[:, 48:, :3] = 255
    reduced = decode(save(Image.fromarray(alpha), "PNG"), long_side=24)
    assert reduced.pixels.min() == 255  # nothing of the colours behind the clear part bleeds in


def test_a_clear_grey_of_16_bits_is_laid_on_white_and_a_clear_colour_costs_no_other_colour() -> None:
    greys = np.tile(np.array([0, 40_000], np.uint16), (8, 4))
    assert decode(save(Image.fromarray(greys), "PNG", transparency=0)).pixels[0, :2, 0].tolist() == [255, 156]
    colours = np.tile(np.array([[0x1234, 0x5678, 0x9ABC], [0x3434, 0x7878, 0xBCBC]], np.uint16), (8, 4, 1))
    pixels = decode(rgb_16_bit_png(colours, clear=(0x1234, 0x5678, 0x9ABC))).pixels
    assert pixels[0, :2].tolist() == [[0x12, 0x56, 0x9A], [0x34, 0x78, 0xBC]]


def test_inks_become_colours_as_pillow_and_adobe_mean_them() -> None:
    cmyk = Image.fromarray(PICTURE).convert("CMYK")
    for format, options in (("JPEG", {"quality": 95}), ("TIFF", {})):
        photo = decode(save(cmyk, format, **options))
        assert difference(photo.pixels, PICTURE) <= 6
        assert photo.mode == "CMYK"


def test_profile_of_inks_is_followed() -> None:
    all_ink = Image.new("CMYK", (8, 8), (255, 255, 255, 255))
    assert decode(save(all_ink, "JPEG")).pixels.max() == 0
    photo = decode(save(all_ink, "JPEG", icc_profile=cmyk_profile()))
    assert photo.pixels.min() > 30  # its inks are weak
    assert photo.notes == ()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
def test_wide_colours_become_srgb(format: str) -> None:
    photo = decode(encode(np.full((32, 32, 3), (200, 120, 80), np.uint8), format, icc_profile=rgb_profile()))
    # By hand: gamma 2.2, Display P3 to sRGB (CSS Color 4, 10.6), sRGB's curve.
    linear = np.power(np.array([200, 120, 80]) / 255, 2.2)
    matrix = [[1.2249402, -0.2249402, 0], [-0.0420570, 1.0420570, 0], [-0.0196376, -0.0786361, 1.0982736]]
    srgb = np.array(matrix) @ linear
    expected = 255 * np.where(srgb <= 0.0031308, 12.92 * srgb, 1.055 * np.power(srgb, 1 / 2.4) - 0.055)
    assert np.abs(photo.pixels[16, 16] - expected).max() < 4
    assert np.abs(photo.pixels[16, 16].astype(int) - (200, 120, 80)).max() > 8
    assert photo.notes == ()


@pytest.mark.parametrize(
    ("mode", "format"),
    [*product(["L"], ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"]), *product(["LA"], ["PNG", "WEBP", "TIFF"])],
)
def test_profile_of_greys_is_followed(mode: str, format: str) -> None:
    grey = Image.new("L", (32, 32), 55).convert(mode)
    options = {"lossless": True} if format == "WEBP" else {}
    photo = decode(save(grey, format, icc_profile=grey_profile(), **options))
    assert photo.notes == ()
    assert np.abs(photo.pixels.astype(int) - 128).max() <= 2  # sRGB's 128 is 55 of 255 in light (IEC 61966-2-1)


def test_a_profile_of_srgb_itself_changes_nothing() -> None:
    plain, profiled = encode(PICTURE), encode(PICTURE, icc_profile=SRGB)
    np.testing.assert_array_equal(decode(profiled).pixels, decode(plain).pixels)


def test_profile_of_greys_is_ignored_for_colours() -> None:
    photo = decode(encode(PICTURE, "PNG", icc_profile=grey_profile()))
    assert photo.notes == ("icc_ignored",)
    assert difference(photo.pixels, PICTURE) == 0


def test_broken_profile_is_noted_and_the_picture_kept() -> None:
    photo = decode(encode(PICTURE, icc_profile=b"rubbish"))
    assert photo.notes == ("icc_ignored",)
    assert difference(photo.pixels, PICTURE) <= 4
    grey = decode(save(Image.fromarray(PICTURE[..., 0]), "JPEG", icc_profile=rgb_profile()))
    assert grey.notes == ("icc_ignored",)


@given(
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59)).map(lambda t: t.replace(microsecond=0))
    | st.sampled_from([datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59)]),
    st.integers(-99, 99),
    st.integers(0, 99),
)
def test_a_time_at_the_ends_of_the_calendar_costs_nothing(moment: datetime, hours: int, minutes: int) -> None:
    words = f"{moment.year:04}:{moment:%m:%d %H:%M:%S}"
    photo = decode(save(Image.new("L", (8, 8)), "JPEG", exif=exif(6, words, f"{hours:+03}:{minutes:02}")))
    assert (photo.notes, photo.exif_time is None) == ((), False)
    assert photo.exif_time is not None
    assert photo.exif_time.isoformat()[:19] == moment.isoformat()


@pytest.mark.parametrize("format", TURNABLE)
def test_time_of_the_photograph_is_read(format: str) -> None:
    naive = decode(encode(PICTURE, format, exif=exif(taken="2024:05:17 18:30:00"))).exif_time
    assert naive == datetime(2024, 5, 17, 18, 30)
    zoned = decode(encode(PICTURE, format, exif=exif(taken="2024:05:17 18:30:00", zone="+02:00"))).exif_time
    assert zoned == datetime(2024, 5, 17, 18, 30, tzinfo=timezone(timedelta(hours=2)))
    for nonsense in ("    :  :     :  :  ", "0000:00:00 00:00:00", "yesterday"):
        assert decode(encode(PICTURE, format, exif=exif(taken=nonsense))).exif_time is None


# What is refused


def test_every_hostile_file_meets_its_expectation() -> None:
    wrong = {}
    for name, data, reason in hostile_files():
        result = outcome(data)
        got = result.value if isinstance(result, Reason) else None
        if got != reason:
            wrong[name] = f"{got} instead of {reason}"
    assert wrong == {}


def test_hostile_folder_is_listed_as_expected(tmp_path: Path) -> None:
    expected = make_hostile_folder(tmp_path / "hostile")
    folder, wanted = Folder(tmp_path / "hostile"), Filter()
    seen = {}
    for page in folder.list():
        for entry in page:
            if not isinstance(entry, Entry):
                seen[entry.key] = Expectation(Outcome.UNLISTABLE)
            elif not wanted(entry.key):
                seen[entry.key] = Expectation(Outcome.IGNORED)
            else:
                try:
                    decode(folder.read(entry.key, 10**9, entry.etag).data, long_side=640)
                    seen[entry.key] = PROCESSED
                except AccessDenied:  # not as root
                    seen[entry.key] = Expectation(Outcome.FAILED, "access_denied")
                except DecodeFailure as failure:
                    seen[entry.key] = Expectation(Outcome.FAILED, failure.reason.value)
    assert seen == {key: value for key, value in expected.items() if value.outcome is not Outcome.ABSENT}
    assert len(expected) > 45


def test_limits_are_kept_by_the_headers_word() -> None:
    data = encode(PICTURE)
    assert outcome(data, DecodeLimits(max_bytes=len(data) - 1)) is Reason.TOO_LARGE
    assert outcome(data, DecodeLimits(max_megapixels=0.006)) is Reason.TOO_MANY_PIXELS
    assert outcome(data, DecodeLimits(max_side=95)) is Reason.TOO_MANY_PIXELS
    assert outcome(data, DecodeLimits(formats=frozenset({Format.PNG}))) is Reason.UNSUPPORTED_FORMAT
    assert isinstance(outcome(data, DecodeLimits(len(data), 0.0062, 96)), Photo)


MEASURE = """
import resource, sys
from tasks.decode import DecodeFailure, decode
from tests.hostile import hostile_files
files = [file for file in hostile_files() if "bomb" in file[0]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, data, reason in files:
    try:
        decode(data)
        refused = None
    except DecodeFailure as failure:
        refused = failure.reason
    if refused != reason:
        sys.exit(f"{name}: {refused}")
print(len(files), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_bombs_take_no_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    count, megabytes = map(int, done.stdout.split())
    assert count >= 7
    assert megabytes < 30


SCARCE = """
import resource, sys
from pathlib import Path
from tasks.decode import decode
files = [(path.name, path.read_bytes()) for path in sorted(Path(sys.argv[1]).iterdir())]
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, resource.RLIM_INFINITY))
for name, data in files:
    try:
        decode(data, long_side=640)
    except MemoryError as error:
        print(f"{name}: {error}")
"""


def test_a_good_photo_for_which_memory_does_not_suffice_is_not_said_to_be_a_bad_one(tmp_path: Path) -> None:
    large = Image.new("RGB", (4000, 4000))
    for format, options in (("JPEG", {"progressive": True}), ("PNG", {"compress_level": 1}), ("BMP", {})):
        large.save(tmp_path / format, format, **options)
    done = subprocess.run([sys.executable, "-c", SCARCE, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{format}: the picture needs more memory than there is" for format in ("BMP", "JPEG", "PNG")
    ]


def test_png_is_decoded_without_metadata_that_would_fill_the_memory() -> None:
    bombs = {name: decode(data) for name, data, _ in hostile_files() if name.endswith(("-bomb.png", "-pixels.png"))}
    assert {name: photo.notes for name, photo in bombs.items()} == {
        "text-bomb.png": ("text_ignored",),
        "profile-bomb.png": ("icc_ignored",),
        "text-bomb-behind-the-pixels.png": ("text_ignored",),
    }
    assert all(photo.pixels.shape == (8, 8, 3) and photo.pixels.min() == 255 for photo in bombs.values())


def test_colour_profile_is_followed_beside_texts_that_would_fill_the_memory() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "x" * 2**21, zip=True)
    photo, bare = (decode(encode(PICTURE, "PNG", icc_profile=rgb_profile(), pnginfo=info)) for info in (texts, None))
    assert photo.notes == ("text_ignored",)
    assert difference(photo.pixels, bare.pixels) == 0


def test_erased_flash_behind_a_header_takes_no_time() -> None:
    recovered = encode(PICTURE)[:100] + b"\xff" * 10_000_000  # as programs find it on a memory card
    start = time.perf_counter()
    assert outcome(recovered) is Reason.TRUNCATED
    assert time.perf_counter() - start < 10  # in quadratic time: days


def test_film_behind_a_photograph_does_not_matter() -> None:
    photograph = encode(PICTURE)
    film = np.random.default_rng(0).bytes(10_000_000)
    assert film.count(b"\xff\xda") > 100
    photo = decode(photograph + film)
    assert difference(photo.pixels, decode(photograph).pixels) == 0


@pytest.mark.parametrize("progressive", [False, True])
def test_coded_data_that_no_pixel_needed_are_no_padding(progressive: bool) -> None:
    data = encode(scene(640, 480), progressive=progressive)
    padded = decode(data[:-2] + bytes(4096) + data[-2:])
    assert padded.notes == ("jpeg_extra_bytes",)
    assert difference(padded.pixels, decode(data).pixels) == 0
    middle = len(data) // 2
    for sector in (data[middle : middle + 512], b"\x5a" * 512):
        assert outcome(data[:middle] + sector + data[middle:]) in (Reason.CORRUPT, Reason.TRUNCATED)


@cache
def samples() -> list[tuple[str, bytes, NDArray[np.uint8]]]:
    """One small valid file of every kind that has a decoder path of its own, with its pixels."""
    rgb = Image.fromarray(scene(40, 30))
    files = {
        "jpeg": save(rgb, "JPEG"),
        "progressive": save(rgb, "JPEG", progressive=True),
        "restarts": save(rgb, "JPEG", restart_marker_blocks=1),
        "4:4:0 jpeg": simplejpeg.encode_jpeg(scene(40, 30), colorspace="RGB", colorsubsampling="440"),
        "4:1:1 jpeg": simplejpeg.encode_jpeg(scene(40, 30), colorspace="RGB", colorsubsampling="411"),
        "cmyk jpeg": save(rgb.convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
        "jpeg with profile and exif": save(rgb, "JPEG", icc_profile=rgb_profile(), exif=exif(6, "2024:05:17 18:30:00")),
        "png": save(rgb, "PNG", exif=exif(3)),
        "palette png": save(rgb.quantize(8), "PNG", transparency=1),
        "webp": save(rgb, "WEBP", exif=exif(6)),
        "lossless webp": save(rgb, "WEBP", lossless=True),
        "animated webp": save(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)]),
        "gif": save(rgb, "GIF"),
        "bmp": save(rgb, "BMP"),
        "palette bmp": save(rgb.quantize(8), "BMP"),
        "tiff": save(rgb, "TIFF", exif=exif(6)),
        "lzw tiff": save(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg tiff": save(rgb, "TIFF", compression="jpeg"),
        "heif": save(rgb, "HEIF", exif=exif(6)),
        "avif": save(rgb, "AVIF", exif=exif(6)),
    }
    return [(name, data, decode(data).pixels) for name, data in files.items()]


@pytest.mark.parametrize("kind", range(20))
def test_a_file_cut_anywhere_never_passes_as_a_picture(kind: int) -> None:
    name, data, pixels = samples()[kind]
    for cut in {*range(0, len(data), max(len(data) // 60, 1)), *range(max(len(data) - 12, 0), len(data))}:
        result = outcome(data[:cut])
        if isinstance(result, Photo):  # only what follows the picture was cut off
            assert difference(result.pixels, pixels) == 0, f"{name} cut to {cut} of {len(data)} bytes"


EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=8), st.integers(0, 8)), min_size=1, max_size=6
)


@given(st.integers(0, 19), EDITS, st.sampled_from([None, 16]))
def test_damaged_files_give_a_picture_or_a_reason_and_nothing_else(
    kind: int, edits: list[tuple[float, bytes, int]], long_side: int | None
) -> None:
    damaged = bytearray(samples()[kind][1])
    for place, inserted, removed in edits:
        at = int(place * len(damaged))
        damaged[at : at + removed] = inserted
    assert isinstance(outcome(bytes(damaged), DecodeLimits(max_megapixels=1), long_side), Reason | Photo)


STARTS = st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF", b"BM"])


@given(st.binary(max_size=200), STARTS)
def test_noise_is_a_reason(noise: bytes, start: bytes) -> None:
    assert isinstance(outcome(start + noise), Reason)


def test_threads_decode_as_one_does() -> None:
    work = samples() * 6
    with ThreadPoolExecutor(8) as threads:
        photos = list(threads.map(lambda sample: decode(sample[1]), work))
    for photo, (name, _, pixels) in zip(photos, work, strict=True):
        assert difference(photo.pixels, pixels) == 0, name


@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
def test_zeros_in_metadata_and_behind_the_picture_do_not_matter(format: str) -> None:
    tags = Image.Exif()
    tags.get_ifd(0x8769)[0x927C] = bytes(20_000)  # notes of the maker, kept at the end
    data = encode(PICTURE, format, exif=tags.tobytes())
    assert data.endswith(bytes(10_000)) is (format == "HEIF")
    for file in (data, data + bytes(100_000)):
        assert isinstance(outcome(file), Photo)


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_may_end_in_zeros_that_it_needs_and_in_no_others(lossless: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    flat = save(Image.fromarray(np.concatenate([noise, np.zeros_like(noise)])), "WEBP", quality=0, method=0)
    assert flat[-5000:] == bytes(5000)
    assert (decode(flat).pixels[700:] < 8).all()
    busy = save(Image.fromarray(scene(800, 600) // 2 + noise // 8), "WEBP", lossless=lossless)
    assert outcome(busy[:-20_000] + bytes(20_000)) in (Reason.TRUNCATED, Reason.CORRUPT)


def test_leniency_switched_on_by_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        decode(encode(PICTURE))


def test_pillows_own_pixel_limit_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for format in ("JPEG", "PNG", "TIFF", "BMP", "GIF", "HEIF", "AVIF"):
        assert isinstance(outcome(encode(PICTURE, format, 6)), Photo), format
    assert isinstance(outcome(encode(PICTURE, "TIFF", compression="tiff_lzw")), Photo)


def test_failure_survives_the_way_between_processes() -> None:
    with pytest.raises(DecodeFailure) as raised:
        decode(b"")
    again = pickle.loads(pickle.dumps(raised.value))
    assert (again.reason, str(again)) == (Reason.EMPTY, str(raised.value))


def test_long_side_of_nothing_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="long_side"):
        decode(encode(PICTURE), long_side=0)
