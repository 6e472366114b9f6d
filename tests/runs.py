"""A collection called `archive`, and nights on it without Prefect."""

from collections.abc import Callable, Sequence
from pathlib import Path

from flows import night as steps
from flows.night import Night, night
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.settings import Settings
from infra.storage.base import LITTER


def add(settings: Settings, uri: str | Path, sensitive: Sequence[str] = ()) -> None:
    """Enter the collection."""
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        collections.add(session, "archive", str(uri), [], list(LITTER), list(sensitive))
    catalog.close()


def run(
    settings: Settings,
    after_discovery: Callable[[], None] = lambda: None,
    after_processing: Callable[[Night], None] = lambda state: None,
) -> Night:
    """Run a night, but for its report."""
    with night(settings, "archive") as state:
        steps.discover_images(state)
        after_discovery()
        steps.process_images(state)
        after_processing(state)
        steps.group_faces(state)
        steps.audit_catalog(state)
    return state
