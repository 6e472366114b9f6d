"""What the tests of the service share: the processed archive, as a copy that they may change."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from infra import prefect_server
from infra.catalog.database import Catalog
from infra.settings import Settings
from tests.homes import stand_alone


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
    settings = processed.model_copy(update={"home": home, "tracking_uri": f"sqlite:///{registry}"})
    with closing(Catalog(settings.catalog_url)) as catalog:
        stand_alone(catalog, settings)
    yield settings
    prefect_server.stop(home)  # which a run has started that some test began
