"""Embeddings in the catalog: written with care, read in bulk, and indexed by PostgreSQL itself.

`embedding.vector` is the truth on both engines: little-endian float32 bytes. On PostgreSQL a generated column `half` repeats
it in pgvector's half precision, and every model version has a partial HNSW index over it, made when the version is entered: the
versions differ in dimension and are never compared with each other. On SQLite a journal, kept by triggers, tells an index
outside of the database what it has yet to follow (`infra.catalog.search.projection`).
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from infra.catalog.faults import CatalogUnreachable
from infra.catalog.statements import upsert
from infra.catalog.tables.schema import Embedding, EmbeddingChange, Face, ModelVersion

CHUNK = 10_000
PGVECTOR = (0, 8)  # the first with iterative index scans
LARGEST_HNSW = 4000  # dimensions of a halfvec that pgvector indexes
CONSTRUCTION = (
    128  # ef_construction; with pgvector's 64 a search among a million needs an ef_search of 250 for what 160 find
)
PGVECTORS_OWN = {"m": 16, "ef_construction": 64}  # what an index is built with that names nothing else
WIDE = 256  # dimensions up to which 16 links a vector are enough: at 512-D no search among a million finds 99% by them
BYTES_OF_LINKS = 290  # of a vector in an index, beside its numbers: 540 to 570 bytes at 128-D, 1,300 at 512-D
BUILD_MEMORY = "1GB"  # an index that is built within its memory is built many times faster
BYTES_OF_GRAPH, BYTES_OF_LINK = 288, 32  # of a vector while an index is built, beside its numbers


class WrongVector(ValueError):
    """A vector of another dimension than its model version makes."""


def put_embeddings(
    session: Session,
    model_version_id: int,
    vectors: Mapping[int, np.ndarray],
    restorers: Mapping[int, int | None] = MappingProxyType({}),
) -> None:
    """Write {face id: vector (D,) float32 of unit length}, or replace what is there; not for faces whose time is over.

    `restorers` tells by face id whose restored pixels a vector was made of; of all others it was photographed ones.

    Raises:
        WrongVector: naming the face, if a vector has another dimension than the model version's.
        StatementError: from NaN, infinity, or a length other than 1.
    """
    if not vectors:
        return
    dimension = session.scalar(select(ModelVersion.dimension).where(ModelVersion.id == model_version_id))
    for face_id, vector in vectors.items():
        if vector.shape != (dimension,):
            raise WrongVector(
                f"face {face_id}: an embedding of shape {vector.shape}, but model version {model_version_id} makes {dimension} "
                "numbers; nothing was written"
            )
    expired = select(Face.id).where(Face.id.in_(list(vectors)), Face.embeddings_expired_at.is_not(None))
    over = set(session.scalars(expired))
    rows = [
        {"face_id": face, "model_version_id": model_version_id, "vector": v, "restorer_id": restorers.get(face)}
        for face, v in vectors.items()
        if face not in over
    ]
    upsert(session, Embedding, rows, ["face_id", "model_version_id"], ["vector", "restorer_id"])


def stored_vectors(
    session: Session, model_version_id: int, dimension: int, every: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all embeddings of a version, or those of one face id in `every`: ids (N,) int64, vectors (N, D), in chunks."""
    after = 0
    statement = select(Embedding.face_id, Embedding.vector).where(Embedding.model_version_id == model_version_id)
    if every > 1:
        statement = statement.where(Embedding.face_id % every == 0)
    while True:
        page = statement.where(Embedding.face_id > after).order_by(Embedding.face_id).limit(CHUNK)
        rows = session.execute(page).tuples().all()
        if rows:
            yield _arrays(rows, dimension)
        if len(rows) < CHUNK:
            return
        after = rows[-1][0]


def vectors_of(
    session: Session, model_version_id: int, dimension: int, face_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Those of some faces that have an embedding: ids (N,) int64, vectors (N, D)."""
    rows: list[tuple[int, np.ndarray]] = []
    for start in range(0, len(face_ids), CHUNK):
        rows += session.execute(
            select(Embedding.face_id, Embedding.vector)
            .where(Embedding.model_version_id == model_version_id)
            .where(Embedding.face_id.in_(face_ids[start : start + CHUNK].tolist()))
        ).tuples()
    return _arrays(rows, dimension)


def _arrays(rows: object, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = list(rows)  # type: ignore[call-overload]
    ids = np.array([face_id for face_id, _ in pairs], np.int64)
    return ids, np.array([vector for _, vector in pairs], np.float32).reshape(len(pairs), dimension)


def count_vectors(session: Session, model_version_id: int, at_most: int | None = None) -> int:
    """How many faces have an embedding of this version; counting stops at `at_most`."""
    version = Embedding.model_version_id  # counted by its index alone: rows, with their vectors, are many pages
    some = select(version).where(version == model_version_id).limit(at_most).subquery()
    return session.scalar(select(func.count()).select_from(some)) or 0


# --- SQLite: the journal


def keep_journal(connection: Connection) -> None:
    """Have SQLite note every change of an embedding. Called after migrations: rebuilding a table drops its triggers."""
    for event, row in (("INSERT", "NEW"), ("UPDATE OF vector", "NEW"), ("DELETE", "OLD")):
        connection.exec_driver_sql(
            f"CREATE TRIGGER IF NOT EXISTS embedding_{event.partition(' ')[0].lower()} AFTER {event} ON embedding BEGIN "
            f"INSERT INTO embedding_change (model_version_id, face_id) VALUES ({row}.model_version_id, {row}.face_id); END"
        )


def journal_position(session: Session) -> int:
    """The latest change's number; 0 before the first."""
    return session.scalar(select(func.max(EmbeddingChange.id))) or 0


def changed_faces(session: Session, model_version_id: int, after: int, limit: int) -> np.ndarray | None:
    """Faces (N,) int64 whose embedding changed since a position; None if they are more than `limit`."""
    statement = (
        select(EmbeddingChange.face_id)
        .where(EmbeddingChange.id > after, EmbeddingChange.model_version_id == model_version_id)
        .limit(limit + 1)
    )
    faces = list(session.scalars(statement))
    return None if len(faces) > limit else np.unique(np.array(faces, np.int64))


# --- PostgreSQL: HNSW


def prepare_pgvector(connection: Connection) -> None:
    """Have pgvector in this database.

    Raises:
        CatalogUnreachable: if the server lacks it, has too old a version, or does not let this user switch it on.
    """
    place = connection.engine.url.render_as_string()
    there = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
    version = connection.scalar(text(there))
    if version is None:
        try:
            connection.execute(text("CREATE EXTENSION vector"))
        except DBAPIError as error:
            raise CatalogUnreachable(
                f"{place}: PostgreSQL needs the extension pgvector, and it cannot be switched on: {error.orig}. Install "
                "pgvector 0.8 or later on the server, or have its administrator run 'CREATE EXTENSION vector' in this database"
            ) from error
        version = connection.scalar(text(there))
    if tuple(int(part) for part in str(version).split(".")[:2]) < PGVECTOR:
        raise CatalogUnreachable(
            f"{place}: pgvector {version} is too old; update it to 0.8 or later on the server, "
            "then run 'ALTER EXTENSION vector UPDATE' in this database"
        )


def index_name(model_version_id: int) -> str:
    return f"ix_embedding_half_{model_version_id}"


def create_index(connection: Connection, model_version_id: int, dimension: int) -> None:
    """Have PostgreSQL index a version's vectors; does nothing on SQLite, or where the index is there already."""
    if connection.dialect.name != "postgresql" or dimension > LARGEST_HNSW or has_index(connection, model_version_id):
        return
    have_build_memory(connection, model_version_id, dimension)
    connection.execute(
        text(
            f"CREATE INDEX {index_name(model_version_id)} ON embedding "
            f"USING hnsw ((half::halfvec({int(dimension)})) halfvec_ip_ops) "
            f"WITH (m = {links_for(dimension)}, ef_construction = {CONSTRUCTION}) "
            f"WHERE model_version_id = {int(model_version_id)}"
        )
    )


def build_outdated_anew(connection: Connection) -> None:
    """Build those of PostgreSQL's indexes anew that were built with other settings than `create_index` takes now."""
    if connection.dialect.name != "postgresql":
        return
    for version, dimension in connection.execute(text("SELECT id, dimension FROM model_version")).all():
        name = index_name(version)
        if not has_index(connection, version):
            continue
        options = connection.scalars(
            text("SELECT unnest(reloptions) FROM pg_class WHERE relname = :name"), {"name": name}
        )
        built = PGVECTORS_OWN | {key: int(value) for key, _, value in (option.partition("=") for option in options)}
        if built != {"m": links_for(dimension), "ef_construction": CONSTRUCTION}:
            have_build_memory(connection, version, dimension)
            settings = f"m = {links_for(dimension)}, ef_construction = {CONSTRUCTION}"
            connection.execute(text(f"ALTER INDEX {name} SET ({settings})"))
            connection.execute(text(f"REINDEX INDEX {name}"))


def links_for(dimension: int) -> int:
    """How many others a vector is linked with in an index (m)."""
    return 16 if dimension <= WIDE else 32


def have_build_memory(connection: Connection, model_version_id: int, dimension: int) -> None:
    """Let PostgreSQL take the memory that it needs to build a version's index in this transaction.

    That is BUILD_MEMORY, and for more vectors as much as the server has for its pages (shared_buffers) at most: of the machine
    it tells nothing else.
    """
    each = 2 * dimension + BYTES_OF_GRAPH + BYTES_OF_LINK * links_for(dimension)
    most = (
        "greatest(pg_size_bytes(current_setting('maintenance_work_mem')), pg_size_bytes(:least), "
        "least(:each * (SELECT count(*) FROM embedding WHERE model_version_id = :version), "
        "pg_size_bytes(current_setting('shared_buffers'))))"
    )
    connection.execute(
        text(f"SELECT set_config('maintenance_work_mem', ({most} / 1024)::text, true)"),
        {"least": BUILD_MEMORY, "each": each, "version": model_version_id},
    )


def has_index(connection: Connection, model_version_id: int) -> bool:
    """Whether PostgreSQL has a usable index over a version's vectors; never on SQLite."""
    if connection.dialect.name != "postgresql":
        return False
    usable = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
    return bool(connection.scalar(usable, {"name": index_name(model_version_id)}))


def has_many(session: Session, model_version_id: int, dimension: int, more_than: int) -> bool:
    """Whether PostgreSQL has a usable index, over more than about so many vectors: told by its size, without counting."""
    size = more_than * (2 * dimension + BYTES_OF_LINKS)
    return bool(session.scalar(_MANY, {"name": index_name(model_version_id), "bytes": size}))


_MANY = text(
    "SELECT indisvalid AND pg_relation_size(indexrelid) > :bytes FROM pg_index WHERE indexrelid = to_regclass(:name)"
)


def index_all(connection: Connection) -> list[str]:
    """Make the indexes that are missing; returns their names."""
    has_vectors = select(Embedding.model_version_id).distinct()
    versions = select(ModelVersion.id, ModelVersion.dimension).where(ModelVersion.id.in_(has_vectors))
    made = []
    for version_id, dimension in connection.execute(versions).all():
        before = has_index(connection, version_id)
        create_index(connection, version_id, dimension)
        if has_index(connection, version_id) and not before:
            made.append(index_name(version_id))
    return made
