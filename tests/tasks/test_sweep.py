"""After a night that went wrong, crops that no row refers to are removed, and no others."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, update

from infra.catalog import collections, images
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Content, Face, Image, ModelVersion, Run, RunStatus
from infra.catalog.work.key_range import KeyRange
from infra.catalog.work.runs import before, close_run, open_run
from infra.settings import Settings
from infra.storage import Folder
from tasks.nights.sweep import sweep
from tasks.pipeline import engine_for

DIGESTS = {"a.jpg": "a" * 64, "b.jpg": "b" * 64}


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    """A catalog with two photographs, of which `a.jpg` has a face with a crop."""
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    with catalog.write() as session:
        collection = collections.add(session, "archive", "/photos", [], [], [])
        when = datetime(2026, 1, 1, tzinfo=UTC)
        images.put_pending(session, collection.id, [images.Listed(key, "1", 10, when) for key in DIGESTS])
        session.add(
            ModelVersion(
                name="m", version=1, role="detect", contract="c", contract_content={}, weights_sha256="", licence=""
            )
        )
    yield catalog
    catalog.close()


@pytest.fixture
def crops(tmp_path: Path) -> Folder:
    store = Folder(tmp_path / "crops")
    for digest in DIGESTS.values():
        for name in ("c-0.jpg", "c-0-restorer.png", ".visage-0123.part"):
            store.put(f"1/{digest[:2]}/{digest}/{name}", b"crop", "image/jpeg")
    store.put("1/readme.txt", b"of somebody else", "text/plain")
    store.put(f"2/aa/{'a' * 64}/c-0.jpg", b"of another collection", "image/jpeg")
    return store


def claim(catalog: Catalog, keys: KeyRange, *names: str) -> int:
    """Let a run claim photographs; returns its id."""
    with catalog.write() as session:
        run = open_run(session, 1, "recipe", keys)
        ids = dict(session.execute(select(Image.key, Image.id)).tuples().all())
        images.claim(session, 1, run.id, "recipe", [(ids[name], DIGESTS[name]) for name in names])
        return run.id


def objects(crops: Folder) -> set[str]:
    return {entry.key for page in crops.list() for entry in page}


def test_only_what_no_row_refers_to_is_swept(catalog: Catalog, crops: Folder) -> None:
    run = claim(catalog, KeyRange(), *DIGESTS)
    kept = f"1/aa/{'a' * 64}/c-0.jpg"
    with catalog.write() as session:
        content = session.scalars(select(Content.id).where(Content.sha256 == DIGESTS["a.jpg"])).one()
        nothing = {"x1": 0, "y1": 0, "x2": 1, "y2": 1, "score": 1, "quality": 1, "quality_parts": {}, "ordinal": 0}
        landmarks = np.zeros(10, np.float32)
        session.add(Face(content_id=content, detector_id=1, crop_key=kept, landmarks=landmarks, **nothing))
    assert sweep(catalog, crops, 1, run) == 5
    assert objects(crops) == {kept, "1/readme.txt", f"2/aa/{'a' * 64}/c-0.jpg"}
    assert sweep(catalog, crops, 1, run) == 0


def test_crops_that_another_run_is_about_to_refer_to_are_spared(catalog: Catalog, crops: Folder) -> None:
    mine = claim(catalog, KeyRange(None, "a.jpg"), "a.jpg")
    claim(catalog, KeyRange("a.jpg", None), "b.jpg")
    assert sweep(catalog, crops, 1, mine) == 3
    assert {key for key in objects(crops) if key.startswith("1/bb")} == {
        f"1/bb/{'b' * 64}/{name}" for name in ("c-0.jpg", "c-0-restorer.png", ".visage-0123.part")
    }


def test_where_no_crop_was_ever_written_there_is_nothing_to_sweep(catalog: Catalog, tmp_path: Path) -> None:
    assert sweep(catalog, Folder(tmp_path / "nowhere"), 1, 1) == 0


def test_a_run_knows_how_those_before_it_ended(catalog: Catalog) -> None:
    ends = [RunStatus.DONE, RunStatus.CRASHED, RunStatus.CRASHED, RunStatus.FAILED, RunStatus.DONE_WITH_FAILURES]
    seen = []
    for end in ends:
        with catalog.write() as session:
            run = open_run(session, 1, "recipe")
            seen.append(before(session, run))
            close_run(session, run.id, RunStatus.DONE, {})
            session.execute(update(Run).where(Run.id == run.id).values(status=end.value))
    assert [(b.well, b.crashes) for b in seen] == [(True, 0), (True, 0), (False, 1), (False, 2), (False, 0)]


def test_after_two_crashes_the_work_is_done_in_processes_of_their_own() -> None:
    settings = Settings(engine="auto", ray_from_images=100)
    assert [engine_for(settings, count, crashes) for count, crashes in ((0, 5), (1, 1), (1, 2), (100, 0))] == [
        "none", "inline", "ray", "ray",
    ]  # fmt: skip
    assert engine_for(settings.model_copy(update={"engine": "inline"}), 1000, 5) == "inline"
