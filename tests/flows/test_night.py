"""A night's work from a folder or bucket to the catalog, with real photographs and real weights."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from sqlalchemy import func, select

from flows import night as steps
from flows.night import Night, night
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.queries import views
from infra.catalog.tables.schema import (
    Attribute,
    Content,
    Embedding,
    Face,
    Failure,
    Image,
    Restoration,
    Run,
    RunStatus,
)
from infra.catalog.work import nights
from infra.settings import Settings
from infra.storage import open_store
from tasks.identities import decisions
from tasks.model_version import NotInstalled
from tasks.nights.collections import move
from tasks.nights.status import status
from tasks.recipe import MEASURED_VERSION
from tests.catalogs import FreshUrl
from tests.hostile import Outcome, make_hostile_folder
from tests.portraits import jpeg, landscape, mirrored, pair, portrait, small_collection
from tests.runs import add, run

MEASURED = frozenset(attribute.name for attribute in MEASURED_VERSION.spec.attributes)


@pytest.fixture
def restoring(tmp_path: Path, weights_dir: Path, tracking_uri: str, migrated_sqlite: Path) -> Settings:
    """A machine with an empty catalog that restores faces, as it comes: half of a small night's work."""
    (tmp_path / "home").mkdir()
    shutil.copyfile(migrated_sqlite, tmp_path / "home" / "catalog.db")
    return Settings(home=tmp_path / "home", weights=weights_dir, tracking_uri=tracking_uri, engine="inline")


@pytest.fixture
def settings(restoring: Settings) -> Settings:
    """The same machine where no face is restored."""
    return restoring.model_copy(update={"restore_model": ""})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return small_collection(tmp_path / "photos")


def contents(settings: Settings) -> dict[str, list[Any]]:
    """All that a run leaves, without row ids and times: what must be equal however it came about."""
    catalog = Catalog(settings.catalog_url)
    with catalog.read() as session:
        faces = (
            select(Image.key, Face.ordinal, Face.x1, Face.y1, Face.score, Face.quality, Face.crop_key, Embedding.vector)
            .join(Content, Content.id == Image.content_id)
            .join(Face, Face.content_id == Content.id)
            .join(Embedding, Embedding.face_id == Face.id)
            .order_by(Image.key, Face.ordinal)
        )
        found: dict[str, list[Any]] = {
            "images": session.execute(select(Image.key, Image.status, Image.size).order_by(Image.key)).tuples().all(),
            "faces": [(*row[:-1], row[-1].tobytes()) for row in session.execute(faces)],
            "attributes": sorted(session.execute(select(Attribute.name, Attribute.value, Attribute.label)).tuples()),
            "restorations": sorted(session.execute(select(Restoration.crop_key, Restoration.fidelity)).tuples()),
        }
    catalog.close()
    return found


def objects(settings: Settings) -> set[str]:
    store = open_store(settings.crops_uri, settings.storage_options)
    return {entry.key for page in store.list() for entry in page}


def test_every_face_gets_its_row_vector_estimates_and_crop(settings: Settings, photos: Path) -> None:
    add(settings, photos)
    state = run(settings)
    assert (state.tally.images, state.tally.faces, state.tally.shared) == (5, 4, 1)
    catalog = Catalog(settings.catalog_url)
    with catalog.read() as session:
        faces = views.faces(session, "archive", None, 0.0, 10)
        assert nights.runs(session, 1)[0].status == RunStatus.DONE
    assert sorted(key for face in faces for key in face.keys) == [
        "a.jpg", "b.jpg", "c/pair.jpg", "c/pair.jpg", "z_copy_of_a.jpg",
    ]  # fmt: skip
    assert {attribute.name for face in faces for attribute in face.attributes} == {"expression", *MEASURED}
    assert {face.crop_key for face in faces} <= objects(settings)


@pytest.mark.slow
def test_a_night_leaves_the_same_in_postgresql_as_in_sqlite(
    processed: Settings, fresh_catalog_url: FreshUrl, tmp_path: Path
) -> None:
    on_server = processed.model_copy(update={"home": tmp_path, "database_url": fresh_catalog_url("postgresql")})
    add(on_server, processed.home.parent / "photos")
    run(on_server)
    assert contents(on_server) == contents(processed)
    assert objects(on_server) == objects(processed)
    again = run(on_server)
    assert (again.tally.images, again.discovery.unchanged) == (0, 7)
    with Catalog(on_server.catalog_url).read() as session:
        assert [run.status for run in nights.runs(session, 2)] == ["done_with_failures"] * 2
        assert len(views.failures(session, "archive", None, 10)) == 2
        assert sum(person.faces for person in views.identities(session, 1, 10)) == 4


def test_boxes_are_in_pixels_of_the_upright_original(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "turned"
    folder.mkdir()
    large = PillowImage.fromarray(portrait(2000))  # larger than what is detected on
    large.save(folder / "upright.jpg", quality=95)
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    large.transpose(PillowImage.Transpose.ROTATE_90).save(folder / "turned.jpg", quality=95, exif=exif)
    add(settings, folder)
    run(settings)
    with Catalog(settings.catalog_url).read() as session:
        turned, upright = sorted(views.faces(session, None, None, 0.0, 10), key=lambda face: face.keys)
    assert turned.box == pytest.approx(upright.box, abs=8)  # of 2,000 pixels, after another JPEG encoding
    x1, y1, x2, y2 = upright.box
    assert x1 < 850 < x2  # her face is left of the middle of the upper half
    assert y1 < 450 < y2


def test_a_second_run_processes_nothing_loads_no_model_and_reads_no_image(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(settings, photos)
    run(settings)
    before = contents(settings)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("an unchanged collection must not get here")

    monkeypatch.setattr("infra.weights.load", forbidden)
    monkeypatch.setattr("infra.storage.folder.Folder.read", forbidden)
    state = run(settings)
    assert (state.discovery.unchanged, state.tally.images, state.engine) == (5, 0, "none")
    assert contents(settings) == before


def test_changed_and_removed_photos_change_the_catalog_and_leave_no_orphans(restoring: Settings, photos: Path) -> None:
    add(restoring, photos)
    run(restoring)
    (photos / "b.jpg").write_bytes(jpeg(landscape(200)))
    (photos / "c" / "pair.jpg").unlink()
    state = run(restoring)
    assert (state.discovery.changed, state.discovery.missing, state.tally.images) == (1, 1, 1)
    with Catalog(restoring.catalog_url).read() as session:
        assert {key for face in views.faces(session, None, None, 0.0, 10) for key in face.keys} == {
            "a.jpg", "z_copy_of_a.jpg",
        }  # fmt: skip
        assert dict(session.execute(select(Image.key, Image.status)).tuples().all()) == {
            "a.jpg": "done", "b.jpg": "done", "c/pair.jpg": "missing", "d.jpg": "done", "z_copy_of_a.jpg": "done",
        }  # fmt: skip
        kept = set(session.scalars(select(Face.crop_key))) | set(session.scalars(select(Restoration.crop_key)))
    assert objects(restoring) == kept


def test_a_photo_replaced_by_a_broken_file_keeps_no_face(restoring: Settings, photos: Path) -> None:
    add(restoring, photos)
    run(restoring)
    (photos / "b.jpg").write_bytes(b"\xff\xd8\xff broken off")
    state = run(restoring)
    assert state.failed_images == 1
    with Catalog(restoring.catalog_url).read() as session:
        assert "b.jpg" not in {key for face in views.faces(session, None, None, 0.0, 10) for key in face.keys}
        kept = set(session.scalars(select(Face.crop_key))) | set(session.scalars(select(Restoration.crop_key)))
    assert objects(restoring) == kept


def shown(settings: Settings) -> list[tuple[Any, ...]]:
    """Who is seen where: keys, name, and whether the face is passed over."""
    with Catalog(settings.catalog_url).read() as session:
        faces = views.faces(session, None, None, 0.0, 10)
    return sorted((*face.keys, face.identity_name or "", face.identity_id is None) for face in faces)


def test_what_people_decided_outlives_rewritten_and_half_copied_files(restoring: Settings, photos: Path) -> None:
    asymmetric = pair()[:, 40:]  # of exact symmetry a perceptual hash knows little
    (photos / "c" / "pair.jpg").write_bytes(jpeg(asymmetric))
    add(restoring, photos)
    run(restoring)
    catalog = Catalog(restoring.catalog_url)
    with catalog.write() as session:
        faces = {face.keys[0]: face for face in views.faces(session, None, None, 0.0, 10)}
        decisions.ignore(session, "curator", [faces["c/pair.jpg"].face_id])
        decisions.name(session, "curator", faces["b.jpg"].identity_id or 0, "Eileen")
        decisions.confirm(session, "curator", [faces["b.jpg"].face_id])
        first_found = session.scalar(select(func.max(Face.found_at)))
    before = shown(restoring)
    assert ("b.jpg", "Eileen", False) in before
    assert ("c/pair.jpg", "", True) in before
    for photo in photos.rglob("*.jpg"):
        whole = photo.read_bytes()
        photo.write_bytes(whole[:2] + b"\xff\xfe\x00\x0akeyword!" + whole[2:])
    run(restoring)
    assert shown(restoring) == before
    with catalog.read() as session:
        assert session.scalar(select(func.max(Face.found_at))) == first_found  # from when retention counts
    decided = {photo: photo.read_bytes() for photo in (photos / "b.jpg", photos / "c" / "pair.jpg")}
    for repair in (bytes, smaller):
        for photo, whole in decided.items():
            photo.write_bytes(whole[: len(whole) // 2])
        assert run(restoring).failed_images == 2
        assert not {"b.jpg", "c/pair.jpg"} & {row[0] for row in shown(restoring)}
        for photo, whole in decided.items():
            photo.write_bytes(repair(whole))
        run(restoring)
        assert shown(restoring) == before
    with catalog.read() as session:
        assert [len(decision.faces) for decision in decisions.history(session)] == [1, 0, 1]
        kept = set(session.scalars(select(Face.crop_key))) | set(session.scalars(select(Restoration.crop_key)))
    assert objects(restoring) == kept


def smaller(picture: bytes) -> bytes:
    """The same picture at three quarters of the size."""
    image = PillowImage.open(io.BytesIO(picture))
    return jpeg(np.asarray(image.resize((image.width * 3 // 4, image.height * 3 // 4))))


def test_sensitive_attributes_are_computed_only_where_switched_on(settings: Settings, photos: Path) -> None:
    add(settings, photos, sensitive=["age"])
    run(settings)
    with Catalog(settings.catalog_url).read() as session:
        assert set(session.scalars(select(Attribute.name))) == {"expression", "age", *MEASURED}
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        collections.by_name(session, "archive").sensitive_attributes = []
    state = run(settings)
    assert state.tally.images == 5  # another recipe: done again
    with Catalog(settings.catalog_url).read() as session:
        assert set(session.scalars(select(Attribute.name))) == {"expression", *MEASURED}


def test_hostile_files_end_as_images_or_failures_and_nothing_is_lost(settings: Settings, tmp_path: Path) -> None:
    expected = make_hostile_folder(tmp_path / "hostile")
    assert sum(e.outcome in (Outcome.PROCESSED, Outcome.FAILED) for e in expected.values()) >= 40
    (tmp_path / "hostile" / "zzz.jpg").write_bytes(jpeg(portrait()))
    add(settings, tmp_path / "hostile")
    state = run(settings)
    with Catalog(settings.catalog_url).read() as session:
        statuses = dict(session.execute(select(Image.key, Image.status)).tuples().all())
        failed = {
            key: (stage, reason)
            for key, stage, reason in session.execute(select(Failure.key, Failure.stage, Failure.reason)).tuples()
        }
        assert nights.runs(session, 1)[0].status == RunStatus.DONE_WITH_FAILURES
    assert statuses.pop("zzz.jpg") == "done"
    for key, expectation in expected.items():
        match expectation.outcome:
            case Outcome.PROCESSED:
                assert statuses.pop(key) == "done", key
            case Outcome.FAILED:
                assert statuses.pop(key) == "failed", key
                assert failed.pop(key)[1] == expectation.reason, key
            case Outcome.UNLISTABLE:
                assert failed.pop(key)[0] == "discover", key
    assert (statuses, failed) == ({}, {})
    assert state.tally.images == sum(e.outcome in (Outcome.PROCESSED, Outcome.FAILED) for e in expected.values()) + 1


def test_every_copy_of_a_broken_file_is_named_in_its_own_failure(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"\xff\xd8\xff not a picture")
    add(settings, folder)
    assert sum(run(settings).counts()["failed"].values()) == 2
    with Catalog(settings.catalog_url).read() as session:
        assert status(session).collections[0].problems == ("run 1 left 2 images unprocessed",)
        failures = {failure.key: failure.message for failure in views.failures(session, "archive", None, 10)}
    for name in ("a.jpg", "b.jpg"):
        assert failures[name].startswith(f"{folder}/{name}: ")
    assert failures["a.jpg"].partition(": ")[2] == failures["b.jpg"].partition(": ")[2]


def test_a_night_that_cannot_begin_is_a_failed_one(
    settings: Settings, photos: Path, empty_registry: Path, tmp_path: Path
) -> None:
    add(settings, photos)
    shutil.copyfile(empty_registry, tmp_path / "empty.db")
    without_models = settings.model_copy(update={"tracking_uri": f"sqlite:///{tmp_path / 'empty.db'}"})
    with pytest.raises(NotInstalled):
        run(without_models)
    with Catalog(settings.catalog_url).read() as session:
        [problem] = status(session).collections[0].problems
    assert problem.startswith("run 1 failed: NotInstalled: ")
    assert "is not installed" in problem


def test_a_collection_whose_folder_has_a_name_that_is_no_utf8_is_processed(settings: Settings, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(portrait(200)))
    (folder / "b.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    add(settings, open_store(str(folder)).uri)
    assert run(settings).tally.faces == 1
    with Catalog(settings.catalog_url).read() as session:
        (failure,) = views.failures(session, "archive", None, 10)
    assert failure.message.startswith(f"file://{tmp_path}/caf%E9/b.jpg: ")


def test_an_interrupted_run_records_the_engine_it_used(settings: Settings, photos: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def interrupted() -> None:
        with night(settings, "archive") as state:
            steps.discover_images(state)
            steps.process_images(state, interrupt)

    add(settings, photos)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with Catalog(settings.catalog_url).read() as session:
        (latest,) = nights.runs(session, 1)
    assert (latest.error, latest.counts["engine"]) == ("interrupted", "inline")


def test_a_photo_that_vanishes_between_listing_and_reading_is_a_failure(settings: Settings, photos: Path) -> None:
    add(settings, photos)
    with night(settings, "archive") as state:
        steps.discover_images(state)
        (photos / "b.jpg").unlink()
        steps.process_images(state)
        steps.audit_catalog(state)
    with Catalog(settings.catalog_url).read() as session:
        [failure] = views.failures(session, "archive", None, 10)
    assert (failure.key, failure.stage, failure.reason) == ("b.jpg", "read", "object_missing")
    state = run(settings)
    assert state.discovery.missing == 1


def test_one_face_that_breaks_a_model_fails_alone(
    settings: Settings, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import embed  # noqa: PLC0415

    whole = embed.Embed._embed

    def broken(self: Any, batch: Any) -> Any:
        if any(photo.key == "b.jpg" for photo in batch):
            raise RuntimeError("no such luck")
        return whole(self, batch)

    monkeypatch.setattr(embed.Embed, "_embed", broken)
    add(settings, photos)
    state = run(settings)
    assert dict(state.tally.failures) == {"embed: error": 1}
    monkeypatch.undo()
    state = run(settings)  # a passing failure is taken up again
    assert (state.tally.images, state.failed_images) == (1, 0)
    with Catalog(settings.catalog_url).read() as session:
        assert views.failures(session, "archive", None, 10) == []


def test_audit_fails_the_run_loudly(settings: Settings, photos: Path) -> None:
    def lose_one_embedding(state: Night) -> None:
        with state.catalog.write() as session:
            session.delete(session.scalars(select(Embedding).limit(1)).one())

    add(settings, photos)
    with pytest.raises(steps.AuditFailed, match="1 faces without an embedding"):
        run(settings, after_processing=lose_one_embedding)
    with Catalog(settings.catalog_url).read() as session:
        latest = nights.runs(session, 1)[0]
    assert latest.status == RunStatus.FAILED
    assert "without an embedding" in (latest.error or "")


@pytest.mark.slow
def test_both_engines_leave_the_same_rows_and_objects(restoring: Settings, photos: Path, tmp_path: Path) -> None:
    for i in range(12):
        (photos / f"more_{i:02}.jpg").write_bytes(jpeg(mirrored(300 + 4 * i)))
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    add(restoring, photos)
    run(restoring)
    with_ray = restoring.model_copy(update={"home": tmp_path / "other home", "engine": "ray"})
    add(with_ray, photos)
    state = run(with_ray)
    assert state.engine == "ray"
    left, right = contents(restoring), contents(with_ray)
    assert left["images"] == right["images"]
    assert [row[:2] for row in left["faces"]] == [row[:2] for row in right["faces"]]
    numbers = [np.array([row[2:6] for row in rows["faces"]]) for rows in (left, right)]
    np.testing.assert_allclose(*numbers, atol=1e-2)  # boxes in pixels, score, quality; one thread or two, other batches
    assert objects(restoring) == objects(with_ray)


RUN = """
import sys
from pathlib import Path
from infra.settings import load_settings
from flows import night as steps
from flows.night import night
with night(load_settings(), "archive") as state:
    steps.discover_images(state)
    steps.process_images(state)
    steps.audit_catalog(state)
"""


@pytest.fixture
def environment(restoring: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "VISAGE_HOME": str(restoring.home),
        "VISAGE_WEIGHTS": str(restoring.weights),
        "VISAGE_TRACKING_URI": restoring.tracking_uri,
        "VISAGE_ENGINE": "inline",
    }


@pytest.mark.long
def test_killed_run_resumes_without_duplicates(
    restoring: Settings, photos: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    for i in range(59):
        (photos / f"more_{i:02}.jpg").write_bytes(jpeg(mirrored(300 + 2 * i)))
    undisturbed = restoring.model_copy(update={"home": tmp_path / "undisturbed"})
    add(undisturbed, photos)
    run(undisturbed)
    add(restoring, photos)
    catalog = Catalog(restoring.catalog_url)
    with subprocess.Popen([sys.executable, "-c", RUN], env=environment) as process:
        recorded = 0
        while not recorded:
            assert process.poll() is None, "it ended before anything was recorded"
            time.sleep(0.02)
            with catalog.read() as session:
                recorded = session.scalar(select(func.count()).where(Image.status == "done")) or 0
        process.send_signal(signal.SIGKILL)
    catalog.close()
    state = run(restoring)
    assert 0 < state.tally.images < 64
    with Catalog(restoring.catalog_url).read() as session:
        assert list(session.scalars(select(Run.status).order_by(Run.id))) == ["crashed", "done"]
    left, right = contents(undisturbed), contents(restoring)
    assert [row[:2] for row in left["faces"]] == [row[:2] for row in right["faces"]]
    assert left["images"] == right["images"]
    assert objects(restoring) == objects(undisturbed)


def test_photographs_that_moved_are_read_once_and_only_changed_bytes_are_processed(
    settings: Settings, photos: Path
) -> None:
    add(settings, photos)
    run(settings)
    catalog = Catalog(settings.catalog_url)
    with catalog.read() as session:
        before = session.execute(select(Face.id, Face.found_at, Face.crop_key).order_by(Face.id)).tuples().all()
    elsewhere = shutil.copytree(photos, photos.with_name("elsewhere"), copy_function=shutil.copyfile)
    shutil.rmtree(photos)
    (elsewhere / "b.jpg").write_bytes(jpeg(portrait(500)))
    moved = move(catalog, settings, "archive", str(elsewhere))
    assert (moved.found, moved.missing, moved.new) == (5, 0, 0)
    first, second = run(settings), run(settings)
    assert (first.discovery.changed, first.discovery.missing) == (5, 0)
    assert (first.tally.images, first.tally.shared, first.tally.faces) == (5, 4, 1)
    assert (second.discovery.unchanged, second.tally.images) == (5, 0)
    with catalog.read() as session:
        after = session.execute(select(Face.id, Face.found_at, Face.crop_key).order_by(Face.id)).tuples().all()
    assert len(set(before) & set(after)) == 3
    assert len(after) == len(before) == 4
    catalog.close()
