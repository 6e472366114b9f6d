"""Collections renamed and moved: what refers to them stays, and a wrong place changes nothing."""

from pathlib import Path

import pytest

from infra.catalog import collections as stored
from infra.catalog.collections import CollectionExists, UnknownCollection
from infra.catalog.database import Catalog
from infra.catalog.images import Listed, put_pending
from infra.catalog.tables.schema import now
from infra.catalog.work import schedules
from infra.catalog.work.runs import RunInProgress, open_run
from infra.settings import Settings
from infra.storage import StoreError
from tasks.nights.collections import InvalidCollection, Moved, move, rename
from tasks.nights.schedules import list_schedules

KEYS = ("a.jpg", "b.jpg", "c/d.jpg")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def photos(tmp_path: Path, catalog: Catalog) -> Path:
    """A folder with photographs, which are known as the collection `archive`."""
    folder = tmp_path / "photos"
    for key in KEYS:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(key.encode())
    with catalog.write() as session:
        collection = stored.add(session, "archive", str(folder), [], [], [])
        put_pending(session, collection.id, [Listed(key, "1", len(key), now()) for key in KEYS])
    return folder


def uri_of(catalog: Catalog, name: str = "archive") -> str:
    with catalog.read() as session:
        return stored.by_name(session, name).uri


def test_a_renamed_collection_keeps_its_schedules(catalog: Catalog, photos: Path) -> None:
    with catalog.write() as session:
        schedules.add(session, "nightly", stored.by_name(session, "archive"), "0 2 * * *", "UTC", False)
    rename(catalog, "archive", "press")
    assert [(row.name, row.collection) for row in list_schedules(catalog)] == [("nightly", "press")]
    with catalog.read() as session, pytest.raises(UnknownCollection):
        stored.by_name(session, "archive")


def test_what_cannot_be_a_name_or_is_taken_changes_nothing(catalog: Catalog, photos: Path) -> None:
    with catalog.write() as session:
        stored.add(session, "press", "/press", [], [], [])
    for name, error in (("a/b", InvalidCollection), (" ", InvalidCollection), ("press", CollectionExists)):
        with pytest.raises(error):
            rename(catalog, "archive", name)
    with pytest.raises(UnknownCollection):
        rename(catalog, "albums", "archive")
    with catalog.read() as session:
        assert [collection.name for collection in stored.every(session)] == ["archive", "press"]


def test_the_same_photographs_elsewhere_are_found_by_their_keys(
    catalog: Catalog, photos: Path, settings: Settings
) -> None:
    elsewhere = photos.rename(photos.with_name("elsewhere"))
    (elsewhere / "b.jpg").rename(elsewhere / "new.jpg")
    (elsewhere / "no picture.txt").touch()
    moved = move(catalog, settings, "archive", f"{elsewhere}/../elsewhere")
    assert moved == Moved("archive", str(elsewhere), found=2, missing=1, new=1)
    assert uri_of(catalog) == str(elsewhere)


def test_a_place_without_any_of_the_photographs_is_refused(catalog: Catalog, photos: Path, settings: Settings) -> None:
    other = photos / "c"
    (other / "e.jpg").touch()
    with pytest.raises(InvalidCollection, match=r"of 3 photographs of 'archive', none is there"):
        move(catalog, settings, "archive", str(other))
    with pytest.raises(StoreError, match="no such folder"):
        move(catalog, settings, "archive", str(photos / "nowhere"))
    for nonsense in ("ftp://server/photos", str(settings.home_folder)):
        with pytest.raises(InvalidCollection):
            move(catalog, settings, "archive", nonsense)
    assert uri_of(catalog) == str(photos)


def test_a_collection_of_which_nothing_is_known_yet_may_be_moved_anywhere(
    catalog: Catalog, photos: Path, settings: Settings
) -> None:
    with catalog.write() as session:
        stored.add(session, "new", "/wrong", [], [], [])
    assert move(catalog, settings, "new", str(photos)) == Moved("new", str(photos), found=0, missing=0, new=3)


def test_a_collection_at_work_is_neither_renamed_nor_moved(catalog: Catalog, photos: Path, settings: Settings) -> None:
    with catalog.write() as session:
        run = open_run(session, stored.by_name(session, "archive").id, "r")
    with pytest.raises(RunInProgress, match=f"run {run.id} is at work on 'archive'"):
        rename(catalog, "archive", "press")
    with pytest.raises(RunInProgress, match=f"run {run.id} is at work on 'archive'"):
        move(catalog, settings, "archive", str(photos))
