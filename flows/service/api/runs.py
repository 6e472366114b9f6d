"""Runs, failures and jobs: what became of the nights, and what is at work now."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session

from flows.service import events, paging
from flows.service.access import Curator, Here, Reader
from flows.service.api.images import Cursor, Limit
from flows.service.dto import FailureOut, Id, JobOut, Page, ProgressOut, RetriedOut, RunOut
from flows.service.idempotency import IdempotentRoute
from flows.service.orders import RetryIn
from flows.service.problems import LARGEST_ID, not_found
from flows.service.state import Service
from infra.catalog import collections
from infra.catalog.queries import photographs
from infra.catalog.service import jobs
from infra.catalog.tables.service import RUN, Job
from infra.catalog.work import nights
from infra.catalog.work.nights import RunView
from tasks.nights import retry

router = APIRouter(route_class=IdempotentRoute)
RunId = Annotated[Id, Path()]
Collection = Annotated[str | None, Query(max_length=100)]


@router.get("/runs", tags=["runs"])
def list_runs(
    service: Here, who: Reader, collection: Collection = None, after: Cursor = None, limit: Limit = 50
) -> Page[RunOut]:
    """The latest runs first."""
    place = paging.place(after)
    with service.catalog.read() as session:
        if collection is not None:
            collections.by_name(session, collection)
        found = nights.runs(session, limit + 1, collection, None if place is None else place[0])
    following = paging.cursor([found[limit - 1].run_id]) if len(found) > limit else None
    return Page(items=[run_out(row) for row in found[:limit]], next=following)


@router.get("/runs/{run_id}", tags=["runs"])
def show_run(service: Here, who: Reader, run_id: RunId) -> RunOut:
    """One run."""
    with service.catalog.read() as session:
        row = nights.run(session, run_id)
    if row is None:
        raise not_found(f"Run {run_id}")
    return run_out(row)


@router.get("/runs/{run_id}/progress", tags=["runs"])
def show_progress(service: Here, who: Reader, run_id: RunId) -> ProgressOut:
    """How far a run has got."""
    return run_progress(service, run_id)


@router.get("/runs/{run_id}/progress/events", tags=["runs"], response_class=Response, responses=events.EVENTS)  # type: ignore[arg-type]
def watch_run(service: Here, who: Reader, request: Request, run_id: RunId) -> Response:
    """How far a run has got, as it goes on."""
    return events.stream(service, request, lambda: run_progress(service, run_id))


@router.get("/failures", tags=["failures"])
def list_failures(
    service: Here,
    who: Reader,
    collection: Collection = None,
    run: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
    reason: Annotated[str | None, Query(max_length=100)] = None,
    resolved: bool = False,
    after: Cursor = None,
    limit: Limit = 50,
) -> Page[FailureOut]:
    """What could not be processed, the latest first; with `resolved` also what was overcome since."""
    place = paging.place(after)
    with service.catalog.read() as session:
        if collection is not None:
            collections.by_name(session, collection)
        before = None if place is None else place[0]
        found = nights.failures(session, collection, run, reason, resolved, before, limit + 1)
    following = paging.cursor([found[limit - 1].id]) if len(found) > limit else None
    return Page(items=[FailureOut.model_validate(row) for row in found[:limit]], next=following)


@router.post("/failures/retry", tags=["failures"])
def retry_failures(service: Here, who: Curator, asked: RetryIn) -> RetriedOut:
    """Let the next run take up what failed and may succeed now; says what would only fail again, and why."""
    return retried(service, asked)


def retried(service: Service, asked: RetryIn) -> RetriedOut:
    """Take up failed images, of one collection or all."""
    with service.catalog.read() as session:
        plan = retry.plan(session, asked.collection, asked.reasons)
    taken = retry.retry(service.catalog, asked.collection, asked.reasons)
    return RetriedOut(taken=taken, refused={reason: why for reason, (_, why) in plan.refused.items()})


@router.get("/jobs", tags=["jobs"])
def list_jobs(service: Here, who: Reader, after: Cursor = None, limit: Limit = 50) -> Page[JobOut]:
    """Long work that was started through the service, the latest first."""
    place = paging.place(after)
    with service.catalog.read() as session:
        found = jobs.jobs(session, None if place is None else place[0], limit + 1)
        items = [_job_out(session, job) for job in found[:limit]]
    return Page(items=items, next=paging.cursor([found[limit - 1].id]) if len(found) > limit else None)


@router.get("/jobs/{job_id}", tags=["jobs"])
def show_job(service: Here, who: Reader, job_id: RunId) -> JobOut:
    """One job."""
    return _job(service, job_id)


@router.get("/jobs/{job_id}/events", tags=["jobs"], response_class=Response, responses=events.EVENTS)  # type: ignore[arg-type]
def watch_job(service: Here, who: Reader, request: Request, job_id: RunId) -> Response:
    """A job, as it goes on."""
    return events.stream(service, request, lambda: _job(service, job_id))


def run_progress(service: Service, run_id: int) -> ProgressOut:
    """Raises Problem 404 if there is no such run."""
    with service.catalog.read() as session:
        found = photographs.progress(session, run_id)
    if found is None:
        raise not_found(f"Run {run_id}")
    return ProgressOut.model_validate(found)


def _job(service: Service, job_id: int) -> JobOut:
    with service.catalog.read() as session:
        found = jobs.job(session, job_id)
        if found is None:
            raise not_found(f"Job {job_id}")
        return _job_out(session, found)


def _job_out(session: Session, job: Job) -> JobOut:
    return JobOut.model_validate(job).model_copy(update={"run_id": run_of(session, job)})


def run_of(session: Session, job: Job) -> int | None:
    """The run that a job has begun; None while it has not, and for other work."""
    run = nights.begun(session, job.subject, job.started_at, job.finished_at) if job.kind == RUN else None
    return None if run is None else run.run_id


def run_out(row: RunView) -> RunOut:
    """A run as the API gives it."""
    return RunOut(
        id=row.run_id,
        collection=row.collection,
        status=row.status,
        started_at=row.started_at,
        finished_at=row.finished_at,
        counts=row.counts,
        error=row.error,
    )
