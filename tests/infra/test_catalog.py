"""The catalog as the ledger of the work."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from sqlalchemy import func, select, text, update

from infra.catalog import collections, images, ledger
from infra.catalog.database import Catalog
from infra.catalog.faces import AttributeRecord, Contract, FaceRecord, PhotoRecord, link_duplicates, record_photos
from infra.catalog.queries import views
from infra.catalog.queries.opinions import opinions
from infra.catalog.tables.schema import (
    Attribute,
    Base,
    Content,
    Embedding,
    Face,
    Failure,
    Image,
    ModelVersion,
    Run,
    RunStatus,
)
from infra.catalog.versioning import versions
from infra.catalog.work import runs
from infra.catalog.work.failures import FailureRecord, record_failures
from tests.made_up import VERSIONS, Crowd

WHEN = datetime(2026, 1, 1, tzinfo=UTC)


def listed(*keys: str, etag: str = "1") -> list[images.Listed]:
    return [images.Listed(key, etag, 10, WHEN) for key in keys]


def a_collection(catalog: Catalog, *keys: str) -> int:
    with catalog.write() as session:
        collection = collections.add(session, "archive", "/photos", [], [], [])
        images.put_pending(session, collection.id, listed(*keys))
        return collection.id


def model_versions(catalog: Catalog) -> Contract:
    with catalog.write() as session:
        rows = [
            ModelVersion(
                name=role,
                version=1,
                role=role,
                contract=f"contract-{role}",
                contract_content={},
                weights_sha256="0",
                dimension=4,
                licence="CC0",
            )
            for role in ("detect", "embed", "describe")
        ]
        session.add_all(rows)
        session.flush()
        detector, embedder, describer = (row.id for row in rows)
    return Contract("recipe", detector, embedder, (describer,), None)


def a_run(catalog: Catalog, collection_id: int, recipe: str = "recipe") -> int:
    with catalog.write() as session:
        return runs.open_run(session, collection_id, recipe).id


def a_photo(image_id: int, content_id: int, contract: Contract, faces: int) -> PhotoRecord:
    face = FaceRecord(
        box=np.array([1, 2, 30, 40], np.float32),
        landmarks=np.arange(10, dtype=np.float32).reshape(5, 2),
        score=0.99,
        quality=0.8,
        quality_parts={"sharpness": 0.5},
        crop_key="1/ab/cd-0.jpg",
        embedding=np.array([1, 0, 0, 0], np.float32),
        attributes=(AttributeRecord(contract.describer_ids[0], "expression", 3.0, "happiness", 0.9, None),),
    )
    return PhotoRecord(image_id, content_id, "JPEG", 100, 80, None, None, [], tuple([face] * faces))


def count(catalog: Catalog, entity: type[Base]) -> int:
    with catalog.read() as session:
        return session.scalar(select(func.count()).select_from(entity)) or 0


def process_all(catalog: Catalog, collection_id: int, run_id: int, contract: Contract, faces: int = 2) -> None:
    with catalog.write() as session:
        for page in images.pending_pages(session, collection_id, run_id, 10):
            for work in images.pending(session, collection_id, run_id, page):
                claims = images.claim(
                    session, collection_id, run_id, contract.recipe, [(work.image_id, f"sha {work.key}")]
                )
                content_id, _ = claims[work.image_id]
                record_photos(session, run_id, contract, [a_photo(work.image_id, content_id, contract, faces)])


def test_recording_twice_changes_nothing(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    run_id = a_run(catalog, collection_id)
    process_all(catalog, collection_id, run_id, contract)
    with catalog.read() as session:
        before = [tuple(row) for row in session.execute(select(Face.id, Face.x1, Face.score))]
        image = session.scalars(select(Image)).one()
        assert image.content_id is not None
        photo = a_photo(image.id, image.content_id, contract, faces=2)
    with catalog.write() as session:
        record_photos(session, run_id, contract, [photo])
    with catalog.read() as session:
        assert [tuple(row) for row in session.execute(select(Face.id, Face.x1, Face.score))] == before
    assert (count(catalog, Embedding), count(catalog, Attribute)) == (2, 2)


def test_a_photo_with_fewer_faces_than_before_loses_the_others_with_all_that_hangs_on_them(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    run_id = a_run(catalog, collection_id)
    process_all(catalog, collection_id, run_id, contract, faces=3)
    with catalog.write() as session:
        image = session.scalars(select(Image)).one()
        record_photos(session, run_id, contract, [a_photo(image.id, image.content_id, contract, faces=1)])
    assert (count(catalog, Face), count(catalog, Embedding), count(catalog, Attribute)) == (1, 1, 1)


def test_a_vector_that_is_not_finite_never_reaches_the_catalog(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    run_id = a_run(catalog, collection_id)
    with catalog.write() as session:
        image = session.scalars(select(Image)).one()
        claims = images.claim(session, collection_id, run_id, contract.recipe, [(image.id, "sha")])
    photo = a_photo(image.id, claims[image.id][0], contract, faces=1)
    broken = replace(photo, faces=(replace(photo.faces[0], embedding=np.array([np.nan, 0, 0, 0], np.float32)),))
    with pytest.raises(Exception, match="NaN"), catalog.write() as session:
        record_photos(session, run_id, contract, [broken])
    assert (count(catalog, Face), count(catalog, Embedding)) == (0, 0)


def test_identical_bytes_are_claimed_by_one_image_and_again_by_the_same_one(catalog: Catalog) -> None:
    collection_id = a_collection(catalog, "a.jpg", "b.jpg")
    run_id = a_run(catalog, collection_id)
    with catalog.write() as session:
        first, second = session.scalars(select(Image.id).order_by(Image.key))
        claims = images.claim(session, collection_id, run_id, "recipe", [(first, "same"), (second, "same")])
    assert claims[first][1]
    assert not claims[second][1]
    assert claims[first][0] == claims[second][0]
    with catalog.write() as session:  # Ray repeats the work of a lost actor
        assert images.claim(session, collection_id, run_id, "recipe", [(first, "same")])[first][1]
        assert not images.claim(session, collection_id, run_id, "recipe", [(second, "same")])[second][1]


def test_a_later_run_takes_over_what_a_dead_one_had_claimed(catalog: Catalog) -> None:
    collection_id = a_collection(catalog, "a.jpg", "b.jpg")
    with catalog.write() as session:
        first, second = session.scalars(select(Image.id).order_by(Image.key))
        images.claim(session, collection_id, 7, "recipe", [(first, "same")])
    with catalog.write() as session:
        assert images.claim(session, collection_id, 8, "recipe", [(second, "same")])[second][1]


def test_settle_gives_copies_the_fate_of_the_one_that_was_processed(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg", "b.jpg", "c.jpg", "d.jpg"), model_versions(catalog)
    run_id = a_run(catalog, collection_id)
    with catalog.write() as session:
        a, b, c, d = session.scalars(select(Image.id).order_by(Image.key))
        pairs = [(a, "good"), (b, "good"), (c, "bad"), (d, "bad")]
        claims = images.claim(session, collection_id, run_id, "recipe", pairs)
        record_photos(session, run_id, contract, [a_photo(a, claims[a][0], contract, 1)])
        broken = FailureRecord("c.jpg", "decode", "truncated", "cut off", retryable=False, image_id=c)
        record_failures(session, run_id, collection_id, [broken])
        ledger.fail_contents(session, {claims[c][0]: broken})
        for image_id in (b, d):
            session.get(Image, image_id).content_id = claims[image_id][0]
    with catalog.write() as session:
        ledger.settle(session, run_id, collection_id, "recipe", "/photos/")
    with catalog.read() as session:
        assert list(session.scalars(select(Image.status).order_by(Image.key))) == ["done", "done", "failed", "failed"]
        reasons = session.execute(select(Failure.reason, Failure.message).order_by(Failure.key)).tuples().all()
        assert reasons == [("truncated", "cut off"), ("truncated", "/photos/d.jpg: cut off")]
        assert ledger.audit(session, collection_id, contract, 1).problems == ()


def test_what_fails_night_after_night_stands_as_one_failure_by_its_latest_reason(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg", "copy.jpg"), model_versions(catalog)
    with catalog.read() as session:
        a, copy = session.scalars(select(Image.id).order_by(Image.key))
    for reason in ("access_denied", "access_denied", "truncated"):
        run_id = a_run(catalog, collection_id)
        with catalog.write() as session:
            images.reopen(session, collection_id, "recipe")
            claims = images.claim(session, collection_id, run_id, "recipe", [(a, "same"), (copy, "same")])
            link_duplicates(session, run_id, [(copy, claims[copy][0])])
            for stage in ("read", "decode"):  # Ray does some work twice
                failed = FailureRecord("a.jpg", stage, reason, "…", retryable=True, image_id=a)
                record_failures(session, run_id, collection_id, [failed])
                ledger.fail_contents(session, {claims[a][0]: failed})
        with catalog.write() as session:
            ledger.settle(session, run_id, collection_id, "recipe", "/photos/")
            runs.close_run(session, run_id, RunStatus.DONE_WITH_FAILURES, {})
        with catalog.read() as session:
            stand = [(f.run_id, f.key, f.reason) for f in views.failures(session, "archive", None, 10)]
            assert stand == [(run_id, "a.jpg", reason), (run_id, "copy.jpg", reason)]
            assert ledger.audit(session, collection_id, contract, 1).problems == ()


def test_audit_names_what_is_missing(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg", "b.jpg"), model_versions(catalog)
    run_id = a_run(catalog, collection_id)
    process_all(catalog, collection_id, run_id, contract)
    with catalog.write() as session:
        session.execute(text("DELETE FROM embedding WHERE face_id = 1"))
        session.execute(text("DELETE FROM attribute WHERE face_id = 2"))
        images.put_pending(session, collection_id, listed("c.jpg"))
        session.execute(text("UPDATE image SET status = 'failed' WHERE key = 'b.jpg'"))
    with catalog.read() as session:
        problems = ledger.audit(session, collection_id, contract, 1).problems
    assert problems == (
        "1 images failed without a reason",
        "1 images left pending",
        "1 faces without an embedding at the champion's contract",
        "1 faces without all their attributes",
    )


def test_a_changed_recipe_reopens_what_was_done_and_a_passing_failure_but_not_a_lasting_one(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    run_id = a_run(catalog, collection_id)
    process_all(catalog, collection_id, run_id, contract)
    with catalog.write() as session:
        images.put_pending(session, collection_id, listed("gone.jpg", "torn.jpg"))
        gone, torn = session.scalars(select(Image.id).where(Image.status == "pending").order_by(Image.key))
        record_failures(
            session,
            run_id,
            collection_id,
            [
                FailureRecord("gone.jpg", "read", "store_unavailable", "…", retryable=True, image_id=gone),
                FailureRecord("torn.jpg", "decode", "truncated", "…", retryable=False, image_id=torn),
            ],
        )
    for recipe, pending in (("recipe", ["gone.jpg"]), ("another", ["a.jpg", "gone.jpg", "torn.jpg"])):
        with catalog.write() as session:
            images.reopen(session, collection_id, recipe)
            found = session.scalars(select(Image.key).where(Image.status == "pending").order_by(Image.key))
            assert list(found) == pending


def test_pages_cover_every_pending_image_once(catalog: Catalog) -> None:
    keys = [f"{i:04}.jpg" for i in range(100)]
    collection_id = a_collection(catalog, *keys)
    with catalog.write() as session:
        session.execute(text("UPDATE image SET status = 'done' WHERE id % 3 = 0"))
    with catalog.read() as session:
        pages = images.pending_pages(session, collection_id, 1, 8)
        found = [work.key for page in pages for work in images.pending(session, collection_id, 1, page)]
        assert found == list(session.scalars(select(Image.key).where(Image.status == "pending").order_by(Image.id)))
        assert max(len(images.pending(session, collection_id, 1, page)) for page in pages) == 8


def test_a_run_whose_process_is_gone_is_closed_as_crashed(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)
    script = (
        "import sys; from infra.catalog.database import Catalog; from infra.catalog.work.runs import open_run\n"
        f"with Catalog({catalog.url!r}).write() as s: print(open_run(s, {collection_id}, 'recipe').id)"
    )
    dead = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    a_run(catalog, collection_id)
    with catalog.read() as session:
        run = session.get(Run, dead)
        assert run is not None
        assert run.status == RunStatus.CRASHED
        assert "ended without closing it" in (run.error or "")


def test_two_runs_never_work_on_one_collection_at_once(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)
    a_run(catalog, collection_id)
    with pytest.raises(runs.RunInProgress, match=f"process {os.getpid()}"):
        a_run(catalog, collection_id)


def test_of_many_that_open_a_run_at_once_one_does(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda _: succeeds(lambda: a_run(catalog, collection_id)), range(8)))
    assert opened.count(True) == 1


def succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except (runs.RunInProgress, collections.CollectionExists):
        return False
    return True


def test_of_many_that_add_a_collection_of_one_name_at_once_one_does(catalog: Catalog) -> None:
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda _: succeeds(lambda: a_collection(catalog)), range(8)))
    assert added.count(True) == 1


def test_actors_that_claim_the_same_bytes_in_any_order_neither_lock_each_other_out_nor_share(catalog: Catalog) -> None:
    keys = [f"{i:02}.jpg" for i in range(40)]
    collection_id = a_collection(catalog, *keys)
    run_id = a_run(catalog, collection_id)
    with catalog.read() as session:
        ids = list(session.scalars(select(Image.id).order_by(Image.key)))

    def work(actor: int) -> list[int]:
        """Claim 10 contents, each actor with images of its own, forwards or backwards."""
        mine = []
        for _ in range(5):
            pairs = [(ids[actor * 10 + i], f"sha {i}") for i in range(10)][:: (-1) ** actor]
            with catalog.write() as session:
                claims = images.claim(session, collection_id, run_id, "recipe", pairs)
            mine = [claims[image][0] for image, _ in pairs if claims[image][1]]
        return mine

    with ThreadPoolExecutor(4) as threads:
        owned = [content for mine in threads.map(work, range(4)) for content in mine]
    assert len(owned) == len(set(owned)) == 10


def test_what_a_read_session_sees_is_of_one_moment(catalog: Catalog) -> None:
    collection_id = a_collection(catalog, "a.jpg")
    with catalog.read() as session:
        assert session.scalar(select(func.count()).select_from(Image)) == 1
        with catalog.write() as writing:
            images.put_pending(writing, collection_id, listed("b.jpg"))
        assert session.scalar(select(func.count()).select_from(Image)) == 1
    assert count(catalog, Image) == 2


def test_keys_are_walked_in_the_order_of_their_bytes(catalog: Catalog) -> None:
    keys = ["b.jpg", "B.jpg", "a/b.jpg", "a.jpg", "é.jpg", "_.jpg", "Ａ.jpg", "𝒳.jpg", "z.jpg", "a b.jpg"]
    collection_id = a_collection(catalog, *keys)
    with catalog.read() as session:
        walked = [known.key for known in images.known(session, collection_id, page=3)]
    assert walked == sorted(keys, key=str.encode)


def test_concurrent_writers_wait_for_each_other(catalog: Catalog) -> None:
    collection_id = a_collection(catalog)

    def add(worker: int) -> None:
        mine = Catalog(catalog.url)
        for i in range(20):
            with mine.write() as session:
                session.scalar(select(func.count()).select_from(Image))  # a read first: the deadlock of deferred locks
                images.put_pending(session, collection_id, listed(f"{worker}-{i}.jpg"))

    threads = [threading.Thread(target=add, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(catalog, Image) == 80


def test_migrations_make_exactly_the_tables_that_the_code_declares(catalog: Catalog) -> None:
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415

    with catalog.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        differences = compare_metadata(context, Base.metadata)
    only_there = ["half"] if catalog.engine.dialect.name == "postgresql" else []  # generated from `vector`
    assert [(what, column.name) for what, _, _, column in differences] == [("remove_column", n) for n in only_there]


def test_queries_switch_to_a_new_version_only_when_every_face_has_it(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg", "b.jpg"), model_versions(catalog)
    process_all(catalog, collection_id, a_run(catalog, collection_id), contract)
    with catalog.write() as session:
        assert versions.serve_when_complete(session, contract.embedder_id)
        assert not versions.serve_when_complete(session, contract.describer_ids[0])
        serving = versions.serving(session)
        assert serving is not None
        assert serving.id == contract.embedder_id


def test_a_replaced_photo_leaves_nothing_behind(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    run_id = a_run(catalog, collection_id)
    process_all(catalog, collection_id, run_id, contract)
    with catalog.write() as session:
        image = session.scalars(select(Image)).one()
        images.put_pending(session, collection_id, listed("a.jpg", etag="2"))
        claims = images.claim(session, collection_id, run_id, "recipe", [(image.id, "new bytes")])
        record_photos(session, run_id, contract, [a_photo(image.id, claims[image.id][0], contract, 0)])
        ledger.settle(session, run_id, collection_id, "recipe", "/photos/")
        assert ledger.prune(session, collection_id) == ["1/ab/cd-0.jpg"]
    assert (count(catalog, Content), count(catalog, Face), count(catalog, Embedding)) == (1, 0, 0)


def test_a_face_is_shown_with_its_photo_estimates_and_models(catalog: Catalog) -> None:
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    process_all(catalog, collection_id, a_run(catalog, collection_id), contract, faces=1)
    with catalog.read() as session:
        [face] = views.faces(session, "archive", None, 0.5, 10)
        assert views.faces(session, "archive", None, 0.9, 10) == []
    assert face.keys == ("a.jpg",)
    assert face.attributes == (views.AttributeView("expression", 3.0, "happiness", 0.9, "describe@1"),)


def test_a_photo_that_was_renamed_is_shown_under_its_new_name_only(catalog: Catalog) -> None:
    crowd = Crowd(catalog)
    [renamed], [gone] = crowd.photo(1), crowd.photo(1)
    crowd.night()
    with catalog.write() as session:
        session.execute(update(Image).values(status="missing"))
        of = session.get_one(Face, renamed).content_id
        session.add(
            Image(
                collection_id=crowd.collection_id, key="new.jpg", etag="1", size=1, modified_at=WHEN, status="done",
                recipe="r", content_id=of,
            )
        )  # fmt: skip
        for face, value in itertools.product((renamed, gone), (0.1, 0.9)):
            version = crowd.versions[VERSIONS[value > 0.5]]
            session.add(Attribute(face_id=face, model_version_id=version, name="smile", kind="number", unit="0..1",
                                  value=value, confidence=1.0))  # fmt: skip
    with catalog.read() as session:
        shown = views.faces_by_id(session, [renamed, gone], crowd.versions[VERSIONS[0]])
        people = views.identities(session, 1, 10)
        [disagreement] = opinions(session, ["smile"], None, 10).disagreements
    assert (shown[renamed].keys, shown[gone].keys) == (("new.jpg",), ())
    assert disagreement.keys == ("new.jpg",)
    assert {key for person in people for key in person.keys} == {"new.jpg"}
