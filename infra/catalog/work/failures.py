"""Failures in the catalog: what a run could not process, and what has been overcome since."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from infra.catalog.statements import upsert
from infra.catalog.tables.schema import LONGEST_KEY, Failure, Image, ImageStatus, Run, now
from infra.catalog.work.key_range import EVERY_KEY, KeyRange

DISCOVER = "discover"  # the stage of what could not be listed, which has no image


@dataclass(frozen=True)
class FailureRecord:
    """Why one key could not be processed."""

    key: str
    stage: str
    reason: str
    message: str
    retryable: bool
    image_id: int | None = None


def record_failures(session: Session, run_id: int, collection_id: int, failures: Iterable[FailureRecord]) -> None:
    """Write failures down, and mark their images as failed: of each image the latest failure stands, and no other."""
    failures = list(failures)
    if not failures:
        return
    resolve_failures(session, [f.image_id for f in failures if f.image_id is not None])
    upsert(
        session,
        Failure,
        [
            {
                **asdict(f),
                "key": _kept(f.key),
                "run_id": run_id,
                "collection_id": collection_id,
                "failed_at": now(),
                "resolved_at": None,
            }
            for f in failures
        ],
        ["run_id", "key", "stage"],
        ["reason", "message", "retryable", "resolved_at"],
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


def resolve_unlisted(session: Session, run_id: int, collection_id: int, keys: KeyRange = EVERY_KEY) -> None:
    """Mark what earlier runs could not list as overcome, or as told again by this run, which has listed these keys."""
    session.execute(
        update(Failure)
        .where(
            Failure.collection_id == collection_id,
            Failure.stage == DISCOVER,
            Failure.run_id != run_id,
            Failure.resolved_at.is_(None),
            keys.holds(Failure.key),
        )
        .values(resolved_at=now())
    )


def resolve_failures(session: Session, image_ids: Iterable[int]) -> None:
    """Mark what stands against images as overcome, or about to be told again."""
    session.execute(
        update(Failure)
        .where(Failure.image_id.in_(list(image_ids)), Failure.resolved_at.is_(None))
        .values(resolved_at=now())
    )


def _kept(key: str) -> str:
    """A key, or the beginning of one that is too long, told apart from others by a hash; the message has it whole."""
    written = key.encode()
    if len(written) <= LONGEST_KEY:
        return key
    return written[: LONGEST_KEY - 80].decode(errors="ignore") + "... " + hashlib.sha256(written).hexdigest()
