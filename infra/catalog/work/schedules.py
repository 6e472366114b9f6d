"""Schedules in the catalog, which is the truth about them: Prefect only rings when a time has come."""

from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from infra.catalog.tables.schema import Collection, Run, Schedule, now


class UnknownSchedule(LookupError):
    """No schedule has that name."""


class ScheduleExists(ValueError):
    """A schedule of that name is there already."""


def add(session: Session, name: str, collection: Collection, cron: str, timezone: str, catch_up: bool) -> Schedule:
    """Add a schedule.

    Raises:
        ScheduleExists: if the name is taken.
    """
    if session.scalar(select(Schedule.id).where(Schedule.name == name)) is not None:
        raise ScheduleExists(f"a schedule called {name!r} exists already; remove it first, or choose another name")
    schedule = Schedule(name=name, collection_id=collection.id, cron=cron, timezone=timezone, catch_up=catch_up)
    session.add(schedule)
    session.flush()
    return schedule


def by_name(session: Session, name: str) -> Schedule:
    """Look a schedule up.

    Raises:
        UnknownSchedule: with the names there are.
    """
    schedule = session.scalar(select(Schedule).where(Schedule.name == name))
    if schedule is None:
        names = ", ".join(session.scalars(select(Schedule.name).order_by(Schedule.name))) or "none yet"
        raise UnknownSchedule(f"no schedule is called {name!r} (there are: {names})")
    return schedule


def every(session: Session) -> list[tuple[Schedule, Collection]]:
    """All schedules by name, each with its collection."""
    joined = select(Schedule, Collection).join(Collection, Collection.id == Schedule.collection_id)
    return [(schedule, collection) for schedule, collection in session.execute(joined.order_by(Schedule.name))]


def latest_slot(session: Session, schedule_id: int) -> datetime | None:
    """The latest time of a schedule that was dealt with: run, skipped or missed. A crashed run has not dealt with its own."""
    dealt_with = Run.schedule_id == schedule_id, Run.status != "crashed"
    return session.scalar(select(func.max(Run.slot)).where(*dealt_with))


def pause(session: Session, name: str) -> None:
    """Let a schedule rest.

    Raises:
        UnknownSchedule: with the names there are.
    """
    by_name(session, name).paused = True


def resume(session: Session, name: str) -> None:
    """Let a schedule go on; what would have run meanwhile is not made up for.

    Raises:
        UnknownSchedule: with the names there are.
    """
    schedule = by_name(session, name)
    if schedule.paused:
        schedule.paused, schedule.active_since = False, now()


def remove(session: Session, name: str) -> None:
    """Remove a schedule; its runs stay.

    Raises:
        UnknownSchedule: with the names there are.
    """
    schedule = by_name(session, name)
    session.execute(update(Run).where(Run.schedule_id == schedule.id).values(schedule_id=None))
    session.execute(delete(Schedule).where(Schedule.id == schedule.id))
