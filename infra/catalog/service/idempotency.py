"""Which writes were asked for under which key, and how they were answered; remembered for a day."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete
from sqlalchemy.orm import Session

from infra.catalog.statements import exclusive, upsert
from infra.catalog.tables.schema import now
from infra.catalog.tables.service import IdempotencyKey

LIFE = timedelta(days=1)
GIVEN_UP = timedelta(minutes=5)  # after which a write without an answer is taken for one whose process died


@dataclass(frozen=True)
class Known:
    """An earlier request under the same key. `status` is None while it is not answered."""

    request_digest: str
    status: int | None
    body: str | None
    location: str | None


def begin(session: Session, who: str, key: str, request_digest: str) -> Known | None:
    """Claim a key; None if it is the caller's now."""
    exclusive(session, "idempotency")
    unanswered = IdempotencyKey.status.is_(None) & (IdempotencyKey.created_at < now() - GIVEN_UP)
    session.execute(delete(IdempotencyKey).where((IdempotencyKey.created_at < now() - LIFE) | unanswered))
    row = session.get(IdempotencyKey, (who, key))
    if row is not None:
        return Known(row.request_digest, row.status, row.body, row.location)
    session.add(IdempotencyKey(who=who, key=key, request_digest=request_digest))
    return None


def end(
    session: Session, who: str, key: str, request_digest: str, status: int, body: str, location: str | None
) -> None:
    """Remember the answer, also if an erasure has meanwhile forgotten the question."""
    row = {
        "who": who,
        "key": key,
        "request_digest": request_digest,
        "status": status,
        "body": body,
        "location": location,
        "created_at": now(),
    }
    upsert(session, IdempotencyKey, [row], ["who", "key"], ["status", "body", "location"])


def abandon(session: Session, who: str, key: str) -> None:
    """The write failed: the same key may try again."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.who == who, IdempotencyKey.key == key))
