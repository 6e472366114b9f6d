"""`visage retry`: what failed and may succeed is taken up by the next run; what would only fail again is named."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from infra.catalog import collections, images, ledger
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Image, RunStatus
from infra.catalog.work import runs
from infra.catalog.work.failures import FailureRecord, record_failures
from infra.settings import Settings
from tasks.nights.retry import NothingFailed, plan, retry
from tests.command import visage

FAILED = {
    "a.jpg": ("decode", "truncated", False),
    "copy of c.jpg": ("restore", "timeout", False),
    "b.jpg": ("read", "store_unavailable", True),
    "c.jpg": ("restore", "timeout", False),
    "d.jpg": ("decode", "too_many_pixels", False),
    "erased.jpg": ("claim", "erased", False),
    "e.jpg": ("process", "worker_died", False),
}


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    """A catalog in which each of `FAILED` has failed in a run, as has one in another collection."""
    monkeypatch.setenv("VISAGE_HOME", str(tmp_path))
    catalog = Catalog(Settings(home=tmp_path).catalog_url)
    with catalog.write() as session:
        for name in ("archive", "other"):
            collection = collections.add(session, name, "/photos", [], [], [])
            keys = [*FAILED, "good.jpg"] if name == "archive" else ["z.jpg"]
            images.put_pending(
                session, collection.id, [images.Listed(key, "1", 10, datetime(2026, 1, 1, tzinfo=UTC)) for key in keys]
            )
            run = runs.open_run(session, collection.id, "recipe")
            ids = dict(session.execute(select(Image.key, Image.id)).tuples().all())
            same = {key: "c" if "c.jpg" in key else key for key in keys}
            claims = images.claim(session, collection.id, run.id, "recipe", [(ids[key], same[key]) for key in keys])
            records = {
                key: FailureRecord(key, *FAILED.get(key, ("embed", "out_of_memory", False))[:2], "why", False, ids[key])
                for key in keys
                if key != "good.jpg"
            }
            record_failures(session, run.id, collection.id, records.values())
            for key, record in records.items():
                ledger.fail_contents(session, {claims[ids[key]][0]: record})
            runs.close_run(session, run.id, RunStatus.DONE_WITH_FAILURES, {})
    yield catalog
    catalog.close()


def reopened(catalog: Catalog) -> set[str]:
    """What the next runs would do."""
    with catalog.write() as session:
        for collection in collections.every(session):
            images.reopen(session, collection.id, "recipe")
        pending = set(session.scalars(select(Image.key).where(Image.status == "pending")))
        session.rollback()
    return pending - {"good.jpg"}


def test_what_may_succeed_is_taken_up_and_the_rest_is_refused_with_a_reason(catalog: Catalog) -> None:
    with catalog.read() as session:
        planned = plan(session, "archive")
    assert planned.taken == {"store_unavailable": 1, "timeout": 2, "worker_died": 1}
    assert planned.refused["truncated"] == (1, "the same reader would refuse it again; once the file is replaced, the next "
        "run takes it up by itself; after an update that reads more, name this reason")  # fmt: skip
    assert planned.refused["erased"] == (1, "it was erased, and is not taken in again")
    assert "VISAGE_MAX_MEGAPIXELS" in planned.refused["too_many_pixels"][1]
    assert retry(catalog, "archive") == 4
    assert reopened(catalog) == {"b.jpg", "c.jpg", "copy of c.jpg", "e.jpg"}


def test_reasons_and_keys_choose_and_copies_go_along(catalog: Catalog) -> None:
    assert retry(catalog, keys=["c.jpg"]) == 2
    assert reopened(catalog) == {"c.jpg", "copy of c.jpg"}
    assert retry(catalog, reasons=["out_of_memory"]) == 1
    assert reopened(catalog) == {"c.jpg", "copy of c.jpg", "z.jpg"}


def test_what_a_limit_kept_out_is_taken_up_when_it_is_named(catalog: Catalog) -> None:
    assert retry(catalog, reasons=["too_many_pixels"]) == 1
    assert retry(catalog, reasons=["erased"]) == 0
    assert reopened(catalog) == {"d.jpg"}


def test_what_an_older_reader_refused_is_taken_up_when_it_is_named(catalog: Catalog) -> None:
    assert retry(catalog, "archive", reasons=["truncated"]) == 1
    assert reopened(catalog) == {"a.jpg"}


def test_what_has_not_failed_cannot_be_retried(catalog: Catalog) -> None:
    with pytest.raises(NothingFailed, match=r"no image stands as failed with the key 'good.jpg'; there are: a.jpg"):
        retry(catalog, keys=["good.jpg"])
    with pytest.raises(NothingFailed, match="reason 'blurred'; there are: erased, out_of_memory, store_unavailable"):
        retry(catalog, reasons=["blurred"])
    assert reopened(catalog) == set()


def test_the_command_says_what_it_takes_up_and_what_not(catalog: Catalog) -> None:
    ended = visage("retry", "archive")
    assert ended.code == 0, ended.err
    assert "4 images are taken up by the next run of archive" in ended.out
    assert "truncated" in ended.out
    assert "the same reader would refuse it again" in " ".join(ended.out.split())
    assert visage("retry", "archive", "--json").json["taken"] == 4
    refused = visage("retry", "archive", "--key", "good.jpg")
    assert (refused.code, refused.out) == (1, "")
    assert "Traceback" not in refused.err
