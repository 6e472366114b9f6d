"""Opening a catalog: any engine, any state of it, or a clear word why not."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text

from infra.catalog import collections
from infra.catalog.database import Catalog, CatalogTooNew, CatalogUnreachable
from infra.catalog.tables.schema import Base, Collection
from tests.catalogs import PostgreSQL
from tests.command import visage


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://someone:secret@127.0.0.1:1/visage", r"someone:\*\*\*@127\.0\.0\.1:1/visage.*refused"),
        ("postgresql://nowhere.invalid/visage", "nowhere.invalid/visage.*resolve"),
        ("postgres secret", "the database URL cannot be read"),
        ("mysql://someone:secret@host/visage", "SQLite or PostgreSQL, not in 'mysql'"),
        ("sqlite:////proc/none/catalog.db", "/proc/none"),
    ],
)
def test_a_database_that_cannot_be_opened_is_named_without_trace_or_password(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VISAGE_HOME", str(tmp_path))
    monkeypatch.setenv("VISAGE_DATABASE_URL", url)
    ended = visage("collections", "list")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "secret" not in ended.err
    with pytest.raises(OSError, match=said):
        Catalog(url)


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"my thesis " * 1000)
    with pytest.raises(CatalogUnreachable, match=r"catalog\.db.*not a database"):
        Catalog(f"sqlite:///{path}")
    assert path.read_bytes() == b"my thesis " * 1000


def test_the_plain_scheme_means_the_driver_that_comes_with_visage(migrated_postgresql: PostgreSQL) -> None:
    url = migrated_postgresql.create().replace("postgresql+psycopg://", "postgresql://")
    catalog = Catalog(url)
    assert catalog.engine.dialect.driver == "psycopg"
    catalog.close()
    migrated_postgresql.drop(url)


def test_a_database_that_stops_while_at_work_is_named_and_found_again(migrated_postgresql: PostgreSQL) -> None:
    url = migrated_postgresql.create("migrated")
    catalog = Catalog(url)
    with catalog.read() as session:
        own = session.scalar(select(text("pg_backend_pid()")))
        migrated_postgresql.end_connection(own)
        with pytest.raises(CatalogUnreachable, match=url.partition("?")[0].rpartition("/")[2]):
            session.scalar(select(Collection.id))
    with catalog.read() as session:
        assert session.scalar(select(Collection.id)) is None
    catalog.close()
    migrated_postgresql.drop(url)


def test_a_question_asked_many_times_is_planned_for_what_it_asks_each_time(migrated_postgresql: PostgreSQL) -> None:
    url = migrated_postgresql.create("migrated")
    catalog = Catalog(url)
    with catalog.read() as session:
        for name in range(15):
            session.scalar(select(Collection.id).where(Collection.name == str(name)))
        plans = text(
            "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE '%collection.name%'"
        )
        assert session.execute(plans).all() == [(0, 10)]  # the driver prepares a statement after five times
    catalog.close()
    migrated_postgresql.drop(url)


@pytest.mark.usefixtures("every_migration")
def test_programs_that_open_a_new_database_at_once_all_find_it_migrated(postgresql: PostgreSQL, tmp_path: Path) -> None:
    server = postgresql.create()
    for url in (server, f"sqlite:///{tmp_path / 'catalog.db'}"):
        found: list[int] = []

        def start(url: str = url, found: list[int] = found) -> None:
            catalog = Catalog(url)
            found.append(len(inspect(catalog.engine).get_table_names()))
            catalog.close()

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [len(Base.metadata.tables) + 1] * 4  # and Alembic's own
    postgresql.drop(server)


def test_a_catalog_opens_and_answers_while_another_process_writes(catalog: Catalog) -> None:
    with catalog.write() as writing:
        collections.add(writing, "new", "/photos", [], [], [])
        writing.flush()
        another = Catalog(catalog.url, busy_seconds=0.1)
        with another.read() as session:
            assert session.scalar(select(Collection.id)) is None
        another.close()


def test_a_catalog_from_a_newer_release_is_refused(catalog: Catalog) -> None:
    with catalog.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(CatalogTooNew, match="Update Visage"):
        Catalog(catalog.url)
