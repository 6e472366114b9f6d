"""What the stages found lands in the catalog and beside it: whole, once, and without leftovers."""

import io
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from sqlalchemy import event, select

from infra.catalog import collections, images
from infra.catalog.custody.erasing import forget_faces
from infra.catalog.database import Catalog
from infra.catalog.queries import views
from infra.catalog.tables.schema import Attribute, Base, Content, Embedding, Face, Failure, Image, Restoration
from infra.catalog.work import runs
from infra.settings import Settings
from infra.storage import Folder
from tasks.assess import EYE_DISTANCE
from tasks.embedding_decision import TAG, Decision, SizeDecision
from tasks.job import Job
from tasks.photo_faces import (
    BOXES,
    EMBEDDING,
    FIDELITY,
    IDENTITY_SIMILARITY,
    LANDMARKS,
    PORTRAIT,
    QUALITY,
    REPEATED,
    RESTORED,
    RESTORED_EMBEDDING,
    RESTORED_FACES,
    RESTORED_SHARPNESS,
    SCORES,
    PhotoFaces,
    estimate,
    quality_part,
)
from tasks.recipe import MEASURED_VERSION, Recipe, current_recipe, enter
from tasks.record import crop_writers, record
from tasks.restore import MIN_FIDELITY
from tests.portraits import portrait

KEYS = ("a.jpg", "b.jpg", "c.jpg")
SAID = ("value", "confidence")
DESCRIBER = "the describer's contract"  # which only the place knows


@pytest.fixture(scope="module")
def recipe(weights_dir: Path, tracking_uri: str) -> Recipe:
    return current_recipe(Settings(weights=weights_dir, tracking_uri=tracking_uri), frozenset())


@dataclass
class Place:
    """A catalog with three pending images in the hands of a run, and a folder for crops."""

    catalog: Catalog
    crops: Folder
    job: Job

    def record(self, *photos: PhotoFaces) -> None:
        contract = self.job.recipe.describers[0].contract
        named = [
            replace(photo, arrays={name.replace(DESCRIBER, contract): rows for name, rows in photo.arrays.items()})
            for photo in photos
        ]
        with crop_writers() as writers:
            record(self.catalog, self.crops, self.job, named, writers)

    def rows(self, *entities: type[Base]) -> dict[str, list[tuple[Any, ...]]]:
        with self.catalog.read() as session:
            return {
                entity.__tablename__: [
                    tuple(v.tobytes() if isinstance(v, np.ndarray) else v for v in row)
                    for row in session.execute(
                        select(entity.__table__).order_by(*entity.__table__.primary_key)
                    ).tuples()
                ]
                for entity in entities
            }

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        return self.rows(Face, Embedding, Restoration, Attribute, Content, Image)

    def objects(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.crops.root)): path.read_bytes()
            for path in self.crops.root.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def place(tmp_path: Path, recipe: Recipe, catalog: Catalog) -> Place:
    settings = Settings(home=tmp_path, database_url=catalog.url)
    with catalog.write() as session:
        collection = collections.add(session, "archive", "/photos", [], [], [])
        listed = [images.Listed(key, "1", 10, datetime(2026, 1, 1, tzinfo=UTC)) for key in KEYS]
        images.put_pending(session, collection.id, listed)
        run = runs.open_run(session, collection.id, recipe.digest)
        contract = enter(session, recipe)
        ids = dict(session.execute(select(Image.key, Image.id)).tuples().all())
        images.claim(session, collection.id, run.id, recipe.digest, [(ids[key], sha256(key)) for key in KEYS])
    return Place(
        catalog, Folder(tmp_path / "crops"), Job(settings, 1, "/photos", run.id, recipe, contract, "cpu", 0.93)
    )


def sha256(key: str) -> str:
    return key[0] * 64


def found(key: str, faces: int, restored: tuple[int, ...] = (), fidelity: float = 30.0) -> PhotoFaces:
    """A photo as it comes out of the last stage, of so many faces, of which some were restored."""
    number = KEYS.index(key) + 1
    columns = np.arange(faces, dtype=np.float32)
    some = np.ones(faces, np.float32)
    crops = np.stack([portrait(256)] * faces) if faces else np.zeros((0, 256, 256, 3), np.uint8)
    arrays = {
        BOXES: columns[:, None] + np.array([1, 2, 30, 40], np.float32),
        LANDMARKS: np.zeros((faces, 5, 2), np.float32),
        SCORES: some * 0.99,
        QUALITY: some * 0.7,
        quality_part("sharpness"): some * 0.123456,
        PORTRAIT: crops,
        EMBEDDING: np.eye(128, dtype=np.float32)[:faces],
        **{
            estimate(MEASURED_VERSION.contract, a.name, w): some for a in MEASURED_VERSION.spec.attributes for w in SAID
        },
        EYE_DISTANCE: some * 20,
        estimate(DESCRIBER, "expression", "value"): some * 3,
        estimate(DESCRIBER, "expression", "confidence"): some * 0.8,
        estimate(DESCRIBER, "expression", "probabilities"): np.full((faces, 7), 1 / 7, np.float32),
    }
    if restored:
        arrays |= {
            RESTORED_FACES: np.array(restored),
            RESTORED: np.stack([portrait(384)] * len(restored)),
            FIDELITY: np.full(len(restored), fidelity, np.float32),
            IDENTITY_SIMILARITY: np.full(len(restored), 0.95, np.float32),
            RESTORED_SHARPNESS: np.full(len(restored), 0.5, np.float32),
            REPEATED: np.ones(len(restored), bool),
            RESTORED_EMBEDDING: np.eye(128, dtype=np.float32)[::-1][: len(restored)],
        }
    return PhotoFaces(
        number, key, 10, content_id=number, sha256=sha256(key), format="JPEG", width=300, height=200, arrays=arrays
    )


def test_a_photo_lands_with_its_faces_vectors_estimates_and_crops(place: Place) -> None:
    place.record(found("a.jpg", 2, restored=(1,)), found("b.jpg", 0))
    with place.catalog.read() as session:
        first, second = views.faces(session, "archive", None, 0.0, 10)
        assert dict(session.execute(select(Image.key, Image.status)).tuples().all()) == {
            "a.jpg": "done", "b.jpg": "done", "c.jpg": "pending",
        }  # fmt: skip
        vectors = list(session.scalars(select(Embedding.vector).order_by(Embedding.face_id)))
    assert (first.keys, first.box, first.quality_parts) == (
        ("a.jpg",),
        (1, 2, 30, 40),
        {"sharpness": 0.1235},
    )
    np.testing.assert_array_equal(vectors, np.eye(128, dtype=np.float32)[:2])
    (expression,) = [attribute for attribute in first.attributes if attribute.model == "mini-xception@1"]
    assert (expression.name, expression.label, expression.confidence) == ("expression", "happiness", pytest.approx(0.8))
    assert first.restoration is None
    assert second.restoration is not None
    assert (second.restoration.accepted, second.restoration.reason) == (True, "")
    assert place.objects().keys() == {first.crop_key, second.crop_key, second.restoration.crop_key}
    kept = np.asarray(PillowImage.open(io.BytesIO(place.objects()[first.crop_key])), np.float32)
    assert np.abs(kept - portrait(256)).mean() < 2


def test_new_photos_are_recorded_in_few_statements_however_many_they_are(place: Place) -> None:
    statements: list[str] = []
    event.listen(place.catalog.engine, "before_cursor_execute", lambda *event: statements.append(event[2]))
    place.record(found("a.jpg", 1))
    one = len(statements)
    assert one <= 15
    statements.clear()
    place.record(found("b.jpg", 1), found("c.jpg", 1))
    assert len(statements) == one


def test_a_restored_face_that_is_rejected_is_kept_with_the_reason(place: Place) -> None:
    place.record(found("a.jpg", 1, restored=(0,), fidelity=MIN_FIDELITY - 1))
    with place.catalog.read() as session:
        (face,) = views.faces(session, "archive", None, 0.0, 10)
    assert face.restoration is not None
    assert not face.restoration.accepted
    assert "fidelity 22.0 dB" in face.restoration.reason
    picture = PillowImage.open(io.BytesIO(place.objects()[face.restoration.crop_key]))
    assert "Synthetic detail" in str(picture.info["Description"])


def test_a_restored_face_is_kept_with_what_it_was_judged_by(place: Place) -> None:
    place.record(found("a.jpg", 1, restored=(0,)))
    with place.catalog.read() as session:
        row = session.scalars(select(Restoration)).one()
    assert (row.fidelity, row.sharpness, row.repeated_in_float32) == (30, 0.5, True)
    assert (row.photo_sharpness, row.identity_similarity) == (pytest.approx(0.123456), pytest.approx(0.95))


@pytest.mark.parametrize(
    ("sizes", "fidelity", "from_restored"),
    [
        ([], 30.0, False),  # nothing was decided
        ([(0, 24, False)], 30.0, False),  # doing nothing won
        ([(24, 48, True)], 30.0, False),  # it helps faces of other sizes
        ([(12, 24, True)], 30.0, True),
        ([(12, 24, True)], MIN_FIDELITY - 1, False),  # it helps, but this one was rejected
    ],
)
def test_restored_pixels_are_embedded_only_where_that_was_measured_to_help_and_the_row_says_so(
    place: Place, recipe: Recipe, sizes: list[tuple[float, float, bool]], fidelity: float, from_restored: bool
) -> None:
    assert recipe.restorer is not None
    decided = [SizeDecision(low=low, high=high, embed=embed, reason="measured", faces=48) for low, high, embed in sizes]
    decision = Decision(
        embedder=recipe.embedder.contract, sizes=tuple(decided), evidence="run", decided_at=datetime.now(UTC)
    )
    tags = {f"{TAG}.{recipe.embedder.contract}": decision.model_dump_json()} if sizes else {}
    deciding = replace(recipe, restorer=replace(recipe.restorer, tags=tags))
    assert (deciding.digest != recipe.digest) == any(
        embed for *_, embed in sizes
    )  # or else nothing would be reprocessed
    place.job = replace(place.job, recipe=deciding)
    place.record(found("a.jpg", 1, restored=(0,), fidelity=fidelity))
    with place.catalog.read() as session:
        row = session.scalars(select(Embedding)).one()
    expected = np.eye(128, dtype=np.float32)[-1 if from_restored else 0]
    np.testing.assert_array_equal(row.vector, expected)
    assert row.restorer_id == (place.job.contract.restorer_id if from_restored else None)
    place.job = replace(place.job, recipe=recipe)  # the decision is taken back
    place.record(found("a.jpg", 1, restored=(0,), fidelity=fidelity))
    with place.catalog.read() as session:
        row = session.scalars(select(Embedding)).one()
    assert row.restorer_id is None
    np.testing.assert_array_equal(row.vector, np.eye(128, dtype=np.float32)[0])


def test_recording_twice_changes_nothing(place: Place) -> None:
    batch = (found("a.jpg", 2, restored=(0,)), found("b.jpg", 1))
    place.record(*batch)
    rows, objects = place.everything(), place.objects()
    place.record(*reversed(batch))
    assert place.everything() == rows
    assert place.objects() == objects


def test_a_crash_between_objects_and_rows_leaves_nothing_that_the_next_run_does_not_use(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    before = place.everything()
    with monkeypatch.context() as patch:
        patch.setattr("tasks.record.record_photos", full)
        with pytest.raises(OSError, match="disk full"):
            place.record(found("a.jpg", 2, restored=(0,)))
    assert place.everything() == before
    left = place.objects()
    assert len(left) == 3
    place.record(found("a.jpg", 2, restored=(0,)))
    assert place.objects() == left


def test_no_face_comes_to_have_the_crop_of_one_that_was_erased(place: Place) -> None:
    """Else an erasure that deletes it late, on another machine say, would delete the neighbour's."""
    photo = found(KEYS[0], faces=3)
    place.record(photo)
    with place.catalog.read() as session:
        first, *others = session.scalars(select(Face.crop_key).order_by(Face.id))
    with place.catalog.write() as session:
        forget_faces(session, [session.scalars(select(Face.id).where(Face.crop_key == first)).one()])
    place.record(replace(photo, arrays={name: rows[1:] for name, rows in photo.arrays.items()}))
    with place.catalog.read() as session:
        assert list(session.scalars(select(Face.crop_key).order_by(Face.id))) == others


def test_where_a_crop_cannot_be_written_no_row_claims_that_it_is_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.crops.root.parent / "a file").touch()
    before = place.everything()
    monkeypatch.setattr(place, "crops", Folder(place.crops.root.parent / "a file" / "crops"))
    with pytest.raises(Exception, match="a file"):
        place.record(found("b.jpg", 0), found("a.jpg", 2))
    assert place.everything() == before


def test_crops_of_what_is_no_longer_true_are_removed(place: Place) -> None:
    place.record(found("a.jpg", 3, restored=(0, 2)), found("b.jpg", 1, restored=(0,)))
    assert len(place.objects()) == 7
    place.record(found("a.jpg", 2, restored=(0,)))  # a face less, and one that needs no restoring any more
    with place.catalog.read() as session:
        rows = [*session.scalars(select(Face.crop_key)), *session.scalars(select(Restoration.crop_key))]
    assert len(rows) == 5
    assert place.objects().keys() == set(rows)
    place.record(found("a.jpg", 0))
    assert len(place.objects()) == 2  # those of b.jpg
    assert place.rows(Restoration)["restoration"][0][0] == 4


def test_what_failed_is_a_row_and_an_image_that_stands_as_failed(place: Place) -> None:
    place.record(
        found("a.jpg", 1).failed("embed", "error", "out of memory", retryable=True),
        replace(found("b.jpg", 1), content_id=None).failed("read", "object_missing", "it is gone", retryable=False),
        found("c.jpg", 1),
    )
    with place.catalog.read() as session:
        failures = {row.key: row for row in session.scalars(select(Failure))}
        stands = dict(session.execute(select(Image.key, Image.status)).tuples().all())
        content = session.get_one(Content, 1)
        retryable = dict(session.execute(select(Image.key, Image.retryable)).tuples().all())
    assert stands == {"a.jpg": "failed", "b.jpg": "failed", "c.jpg": "done"}
    assert retryable == {"a.jpg": True, "b.jpg": False, "c.jpg": False}
    assert (failures["a.jpg"].stage, failures["a.jpg"].message) == ("embed", "/photos/a.jpg: out of memory")
    assert (content.status, content.failure_reason) == ("failed", "error")
    assert len(place.rows(Face)["face"]) == 1
    assert len(place.objects()) == 1


def test_a_failure_is_resolved_when_the_photo_succeeds(place: Place) -> None:
    place.record(found("a.jpg", 1).failed("embed", "error", "out of memory", retryable=True))
    place.record(found("a.jpg", 1))
    with place.catalog.read() as session:
        assert views.failures(session, None, None, 10) == []
        (overcome,) = views.failures(session, None, None, 10, include_resolved=True)
    assert overcome.key == "a.jpg"


def test_a_photo_that_another_stands_for_is_linked_and_nothing_more(place: Place) -> None:
    place.record(found("a.jpg", 1), replace(found("b.jpg", 0), content_id=1, shared=True, arrays={}))
    with place.catalog.read() as session:
        linked = {key: (status, content) for key, status, content in
                  session.execute(select(Image.key, Image.status, Image.content_id)).tuples()}  # fmt: skip
    assert linked["b.jpg"] == ("pending", 1)  # until the run settles it
    assert len(place.rows(Face)["face"]) == 1


def test_an_empty_batch_is_recorded(place: Place) -> None:
    before = place.everything()
    place.record()
    assert (place.everything(), place.objects()) == (before, {})
