"""Start long work as `visage` processes of their own, and keep the book about them.

A process of its own because a night must not end with the page, nor fill the page's memory with models.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from sqlalchemy.orm import Session

from flows.service.state import Service
from infra.catalog.faults import CatalogUnreachable
from infra.catalog.service import jobs
from infra.catalog.tables.service import Job, JobStatus
from infra.catalog.work.heartbeat import repeating
from infra.catalog.work.runs import HEARTBEAT_SECONDS
from infra.patience import patient
from infra.settings import environment

logger = logging.getLogger(__name__)
DONE = (0, 3)  # 3: done, but some images stand as failed
COMMAND = "from flows.cli import main; main()"
MOST_ERROR_CHARACTERS = 4000
SWEEP_SECONDS = HEARTBEAT_SECONDS


@contextmanager
def kept(service: Service) -> Iterator[None]:
    """Keep the book true while the context lasts: what was started here is at work, and what has died is closed."""
    with service.catalog.write() as session:
        jobs.sweep(session)
    with repeating(service.catalog, lambda session: jobs.sweep(session, service.watched), "jobs", SWEEP_SECONDS):
        yield


def start(service: Service, kind: str, subject: str, who: str, arguments: list[str]) -> Job:
    """Run `visage ARGUMENTS`, which print JSON, beside the service and return its job.

    Raises:
        JobRunning: if the same is at work.
    """
    with service.catalog.write() as session:
        job = jobs.open_job(session, kind, subject, who, service.watched)
    service.watched.add(job.id)
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed by the thread that reads them
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **environment(service.settings)},
            start_new_session=True,
        )
    except OSError as error:
        _close(service, job.id, JobStatus.FAILED, None, f"could not be started: {error}")
        raise
    threading.Thread(target=_watch, args=(service, job.id, process, out, err), daemon=True).start()
    return job


def _watch(service: Service, job_id: int, process: "subprocess.Popen[bytes]", out: IO[bytes], err: IO[bytes]) -> None:
    try:
        _note(service, lambda session: jobs.hand_over(session, job_id, process.pid))
    except CatalogUnreachable:
        logger.exception("job %d: the catalog does not take its process %d", job_id, process.pid)
    code = process.wait()
    with out, err:
        out.seek(0)
        err.seek(0)
        printed, said = out.read(), err.read().decode(errors="replace")
    if code in DONE:
        _close(service, job_id, JobStatus.DONE, _json(printed), None)
    else:
        _close(service, job_id, JobStatus.FAILED, None, _why(code, said))


def _why(code: int, said: str) -> str:
    """Why a process ended so, in its own words if it had any; below zero the code is a signal's."""
    if code < 0:
        ended = f"its process was ended from outside by {signal.Signals(-code).name}"
        return f"{ended}: the machine may have run out of memory" if -code == signal.SIGKILL else ended
    before, _, last = said.strip().rpartition("\n")
    told = _json(last.encode())
    if told is not None and "error" in told:  # how `visage --json` ends
        said = f"{before}\n{told['error']}"
    return said[-MOST_ERROR_CHARACTERS:].strip() or f"it ended with exit code {code}"


def _json(printed: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(printed)
    except ValueError:
        return None
    return value if isinstance(value, dict) else {"rows": value}


def _close(service: Service, job_id: int, status: JobStatus, result: dict[str, Any] | None, error: str | None) -> None:
    try:
        _note(service, lambda session: jobs.close_job(session, job_id, status, result, error))
    finally:
        service.watched.discard(job_id)


@patient
def _note(service: Service, change: Callable[[Session], None]) -> None:
    with service.catalog.write() as session:
        change(session)
