"""Access tokens: made once, shown once, kept as a digest. And the browsers that have shown one."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from infra.catalog.tables.schema import now
from infra.catalog.tables.service import AccessToken, PageSession

PREFIX = "visage_"  # so that scanners for leaked secrets know one when they see it
SESSION_LIFE = timedelta(hours=12)
USE_IS_NOTED_EVERY = timedelta(hours=1)


class Role(IntEnum):
    """What a token's owner may do; each role may do what those before it may."""

    READ = 1
    CURATE = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        return self.name.lower()


class TokenExists(ValueError):
    """A token of that name is there already."""


class UnknownToken(LookupError):
    """No token has that name."""


@dataclass(frozen=True)
class TokenView:
    """A token without what would let anybody in."""

    name: str
    role: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @property
    def state(self) -> str:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now() else "active"


@dataclass(frozen=True)
class Holder:
    """Whoever has shown a token that counts."""

    token_id: int
    name: str
    role: Role


def digest(secret: str) -> str:
    """SHA-256: enough for secrets of 256 random bits, which nobody can guess one by one."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(session: Session, name: str, role: Role, life: timedelta | None) -> str:
    """Make a token and return it: it is shown here and never again.

    Raises:
        TokenExists: if the name is taken; the audit log names people by it, so that revoked ones count.
    """
    if session.scalar(select(AccessToken.id).where(AccessToken.name == name)) is not None:
        raise TokenExists(f"a token called {name!r} exists already; choose another name")
    token = PREFIX + secrets.token_urlsafe(32)
    expires_at = None if life is None else now() + life
    session.add(AccessToken(name=name, role=role.label, digest=digest(token), expires_at=expires_at))
    return token


def every(session: Session) -> list[TokenView]:
    """All tokens by name."""
    return [
        TokenView(t.name, t.role, t.created_at, t.expires_at, t.revoked_at, t.last_used_at)
        for t in session.scalars(select(AccessToken).order_by(AccessToken.name))
    ]


def any_exist(session: Session) -> bool:
    """Whether a token was ever made. From then on nobody comes in without one, even if all are revoked."""
    return session.scalar(select(AccessToken.id).limit(1)) is not None


def any_active(session: Session) -> bool:
    """Whether somebody could come in."""
    return any(token.state == "active" for token in every(session))


def revoke(session: Session, name: str) -> None:
    """End a token and the page sessions opened with it.

    Raises:
        UnknownToken: if there is none of that name.
    """
    token = session.scalar(select(AccessToken).where(AccessToken.name == name))
    if token is None:
        names = ", ".join(view.name for view in every(session)) or "none yet"
        raise UnknownToken(f"no token is called {name!r}; there are: {names}")
    token.revoked_at = token.revoked_at or now()
    session.execute(delete(PageSession).where(PageSession.token_id == token.id))


def holder(session: Session, token: str) -> tuple[Holder | None, str]:
    """Who holds this token, or why it does not count."""
    row = session.scalar(select(AccessToken).where(AccessToken.digest == digest(token)))
    return _judged(row)


def open_session(session: Session, token_id: int) -> str:
    """Let a browser stay in for `SESSION_LIFE`; returns the secret for its cookie. Sessions that are over are removed."""
    session.execute(delete(PageSession).where(PageSession.expires_at <= now()))
    secret = secrets.token_urlsafe(32)
    session.add(PageSession(digest=digest(secret), token_id=token_id, expires_at=now() + SESSION_LIFE))
    return secret


def session_holder(session: Session, secret: str) -> tuple[Holder | None, str]:
    """Who opened the session of this cookie, or why it does not count."""
    row = session.execute(
        select(AccessToken, PageSession.expires_at)
        .join(PageSession, PageSession.token_id == AccessToken.id)
        .where(PageSession.digest == digest(secret))
    ).one_or_none()
    if row is None or row.expires_at <= now():
        return None, "the session is over; sign in again"
    return _judged(row.AccessToken)


def close_session(session: Session, secret: str) -> None:
    """Forget a browser."""
    session.execute(delete(PageSession).where(PageSession.digest == digest(secret)))


def note_use(session: Session, token_id: int) -> None:
    """Remember that a token was used, once an hour: a write for each request would be dear."""
    long_ago = (AccessToken.last_used_at.is_(None)) | (AccessToken.last_used_at < now() - USE_IS_NOTED_EVERY)
    session.execute(update(AccessToken).where(AccessToken.id == token_id, long_ago).values(last_used_at=now()))


def _judged(row: AccessToken | None) -> tuple[Holder | None, str]:
    if row is None:
        return None, "this token is unknown here"
    if row.revoked_at is not None:
        return None, f"the token {row.name!r} was revoked on {row.revoked_at:%Y-%m-%d}; ask for another"
    if row.expires_at is not None and row.expires_at <= now():
        return None, f"the token {row.name!r} expired on {row.expires_at:%Y-%m-%d}; ask for another"
    return Holder(row.id, row.name, Role[row.role.upper()]), ""
