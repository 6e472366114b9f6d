"""Nights: what was done, what is at work now, what failed and why."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session

from flows.service import jobs, paging
from flows.service.access import Here, check_role
from flows.service.api.images import Cursor
from flows.service.api.runs import retried, run_of
from flows.service.dto import Id
from flows.service.orders import RetryIn
from flows.service.page.render import Form, Visitor, go, page
from flows.service.problems import Problem, not_found
from flows.service.state import Service
from infra.catalog import collections
from infra.catalog.queries import photographs
from infra.catalog.service import jobs as job_book
from infra.catalog.service.tokens import Role
from infra.catalog.tables.schema import RunStatus
from infra.catalog.tables.service import RUN, Job, JobStatus
from infra.catalog.work import nights
from infra.catalog.work.nights import RunView
from tasks.nights import schedules
from tasks.nights.status import status

router = APIRouter(include_in_schema=False)
RUNS, FAILURES, JOBS = 30, 100, 5


@dataclass(frozen=True)
class Night:
    """A run as the table shows it. `seconds` from start to end; `speed` in photographs a second."""

    run: RunView
    images: int
    faces: int
    failed: int
    seconds: float | None
    speed: float | None


def night_of(run: RunView) -> Night:
    """Read a run's counts, of which one that has crashed may lack any."""
    seconds = None if run.finished_at is None else (run.finished_at - run.started_at).total_seconds()
    images = int(run.counts.get("processed", 0))
    work = float(run.counts.get("seconds", {}).get("process", 0.0))
    failed = sum(run.counts.get("failed", {}).values())
    return Night(
        run, images, int(run.counts.get("faces", 0)), failed, seconds, images / work if images and work else None
    )


@router.get("/nights")
def every(request: Request, service: Here, who: Visitor, after: Cursor = None) -> Response:
    """The latest runs, those at work first."""
    place = paging.place(after)
    with service.catalog.read() as session:
        found = nights.runs(session, RUNS + 1, before=None if place is None else place[0])
        running = [night_of(run) for run in nights.runs(session, RUNS, status=RunStatus.RUNNING)]
        progress = {night.run.run_id: photographs.progress(session, night.run.run_id) for night in running}
        names = [collection.name for collection in collections.every(session)]
        reasons = nights.failure_counts(session)
        standing = status(session)
        lately = [job for job in job_book.standing(session, RUN) if _worth_a_word(session, job)]
    more = f"/nights?after={paging.cursor([found[RUNS - 1].run_id])}" if len(found) > RUNS else None
    return page(
        request,
        who,
        "nights.html",
        nights=[night_of(run) for run in found[:RUNS]],
        running=running,
        progress=progress,
        collections=names,
        reasons=reasons,
        jobs=lately[:JOBS],
        more=more,
        after=after,
        troubled=[c for c in standing.collections if c.problems],
        schedules=schedules.list_schedules(service.catalog),
    )


@router.get("/nights/{run_id}")
def one(
    request: Request,
    service: Here,
    who: Visitor,
    run_id: Annotated[Id, Path()],
    reason: Annotated[str | None, Query(max_length=100)] = None,
) -> Response:
    """One run with its failures by reason."""
    with service.catalog.read() as session:
        run = nights.run(session, run_id)
        if run is None:
            raise not_found(f"Run {run_id}")
        reasons = nights.failure_counts(session, run_id)
        failures = nights.failures(session, None, run_id, reason, False, None, FAILURES)
        progress = photographs.progress(session, run_id)
    return page(
        request,
        who,
        "night.html",
        night=night_of(run),
        reasons=reasons,
        failures=failures,
        reason=reason,
        progress=progress,
        most=FAILURES,
    )


@router.post("/nights/start")
def start(service: Here, form: Form) -> Response:
    """Start a run now, in a process of its own."""
    check_role(form.who, Role.CURATE)
    _start(service, form.text("collection"), form.who.name)
    return go("/nights")


@router.post("/nights/retry")
def again(service: Here, form: Form) -> Response:
    """Take up what failed and may succeed now, and start the run that does."""
    check_role(form.who, Role.CURATE)
    collection, reason = form.text("collection"), form.text("reason")
    done = retried(service, RetryIn.of(collection=collection, reasons=[reason] if reason else []))
    if not done.taken:
        why = "; ".join(f"{name.replace('_', ' ')}: {words}" for name, words in done.refused.items())
        raise Problem(409, "retry", "Nothing would go better now", why or "No photograph stands as failed.")
    _start(service, collection, form.who.name)
    return go("/nights")


@router.post("/nights/schedules")
def schedule(service: Here, form: Form) -> Response:
    """Add a schedule, let one rest or go on, remove one."""
    check_role(form.who, Role.ADMIN)
    name = form.text("name")
    match form.text("action"):
        case "add":
            zone = form.text("timezone") or "UTC"
            schedules.add_schedule(service.catalog, name, form.text("collection"), form.text("cron"), zone)
        case "pause":
            schedules.pause_schedule(service.catalog, name)
        case "resume":
            schedules.resume_schedule(service.catalog, name)
        case "remove":
            schedules.remove_schedule(service.catalog, name)
        case _:
            raise Problem(422, "form", "The form does not fit", "action is 'add', 'pause', 'resume' or 'remove'.")
    return go("/nights")


def _start(service: Service, name: str, who: str) -> None:
    with service.catalog.read() as session:
        collections.by_name(session, name)
    jobs.start(service, RUN, name, who, ["run", "--json", "--", name])


def _worth_a_word(session: Session, job: Job) -> bool:
    """Whether no run tells it already: the job is only starting, or it failed and no night was good since."""
    if job.status == JobStatus.RUNNING:
        return run_of(session, job) is None
    lately = [run for run in nights.runs(session, 1, job.subject) if run.started_at >= job.started_at]
    return all(run.status not in (RunStatus.DONE, RunStatus.DONE_WITH_FAILURES) for run in lately)
