"""Cached weights are whole, proven and the same on every machine, or not there at all."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infra import weights
from infra.weights import PARTIAL, WeightsError, clean, find, folder_of, load, store

ORIGIN = {"package.whl": "ab" * 32}


def state() -> dict[str, Tensor]:
    return {"conv.weight": torch.arange(24.0).view(2, 3, 2, 2), "conv.bias": torch.ones(2), "steps": torch.tensor(7)}


def stored(folder: Path, tensors: dict[str, Tensor] | None = None) -> weights.Stored:
    return store(folder, "model", tensors or state(), licence="MIT", source="https://example.org", origin=ORIGIN)


def test_what_was_stored_is_loaded(tmp_path: Path) -> None:
    there = stored(tmp_path)
    loaded = load(there.folder, there.manifest.digest)
    assert loaded.keys() == state().keys()
    assert all(torch.equal(loaded[key], value) for key, value in state().items())
    assert there.folder == folder_of(tmp_path, "model", there.manifest.digest)


def test_digest_is_the_same_on_every_machine_and_in_any_order(tmp_path: Path) -> None:
    digest = "3b3b78fc2eae6fb8e42e39abe0a651b0"  # of the bytes, whatever process or order of keys wrote them
    backwards = dict(reversed(state().items()))
    assert stored(tmp_path / "a").manifest.digest[:32] == digest
    assert stored(tmp_path / "b", backwards).manifest.digest[:32] == digest


def test_storing_twice_changes_nothing(tmp_path: Path) -> None:
    first, second = stored(tmp_path), stored(tmp_path)
    assert first.folder == second.folder
    assert [path.name for path in (tmp_path / "model").iterdir()] == [first.folder.name]
    assert not list(tmp_path.glob(f"{PARTIAL}*"))


def test_weights_are_found_by_what_they_came_from(tmp_path: Path) -> None:
    there = stored(tmp_path)
    assert find(tmp_path, "model", ORIGIN) == there
    assert find(tmp_path, "model", {"package.whl": "cd" * 32}) is None
    assert find(tmp_path, "other", ORIGIN) is None


def test_weights_of_an_older_format_are_converted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path)
    monkeypatch.setattr(weights, "FORMAT", weights.FORMAT + 1)
    assert find(tmp_path, "model", ORIGIN) is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"has [\d,]+ bytes where [\d,]+ belong"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x55"), "has changed since it was installed"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
        (lambda path: (path.parent / "manifest.json").unlink(), "There are no weights in"),
    ],
)
def test_damage_is_told_never_loaded_and_repaired(tmp_path: Path, damage, reason: str) -> None:
    there = stored(tmp_path)
    damage(there.folder / "weights.safetensors")
    with pytest.raises(WeightsError, match=rf"{reason}.*visage models install"):
        load(there.folder, there.manifest.digest)
    assert find(tmp_path, "model", ORIGIN) is None
    stored(tmp_path)
    assert load(there.folder, there.manifest.digest).keys() == state().keys()


def test_other_weights_in_the_same_place_are_not_loaded(tmp_path: Path) -> None:
    there = stored(tmp_path)
    with pytest.raises(WeightsError, match="has changed"):
        load(there.folder, "0" * 64)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_leaves_nothing_behind_and_keeps_what_was_there(tiny_disk: Path) -> None:
    before = stored(tiny_disk)
    with pytest.raises(OSError) as raised:
        stored(tiny_disk, {"large": torch.zeros(100_000)})
    assert raised.value.errno == errno.ENOSPC
    assert [path.name for path in tiny_disk.iterdir()] == ["model"]
    assert list((tiny_disk / "model").iterdir()) == [before.folder]
    load(before.folder, before.manifest.digest)


def test_limit_on_file_sizes_leaves_nothing_behind(tmp_path: Path) -> None:
    program = f"""
        import resource, torch
        from pathlib import Path
        from infra.weights import store
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            store(Path({str(tmp_path)!r}), "model", {{"w": torch.zeros(50_000)}}, licence="", source="", origin={{}})
        except OSError as error:
            print(error.errno)
    """
    root = Path(weights.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=root, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_killed_conversion_is_cleaned_away(tmp_path: Path) -> None:
    there = stored(tmp_path)
    left = tmp_path / f"{PARTIAL}x7"
    (left / "complete").mkdir(parents=True)
    (left / "complete" / "weights.safetensors").write_bytes(b"half")
    clean(tmp_path)
    assert not left.exists()
    assert find(tmp_path, "model", ORIGIN) == there


def test_manifest_tells_a_person_where_the_weights_come_from(tmp_path: Path) -> None:
    there = stored(tmp_path)
    manifest = json.loads((there.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["licence"] == "MIT"
    assert manifest["origin"] == ORIGIN
    assert manifest["size"] == os.path.getsize(there.folder / "weights.safetensors")
    assert manifest["tensors"] == 3
