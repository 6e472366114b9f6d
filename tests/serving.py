"""A running service over a catalog: the real application behind a real socket of this machine."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from flows.service.app import create_app
from flows.service.limits import Rates
from flows.service.run import bind, configured
from infra.catalog.database import Catalog
from infra.catalog.tables.service import Job
from infra.settings import Settings


@contextmanager
def serving(settings: Settings, *, exposed: bool = False, rates: Rates | None = None) -> Iterator[str]:
    """Serve in a thread while the context lasts; yields the address."""
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(configured(create_app(settings, exposed=exposed, rates=rates)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.01)
        try:
            yield f"http://localhost:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def kill(settings: Settings, job_id: int) -> None:
    """Kill the process of a job that the service in this one has started, once it is handed over."""
    catalog, process = Catalog(settings.catalog_url), os.getpid()
    while process == os.getpid():
        with catalog.read() as session:
            process = session.get_one(Job, job_id).process_id
    catalog.close()
    os.kill(process, signal.SIGKILL)
