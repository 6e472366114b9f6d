"""Several runs share a collection: every key belongs to exactly one of them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.catalog import collections, images, ledger
from infra.catalog.database import Catalog
from infra.catalog.faces import Contract, PhotoRecord, link_duplicates, record_photos
from infra.catalog.images import Listed, put_pending
from infra.catalog.queries.photographs import Progress, progress
from infra.catalog.tables.schema import Image, ModelVersion, RunStatus
from infra.catalog.work import runs
from infra.catalog.work.failures import FailureRecord, record_failures
from infra.catalog.work.key_range import KeyRange
from infra.catalog.work.runs import RunInProgress, open_run
from infra.settings import Settings
from tasks.nights.parts import SAMPLE, UnusablePart, cut, keys_of, split

WHEN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def catalog(settings: Settings, tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(settings.catalog_url)
    with opened.write() as session:
        collections.add(session, "archive", str(tmp_path / "photos"), [], [], [])
    yield opened
    opened.close()


def put(catalog: Catalog, *keys: str) -> None:
    with catalog.write() as session:
        put_pending(session, 1, [Listed(key, "1", 10, WHEN) for key in keys])


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1000, 3 * SAMPLE + 7])
def test_parts_are_about_equal_and_hold_every_key_once(count: int) -> None:
    keys = [f"{i:07}.jpg" for i in range(count)]
    boundaries = cut(iter(keys), 4)
    assert boundaries == sorted(set(boundaries))
    assert set(boundaries) <= set(keys)
    if count >= 1000:
        sizes = [len([k for k in keys if k in part]) for part in _ranges(boundaries)]
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= count // 100


def _ranges(boundaries: list[str]) -> list[KeyRange]:
    return [KeyRange(a, b) for a, b in zip([None, *boundaries], [*boundaries, None], strict=True)]


def test_parts_stay_the_same_while_the_collection_grows_until_it_is_cut_anew(
    settings: Settings, catalog: Catalog
) -> None:
    put(catalog, *(f"{i:03}.jpg" for i in range(100)))
    before = [keys_of(settings, "archive", f"{i}/2") for i in (1, 2)]
    assert before == [KeyRange(None, "049.jpg"), KeyRange("049.jpg", None)]
    put(catalog, *(f"{i:03}.jpg" for i in range(100, 300)))
    assert [keys_of(settings, "archive", f"{i}/2") for i in (1, 2)] == before
    assert split(settings, catalog, "archive", 2, anew=True) == [KeyRange(None, "149.jpg"), KeyRange("149.jpg", None)]
    with catalog.write() as session:
        open_run(session, 1, "recipe", before[0])
    with pytest.raises(RunInProgress, match="once it has ended"):
        split(settings, catalog, "archive", 2, anew=True)


def test_a_collection_that_was_never_run_is_cut_by_its_listing(
    settings: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(10):
        (tmp_path / "photos" / f"{i}.jpg").touch()
        (tmp_path / "photos" / f"{i}.txt").touch()
    assert keys_of(settings, "archive", "1/2") == KeyRange(None, "4.jpg")


def test_too_few_images_are_not_shared_and_the_cuts_not_kept(settings: Settings, catalog: Catalog) -> None:
    put(catalog, "a.jpg", "b.jpg")
    with pytest.raises(UnusablePart, match="run it as a whole"):
        keys_of(settings, "archive", "1/4")
    put(catalog, "c.jpg", "d.jpg")
    assert keys_of(settings, "archive", "4/4") == KeyRange("c.jpg", None)


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "a/b", "1/0", "1/1001", "-1/4"])
def test_what_is_no_part_is_refused(settings: Settings, part: str) -> None:
    with pytest.raises(UnusablePart, match="2/4"):
        keys_of(settings, "archive", part)


@pytest.fixture
def contract(catalog: Catalog) -> Contract:
    with catalog.write() as session:
        rows = [
            ModelVersion(name=r, version=1, role=r, contract=r, contract_content={}, weights_sha256="0", licence="CC0")
            for r in ("detect", "embed")
        ]
        session.add_all(rows)
        session.flush()
        return Contract("recipe", rows[0].id, rows[1].id, (), None)


@pytest.mark.parametrize("fate", ["done", "failed"])
@pytest.mark.parametrize("first_ends_first", [True, False])
def test_the_same_photo_in_two_parts_is_processed_by_one_run_and_closed_by_either(
    catalog: Catalog, contract: Contract, fate: str, first_ends_first: bool
) -> None:
    put(catalog, "a.jpg", "b.jpg")
    with catalog.write() as session:
        left = open_run(session, 1, "recipe", KeyRange(None, "a.jpg")).id
        right = open_run(session, 1, "recipe", KeyRange("a.jpg", None)).id
        a, b = session.scalars(select(Image.id).order_by(Image.key))
        [(content, mine)] = images.claim(session, 1, left, "recipe", [(a, "same")]).values()
        [(same, not_mine)] = images.claim(session, 1, right, "recipe", [(b, "same")]).values()
    assert (content, mine, not_mine) == (same, True, False)

    def finish_left() -> None:
        with catalog.write() as session:
            if fate == "done":
                record_photos(session, left, contract, [PhotoRecord(a, content, "JPEG", 9, 9, None, None, [])])
            else:
                broken = FailureRecord("a.jpg", "decode", "truncated", "cut off", retryable=False, image_id=a)
                record_failures(session, left, 1, [broken])
                ledger.fail_contents(session, {content: broken})
            ledger.settle(session, left, 1, "recipe", "/photos/")
            runs.close_run(session, left, RunStatus.DONE, {})

    def finish_right() -> tuple[str, ...]:
        with catalog.write() as session:
            link_duplicates(session, right, [(b, content)])
            ledger.settle(session, right, 1, "recipe", "/photos/")
            return ledger.audit(session, 1, contract, 0, KeyRange("a.jpg", None)).problems

    if first_ends_first:
        finish_left()
        assert finish_right() == ()
    else:
        assert finish_right() == ()  # pending, but in the other's hands
        finish_left()
    with catalog.read() as session:
        assert session.scalars(select(Image.status)).all() == [fate, fate]


def test_how_far_a_run_on_a_part_has_got_is_told_of_its_own_keys(catalog: Catalog) -> None:
    put(catalog, "a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg")
    with catalog.write() as session:
        run = open_run(session, 1, "recipe", KeyRange("a.jpg", "d.jpg"))
        image = session.scalars(select(Image).where(Image.key == "b.jpg")).one()
        record_failures(session, run.id, 1, [FailureRecord("b.jpg", "decode", "truncated", "", False, image.id)])
    with catalog.read() as session:
        assert progress(session, run.id) == Progress(run.id, "running", done=1, total=3)
