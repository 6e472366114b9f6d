"""Opening the catalog: engine, migrations, sessions, upserts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from infra.catalog import custody_tables, people_tables  # noqa: F401 - enter their tables into Base's
from infra.catalog.schema import Base

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 60  # a writer waits so long for another before it reports a locked catalog


class CatalogTooNew(RuntimeError):
    """The database was migrated by a later Visage than this one."""


def create_catalog_engine(url: str) -> Engine:
    """Make an engine; for SQLite with write-ahead log, foreign keys and patience for other writers."""
    location = make_url(url)
    if location.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if location.database:
        Path(location.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, see below
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A transaction that reads first and then writes would fail at once instead of waiting for the other writer.
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def upgrade(engine: Engine) -> None:
    """Bring the schema up to this version of the code.

    Raises:
        CatalogTooNew: if a later version of Visage has already migrated it further.
    """
    from alembic import command  # noqa: PLC0415 - slow to import, needed once
    from alembic.config import Config  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    with engine.begin() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current is not None and current not in known:
            raise CatalogTooNew(
                f"{engine.url.render_as_string()}: the catalog is at revision {current}, which this version of Visage does "
                "not know. Update Visage, or restore the backup made before the newer version ran."
            )
        if current != script.get_current_head():
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


class Catalog:
    """A migrated catalog: `with catalog.write() as session` commits as one transaction, `read()` never locks writers out."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = create_catalog_engine(url)
        upgrade(self.engine)
        self._write = sessionmaker(self.engine, expire_on_commit=False)
        self._read = sessionmaker(self.engine.execution_options(read_only=True), expire_on_commit=False)

    def write(self) -> Any:
        return self._write.begin()

    def read(self) -> Session:
        return self._read()

    def close(self) -> None:
        self.engine.dispose()


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
    table = entity.__table__
    assert isinstance(table, Table)
    statement = (sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert)(table)
    columns = {name: statement.excluded[name] for name in update}
    keys = list(key)
    statement = (
        statement.on_conflict_do_update(index_elements=keys, set_=columns)
        if columns
        else statement.on_conflict_do_nothing(index_elements=keys)
    )
    session.execute(statement, [dict(row) for row in rows])
