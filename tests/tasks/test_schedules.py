"""When a schedule has something to run, by the catalog alone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Barrier, Thread

import pytest
from sqlalchemy import select, update

from infra.catalog import collections
from infra.catalog.collections import UnknownCollection
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Run, RunStatus, Schedule
from infra.catalog.work.runs import SlotTaken, close_run, open_run
from infra.catalog.work.schedules import ScheduleExists, UnknownSchedule, by_name
from tasks.nights.schedules import (
    Due,
    UnusableSchedule,
    add_schedule,
    due,
    give_up,
    list_schedules,
    pause_schedule,
    remove_schedule,
    resume_schedule,
)

MONDAY = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    opened = Catalog(catalog_url)
    with opened.write() as session:
        collections.add(session, "archive", "/photos", [], [], [])
    yield opened
    opened.close()


def scheduled(catalog: Catalog, cron: str = "0 2 * * *", timezone: str = "UTC", since: datetime = MONDAY) -> Schedule:
    add_schedule(catalog, "nightly", "archive", cron, timezone)
    with catalog.write() as session:
        session.execute(update(Schedule).values(active_since=since))
    return row(catalog)


def row(catalog: Catalog) -> Schedule:
    with catalog.read() as session:
        return by_name(session, "nightly")


def due_at(catalog: Catalog, at: datetime) -> Due | None:
    with catalog.read() as session:
        return due(session, by_name(session, "nightly"), at)


def run(catalog: Catalog, found: Due | None, status: RunStatus | None = RunStatus.DONE) -> int:
    assert found is not None
    with catalog.write() as session:
        run_id = open_run(session, row(catalog).collection_id, "recipe", slot=found.slot).id
        if status is not None:
            close_run(session, run_id, status, {})
    return run_id


def test_a_night_is_due_from_its_time_on_and_done_once(catalog: Catalog) -> None:
    scheduled(catalog)
    night = datetime(2026, 6, 2, 2, tzinfo=UTC)
    assert due_at(catalog, night - timedelta(seconds=1)) is None
    found = due_at(catalog, night)
    assert found is not None
    assert (found.slot.at, found.missed, found.late) == (night, 0, timedelta(0))
    run(catalog, found)
    assert due_at(catalog, night + timedelta(hours=23)) is None
    assert due_at(catalog, night + timedelta(hours=24)) is not None


def test_after_a_week_off_only_the_last_night_is_due(catalog: Catalog) -> None:
    scheduled(catalog)
    found = due_at(catalog, MONDAY + timedelta(days=7))
    assert found is not None
    assert (found.slot.at, found.missed) == (datetime(2026, 6, 8, 2, tzinfo=UTC), 6)
    assert not found.on_time
    run(catalog, found)
    assert due_at(catalog, MONDAY + timedelta(days=7)) is None


def test_a_years_missed_minutes_are_counted_in_no_time(catalog: Catalog) -> None:
    scheduled(catalog, "* * * * *")
    found = due_at(catalog, MONDAY + timedelta(days=365))
    assert found is not None
    assert found.missed >= 1000


def test_two_at_once_cannot_claim_the_same_night(catalog: Catalog) -> None:
    schedule = scheduled(catalog)
    found = due_at(catalog, MONDAY + timedelta(days=1))
    assert found is not None
    with catalog.write() as session:
        other = collections.add(session, "other", "/other", [], [], []).id
    outcomes: list[str] = []
    together = Barrier(4)

    def claim(collection_id: int) -> None:  # of different collections, so that only the slot keeps them apart
        mine = Catalog(catalog.url)
        together.wait()
        try:
            with mine.write() as session:
                open_run(session, collection_id, "recipe", slot=found.slot)
            outcomes.append("claimed")
        except SlotTaken:
            outcomes.append("taken")
        finally:
            mine.close()

    threads = [Thread(target=claim, args=(c,)) for c in (schedule.collection_id, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["claimed", "taken", "taken", "taken"]


def test_a_night_that_crashed_is_still_due_and_one_that_failed_is_not(catalog: Catalog) -> None:
    scheduled(catalog)
    later = MONDAY + timedelta(days=1)
    first = run(catalog, due_at(catalog, later), RunStatus.CRASHED)
    second = run(catalog, due_at(catalog, later), RunStatus.FAILED)
    assert second != first
    assert due_at(catalog, later) is None


def test_a_missed_night_is_written_down_with_how_many_and_is_no_longer_due(catalog: Catalog) -> None:
    schedule = scheduled(catalog)
    found = due_at(catalog, MONDAY + timedelta(days=3))
    assert found is not None
    assert give_up(catalog, schedule, found)
    assert not give_up(catalog, schedule, found)
    with catalog.read() as session:
        missed = session.scalars(select(Run)).one()
        assert (missed.status, missed.slot) == (RunStatus.MISSED, found.slot.at)
        assert "it did not run: at 2026-06-04 02:00 UTC, and 2 before it" in (missed.error or "")
    assert due_at(catalog, MONDAY + timedelta(days=3)) is None


def test_what_passes_during_a_pause_is_nobodys_loss(catalog: Catalog) -> None:
    scheduled(catalog, "* * * * *", since=datetime.now(UTC) - timedelta(days=1))
    now = datetime.now(UTC)
    assert due_at(catalog, now) is not None
    pause_schedule(catalog, "nightly")
    assert due_at(catalog, now) is None
    resume_schedule(catalog, "nightly")
    assert due_at(catalog, datetime.now(UTC).replace(second=0, microsecond=0)) is None
    assert due_at(catalog, datetime.now(UTC) + timedelta(minutes=1)) is not None


def test_times_follow_the_clocks_of_their_zone(catalog: Catalog) -> None:
    scheduled(catalog, "30 2 * * *", "Europe/Berlin", since=datetime(2026, 3, 28, 12, tzinfo=UTC))
    for at in (  # the clock jumps from 2 to 3; then two hours from UTC
        datetime(2026, 3, 29, 1, tzinfo=UTC),
        datetime(2026, 3, 30, 0, 30, tzinfo=UTC),
    ):
        assert due_at(catalog, at - timedelta(seconds=1)) is None
        found = due_at(catalog, at)
        assert found is not None
        assert found.slot.at == at
        run(catalog, found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cron": "0 2 * *"}, "five fields"),
        ({"cron": "0 25 * * *"}, "Bad hour"),
        ({"cron": "0 2 30 2 *"}, "Bad day-of-month"),
        ({"timezone": "Mars/Olympus"}, "no time zone"),
        ({"timezone": "../etc/passwd"}, "no time zone"),
        ({"name": "a/b"}, "no name for a schedule"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused_with_the_reason(
    catalog: Catalog, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(UnusableSchedule, match=message):
        add_schedule(catalog, **{"name": "nightly", "collection": "archive", "cron": "0 2 * * *", **arguments})
    assert list_schedules(catalog) == []


def test_schedules_are_listed_paused_and_removed_by_name(catalog: Catalog) -> None:
    scheduled(catalog)
    run(catalog, due_at(catalog, MONDAY + timedelta(days=1)))
    [view] = list_schedules(catalog)
    assert (view.name, view.collection, view.paused) == ("nightly", "archive", False)
    assert view.last_slot == datetime(2026, 6, 2, 2, tzinfo=UTC)
    assert view.next_at is not None
    assert view.next_at > datetime.now(UTC)
    pause_schedule(catalog, "nightly")
    assert list_schedules(catalog)[0].next_at is None
    with pytest.raises(ScheduleExists):
        add_schedule(catalog, "nightly", "archive", "0 3 * * *")
    with pytest.raises(UnknownCollection):
        add_schedule(catalog, "other", "albums", "0 3 * * *")
    remove_schedule(catalog, "nightly")
    with pytest.raises(UnknownSchedule, match="none yet"):
        pause_schedule(catalog, "nightly")
    with catalog.read() as session:
        assert session.scalars(select(Run.schedule_id)).all() == [None]  # a later schedule may get the same number
