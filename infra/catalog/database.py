"""Opening the catalog: engine, migrations, sessions."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session, sessionmaker

from infra.catalog import encryption
from infra.catalog.faults import CatalogUnreachable, explain
from infra.catalog.identities import waiting
from infra.catalog.search import vectors
from infra.catalog.statements import exclusive
from infra.catalog.tables import custody, people, service, upgrades  # noqa: F401 - tables enter Base's

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 60  # a writer waits so long for another before it reports a locked catalog
CONNECT_SECONDS = 10
COPYING = "copying to "  # a database with a revision like this is being copied into


class CatalogTooNew(RuntimeError):
    """The database was migrated by a later Visage than this one."""


class CatalogUnfinished(RuntimeError):
    """A copy into this database was interrupted."""


def location_of(url: str) -> URL:
    """Read a database URL; `postgresql://` and `postgres://` mean psycopg, the driver that comes with Visage.

    Raises:
        CatalogUnreachable: if it is no URL of SQLite or PostgreSQL. What it holds is not shown: it may be a password.
    """
    try:
        location = make_url(url)
    except ArgumentError as error:
        raise CatalogUnreachable(
            "the database URL cannot be read; it looks like 'postgresql://user:password@host/database' or "
            "'sqlite:////folder/catalog.db' (VISAGE_DATABASE_URL)"
        ) from error
    backend = location.get_backend_name()
    if backend in ("postgres", "postgresql"):
        return location.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        return location.set(drivername="sqlite")
    raise CatalogUnreachable(
        f"a catalog lives in SQLite or PostgreSQL, not in {location.drivername!r}: begin the URL with 'sqlite:///' or "
        "'postgresql://' (VISAGE_DATABASE_URL)"
    )


def create_catalog_engine(url: str, busy_seconds: float = BUSY_SECONDS) -> Engine:
    """Make an engine; for SQLite with write-ahead log, foreign keys and patience for other writers.

    Raises:
        CatalogUnreachable: here for a URL that cannot be read; later from any use, if the database cannot be reached.
    """
    location = location_of(url)
    if location.get_backend_name() == "postgresql":
        engine = _postgresql_engine(location)
    else:
        engine = _sqlite_engine(location, busy_seconds)
    explain(engine)
    return engine


def _postgresql_engine(location: URL) -> Engine:
    engine = create_engine(location, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_SECONDS})

    @event.listens_for(engine, "connect")
    def _plan_anew(connection: Any, _: object) -> None:
        # From the eleventh time on PostgreSQL would take one plan for whatever a filter asks: a filter that keeps 1% of a
        # million faces then takes 6 s instead of 0.1.
        connection.autocommit = True
        connection.execute("SET plan_cache_mode = force_custom_plan")
        connection.autocommit = False

    return engine


def _sqlite_engine(location: URL, busy_seconds: float) -> Engine:
    if location.database and location.database != ":memory:":
        Path(location.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(location, connect_args={"timeout": busy_seconds})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, see below
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.create_function("lower", 1, _lower, deterministic=True)  # SQLite's own knows A to Z

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A transaction that reads first and then writes would fail at once instead of waiting for the other writer.
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _lower(value: object) -> str | None:
    return None if value is None else str(value).lower()


def upgrade(engine: Engine) -> None:
    """Bring the schema up to this version of the code.

    Raises:
        CatalogTooNew: if a later version of Visage has already migrated it further.
        CatalogUnfinished: if a copy into it was interrupted.
    """
    from alembic import command  # noqa: PLC0415 - slow to import, needed once

    script = _scripts()
    with engine.connect().execution_options(read_only=True) as connection:  # no writer has to be waited for
        if revision(connection) == script.get_current_head():
            return
    known = {revision.revision for revision in script.walk_revisions()}
    with _rebuilding(engine) as connection:
        exclusive(connection, "upgrade")
        current = revision(connection)
        if current is not None and current.startswith(COPYING):
            raise CatalogUnfinished(
                f"{engine.url.render_as_string()}: a copy into this database was interrupted; the same 'visage db copy' again "
                "finishes it"
            )
        if current is not None and current not in known:
            raise CatalogTooNew(
                f"{engine.url.render_as_string()}: the catalog is at revision {current}, which this version of Visage does "
                "not know. Update Visage, or restore the backup made before the newer version ran."
            )
        if current != script.get_current_head():
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if connection.dialect.name == "sqlite":
                vectors.keep_journal(connection)
            waiting.keep(connection)
            encryption.keep_alike(connection)


@contextmanager
def _rebuilding(engine: Engine) -> Iterator[Connection]:
    """Begin a transaction in which tables can be made anew. Dropping one would otherwise delete what refers to its rows."""
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            yield connection
        return
    with engine.connect() as connection:
        _switch(connection, foreign_keys="OFF", legacy_alter_table="ON")  # who refers to a table means its name
        try:
            with connection.begin():
                yield connection
        finally:
            _switch(connection, foreign_keys="ON", legacy_alter_table="OFF")


def _switch(connection: Connection, **pragmas: str) -> None:
    """Set what SQLite does not let be set within a transaction, and `connection.execute` begins one."""
    driver = connection.connection.driver_connection
    assert driver is not None
    for name, value in pragmas.items():
        driver.execute(f"PRAGMA {name} = {value}")


def _config() -> "Config":
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


@cache
def _scripts() -> "ScriptDirectory":
    """The migrations, which are read once in a process: every opened catalog is compared with the last."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    return ScriptDirectory.from_config(_config())


def head() -> str:
    """The revision that this version of the code works with."""
    return str(_scripts().get_current_head())


def knows(found: str) -> bool:
    """Whether a revision is this version's, or one before it."""
    return any(revision.revision == found for revision in _scripts().walk_revisions())


def revision(connection: Connection) -> str | None:
    """The revision that a database is at; None if it is no catalog yet."""
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415

    return MigrationContext.configure(connection).get_current_revision()


class Catalog:
    """A migrated catalog: `with catalog.write() as session` commits as one transaction, `read()` never locks writers out.

    What one `read()` session sees is of one moment. Without `unlock`, encrypted embeddings stay as they are stored.

    Raises:
        CatalogUnreachable: if the database cannot be opened.
        CatalogTooNew: if a later version of Visage has already migrated it further.
        CatalogUnfinished: if a copy into it was interrupted.
        EmbeddingsLocked: if a key for its embeddings is given, and it is not the right one.
    """

    def __init__(self, url: str, busy_seconds: float = BUSY_SECONDS, unlock: bool = True) -> None:
        self.url = url
        self.engine = create_catalog_engine(url, busy_seconds)
        upgrade(self.engine)
        if unlock:
            encryption.unlock(self.engine)
        self._write = sessionmaker(self.engine, expire_on_commit=False)
        self._read = sessionmaker(self.engine.execution_options(**_snapshot(self.engine)), expire_on_commit=False)

    def write(self) -> AbstractContextManager[Session]:
        return self._write.begin()

    def read(self) -> Session:
        return self._read()

    def close(self) -> None:
        self.engine.dispose()


def _snapshot(engine: Engine) -> dict[str, Any]:
    """What makes all that a session reads be of one moment, as SQLite does by itself."""
    if engine.dialect.name == "postgresql":
        return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    return {"read_only": True}
