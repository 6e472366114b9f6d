"""Signs of life, so that other machines can tell whether a run or a job is still at work."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from infra.catalog.database import Catalog
from infra.catalog.faults import CatalogUnreachable
from infra.catalog.work.runs import HEARTBEAT_SECONDS, LeaseLost, beat


def beating(catalog: Catalog, run_id: int, every: float = HEARTBEAT_SECONDS) -> AbstractContextManager[None]:
    """Renew the run's heartbeat in the background while the context lasts.

    Whoever writes a run's results asks `hold` whether the run is still its own.
    """
    return repeating(catalog, lambda session: beat(session, run_id), f"heartbeat of run {run_id}", every)


@contextmanager
def repeating(
    catalog: Catalog, work: Callable[[Session], None], name: str, every: float = HEARTBEAT_SECONDS
) -> Iterator[None]:
    """Write something again and again in the background while the context lasts, or until LeaseLost.

    A catalog that cannot be reached for a moment is asked again.
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(every):
            try:
                with catalog.write() as session:
                    work(session)
            except LeaseLost:
                return
            except (SQLAlchemyError, CatalogUnreachable):
                continue

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
