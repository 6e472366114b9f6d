"""How a photograph's cost and the memory grow with the size of the collection: they should not.

    python -m tests.benchmarks.scale 1000 10000            about 6 minutes on two quiet cores
    python -m tests.benchmarks.scale 1000 10000 100000     an hour and more

Crops of 128 x 128 pixels with a face each, which are repeated under different keys. Each file carries its own number in a
comment, so that none is passed over as a copy. Each size is a process and a catalog of its own, and takes all steps of a night
in that process, without restoration. The time is that of the processor, which other work on the machine does not lengthen;
the seconds that passed are told beside it.
"""

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch

from flows import night as steps
from flows.night import Night, night
from infra.telemetry import silence
from tests.benchmarks import machine, photo_sets
from tests.benchmarks.__main__ import RESULTS
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row, markdown, megabytes, seconds
from tests.benchmarks.workplace import COLLECTION, make_home, workplace

FOLDER = 1000  # files, so that no directory grows out of hand
TENTHS = 10
STEPS = (
    ("discover", steps.discover_images),
    ("group", steps.group_faces),
    ("audit", steps.audit_catalog),
    ("report", steps.report_run),
)


@dataclass
class Progress:
    """After how many photographs how much processor time had gone, and how much memory was held."""

    images: list[int] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    def note(self, images: int) -> None:
        self.images.append(images)
        self.processor.append(time.process_time())
        self.resident.append(psutil.Process().memory_info().rss)

    def by_tenths(self) -> list[dict[str, float]]:
        """Milliseconds a photograph, and the most memory, in each tenth of the way."""
        whole = self.images[-1]
        ends = [next(i for i, n in enumerate(self.images) if n * TENTHS >= whole * k) for k in range(TENTHS + 1)]
        return [
            {
                "ms": 1000 * (self.processor[b] - self.processor[a]) / (self.images[b] - self.images[a]),
                "bytes": max(self.resident[a : b + 1]),
            }
            for a, b in pairwise(ends)
            if self.images[b] > self.images[a]
        ]


def write(folder: Path, number: int) -> Path:
    """Write `number` files of different bytes, a face each."""
    originals = [path.read_bytes() for path in sorted(photo_sets.crops(folder / "originals", 6000).iterdir())]
    for start in range(0, number, FOLDER):
        place = folder / "photographs" / f"{start // FOLDER:04}"
        place.mkdir(parents=True)
        for i in range(start, min(start + FOLDER, number)):
            (place / f"{i:06}.jpg").write_bytes(numbered(originals[i % len(originals)], i))
    return folder / "photographs"


def numbered(jpeg: bytes, number: int) -> bytes:
    """The same picture with a number in a comment after the first marker (JPEG, ITU-T T.81, B.2.4.5)."""
    comment = f"{number:010}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def measure(number: int) -> dict[str, Any]:
    """Take a night over `number` photographs in this process."""
    silence()
    with workplace() as folder:
        photos = write(folder, number)
        settings = make_home(folder, "home", photos, engine="inline", restore_model="")
        progress, used, began = Progress(), {}, time.perf_counter()

        def process(state: Night) -> None:
            steps.process_images(state, lambda: progress.note(state.tally.images))

        with night(settings, COLLECTION) as state:
            for name, step in (STEPS[0], ("process", process), *STEPS[1:]):
                start = time.process_time()
                step(state)
                used[name] = time.process_time() - start
                say(f"{number}: {name} took {seconds(used[name])} of processor time")
        return {
            "photographs": state.tally.images,
            "failed": sum(state.tally.failures.values()),
            "shared": state.tally.shared,
            "faces": state.tally.faces,
            "processor_seconds": used,
            "seconds": time.perf_counter() - began,
            "step_seconds": state.seconds,
            "tenths": progress.by_tenths(),
            "peak_bytes": psutil.Process().memory_info().rss if not progress.resident else max(progress.resident),
            "catalog_bytes": (settings.home_folder / "catalog.db").stat().st_size,
            "threads": torch.get_num_threads(),
        }


def rows(measured: dict[int, dict[str, Any]]) -> list[Row]:
    """What the table says of it."""
    table = []
    for number, found in measured.items():
        used, tenths = found["processor_seconds"], found["tenths"]
        ms = [tenth["ms"] for tenth in tenths]
        rest = ", ".join(f"{name} {seconds(used[name])}" for name in used if name != "process")
        table.append(
            Row(
                f"{number:,} crops of 128 x 128, {found['faces']:,} faces: processor time a photograph",
                f"{1000 * used['process'] / number:.1f} ms",
                f"first tenth {ms[0]:.1f}, last tenth {ms[-1]:.1f}; peak memory {megabytes(found['peak_bytes'])}, in the "
                f"first tenth {megabytes(tenths[0]['bytes'])}; beside it {rest}; "
                f"{number / found['step_seconds']['process']:.0f} photographs/s",
            )
        )
    return table


def main() -> None:
    """Measure each size in a process of its own, write, print."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", type=int, default=[1000, 10_000], metavar="PHOTOGRAPHS")
    results: dict[int, dict[str, Any]] = {}
    described, out = machine.describe(), RESULTS.with_name("scale.json")
    out.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for number in parser.parse_args().sizes:
            results[number] = processes.submit(measure, number).result()
            out.write_text(json.dumps({"machine": described, "sizes": results}, indent=2))
            print(json.dumps(results[number]), file=sys.stderr, flush=True)
    print(f"{machine.sentence(described)}. {photo_sets.origin()}.\n\n{markdown(rows(results))}")


if __name__ == "__main__":
    main()
