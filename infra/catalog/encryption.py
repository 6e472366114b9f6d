"""Embeddings encrypted at rest, as an option of a catalog: AES-256-GCM with a key that the catalog does not hold.

The key comes from the environment: `VISAGE_EMBEDDING_KEY` (32 bytes in base64) or `VISAGE_EMBEDDING_KEY_FILE` (a file with the
same). It belongs to a process, not to a transaction: every connection of an engine reads and writes through one cipher, which
`unlock` puts into the engine's dialect, where the column type finds it. Sealed vectors are one byte of format, 12 of nonce, and
16 of tag longer; their length is never a multiple of four, by which they are told from open ones. A process that opened the
catalog before a switch does not know of it: triggers refuse what it would write.

What it protects: stolen disks, backups and database dumps. What not: whoever can read this process's memory or environment.
Landmarks, boxes, crops and names are not encrypted.
"""

import base64
import binascii
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    bindparam,
    func,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session

from infra.catalog.tables.custody import Secret
from infra.catalog.tables.schema import Embedding

VARIABLE = "VISAGE_EMBEDDING_KEY"
KEY_BYTES, NONCE_BYTES, FORMAT = 32, 12, b"\x01"
PURPOSE = b"visage embedding"
CHECK = "embedding check"  # a sealed text under this name in the catalog's secrets says that it is encrypted, and by which key
SWITCHED = "the embeddings of this catalog were encrypted or decrypted after this process had opened it: start it again"
PAGE = 10_000


class EmbeddingsLocked(RuntimeError):
    """The key for embeddings is missing, wrong or no key, or they were switched meanwhile; the message says what to do."""


class Cipher:
    """Seals and opens with one key."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, plain: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return FORMAT + nonce + self._aead.encrypt(nonce, plain, PURPOSE)

    def open(self, sealed: bytes) -> bytes:
        """Raises EmbeddingsLocked: if another key sealed it, or it was changed since."""
        try:
            return self._aead.decrypt(sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :], PURPOSE)
        except InvalidTag as error:
            raise EmbeddingsLocked(
                f"an embedding cannot be decrypted: the key in {VARIABLE} is not the catalog's, or the row was changed"
            ) from error


class Locked:
    """Stands for the cipher where a catalog is encrypted and no key was given: everything but embeddings can be used."""

    def seal(self, plain: bytes) -> bytes:
        raise EmbeddingsLocked(f"the embeddings of this catalog are encrypted: set {VARIABLE} or {VARIABLE}_FILE")

    open = seal


class Unsealed:
    """Stands for the cipher where a catalog was not encrypted when this process opened it."""

    def seal(self, plain: bytes) -> bytes:
        return plain

    def open(self, sealed: bytes) -> bytes:
        raise EmbeddingsLocked(SWITCHED)


Sealing = Cipher | Locked | Unsealed | None
"""How an engine treats embeddings; None: nobody has looked whether they are encrypted."""


def read_key(environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The key that the environment names, if any.

    Raises:
        EmbeddingsLocked: if both variables are set, the file cannot be read, or what they hold is no key.
    """
    given, path = environment.get(VARIABLE), environment.get(f"{VARIABLE}_FILE")
    if given and path:
        raise EmbeddingsLocked(f"both {VARIABLE} and {VARIABLE}_FILE are set; unset one of them")
    if path:
        try:
            given = Path(path).read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise EmbeddingsLocked(f"{VARIABLE}_FILE: the key cannot be read: {error}") from error
    if not given:
        return None
    try:
        key = base64.b64decode(given.strip(), validate=True)
    except binascii.Error as error:
        raise EmbeddingsLocked(f"{VARIABLE} is not base64; 'visage encryption new-key' makes one that fits") from error
    if len(key) != KEY_BYTES:
        raise EmbeddingsLocked(
            f"{VARIABLE} holds {len(key)} bytes, not {KEY_BYTES}; 'visage encryption new-key' makes one"
        )
    return key


def new_key() -> str:
    """A random key, as the environment takes it."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def unlock(engine: Engine) -> None:
    """Let an engine read and write the embeddings of its catalog, if they are encrypted, with the environment's key.

    Raises:
        EmbeddingsLocked: if the key is not the catalog's, or one is given for a catalog that is not encrypted.
    """
    with engine.connect().execution_options(read_only=True) as connection:  # no writer has to be waited for
        check = connection.scalar(select(Secret.value).where(Secret.name == CHECK))
        connection.rollback()
    key = read_key()
    if check is None:
        if key is not None:
            raise EmbeddingsLocked(
                f"{VARIABLE} is set, but the embeddings of this catalog are not encrypted: 'visage encryption on' encrypts "
                "them; or unset it"
            )
        _use(engine, Unsealed())
        return
    cipher: Sealing = Locked() if key is None else Cipher(key)
    if key is not None and cipher is not None:
        cipher.open(check)
    _use(engine, cipher)


def _use(engine: Engine, sealing: Sealing) -> None:
    engine.dialect.visage_sealing = sealing  # type: ignore[attr-defined]  # found by the column type, see `UnitVector`


def share(source: Engine, target: Engine) -> None:
    """Let a second engine read and write embeddings as the first does: a copy keeps the key."""
    _use(target, getattr(source.dialect, "visage_sealing", None))


def opened(session: Session, stored: bytes) -> bytes:
    """Stored bytes as they were before sealing, if they are sealed.

    Raises:
        EmbeddingsLocked: if there is no key, or it is the wrong one.
    """
    sealing: Sealing = getattr(session.get_bind().dialect, "visage_sealing", None)
    return stored if sealing is None or len(stored) % 4 == 0 else sealing.open(stored)


_CHECK = select(Secret.name).where(Secret.name == CHECK)


def is_encrypted(session: Session) -> bool:
    """Whether embeddings are encrypted: then no index of theirs may be written to a disk."""
    return session.scalar(_CHECK) is not None


def check_open(session: Session) -> None:
    """Make sure that embeddings can be read and written here.

    Raises:
        EmbeddingsLocked: if they are encrypted, and there is no key.
    """
    sealing: Sealing = getattr(session.get_bind().dialect, "visage_sealing", None)
    if isinstance(sealing, Locked):
        sealing.seal(b"")


def encrypt(session: Session, key: bytes) -> int:
    """Seal all embeddings in this transaction; returns how many. The files still hold the open ones until scrubbed.

    Raises:
        EmbeddingsLocked: if they are encrypted already.
    """
    _keep_writers_out(session)
    if is_encrypted(session):
        raise EmbeddingsLocked("the embeddings of this catalog are encrypted already")
    cipher = Cipher(key)
    session.add(Secret(name=CHECK, value=cipher.seal(b"visage")))
    session.flush()
    return _rewrite(session.connection(), cipher.seal, sealed=False)


def decrypt(session: Session, key: bytes) -> int:
    """Open all embeddings in this transaction; returns how many.

    Raises:
        EmbeddingsLocked: if they are not encrypted, or by another key.
    """
    _keep_writers_out(session)
    check = session.get(Secret, CHECK)
    if check is None:
        raise EmbeddingsLocked("the embeddings of this catalog are not encrypted")
    cipher = Cipher(key)
    cipher.open(check.value)
    session.delete(check)
    session.flush()
    return _rewrite(session.connection(), cipher.open, sealed=True)


def _keep_writers_out(session: Session) -> None:
    """Let nobody else write embeddings until this transaction ends, as SQLite does by itself."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("LOCK TABLE embedding IN SHARE ROW EXCLUSIVE MODE"))


def _rewrite(connection: Connection, change: Callable[[bytes], bytes], sealed: bool) -> int:
    """Change the vectors that are stored sealed, or those that are stored open; returns how many."""
    table = Embedding.__table__
    raw = type_coerce(table.c.vector, LargeBinary)
    statement = (
        update(Embedding)
        .where(table.c.face_id == bindparam("face"), table.c.model_version_id == bindparam("version"))
        .values({"vector": type_coerce(bindparam("changed"), LargeBinary)})
    )
    versions = connection.scalars(select(table.c.model_version_id).distinct()).all()
    total = 0
    for version in versions:
        after = 0
        while rows := connection.execute(
            select(table.c.face_id, raw)
            .where(table.c.model_version_id == version, table.c.face_id > after, sealed_in_rows() == sealed)
            .order_by(table.c.face_id)
            .limit(PAGE)
        ).all():
            connection.execute(
                statement, [{"face": face, "version": version, "changed": change(value)} for face, value in rows]
            )
            after, total = rows[-1][0], total + len(rows)
    return total


def sealed_in_rows() -> ColumnElement[bool]:
    """Whether a row's vector is stored sealed."""
    return func.length(type_coerce(Embedding.vector, LargeBinary)) % 4 != 0


def keep_alike(connection: Connection) -> None:
    """Have the database refuse an open vector where embeddings are encrypted, and a sealed one where they are not.

    Called after migrations: rebuilding a table in SQLite drops its triggers.
    """
    differs = f"(length(NEW.vector) & 3 = 0) = EXISTS (SELECT 1 FROM secret WHERE name = '{CHECK}')"
    if connection.dialect.name == "sqlite":
        for event in ("INSERT", "UPDATE OF vector"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER IF NOT EXISTS embedding_alike_{event.partition(' ')[0].lower()} BEFORE {event} ON embedding "
                f"WHEN {differs} BEGIN SELECT RAISE(ABORT, '{SWITCHED}'); END"
            )
        return
    for statement in (
        "CREATE OR REPLACE FUNCTION visage_embedding_alike() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF {differs} THEN RAISE EXCEPTION '{SWITCHED}'; END IF; RETURN NEW; END $$",
        "DROP TRIGGER IF EXISTS embedding_alike ON embedding",
        "CREATE TRIGGER embedding_alike BEFORE INSERT OR UPDATE OF vector ON embedding "
        "FOR EACH ROW EXECUTE FUNCTION visage_embedding_alike()",
    ):
        connection.exec_driver_sql(statement)
