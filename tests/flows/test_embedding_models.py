"""The settings name the embedding model: another one makes vectors of its own beside the old, and queries switch."""

import shutil
from pathlib import Path

import pytest
import torch
from sqlalchemy import select

from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Embedding, ModelVersion
from infra.catalog.versioning.versions import serving
from infra.registry import CHAMPION, Registry
from infra.settings import Settings
from models.recognition.lightcnn import lightcnn_9
from tasks.model_version import find_version
from tasks.search import search_photo
from tasks.versioning.register import add_checkpoint
from tests.portraits import small_collection
from tests.runs import add, run


@pytest.fixture
def machine(machine: Settings) -> Settings:
    """The machine where no face is restored: that is half of a small night's work."""
    return machine.model_copy(update={"restore_model": ""})


@pytest.fixture
def photos(machine: Settings, tmp_path: Path) -> Path:
    folder = small_collection(tmp_path / "photos")
    add(machine, folder)
    return folder


def embeddings(settings: Settings) -> dict[str, list[int]]:
    """The lengths of the stored vectors by model, in numbers of 4 bytes."""
    found: dict[str, list[int]] = {}
    with Catalog(settings.catalog_url).read() as session:
        rows = select(ModelVersion.name, Embedding.vector).join(
            Embedding, Embedding.model_version_id == ModelVersion.id
        )
        for name, vector in session.execute(rows):
            found.setdefault(name, []).append(len(vector.tobytes()) // 4)
    return found


def answers(settings: Settings, photo: Path) -> tuple[str, str, set[str]]:
    """Who serves, who was asked, and where the faces were found."""
    with Catalog(settings.catalog_url).read() as session:
        row = serving(session)
        assert row is not None
        [answer] = search_photo(session, settings, photo, limit=10)
        keys = {key for match in answer.matches for key in match.face.keys}
        return f"{row.name} {row.dimension}", answer.model, keys


def test_another_embedding_model_is_used_by_name_and_the_first_one_again(machine: Settings, photos: Path) -> None:
    other = machine.model_copy(update={"embed_model": "lightcnn-9"})
    everywhere = {"a.jpg", "b.jpg", "c/pair.jpg", "z_copy_of_a.jpg"}
    for settings, name, dimension in [
        (machine, "dlib-resnet", 128),
        (other, "lightcnn-9", 256),
        (machine, "dlib-resnet", 128),
    ]:
        state = run(settings)
        assert state.tally.images == 5
        assert embeddings(settings)[name] == [dimension] * 4
        assert answers(settings, photos / "a.jpg") == (f"{name} {dimension}", f"{name}@1", everywhere)
    assert embeddings(machine) == {"dlib-resnet": [128] * 4, "lightcnn-9": [256] * 4}
    assert run(machine).tally.images == 0


def test_search_asks_the_version_that_made_the_catalog_until_the_next_run(
    machine: Settings, photos: Path, tmp_path: Path, two_embedders: Path
) -> None:
    shutil.copytree(two_embedders / "weights", tmp_path / "weights", symlinks=True)
    own = machine.model_copy(update={"weights": tmp_path / "weights", "embed_model": "lightcnn-9"})
    run(own)
    torch.save(lightcnn_9().state_dict(), tmp_path / "newer.pth")
    newer = add_checkpoint("lightcnn-9", [tmp_path / "newer.pth"], own.weights_folder, own.mlflow_uri)
    Registry(own.mlflow_uri).point("lightcnn-9", CHAMPION, newer.model.version)
    assert answers(own, photos / "a.jpg")[1] == "lightcnn-9@1"
    assert run(own).tally.images == 5
    assert answers(own, photos / "a.jpg")[1] == "lightcnn-9@2"
    assert find_version("lightcnn-9", own.weights_folder, own.mlflow_uri) == newer.model
