"""Which photos the processes of a backfill have in hand, so that none does another's work, on one machine or on several."""

import os
from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from infra.catalog.statements import upsert
from infra.catalog.tables.schema import Content, UtcDateTime
from infra.catalog.tables.upgrades import BackfillClaim
from infra.catalog.work.runs import host, process_exists, process_started

LEASE = timedelta(minutes=5)  # after which photos are no longer left to a process on another machine: it may be dead


def this_process() -> str:
    """What this process claims photos as."""
    return f"{host()}:{os.getpid()}:{process_started()}"


def claim(session: Session, upgrade_id: int, worker: str, contents: Collection[int]) -> list[int]:
    """Take those of some photos in hand that nobody else has, and return them. Claims of the dead are dropped."""
    clock = _clock(session)
    of_upgrade = BackfillClaim.upgrade_id == upgrade_id
    dead = [other for other in _workers(session, upgrade_id) if not _may_live(other)]
    session.execute(delete(BackfillClaim).where(of_upgrade, BackfillClaim.worker.in_(dead)))
    session.execute(delete(BackfillClaim).where(of_upgrade, BackfillClaim.claimed_at < clock - LEASE))
    still = select(Content.id).where(Content.id.in_(contents)).order_by(Content.id).with_for_update(key_share=True)
    rows = [
        {"upgrade_id": upgrade_id, "content_id": content, "worker": worker, "claimed_at": clock}
        for content in session.scalars(still)
    ]
    upsert(session, BackfillClaim, rows, ["upgrade_id", "content_id"], [])
    mine = select(BackfillClaim.content_id).where(
        of_upgrade, BackfillClaim.worker == worker, BackfillClaim.content_id.in_(contents)
    )
    taken = set(session.scalars(mine))
    return [content for content in contents if content in taken]


def release(session: Session, upgrade_id: int, worker: str) -> None:
    """Give up all claims of a process: its photos are done, or left to others."""
    mine = BackfillClaim.upgrade_id == upgrade_id, BackfillClaim.worker == worker
    session.execute(delete(BackfillClaim).where(*mine))


def count_workers(session: Session, upgrade_id: int) -> int:
    """How many processes have photos in hand."""
    return len(_workers(session, upgrade_id))


def at_work(session: Session) -> bool:
    """Whether a process that may be alive has photos of some upgrade in hand."""
    recent = select(BackfillClaim.worker).where(BackfillClaim.claimed_at >= _clock(session) - LEASE).distinct()
    return any(_may_live(worker) for worker in session.scalars(recent))


def _clock(session: Session) -> datetime:
    """The time by the database, which all machines share."""
    clock = session.scalar(select(func.now(type_=UtcDateTime())))
    assert clock is not None
    return clock


def _workers(session: Session, upgrade_id: int) -> list[str]:
    return list(session.scalars(select(BackfillClaim.worker).where(BackfillClaim.upgrade_id == upgrade_id).distinct()))


def _may_live(worker: str) -> bool:
    machine, process, started = worker.rsplit(":", 2)
    return machine != host() or process_exists(int(process), float(started))
