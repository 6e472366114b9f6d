"""`visage models register`, `show` and `promote`: what a person types, and what is said."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch

from models.recognition.lightcnn import LIGHTCNN_9, lightcnn_9
from tests.command import visage
from tests.tasks.tiny_models import left_in
from tests.web import Web


@pytest.fixture(autouse=True)
def home(tmp_path: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is installed yet."""
    (tmp_path / "home").mkdir()
    shutil.copyfile(empty_registry, tmp_path / "home" / "mlflow.db")
    monkeypatch.setenv("VISAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VISAGE_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path


def lightcnn(path: Path, seed: int = 0) -> Path:
    """A checkpoint as LightCNN's training code writes it, with weights of chance."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        own = lightcnn_9().state_dict()
    state_dict = {f"module.{key}": value for key, value in own.items()}
    state_dict |= {"module.fc2.weight": torch.zeros(9, 256), "module.fc2.bias": torch.zeros(9)}
    torch.save({"epoch": 80, "arch": "LightCNN", "state_dict": state_dict, "prec1": torch.tensor(0.9)}, path)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_released_file_is_registered_shown_and_replaced_by_promotion(home: Path, web: Web) -> None:
    path, better = lightcnn(home / "LightCNN_9.pth.tar"), lightcnn(home / "better.pth.tar", seed=1)
    web.put(path.name, path.read_bytes())
    url = web.url(path.name)
    first = visage("models", "register", "lightcnn-9", "--weights", url, "--sha256", digest(path), "--json")
    assert first.code == 0, first.err
    assert url in first.err  # its progress
    assert (first.json["version"], first.json["champion"], first.json["converted"]) == (1, True, True)
    assert first.json["origin"] == {"LightCNN_9.pth.tar": digest(path)}

    second = visage("models", "register", "lightcnn-9", "--weights", better)
    assert second.code == 0
    assert second.err == ""
    assert f"SHA-256 of better.pth.tar: {digest(better)}" in second.out
    assert "lightcnn-9@2. Not the champion: 'visage models promote lightcnn-9@2' makes it so" in second.out

    assert "lightcnn-9@2 is the champion now, instead of 1" in visage("models", "promote", "lightcnn-9@2").out
    versions = visage("models", "show", "lightcnn-9", "--json").json["versions"]
    assert [(v["version"], v["aliases"]) for v in versions] == [(1, []), (2, ["champion"])]
    assert versions[1]["origin"] == f"better.pth.tar sha256:{digest(better)}"
    listed = {row["name"]: row for row in visage("models", "list", "--json").json}
    assert (listed["lightcnn-9"]["champion"], listed["lightcnn-9"]["here"]) == (2, True)
    assert left_in(home / "weights") == ["lightcnn-9"]
    (home / "weights").rename(home / "elsewhere")  # of another machine that shares the registry
    listed = {row["name"]: row for row in visage("models", "list", "--json").json}
    assert (listed["lightcnn-9"]["champion"], listed["lightcnn-9"]["here"]) == (2, False)


def test_first_version_is_champion_and_told_how_to_be_used(home: Path) -> None:
    ended = visage("models", "register", "lightcnn-9", "--weights", lightcnn(home / "a.pth"))
    assert "Registered as lightcnn-9@1, the champion: used where VISAGE_EMBED_MODEL names lightcnn-9" in ended.out


def refusals(home: Path, web: Web) -> dict[str, tuple[str, str]]:
    """Sources that are not LightCNN-9's, each with what is said of it."""
    path = lightcnn(home / "LightCNN_9.pth.tar")
    web.put(path.name, path.read_bytes())
    web.put("page.pth", b"<!DOCTYPE html><title>Too many users have viewed this file</title>")
    (home / "folder").mkdir()
    (home / "empty.pth").touch()
    (home / "cut.pth").write_bytes(path.read_bytes()[:5_000_000])
    torch.save({"weight": torch.ones(3)}, home / "stranger.pth")
    torch.save(torch.nn.Linear(2, 2), home / "code.pth")
    return {
        "web page": (web.url("page.pth"), f"{web.url('page.pth')} is a web page, not weights"),
        "missing page": (web.url("none.pth"), "the server answers 404"),
        "broken off": (web.url(path.name, "short"), "the connection ended after"),
        "no such file": (str(home / "none.pth"), "there is no such file or folder"),
        "folder": (str(home / "folder"), "is a folder without array files"),
        "empty": (str(home / "empty.pth"), "is empty"),
        "truncated": (str(home / "cut.pth"), "cannot be read: damaged"),
        "wrong family": (
            str(home / "stranger.pth"),
            "The weights do not fit LightCNN (lightcnn_9): 20 missing: fc1.filter",
        ),
        "code": (str(home / "code.pth"), 'python -c "import torch; c = torch.load('),
        "no address": ("ftp://example.org/a.pth", "only http://, https:// and file:/// addresses can be fetched"),
    }


def test_every_refusal_is_one_clear_error_and_leaves_nothing_installed(home: Path, web: Web) -> None:
    for kind, (source, said) in refusals(home, web).items():
        ended = visage("models", "register", "lightcnn-9", "--weights", source)
        assert ended.code == 1, kind
        assert said in ended.err, kind
        assert "Traceback" not in ended.err, kind
        assert ended.out == "", kind
        assert left_in(home / "weights") == [], kind
    path = home / "LightCNN_9.pth.tar"
    wrong = visage("models", "register", "lightcnn-9", "--weights", path, "--sha256", "0" * 64)
    assert (wrong.code, "has SHA-256" in wrong.err, "Nothing was installed" in wrong.err) == (1, True, True)
    assert visage("models", "show", "lightcnn-9", "--json").json["versions"] == []


def test_file_of_another_variant_is_refused_by_the_keys_that_differ(home: Path) -> None:
    ended = visage("models", "register", "lightcnn-29v2", "--weights", lightcnn(home / "LightCNN_9.pth.tar"))
    assert ended.code == 1
    assert "The weights do not fit LightCNN (lightcnn_29v2)" in ended.err
    assert "unexpected: fc1.filter.bias" in ended.err


def test_names_that_are_none_are_told_without_a_trace(home: Path) -> None:
    for arguments, said in {
        ("register", "lightcnn", "--weights", "a.pth"): "no model is called 'lightcnn'. Did you mean lightcnn-",
        ("show", "lightcnn"): "no model is called 'lightcnn'",
        (
            "promote",
            "lightcnn-9@1",
        ): f"lightcnn-9 is not installed. Run 'visage models register lightcnn-9 --weights FILE_OR_URL'"
        f" with its checkpoint of {LIGHTCNN_9.source}",
        (
            "install",
            "--name",
            "lightcnn-9",
        ): "lightcnn-9: no weights in any package. Run 'visage models register lightcnn-9",
    }.items():
        ended = visage("models", *arguments)
        assert (ended.code, ended.err.count("Traceback")) == (1, 0)
        assert said in ended.err


def test_promotion_without_a_version_is_wrong_usage(home: Path) -> None:
    ended = visage("models", "promote", "lightcnn-9")
    assert ended.code == 2
    assert "write NAME@VERSION" in ended.err
