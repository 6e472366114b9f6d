"""From the first schema to today's, with the rows of a real night."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, MetaData, create_engine, func, insert, select, text

from infra.catalog.database import MIGRATIONS, Catalog, create_catalog_engine, head
from infra.catalog.search import vectors
from infra.catalog.tables.schema import Embedding, ModelVersion
from infra.settings import Settings
from tests import crowd

pytestmark = pytest.mark.slow

Rows = dict[str, list[dict[str, Any]]]


def rows_of(engine: Engine, columns: dict[str, list[str]] | None = None) -> Rows:
    """All rows as the database stores them; of `columns`, where given, those that are still there."""
    with engine.connect() as connection:
        metadata = MetaData()
        metadata.reflect(connection, only=None if columns is None else lambda name, _: name in columns)
        found: Rows = {}
        for table in metadata.sorted_tables:
            wanted = [c for c in table.columns if columns is None or c.name in columns[table.name]]
            ordered = connection.execute(select(*wanted).order_by(*table.primary_key)).mappings()
            found[table.name] = [
                {k: bytes(v) if isinstance(v, memoryview) else v for k, v in r.items()} for r in ordered
            ]
        return found


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_night_recorded_under_the_first_schema_is_whole_under_todays(
    kind: str, processed: Settings, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("postgresql").create()
    engine = create_catalog_engine(url)
    first = first_schema(engine)
    recorded = create_engine(processed.catalog_url)
    night = rows_of(recorded, {table.name: [c.name for c in table.columns] for table in first.sorted_tables})
    recorded.dispose()
    with engine.begin() as connection:
        for table in first.sorted_tables:
            if night.get(table.name) and table.name != "alembic_version":
                connection.execute(insert(table), night[table.name])
    before = rows_of(
        engine, {name: list(rows[0]) for name, rows in night.items() if rows and name != "alembic_version"}
    )
    engine.dispose()

    catalog = Catalog(url)
    after = rows_of(catalog.engine, {name: list(rows[0]) for name, rows in before.items()})
    assert {"face", "embedding", "image", "attribute", "failure", "face_identity"} <= after.keys()
    for name, rows in after.items():
        kept = [{column: row[column] for column in rows[0]} for row in before[name]]
        assert rows == kept, name
    with catalog.read() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == head()
        version = session.scalars(select(ModelVersion).where(ModelVersion.serving)).one()
        assert vectors.count_vectors(session, version.id) == 4
        if kind == "postgresql":
            assert session.scalar(text("SELECT count(half) FROM embedding")) == 4
            assert vectors.has_index(session.connection(), version.id)
    with catalog.write() as session:
        face = session.scalar(select(func.min(Embedding.face_id)))
        session.execute(text("DELETE FROM embedding WHERE face_id = :face"), {"face": face})
        if kind == "sqlite":
            assert vectors.changed_faces(session, version.id, 0, 10) == [face]
    catalog.close()
    if kind == "postgresql":
        request.getfixturevalue("postgresql").drop(url)


@pytest.mark.parametrize("dimension", [8, vectors.WIDE + 1])
def test_an_index_of_an_older_version_is_built_anew_with_more_care(
    fresh_catalog_url: Callable[[str], str], dimension: int
) -> None:
    catalog = Catalog(fresh_catalog_url("postgresql"))
    crowd.enter(catalog, crowd.vectors(50, dimension))
    index = vectors.index_name(crowd.EMBEDDER)
    options = text(f"SELECT unnest(reloptions) FROM pg_class WHERE relname = '{index}'")
    file = text(f"SELECT relfilenode FROM pg_class WHERE relname = '{index}'")
    with catalog.engine.begin() as connection:
        made, built = set(connection.scalars(options)), connection.scalar(file)
        connection.execute(text(f"ALTER INDEX {index} SET (ef_construction = 64, m = 16)"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0010'"))
    migrate(catalog.engine, "0012")
    with catalog.engine.connect() as connection:
        assert set(connection.scalars(options)) == made
        rebuilt = connection.scalar(file)
        assert rebuilt != built
        assert made == {f"ef_construction={vectors.CONSTRUCTION}", f"m={vectors.links_for(dimension)}"}
        assert vectors.has_index(connection, crowd.EMBEDDER)
    with catalog.engine.begin() as connection:
        vectors.build_outdated_anew(connection)
        assert connection.scalar(file) == rebuilt  # it may have taken half an hour: not twice
    catalog.close()


def migrate(engine: Engine, revision: str) -> None:
    """Bring a database from the schema that it names to a later one."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def first_schema(engine: Engine) -> MetaData:
    """Make the first schema in an empty database, and reflect it."""
    migrate(engine, "0001")
    metadata = MetaData()
    metadata.reflect(engine)
    return metadata


def test_migrating_twice_changes_nothing(catalog: Catalog, fresh_catalog_url: Callable[[str], str]) -> None:
    before = rows_of(catalog.engine)
    Catalog(catalog.url).close()
    assert rows_of(catalog.engine) == before
