"""Discovery: the listing and the catalog, side by side."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from string import ascii_letters
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, select

from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.images import Known
from infra.catalog.queries import views
from infra.catalog.tables.schema import Content, Image, ImageStatus, RunStatus
from infra.catalog.work.failures import FailureRecord, record_failures
from infra.catalog.work.runs import LeaseLost, close_run
from infra.settings import Settings
from infra.storage import Entry, Filter, Folder, ListingProblem, StoreEmpty, StoreUnavailable
from tasks.discover import Discovery, discover, merge
from tasks.nights.collections import InvalidCollection, check, own_places
from tests.infra.test_catalog import WHEN, a_run

KEYS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), unique=True)


@given(KEYS, KEYS)
def test_merge_pairs_every_key_of_both_streams_exactly_once(listing: list[str], catalog: list[str]) -> None:
    entries = [Entry(key, "1", 1, WHEN) for key in sorted(listing, key=str.encode)]
    known = [Known(key, "1", 1, ImageStatus.DONE) for key in sorted(catalog, key=str.encode)]
    pairs = list(merge(entries, known))
    assert [entry for entry, _ in pairs if entry is not None] == entries
    assert [remembered for _, remembered in pairs if remembered is not None] == known
    both = {e.key for e, r in pairs if isinstance(e, Entry) and r is not None and e.key == r.key}
    assert both == set(listing) & set(catalog)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "1923").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "1923/c.jpg", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    return folder


def look(catalog: Catalog, folder: Path, run_id: int, collection_id: int) -> Discovery:
    return discover(catalog, Folder(folder), Filter(), collection_id, run_id, "recipe")


def statuses(catalog: Catalog) -> dict[str, str]:
    with catalog.read() as session:
        return dict(session.execute(select(Image.key, Image.status)).tuples().all())


def finish(catalog: Catalog) -> None:
    with catalog.write() as session:
        for image in session.scalars(select(Image).where(Image.status == "pending")):
            image.status, image.recipe = "done", "recipe"


@pytest.fixture
def work(catalog: Catalog, photos: Path) -> tuple[int, int]:
    with catalog.write() as session:
        collection_id = collections.add(session, "archive", str(photos), [], [], []).id
    return a_run(catalog, collection_id), collection_id


def test_new_changed_missing_and_returned_images_are_told_apart(
    catalog: Catalog, photos: Path, work: tuple[int, int]
) -> None:
    assert look(catalog, photos, *work) == Discovery(new=3, ignored=1)
    finish(catalog)
    (photos / "a.jpg").write_bytes(b"other bytes")
    (photos / "b.png").rename(photos / "z.png")
    assert look(catalog, photos, *work) == Discovery(new=1, changed=1, missing=1, unchanged=1, ignored=1)
    assert statuses(catalog) == {"1923/c.jpg": "done", "a.jpg": "pending", "b.png": "missing", "z.png": "pending"}
    (photos / "z.png").rename(photos / "b.png")
    assert look(catalog, photos, *work) == Discovery(changed=1, missing=1, unchanged=2, ignored=1)
    assert statuses(catalog)["b.png"] == "pending"


def test_an_unchanged_collection_costs_no_write(catalog: Catalog, photos: Path, work: tuple[int, int]) -> None:
    look(catalog, photos, *work)
    finish(catalog)
    written: list[str] = []
    event.listen(
        catalog.engine,
        "before_cursor_execute",
        lambda *args: written.append(args[2]) if args[2].startswith(("INSERT", "DELETE")) else None,
    )
    assert look(catalog, photos, *work) == Discovery(unchanged=3, ignored=1)
    assert written == []


def test_what_an_unreadable_directory_hides_is_not_taken_for_missing(
    catalog: Catalog, photos: Path, work: tuple[int, int]
) -> None:
    look(catalog, photos, *work)
    finish(catalog)

    class Closed(Folder):
        def list(self, prefix: str = "", start_after: str | None = None) -> Iterator[list[Entry | ListingProblem]]:
            for page in super().list(prefix, start_after):
                yield [
                    ListingProblem("1923/", "permission denied") if entry.key.startswith("1923/") else entry
                    for entry in page
                ]

    found = discover(catalog, Closed(photos), Filter(), work[1], work[0], "recipe")
    assert found == Discovery(unchanged=3, ignored=1, unlisted=1)
    assert statuses(catalog)["1923/c.jpg"] == "done"


def test_a_key_too_long_for_a_catalog_is_a_failure_of_its_own(
    catalog: Catalog, photos: Path, work: tuple[int, int]
) -> None:
    letters = random.Random(1)  # a database would make repeated ones short
    folder = photos.joinpath(*("".join(letters.choices(ascii_letters, k=240)) for _ in range(12)))
    folder.mkdir(parents=True)
    for name in ("d.jpg", "e.jpg", "notes.txt"):
        (folder / name).write_bytes(b"d")
    assert look(catalog, photos, *work) == Discovery(new=3, ignored=2, unlisted=2)
    assert sorted(statuses(catalog)) == ["1923/c.jpg", "a.jpg", "b.png"]
    with catalog.read() as session:
        told = [failure.message for failure in views.failures(session, None, work[0], 9)]
    assert len(told) == 2
    for name in ("d.jpg", "e.jpg"):
        said = f"/{name}: its name and folders have 2,897 bytes; at most 1,024 are kept. Move it into fewer or shorter folders."
        assert any(message.endswith(said) for message in told)


def test_a_listing_that_breaks_off_is_continued_where_it_did(
    catalog: Catalog, photos: Path, work: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda seconds: None))
    begun: list[str | None] = []

    class Breaking(Folder):
        def list(self, prefix: str = "", start_after: str | None = None) -> Iterator[list[Entry | ListingProblem]]:
            begun.append(start_after)
            for page in super().list(prefix, start_after):
                yield page[:1]
                raise StoreUnavailable("the server has gone for a moment")

    found = discover(catalog, Breaking(photos), Filter(), work[1], work[0], "recipe")
    assert found == Discovery(new=3, ignored=1)
    assert begun == [None, "1923/c.jpg", "a.jpg", "b.png", "notes.txt"]


def test_excluded_images_leave_the_collection(catalog: Catalog, photos: Path, work: tuple[int, int]) -> None:
    look(catalog, photos, *work)
    finish(catalog)
    narrowed = Filter(include=("*.jpg",), exclude=("1923/**",))
    found = discover(catalog, Folder(photos), narrowed, work[1], work[0], "recipe")
    assert found == Discovery(missing=2, unchanged=1, ignored=3)


def failures(catalog: Catalog) -> list[str]:
    """The keys of failures that stand."""
    with catalog.read() as session:
        return [failure.key for failure in views.failures(session, "archive", None, 10)]


def next_run(catalog: Catalog, work: tuple[int, int]) -> tuple[int, int]:
    with catalog.write() as session:
        close_run(session, work[0], RunStatus.DONE, {})
    return a_run(catalog, work[1]), work[1]


def test_a_run_that_was_closed_meanwhile_changes_no_image(
    catalog: Catalog, photos: Path, work: tuple[int, int]
) -> None:
    look(catalog, photos, *work)
    finish(catalog)
    run_id, collection_id = work
    with catalog.write() as session:
        close_run(session, run_id, RunStatus.CRASHED, {})
    before = statuses(catalog)
    with pytest.raises(LeaseLost):  # what is done by another recipe is not reopened
        discover(catalog, Folder(photos), Filter(), collection_id, run_id, "another")
    (photos / "a.jpg").write_bytes(b"other bytes")
    (photos / "b.png").rename(photos / "z.png")
    with pytest.raises(LeaseLost):
        look(catalog, photos, *work)
    assert statuses(catalog) == before


def test_an_empty_mount_point_fails_the_run_and_changes_nothing(
    catalog: Catalog, photos: Path, work: tuple[int, int], tmp_path: Path
) -> None:
    look(catalog, photos, *work)
    finish(catalog)
    before = statuses(catalog)
    photos.rename(tmp_path / "away")
    photos.mkdir()
    (photos / "README.txt").write_bytes(b"mount the drive here")
    with pytest.raises(StoreEmpty, match="Is the drive mounted"):
        look(catalog, photos, *work)
    assert statuses(catalog) == before
    (photos / "one.jpg").write_bytes(b"they are gone indeed")
    assert look(catalog, photos, *work) == Discovery(new=1, missing=3, ignored=1)


def test_an_image_that_was_away_is_done_if_it_comes_back_as_it_was(
    catalog: Catalog, photos: Path, work: tuple[int, int], tmp_path: Path
) -> None:
    look(catalog, photos, *work)
    _, collection_id = work
    with catalog.write() as session:
        for image in session.scalars(select(Image)):
            content = Content(
                collection_id=collection_id,
                sha256=image.key,
                status="done",
                recipe="recipe",
                owner_image_id=0,
                run_id=0,
            )
            session.add(content)
            session.flush()
            image.status, image.recipe, image.content_id = "done", "recipe", content.id
    for name in ("a.jpg", "b.png"):
        (photos / name).rename(tmp_path / name)
    assert look(catalog, photos, *work).missing == 2
    (tmp_path / "b.png").write_bytes(b"other bytes")
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).rename(photos / name)
    assert look(catalog, photos, *work) == Discovery(changed=2, unchanged=1, ignored=1)
    assert statuses(catalog) == {"1923/c.jpg": "done", "a.jpg": "done", "b.png": "pending"}


def test_what_nobody_asked_for_is_no_problem_when_it_cannot_be_listed(
    catalog: Catalog, photos: Path, work: tuple[int, int]
) -> None:
    (photos / "README.txt").symlink_to("nowhere.txt")
    os.mkfifo(photos / "agent.pipe")
    for name in ("cache", "lost+found", "albums"):
        (photos / name).mkdir()

    class Closed(Folder):
        def _names(self, parent: str) -> Iterator[str]:
            if parent in ("cache/", "lost+found/", "albums/"):
                raise PermissionError(13, "Permission denied")  # as for anybody but root
            return super()._names(parent)

    wanted = Filter(exclude=("cache/**", "**/lost+found/**"))
    found = discover(catalog, Closed(photos), wanted, work[1], work[0], "recipe")
    assert found == Discovery(new=3, ignored=5, unlisted=1)
    assert failures(catalog) == ["albums/"]
    assert not Filter().may_want("lost+found/")


def test_a_broken_link_stands_as_one_failure_until_it_is_gone(
    catalog: Catalog, photos: Path, work: tuple[int, int]
) -> None:
    (photos / "d.jpg").symlink_to("nowhere.jpg")
    for _ in range(3):
        assert look(catalog, photos, *work).unlisted == 1
        assert failures(catalog) == ["d.jpg"]
        work = next_run(catalog, work)
    (photos / "d.jpg").unlink()
    look(catalog, photos, *work)
    assert failures(catalog) == []


def test_why_an_image_failed_is_of_no_matter_once_it_is_gone(
    catalog: Catalog, photos: Path, work: tuple[int, int]
) -> None:
    look(catalog, photos, *work)
    with catalog.write() as session:
        image_id = session.scalars(select(Image.id).where(Image.key == "a.jpg")).one()
        record_failures(
            session, *work, [FailureRecord("a.jpg", "decode", "truncated", "it ends early", False, image_id)]
        )
    assert failures(catalog) == ["a.jpg"]
    (photos / "a.jpg").unlink()
    look(catalog, photos, *work)
    assert failures(catalog) == []


def test_crops_among_the_photographs_are_never_taken_for_photographs(
    catalog: Catalog, photos: Path, work: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(photos)
    settings = Settings(home=tmp_path / "link" / ".visage", objects_uri=str(photos / "crops"))
    for name in (".visage/thumbnails/a.jpg", "crops/1/ab/a.jpg", "crops of mine.jpg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(name.encode())
    checked = check(settings, "archive", str(photos), [], None, [])
    assert checked.own == (".visage/", "crops/")
    found = discover(catalog, Folder(photos), Filter(own=checked.own), work[1], work[0], "recipe")
    assert found == Discovery(new=4, ignored=3)
    assert own_places(settings, Folder(photos / "1923")) == ()
    for place in (photos / ".visage", photos / "crops", photos / "crops" / "1"):
        with pytest.raises(InvalidCollection, match="Visage keeps its own files there"):
            own_places(settings, Folder(place))
