"""What one running service shares between its requests."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CapacityLimiter
from fastapi import Request

from flows.service.limits import Limiter, Rates
from infra.catalog.database import Catalog
from infra.catalog.faults import CatalogUnavailable
from infra.catalog.service import tokens
from infra.catalog.tables.schema import ModelVersion
from infra.evaluations import Evaluations
from infra.registry import Registry
from infra.settings import Settings
from infra.storage import Store, open_store

if TYPE_CHECKING:
    from tasks.probe import Probed, Prober

Answer = TypeVar("Answer")
PATIENCE_SECONDS = 5  # for another writer of the catalog: a page that waits for longer is better told so
NOTE_USE_SECONDS = 600
CACHE_SECONDS = 5.0
STREAMS = 32  # of server-sent events at once
# Full-frame cameras take up to 61. A file of 100 KB can hold as many, and decoding it takes 1.1 GB and 5 s at worst (WebP);
# what a night may read, 200, takes thrice that.
UPLOAD_MEGAPIXELS = 64
PROBES = 8  # photographs to search with at once: one is looked at, the others wait in memory


@dataclass
class Service:
    """The open catalog and stores, and the limits of one process. `exposed`: others than this machine can reach it."""

    settings: Settings
    exposed: bool = False
    rates: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        self.catalog = Catalog(self.settings.catalog_url, busy_seconds=PATIENCE_SECONDS)
        self.requests = Limiter(self.rates.requests, "requests")
        self.searches = Limiter(self.rates.searches, "searches")
        self.refusals = Limiter(self.rates.refusals, "wrong tokens")
        self.drawing = CapacityLimiter(self.settings.cpu_count)  # threads of their own: others never wait for pictures
        self.streams = threading.Semaphore(STREAMS)
        self.probes = threading.Semaphore(PROBES)
        self.watched: set[int] = set()  # jobs whose process this one waits for
        # One thread: one photograph at a time, in memory that the next one takes over. Threads of their own would each keep it.
        self.probing = ThreadPoolExecutor(1, "probing")
        self._noted: dict[int, float] = {}
        self._cached: dict[str, tuple[float, Any]] = {}

    def cached(self, what: str, compute: Callable[[], Answer], seconds: float = CACHE_SECONDS) -> Answer:
        """What costs a walk through the catalog, and may be some seconds old: counts, labels."""
        when, value = self._cached.get(what, (-seconds, None))
        if time.monotonic() - when >= seconds:
            value = compute()
            self._cached[what] = (time.monotonic(), value)
        answer: Answer = value
        return answer

    def probe(self, data: bytes, version: ModelVersion) -> "Probed":
        """The faces of a photograph, once those before it are done with. Raises what the prober does."""
        return self.probing.submit(lambda: self._prober(data, version)).result()

    @cached_property
    def _prober(self) -> "Prober":
        """What searches by photograph; loads its models at the first one."""
        from tasks.probe import Prober  # noqa: PLC0415 - imports torch

        return Prober(self.settings, UPLOAD_MEGAPIXELS)

    @cached_property
    def registry(self) -> Registry:
        """The models' versions."""
        return Registry(self.settings.mlflow_uri)

    @cached_property
    def evaluations(self) -> Evaluations:
        """What was measured of models."""
        return Evaluations(self.settings.mlflow_uri)

    @property
    def crops(self) -> Store:
        return open_store(self.settings.crops_uri, self.settings.storage_options)

    def note_use(self, token_id: int) -> None:
        """Remember in the catalog that a token is used, now and then; nobody is kept out because it is locked."""
        if time.monotonic() - self._noted.get(token_id, -NOTE_USE_SECONDS) >= NOTE_USE_SECONDS:
            self._noted[token_id] = time.monotonic()
            with suppress(CatalogUnavailable), self.catalog.write() as session:
                tokens.note_use(session, token_id)

    def close(self) -> None:
        self.probing.shutdown(wait=False, cancel_futures=True)
        self.catalog.close()


def service_of(request: Request) -> Service:
    """The service that a request reached."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
