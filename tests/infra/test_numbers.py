"""A number that somebody saw means the row that bore it, also when that is erased: no other one gets it, on either database."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, select, text

from infra.catalog import numbers
from infra.catalog.custody import erasing
from infra.catalog.database import Catalog, create_catalog_engine, revision, upgrade
from infra.catalog.exchange.copying import copy_catalog
from infra.catalog.exchange.renumbering import Renumbering
from infra.catalog.statements import table_of
from infra.catalog.tables.people import Decision, Person
from infra.catalog.tables.schema import Base, Content, Face, Identity, Image
from tasks.identities import decisions
from tests.catalogs import ENGINES, PostgreSQL
from tests.infra.test_migrations import migrate
from tests.made_up import Crowd

SEEN = (Image, Content, Face, Identity, Person, Decision)
NUMBERED = [table.name for table in Base.metadata.sorted_tables if "id" in table.columns]


class Notes:
    """Every number that somebody ever saw: one that is gone must not come back."""

    def __init__(self) -> None:
        self.there: dict[str, set[int]] = defaultdict(set)
        self.gone: dict[str, set[int]] = defaultdict(set)

    def look(self, catalog: Catalog) -> None:
        with catalog.read() as session:
            for entity in SEEN:
                name, before = entity.__tablename__, self.there[entity.__tablename__]
                now = set(session.scalars(select(entity.id)))
                self.gone[name] |= before - now
                assert not now & self.gone[name], f"{name} {now & self.gone[name]} are other ones now"
                self.there[name] = now


def live_and_be_erased(crowd: Crowd, notes: Notes, person: int) -> None:
    """Photograph somebody twice, find who it is, name them, and erase both photos: all that was newest is gone."""
    photos = [crowd.photo(person) for _ in range(2)]
    crowd.night()
    identity = crowd.places()[photos[0][0]]
    assert identity is not None
    with crowd.catalog.write() as session:
        decisions.name(session, "curator", identity, f"Number {person}")
    notes.look(crowd.catalog)
    with crowd.catalog.write() as session:
        erasing.forget_faces(session, [face for photo in photos for face in photo])
        latest = select(Image).order_by(Image.id.desc()).limit(len(photos))
        erasing.forget_images(session, session.scalars(latest).all())
    notes.look(crowd.catalog)


def test_nobody_gets_the_number_of_whoever_was_erased(catalog: Catalog) -> None:
    crowd, notes = Crowd(catalog, spread=0.4), Notes()
    crowd.photo(0, 1)
    crowd.night()
    for person in (2, 3):
        live_and_be_erased(crowd, notes, person)
    crowd.catalog = Catalog(catalog.url)  # another process
    live_and_be_erased(crowd, notes, 4)
    erasing.scrub(crowd.catalog.engine)
    live_and_be_erased(crowd, notes, 5)
    crowd.catalog.close()
    assert {name: len(gone) for name, gone in notes.gone.items() if gone} == {
        "image": 8, "content": 8, "face": 8, "identity": 4, "person": 4,
    }  # fmt: skip


def test_a_copy_goes_on_where_the_source_was_there_and_back(
    fresh_catalog_url: Callable[[str], str], postgresql: PostgreSQL, tmp_path: Path
) -> None:
    crowd, notes = Crowd(Catalog(fresh_catalog_url("sqlite")), spread=0.4), Notes()
    server = postgresql.create()
    live_and_be_erased(crowd, notes, 1)
    for target in (server, f"sqlite:///{tmp_path / 'back.db'}"):
        crowd.catalog.close()
        copy_catalog(crowd.catalog.url, target)
        crowd.catalog = Catalog(target)
        live_and_be_erased(crowd, notes, 2)
    crowd.catalog.close()
    postgresql.drop(server)


def test_rows_of_an_archive_get_numbers_that_nobody_had(catalog: Catalog) -> None:
    crowd, notes = Crowd(catalog, spread=0.4), Notes()
    live_and_be_erased(crowd, notes, 1)
    with catalog.write() as session:
        here = Renumbering(session, {})
        for entity in SEEN:
            here.reserve(table_of(entity), [7, 9])
            given = here.numbers[entity.__tablename__]
            assert min(given.values()) > max(notes.gone[entity.__tablename__], default=0)
            assert given[7] < given[9]
            with pytest.raises(StopIteration):
                next(number for number in given.values() if number in notes.there[entity.__tablename__])
    live_and_be_erased(crowd, notes, 2)


def test_every_table_gives_each_number_once(catalog: Catalog) -> None:
    made = text("SELECT sql FROM sqlite_master WHERE name = :table")
    with catalog.engine.begin() as connection:
        for table in NUMBERED:
            before = numbers.last_given(connection, table)
            assert list(numbers.take(connection, table, 2)) == [before + 1, before + 2]
            numbers.go_on_after(connection, table, before + 10)
            numbers.go_on_after(connection, table, before + 5)
            assert numbers.last_given(connection, table) == before + 10
            assert list(numbers.take(connection, table, 0)) == []
            assert list(numbers.take(connection, table, 1)) == [before + 11]
            if connection.dialect.name == "sqlite":
                assert "PRIMARY KEY AUTOINCREMENT" in connection.scalar(made, {"table": table}), table


BEFORE = """
INSERT INTO collection (id, name, uri, include, exclude, sensitive_attributes, created_at)
    VALUES (1, 'archive', '/photos', '[]', '[]', '[]', '2026-01-01');
INSERT INTO run (id, collection_id, status, recipe, started_at, host, process_id, process_started, counts, schedule_id)
    VALUES (1, 1, 'done', 'r', '2026-01-01', 'h', 1, 1, '{}', 4);
INSERT INTO content (id, collection_id, sha256, status, recipe, owner_image_id, run_id, notes, failure_retryable)
    VALUES (1, 1, 'ab', 'done', 'r', 5, 1, '[]', false);
INSERT INTO image (id, collection_id, key, etag, size, modified_at, status, retryable, content_id)
    VALUES (1, 1, 'a.jpg', '1', 1, '2026-01-01', 'done', false, 1);
INSERT INTO model_version (id, name, version, role, contract, contract_content, weights_sha256, licence, serving, created_at)
    VALUES (1, 'm', 1, 'embed', 'c', '{}', '0', 'MIT', false, '2026-01-01');
INSERT INTO face (id, content_id, detector_id, ordinal, x1, y1, x2, y2, landmarks, score, quality, quality_parts, crop_key,
    found_at) VALUES (1, 1, 1, 0, 1, 2, 3, 4, '', 1, 1, '{}', 'k', '2026-01-01');
INSERT INTO embedding (face_id, model_version_id, vector) VALUES (1, 1, 'abc');
INSERT INTO identity (id, model_version_id, created_at) VALUES (6, 1, '2026-01-01');
INSERT INTO face_identity (face_id, model_version_id, identity_id, exemplar, run_id) VALUES (1, 1, 6, true, 1);
INSERT INTO person (id, root_id, ignored) VALUES (1, 1, false);
INSERT INTO decision (id, kind, who, decided_at, person_id) VALUES (1, 'name', 'curator', '2026-01-01', 1);
INSERT INTO decided_move (decision_id, face_id, model_version_id, former_identity_id) VALUES (1, 1, 1, 7);
INSERT INTO audit_entry (id, at, who, action, subject, previous, digest) VALUES
    (1, '', 'curator', 'decide.name', '{"decision": 1, "identity": 3, "faces": [1, 8]}', '0', 'a'),
    (2, '', 'curator', 'search.catalog', '{"found": [], "identity": null, "photos": []}', 'a', 'b')
"""
FOLLOWING = {"schedule": 5, "image": 6, "identity": 8, "face": 9, "content": 2, "person": 2, "failure": 1}


@pytest.fixture(params=ENGINES)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """Return a database of before numbers were remembered, in which some tell of rows that are gone."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'old.db'}" if sqlite else request.getfixturevalue("postgresql").create()
    engine = create_catalog_engine(url)
    migrate(engine, "0017")
    with engine.begin() as connection:
        for statement in BEFORE.split(";\n"):
            connection.exec_driver_sql(statement)
        if not sqlite:
            for table in ("collection", "run", "content", "image", "model_version", "face", "person", "decision"):
                connection.exec_driver_sql(f"SELECT nextval(pg_get_serial_sequence('{table}', 'id'))")
    return engine


def test_an_older_catalog_keeps_its_rows_and_what_it_tells_of_others_counts(earlier: Engine) -> None:
    rows, schema = _rows(earlier), _schema(earlier)
    upgrade(earlier)
    now = _rows(earlier)
    for table, before in rows.items():  # later migrations have added columns behind the others
        assert [row[: len(was)] for row, was in zip(now[table], before, strict=True)] == before, table
    now_is = _schema(earlier)
    for name, what in schema.items():
        assert set(what) <= set(now_is[name]) if isinstance(what, list) else now_is[name] == what, name
    with earlier.begin() as connection:
        assert {table: numbers.last_given(connection, table) + 1 for table in FOLLOWING} == FOLLOWING
        if earlier.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        connection.exec_driver_sql("DELETE FROM face")  # and all that refers to it
    after = _rows(earlier)
    assert [after[table] for table in ("embedding", "face_identity", "decided_move")] == [[], [], []]
    with pytest.raises(Exception, match="append-only"), earlier.begin() as connection:
        connection.exec_driver_sql("DELETE FROM audit_entry")
    earlier.dispose()


def test_a_migration_that_fails_leaves_everything_as_it_was(earlier: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, schema = _rows(earlier), _schema(earlier)
    monkeypatch.setattr(numbers, "go_on_after", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        upgrade(earlier)
    assert (_rows(earlier), _schema(earlier)) == (rows, schema)
    with earlier.begin() as connection:
        assert revision(connection) == "0017"
        connection.exec_driver_sql("DELETE FROM face")
    assert _rows(earlier)["face_identity"] == []  # foreign keys are enforced
    earlier.dispose()


def test_tables_are_not_made_anew_where_that_would_delete_what_refers_to_them(tmp_path: Path) -> None:
    engine = create_catalog_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    with pytest.raises(RuntimeError, match="enforces foreign keys"):
        migrate(engine, "head")
    engine.dispose()


def _rows(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    with engine.connect() as connection:
        tables = MetaData()
        tables.reflect(connection)
        return {
            table.name: [tuple(row) for row in connection.execute(table.select().order_by(*table.primary_key))]
            for table in tables.sorted_tables
            if table.name != "alembic_version"
        }


def _schema(engine: Engine) -> dict[str, Any]:
    """What SQLite knows of tables, but for their key, and of indexes, triggers and views; nothing of PostgreSQL."""
    if engine.dialect.name != "sqlite":
        return {}
    wanted = {"table_xinfo": "*", "foreign_key_list": "*", "index_list": 'name, "unique", origin, partial'}
    with engine.connect() as connection:
        found: dict[str, Any] = {}
        for kind, name, statement in connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master").all():
            found[name] = statement if kind != "table" else ""
            if kind == "table":
                for pragma, columns in wanted.items():
                    rows = connection.exec_driver_sql(f"SELECT {columns} FROM pragma_{pragma}('{name}')")
                    found[f"{name} {pragma}"] = sorted(rows, key=str)
                found[f"{name} checks"] = statement.count("CHECK")
        return found
