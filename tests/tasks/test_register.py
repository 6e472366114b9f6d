"""A checkpoint becomes a version whole, or is refused with the reason and leaves nothing behind."""

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from infra.download import DownloadError
from infra.registry import CHALLENGER, Registry
from infra.weights import WeightsError
from models import table
from models.readers.checkpoint import read_checkpoint
from models.spec import CheckpointMismatch, ModelSpec
from models.table import UnknownModel
from tasks.model_version import NotInstalled, find_version, load_network
from tasks.versioning.install import install, promote
from tasks.versioning.register import WrongDigest, add_checkpoint
from tests.tasks.tiny_models import TinyTable, left_in
from tests.web import Web

WEIGHT = torch.arange(16.0).view(4, 4).T  # not contiguous, as in many a checkpoint


def released(folder: Path, name: str = "released.pth", weight: torch.Tensor = WEIGHT) -> Path:
    torch.save({"weight": weight}, folder / name)
    return folder / name


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_released_checkpoint_becomes_a_version_by_its_own_file(
    tiny: TinyTable, folder: Path, uri: str, tmp_path: Path
) -> None:
    path = released(tmp_path)
    first = add_checkpoint("tiny-a", [path], folder, uri)
    assert (first.model.version, first.converted, first.champion) == (1, True, True)
    assert first.origin == {"released.pth": digest(path)}
    assert torch.equal(load_network(first.model).weight, WEIGHT)
    assert not add_checkpoint("tiny-a", [path], folder, uri).converted
    bundled, _ = install(folder, uri, tiny.wheel.parent)
    assert (bundled.model.version, bundled.champion) == (2, False)
    assert find_version("tiny-a", folder, uri) == first.model
    (version, _) = Registry(uri).versions("tiny-a")
    assert version.tags["origin"] == f"released.pth sha256:{digest(path)}"


def save_torch(path: Path) -> None:
    torch.save({"weight": WEIGHT}, path)


def save_safetensors(path: Path) -> None:
    safetensors.torch.save_file({"weight": WEIGHT.contiguous()}, path)


def save_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=WEIGHT.numpy())


@pytest.mark.parametrize(
    ("name", "save"),
    [("a.pt", save_torch), ("a.pth.tar", save_torch), ("a.ckpt", save_torch), ("a.safetensors", save_safetensors),
     ("a.npz", save_npz), ("no ending", save_npz)],
)  # fmt: skip
def test_same_weights_are_the_same_version_whatever_file_they_come_in(
    tiny: TinyTable, folder: Path, uri: str, tmp_path: Path, name: str, save: Callable[[Path], None]
) -> None:
    save(tmp_path / name)
    result = add_checkpoint("tiny-a", [tmp_path / name], folder, uri)
    assert result.model.digest == hashlib.sha256(safetensors.torch.save({"weight": WEIGHT.contiguous()})).hexdigest()


def test_half_precision_file_gives_a_network_in_full_precision(
    tiny: TinyTable, folder: Path, uri: str, tmp_path: Path
) -> None:
    result = add_checkpoint("tiny-a", [released(tmp_path, weight=WEIGHT.half())], folder, uri)
    assert load_network(result.model).weight.dtype == torch.float32


def test_address_is_fetched_proven_and_registered(
    tiny: TinyTable, folder: Path, uri: str, tmp_path: Path, web: Web
) -> None:
    path = released(tmp_path)
    web.put("released.pth", path.read_bytes())
    heard: list[tuple[str, int, int | None]] = []
    url = web.url("released.pth")
    result = add_checkpoint("tiny-a", [url], folder, uri, [digest(path).upper()], lambda *args: heard.append(args))
    assert result.origin == {"released.pth": digest(path)}
    assert heard[-1] == (url, path.stat().st_size, path.stat().st_size)
    assert left_in(folder) == ["tiny-a"]
    assert not add_checkpoint("tiny-a", [f"file://{path}"], folder, uri).converted


def test_files_of_one_name_from_two_places_are_told_apart(
    tiny: TinyTable, folder: Path, uri: str, tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    def joined(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"weight": checkpoint["first"] + checkpoint["second"]}

    both = replace(tiny.models["tiny-a"], official=joined)
    monkeypatch.setattr(table, "MODELS", {"tiny-a": both})
    torch.save({"first": WEIGHT}, tmp_path / "model.pt")
    torch.save({"second": WEIGHT}, tmp_path / "second.pt")
    web.put("a/model.pt", (tmp_path / "model.pt").read_bytes())
    web.put("b/model.pt", (tmp_path / "second.pt").read_bytes())
    result = add_checkpoint("tiny-a", [web.url("a/model.pt"), web.url("b/model.pt")], folder, uri)
    assert torch.equal(load_network(result.model).weight, WEIGHT + WEIGHT)
    assert result.origin == {
        web.url("a/model.pt"): digest(tmp_path / "model.pt"),
        web.url("b/model.pt"): digest(tmp_path / "second.pt"),
    }


REFUSED = {
    "another network's": (
        lambda path: torch.save({"weight": torch.ones(3, 3)}, path),
        r"weight \(file \(3, 3\), network \(4, 4\)\)",
    ),
    "another family's": (
        lambda path: torch.save({"conv.weight": torch.ones(3)}, path),
        r"1 missing: weight; 1 unexpected: conv\.weight",
    ),
    "a diverged training's": (
        lambda path: torch.save({"weight": WEIGHT * torch.nan}, path),
        "1 tensors hold values that are not finite: weight",
    ),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "is a web page, not weights"),
    "a truncated file": (lambda path: path.write_bytes(truncated()), "damaged.*Fetch it again"),
    "an empty file": (lambda path: path.touch(), "is empty"),
    "a folder": (lambda path: path.mkdir(), "is a folder without array files"),
    "a bare tensor": (lambda path: torch.save(WEIGHT, path), "holds a Tensor, not entries by name"),
    "code": (lambda path: torch.save(torch.nn.Linear(4, 4), path), "would have to be executed"),
}


def truncated() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": WEIGHT}, file)
    return file.getvalue()[:-200]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_checkpoint_of_the_model_is_refused_and_nothing_is_kept(
    tiny: TinyTable, folder: Path, uri: str, tmp_path: Path, kind: str
) -> None:
    make, why = REFUSED[kind]
    make(tmp_path / "model.pth")
    with pytest.raises(CheckpointMismatch, match=why):
        add_checkpoint("tiny-a", [tmp_path / "model.pth"], folder, uri)
    assert left_in(folder) == []
    assert Registry(uri).versions() == []


def test_refusal_of_a_download_names_its_address_and_leaves_nothing(
    tiny: TinyTable, folder: Path, uri: str, web: Web
) -> None:
    web.put("model.pth", b"<html><title>Sign in</title>")
    with pytest.raises(CheckpointMismatch) as refused:
        add_checkpoint("tiny-a", [web.url("model.pth")], folder, uri)
    assert str(refused.value).startswith(f"{web.url('model.pth')} is a web page, not weights")
    web.put("model.pth", bytes(1000))
    with pytest.raises(DownloadError, match="the connection ended after"):
        add_checkpoint("tiny-a", [web.url("model.pth", "short")], folder, uri)
    assert left_in(folder) == []


def test_another_digest_than_asked_for_is_refused_and_nothing_is_kept(
    tiny: TinyTable, folder: Path, uri: str, tmp_path: Path
) -> None:
    path = released(tmp_path)
    with pytest.raises(WrongDigest, match=rf"released\.pth has SHA-256 {digest(path)} where 0000"):
        add_checkpoint("tiny-a", [path], folder, uri, ["0" * 64])
    with pytest.raises(WrongDigest, match="2 SHA-256 for 1 files"):
        add_checkpoint("tiny-a", [path], folder, uri, [digest(path)] * 2)
    (tmp_path / "arrays").mkdir()
    with pytest.raises(WrongDigest, match="is a folder, which has no SHA-256"):
        add_checkpoint("tiny-a", [tmp_path / "arrays"], folder, uri, [digest(path)])
    assert left_in(folder) == []
    assert Registry(uri).versions() == []


def test_missing_and_unreadable_files_are_told_by_name(tiny: TinyTable, uri: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        add_checkpoint("tiny-a", [tmp_path / "none.pth"], tmp_path / "weights", uri)
    path = released(tmp_path)
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # the administrator may read everything
        with pytest.raises(PermissionError):
            read_checkpoint([path])
    finally:
        os.seteuid(user)


def test_unknown_model_is_told_with_the_known_ones(tiny: TinyTable, folder: Path, uri: str, tmp_path: Path) -> None:
    with pytest.raises(
        UnknownModel, match=r"no model is called 'tiny-c'\. Did you mean tiny-(a or tiny-b|b or tiny-a)"
    ):
        add_checkpoint("tiny-c", [released(tmp_path)], folder, uri)


def test_versions_are_found_by_name_number_and_alias(tiny: TinyTable, folder: Path, uri: str, tmp_path: Path) -> None:
    with pytest.raises(NotInstalled, match="tiny-a is not installed"):
        find_version("tiny-a@1", folder, uri)
    first = add_checkpoint("tiny-a", [released(tmp_path)], folder, uri).model
    second = add_checkpoint("tiny-a", [released(tmp_path, "second.pth", -WEIGHT)], folder, uri).model
    Registry(uri).point("tiny-a", CHALLENGER, second.version)
    for reference, version in [
        ("tiny-a", first), ("tiny-a@champion", first), ("tiny-a@1", first), ("tiny-a@2", second), ("tiny-a@challenger", second),
    ]:  # fmt: skip
        assert find_version(reference, folder, uri) == version
    with pytest.raises(NotInstalled, match=r"tiny-a has no version '3'; there are 1 \(champion\), 2 \(challenger\)"):
        find_version("tiny-a@3", folder, uri)


def test_promotion_moves_the_champion_and_tells_the_one_before(
    tiny: TinyTable, folder: Path, uri: str, tmp_path: Path
) -> None:
    add_checkpoint("tiny-a", [released(tmp_path)], folder, uri)
    second = add_checkpoint("tiny-a", [released(tmp_path, "second.pth", -WEIGHT)], folder, uri)
    assert not second.champion
    assert promote("tiny-a@2", folder, uri) == (second.model, 1)
    assert find_version("tiny-a", folder, uri) == second.model


def test_damaged_weights_are_not_promoted(tiny: TinyTable, folder: Path, uri: str, tmp_path: Path) -> None:
    first = add_checkpoint("tiny-a", [released(tmp_path)], folder, uri).model
    second = add_checkpoint("tiny-a", [released(tmp_path, "second.pth", -WEIGHT)], folder, uri).model
    (second.weights / "weights.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="has 0 bytes"):
        promote("tiny-a@2", folder, uri)
    assert find_version("tiny-a", folder, uri) == first


NONSENSE: dict[str, Mapping[str, Any]] = {
    "one stranger": {"weight": torch.ones(3, 3)},
    "nested stranger": {"state_dict": {"module.weight": torch.ones(3, 3)}, "epoch": 3},
    "no tensors": {"epoch": 3, "lr": 0.1},
    "numbered": {"state_dict": {0: torch.ones(2)}},
    "empty nest": {"state_dict": {}},
    "optimiser": {"state": {}, "param_groups": [{"lr": 0.1}]},
    "nest of None": {"state_dict": None, "model": None, "params": None, "params_ema": None},
}


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.parametrize("spec", table.SPECS, ids=lambda spec: spec.name)
def test_every_model_refuses_checkpoints_that_are_none_of_its(spec: ModelSpec, kind: str) -> None:
    with pytest.raises(CheckpointMismatch), torch.device("meta"):
        spec.build(spec.official(NONSENSE[kind]))
