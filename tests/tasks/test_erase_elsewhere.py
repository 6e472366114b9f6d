"""Several homes on one catalog: an erasure reaches them all, and its certificate is not complete before."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from flows.service.app import create_app
from infra.catalog.custody import audit, erasing, exhibits, places
from infra.catalog.custody.places import UnknownPlace
from infra.catalog.database import Catalog
from infra.catalog.tables.custody import Holding, Keeps, Outbox
from infra.catalog.tables.schema import Face, RunStatus
from infra.catalog.work.runs import close_run, open_run
from infra.settings import Settings
from infra.storage import open_store
from tasks.custody import erase, errands
from tasks.custody.erase import Certificate
from tasks.custody.errands import Finished
from tasks.custody.outside import forget_place
from tasks.exchange.archive import CannotArchive, archive
from tests.made_up import Crowd

ADA, BOB = 1, 2


class Homes:
    """Two home folders, `near` and `far`, over one catalog, in both of which faces lie; `ada`: whose are to be erased."""

    def __init__(self, catalog: Catalog, folder: Path) -> None:
        self.catalog = catalog
        self.near, self.far = (Settings(home=folder / name, database_url=catalog.url) for name in ("near", "far"))
        crowd = Crowd(catalog, spread=0.4)
        [self.ada], [self.bob] = crowd.photo(ADA), crowd.photo(BOB)
        self.folder = folder
        for settings in (self.near, self.far):
            places.enter(catalog, settings, Keeps.OBJECTS, Keeps.CACHE)
        with catalog.write() as session:
            for settings in (self.near, self.far):
                exhibits.make_folder(session, settings, "export", settings.home_folder / "export", crowd.collection_id)
            keys = dict(session.execute(select(Face.id, Face.crop_key)).tuples().all())
            [region] = erasing.regions(session, [self.ada])
        self.sha256 = region.sha256
        for settings in (self.near, self.far):
            for face, key in keys.items():
                open_store(settings.crops_uri).put(key, b"crop of %d" % face, "image/jpeg")
            self.write(settings, f"thumbnails/{self.sha256[:2]}/{self.sha256}/320.jpg", b"a small Ada")
            self.write(settings, "export/faces.csv", b"Ada exported")
            self.write(settings, "index/abc/1.faiss", b"vector of Ada")

    @staticmethod
    def write(settings: Settings, name: str, content: bytes) -> None:
        path = settings.home_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def shown(self, settings: Settings) -> set[str]:
        """What of Ada still lies in a home."""
        traces = {
            "crop": b"crop of %d" % self.ada,
            "thumbnail": b"a small Ada",
            "export": b"Ada exp",
            "vector": b"vector of",
        }
        content = b"\0".join(p.read_bytes() for p in settings.home_folder.rglob("*") if p.is_file())
        return {name for name, trace in traces.items() if trace in content}

    def erase(self) -> tuple[Certificate, Finished]:
        with self.catalog.read() as session:
            plan = erase.plan_faces(session, [self.ada])
        return erase.erase(self.catalog, self.near, "officer", plan, "asked for")

    def certificate(self) -> Certificate:
        with self.catalog.read() as session:
            return erase.certificates(session)[0]


EVERYTHING = {"crop", "thumbnail", "export", "vector"}


@pytest.fixture
def homes(catalog: Catalog, tmp_path: Path) -> Homes:
    return Homes(catalog, tmp_path)


def test_an_erasure_is_complete_when_every_home_has_done_its_part(homes: Homes) -> None:
    assert homes.shown(homes.near) == homes.shown(homes.far) == EVERYTHING
    certificate, finished = homes.erase()
    assert homes.shown(homes.near) == set()
    assert homes.shown(homes.far) == EVERYTHING
    assert finished.left == ()
    assert certificate.completed_at is None
    [home] = certificate.waits_for
    assert str(homes.far.home_folder) in home
    assert len(finished.waiting) == 3  # objects, cache, exhibits
    assert all(str(homes.far.home_folder) in waiting for waiting in finished.waiting)

    assert errands.finish(homes.catalog, homes.near).done == 0  # which leaves alone what is not its own
    assert homes.shown(homes.far) == EVERYTHING

    finished = errands.finish(homes.catalog, homes.far)
    assert (finished.left, finished.waiting) == ((), ())
    assert homes.shown(homes.far) == set()
    assert (homes.far.home_folder / "objects").exists()  # Bob's crop is there still
    certificate = homes.certificate()
    assert certificate.completed_at is not None
    assert certificate.waits_for == ()


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_a_page_that_is_open_in_another_home_removes_its_pictures_without_a_night(homes: Homes) -> None:
    homes.erase()
    with TestClient(create_app(homes.far)):
        until = time.monotonic() + 30
        while homes.shown(homes.far) and time.monotonic() < until:
            time.sleep(0.05)
        assert homes.shown(homes.far) == set()
    assert homes.certificate().completed_at is not None


def test_a_place_that_is_no_more_is_forgotten_and_the_certificate_says_so(homes: Homes) -> None:
    homes.erase()
    with homes.catalog.read() as session:
        far = [p for p in places.every(session) if p.folder == str(homes.far.home_folder)]
    assert {place.keeps: place.errands for place in far} == {"objects": 1, "cache": 3, "exhibits": 1}
    for number, place in enumerate(far, start=1):
        assert homes.certificate().completed_at is None
        assert forget_place(homes.catalog, "officer", place.place_id) == place.errands
        assert len(homes.certificate().waits_for) == (number < len(far))
    certificate = homes.certificate()
    assert certificate.completed_at is not None
    assert certificate.counts["unreached"] == 5
    with homes.catalog.read() as session:
        assert {place.folder for place in places.every(session)} == {str(homes.near.home_folder)}
        assert [entry.action for entry in audit.entries(session, 3)] == ["place.forget"] * 3
    with pytest.raises(UnknownPlace, match=f"no place {far[0].place_id}"):
        forget_place(homes.catalog, "officer", far[0].place_id)

    places.enter(homes.catalog, homes.far, Keeps.CACHE)  # it is there after all
    assert homes.shown(homes.far) == {"crop", "export"}


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_a_home_in_which_nothing_lies_is_waited_for_by_nobody(homes: Homes, tmp_path: Path) -> None:
    laptop = Settings(home=tmp_path / "laptop", database_url=homes.catalog.url)
    with homes.catalog.read() as session:
        plan = erase.plan_faces(session, [homes.bob])
    erase.erase(homes.catalog, laptop, "officer", plan, "asked for")
    with homes.catalog.read() as session:
        assert str(laptop.home_folder) not in {place.folder for place in places.every(session)}


def test_what_lay_in_a_home_before_it_was_entered_goes_with_its_own_erasure(homes: Homes, tmp_path: Path) -> None:
    old = Settings(home=tmp_path / "old", database_url=homes.catalog.url)
    homes.write(old, f"thumbnails/{homes.sha256[:2]}/{homes.sha256}/320.jpg", b"a small Ada")
    with homes.catalog.read() as session:
        plan = erase.plan_faces(session, [homes.ada])
    _, finished = erase.erase(homes.catalog, old, "officer", plan, "asked for")
    assert homes.shown(old) == set()
    assert len(finished.waiting) == 6  # of near and far


def test_an_archive_that_fails_leaves_known_what_another_home_wrote_under_the_same_path(homes: Homes) -> None:
    path = homes.folder / "crowd.visage"
    with homes.catalog.write() as session:
        exhibits.note(session, homes.near, "archive", path, None)
    shutil.rmtree(homes.far.crops_uri)
    with pytest.raises(CannotArchive, match="this crop is missing"):
        archive(homes.catalog, homes.far, "crowd", path, "tests")
    with homes.catalog.read() as session:
        assert str(path) in erase.plan_faces(session, [homes.ada]).exhibits


def test_a_shared_bucket_is_one_place_and_any_home_empties_it(catalog: Catalog, tmp_path: Path) -> None:
    shared = {"objects_uri": "s3://crops/museum", "tracking_uri": "https://mlflow.museum", "database_url": catalog.url}
    for name in ("near", "far"):
        places.enter(catalog, Settings(home=tmp_path / name, **shared), Keeps.OBJECTS, Keeps.REPORTS)
    with catalog.read() as session:
        found = places.every(session)
        assert {(p.keeps, p.address, p.home_id) for p in found} == {
            ("objects", "s3://crops/museum", None),
            ("reports", "https://mlflow.museum", None),
        }
        assert len(found) == 2


def test_no_password_is_kept_of_a_tracking_database(catalog: Catalog, tmp_path: Path) -> None:
    uri = "postgresql://mlflow:secret@db/mlflow"
    settings = Settings(home=tmp_path, database_url=catalog.url, tracking_uri=uri)
    places.enter(catalog, settings, Keeps.REPORTS)
    with catalog.read() as session:
        [address] = session.scalars(select(Holding.address))
    assert address == "postgresql://mlflow:***@db/mlflow"
    assert places.at(settings, address).mlflow_uri == uri


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_home_that_was_moved_or_copied_with_its_catalog_erases_where_it_is_now(tmp_path: Path, how: str) -> None:
    """And a copy never touches what it is a copy of."""
    (tmp_path / "near").mkdir()
    homes = Homes(Catalog(f"sqlite:///{tmp_path / 'near' / 'catalog.db'}"), tmp_path)
    with homes.catalog.write() as session:
        run = open_run(session, 1, "recipe")
        run.tracking_run_id = "0" * 32
        close_run(session, run.id, RunStatus.DONE, {})
    report = f"artifacts/nightly/{'0' * 32}/artifacts/report.html"
    homes.write(homes.near, report, b"a report with Ada")
    homes.catalog.close()
    now_at = Settings(home=tmp_path / how)
    shutil.copytree(tmp_path / "near", tmp_path / how)
    if how == "moved":
        shutil.rmtree(tmp_path / "near")
    catalog = Catalog(now_at.catalog_url)
    with catalog.read() as session:
        plan = erase.plan_faces(session, [homes.ada])
    certificate, _ = erase.erase(catalog, now_at, "officer", plan, "asked for")
    assert not (now_at.home_folder / report).exists()
    assert homes.shown(now_at) == {"export"}  # whose mark is of another place
    if how == "copied":
        assert homes.shown(homes.near) == EVERYTHING
        assert (homes.near.home_folder / report).exists()
        assert f"{homes.near.home_folder} on" in str(certificate.waits_for)
    catalog.close()


def test_entering_again_writes_nothing(homes: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes.catalog, "write", lambda: pytest.fail("a write"))
    places.enter(homes.catalog, homes.far, Keeps.OBJECTS, Keeps.CACHE)


def test_processes_that_use_a_home_for_the_first_time_together_enter_it_once(catalog: Catalog, tmp_path: Path) -> None:
    program = (
        "import sys; from infra.catalog.custody import places; from infra.catalog.database import Catalog;"
        "from infra.catalog.tables.custody import Keeps; from infra.settings import Settings;"
        f"s = Settings(home={str(tmp_path / 'home')!r}, database_url={catalog.url!r});"
        "places.enter(Catalog(s.catalog_url), s, *Keeps)"
    )
    started = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in started] == [0] * 2
    with catalog.read() as session:
        assert sorted(place.keeps for place in places.every(session)) == sorted(Keeps)


def test_an_errand_from_before_there_were_places_is_done_by_whoever_comes(homes: Homes) -> None:
    homes.erase()
    with homes.catalog.write() as session:
        for errand in session.scalars(select(Outbox)):
            errand.holding_id = None
    assert errands.finish(homes.catalog, homes.far).left == ()
    assert homes.shown(homes.far) == set()
    assert homes.certificate().completed_at is not None
