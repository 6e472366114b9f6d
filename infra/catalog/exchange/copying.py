"""Copying a whole catalog from one database into another, as from SQLite to PostgreSQL when a collection has grown.

Tables are copied in the order of their keys, a page per transaction, so that what has arrived is always a beginning of the
table: a killed copy goes on where it stopped. Until every table's rows have been read back from both sides and found equal,
the target says that it is unfinished, and nobody can open it as a catalog.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    Text,
    bindparam,
    func,
    insert,
    inspect,
    select,
    text,
    tuple_,
    update,
)

from infra.catalog import encryption, numbers
from infra.catalog.database import COPYING, Catalog, create_catalog_engine, head, location_of, revision, upgrade
from infra.catalog.search.vectors import index_all
from infra.catalog.tables.schema import Base, EmbeddingChange, UngroupedFace

PAGE = 2000
LOCAL = {EmbeddingChange.__tablename__, UngroupedFace.__tablename__}  # what a database keeps by itself

Progress = Callable[[str, int], None]


class CopyRefused(ValueError):
    """These two databases cannot be copied like that; the message says why and what to do."""


class CopyDiffers(RuntimeError):
    """What arrived is not what was there."""


@dataclass(frozen=True)
class CopiedTable:
    """A table that is the same on both sides: rows, and the SHA-256 of them all in the order of their keys."""

    table: str
    rows: int
    digest: str


def copy_catalog(
    source_url: str, target_url: str, on_progress: Progress = lambda table, rows: None
) -> list[CopiedTable]:
    """Copy all rows into an empty database, or go on with a copy that was interrupted. The source is only read.

    Raises:
        CopyRefused: if there is no catalog to copy, the target holds anything else, or both are the same database.
        CopyDiffers: naming the table, if the source changed meanwhile; the target stays marked as unfinished.
        CatalogUnreachable, CatalogTooNew: for either side.
    """
    if location_of(source_url) == location_of(target_url):
        raise CopyRefused("source and target are the same database")
    source = _existing(source_url)
    engine = create_catalog_engine(target_url)
    encryption.share(source.engine, engine)
    try:
        _prepare(engine)
        with source.read() as session:
            reading = session.connection()
            for table in tables():
                _copy(reading, engine, table, on_progress)
            copied = [_verified(reading, engine, table) for table in tables()]
            with engine.begin() as connection:
                _finish(reading, connection)
        return copied
    finally:
        source.close()
        engine.dispose()


def _existing(url: str) -> Catalog:
    """Open a catalog that is there; none is made."""
    place = location_of(url)
    if place.get_backend_name() == "sqlite" and not Path(place.database or "").is_file():
        raise CopyRefused(
            f"there is no file {place.database} to copy from; a full path has four slashes: sqlite:////home/me/catalog.db"
        )
    engine = create_catalog_engine(url)
    try:
        with engine.connect() as connection:
            found = revision(connection)
    finally:
        engine.dispose()
    if found is None:
        raise CopyRefused(f"{place.render_as_string()} holds no catalog to copy")
    return Catalog(url)


def tables() -> list[Table]:
    """What is copied, each table after those that it refers to."""
    return [table for table in Base.metadata.sorted_tables if table.name not in LOCAL]


def _prepare(engine: Engine) -> None:
    """Migrate the target if it is new, see that nothing foreign is in it, and mark it as unfinished.

    Raises:
        CopyRefused: if it holds rows and no copy into it was begun.
    """
    place, copying = engine.url.render_as_string(), COPYING + head()
    with engine.begin() as connection:
        found = revision(connection)
    if found == copying:
        return
    if found is not None and found.startswith(COPYING):
        raise CopyRefused(
            f"{place}: another version of Visage began to copy into it; empty this database and copy again"
        )
    upgrade(engine)
    with engine.begin() as connection:
        filled = [t.name for t in tables() if connection.execute(select(t).limit(1)).first() is not None]
        others = set(inspect(connection).get_table_names()) - set(Base.metadata.tables) - {"alembic_version"}
        if filled or others:
            raise CopyRefused(
                f"{place}: there is something in it already ({', '.join(filled + sorted(others))}); a catalog is copied into "
                "an empty database only"
            )
        connection.execute(text("UPDATE alembic_version SET version_num = :copying"), {"copying": copying})


def _copy(reading: Connection, engine: Engine, table: Table, on_progress: Progress) -> None:
    key = list(table.primary_key)
    with engine.begin() as connection:
        backwards = (c.desc() for c in _order(connection, table))
        last = connection.execute(select(*key).order_by(*backwards).limit(1)).first()
        arrived = connection.scalar(select(func.count()).select_from(table)) or 0
    # A row may refer to a later one of its own table, which is not there yet: such references come at the end.
    later = [c for c in table.columns if any(k.column.table is table for k in c.foreign_keys)]
    for rows in pages(reading, table, last):
        with engine.begin() as connection:
            connection.execute(insert(table), [row | {c.name: None for c in later} for row in rows])
        arrived += len(rows)
        on_progress(table.name, arrived)
    if later:
        linking = update(table).where(*(c == bindparam(f"key_{c.name}") for c in key))
        for rows in pages(reading, table, None):
            linked = [row for row in rows if any(row[c.name] is not None for c in later)]
            values = [
                {c.name: row[c.name] for c in later} | {f"key_{c.name}": row[c.name] for c in key} for row in linked
            ]
            if values:
                with engine.begin() as connection:
                    connection.execute(linking.values({c.name: bindparam(c.name) for c in later}), values)


def pages(
    connection: Connection, table: Table, after: Any, where: ColumnElement[bool] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Walk a table, or those of its rows that are meant, in the order of its key, beginning after the one given."""
    order = _order(connection, table)
    while True:
        statement = select(table).order_by(*order).limit(PAGE)
        if where is not None:
            statement = statement.where(where)
        if after is not None:
            statement = statement.where(tuple_(*order) > tuple_(*after))
        rows = [dict(row) for row in connection.execute(statement).mappings()]
        if rows:
            yield rows
        if len(rows) < PAGE:
            return
        after = [rows[-1][c.name] for c in table.primary_key]


def _order(connection: Connection, table: Table) -> list[ColumnElement[Any]]:
    """A table's key as both databases sort it alike: text by its bytes, whatever the database's language."""
    by_bytes = "C" if connection.dialect.name == "postgresql" else "BINARY"
    return [c.collate(by_bytes) if isinstance(c.type, Text) else c for c in table.primary_key]


def _verified(reading: Connection, engine: Engine, table: Table) -> CopiedTable:
    with engine.connect() as connection:
        rows, digest = table_digest(reading, table)
        there, digest_there = table_digest(connection, table)
    if (rows, digest) != (there, digest_there):
        raise CopyDiffers(
            f"table {table.name}: {there} rows ({digest_there[:12]}) arrived of {rows} ({digest[:12]}): the source has changed "
            "since the copy began. Stop what writes into it, empty the target database, and copy again"
        )
    return CopiedTable(table.name, rows, digest)


def table_digest(connection: Connection, table: Table) -> tuple[int, str]:
    """Count and SHA-256 of a table's rows in the order of its key, the same whatever the database."""
    digest, count = hashlib.sha256(), 0
    for rows in pages(connection, table, None):
        for row in rows:
            for name, value in row.items():
                digest.update(name.encode() + b"\0" + _bytes(value) + b"\0")
        count += len(rows)
    return count, digest.hexdigest()


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, bytes | memoryview):
        return bytes(value)
    if isinstance(value, datetime):
        return value.isoformat().encode()
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def _finish(reading: Connection, connection: Connection) -> None:
    """Make an index per embedding version, let numbers go on where the source's are, and take the mark away."""
    index_all(connection)
    for table in tables():
        if table.autoincrement_column is not None:
            numbers.go_on_after(connection, table.name, numbers.last_given(reading, table.name))
    connection.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": head()})
