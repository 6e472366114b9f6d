"""Homes in which a local Prefect server starts without its many migrations: five seconds of processor for each test."""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock

from infra.prefect_server import DATABASE, ELSEWHERE, database_made
from tests.weights import CACHE


@pytest.fixture(scope="session")
def with_prefect_database() -> Callable[[Path], None]:
    """Return a function that puts an empty database of Prefect's into a home; it is made once per machine."""
    made = CACHE / f"prefect-{version('prefect')}"
    made.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".prefect.lock"), pytest.MonkeyPatch.context() as patch:
        for name in ELSEWHERE:
            patch.delenv(name, raising=False)
        with database_made(made):
            pass

    def give(home: Path) -> None:
        (home / "prefect").mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copyfile(made / "prefect" / DATABASE, home / "prefect" / DATABASE)

    return give
