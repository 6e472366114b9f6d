"""What SQLite and PostgreSQL say differently: taking turns, and inserting what may be there already."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Executable, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from infra.catalog.tables.schema import Base


def exclusive(session: Session | Connection, what: str) -> None:
    """Let only one transaction at a time, of whatever process, go past this point with the same `what`.

    SQLite has one writer at a time anyway; PostgreSQL has many.
    """
    dialect = session.dialect if isinstance(session, Connection) else session.get_bind().dialect
    if dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"visage {what}"))))


def upsert(
    session: Session,
    entity: type[Base],
    rows: Sequence[Mapping[str, Any]],
    key: Iterable[str],
    update: Iterable[str],
) -> None:
    """Insert rows, or bring the `update` columns of those with the same `key` columns up to date."""
    if not rows:
        return
    statement = _upserting(entity, session.get_bind().dialect.name, tuple(key), tuple(update))
    session.execute(statement, [dict(row) for row in rows])


@cache
def _upserting(entity: type[Base], dialect: str, key: tuple[str, ...], update: tuple[str, ...]) -> Executable:
    """Made once: naming the columns takes as long as writing a batch of rows."""
    statement = (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table_of(entity))
    if not update:
        return statement.on_conflict_do_nothing(index_elements=key)
    columns = {name: statement.excluded[name] for name in update}
    return statement.on_conflict_do_update(index_elements=key, set_=columns)


def table_of(entity: type[Base]) -> Table:
    """The table itself: to write many rows past the ORM, which would look at each value."""
    table = entity.__table__
    assert isinstance(table, Table)
    return table
