"""Runs and failures in the catalog."""

import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import psutil
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from infra.catalog.database import upsert
from infra.catalog.schema import Collection, Failure, Image, ImageStatus, Run, RunStatus, now

MANY = 10  # crashes in a row: more make no difference


class RunInProgress(RuntimeError):
    """Another run works on this collection right now."""


@dataclass(frozen=True)
class FailureRecord:
    """Why one key could not be processed."""

    key: str
    stage: str
    reason: str
    message: str
    retryable: bool
    image_id: int | None = None


def _alive(run: Run) -> bool:
    """Whether the process of a run still exists. One on another host is believed to."""
    if run.host != socket.gethostname():
        return True
    try:
        process = psutil.Process(run.process_id)
        return abs(process.create_time() - run.process_started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def open_run(session: Session, collection_id: int, recipe: str) -> Run:
    """Start a run, closing those as crashed whose process is gone.

    Raises:
        RunInProgress: if one is alive: two runs never work on the same collection at once.
    """
    session.execute(
        select(Collection.id).where(Collection.id == collection_id).with_for_update()
    )  # one opens at a time
    running = select(Run).where(Run.collection_id == collection_id, Run.status == RunStatus.RUNNING.value)
    for run in session.scalars(running):
        if _alive(run):
            raise RunInProgress(
                f"run {run.id} of this collection has been at work since {run.started_at:%Y-%m-%d %H:%M} "
                f"(process {run.process_id} on {run.host}); wait for it, or stop that process first"
            )
        run.status, run.finished_at = RunStatus.CRASHED.value, now()
        run.error = f"its process {run.process_id} on {run.host} ended without closing it"
    run = Run(
        collection_id=collection_id,
        status=RunStatus.RUNNING.value,
        recipe=recipe,
        host=socket.gethostname(),
        process_id=os.getpid(),
        process_started=psutil.Process().create_time(),
        counts={},
    )
    session.add(run)
    session.flush()
    return run


def crashes_before(session: Session, run: Run) -> int:
    """How many runs of a collection died in a row right before `run`."""
    earlier = select(Run.status).where(Run.collection_id == run.collection_id, Run.id < run.id).order_by(Run.id.desc())
    statuses = session.scalars(earlier.limit(MANY))
    return sum(1 for _ in takewhile(lambda status: status == RunStatus.CRASHED.value, statuses))


def close_run(
    session: Session, run_id: int, status: RunStatus, counts: dict[str, Any], error: str | None = None
) -> None:
    """End a run."""
    session.execute(
        update(Run).where(Run.id == run_id).values(status=status.value, finished_at=now(), counts=counts, error=error)
    )


def record_failures(session: Session, run_id: int, collection_id: int, failures: Iterable[FailureRecord]) -> None:
    """Write failures down, and mark their images as failed."""
    failures = list(failures)
    upsert(
        session,
        Failure,
        [{**asdict(f), "run_id": run_id, "collection_id": collection_id, "failed_at": now()} for f in failures],
        ["run_id", "key", "stage"],
        ["reason", "message", "retryable"],
    )
    recipe = select(Run.recipe).where(Run.id == run_id).scalar_subquery()
    for retryable in (False, True):
        ids = [f.image_id for f in failures if f.image_id is not None and f.retryable is retryable]
        if ids:
            session.execute(
                update(Image)
                .where(Image.id.in_(ids))
                .values(status=ImageStatus.FAILED.value, retryable=retryable, recipe=recipe, run_id=run_id)
            )


def resolve_failures(session: Session, image_ids: Iterable[int]) -> None:
    """Mark earlier failures of images as overcome."""
    session.execute(
        update(Failure)
        .where(Failure.image_id.in_(list(image_ids)), Failure.resolved_at.is_(None))
        .values(resolved_at=now())
    )
