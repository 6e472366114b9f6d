"""Tables of the web service: who may come in, what was asked twice, and what is at work. Nothing of a photograph is in them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from infra.catalog.tables.schema import Base, Id, now


class JobStatus(StrEnum):
    """Where long work stands that the service has started."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CRASHED = "crashed"


class AccessToken(Base):
    """A token somebody was given: its SHA-256 (the token itself is known to its owner only), role and end."""

    __tablename__ = "access_token"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class PageSession(Base):
    """A browser that has shown a token: the SHA-256 of its cookie."""

    __tablename__ = "page_session"
    digest: Mapped[str] = mapped_column(primary_key=True)
    token_id: Mapped[int] = mapped_column(ForeignKey("access_token.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[datetime]


class IdempotencyKey(Base):
    """A write that was asked for under a key of the client's: the same key again gets the same answer."""

    __tablename__ = "idempotency_key"
    who: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_digest: Mapped[str]
    status: Mapped[int | None]
    body: Mapped[str | None]
    location: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)


RUN = "run"  # the kind of job whose subject is a collection's name


class Job(Base):
    """Long work in a process of its own, started through the service."""

    __tablename__ = "job"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    kind: Mapped[str]
    subject: Mapped[str]
    who: Mapped[str]
    status: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
    host: Mapped[str]
    process_id: Mapped[int]
    process_started: Mapped[float]
    heartbeat_at: Mapped[datetime | None]  # by the database's clock
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None]
