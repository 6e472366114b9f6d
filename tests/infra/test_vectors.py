"""Embeddings in the catalog: only whole ones get in, and every engine can follow what becomes of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import StatementError

from infra.catalog.database import Catalog, CatalogUnreachable
from infra.catalog.search import vectors
from infra.catalog.search.vectors import WrongVector, put_embeddings
from infra.catalog.tables.schema import Embedding, Face, ModelVersion
from tests import crowd
from tests.catalogs import PostgreSQL, counted_steps
from tests.infra.test_catalog import a_collection, a_run, model_versions, process_all

D = 4


@pytest.fixture
def faces(catalog: Catalog) -> list[int]:
    """Two faces, each with the embedding (1, 0, 0, 0) of version 2."""
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    process_all(catalog, collection_id, a_run(catalog, collection_id), contract)
    with catalog.read() as session:
        return list(session.scalars(select(Face.id).order_by(Face.id)))


def stored(catalog: Catalog) -> dict[int, list[float]]:
    with catalog.read() as session:
        return {face: vector.tolist() for face, vector in session.execute(select(Embedding.face_id, Embedding.vector))}


@pytest.mark.parametrize("vector", [np.full(D, np.nan), np.zeros(D), np.ones(D), [np.inf, 0, 0, 0], np.full(D, 1e-30)])
def test_what_is_no_vector_of_unit_length_never_reaches_the_catalog(
    catalog: Catalog, faces: list[int], vector: np.ndarray
) -> None:
    before = stored(catalog)
    with pytest.raises(StatementError, match="must not reach the catalog"), catalog.write() as session:
        put_embeddings(session, 2, {face: np.asarray(vector, np.float32) for face in faces})
    assert stored(catalog) == before


def test_a_vector_of_another_dimension_is_refused_with_all_that_came_along(catalog: Catalog, faces: list[int]) -> None:
    good, long = np.eye(D, dtype=np.float32)[1], np.eye(D + 1, dtype=np.float32)[1]
    with pytest.raises(WrongVector, match=rf"face {faces[1]}: .*\(5,\).*makes 4"), catalog.write() as session:
        put_embeddings(session, 2, {faces[0]: good, faces[1]: long})
    assert stored(catalog)[faces[0]] == [1, 0, 0, 0]


def test_vectors_come_back_bit_by_bit_and_in_chunks(
    catalog: Catalog, faces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    unit = rng.normal(size=(2, D)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    monkeypatch.setattr(vectors, "CHUNK", 1)
    with catalog.write() as session:
        put_embeddings(session, 2, dict(zip(faces, unit, strict=True)))
    with catalog.read() as session:
        chunks = list(vectors.stored_vectors(session, 2, D))
        ids, some = vectors.vectors_of(session, 2, D, np.array([faces[1], 999]))
        assert vectors.count_vectors(session, 2) == 2
    assert [ids.tolist() for ids, _ in chunks] == [[faces[0]], [faces[1]]]
    assert np.concatenate([v for _, v in chunks]).tobytes() == unit.tobytes()
    assert (ids.tolist(), some.tobytes()) == ([faces[1]], unit[1].tobytes())


# --- SQLite's journal


@pytest.mark.parametrize("every", [1, 7])
def test_reading_all_vectors_costs_as_much_each_among_many_as_among_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(vectors, "CHUNK", 100)
    each = []
    for count in (1_000, 8_000):
        catalog = Catalog(f"sqlite:///{tmp_path / str(count)}.db")
        faces = crowd.vectors(count, D)
        crowd.enter(catalog, faces[:0])
        with catalog.write() as session:
            crowd.fill(session, faces, crowd.people_of(count, D) + 1)
        with counted_steps(catalog) as taken, catalog.read() as session:
            read = [len(ids) for ids, _ in vectors.stored_vectors(session, crowd.EMBEDDER, D, every)]
        assert sum(read) == count // every
        each.append(taken() / count)
        catalog.close()
    assert each[1] < 1.1 * each[0]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_every_way_a_vector_changes_is_in_the_journal(fresh_catalog_url: Callable[[str], str], engine: str) -> None:
    catalog = Catalog(fresh_catalog_url(engine))
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    process_all(catalog, collection_id, a_run(catalog, collection_id), contract)

    def changed_since(position: int) -> list[int]:
        with catalog.read() as session:
            found = vectors.changed_faces(session, 2, position, 100)
            assert found is not None
            assert vectors.changed_faces(session, 3, position, 100).tolist() == []  # type: ignore[union-attr]
            return found.tolist()

    def position() -> int:
        with catalog.read() as session:
            return vectors.journal_position(session)

    assert changed_since(0) == [1, 2]
    here = position()
    with catalog.write() as session:
        put_embeddings(session, 2, {2: np.eye(D, dtype=np.float32)[1]})  # an upsert
    assert changed_since(here) == [2]
    here = position()
    with catalog.write() as session:
        session.execute(update(Embedding).where(Embedding.face_id == 1).values(vector=np.eye(D)[2]))
    assert changed_since(here) == [1]
    here = position()
    with catalog.write() as session:
        session.execute(delete(Face).where(Face.id == 1))  # and with it, by its foreign key, the embedding
    assert changed_since(here) == [1]
    here = position()
    with catalog.write() as session:
        session.execute(delete(Face))
        session.rollback()
    assert changed_since(here) == []
    with catalog.read() as session:
        assert vectors.changed_faces(session, 2, 0, 2) is None  # more than asked for: whoever asks starts anew
    catalog.close()


# --- PostgreSQL's half precision


@pytest.mark.parametrize("dimension", [4, 128, 512])
def test_postgresql_keeps_half_precision_of_whatever_is_written(
    migrated_postgresql: PostgreSQL, fresh_catalog_url: Callable[[str], str], dimension: int
) -> None:
    catalog = Catalog(fresh_catalog_url("postgresql"))
    collection_id, contract = a_collection(catalog, "a.jpg"), model_versions(catalog)
    process_all(catalog, collection_id, a_run(catalog, collection_id), contract, faces=3)
    rng = np.random.default_rng(dimension)
    unit = rng.normal(size=(3, dimension)).astype(np.float32)
    unit[0, :2] = 0, -1e-30  # a zero, and what half precision cannot hold
    unit[1, 1:] = 0
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    with catalog.write() as session:
        session.execute(update(ModelVersion).where(ModelVersion.id == 2).values(dimension=dimension))
        put_embeddings(session, 2, dict(zip((1, 2, 3), unit, strict=True)))
    with catalog.read() as session:
        half = session.scalars(text("SELECT half::text FROM embedding ORDER BY face_id")).all()
    np.testing.assert_allclose([np.fromstring(h[1:-1], sep=",") for h in half], unit.astype(np.float16), atol=1e-7)
    catalog.close()
    migrated_postgresql.drop(catalog.url)


def test_every_version_has_an_index_of_its_own_dimension(catalog: Catalog, faces: list[int]) -> None:
    postgresql = catalog.engine.dialect.name == "postgresql"
    with catalog.engine.begin() as connection:
        for version_id, dimension in ((2, D), (3, 128), (2, D)):
            vectors.create_index(connection, version_id, dimension)
        assert [vectors.has_index(connection, i) for i in (2, 3, 1)] == [True, True, False] if postgresql else True
    with catalog.write() as session:
        put_embeddings(session, 2, {faces[0]: np.eye(D, dtype=np.float32)[1]})
        session.add(Embedding(face_id=faces[0], model_version_id=3, vector=np.eye(128, dtype=np.float32)[0]))
    assert len(stored(catalog)) == 2


def test_a_server_without_pgvector_is_told_so(postgresql: PostgreSQL) -> None:
    url = postgresql.create()
    user = postgresql.a_user_without_rights(url)
    with pytest.raises(CatalogUnreachable, match="CREATE EXTENSION vector"):
        Catalog(user)
    postgresql.drop(url)
