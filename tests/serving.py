"""A running service over a catalog: the real application behind a real socket of this machine."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from flows.service.app import create_app
from flows.service.limits import Rates
from flows.service.run import bind, configured
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
