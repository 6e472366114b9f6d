"""Grouping in the catalog: the same through an index as by comparing with all, and faces found anew keep their place."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.orm import Session

from flows import night
from infra.catalog.custody import retention
from infra.catalog.custody.erasing import forget_faces
from infra.catalog.database import Catalog
from infra.catalog.faces import Contract, FaceRecord, PhotoRecord, record_photos
from infra.catalog.faults import CatalogUnavailable
from infra.catalog.identities import enforcement, people
from infra.catalog.identities.enforcement import EXEMPLARS
from infra.catalog.identities.people import FaceVectors
from infra.catalog.search import hnsw, projection
from infra.catalog.search.vectors import put_embeddings
from infra.catalog.statements import exclusive
from infra.catalog.tables.schema import (
    Collection,
    Content,
    Embedding,
    Face,
    FaceIdentity,
    Identity,
    Image,
    ModelVersion,
)
from infra.catalog.work.runs import open_run
from infra.settings import Settings
from tasks import group as grouping
from tasks.identities import decisions
from tasks.identities.grouping import PEOPLE, Exemplars, Policy, representatives
from tasks.identities.hubness import COHORT
from tasks.search_index import open_index
from tests import crowd as crowds
from tests.catalogs import counted_steps
from tests.made_up import DIMENSION, VERSIONS, Crowd, calibration

ADA, BOB = 1, 2


def test_a_catalog_of_many_people_is_grouped_through_the_search_index_alike(
    fresh_catalog_url: Callable[[str], str], catalog_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = "sqlite" if catalog_url.startswith("sqlite") else "postgresql"
    outcomes = []
    for url, at_once in ((catalog_url, 50_000), (fresh_catalog_url(engine), 0)):
        monkeypatch.setattr("tasks.group.KNOWN_AT_ONCE", at_once)
        crowd = Crowd(Catalog(url), spread=0.5)
        for _ in range(3):
            for person in range(6):
                crowd.photo(person, person + 6)
            crowd.night()
        outcomes.append(crowd.places())
        crowd.catalog.close()
    assert outcomes[0] == outcomes[1]
    assert len(set(outcomes[0].values())) == 12


def test_an_approximate_index_finds_the_people_that_comparing_with_all_finds(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module, name in ((grouping, "KNOWN_AT_ONCE"), (projection, "FLAT_UP_TO"), (hnsw, "EXACT_UP_TO")):
        monkeypatch.setattr(module, name, 500)
    vectors, owners = crowds.vectors(1_600, 32), crowds.people_of(1_600, 32) + 1
    flood = vectors[:1] + np.random.default_rng(0).normal(scale=[[0.04]] + [[0.001]] * 140, size=(141, 32))
    flood = (flood[0] - vectors[0] + flood[1:]).astype(
        np.float32
    )  # new ones that are nearer to each other than to whom they show
    vectors = np.concatenate([vectors, flood / np.linalg.norm(flood, axis=1, keepdims=True)])
    crowds.enter(catalog, vectors)
    policy = Policy(join=0.96, propose=0.95)
    settings = Settings(home=tmp_path, database_url=catalog.url)
    with catalog.write() as session:
        session.execute(
            insert(Identity), [{"id": i, "model_version_id": crowds.EMBEDDER} for i in set(owners.tolist())]
        )
        places = [
            {
                "face_id": face + 1,
                "model_version_id": crowds.EMBEDDER,
                "identity_id": owner,
                "exemplar": True,
                "run_id": 1,
            }
            for face, owner in enumerate(owners[:1_500].tolist())
        ]
        session.execute(insert(FaceIdentity), places)
        version = session.get_one(ModelVersion, crowds.EMBEDDER)
        new = people.ungrouped(session, version.id, 32, 240)
        known = grouping._known(session, version, new, policy, settings)
        behind = FaceVectors(*(getattr(new, column.name)[100:] for column in fields(new)))
        behind = grouping._known(session, version, behind, policy, settings)
        everybody = people.exemplars(session, version.id, 32)
        results = [
            grouping.group(
                grouping._faces(new),
                Exemplars(grouping._faces(of), of.identities),
                policy,
                next_identity=9_999,
                cohort=people.representatives(session, version.id, 32, COHORT),
            ).identities
            for of in (known, everybody)
        ]
        everyone = Exemplars(grouping._faces(everybody), everybody.identities)
        assert np.array_equal(people.representatives(session, version.id, 32, COHORT), representatives(everyone))
        assert len(people.representatives(session, version.id, 32, 7)) == 7
    assert len(new) == 240
    assert owners[0] in behind.identities
    near = new.embeddings @ vectors[:1_500].T
    wanted: list[int] = []  # the people that comparing each new face with all considers
    for row in near:
        by_likeness = owners[np.argsort(-row)[: (row >= policy.propose).sum()]]
        wanted += list(dict.fromkeys(by_likeness.tolist()))[:PEOPLE]
    assert len(wanted) > 200
    assert np.isin(wanted, known.identities).mean() >= 0.99
    assert len(known) < len(everybody)
    assert (results[0] == results[1]).mean() >= 0.99


def test_a_new_face_costs_the_database_as_much_among_many_as_among_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "KNOWN_AT_ONCE", 500)
    monkeypatch.setattr(grouping, "COHORT", 50)
    steps: list[int] = []
    for count in (5_000, 20_000):
        settings = Settings(home=tmp_path / str(count))
        catalog = Catalog(settings.catalog_url)
        vectors, owners = crowds.vectors(count + 60, 128), crowds.people_of(count + 60, 128) + 1
        crowds.enter(catalog, vectors[:0])
        with catalog.write() as session:
            crowds.fill(session, vectors, owners[:count])
            version = session.get_one(ModelVersion, crowds.EMBEDDER)
            version.calibration = calibration("made up").model_dump(mode="json")
            open_index(session, version, settings)
        with counted_steps(catalog) as taken:
            grouped = grouping.group_version(catalog, crowds.EMBEDDER, 2, settings)
        assert grouped.grouped > 50
        steps.append(taken())
        catalog.close()
    assert steps[1] < 1.25 * steps[0]


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_a_block_whose_transaction_the_database_ends_is_grouped_anew(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(catalog)
    for _ in range(3):
        crowd.photo(1, 2)
    write, failures = people.write_grouping, [CatalogUnavailable("a deadlock detected")]

    def interrupted(*told: Any, **more: Any) -> None:
        write(*told, **more)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(people, "write_grouping", interrupted)
    placed = crowd.night()
    assert failures == []
    assert placed.grouped == len(crowd.places()) == 6
    assert None not in crowd.places().values()


def test_a_night_writes_only_the_exemplars_that_change(catalog: Catalog) -> None:
    crowd = Crowd(catalog, spread=0.3)
    for _ in range(EXEMPLARS):
        crowd.photo(ADA)
    crowd.night()
    written: list[int] = []

    @event.listens_for(catalog.engine, "after_cursor_execute")
    def _count(connection: object, cursor: Any, statement: str, *rest: object) -> None:
        if statement.startswith("UPDATE face_identity SET exemplar"):
            written.append(cursor.rowcount)

    before = crowd.exemplars()
    [better] = crowd.photo(ADA, quality=0.95)
    crowd.night()
    assert written == [1, 1]  # one leaves, one comes
    after = crowd.exemplars()
    assert (len(before - after), after - before) == (1, {better})


def found_anew(crowd: Crowd, face: int, boxes: list[tuple[float, float, float, float]], seen: list[int]) -> list[int]:
    """Process the photo of a face by another detector, which finds people in the order `seen`; returns the new faces."""
    with crowd.catalog.write() as session:
        detector = session.scalar(select(ModelVersion.id).where(ModelVersion.name == "another"))
        if detector is None:
            row = ModelVersion(name="another", version=1, role="detect", contract="another", contract_content={},
                               weights_sha256="0", licence="CC0")  # fmt: skip
            session.add(row)
            session.flush()
            detector = row.id
        content = session.get_one(Face, face).content_id
        image = session.scalars(select(Image.id).where(Image.content_id == content)).one()
        faces = tuple(
            FaceRecord(
                box=np.array(box),
                landmarks=np.zeros((5, 2)),
                score=1.0,
                quality=0.9,
                quality_parts={},
                crop_key="new",
                embedding=crowd.look(VERSIONS[0], person),
            )
            for box, person in zip(boxes, seen, strict=True)
        )
        photo = PhotoRecord(image, content, "JPEG", 300, 200, None, None, [], faces)
        record_photos(session, 1, Contract("r2", detector, crowd.versions[VERSIONS[0]], (), None), [photo])
        return list(session.scalars(select(Face.id).where(Face.content_id == content).order_by(Face.ordinal)))


def test_places_and_decisions_go_to_the_face_that_another_detector_finds_there(catalog: Catalog) -> None:
    crowd = Crowd(catalog, spread=0.4)
    both = [crowd.photo(ADA, BOB) for _ in range(3)]
    crowd.night()
    home = crowd.places()[both[0][0]]
    with catalog.write() as session:
        decisions.name(session, "curator", home or 0, "Ada")
        decisions.reject(session, "curator", [both[1][1]])
        decisions.confirm(session, "curator", [both[0][0]])
        decisions.ignore(session, "curator", [both[2][1]])
    before = crowd.places()
    swapped = [(103.0, 2.0, 178.0, 99.0), (1.0, 3.0, 82.0, 101.0), (500.0, 500.0, 600.0, 600.0)]
    renewed = [found_anew(crowd, photo[0], swapped, [BOB, ADA, 9]) for photo in both]
    after = crowd.places()
    assert [after.get(new[1]) for new in renewed] == [before[old[0]] for old in both]
    assert [after.get(new[0]) for new in renewed] == [before[both[0][1]], None, None]
    crowd.night()
    places = crowd.places()
    assert crowd.names() == {home: "Ada"}
    assert {places[new[1]] for new in renewed} == {home}
    assert places[renewed[1][0]] not in (before[both[0][1]], None)  # rejected where it was: somebody else, or alone
    assert places[renewed[2][0]] is None  # ignored
    with catalog.read() as session:
        confirmed = next(d for d in decisions.history(session) if d.kind == "confirm")
    assert confirmed.faces == (renewed[0][1],)


def test_faces_that_another_run_drops_while_they_are_grouped_are_passed_over(
    fresh_catalog_url: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(Catalog(fresh_catalog_url("postgresql")), spread=0)
    ada, across = np.eye(DIMENSION)[:2]
    crowd.centres = {(VERSIONS[0], ADA): ada, (VERSIONS[0], BOB): 0.57 * ada + 0.82 * across}  # likely one: proposed
    [exemplar] = crowd.photo(ADA)
    crowd.night()
    [kept], [new] = crowd.photo(BOB), crowd.photo(9)
    compare = grouping.group

    def meanwhile(*arguments: Any, **named: Any) -> Any:
        found = compare(*arguments, **named)
        if found.proposals:
            for face in (exemplar, new):
                found_anew(crowd, face, [], [])
        return found

    monkeypatch.setattr(grouping, "group", meanwhile)
    crowd.night()
    with crowd.catalog.read() as session:
        assert list(session.scalars(select(Face.id))) == [kept]
        assert crowd.places() == {kept: session.scalars(select(Identity.id)).one()}
        assert people.proposed(session) == []
    crowd.catalog.close()


@contextmanager
def at_once(catalog: Catalog, action: Callable[[], object]) -> Iterator[Session]:
    """Be in the middle of a grouping when something else begins; at the end of the block it waits, and then goes on."""
    with ThreadPoolExecutor() as threads:
        with catalog.write() as session:
            exclusive(session, enforcement.PEOPLE)
            yield session
            begun = threads.submit(action)
            waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            assert any(time.sleep(0.01) or session.scalar(waits) for _ in range(1000) if not begun.done())
        begun.result()


def test_a_face_found_anew_takes_the_place_that_a_grouping_is_giving_to_the_one_before(
    fresh_catalog_url: Callable[[str], str],
) -> None:
    crowd = Crowd(Catalog(fresh_catalog_url("postgresql")), spread=0.1)
    [ada], [bob] = crowd.photo(ADA), crowd.photo(BOB)
    crowd.night()
    places, renewed = crowd.places(), list[int]()
    box = (0.0, 0.0, 80.0, 100.0)
    with at_once(crowd.catalog, lambda: renewed.extend(found_anew(crowd, bob, [box], [BOB]))) as session:
        merges = [(places[bob] or 0, places[ada] or 0)]
        people.write_grouping(
            session, 2, crowd.versions[VERSIONS[0]], {}, merges=merges, no_exemplars_now=[], new_exemplars=[]
        )
    assert crowd.places() == dict.fromkeys((ada, *renewed), places[ada])
    crowd.catalog.close()


def test_a_decision_about_a_face_that_is_found_no_more_goes_with_it(catalog: Catalog) -> None:
    crowd = Crowd(catalog, spread=0.4)
    both = [crowd.photo(ADA, BOB) for _ in range(2)]
    crowd.night()
    with catalog.write() as session:
        decisions.reject(session, "curator", [both[0][1]])
    (left,) = found_anew(crowd, both[0][0], [(0.0, 0.0, 80.0, 100.0)], [ADA])
    crowd.night()
    assert crowd.places()[left] == crowd.places()[both[1][0]]
    with catalog.read() as session:
        assert [d.faces for d in decisions.history(session)] == [()]


def test_retention_goes_on_when_a_photo_is_processed_anew(catalog: Catalog) -> None:
    crowd = Crowd(catalog)
    faces = crowd.photo(ADA, BOB)
    found = [datetime(year, 1, 1, tzinfo=UTC) for year in (2000, 2001)]
    with catalog.write() as session:
        collection = session.get_one(Collection, crowd.collection_id)
        collection.retention_days = 30
        session.execute(update(Face), [{"id": f, "found_at": at} for f, at in zip(faces, found, strict=True)])
        retention.expire(session, "curator", collection, faces[:1])
    ada, bob, new = (1.0, 3.0, 82.0, 101.0), (103.0, 2.0, 178.0, 99.0), (500.0, 500.0, 600.0, 600.0)
    for order in ([bob, ada, new], [ada, new, bob], [new, bob, ada]):  # another detector's, and in another order
        renewed = dict(zip(order, found_anew(crowd, faces[0], order, [9, 9, 9]), strict=True))
        faces = list(renewed.values())
        with catalog.read() as session:
            rows = {box: session.get_one(Face, face) for box, face in renewed.items()}
            assert [rows[box].found_at for box in (ada, bob, new)] == [*found, found[0]]
            assert [box for box, row in rows.items() if row.embeddings_expired_at is not None] == [ada]
            assert set(session.scalars(select(Embedding.face_id))) == {renewed[bob], renewed[new]}
            due = retention.due(session, session.get_one(Collection, crowd.collection_id))
            assert set(due) == {renewed[bob], renewed[new]}


def test_a_face_keeps_its_place_and_no_vector_of_another_when_fewer_are_found(catalog: Catalog) -> None:
    crowd = Crowd(catalog, spread=0.1)
    boxes = [(0.0, 0.0, 80.0, 100.0), (100.0, 0.0, 180.0, 100.0)]
    ada, bob = found_anew(crowd, crowd.photo(ADA, BOB)[0], boxes, [ADA, BOB])
    with catalog.write() as session:
        put_embeddings(session, crowd.versions[VERSIONS[1]], {ada: crowd.look(VERSIONS[1], ADA)})
    crowd.night()
    home = crowd.places()[bob]
    (left,) = found_anew(crowd, ada, boxes[1:], [BOB])
    assert (left, crowd.places()) == (bob, {bob: home})
    with catalog.read() as session:
        assert list(session.scalars(select(Embedding.model_version_id))) == [crowd.versions[VERSIONS[0]]]


def test_a_number_means_the_same_face_of_a_photo_whoever_of_it_is_erased_or_found_first(catalog: Catalog) -> None:
    crowd = Crowd(catalog)
    boxes = [(0.0, 0.0, 80.0, 100.0), (100.0, 0.0, 180.0, 100.0), (200.0, 0.0, 280.0, 100.0)]
    ada, bob, eve = found_anew(crowd, crowd.photo(ADA, BOB)[0], boxes, [ADA, BOB, 3])
    with catalog.write() as session:
        forget_faces(session, [ada])
    assert found_anew(crowd, bob, boxes[1:], [BOB, 3]) == [bob, eve]
    assert found_anew(crowd, bob, boxes[:0:-1], [3, BOB]) == [eve, bob]
    eve_again, stranger, bob_again = found_anew(crowd, bob, [boxes[2], boxes[0], boxes[1]], [3, 4, BOB])
    assert (eve_again, bob_again) == (eve, bob)
    assert stranger > max(ada, bob, eve)
    assert found_anew(crowd, bob, [], []) == []


def test_neighbours_whose_boxes_overlap_keep_their_own_places(catalog: Catalog) -> None:
    crowd = Crowd(catalog)
    boxes = [(0.0, 0.0, 80.0, 100.0), (10.0, 0.0, 90.0, 100.0)]
    faces = found_anew(crowd, crowd.photo(ADA, BOB)[0], boxes, [ADA, BOB])
    crowd.night()
    before = crowd.places()
    assert found_anew(crowd, faces[0], [boxes[0], (20.0, 0.0, 100.0, 100.0)], [ADA, BOB]) == faces
    assert crowd.places() == before


def overwrite(crowd: Crowd, faces: list[int], now: int) -> None:
    """Let photos that show one picture in other bytes be overwritten with those of the one that shows the face `now`."""
    content = crowd.photo_of[now]
    with crowd.catalog.write() as session:
        session.execute(update(Content).values(width=300, height=200, perceptual_hash="f0f0f0f0f0f0f0f0"))
        for former in (crowd.photo_of[face] for face in faces):
            overwritten = update(Image).where(Image.key == f"{former}.jpg")
            session.execute(overwritten.values(content_id=content, former_content_id=former))


def close_books(crowd: Crowd) -> None:
    with crowd.catalog.write() as session:
        run_id = open_run(session, crowd.collection_id, "r").id
    folder = SimpleNamespace(url=lambda key: f"/photos/{key}")
    recipe = SimpleNamespace(digest="r")
    night._settled(
        crowd.catalog,
        SimpleNamespace(run_id=run_id, collection_id=crowd.collection_id, recipe=recipe, photographs=lambda: folder),
    )


def test_photos_that_an_undone_merge_had_moved_can_become_the_same_bytes(catalog: Catalog) -> None:
    crowd = Crowd(catalog, spread=0.1)
    first, second, other = crowd.photo(ADA)[0], crowd.photo(ADA)[0], crowd.photo(BOB)[0]
    crowd.night()
    before = crowd.places()
    with catalog.write() as session:
        merged = decisions.merge(session, "curator", before[other] or 0, before[first] or 0)
        decisions.undo(session, "curator", merged.decision_id)
    overwrite(crowd, [first], now=second)
    close_books(crowd)
    assert crowd.places() == {face: before[face] for face in (second, other)}


@pytest.mark.parametrize("decided", [0, 1, 2])
def test_photos_that_become_the_same_bytes_leave_what_was_decided_about_any_of_them(
    catalog: Catalog, decided: int
) -> None:
    crowd = Crowd(catalog, spread=0.1)
    copies = [crowd.photo(ADA)[0] for _ in range(3)]
    home = crowd.photo(BOB)[0]
    crowd.night()
    with catalog.write() as session:
        decisions.confirm(session, "curator", [copies[decided]], crowd.places()[home])
        for year, face in enumerate(copies, start=2001):
            session.get_one(Face, face).found_at = datetime(year, 1, 1, tzinfo=UTC)
    [now] = crowd.photo(ADA)
    overwrite(crowd, copies, now)
    close_books(crowd)
    assert crowd.places() == dict.fromkeys((home, now), crowd.places()[home])
    with catalog.read() as session:
        assert [d.faces for d in decisions.history(session)] == [(now,)]
        assert session.get_one(Face, now).found_at == datetime(2001, 1, 1, tzinfo=UTC)


def test_a_photo_written_anew_inherits_a_decision_though_a_grouping_is_giving_its_face_a_place(
    fresh_catalog_url: Callable[[str], str],
) -> None:
    crowd = Crowd(Catalog(fresh_catalog_url("postgresql")), spread=0.1)
    [former], [home] = crowd.photo(ADA), crowd.photo(BOB)
    crowd.night()
    places, version = crowd.places(), crowd.versions[VERSIONS[0]]
    with crowd.catalog.write() as session:
        decisions.confirm(session, "curator", [former], places[home])
    [now] = crowd.photo(ADA)
    overwrite(crowd, [former], now)
    with at_once(crowd.catalog, lambda: close_books(crowd)) as session:
        session.add(FaceIdentity(face_id=now, model_version_id=version, identity_id=places[former], run_id=2))
        session.flush()
    assert crowd.places() == dict.fromkeys((home, now), places[home])
    crowd.catalog.close()
