"""Schedules: when a collection is processed, and what is due now.

A schedule is a row of the catalog. What is due follows from its times and from the runs that have claimed them, so it does
not matter who asks, how often, or after what: each time is dealt with once, and of several that have passed, the latest.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from sqlalchemy.orm import Session

from infra.asked import AskedWrongly
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import RunStatus, Schedule
from infra.catalog.work import schedules
from infra.catalog.work.runs import Slot, SlotTaken, enter_unopened

ON_TIME = timedelta(hours=1)  # a run that starts later than that has missed its time
NAME = re.compile(r"\w[\w.-]*")  # what Prefect takes as the name of a deployment, and a shell without quotes
COUNTED = 1000  # missed times are counted up to here


class UnusableSchedule(AskedWrongly):
    """The name, the cron expression or the time zone cannot be used; the message says why."""


@dataclass(frozen=True)
class ScheduleView:
    """A schedule in one row. `next_at`: when it is due next; None while it is paused."""

    name: str
    collection: str
    cron: str
    timezone: str
    catch_up: bool
    paused: bool
    next_at: datetime | None
    last_slot: datetime | None


@dataclass(frozen=True)
class Due:
    """A time of a schedule that has come and that no run has claimed; `missed`: how many before it nobody ran."""

    slot: Slot
    missed: int
    late: timedelta

    @property
    def on_time(self) -> bool:
        return self.late <= ON_TIME


def add_schedule(
    catalog: Catalog, name: str, collection: str, cron: str, timezone: str = "UTC", catch_up: bool = False
) -> ScheduleView:
    """Process a collection at the times of a cron expression (minute hour day month weekday) in a time zone.

    With `catch_up`, a time that passed while nothing was there to run it is made up for, once.

    Raises:
        UnusableSchedule, UnknownCollection, ScheduleExists: and nothing is added.
    """
    if not NAME.fullmatch(name):
        raise UnusableSchedule(f"{name!r} is no name for a schedule: letters, digits, and - _ . inside")
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UnusableSchedule(
            f"{timezone!r} is no time zone; write one like Europe/Berlin, America/New_York or UTC"
        ) from error
    try:
        if len(cron.split()) != 5:
            raise CronSimError("it must have five fields")
        next(CronSim(cron, datetime.now(zone)))
    except (CronSimError, StopIteration) as error:
        raise UnusableSchedule(
            f"{cron!r} is no cron expression ({error or 'it never comes'}); write minute, hour, day of month, month and "
            "day of week, like '0 2 * * *' for every night at two"
        ) from error
    with catalog.write() as session:
        owner = collections.by_name(session, collection)
        return view(session, schedules.add(session, name, owner, cron, timezone, catch_up), owner.name)


def list_schedules(catalog: Catalog) -> list[ScheduleView]:
    """All schedules, by name."""
    with catalog.read() as session:
        return [view(session, schedule, collection.name) for schedule, collection in schedules.every(session)]


def pause_schedule(catalog: Catalog, name: str) -> None:
    """Let a schedule rest. Raises UnknownSchedule."""
    with catalog.write() as session:
        schedules.pause(session, name)


def resume_schedule(catalog: Catalog, name: str) -> None:
    """Let a paused schedule go on from now. Raises UnknownSchedule."""
    with catalog.write() as session:
        schedules.resume(session, name)


def remove_schedule(catalog: Catalog, name: str) -> None:
    """Remove a schedule; its runs stay. Raises UnknownSchedule."""
    with catalog.write() as session:
        schedules.remove(session, name)


def view(session: Session, schedule: Schedule, collection: str) -> ScheduleView:
    """A row of the catalog with the times that follow from it."""
    zone = ZoneInfo(schedule.timezone)
    return ScheduleView(
        name=schedule.name,
        collection=collection,
        cron=schedule.cron,
        timezone=schedule.timezone,
        catch_up=schedule.catch_up,
        paused=schedule.paused,
        next_at=None if schedule.paused else next(CronSim(schedule.cron, datetime.now(zone))),
        last_slot=schedules.latest_slot(session, schedule.id),
    )


def due(session: Session, schedule: Schedule, at: datetime) -> Due | None:
    """What a schedule has to run at a moment: its latest time up to then, unless that was dealt with or it is paused."""
    if schedule.paused:
        return None
    since = max(schedule.active_since, schedules.latest_slot(session, schedule.id) or schedule.active_since)
    moment = at.astimezone(ZoneInfo(schedule.timezone)) + timedelta(microseconds=1)  # so that `at` itself counts
    passed: list[datetime] = []
    for slot in CronSim(schedule.cron, moment, reverse=True):
        if slot.astimezone(UTC) <= since or len(passed) > COUNTED:
            break
        passed.append(slot.astimezone(UTC))
    if not passed:
        return None
    return Due(Slot(schedule.id, passed[0]), len(passed) - 1, at - passed[0])


def give_up(catalog: Catalog, schedule: Schedule, missed: Due) -> bool:
    """Write down that a time has passed without a run; False if one has claimed it meanwhile."""
    before = f", and {missed.missed} before it" if missed.missed else ""
    error = (
        f"it did not run: at {missed.slot.at:%Y-%m-%d %H:%M} UTC{before} nothing was there to start it. Is "
        "'visage serve-schedules' running? 'visage run' makes up for it."
    )
    try:
        with catalog.write() as session:
            enter_unopened(session, schedule.collection_id, RunStatus.MISSED, error, slot=missed.slot)
    except SlotTaken:
        return False
    return True
