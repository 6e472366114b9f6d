"""What a database does to us, as errors that say what happened to which catalog and what to do."""

import sqlite3

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import ExceptionContext

from infra.asked import AskedWrongly
from infra.catalog.encryption import SWITCHED, EmbeddingsLocked

GONE = ("57P01", "57P02", "57P03", "53300")  # PostgreSQL shuts down, crashed, starts up, or has no connection left
AGAIN = ("40001", "40P01", "55P03")  # a conflict with another transaction, a deadlock, a lock not to be had
NO_ROOM = ("53100", "53200")
TOO_LARGE = "22003"
NUL = "NUL (0x00)"  # in the words of psycopg, which sends no text with it


class CatalogUnreachable(ConnectionError):
    """The database cannot be used: its URL, its file or the right to it must be mended first."""


class CatalogUnavailable(CatalogUnreachable):
    """The database is down, went away in the middle of the work, or stays locked: the same may succeed later."""

    retryable = True


class CatalogFull(CatalogUnreachable):
    """The database has no room left. Nothing of the transaction was written."""


class NumberTooLarge(AskedWrongly):
    """A number that was asked for does not fit into 64 bits."""


class UnstorableText(AskedWrongly):
    """A text with a NUL character, which PostgreSQL takes nowhere."""


def explain(engine: Engine) -> None:
    """Let `engine` raise errors of ours where its database fails, and leave those that are bugs as they are."""
    where = engine.url.render_as_string(hide_password=True)

    @event.listens_for(engine, "handle_error")
    def _explain(context: ExceptionContext) -> None:
        if context.is_pre_ping:
            return  # the pool connects again
        error = context.original_exception
        said = str(error).strip()
        if SWITCHED in said:  # by a trigger
            raise EmbeddingsLocked(f"{where}: {SWITCHED}") from error
        if isinstance(error, OverflowError) or getattr(error, "sqlstate", "") == TOO_LARGE:
            raise NumberTooLarge("a number in it is larger than any in the catalog; give a smaller one") from error
        if NUL in said:
            raise UnstorableText("a text in it has a NUL character; leave it out") from error
        if isinstance(error, sqlite3.Error):
            found = _of_sqlite(error, where)
        elif type(error).__module__.startswith("psycopg"):  # which SQLite's users need not import
            found = _of_postgresql(error, where, said, context.is_disconnect)
        else:
            return
        if found is not None:
            raise found from error


def _of_sqlite(error: sqlite3.Error, where: str) -> CatalogUnreachable | None:
    """By SQLite's primary result code (https://www.sqlite.org/rescode.html)."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return CatalogUnavailable(
                f"{where}: another process has kept the catalog locked. Look for one that hangs, then run again."
            )
        case sqlite3.SQLITE_FULL:
            return CatalogFull(f"{where}: no room is left ({error}). Free some and run again; nothing is half-written.")
        case sqlite3.SQLITE_IOERR:
            return CatalogFull(f"{where}: the disk does not take or give the data ({error}). Is it full, or failing?")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return CatalogUnreachable(f"{where}: {error}. Give this user the right to the file and to its folder.")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return CatalogUnreachable(
                f"{where}: {error}. Restore the catalog from a backup; the photographs are untouched."
            )
        case _:
            return None


def _of_postgresql(error: BaseException, where: str, said: str, disconnected: bool) -> CatalogUnreachable | None:
    state = getattr(error, "sqlstate", None) or ""
    if state in NO_ROOM:
        return CatalogFull(f"{where}: no room is left ({said}). Free some and run again; nothing is half-written.")
    if state in AGAIN:
        return CatalogUnavailable(f"{where}: {said}. Run again.")
    if disconnected or state in GONE or (type(error).__name__ == "OperationalError" and not state):
        return CatalogUnavailable(f"{where}: {said}. Is the server up, VISAGE_DATABASE_URL right? Run again then.")
    return None
