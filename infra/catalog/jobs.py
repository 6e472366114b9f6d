"""Jobs in the catalog: long work in processes of their own."""

import os
from typing import Any

import psutil
from sqlalchemy import exists, not_, select, update
from sqlalchemy.orm import Session, aliased

from infra.catalog.runs import host, process_exists, process_started
from infra.catalog.schema import now
from infra.catalog.service_tables import Job, JobStatus


class JobRunning(RuntimeError):
    """The same work is being done already."""


def open_job(session: Session, kind: str, subject: str, who: str) -> Job:
    """Enter a job before its process starts; it belongs to this process until `hand_over`.

    Raises:
        JobRunning: if one of this kind is at work on the same subject.
    """
    close_dead(session)
    same = (Job.kind == kind) & (Job.subject == subject) & (Job.status == JobStatus.RUNNING.value)
    if (running := session.scalar(select(Job).where(same))) is not None:
        raise JobRunning(f"job {running.id} does this already ({kind} {subject}, since {running.started_at:%H:%M} UTC)")
    job = Job(
        kind=kind,
        subject=subject,
        who=who,
        status=JobStatus.RUNNING.value,
        host=host(),
        process_id=os.getpid(),
        process_started=process_started(),
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


def close_dead(session: Session) -> None:
    """Close the jobs of this machine whose process is gone: the service was stopped before it could."""
    here = (Job.status == JobStatus.RUNNING.value) & (Job.host == host())
    for job in session.scalars(select(Job).where(here)):
        if not process_exists(job.process_id, job.process_started):
            job.status, job.finished_at = JobStatus.CRASHED.value, now()
            job.error = (
                f"process {job.process_id} ended while nobody watched; 'visage runs' shows what became of the work"
            )


def job(session: Session, job_id: int) -> Job | None:
    """Look a job up."""
    return session.get(Job, job_id)


def standing(session: Session, kind: str, limit: int) -> list[Job]:
    """Jobs of a kind that are at work, or did not end well and were not started again since; the latest first."""
    later = aliased(Job)
    again = exists().where(later.kind == Job.kind, later.subject == Job.subject, later.id > Job.id)
    statement = select(Job).where(Job.kind == kind, Job.status != JobStatus.DONE.value, not_(again))
    return list(session.scalars(statement.order_by(Job.id.desc()).limit(limit)))


def jobs(session: Session, before: int | None, limit: int) -> list[Job]:
    """The latest jobs first."""
    statement = select(Job).order_by(Job.id.desc()).limit(limit)
    return list(session.scalars(statement if before is None else statement.where(Job.id < before)))
