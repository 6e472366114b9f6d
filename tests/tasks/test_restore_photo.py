"""Whole photographs: restored faces come back in their place and marked; whatever was not restored is said."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.settings import Settings
from tasks import restore_photo
from tasks.decode import DecodeLimits, Photo, decode
from tasks.restore_photo import NothingToRestore, PhotoReport, PhotoRestorer, enlarged, photographs, restore_photos
from tests.portraits import Pixels, jpeg, landscape, mirrored, portrait

Put = Callable[[str, Pixels], Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a picture as a file."""
    (tmp_path / "in").mkdir()

    def put(name: str, pixels: Pixels) -> Path:
        path = tmp_path / "in" / name
        path.write_bytes(jpeg(pixels))
        return path

    return put


@pytest.fixture(scope="module")
def restorer(weights_dir: Path, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> PhotoRestorer:
    home = tmp_path_factory.mktemp("home")
    return PhotoRestorer(Settings(home=home, weights=weights_dir, tracking_uri=tracking_uri), "real-esrgan-x4plus", 2)


def one(report: PhotoReport) -> tuple[str, str]:
    [face] = report.faces
    return face.outcome, face.reason


@pytest.mark.slow
def test_a_small_face_is_restored_in_its_place_in_a_larger_copy_that_says_so(
    restorer: PhotoRestorer, put: Put, tmp_path: Path
) -> None:
    path = put("small.jpg", mirrored(200))
    report = restorer(path, "small.jpg", tmp_path / "out")
    assert one(report) == ("restored", "")
    assert report.written == str(tmp_path / "out" / "small.jpg.restored.png")
    picture = Image.open(report.written)
    assert picture.size == (400, 400)
    assert "Synthetic detail: invented by real-esrgan-x4plus 1" in str(picture.info["Description"])
    plain = enlarged(decode(path.read_bytes()).pixels, 2).astype(np.float32)
    made = np.asarray(picture, np.float32)
    difference = np.abs(made - plain).max(axis=2)
    x1, y1, x2, y2 = (2 * v for v in report.faces[0].box)
    face = (slice(int(y1), int(y2)), slice(int(x1), int(x2)))
    assert difference[face].mean() > 3
    assert np.abs(made[face].mean(axis=(0, 1)) - plain[face].mean(axis=(0, 1))).max() < 3  # no shift of colour
    assert difference[300:370].max() == 0  # far below the face, above the label


@pytest.mark.slow
def test_grey_faces_at_the_border_and_in_strips_are_judged_and_stay_grey(
    restorer: PhotoRestorer, put: Put, tmp_path: Path
) -> None:
    face = portrait(200)
    grey = np.repeat(face.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    cut = grey[:, 70:]  # the photo ends close to the face
    strip = np.concatenate([cut[:120], np.full((120, 1600, 3), 90, np.uint8)], axis=1)
    path = put("strip.jpg", strip)
    report = restorer(path, "strip.jpg", tmp_path / "out")
    [found] = report.faces
    assert found.outcome in ("restored", "rejected")
    assert found.measured is not None
    assert (found.outcome == "rejected") == bool(found.reason) == (report.written is None)
    if report.written is not None:
        pixels = np.asarray(Image.open(report.written)).astype(int)[:150]
        assert np.ptp(pixels, axis=2).max() <= 6  # JPEG's own
        plain = enlarged(decode(path.read_bytes()).pixels, 2)[:150]
        assert not ((pixels < 10) & (plain > 60)).any()  # nothing of the black beyond the border comes in


def test_nothing_is_written_where_nothing_was_restored(restorer: PhotoRestorer, put: Put, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sharp = restorer(put("sharp.jpg", portrait(600)), "sharp.jpg", out)
    assert one(sharp)[0] == "left"
    assert one(sharp)[1].startswith("needs no restoring: eyes ")
    tiny = Image.fromarray(portrait(64)).resize((384, 384))  # eyes 5 px apart, enlarged: nothing is left of the face
    for report in (sharp, restorer(put("tiny.jpg", np.asarray(tiny)), "tiny.jpg", out)):
        assert all(face.outcome == "left" and face.reason for face in report.faces)
    for name, pixels in {
        "black.jpg": np.zeros((200, 200, 3), np.uint8),
        "thin.jpg": landscape(300)[:9],
        "none.jpg": landscape(),
    }.items():
        report = restorer(put(name, pixels), name, out)
        assert (report.faces, report.problem, report.written) == ((), "", None)
    assert not out.exists()


def test_a_broken_file_is_a_problem_of_its_own(restorer: PhotoRestorer, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(jpeg(portrait(200))[:3000])
    report = restorer(tmp_path / "broken.jpg", "broken.jpg", tmp_path / "out")
    assert report.written is None
    assert "breaks off after" in report.problem


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (MemoryError(), "more memory than there is"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "more memory than there is"),
        (ValueError("no such pixel"), "ValueError: no such pixel"),
    ],
)
def test_a_photo_that_breaks_a_stage_is_a_problem_of_its_own(
    restorer: PhotoRestorer, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, problem: str
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(restore_photo, "align_faces", broken)
    report = restorer(put("a.jpg", portrait(200)), "a.jpg", tmp_path / "out")
    assert (report.photo, report.written, report.faces) == ("a.jpg", None, ())
    assert problem in report.problem


def test_a_photo_is_decoded_in_full_only_to_paste_into_it(
    restorer: PhotoRestorer, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int | None] = []

    def noted(data: bytes, limits: DecodeLimits, long_side: int | None = None) -> Photo:
        sizes.append(long_side)
        return decode(data, limits, long_side)

    monkeypatch.setattr(restore_photo, "decode", noted)
    large = np.pad(portrait(600), ((0, 0), (0, 1000), (0, 0)))
    report = restorer(put("large.jpg", large), "large.jpg", tmp_path / "out")
    assert one(report)[0] == "left"
    assert sizes == [restorer.long_side]


def test_a_folder_is_searched_for_photographs_but_not_among_the_results(put: Put, tmp_path: Path) -> None:
    put("a.jpg", portrait(60))
    out = tmp_path / "in" / "out"
    out.mkdir()
    (out / "b.png").write_bytes(b"")
    (tmp_path / "in" / "notes.txt").write_text("no photograph")
    assert [path.name for path in photographs(tmp_path / "in", out)] == ["a.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingToRestore, match="holds no photographs"):
        restore_photos(Settings(home=tmp_path), tmp_path / "empty", out)
    with pytest.raises(NothingToRestore, match=r"copies cannot go into .* itself"):
        photographs(tmp_path / "in", tmp_path / "in")


def test_photos_are_enlarged_at_most_four_times(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="enlarged 1 to 4 times, not 9"):
        PhotoRestorer(Settings(home=tmp_path), "real-esrgan-x4plus", 9)
