"""A removed collection is gone from every row and file, may be added again, and leaves known what was erased from it."""

# ruff: noqa: F811 - fixtures of another module

from pathlib import Path

import pytest
from sqlalchemy import select

from infra.catalog import collections
from infra.catalog.collections import UnknownCollection
from infra.catalog.custody import audit
from infra.catalog.custody.erasing import Erased
from infra.catalog.database import Catalog
from infra.catalog.tables.custody import Outbox, Suppression
from infra.catalog.tables.people import Person
from infra.catalog.tables.schema import Collection, Content, Face, Image, Run, RunStatus, Schedule, now
from infra.catalog.tables.upgrades import BackfillFailure, Upgrade
from infra.catalog.work import schedules, splits
from infra.catalog.work.failures import FailureRecord, record_failures
from infra.catalog.work.runs import close_run, open_run
from infra.settings import Settings
from infra.storage import AccessDenied, Entry, open_store
from infra.storage.base import LITTER
from infra.storage.folder import Folder
from tasks.custody import erase, remove_collection
from tasks.custody.erase import CannotErase
from tests.tasks.test_erase import Place, a_night, all_to_search, place, real, rows  # noqa: F401


def remove(place: Place, name: str = "crowd") -> erase.Certificate:
    with place.catalog.read() as session:
        planned = remove_collection.plan(session, name)
    certificate, finished = remove_collection.remove(place.catalog, place.settings, "officer", planned)
    assert finished.left == ()
    return certificate


def add(catalog: Catalog, name: str) -> int:
    with catalog.write() as session:
        return collections.add(session, name, "/photos", [], [], []).id


def test_a_removed_collection_is_gone_from_every_row_and_file(
    place: Place, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    crops = open_store(place.settings.crops_uri)
    kept = "consent", "schedule", "run", "failure", "split", "backfill"
    said = {name: f"kept in {name}: 1923/0417.jpg" for name in kept}
    with place.catalog.write() as session:
        collection = collections.by_name(session, "crowd")
        collection.consent_note = said["consent"]
        schedules.add(session, said["schedule"], collection, "0 2 * * *", "UTC", False)
        run = open_run(session, collection.id, "r")
        record_failures(session, run.id, collection.id, [FailureRecord(said["failure"], "discover", "", "", False)])
        close_run(session, run.id, RunStatus.FAILED, {}, said["run"])
        splits.keep(session, collection.id, 2, [said["split"]], anew=False)
        _, former, target = place.crowd.versions.values()
        upgrade = Upgrade(
            target_id=target, former_id=former, asked="", status="backfilling", verdict="", reason="", source=""
        )
        session.add(upgrade)
        session.flush()
        session.add(BackfillFailure(upgrade_id=upgrade.id, face_id=place.ada[0], reason=said["backfill"]))
    place.traces |= {name: words.encode() for name, words in said.items()}
    place.traces["exhibit"] = str(tmp_path / "export").encode()
    folders = all_to_search(place, tmp_path / "export", request)
    crops.put(f"{collection.id}/ab/abcdef/left by a run that died.jpg", b"a face", "image/jpeg")
    other = add(place.catalog, "other")
    crops.put(f"{other}/ab/abcdef/of another.jpg", b"another face", "image/jpeg")

    certificate = remove(place)

    assert place.left(*folders) == []
    for entity in (Face, Content, Image, Run, Schedule, Person, Outbox, Suppression):
        assert rows(place.catalog, entity) == 0, entity
    assert [entry.key for page in crops.list() for entry in page] == [f"{other}/ab/abcdef/of another.jpg"]
    assert certificate.completed_at is not None
    assert (certificate.kind, certificate.who) == ("collection", "officer")
    counts = certificate.counts
    assert (counts["images"], counts["faces"], counts["schedules"], counts["runs"]) == (7, 8, 1, 1)
    assert counts["exhibits"] == 1
    with place.catalog.read() as session:
        assert [found.name for found in collections.every(session)] == ["other"]
        with pytest.raises(UnknownCollection, match="there are: other"):
            collections.by_name(session, "crowd")
        assert audit.entries(session, 1)[0].subject["collection"] == collection.id
        audit.verify(session)


def test_a_collection_added_again_is_a_new_one(place: Place) -> None:
    before = place.crowd.collection_id
    remove(place)
    assert add(place.catalog, "crowd") > before
    with place.catalog.read() as session:
        again = collections.by_name(session, "crowd")
        assert Erased(session, again.id).keys == []
    remove(place)
    assert add(place.catalog, "crowd") > again.id


def test_what_was_erased_on_purpose_stays_out_of_what_is_added_later(place: Place) -> None:
    earlier = add(place.catalog, "added before")
    with place.catalog.read() as session:
        image = session.scalars(select(Image).order_by(Image.id)).first()
        assert image is not None
        content = session.get_one(Content, image.content_id)
    place.erase(erase.plan_image, image.key)
    remove(place)
    for name in ("crowd", "under another name"):
        later = add(place.catalog, name)
        with place.catalog.read() as session:
            erased = Erased(session, later)
        assert erased.content(content.sha256)
        assert erased.object(Entry(image.key, image.etag, image.size, now()))
        assert not erased.content("of another photograph")
    with place.catalog.read() as session:
        assert not Erased(session, earlier).content(content.sha256)  # nobody erased anything from that one


def test_a_collection_at_work_is_not_removed(place: Place) -> None:
    with place.catalog.read() as session:
        planned = remove_collection.plan(session, "crowd")
    with place.catalog.write() as session:
        run = open_run(session, place.crowd.collection_id, "r")
    with place.catalog.read() as session, pytest.raises(CannotErase, match=f"run {run.id} is at work"):
        remove_collection.plan(session, "crowd")
    with pytest.raises(CannotErase, match=f"run {run.id} is at work"):
        remove_collection.remove(place.catalog, place.settings, "officer", planned)
    assert rows(place.catalog, Face) == 8


def test_a_collection_that_has_changed_since_somebody_looked_is_not_removed(place: Place) -> None:
    with place.catalog.read() as session:
        planned = remove_collection.plan(session, "crowd")
    place.crowd.photo(1)
    with pytest.raises(CannotErase, match="has changed since"):
        remove_collection.remove(place.catalog, place.settings, "officer", planned)
    assert rows(place.catalog, Face) == 9


def test_nothing_is_removed_whose_crops_cannot_be_listed(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*_: object) -> None:
        raise AccessDenied("no right to list the crops")

    with place.catalog.read() as session:
        planned = remove_collection.plan(session, "crowd")
    monkeypatch.setattr(Folder, "list", denied)
    with pytest.raises(AccessDenied):
        remove_collection.remove(place.catalog, place.settings, "officer", planned)
    assert rows(place.catalog, Face) == 8


@pytest.mark.slow
def test_a_collection_added_again_is_processed_anew_but_for_what_was_erased(
    real: tuple[Settings, Catalog],
    tmp_path: Path,
) -> None:
    settings, catalog = real
    with catalog.read() as session:
        erased = erase.plan_image(session, "b.jpg", "archive")
    erase.erase(catalog, settings, "officer", erased, "asked for")
    with catalog.read() as session:
        planned = remove_collection.plan(session, "archive")
    _, finished = remove_collection.remove(catalog, settings, "officer", planned)
    assert finished.left == ()
    assert not any(path.is_file() for path in settings.home_folder.glob("objects/*/**/*"))
    (tmp_path / "photos" / "b.jpg").rename(tmp_path / "photos" / "b2.jpg")
    with catalog.write() as session:
        collections.add(session, "archive", str(tmp_path / "photos"), [], list(LITTER), [])
    first, second = a_night(settings), a_night(settings)
    assert (first.discovery.new, first.tally.faces, first.tally.failures["read: erased"]) == (7, 3, 1)
    assert (second.discovery.listed, second.discovery.ignored, second.tally.images) == (6, 1, 0)
    with catalog.read() as session:
        assert "b2.jpg" not in set(session.scalars(select(Image.key)))
        assert len(session.scalars(select(Collection)).all()) == 2
