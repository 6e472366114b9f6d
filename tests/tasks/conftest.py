"""What the tests of installing and registering share: a tiny table, a registry and a folder for weights of their own."""

import shutil
from pathlib import Path

import pytest

from models import table
from tests.tasks.tiny_models import TinyTable, tiny_table


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyTable:
    (tmp_path / "wheels").mkdir()
    tiny = tiny_table(tmp_path / "wheels")
    monkeypatch.setattr(table, "MODELS", tiny.models)
    return tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def uri(empty_registry: Path, tmp_path: Path) -> str:
    shutil.copyfile(empty_registry, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"
