"""The audit log: who searched, decided and erased. Append-only, every entry bound to the one before it by its hash.

Whoever changes, removes or inserts an entry breaks the chain behind it. Cutting off the end breaks nothing: keep the last
digest somewhere else from time to time, and verify against it. Subjects are ids and keyed hashes, never names or vectors.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from infra.catalog.custody import keyed
from infra.catalog.statements import exclusive
from infra.catalog.tables.custody import AuditEntry
from infra.catalog.tables.schema import now

GENESIS = "0" * 64
LOCK = "audit log"
PAGE = 1_000
MOST_FOUND = 100  # ids of faces noted per search


class LogBroken(RuntimeError):
    """The chain of the audit log does not hold; the message names the first entry that is wrong."""


@dataclass(frozen=True)
class Verified:
    """An audit log that holds: how many entries, and the digest of the last, which stands for all before it."""

    entries: int
    head: str


@dataclass(frozen=True)
class EntryView:
    """One entry, for people to read."""

    entry_id: int
    at: str
    who: str
    action: str
    subject: dict[str, Any]


def append(session: Session, who: str, action: str, subject: Mapping[str, Any]) -> str:
    """Add an entry in the caller's writing transaction; returns its digest. Concurrent writers wait for each other here.

    `subject` must be JSON without names, vectors or pictures: it outlives erasures.
    """
    exclusive(session, LOCK)
    previous = session.scalar(select(AuditEntry.digest).order_by(AuditEntry.id.desc()).limit(1)) or GENESIS
    at, subject = now().isoformat(), json.loads(json.dumps(subject))
    digest = _digest(previous, at, who, action, subject)
    session.add(AuditEntry(at=at, who=who, action=action, subject=subject, previous=previous, digest=digest))
    session.flush()
    return digest


def searched(
    session: Session, who: str, how: str, found: Iterable[int], photos: Iterable[bytes] = (), **asked: Any
) -> str:
    """Note who searched whom: where from, what was asked (ids, limits), with which photos, and the faces found, by ids.

    A photo is noted by a keyed hash: whoever has the photo and this catalog can tell that it was searched with.
    """
    key = keyed.secret(session, "audit")
    subject = {**asked, "photos": [keyed.digest(key, photo) for photo in photos]}
    return append(session, who, f"search.{how}", {**subject, "found": sorted(set(found))[:MOST_FOUND]})


def verify(session: Session, head: str | None = None) -> Verified:
    """Walk the whole chain. With `head`, a digest noted earlier must still be in it, so that the end was not cut off.

    Raises:
        LogBroken: at the first entry that was changed, or whose predecessor is gone.
    """
    last, count, seen = GENESIS, 0, head is None
    for entry in _walk(session):
        if entry.previous != last:
            raise LogBroken(f"the audit log is broken before entry {entry.id}: an entry was removed or inserted there")
        if _digest(entry.previous, entry.at, entry.who, entry.action, entry.subject) != entry.digest:
            raise LogBroken(f"the audit log is broken at entry {entry.id}: it was changed after it was written")
        last, count = entry.digest, count + 1
        seen = seen or last == head
    if not seen:
        raise LogBroken(f"the digest {head} is not in the audit log: its end was cut off, or this is another catalog")
    return Verified(count, last)


def entries(session: Session, limit: int, action: str | None = None, before: int | None = None) -> list[EntryView]:
    """The latest entries first; of one kind of action, or its beginning ("decide" for all decisions)."""
    statement = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if action is not None:
        statement = statement.where(AuditEntry.action.startswith(action, autoescape=True))
    if before is not None:
        statement = statement.where(AuditEntry.id < before)
    return [EntryView(e.id, e.at, e.who, e.action, e.subject) for e in session.scalars(statement)]


def _walk(session: Session) -> Iterator[AuditEntry]:
    after = 0
    while page := session.scalars(
        select(AuditEntry).where(AuditEntry.id > after).order_by(AuditEntry.id).limit(PAGE)
    ).all():
        yield from page
        after = page[-1].id
        session.expunge_all()


def _digest(previous: str, at: str, who: str, action: str, subject: Mapping[str, Any]) -> str:
    content = json.dumps([previous, at, who, action, subject], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()
