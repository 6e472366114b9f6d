"""A small collection that was processed once, with real photographs and weights: to be asked about, not to be changed."""

import os
from pathlib import Path

import pytest
from sqlalchemy import update

from flows import night as steps
from flows.night import night
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import ModelVersion
from infra.settings import PREFIX, Settings, load_settings
from infra.storage.base import LITTER
from tasks.calibration import Calibration, Thresholds
from tests.portraits import small_collection

BROKEN = ("<script>alert(1).jpg", "[bold]\x1b[31mred\n:smile:.jpg")  # names that files may have


def calibration(contract: str) -> Calibration:
    """How to read similarities of dlib's network, roughly."""
    thresholds = Thresholds(far_1e_1=0.86, far_1e_2=0.91, far_1e_3=0.94, accuracy=0.91)
    return Calibration(
        contract=contract,
        thresholds=thresholds,
        slope=80.0,
        offset=-72.0,
        source="a guess",
        same_pairs=10,
        different_pairs=10,
    )


@pytest.fixture(scope="session")
def processed(tmp_path_factory: pytest.TempPathFactory, weights_dir: Path, tracking_uri: str) -> Settings:
    """Return the settings of a home whose catalog knows the collection `archive`: 4 faces of one person in 3 photos.

    One face is restored, one photo has a copy, one has no face, and two files are broken, with names that look like code.
    """
    folder = tmp_path_factory.mktemp("archive")
    photos = small_collection(folder / "photos")
    for name in BROKEN:
        (photos / name).write_bytes(b"\xff\xd8\xff no picture: " + name.encode())
    settings = Settings(home=folder / "home", weights=weights_dir, tracking_uri=tracking_uri, engine="inline")
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        collections.add(session, "archive", str(photos), [], list(LITTER), [])
    with night(settings, "archive") as state:
        embedder = state.job.recipe.embedder
        with catalog.write() as session:
            curve = calibration(embedder.contract).model_dump(mode="json")
            session.execute(
                update(ModelVersion).where(ModelVersion.contract == embedder.contract).values(calibration=curve)
            )
        steps.discover_images(state)
        steps.process_images(state)
        steps.group_faces(state)
        steps.audit_catalog(state)
    catalog.close()
    return settings


@pytest.fixture
def archive(processed: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return the settings of `processed`, which are the environment's as well."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    for name in ("home", "weights", "tracking_uri", "engine"):
        monkeypatch.setenv(f"{PREFIX}{name.upper()}", str(getattr(processed, name)))
    return load_settings()
