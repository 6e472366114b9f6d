"""Jobs in the catalog: long work in processes of their own."""

import os
from collections.abc import Collection
from typing import Any

import psutil
from sqlalchemy import exists, func, not_, or_, select, update
from sqlalchemy.orm import Session, aliased

from infra.catalog.statements import exclusive
from infra.catalog.tables.schema import Collection as CollectionRow
from infra.catalog.tables.schema import now
from infra.catalog.tables.service import RUN, Job, JobStatus
from infra.catalog.work.runs import LEASE, host, process_started, shows_life


class JobRunning(RuntimeError):
    """The same work is being done already."""


def open_job(session: Session, kind: str, subject: str, who: str, watched: Collection[int] = ()) -> Job:
    """Enter a job before its process starts; it belongs to this process until `hand_over`. `watched`: as `sweep` takes it.

    Raises:
        JobRunning: if one of this kind is at work on the same subject.
    """
    exclusive(session, "jobs")
    sweep(session, watched)
    same = (Job.kind == kind) & (Job.subject == subject) & (Job.status == JobStatus.RUNNING.value)
    if (running := session.scalar(select(Job).where(same))) is not None:
        raise JobRunning(
            f"job {running.id} does this already ({kind} {subject}, since {running.started_at:%H:%M} UTC, on "
            f"{running.host}); if its machine was stopped, ask again in {LEASE.seconds} s"
        )
    job = Job(
        kind=kind,
        subject=subject,
        who=who,
        status=JobStatus.RUNNING.value,
        host=host(),
        process_id=os.getpid(),
        process_started=process_started(),
        heartbeat_at=func.now(),
    )
    session.add(job)
    session.flush()
    return job


def hand_over(session: Session, job_id: int, process_id: int) -> None:
    """Note which process does the work."""
    try:
        started = process_started(process_id)
    except psutil.NoSuchProcess:
        return  # over already; whoever started it closes the job
    session.execute(update(Job).where(Job.id == job_id).values(process_id=process_id, process_started=started))


def close_job(
    session: Session, job_id: int, status: JobStatus, result: dict[str, Any] | None, error: str | None
) -> None:
    """End a job."""
    values = {"status": status.value, "finished_at": now(), "result": result, "error": error}
    session.execute(update(Job).where(Job.id == job_id).values(**values))


def sweep(session: Session, watched: Collection[int] = ()) -> None:
    """Give a sign of life for the jobs on this machine, and close those of any machine that are dead.

    `watched`: jobs whose process somebody waits for, who can say better how it ended.
    """
    running = select(Job).where(Job.status == JobStatus.RUNNING.value).order_by(Job.id)
    for job in session.scalars(running.with_for_update()):
        if job.id not in watched and not shows_life(session, job):
            job.status, job.finished_at = JobStatus.CRASHED.value, now()
            job.error = (
                f"its process {job.process_id} on {job.host} ended while nobody watched; 'visage runs' shows what "
                "became of the work"
            )
        elif job.host == host():
            job.heartbeat_at = func.now()
    session.flush()


def job(session: Session, job_id: int) -> Job | None:
    """Look a job up."""
    return session.get(Job, job_id)


def standing(session: Session, kind: str) -> list[Job]:
    """Jobs of a kind that are at work, or did not end well and were not started again since; the latest first.

    Those of collections that are not there any more are left out.
    """
    later = aliased(Job)
    again = exists().where(later.kind == Job.kind, later.subject == Job.subject, later.id > Job.id)
    collections = select(CollectionRow.name).where(CollectionRow.removed_at.is_(None))
    there = or_(Job.kind != RUN, Job.subject.in_(collections))
    statement = select(Job).where(Job.kind == kind, Job.status != JobStatus.DONE.value, not_(again), there)
    return list(session.scalars(statement.order_by(Job.id.desc())))


def jobs(session: Session, before: int | None, limit: int) -> list[Job]:
    """The latest jobs first."""
    statement = select(Job).order_by(Job.id.desc()).limit(limit)
    return list(session.scalars(statement if before is None else statement.where(Job.id < before)))
