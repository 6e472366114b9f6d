"""Keyed hashes: two things can be told equal by whoever has this catalog's secret, and by nobody else."""

import hashlib
import hmac
import secrets

from sqlalchemy.orm import Session

from infra.catalog.tables.custody import Secret

LENGTH = 32  # bytes of a secret


def secret(session: Session, name: str) -> bytes:
    """The catalog's secret of a name, 32 random bytes; made at the first call, which needs a writing transaction."""
    found = session.get(Secret, name)
    if found is None:
        found = Secret(name=name, value=secrets.token_bytes(LENGTH))
        session.add(found)
        session.flush()
    return found.value


def known_secret(session: Session, name: str) -> bytes | None:
    """The same, if it was ever made."""
    found = session.get(Secret, name)
    return None if found is None else found.value


def digest(key: bytes, *parts: object) -> str:
    """HMAC-SHA-256, in hexadecimal; bytes count as they are, all else by its text."""
    message = b"\0".join(part if isinstance(part, bytes) else str(part).encode() for part in parts)
    return hmac.new(key, message, hashlib.sha256).hexdigest()
