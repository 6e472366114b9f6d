"""Peak memory of `visage run` with everything it starts, and whether it grows with the collection."""

from pathlib import Path
from typing import Any

from tests.benchmarks import photo_sets
from tests.benchmarks.command import server_stopped_afterwards, visage_run
from tests.benchmarks.process_tree import watch
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row, megabytes
from tests.benchmarks.workplace import make_home, workplace

ENGINES = ("inline", "ray")


def measure(photographs: int = 21, few: int = 200, many: int = 2000) -> dict[str, Any]:
    """Watch runs on photographs with all default models, and on few and on many crops without restoration."""
    with workplace() as folder:
        some = photo_sets.photographs(folder / "photographs", photographs)
        crops = {number: photo_sets.crops(folder / f"{number} crops", number) for number in (few, many)}
        found = {}
        for engine in ENGINES:
            found[engine] = {
                "photographs": peak(folder, some, engine=engine),
                "few": peak(folder, crops[few], engine=engine, restore_model=""),
                "many": peak(folder, crops[many], engine=engine, restore_model=""),
            }
    return {"photographs": photographs, "few": few, "many": many, "engines": found}


def peak(folder: Path, photos: Path, **changes: Any) -> dict[str, Any]:
    """Run the command once in a new home, which starts a Prefect server of its own."""
    name = f"{photos.name}, {changes['engine']}"
    settings = make_home(folder, name, photos, **changes)
    with server_stopped_afterwards(settings):
        seen = visage_run(settings, watch)
    say(f"{name}: {megabytes(seen.total)}: {_parts(seen.parts)}")
    return {"total": seen.total, "parts": seen.parts}


def rows(measured: dict[str, Any]) -> list[Row]:
    """What the table says of it."""
    table = []
    for engine, found in measured["engines"].items():
        few, many = found["few"], found["many"]
        table += [
            Row(
                f"Peak memory of the whole process tree, {measured['photographs']} photographs, all models, {engine}",
                megabytes(found["photographs"]["total"]),
                _parts(found["photographs"]["parts"]),
            ),
            Row(
                f"Peak memory on {measured['many']:,} crops against {measured['few']:,}, no restoration, {engine}",
                f"{many['total'] / few['total']:.2f}",
                f"{megabytes(many['total'])} against {megabytes(few['total'])}; without the Prefect server "
                f"{megabytes(_ours(many))} against {megabytes(_ours(few))}",
            ),
        ]
    return table


def _ours(found: dict[str, Any]) -> int:
    return int(found["total"] - found["parts"].get("Prefect server", 0))


def _parts(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {megabytes(size)}" for name, size in sorted(parts.items(), key=lambda part: -part[1]))
