"""What erasures on other machines have left to do in this home: a page shows pictures for weeks without a night."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from flows.service.state import Service
from infra import logs
from infra.catalog.custody import places
from infra.catalog.faults import CatalogUnreachable
from infra.catalog.tables.custody import Keeps
from tasks.custody.errands import run_errands

EVERY_SECONDS = 60.0

log = logs.logger()


@contextmanager
def done_here(service: Service, every: float = EVERY_SECONDS) -> Iterator[None]:
    """Do them now, and again and again while the context lasts; a catalog that cannot be reached is asked again."""
    places.enter(service.catalog, service.settings, Keeps.CACHE)
    over = threading.Event()

    def repeat() -> None:
        while True:
            try:
                places.enter(service.catalog, service.settings, Keeps.CACHE)  # it is seen: this home is there still
                for problem in run_errands(service.catalog, service.settings).left:
                    log.warning("erasure not finished", problem=problem)
            except (SQLAlchemyError, CatalogUnreachable) as error:
                log.warning("erasures could not be looked for", error=str(error))
            if over.wait(every):
                return

    thread = threading.Thread(target=repeat, name="errands", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
