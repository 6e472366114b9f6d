"""The real `visage run` as a process of its own, as a person starts it."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from infra import prefect_server
from infra.settings import Settings
from tests.benchmarks.workplace import COLLECTION, VISAGE, environment

Result = TypeVar("Result")


@contextmanager
def server_stopped_afterwards(settings: Settings) -> Iterator[None]:
    """Stop the home's Prefect server, which `visage run` leaves behind on purpose, when the context is left."""
    try:
        yield
    finally:
        prefect_server.stop(settings.home_folder)


def visage_run(
    settings: Settings, watch: "Callable[[subprocess.Popen[bytes]], Result]", name: str = COLLECTION
) -> Result:
    """Start `visage run`, let `watch` see it to its end, and return what it saw.

    Raises:
        RuntimeError: if the command fails, with what it said.
    """
    log = settings.home_folder / "benchmark.log"
    with log.open("wb") as output:
        process = subprocess.Popen([VISAGE, "run", name], env=environment(settings), stdout=output, stderr=output)
        try:
            seen = watch(process)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    if code:
        raise RuntimeError(f"visage run {name} ended with {code}:\n{log.read_text(errors='replace')[-2000:]}")
    return seen
