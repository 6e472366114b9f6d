"""What is erased is gone: from every row, file and index, also if the process is killed meanwhile, and it stays away."""

import base64
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, func, select, text, update

from flows import night as steps
from flows import page as pages
from flows.night import Night, night
from flows.page import write_page
from infra.catalog import collections, ledger
from infra.catalog.custody import audit, erasing, exhibits
from infra.catalog.database import Catalog
from infra.catalog.images import Listed, put_pending
from infra.catalog.ledger import fail_contents, prune
from infra.catalog.search.vectors import put_embeddings
from infra.catalog.tables.custody import Outbox, Suppression
from infra.catalog.tables.people import Decision, Person
from infra.catalog.tables.schema import Attribute, Content, Embedding, Face, Identity, Image, ModelVersion, now
from infra.catalog.tables.service import IdempotencyKey
from infra.catalog.work.failures import FailureRecord
from infra.catalog.work.runs import open_run
from infra.settings import Settings
from infra.storage import open_store
from infra.storage.folder import Folder
from tasks.custody import erase, errands, retention
from tasks.custody.erase import CannotErase, UnknownSubject
from tasks.exchange.archive import CannotArchive, archive
from tasks.identities import decisions
from tasks.nights.report import Tally, contact_sheet
from tasks.thumbnails import Size, keep, thumbnail
from tests.catalogs import PostgreSQL
from tests.homes import stand_alone
from tests.made_up import Crowd

NAME = "Ada Lovelace"
ADA, BOB = 1, 2


@dataclass
class Place:
    """A home in which Ada is everywhere, beside Bob; `traces`: what must not be found of her afterwards."""

    crowd: Crowd
    settings: Settings
    ada: list[int]
    bob: list[int]
    traces: dict[str, bytes]

    @property
    def catalog(self) -> Catalog:
        return self.crowd.catalog

    def identity(self, face: int) -> int:
        found = self.crowd.places()[face]
        assert found is not None
        return found

    def erase(self, plan: Callable[..., erase.Plan], *arguments: object) -> erase.Certificate:
        with self.catalog.read() as session:
            planned = plan(session, *arguments)
        certificate, finished = erase.erase(self.catalog, self.settings, "officer", planned, "asked for")
        assert finished.left == ()
        return certificate

    def left(self, *folders: Path) -> list[str]:
        """Which traces are still in some file."""
        files = [p for folder in (self.settings.home_folder, *folders) for p in folder.rglob("*") if p.is_file()]
        contents = b"\0".join(path.read_bytes() for path in files)
        return sorted(name for name, trace in self.traces.items() if trace in contents)


def plant(home: Path, catalog: Catalog) -> Place:
    """Photos of Ada and Bob, alone and together, grouped and named, with all that is made of them."""
    settings = Settings(home=home, database_url=catalog.url)
    crowd = Crowd(catalog, spread=0.4)
    alone = [crowd.photo(person) for person in (ADA, ADA, ADA, BOB, BOB, BOB)]
    both = crowd.photo(ADA, BOB)
    crowd.night()
    ada, bob = [f for [f] in alone[:3]] + both[:1], [f for [f] in alone[3:]] + both[1:]
    place = Place(crowd, settings, ada, bob, {})
    with catalog.write() as session:
        decisions.name(session, "curator", place.identity(ada[0]), NAME)
        decisions.confirm(session, "curator", ada)
        decisions.decline(session, "curator", place.identity(ada[0]), place.identity(bob[0]))
        session.add(IdempotencyKey(who="x", key="y", request_digest="z", status=200, body=f'{{"name": "{NAME}"}}'))
        export = home.parent / "export" / "faces.parquet"
        exhibits.make_folder(session, settings, "export", export.parent, crowd.collection_id)
        store = open_store(settings.crops_uri)
        for face in session.scalars(select(Face)):
            store.put(face.crop_key, b"crop of face %d " % face.id + bytes(64), "image/jpeg")
        place.traces = {
            f"vector {e.face_id}": np.asarray(e.vector).tobytes()
            for e in session.scalars(select(Embedding).where(Embedding.face_id.in_(ada)))
        }
        sha256 = erasing.regions(session, ada[:1])[0].sha256
    thumb = home / "thumbnails" / sha256[:2] / sha256 / "320.jpg"
    for path, content in (
        (thumb, b"a small Ada"),
        (home / "index/abc/1.faiss", place.traces[f"vector {ada[0]}"]),
        (export, b"Ada exported"),
        (home / "training/abc/faces/crops.npy", b"Ada to train on"),
        (home / "training/abc/ray/state.pt", b"a checkpoint"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    place.traces |= {"name": NAME.encode(), "thumbnail": b"a small Ada", "export": b"Ada exported"}
    place.traces |= {"training": b"Ada to train on"}
    place.traces |= {f"crop {face}": b"crop of face %d " % face for face in ada}
    if catalog.engine.dialect.name == "sqlite":
        assert place.left(export.parent) == sorted(place.traces)
    return place


@pytest.fixture
def place(tmp_path: Path, catalog: Catalog) -> Place:
    return plant(tmp_path / "home", _at_home(tmp_path, catalog))


def _at_home(tmp_path: Path, catalog: Catalog) -> Catalog:
    """The same catalog, if it is a file, in the home, where its bytes are looked for."""
    if not catalog.url.startswith("sqlite"):
        return catalog
    (tmp_path / "home").mkdir()
    shutil.copyfile(catalog.url.removeprefix("sqlite:///"), tmp_path / "home" / "catalog.db")
    return Catalog(f"sqlite:///{tmp_path / 'home' / 'catalog.db'}")


def rows(catalog: Catalog, entity: type) -> int:
    with catalog.read() as session:
        return session.scalar(select(func.count()).select_from(entity)) or 0


def test_a_person_is_gone_from_every_row_and_file(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folders = all_to_search(place, tmp_path / "export", request)
    certificate = place.erase(erase.plan_identity, place.identity(place.ada[0]))
    assert place.left(*folders) == []
    assert (place.settings.home_folder / "training/abc/ray/state.pt").exists()  # so that it can go on
    with place.catalog.read() as session:
        assert set(session.scalars(select(Face.id))) == set(place.bob)
        assert session.scalars(select(Identity.name).where(Identity.name.is_not(None))).all() == []
        kinds = session.scalars(select(Decision.kind).order_by(Decision.id)).all()
        assert kinds == ["name", "confirm", "decline"]  # that there was a decision may be known, not of whom
        assert "Ada" not in str(audit.entries(session, 100))
        assert audit.verify(session).entries == 4
    assert certificate.completed_at is not None
    assert (certificate.kind, certificate.reason, certificate.who) == ("identity", "asked for", "officer")
    assert (certificate.counts["faces"], certificate.counts["objects"]) == (4, 4)
    assert rows(place.catalog, Outbox) == rows(place.catalog, IdempotencyKey) == 0
    assert rows(place.catalog, Person) == 1  # Bob, of whom somebody said that he is not she
    assert place.crowd.exemplars() == set(place.bob)
    assert place.crowd.night().grouped == 0


def all_to_search(place: Place, export: Path, request: pytest.FixtureRequest) -> list[Path]:
    """Where traces may lie outside of the home: an export and, with PostgreSQL, the database's files, which have them all."""
    folders = [export]
    if place.catalog.engine.dialect.name == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        folders.append(server.data_folder(place.catalog.url))
        sample(server, place)
        assert place.left(*folders) == sorted(place.traces)
    return folders


def sample(server: PostgreSQL, place: Place) -> None:
    """Have PostgreSQL take samples of all values, as it does by itself when many rows have changed, and write to its files."""
    server.execute(place.catalog.url, "ANALYZE")
    server.execute(place.catalog.url, "CHECKPOINT")


SAMPLES = text(
    "SELECT tablename, attname FROM pg_stats WHERE tablename LIKE '%embedding%' OR tablename IN ('face', 'identity')"
)


@pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
def test_postgresql_keeps_no_sample_of_a_table_that_an_erasure_emptied(place: Place, postgresql: PostgreSQL) -> None:
    sample(postgresql, place)
    with place.catalog.read() as session:
        assert {("embedding", "vector"), ("identity", "name")} <= set(session.execute(SAMPLES).tuples())
    place.erase(erase.plan_faces, place.ada + place.bob)
    with place.catalog.read() as session:
        assert session.execute(SAMPLES).all() == []


@pytest.mark.parametrize("catalog_url", ["postgresql"], indirect=True)
def test_an_erasure_is_finished_later_where_somebody_reads_a_table_for_long(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "LOCK_SECONDS", 0.1)
    with place.catalog.read() as session:
        plan = erase.plan_faces(session, place.ada)
    with place.catalog.read() as reading:
        reading.scalar(select(func.count(Face.id)))
        certificate, finished = erase.erase(place.catalog, place.settings, "officer", plan, "asked for")
        assert certificate.completed_at is None
        [problem] = finished.left
        assert "another connection may be using it" in problem
        assert errands.finish(place.catalog, place.settings).left == (problem,)
    assert errands.finish(place.catalog, place.settings).left == ()
    with place.catalog.read() as session:
        assert erase.certificates(session)[0].completed_at is not None


def test_what_stays_of_the_others_is_whole(place: Place) -> None:
    before = place.crowd.places()
    place.erase(erase.plan_faces, place.ada[:1])
    after = place.crowd.places()
    assert after == {face: where for face, where in before.items() if face != place.ada[0]}
    assert place.crowd.names() == {place.identity(place.ada[1]): NAME}
    store = open_store(place.settings.crops_uri)
    with place.catalog.read() as session:
        assert all(store.exists(key) for key in session.scalars(select(Face.crop_key)))
    theirs = {f"{what} {face}" for what in ("crop", "vector") for face in place.ada[1:]} | {"name"}
    assert theirs.issuperset(place.left())
    assert {f"crop {face}" for face in place.ada[1:]} <= set(place.left())


def test_a_person_of_whom_no_face_is_left_can_be_erased(place: Place) -> None:
    ada = place.identity(place.ada[0])
    with place.catalog.write() as session:  # all photographs of her were replaced
        photos = [place.crowd.photo_of[face] for face in place.ada]
        session.execute(delete(Image).where(Image.content_id.in_(photos)))
        ledger.prune(session, place.crowd.collection_id)
    place.crowd.night()
    certificate = place.erase(erase.plan_identity, ada)
    assert (certificate.counts["person"], certificate.counts["faces"]) == (1, 0)
    assert "name" not in place.left()
    assert names(place.catalog) == set()
    with place.catalog.read() as session, pytest.raises(UnknownSubject, match=f"no identity {ada}"):
        erase.plan_identity(session, ada)


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("others", ["shown as somebody else", "said not to be her"])
def test_a_name_goes_with_the_last_face_that_was_ever_said_to_have_it(place: Place, others: str) -> None:
    ada = place.identity(place.ada[0])
    with place.catalog.write() as session:
        if others == "shown as somebody else":
            decisions.reject(session, "curator", place.ada)
        else:
            decisions.reject(session, "curator", place.bob[:1], ada)
    place.erase(erase.plan_faces, place.ada)
    assert names(place.catalog) == set()
    assert "name" not in place.left()


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_a_name_whose_naming_was_undone_goes_with_the_next_erasure(place: Place) -> None:
    with place.catalog.write() as session:
        named = decisions.name(session, "curator", place.identity(place.bob[0]), "Bob Byron").decision_id
        decisions.undo(session, "curator", named)
        decisions.undo(session, "curator", 3)  # that he is not she
    assert "Bob Byron" in names(place.catalog)
    place.erase(erase.plan_faces, place.bob)
    assert names(place.catalog) == {NAME}


def names(catalog: Catalog) -> set[str | None]:
    with catalog.read() as session:
        columns = Person.name, Decision.name, Identity.name
        return {name for column in columns for name in session.scalars(select(column))} - {None}


def test_erasing_a_broken_file_erases_what_it_showed_before(place: Place) -> None:
    face = place.ada[0]
    with place.catalog.write() as session:
        image = session.scalars(select(Image).where(Image.content_id == place.crowd.photo_of[face])).one()
        broken = Content(
            collection_id=image.collection_id, sha256="broken", status="claimed", recipe="r", owner_image_id=0, run_id=0
        )
        session.add(broken)
        session.flush()
        put_pending(session, image.collection_id, [Listed(image.key, "2", 1, now())])
        fail_contents(session, {broken.id: FailureRecord(image.key, "decode", "truncated", "", False, image.id)})
        assert prune(session, image.collection_id) == []
    assert f"vector {face}" in place.left() or place.catalog.engine.dialect.name != "sqlite"
    certificate = place.erase(erase.plan_image, image.key)
    assert (certificate.counts["images"], certificate.counts["faces"], certificate.counts["objects"]) == (1, 1, 1)
    assert not {f"vector {face}", f"crop {face}", "thumbnail"} & set(place.left())
    assert rows(place.catalog, Content) == rows(place.catalog, Image) == 6


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("moment", ["before the commit", "first errand", "third errand", "scrub"])
def test_a_kill_in_the_middle_loses_nothing_or_is_made_good(
    place: Place, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.catalog.read() as session:
        plan = erase.plan_identity(session, place.identity(place.ada[0]))
    url, real, calls = place.catalog.url, errands._run, []

    def run(catalog: Catalog, settings: Settings, errand: Outbox, address: str | None) -> str:
        calls.append(errand)
        if len(calls) == {"first errand": 1, "third errand": 3}.get(moment):
            die()
        return real(catalog, settings, errand, address)

    place.catalog.close()
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(errands, "_run", run)
        if moment == "before the commit":
            monkeypatch.setattr(audit, "append", die)
        if moment == "scrub":
            monkeypatch.setattr(erasing, "scrub", die)
        erase.erase(Catalog(url), place.settings, "officer", plan, "asked for")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if moment == "before the commit":
        assert place.left(tmp_path / "export") == sorted(place.traces)
        assert len(place.crowd.places()) == 8
        return
    assert set(place.crowd.places()) == set(place.bob)
    assert errands.finish(place.catalog, place.settings).left == ()
    assert place.left(tmp_path / "export") == []
    with place.catalog.read() as session:
        (certificate,) = erase.certificates(session)
    assert certificate.completed_at is not None
    assert errands.finish(place.catalog, place.settings) == errands.Finished(0, ())


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_what_cannot_be_deleted_now_is_said_and_done_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.catalog.read() as session:
        plan = erase.plan_faces(session, place.ada)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(PermissionError(f"no right to {path}")))
        certificate, finished = erase.erase(place.catalog, place.settings, "officer", plan, "asked for")
    assert certificate.completed_at is None
    assert any("no right to" in problem for problem in finished.left)
    assert errands.finish(place.catalog, place.settings).left == ()
    with place.catalog.read() as session:
        assert erase.certificates(session)[0].completed_at is not None


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_crops_are_deleted_side_by_side(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    together, real = Barrier(4, timeout=60), Folder.delete

    def delete_together(store: Folder, key: str) -> None:
        together.wait()
        real(store, key)

    monkeypatch.setattr(Folder, "delete", delete_together)
    assert place.erase(erase.plan_faces, place.ada).completed_at is not None  # her four
    assert not any(name.startswith("crop") for name in place.left())


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_what_came_to_lie_where_an_export_was_is_named_and_stays(place: Place, tmp_path: Path) -> None:
    export, own = tmp_path / "export", tmp_path / "export" / "my only negatives.tif"
    export.rename(tmp_path / "taken away")
    export.mkdir()
    own.write_bytes(b"precious")
    with place.catalog.read() as session:
        plan = erase.plan_faces(session, place.ada)
    assert plan.exhibits == (str(export),)
    certificate, finished = erase.erase(place.catalog, place.settings, "officer", plan, "asked for")
    (problem,) = finished.left
    assert str(export) in problem
    assert "if it is yours, move it away" in problem
    assert certificate.completed_at is None
    assert own.read_bytes() == b"precious"
    export.rename(tmp_path / "out of the way")
    assert errands.finish(place.catalog, place.settings).left == ()
    with place.catalog.read() as session:
        assert erase.certificates(session)[0].completed_at is not None


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_what_cannot_be_erased_is_refused(place: Place) -> None:
    with place.catalog.write() as session:
        with pytest.raises(UnknownSubject, match="no such faces: 99"):
            erase.plan_faces(session, [99])
        with pytest.raises(UnknownSubject, match="no image with the key"):
            erase.plan_image(session, "nothing.jpg")
        with pytest.raises(UnknownSubject, match="no identity 99"):
            erase.plan_identity(session, 99)
        person = erase.plan_identity(session, place.identity(place.ada[0]))
    place.crowd.photo(ADA)
    place.crowd.night()
    with pytest.raises(CannotErase, match="more is known of this person by now"):
        erase.erase(place.catalog, place.settings, "officer", person, "asked for")
    with place.catalog.write() as session:
        plan = erase.plan_faces(session, place.ada)
        run = open_run(session, place.crowd.collection_id, "recipe").id
    with pytest.raises(CannotErase, match=f"run {run} is at work"):
        erase.erase(place.catalog, place.settings, "officer", plan, "asked for")
    assert len(place.crowd.places()) == 9


@pytest.mark.parametrize("since", ["replaced", "copied"])
def test_a_photograph_of_which_more_is_known_since_somebody_looked_is_not_erased(place: Place, since: str) -> None:
    seen, other = (place.crowd.photo_of[face] for face in (place.ada[0], place.bob[0]))
    with place.catalog.read() as session:
        image = session.scalars(select(Image).where(Image.content_id == seen)).one()
        plan = erase.plan_image(session, image.key)
    changed, holds = (Image.id == image.id, other) if since == "replaced" else (Image.content_id == other, seen)
    with place.catalog.write() as session:
        session.execute(update(Image).where(changed).values(content_id=holds))
    with pytest.raises(CannotErase, match="more is known of this photograph by now"):
        erase.erase(place.catalog, place.settings, "officer", plan, "asked for")
    assert rows(place.catalog, Suppression) == 0


@pytest.mark.parametrize("before", ["nothing", "a run that died"])
def test_no_run_begins_in_the_middle_of_an_erasure(place: Place, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if before == "a run that died":
        with place.catalog.write() as session:
            open_run(session, place.crowd.collection_id, "r").process_id = 2**22 - 1
    real = erase.leave_errands

    def begin() -> None:
        with place.catalog.write() as session:
            open_run(session, place.crowd.collection_id, "r")

    with ThreadPoolExecutor(1) as other:

        def leave_errands(*arguments: Any) -> None:
            begun.append(other.submit(begin))
            assert wait(begun, timeout=0.3).done == set()
            real(*arguments)

        begun: list[Future[None]] = []
        monkeypatch.setattr(erase, "leave_errands", leave_errands)
        assert place.erase(erase.plan_faces, place.ada).completed_at is not None
        begun[0].result(timeout=60)


def test_a_page_made_during_an_erasure_does_not_show_what_was_erased(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISAGE_HOME", str(place.settings.home_folder))
    monkeypatch.setenv("VISAGE_DATABASE_URL", place.catalog.url)

    def shown(page: Path) -> list[int]:
        pictures = {f: base64.b64encode(b"crop of face %d " % f + bytes(64)).decode() for f in place.ada + place.bob}
        return [face for face, picture in pictures.items() if picture in page.read_text()]

    assert shown(write_page("crowd", tmp_path / "page")) == place.ada + place.bob
    real = pages._wall
    with monkeypatch.context() as patch:

        def wall(*arguments: Any) -> Any:
            patch.undo()
            place.erase(erase.plan_faces, place.ada)
            return real(*arguments)

        patch.setattr(pages, "_wall", wall)
        page = write_page("crowd", tmp_path / "page")
    assert shown(page) == place.bob
    place.erase(erase.plan_faces, place.bob)
    assert not page.exists()


def test_an_archive_made_during_an_erasure_is_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "LOCK_SECONDS", 0.1)
    hasty = Catalog(place.catalog.url, busy_seconds=0.1)
    with place.catalog.read() as session:
        plans = [erase.plan_faces(session, place.ada)]

    def meanwhile(step: str, done: int) -> None:
        if step == "objects" and plans:
            erase.erase(hasty, place.settings, "officer", plans.pop(), "asked for")

    with pytest.raises(CannotArchive, match="something was erased while 'crowd' was archived; archive it again"):
        archive(place.catalog, place.settings, "crowd", tmp_path / "crowd.visage", "tests", meanwhile)
    assert [*tmp_path.glob("*.visage*")] == []
    assert errands.finish(place.catalog, place.settings).left == ()
    hasty.close()


def test_embeddings_whose_time_is_over_are_deleted_and_not_made_again(place: Place) -> None:
    catalog = place.catalog
    retention.set_terms(catalog, "crowd", retention_days=30, legal_basis="contract")
    assert retention.expire(catalog, place.settings, "officer") == {}
    with catalog.write() as session:
        session.execute(update(Face).where(Face.id.in_(place.ada)).values(found_at=now() - timedelta(days=31)))
    assert retention.expire(catalog, place.settings, "officer") == {"crowd": 4}
    assert [name for name in place.left() if name.startswith("vector")] == []
    with catalog.write() as session:
        assert set(session.scalars(select(Embedding.face_id))) == set(place.bob)
        version = place.crowd.versions["first"]
        before = rows(catalog, Embedding)
        put_embeddings(session, version, {place.ada[0]: place.crowd.look("first", ADA)})
    assert rows(catalog, Embedding) == before
    assert place.crowd.places()[place.ada[0]] is not None  # the place among people stays
    assert place.crowd.exemplars() == set(place.bob)
    assert retention.expire(catalog, place.settings, "officer") == {}


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_a_retention_longer_than_any_calendar_is_refused_and_keeps_embeddings(place: Place) -> None:
    with pytest.raises(retention.InvalidTerms, match="1 to 36500"):
        retention.set_terms(place.catalog, "crowd", retention_days=36_501)
    with place.catalog.write() as session:
        collections.by_name(session, "crowd").retention_days = 2_000_000_000  # as earlier versions wrote it
    assert retention.expire(place.catalog, place.settings, "officer") == {}


# --- With real photographs


@pytest.fixture
def real(
    processed: Settings, tmp_path: Path, tracking_uri: str, weights_dir: Path
) -> Iterator[tuple[Settings, Catalog]]:
    """A copy of the processed archive, with a thumbnail, whose photographs may be changed."""
    home = tmp_path / "home"
    shutil.copytree(processed.home_folder, home)
    shutil.copytree(processed.home_folder.parent / "photos", tmp_path / "photos")
    settings = Settings(home=home, weights=weights_dir, tracking_uri=tracking_uri, engine="inline")
    catalog = Catalog(settings.catalog_url)
    stand_alone(catalog, settings)
    with catalog.write() as session:
        collections.by_name(session, "archive").uri = str(tmp_path / "photos")
        image = session.scalars(select(Image).where(Image.key == "a.jpg")).one()
        sha256 = erasing.digests(session, [image.content_id or 0])[0]
    small = thumbnail(settings, str(tmp_path / "photos"), image.key, image.etag, sha256, Size.SMALL)
    keep(settings, sha256, Size.SMALL, small)
    yield settings, catalog
    catalog.close()


def report(settings: Settings, look: np.ndarray) -> None:
    """Report a night that has seen one face."""
    with night(settings, "archive") as state:
        state.tally.portraits = [(0.9, look)]
        steps.report_run(state)


def a_night(settings: Settings) -> Night:
    with night(settings, "archive") as state:
        steps.discover_images(state)
        steps.process_images(state)
        steps.group_faces(state)
        steps.audit_catalog(state)
    return state


def files(settings: Settings) -> set[str]:
    return {str(p.relative_to(settings.home_folder)) for p in settings.home_folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_an_erased_photo_and_an_erased_face_are_not_taken_in_again(
    real: tuple[Settings, Catalog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, catalog = real
    for name in ("home", "weights", "tracking_uri"):
        monkeypatch.setenv(f"VISAGE_{name.upper()}", str(getattr(settings, name)))
    page = write_page("archive", tmp_path / "page")
    with catalog.read() as session:
        image = erase.plan_image(session, "a.jpg", "archive")
        assert image.keys == ("archive/a.jpg", "archive/z_copy_of_a.jpg")
        pair = session.scalars(select(Image.content_id).where(Image.key == "c/pair.jpg")).one()
        face = erase.plan_faces(session, erasing.faces_in(session, [pair or 0])[:1])
        traces = [
            v.tobytes()
            for v in session.scalars(select(Embedding.vector).where(Embedding.face_id.in_([*image.faces, *face.faces])))
        ]
        crops = erasing.objects_of(session, [*image.faces, *face.faces])
    for plan in (image, face):
        _, finished = erase.erase(catalog, settings, "officer", plan, "asked for")
        assert finished.left == ()
    left = files(settings)
    assert not page.exists()
    assert not any(name.startswith("thumbnails") for name in left)
    assert not any(f"objects/{key}" in left for key in crops)
    assert not any(trace in (settings.home_folder / name).read_bytes() for name in left for trace in traces)

    assert (tmp_path / "photos" / "a.jpg").exists()  # theirs, not ours
    shutil.copyfile(tmp_path / "photos" / "a.jpg", tmp_path / "photos" / "under another name.jpg")
    first, second = a_night(settings), a_night(settings)
    assert (first.discovery.new, first.tally.failures["read: erased"], first.tally.faces) == (1, 1, 0)
    assert (second.discovery.new, second.discovery.ignored, second.tally.images) == (0, 3, 0)
    assert first.failed_images == second.failed_images == 2  # those that were broken before
    anew = settings.model_copy(update={"restore_model": ""})  # another recipe: everything is processed again
    assert a_night(anew).tally.faces == 2  # b.jpg and the other half of the pair
    with catalog.read() as session:
        assert session.scalar(select(func.count()).select_from(Face)) == 2
        assert set(session.scalars(select(Image.key))).isdisjoint({"a.jpg", "under another name.jpg"})
        assert session.scalar(select(func.count()).select_from(Suppression)) == 5
        assert (
            session.scalar(select(func.count()).select_from(Attribute).where(Attribute.face_id.in_(image.faces))) == 0
        )
        other = session.scalars(select(Image.content_id).where(Image.key == "b.jpg")).one()
        replaced = erasing.objects_of(session, erasing.faces_in(session, [other or 0]))
    assert replaced
    shutil.copyfile(tmp_path / "photos" / "a.jpg", tmp_path / "photos" / "b.jpg")  # what was there before goes with it
    assert a_night(anew).tally.faces == 0
    assert not any(f"objects/{key}" in files(settings) for key in replaced)


@pytest.mark.slow
def test_no_report_of_a_night_shows_or_names_what_is_erased(
    real: tuple[Settings, Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, catalog = real
    looks = np.random.default_rng(0).integers(0, 255, (2, 96, 96, 3), np.uint8)
    sheets = [contact_sheet(Tally(portraits=[(0.9, look)])) or b"" for look in looks]

    def shown() -> set[int]:
        contents = b"".join((settings.home_folder / name).read_bytes() for name in files(settings))
        return {n for n, sheet in enumerate(sheets) if sheet in contents or base64.b64encode(sheet) in contents}

    report(settings, looks[0])
    with monkeypatch.context() as patch:
        patch.setattr(steps, "as_html", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            report(settings, looks[1])  # the sheet is there, and the night dies
    assert shown() == {0, 1}
    with catalog.read() as session:
        plan = erase.plan_image(session, "a.jpg", "archive")
    certificate, _ = erase.erase(catalog, settings, "officer", plan, "asked for")
    assert certificate.completed_at is not None
    assert certificate.counts["reports"] == 2
    assert shown() == set()
    left = {Path(name).name for name in files(settings)}
    assert "counts.json" in left
    assert left.isdisjoint({"contact_sheet.png", "report.html", "report.json"})


@pytest.mark.slow
def test_whoever_a_photo_shows_is_found_exactly_and_erased(real: tuple[Settings, Catalog], tmp_path: Path) -> None:
    settings, catalog = real
    with catalog.read() as session:
        plan = erase.plan_photo(session, settings, tmp_path / "photos" / "b.jpg")
        assert len(plan.faces) == 4
        assert max(plan.similarities.values()) == pytest.approx(1, abs=1e-3)
        with pytest.raises(CannotErase, match="2 faces are in this photo"):
            erase.plan_photo(session, settings, tmp_path / "photos" / "c" / "pair.jpg")
        with pytest.raises(CannotErase, match="nothing was erased"):
            erase.plan_photo(session, settings, tmp_path / "photos" / "a.jpg", least=1.0001)
        version = session.scalars(select(ModelVersion).where(ModelVersion.serving)).one()
        assert version.calibration is not None
    erase.erase(catalog, settings, "officer", plan, "asked for")
    assert rows(catalog, Face) == rows(catalog, Identity) == 0
    assert a_night(settings).tally.faces == 0
