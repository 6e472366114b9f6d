"""Runs in the catalog."""

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import URL, Select, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from infra.catalog.tables.schema import (
    Collection,
    Run,
    RunStatus,
    UtcDateTime,
    now,
)
from infra.catalog.tables.service import Job
from infra.catalog.work.key_range import EVERY_KEY, KeyRange

# A run on another machine is believed to be alive while it says so. Long enough for a slow network and a busy database.
LEASE = timedelta(seconds=90)
HEARTBEAT_SECONDS = 15.0
MACHINES_OWN_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO in Linux's include/linux/proc_ns.h
MANY = 10  # crashes in a row: more make no difference


class RunInProgress(RuntimeError):
    """Another run works on these keys right now. `waiting_helps`: only its heartbeat says so, and it may be dead."""

    def __init__(self, message: str, waiting_helps: bool) -> None:
        super().__init__(message)
        self.waiting_helps = waiting_helps


class SlotTaken(RuntimeError):
    """Another run has claimed this time of the schedule."""


class LeaseLost(RuntimeError):
    """The run was closed from outside: it had shown no sign of life for too long, and another may be at its work."""


@dataclass(frozen=True)
class Slot:
    """A time that a schedule names."""

    schedule_id: int
    at: datetime


def host() -> str:
    """This machine, as far as process numbers mean the same on it: a container's are its own."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return socket.gethostname()
    return socket.gethostname() + ("" if namespace == MACHINES_OWN_NAMESPACE else f" {namespace}")


_disowned: set[tuple[URL, int]] = set()


def disown(catalog: URL, run_id: int) -> None:
    """Remember that a run of this process is over, though its catalog could not be told."""
    _disowned.add((catalog, run_id))


def alive(session: Session, run: Run) -> bool:
    """Whether the process of a run still exists; of one on another machine, whether it has said so lately."""
    return (session.get_bind().engine.url, run.id) not in _disowned and shows_life(session, run)


def shows_life(session: Session, work: Run | Job) -> bool:
    """Whether a process still exists; of one on another machine, whether it has said so lately."""
    if work.host != host():
        clock = session.scalar(select(func.now(type_=UtcDateTime())))
        assert clock is not None
        return clock - (work.heartbeat_at or work.started_at) < LEASE
    return process_exists(work.process_id, work.process_started)


def process_started(number: int | None = None) -> float:
    """When a process of this machine, or this one, began: a number by which it is known, however the clock is set meanwhile.

    In Linux below zero: seconds since the machine was started, and 1e9 for each count of a number that marks that start.
    Elsewhere, and in rows of older versions, seconds since 1970, which move with the clock.

    Raises:
        NoSuchProcess: if it is gone.
    """
    process = psutil.Process(number)
    try:
        boot = int(Path("/proc/sys/kernel/random/boot_id").read_text()[:4], 16)
        _, _, fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")  # a name may hold spaces
    except OSError:
        return process.create_time()
    return -(boot * 1e9 + int(fields.split()[19]) / os.sysconf("SC_CLK_TCK"))  # field 22, starttime, as `man proc` says


def process_exists(number: int, started: float) -> bool:
    """Whether the process of this machine that had a number and began then is still there."""
    try:
        process = psutil.Process(number)
        known_as = process_started(number) if started < 0 else process.create_time()
        return abs(known_as - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def key_range(run: Run) -> KeyRange:
    """The keys that a run works on."""
    return KeyRange(run.after_key, run.through_key)


def close_dead_runs(session: Session, collection_id: int | None = None) -> list[Run]:
    """Close as crashed what is running and dead, of one collection or of all; returns those that are alive."""
    living = []
    for run in session.scalars(_running(collection_id).with_for_update()):
        if alive(session, run):
            living.append(run)
            continue
        run.status, run.finished_at = RunStatus.CRASHED.value, now()
        run.error = f"its process {run.process_id} on {run.host} ended without closing it"
    session.flush()
    return living


def let_none_begin(session: Session, collection_id: int) -> None:
    """Let no run on a collection begin before this transaction has ended: of two that come here, the second waits."""
    session.execute(select(Collection.id).where(Collection.id == collection_id).with_for_update())


def at_work(session: Session, collection_id: int) -> list[Run]:
    """The runs on a collection that are alive; changes nothing."""
    return [run for run in session.scalars(_running(collection_id)) if alive(session, run)]


def _running(collection_id: int | None) -> Select[tuple[Run]]:
    running = select(Run).where(Run.status == RunStatus.RUNNING.value).order_by(Run.id)
    return running if collection_id is None else running.where(Run.collection_id == collection_id)


def open_run(
    session: Session, collection_id: int, recipe: str, keys: KeyRange = EVERY_KEY, slot: Slot | None = None
) -> Run:
    """Start a run, closing those as crashed whose process is gone.

    Raises:
        RunInProgress: if one is alive on some of these keys: two runs never work on the same ones at once.
        SlotTaken: if another run has claimed this time of the schedule, and has not crashed.
    """
    let_none_begin(session, collection_id)
    if slot is not None and _is_taken(session, slot):
        raise SlotTaken(f"another run has taken the time {slot.at:%Y-%m-%d %H:%M %Z}")
    for run in close_dead_runs(session, collection_id):
        if key_range(run).overlaps(keys):
            raise RunInProgress(
                f"run {run.id} of this collection has been at work since {run.started_at:%Y-%m-%d %H:%M} on "
                f"{key_range(run)} (process {run.process_id} on {run.host}); wait for it, or stop that process first",
                waiting_helps=run.host != host(),
            )
    return _enter(session, collection_id, recipe, keys, slot, RunStatus.RUNNING)


def _is_taken(session: Session, slot: Slot) -> bool:
    taken = exists().where(
        Run.schedule_id == slot.schedule_id, Run.slot == slot.at, Run.status != RunStatus.CRASHED.value
    )
    return bool(session.scalar(select(taken)))


def _enter(
    session: Session, collection_id: int, recipe: str, keys: KeyRange, slot: Slot | None, status: RunStatus
) -> Run:
    run = Run(
        collection_id=collection_id,
        status=status.value,
        recipe=recipe,
        host=host(),
        process_id=os.getpid(),
        process_started=process_started(),
        counts={},
        after_key=keys.after,
        through_key=keys.through,
        schedule_id=None if slot is None else slot.schedule_id,
        slot=None if slot is None else slot.at,
        heartbeat_at=func.now(),
    )
    try:
        with session.begin_nested():
            session.add(run)
    except IntegrityError as error:
        if slot is None:
            raise
        raise SlotTaken(f"another run has taken the time {slot.at:%Y-%m-%d %H:%M %Z}") from error
    return run


@dataclass(frozen=True)
class Before:
    """How the runs of a collection before this one ended: whether the last one did well, and how many died in a row."""

    well: bool
    crashes: int


def before(session: Session, run: Run) -> Before:
    """Look back at a collection's runs before `run`."""
    of_no_matter = RunStatus.SKIPPED.value, RunStatus.MISSED.value, RunStatus.RUNNING.value
    earlier = (
        select(Run.status)
        .where(Run.collection_id == run.collection_id, Run.id < run.id, Run.status.not_in(of_no_matter))
        .order_by(Run.id.desc())
    )
    statuses = list(session.scalars(earlier.limit(MANY)))
    crashes = sum(1 for _ in takewhile(lambda status: status == RunStatus.CRASHED.value, statuses))
    return Before(not statuses or statuses[0] in (RunStatus.DONE.value, RunStatus.DONE_WITH_FAILURES.value), crashes)


def enter_unopened(
    session: Session,
    collection_id: int,
    status: RunStatus,
    error: str,
    keys: KeyRange = EVERY_KEY,
    slot: Slot | None = None,
) -> Run:
    """Write down a run that never began: skipped, missed, or failed before it could open.

    Raises:
        SlotTaken: if another run has claimed this time of the schedule, and has not crashed.
    """
    if slot is not None and _is_taken(session, slot):
        raise SlotTaken(f"another run has taken the time {slot.at:%Y-%m-%d %H:%M %Z}")
    run = _enter(session, collection_id, "", keys, slot, status)
    run.finished_at, run.error = now(), error
    return run


def beat(session: Session, run_id: int) -> None:
    """Say that a run is at work.

    Raises:
        LeaseLost: if it was closed meanwhile.
    """
    at_work = Run.id == run_id, Run.status == RunStatus.RUNNING.value
    result = session.execute(update(Run).where(*at_work).values(heartbeat_at=func.now()))
    if not result.rowcount:  # type: ignore[attr-defined]
        raise _lost(run_id)


def hold(session: Session, run_id: int) -> None:
    """Keep a run from being closed until this transaction ends.

    Raises:
        LeaseLost: if it was closed already.
    """
    status = session.scalar(select(Run.status).where(Run.id == run_id).with_for_update(read=True))
    if status != RunStatus.RUNNING.value:
        raise _lost(run_id)


def _lost(run_id: int) -> LeaseLost:
    return LeaseLost(
        f"run {run_id} was closed by another process while it was at work (was this machine suspended, or cut off from the "
        "catalog?). What it has recorded stays; run it again."
    )


def has_company(session: Session, run_id: int, collection_id: int) -> bool:
    """Whether other runs work on other keys of the collection now."""
    at_work = exists().where(
        Run.collection_id == collection_id, Run.id != run_id, Run.status == RunStatus.RUNNING.value
    )
    return bool(session.scalar(select(at_work)))


def unreported(session: Session, since: datetime) -> list[Run]:
    """Runs that ended after `since`, in whatever way but `done`, and of which nobody was told."""
    ended = Run.finished_at > since, Run.status != RunStatus.DONE.value, Run.reported_at.is_(None)
    return list(session.scalars(select(Run).where(*ended).order_by(Run.id)))


def take_to_report(session: Session, run_id: int) -> bool:
    """Take it on to tell of a run; False if another process has done so."""
    mine = update(Run).where(Run.id == run_id, Run.reported_at.is_(None)).values(reported_at=now())
    return bool(session.execute(mine).rowcount)  # type: ignore[attr-defined]


def give_back_to_report(session: Session, run_id: int) -> None:
    """Telling of a run has not worked: it is still to be done."""
    session.execute(update(Run).where(Run.id == run_id).values(reported_at=None))


def close_run(
    session: Session, run_id: int, status: RunStatus, counts: dict[str, Any], error: str | None = None
) -> None:
    """End a run; one that was closed from outside stays as it is."""
    session.execute(
        update(Run)
        .where(Run.id == run_id, Run.status == RunStatus.RUNNING.value)
        .values(status=status.value, finished_at=now(), counts=counts, error=error)
    )
