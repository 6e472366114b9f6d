"""The index that searches and nights ask for nearest faces: opened, brought up to date, and cleared of what was erased."""

from sqlalchemy.orm import Session

from infra.catalog.database import Catalog
from infra.catalog.encryption import is_encrypted
from infra.catalog.search.hnsw import HnswIndex
from infra.catalog.search.neighbours import VectorIndex
from infra.catalog.search.open_projections import KEPT_FROM, open_projection
from infra.catalog.search.projection_files import folder_of, forget, remove
from infra.catalog.search.sealed import open_sealed
from infra.catalog.search.vectors import count_vectors
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.catalog.versioning.versions import serving
from infra.settings import Settings


def open_index(session: Session, version: ModelVersionRow, settings: Settings | None) -> VectorIndex:
    """The index over a version's vectors: PostgreSQL's own, or a projection of SQLite's rows, kept in the home folder.

    Of encrypted embeddings there is none but in memory; one that was made before they were encrypted goes from this home, too.
    """
    encrypted, postgresql = is_encrypted(session), session.get_bind().dialect.name == "postgresql"
    if postgresql:
        return open_sealed(session, version) if encrypted else HnswIndex(session, version.id, version.dimension or 0)
    folder = None if settings is None else folder_of(settings.home_folder, settings.catalog_url)
    if encrypted and folder is not None:
        remove(folder)
    return open_projection(session, version, None if encrypted else folder)


def prepare_index(catalog: Catalog, settings: Settings) -> None:
    """Bring the index of the serving version up to date on disk, so that nobody's search has to wait for it.

    Does nothing where the database keeps the index itself, or where there are too few faces for a file.
    """
    if catalog.engine.dialect.name == "postgresql":
        return
    with catalog.read() as session:
        version = serving(session)
        if version is not None and count_vectors(session, version.id, at_most=KEPT_FROM) >= KEPT_FROM:
            open_index(session, version, settings)


def forget_erased(catalog: Catalog, settings: Settings) -> None:
    """Take out of the indexes on disk what is no longer in the catalog. To be called after an erasure; repeating is harmless.

    PostgreSQL's index is its own, and an index in memory follows before it answers.
    """
    with catalog.read() as session:
        forget(session, folder_of(settings.home_folder, settings.catalog_url))
