"""What the tests of the service share: the processed archive, as a copy that they may change."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import prefect_server
from infra.settings import Settings


@pytest.fixture(scope="module")
def own(
    processed: Settings, tmp_path_factory: pytest.TempPathFactory, with_prefect_database: Callable[[Path], None]
) -> Iterator[Settings]:
    """Return the settings of a copy of `processed`, with a registry of its own."""
    home = tmp_path_factory.mktemp("own") / "home"
    shutil.copytree(Path(processed.home), home)
    with_prefect_database(home)
    registry = home.with_name("mlflow.db")
    shutil.copyfile(processed.mlflow_uri.removeprefix("sqlite:///"), registry)
    yield processed.model_copy(update={"home": home, "tracking_uri": f"sqlite:///{registry}"})
    prefect_server.stop(home)  # which a run has started that some test began
