"""Status: whether the last night of every collection was good, and if not, what is wrong with it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from infra.catalog import collections
from infra.catalog.tables.schema import Collection, Image, ImageStatus, Run, RunStatus
from infra.catalog.work import schedules
from infra.catalog.work.nights import RunView
from infra.catalog.work.runs import alive, key_range
from infra.words import count
from tasks.nights.schedules import ScheduleView, due, view

OVERDUE = timedelta(minutes=15)  # after its time a scheduled run has begun, or something is wrong
LOOKED_AT = 200  # latest runs of a collection: as many parts as it may be shared in, and then some


@dataclass(frozen=True)
class CollectionStatus:
    """How a collection stands. `problems` is empty when its last night was good.

    `pending` counts images that wait, `oldest_pending` since when the first of them does.
    """

    collection: str
    problems: tuple[str, ...]
    last_run: RunView | None
    at_work: RunView | None
    pending: int
    failed: int
    oldest_pending: datetime | None
    schedules: tuple[ScheduleView, ...]


@dataclass(frozen=True)
class Status:
    """How everything stands at a moment."""

    at: datetime
    good: bool
    collections: tuple[CollectionStatus, ...]


def status(session: Session, at: datetime | None = None) -> Status:
    """Judge the last night of every collection, at a moment or now. Changes nothing."""
    at = at or datetime.now(UTC)
    found = tuple(_of_collection(session, collection, at) for collection in collections.every(session))
    return Status(at, not any(collection.problems for collection in found), found)


def problem_of(run: Run) -> str | None:
    """What was wrong with a run that has ended; None if it was good.

    Images that failed on earlier nights and still do are no news: what counts is what this run could not process.
    """
    failed = sum(run.counts.get("failed", {}).values()) + run.counts.get("unlisted", 0)
    if run.status == RunStatus.DONE_WITH_FAILURES and failed:
        return f"run {run.id} left {count(failed, 'image')} unprocessed"
    if run.status in (RunStatus.DONE, RunStatus.DONE_WITH_FAILURES, RunStatus.RUNNING):
        return None
    return f"run {run.id} {_WORDS[RunStatus(run.status)]}: {run.error or 'nobody knows why'}"


_WORDS = {
    RunStatus.FAILED: "failed",
    RunStatus.CRASHED: "crashed",
    RunStatus.SKIPPED: "was skipped",
    RunStatus.MISSED: "was missed",
}


def _of_collection(session: Session, collection: Collection, at: datetime) -> CollectionStatus:
    latest = list(
        session.scalars(select(Run).where(Run.collection_id == collection.id).order_by(Run.id.desc()).limit(LOOKED_AT))
    )
    at_work = next((run for run in latest if run.status == RunStatus.RUNNING), None)
    ended = sorted(
        (run for run in latest if run.finished_at is not None), key=lambda run: run.finished_at or at, reverse=True
    )
    problems = [problem for run in _last_night(ended) if (problem := problem_of(run))]
    if at_work is not None and not alive(session, at_work):
        problems.append(f"run {at_work.id} died: its process {at_work.process_id} on {at_work.host} is gone")
    own = [row for row, owner in schedules.every(session) if owner.id == collection.id]
    for row in own:
        waiting = due(session, row, at)
        if waiting is not None and waiting.late > OVERDUE and at_work is None:
            problems.append(f"{row.name} did not run: it was due at {waiting.slot.at:%Y-%m-%d %H:%M} UTC")
    pending, oldest = session.execute(
        select(func.count(), func.min(Image.pending_since)).where(
            Image.collection_id == collection.id, Image.status == ImageStatus.PENDING.value
        )
    ).one()
    failed = select(func.count()).where(Image.collection_id == collection.id, Image.status == ImageStatus.FAILED.value)
    return CollectionStatus(
        collection=collection.name,
        problems=tuple(problems),
        last_run=RunView.of(ended[0], collection.name) if ended else None,
        at_work=None if at_work is None else RunView.of(at_work, collection.name),
        pending=pending,
        failed=session.scalar(failed) or 0,
        oldest_pending=oldest,
        schedules=tuple(view(session, row, collection.name) for row in own),
    )


def _last_night(ended: list[Run]) -> list[Run]:
    """The runs, the latest first, that had keys which no later run has gone over, in whatever parts."""
    night: list[Run] = []
    for run in ended:
        if not key_range(run).within(map(key_range, night)):
            night.append(run)
    return night
