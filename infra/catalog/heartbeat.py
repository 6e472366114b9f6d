"""A run's sign of life, so that other machines can tell whether it is still at work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from infra.catalog.database import Catalog
from infra.catalog.faults import CatalogUnreachable
from infra.catalog.runs import HEARTBEAT_SECONDS, LeaseLost, beat


@contextmanager
def beating(catalog: Catalog, run_id: int, every: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Renew the run's heartbeat in the background while the context lasts.

    A catalog that cannot be reached for a moment is asked again; whoever writes a run's results asks `hold` whether the run
    is still its own.
    """
    over = threading.Event()

    def work() -> None:
        while not over.wait(every):
            try:
                with catalog.write() as session:
                    beat(session, run_id)
            except LeaseLost:
                return
            except (SQLAlchemyError, CatalogUnreachable):
                continue

    thread = threading.Thread(target=work, name=f"heartbeat of run {run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
