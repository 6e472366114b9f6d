"""The demo, on a folder of one's own. What it downloads otherwise is fetched by hand before a release."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.demo import make_old_scans
from infra.settings import PREFIX
from tests.portraits import jpeg, mirrored, portrait, small_collection


@pytest.mark.slow
def test_demo_shows_who_is_who_what_failed_and_that_a_second_night_has_nothing_to_do(
    tmp_path: Path, weights_dir: Path
) -> None:
    photos = small_collection(tmp_path / "photos")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    users = tmp_path / "catalog of the user.db"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {"VISAGE_WEIGHTS": str(weights_dir), "VISAGE_DATABASE_URL": f"sqlite:///{users}"}
    command = [sys.executable, "-m", "flows.demo", "--photos", str(photos)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    first, second = done.stdout.split("=== Second night")
    assert "demo: 6 new, 0 changed, 0 missing, 0 unchanged; processed 6 images with 4 faces" in first
    assert "Who looks like the face in a.jpg?" in first  # nobody names a photo to search with, so it takes one
    assert "1.000" in first.split("Who looks like")[1]
    assert "broken.jpg: the JPEG breaks off" in first
    assert "0 new, 0 changed, 0 missing, 6 unchanged; processed 0 images with 0 faces" in second
    assert "stopped the local Prefect server" in second
    html = (tmp_path / "build" / "demo" / "page" / "index.html").read_text(encoding="utf-8")
    assert html.count("synthetic detail") >= 1
    assert "<td>broken.jpg</td>" in html
    assert not users.exists()


def test_old_scans_are_worn_copied_turned_and_broken(tmp_path: Path) -> None:
    portraits = tmp_path / "portraits"
    portraits.mkdir()
    for name, pixels in {
        "obama": portrait(400),
        "obama2": mirrored(800),
        "obama3": portrait(320),
        "biden": portrait(360),
    }.items():
        (portraits / f"{name}.jpg").write_bytes(jpeg(pixels))
    Image.fromarray(portrait(512)).save(portraits / "astronaut.png")
    scans = tmp_path / "scans"
    make_old_scans(portraits, scans)
    assert Image.open(scans / "tiny.jpg").size == (110, 110)
    assert (scans / "copy_of_biden.jpg").read_bytes() == (portraits / "biden.jpg").read_bytes()
    assert len((scans / "broken.jpg").read_bytes()) <= 30_000
    turned = Image.open(scans / "turned.jpg")
    assert turned.getexif()[0x0112] == 6
    upright = np.asarray(turned.transpose(Image.Transpose.ROTATE_270).convert("L"), np.float32)
    original = np.asarray(Image.open(portraits / "biden.jpg").convert("L"), np.float32)
    assert np.corrcoef(upright.ravel(), original.ravel())[0, 1] > 0.95
    again = tmp_path / "again"
    make_old_scans(portraits, again)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in scans.iterdir()
    }
