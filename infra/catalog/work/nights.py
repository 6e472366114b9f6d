"""Runs and failures for looking at, in pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from infra.catalog.tables.schema import Collection, Failure, Run, RunStatus


@dataclass(frozen=True)
class RunView:
    """A run in one row."""

    run_id: int
    collection: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    counts: dict[str, Any]
    error: str | None

    @classmethod
    def of(cls, run: Run, collection: str) -> "RunView":
        return cls(run.id, collection, run.status, run.started_at, run.finished_at, run.counts, run.error)


@dataclass(frozen=True)
class FailureRow:
    """A failure in one row."""

    id: int
    run_id: int
    collection: str
    key: str
    image_id: int | None
    stage: str
    reason: str
    message: str
    retryable: bool
    failed_at: datetime


def runs(
    session: Session,
    limit: int,
    collection: str | None = None,
    before: int | None = None,
    status: RunStatus | None = None,
) -> list[RunView]:
    """The latest runs first; of one collection, those before a run's id, of one status."""
    statement = select(Run, Collection.name).join(Collection, Collection.id == Run.collection_id)
    if collection is not None:
        statement = statement.where(Collection.name == collection)
    if before is not None:
        statement = statement.where(Run.id < before)
    if status is not None:
        statement = statement.where(Run.status == status.value)
    return [RunView.of(*row) for row in session.execute(statement.order_by(Run.id.desc()).limit(limit)).tuples()]


def run(session: Session, run_id: int) -> RunView | None:
    """One run."""
    statement = select(Run, Collection.name).join(Collection, Collection.id == Run.collection_id)
    row = session.execute(statement.where(Run.id == run_id)).tuples().one_or_none()
    return None if row is None else RunView.of(*row)


def begun(session: Session, collection: str, since: datetime, until: datetime | None) -> RunView | None:
    """The first run of a collection that began in a span of time; one that could not be opened has not begun."""
    statement = select(Run, Collection.name).join(Collection, Collection.id == Run.collection_id)
    statement = statement.where(Collection.name == collection, Run.started_at >= since, Run.recipe != "")
    if until is not None:
        statement = statement.where(Run.started_at <= until)
    row = session.execute(statement.order_by(Run.id).limit(1)).tuples().one_or_none()
    return None if row is None else RunView.of(*row)


def failures(
    session: Session,
    collection: str | None,
    run_id: int | None,
    reason: str | None,
    include_resolved: bool,
    before: int | None,
    limit: int,
) -> list[FailureRow]:
    """Failures, the latest first; those overcome since only on request."""
    statement = (
        select(Failure, Collection.name)
        .join(Collection, Collection.id == Failure.collection_id)
        .order_by(Failure.id.desc())
        .limit(limit)
    )
    if collection is not None:
        statement = statement.where(Collection.name == collection)
    if run_id is not None:
        statement = statement.where(Failure.run_id == run_id)
    if reason is not None:
        statement = statement.where(Failure.reason == reason)
    if not include_resolved:
        statement = statement.where(Failure.resolved_at.is_(None))
    if before is not None:
        statement = statement.where(Failure.id < before)
    return [
        FailureRow(f.id, f.run_id, name, f.key, f.image_id, f.stage, f.reason, f.message, f.retryable, f.failed_at)
        for f, name in session.execute(statement).tuples()
    ]


def failures_of_image(session: Session, image_id: int) -> list[Failure]:
    """Why an image could not be processed, the latest first."""
    standing = (Failure.image_id == image_id) & Failure.resolved_at.is_(None)
    return list(session.scalars(select(Failure).where(standing).order_by(Failure.id.desc())))


def reasons(session: Session, image_ids: Sequence[int]) -> dict[int, str]:
    """Why images could not be processed: the stage and reason of the latest failure that stands, by image id."""
    standing = Failure.image_id.in_(image_ids), Failure.resolved_at.is_(None)
    rows = select(Failure.image_id, Failure.stage, Failure.reason).where(*standing).order_by(Failure.id)
    return {
        image: f"{stage}: {reason.replace('_', ' ')}"
        for image, stage, reason in session.execute(rows).tuples()
        if image is not None
    }


def failure_counts(session: Session, run_id: int | None = None) -> list[Row[tuple[str, str, bool, int]]]:
    """Standing failures by stage, reason and whether they are tried again, most first; of all runs, or those of one."""
    statement = (
        select(Failure.stage, Failure.reason, Failure.retryable, func.count())
        .where(Failure.resolved_at.is_(None))
        .group_by(Failure.stage, Failure.reason, Failure.retryable)
        .order_by(func.count().desc(), Failure.stage, Failure.reason)
    )
    return list(session.execute(statement if run_id is None else statement.where(Failure.run_id == run_id)))
