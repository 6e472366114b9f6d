"""What the tests of the service share: the processed archive, as a copy that they may change."""

import shutil
from pathlib import Path

import pytest

from infra.settings import Settings


@pytest.fixture(scope="module")
def own(processed: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return the settings of a copy of `processed`."""
    home = tmp_path_factory.mktemp("own") / "home"
    shutil.copytree(Path(processed.home), home)
    return processed.model_copy(update={"home": home})
