"""Search: in a defined order, only what is there, nothing lost to a filter, and with calibrated probabilities."""

import hashlib
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image as PillowImage
from sqlalchemy import update
from sqlalchemy.orm import Session

from infra import weights
from infra.catalog.database import Catalog
from infra.catalog.search import vectors
from infra.catalog.tables.schema import Collection, Content, Embedding, Face, Image, ImageStatus, ModelVersion
from infra.registry import CHAMPION, Registry
from infra.settings import Settings
from tasks import probe
from tasks.model_version import NotInstalled, find_version
from tasks.probe import Prober
from tasks.search import (
    Answer,
    InvalidQuery,
    Match,
    NothingToSearch,
    Photo,
    Query,
    UnreadablePhoto,
    nearest,
    search_faces,
    search_photo,
    serving_version,
)
from tests.archive import calibration
from tests.catalogs import ENGINES, FreshUrl
from tests.portraits import jpeg, landscape, mirrored, pair, portrait
from tests.reference import shared

CORNERS = np.array(list(product((-0.5, 0.5), repeat=4)), np.float32)  # unit length; sums of their products are exact
ANY = np.random.default_rng(7).normal(size=(60, 4)).astype(np.float32)
VECTORS = np.concatenate([CORNERS[[*range(16), *range(16)]], ANY / np.linalg.norm(ANY, axis=1, keepdims=True)])
CHUNK = 13  # of 92 faces: reading crosses the borders of chunks


def fill(catalog: Catalog, rows: np.ndarray) -> None:
    """Enter one photo `0.jpg`, `1.jpg`, ... with one face per vector; the face ids are 1, 2, ..."""
    with catalog.write() as session:
        session.add(Collection(id=1, name="archive", uri="/photos", include=[], exclude=[], sensitive_attributes=[]))
        for number, role in enumerate(("detect", "embed", "other"), start=1):
            row = ModelVersion(
                id=number, name=role, version=1, role=role, contract=role, contract_content={}, weights_sha256="0",
                dimension=4, licence="CC0",
            )  # fmt: skip
            session.add(row)
        session.flush()
        for i, vector in enumerate(rows, start=1):
            add_face(session, i, vector)


def add_face(session: Session, face_id: int, vector: np.ndarray) -> None:
    content = {"sha256": str(face_id), "status": "done", "recipe": "", "owner_image_id": face_id, "run_id": 1}
    box = {"x1": 0, "y1": 0, "x2": 1, "y2": 1, "landmarks": np.zeros(10)}
    judged = {"score": 1, "quality": 1, "quality_parts": {}, "crop_key": ""}
    session.add(Content(id=face_id, collection_id=1, **content))
    session.flush()
    session.add(an_image(f"{face_id}.jpg", face_id))
    session.add(Face(id=face_id, content_id=face_id, detector_id=1, ordinal=0, **box, **judged))
    session.flush()
    session.add(Embedding(face_id=face_id, model_version_id=2, vector=vector.astype(np.float32)))


def an_image(key: str, content_id: int) -> Image:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Image(collection_id=1, key=key, etag="", size=1, modified_at=when, status="done", content_id=content_id)


@pytest.fixture(scope="module", params=ENGINES)
def filled(request: pytest.FixtureRequest, fresh_catalog_url: FreshUrl) -> Iterator[Catalog]:
    catalog = Catalog(fresh_catalog_url(request.param))
    fill(catalog, VECTORS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "CHUNK", CHUNK)
        yield catalog
    catalog.close()


@pytest.fixture
def few(catalog: Catalog) -> Catalog:
    """Four faces, the first two of them alike."""
    fill(catalog, np.eye(4)[[0, 0, 1, 2]])
    return catalog


def ask(catalog: Catalog, queries: np.ndarray, limit: int) -> list[tuple[Match, ...]]:
    with catalog.read() as session:
        return nearest(session, session.get_one(ModelVersion, 2), queries.astype(np.float32), limit)


def ids(matches: tuple[Match, ...]) -> list[int]:
    return [match.face.face_id for match in matches]


@hypothesis.settings(max_examples=25)
@given(
    queries=npst.arrays(np.int8, st.tuples(st.integers(0, 3), st.just(4)), elements=st.integers(-4, 4)).filter(
        lambda queries: queries.any(axis=1).all()
    ),
    limit=st.integers(1, 100),
)
def test_nearest_are_those_of_brute_force_and_ties_stand_in_the_order_of_ids(
    filled: Catalog, queries: np.ndarray, limit: int
) -> None:
    unit = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    for query, matches in zip(unit, ask(filled, unit, limit), strict=True):
        similarity = VECTORS @ query
        assert len(matches) == min(limit, len(VECTORS))
        found = np.array([match.similarity for match in matches])
        np.testing.assert_allclose(found, np.sort(similarity)[::-1][:limit], atol=1e-5)
        np.testing.assert_allclose(found, similarity[np.array(ids(matches)) - 1], atol=1e-5)
        places = [(-match.similarity, match.face.face_id) for match in matches]
        assert places == sorted(places)


@hypothesis.settings(max_examples=20)
@given(st.integers(0, 15), st.integers(1, 40))
def test_equal_vectors_far_apart_in_the_catalog_are_ties(filled: Catalog, corner: int, limit: int) -> None:
    matches = ask(filled, CORNERS[[corner]], limit)[0]
    assert ids(matches)[:2] == [corner + 1, corner + 17][:limit]  # chunks apart, and of exactly the same similarity


def test_an_empty_catalog_and_no_queries_give_no_matches(catalog: Catalog) -> None:
    fill(catalog, np.zeros((0, 4)))
    assert ask(catalog, np.zeros((0, 4)), 5) == []
    assert ask(catalog, np.eye(4)[:2], 5) == [(), ()]


@pytest.mark.parametrize(
    "queries",
    [
        np.eye(3)[:1],
        np.eye(4)[0],
        np.eye(5)[:1],
        np.full((1, 4), np.nan),
        np.full((1, 4), np.inf),
        np.zeros((1, 4)),
        np.ones((1, 4)),
    ],
)
def test_queries_that_are_no_vectors_of_the_catalog_are_refused(few: Catalog, queries: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be vectors of 4 finite numbers and of length 1"):
        ask(few, queries, 1)


def test_faces_of_missing_photos_are_not_found_unless_a_copy_remains(few: Catalog) -> None:
    with few.write() as session:
        session.execute(update(Image).where(Image.key == "1.jpg").values(status=ImageStatus.MISSING.value))
    assert ids(ask(few, np.eye(4)[:1], 4)[0]) == [2, 3, 4]
    with few.write() as session:
        session.add(an_image("copy.jpg", 1))
    assert ids(ask(few, np.eye(4)[:1], 4)[0]) == [1, 2, 3, 4]


def test_vectors_of_another_version_are_not_mixed_in(few: Catalog) -> None:
    with few.write() as session:
        session.add(Embedding(face_id=4, model_version_id=3, vector=np.eye(4, dtype=np.float32)[0]))
    assert [round(match.similarity, 6) for match in ask(few, np.eye(4)[:1], 4)[0]] == [1, 1, 0, 0]


def test_probability_is_none_until_calibrated_and_then_rises_with_similarity(filled: Catalog, few: Catalog) -> None:
    assert [match.probability for match in ask(few, np.eye(4)[:1], 2)[0]] == [None, None]
    with filled.write() as session:
        curve = calibration("embed").model_dump(mode="json")
        session.execute(update(ModelVersion).where(ModelVersion.id == 2).values(calibration=curve))
    matches = ask(filled, VECTORS[50:51], len(VECTORS))[0]
    probabilities = [match.probability for match in matches]
    assert all(p is not None and 0 <= p <= 1 for p in probabilities)
    assert probabilities == sorted(probabilities, reverse=True)  # type: ignore[type-var]
    assert probabilities[0] == pytest.approx(calibration("embed").probability(1.0), abs=1e-4)
    assert len(set(probabilities)) > 20


# --- by photo


def by_photo(settings: Settings, photo: Path, limit: int = 10) -> list[list[Match]]:
    with Catalog(settings.catalog_url).read() as session:
        return [list(answer.matches) for answer in search_photo(session, settings, photo, limit)]


def test_a_person_is_found_in_another_picture_of_them(archive: Settings, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(mirrored(640), quality=60))
    (matches,) = by_photo(archive, photo)
    assert len(matches) == 4
    assert all(match.similarity > 0.95 for match in matches)
    assert all(match.probability is not None and match.probability > 0.9 for match in matches)


def test_strangers_are_less_similar_than_the_person(archive: Settings) -> None:
    (stranger,) = by_photo(archive, shared("data/photos/obama2.jpg"))
    assert all(match.similarity < 0.85 for match in stranger)
    assert all(match.probability is not None and match.probability < 0.5 for match in stranger)


def test_every_face_of_a_photo_is_answered_with_its_own_box(archive: Settings, tmp_path: Path) -> None:
    photo = tmp_path / "pair.jpg"
    photo.write_bytes(jpeg(pair(500)))
    with Catalog(archive.catalog_url).read() as session:
        answers = search_photo(session, archive, photo, 1)
    assert sorted(round(answer.box[0] / 500, 1) for answer in answers) == [0.4, 1.5]
    assert all(answer.method == "exact" and answer.model == "dlib-resnet@1" for answer in answers)


def test_the_bytes_of_a_group_photo_are_hashed_once_and_each_face_goes_on_from_its_answer(
    archive: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, sha256 = tmp_path / "pair.jpg", hashlib.sha256
    photo.write_bytes(jpeg(pair(500)))
    hashed: list[bytes] = []

    def counted(data: bytes = b"", **options: Any) -> Any:
        hashed.append(data)
        return sha256(data, **options)

    monkeypatch.setattr(hashlib, "sha256", counted)
    with Catalog(archive.catalog_url).read() as session:
        answers = search_photo(session, archive, photo, 1)
    assert (len(answers), hashed.count(photo.read_bytes())) == (2, 1)
    for number, answer in enumerate(answers, start=1):
        following = ask_by(archive, Photo("pair.jpg", photo.read_bytes(), number), limit=1, after=answer.after)
        assert (answer.box, answer.score) == (following.box, following.score)
        assert answer.matches[0].face != following.matches[0].face


def a_photo(picture: np.ndarray, face: int | None = None) -> Photo:
    return Photo("photo.jpg", jpeg(picture), face)


def ask_by(settings: Settings, *photos: Photo, **more: Any) -> Answer:
    catalog = Catalog(settings.catalog_url)
    try:
        return search_faces(catalog, settings, Query(photos=photos, **more))
    finally:
        catalog.close()


def test_a_chosen_face_or_the_best_one_stands_for_a_photo(archive: Settings, tmp_path: Path) -> None:
    smaller = PillowImage.fromarray(portrait(250))
    two = PillowImage.new("RGB", (900, 500))
    two.paste(PillowImage.fromarray(mirrored(500)), (0, 0))
    two.paste(smaller, (550, 0))
    both = [ask_by(archive, a_photo(np.asarray(two), face)) for face in (1, 2)]
    best = ask_by(archive, a_photo(np.asarray(two)))
    assert sorted(answer.box[0] > 500 for answer in both) == [False, True]
    assert best.box[0] < 500
    assert best in both
    with pytest.raises(InvalidQuery, match=r"photo\.jpg: there is no face 3; 2 were found"):
        ask_by(archive, a_photo(np.asarray(two), 3))


def test_several_photos_of_a_person_are_one_question(archive: Settings) -> None:
    answer = ask_by(archive, a_photo(portrait(500)), a_photo(mirrored(640)), limit=2)
    assert (answer.asked, len(answer.matches)) == (2, 2)
    assert all(match.similarity > 0.9 for match in answer.matches)
    following = ask_by(archive, a_photo(portrait(500)), a_photo(mirrored(640)), limit=2, after=answer.after)
    assert not {m.face.face_id for m in answer.matches} & {m.face.face_id for m in following.matches}


def test_a_photo_and_a_face_of_the_catalog_are_one_question(archive: Settings) -> None:
    answer = ask_by(archive, a_photo(portrait(500)), faces=(1,))
    assert answer.asked == 2
    assert 1 not in {match.face.face_id for match in answer.matches}


def test_the_photo_is_not_kept(archive: Settings, tmp_path: Path) -> None:
    def everything() -> set[Path]:
        return {path for path in archive.home.rglob("*") if not path.name.endswith(("-wal", "-shm"))}

    before = everything()
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(portrait(500)))
    by_photo(archive, photo)
    assert everything() == before


def test_a_photo_for_which_memory_does_not_suffice_is_said_to_be_too_large(
    archive: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(portrait()))
    monkeypatch.setattr("tasks.probe.decode", lambda *_, **__: bytearray(2**62))
    with pytest.raises(UnreadablePhoto, match=r"photo\.jpg: .*more memory than there is; search with a smaller copy"):
        by_photo(archive, photo)


def test_what_cannot_be_searched_with_is_said(archive: Settings, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(landscape()))
    with pytest.raises(NothingToSearch, match=r"photo\.jpg: no face was found"):
        by_photo(archive, photo)
    photo.write_bytes(jpeg(portrait())[:2000])
    with pytest.raises(UnreadablePhoto, match=r"photo\.jpg: .*breaks off"):
        by_photo(archive, photo)
    with pytest.raises(UnreadablePhoto, match=r"photo\.jpg: larger than 1,999 bytes"):
        by_photo(archive.model_copy(update={"max_bytes": 1999}), photo)


def test_a_photo_is_looked_at_with_the_detector_that_the_settings_name_even_after_it_was_promoted(
    archive: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ASK_AGAIN_SECONDS", 0)
    registry, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "weights"
    shutil.copyfile(archive.mlflow_uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    shutil.copytree(archive.weights_folder / "mtcnn", folder / "mtcnn")
    (folder / "dlib-resnet").symlink_to(archive.weights_folder / "dlib-resnet")
    first = find_version("mtcnn", folder, registry)
    blind = {name: torch.zeros_like(value) for name, value in weights.load(first.weights, first.digest).items()}
    stored = weights.store(folder, "mtcnn", blind, licence="", source="", origin={})
    second = Registry(registry).register("mtcnn", "", stored.manifest.digest, {})
    changed = {"weights": folder, "tracking_uri": registry}
    pinned = Prober(archive.model_copy(update={**changed, "detect_model": f"mtcnn@{first.version}"}))
    following = Prober(archive.model_copy(update=changed))
    with Catalog(archive.catalog_url).read() as session:
        version = serving_version(session)
        for prober in (pinned, following):
            assert len(prober(jpeg(portrait()), version).vectors) == 1
        Registry(registry).point("mtcnn", CHAMPION, second)
        assert len(pinned(jpeg(portrait()), version).vectors) == 1
        with pytest.raises(NothingToSearch, match="no face was found"):
            following(jpeg(portrait()), version)


def test_a_catalog_of_other_weights_than_are_installed_is_not_searched(archive: Settings, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(portrait()))
    with Catalog(archive.catalog_url).read() as session:
        session.execute(update(ModelVersion).where(ModelVersion.serving).values(contract="of other weights"))
        with pytest.raises(NotInstalled, match="dlib-resnet@1"):
            search_photo(session, archive, photo, 1)
        session.rollback()
