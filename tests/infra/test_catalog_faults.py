"""A database that is locked, full, damaged or away: told as such, waited for where that helps, and nothing half-written."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.faults import CatalogFull, CatalogUnavailable, NumberTooLarge, UnstorableText
from infra.catalog.tables.schema import Collection, Image
from infra.patience import patient
from tests.catalogs import FreshUrl
from tests.crashes.postgresql import Server


def add(catalog: Catalog, name: str) -> None:
    with catalog.write() as session:
        collections.add(session, name, "/photos", [], [], [])


def count(catalog: Catalog) -> int:
    with catalog.read() as session:
        return session.scalar(select(func.count(Collection.id))) or 0


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield opened
    opened.close()


def test_a_catalog_that_stays_locked_is_told_as_such(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}", busy_seconds=0.1)
    other = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CatalogUnavailable, match=r"catalog\.db: another process has kept the catalog locked"):
        add(catalog, "one")
    other.close()
    add(catalog, "one")
    assert count(catalog) == 1


def test_a_full_catalog_is_told_as_such_and_keeps_what_it_has(catalog: Catalog) -> None:
    add(catalog, "one")
    with catalog.read() as session:
        pages = session.scalar(text("PRAGMA page_count"))
    with catalog.engine.connect() as connection:  # the pool hands this very connection out again
        connection.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(CatalogFull, match=r"catalog\.db: no room is left"):
        add(catalog, "long" * 10_000)
    assert count(catalog) == 1
    with catalog.engine.connect() as connection:
        connection.execute(text("PRAGMA max_page_count = 1000000"))
    add(catalog, "two")
    assert count(catalog) == 2


@pytest.mark.slow
def test_work_on_a_database_that_is_killed_in_the_middle_of_it_goes_on_when_it_is_back(
    mortal_postgresql: Server,
) -> None:
    catalog = Catalog(mortal_postgresql.url)
    attempts = []

    @patient
    def work() -> None:
        with catalog.write() as session:
            collections.add(session, "one", "/photos", [], [], [])
            attempts.append(1)
            if len(attempts) == 1:
                mortal_postgresql.kill()
                threading.Timer(1.0, mortal_postgresql.start).start()

    work()
    assert len(attempts) == 2
    assert count(catalog) == 1
    mortal_postgresql.kill()
    with pytest.raises(CatalogUnavailable, match="Is the server up"):
        count(catalog)
    mortal_postgresql.start()
    assert count(catalog) == 1
    catalog.close()


def test_a_number_beyond_64_bits_is_told_as_such(catalog: Catalog) -> None:
    with catalog.read() as session, pytest.raises(NumberTooLarge, match="give a smaller one"):
        session.execute(select(Image.id).limit(10**20)).all()


def test_a_text_that_postgresql_cannot_hold_is_told_as_such(fresh_catalog_url: FreshUrl) -> None:
    catalog = Catalog(fresh_catalog_url("postgresql"))
    with pytest.raises(UnstorableText, match="leave it out"):
        add(catalog, "a\0b")
    catalog.close()


def test_what_would_fail_again_is_not_tried_again() -> None:
    calls = []

    @patient
    def work() -> None:
        calls.append(1)
        raise CatalogFull("no room")

    with pytest.raises(CatalogFull):
        work()
    assert len(calls) == 1
