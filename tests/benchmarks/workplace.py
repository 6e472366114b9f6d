"""A place to run the real job in: a temporary folder, the real weights, and a registry in which they are champions."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from flows import night as steps
from flows.night import Night, night
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.settings import PREFIX, Settings
from infra.storage.base import LITTER
from tasks.versioning.install import install
from tests.weights import CACHE

COLLECTION = "benchmark"
VISAGE = Path(sys.executable).parent / "visage"


@contextmanager
def workplace() -> Iterator[Path]:
    """Make the folder; it goes with the context. The weights are installed once per machine, as for the tests."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".lock"):
        install(CACHE / "weights", f"sqlite:///{CACHE / 'mlflow.db'}")
    with tempfile.TemporaryDirectory(prefix="visage-benchmark-") as name:
        shutil.copyfile(CACHE / "mlflow.db", Path(name) / "mlflow.db")
        yield Path(name)


def make_home(folder: Path, name: str, photographs: Path, **changes: Any) -> Settings:
    """Make a new home in the workplace, with the default settings but for `changes`, and `photographs` as its collection."""
    settings = home_of(folder, name, **changes)
    add_collection(settings, COLLECTION, photographs)
    return settings


def home_of(folder: Path, name: str, **changes: Any) -> Settings:
    """The settings of a home in a folder, with the registry that lies beside it."""
    registry = f"sqlite:///{folder / 'mlflow.db'}"
    return Settings(home=folder / name, weights=CACHE / "weights", tracking_uri=registry, **changes)


def add_collection(settings: Settings, name: str, photographs: Path) -> int:
    """Add a collection to a home and return its id."""
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        number = collections.add(session, name, str(photographs), [], list(LITTER), []).id
    catalog.close()
    return number


def environment(settings: Settings) -> dict[str, str]:
    """Variables that give the `visage` command these settings, and else its defaults."""
    changed = {name: getattr(settings, name) for name in settings.model_fields_set}
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)} | {
        PREFIX + name.upper(): str(value) for name, value in changed.items()
    }


@dataclass
class Ran:
    """A finished run: its state, how long opening it took, and when how many images were recorded."""

    state: Night
    opening: float
    recorded: list[tuple[float, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """All steps together, without opening."""
        return sum(self.state.seconds.values())


def run(settings: Settings) -> Ran:
    """Run all steps of the night on the collection, in this process."""
    start = time.perf_counter()
    with night(settings, COLLECTION) as state:
        ran = Ran(state, time.perf_counter() - start)
        steps.discover_images(state)
        began = time.perf_counter()
        steps.process_images(state, lambda: ran.recorded.append((time.perf_counter() - began, state.tally.images)))
        steps.group_faces(state)
        steps.audit_catalog(state)
        steps.report_run(state)
    return ran
