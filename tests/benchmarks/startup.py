"""How long `visage run` takes from its start to the first processed image, and to its end."""

import sqlite3
import subprocess
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from infra.prefect_server import database_made
from infra.settings import Settings
from tests.benchmarks import photo_sets
from tests.benchmarks.command import server_stopped_afterwards, visage_run
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row, seconds
from tests.benchmarks.workplace import add_collection, make_home, workplace

POLL = 0.02  # s
Times = dict[str, float]


def measure(photographs: int = 21, rounds: int = 3) -> dict[str, Any]:
    """Time the command in new homes, then with their Prefect server up, in both engines."""
    found: dict[str, list[Times]] = {"cold, inline": [], "server up, inline": [], "server up, ray": []}
    with workplace() as folder:
        photos = photo_sets.photographs(folder / "photographs", photographs)
        for number in range(rounds):
            settings = make_home(folder, f"home {number}", photos, restore_model="", engine="inline")
            with database_made(settings.home_folder):  # as 'visage models install' does
                pass
            with server_stopped_afterwards(settings):
                for state, times in found.items():
                    engine = state.rsplit(" ", 1)[1]
                    times.append(timed_run(settings.model_copy(update={"engine": engine}), state, photos))
                    say(f"{state}: first image after {seconds(times[-1]['first'])}, all {seconds(times[-1]['total'])}")
    middle = {state: {what: median(t[what] for t in times) for what in times[0]} for state, times in found.items()}
    return {"photographs": photographs, "seconds": middle, "rounds": found}


def timed_run(settings: Settings, collection: str, photos: Path) -> Times:
    """Process the photographs as a new collection of this home, and see when the first and when the last is done."""
    number = add_collection(settings, collection, photos)
    catalog = settings.home_folder / "catalog.db"
    return visage_run(settings, partial(_watch, catalog, number), collection)


def _watch(catalog: Path, collection: int, process: "subprocess.Popen[bytes]") -> Times:
    """Poll the catalog, which is only read, until an image is done; then wait for the end."""
    start, first = time.perf_counter(), None
    with closing(sqlite3.connect(f"{catalog.as_uri()}?mode=ro", uri=True)) as connection:
        while first is None and process.poll() is None:
            done = "SELECT 1 FROM image WHERE collection_id = ? AND status = 'done' LIMIT 1"
            if connection.execute(done, (collection,)).fetchone():
                first = time.perf_counter() - start
            time.sleep(POLL)
    process.wait()
    total = time.perf_counter() - start
    return {"first": total if first is None else first, "total": total}


def rows(measured: dict[str, Any]) -> list[Row]:
    """What the table says of it."""
    names = {
        "cold, inline": "cold (new home, no Prefect server)",
        "server up, inline": "with the local Prefect server up",
        "server up, ray": "with the local Prefect server up, engine Ray",
    }
    return [
        Row(
            f"`visage run`, {names[state]}: to the first processed images",
            seconds(times["first"]),
            f"{seconds(times['total'])} for all {measured['photographs']} photographs (no restoration)",
        )
        for state, times in measured["seconds"].items()
    ]
