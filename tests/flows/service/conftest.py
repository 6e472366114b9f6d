"""What the tests of the service share: the processed archive, as a copy that they may change."""

import shutil
from pathlib import Path

import pytest

from infra.settings import Settings


@pytest.fixture(scope="module")
def own(processed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return the settings of a copy of `processed`, with a registry of its own."""
    home = tmp_path_factory.mktemp("own") / "home"
    shutil.copytree(Path(processed.home), home)
    registry = home.with_name("mlflow.db")
    shutil.copyfile(processed.mlflow_uri.removeprefix("sqlite:///"), registry)
    return processed.model_copy(update={"home": home, "tracking_uri": f"sqlite:///{registry}"})
