"""Home folders that were copied for a test."""

from sqlalchemy import delete

from infra.catalog.custody import places
from infra.catalog.database import Catalog
from infra.catalog.tables.custody import Holding, Home
from infra.settings import Settings


def stand_alone(catalog: Catalog, settings: Settings) -> None:
    """Let a copied home forget what it is a copy of: its erasures would wait for that."""
    with catalog.write() as session:
        session.execute(delete(Holding))
        session.execute(delete(Home))
    (settings.home_folder / places.TOKEN).unlink(missing_ok=True)
