"""What the embed path costs over a plain forward of the same network, for every recognition network of the table.

    python -m tests.benchmarks.recognition               all of them, about a quarter of an hour
    python -m tests.benchmarks.recognition lightcnn-9    some of them

Ours is what every night does, from aligned crops to vectors of unit length, in the layout and precision of the night; plain is
the network's bare forward in float32 on inputs in torch's usual layout that were prepared beforehand (twice, with the inputs
mirrored, where the model embeds the mirror image too). Both alternate in one run, with seeded weights, in one thread; times are
medians of that thread's processor time per face. Each network has a process of its own, whose memory is measured at its first
batch. A markdown table goes to stdout, progress to stderr, everything to build/recognition.json.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import numpy as np
import torch

from infra.allocator import keep_freed_memory
from models.table import MODELS
from tasks.embed import embed
from tasks.execution.inference import for_inference, has_bfloat16
from tasks.execution.side_by_side import torch_threads
from tests.benchmarks import machine
from tests.models.recognition.weights import WEIGHTS
from tests.reference import seeded

BATCHES = (1, 32)
SECONDS = 4.0  # for which both paths are repeated, and three times at least
RESULTS = Path("build/recognition.json")


def measure(name: str) -> dict[str, Any]:
    """Measure one network in this process."""
    spec = MODELS[name]
    assert spec.preprocess is not None
    bare = spec.build(spec.official(WEIGHTS[name]()))
    network = for_inference(deepcopy(bare), spec.bfloat16 if has_bfloat16("cpu") else ())
    size = spec.preprocess.template.size
    faces = torch.cat([255 * seeded().seeded_image(f"face-{index}", size) for index in range(max(BATCHES))])
    crops = faces.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
    found: dict[str, Any] = {
        "dimension": spec.dimension,
        "forwards": 1 + spec.mirror,
        "weights_bytes": sum(value.nbytes for value in bare.state_dict().values()),
    }
    keep_freed_memory()  # as every job does
    with torch_threads(1), torch.inference_mode():
        found["peak_bytes"] = peak_bytes(lambda: embed(network, spec, crops, "cpu"))
        for count in BATCHES:
            batch, inputs = crops[:count], spec.preprocess(torch.from_numpy(crops[:count])).contiguous()

            def ours(batch: np.ndarray = batch) -> None:
                embed(network, spec, batch, "cpu")

            def plain(inputs: torch.Tensor = inputs) -> None:
                bare(inputs)
                if spec.mirror:
                    bare(inputs.flip(3))

            own, theirs = alternating(ours, plain)
            found[f"batch_{count}"] = {"ours_ms": own / count, "plain_ms": theirs / count}
    return found


def alternating(ours: Callable[[], None], plain: Callable[[], None]) -> tuple[float, float]:
    """Median ms of a call of either, in turns, so that both meet the same machine."""
    times: tuple[list[float], list[float]] = ([], [])
    ours(), plain()
    while len(times[0]) < 3 or sum(map(sum, times)) < SECONDS:
        for work, taken in zip((ours, plain), times, strict=True):
            start = thread_time()
            work()
            taken.append(thread_time() - start)
    return 1000 * median(times[0]), 1000 * median(times[1])


def peak_bytes(work: Callable[[], object]) -> int:
    """How much resident memory a call takes at its peak, over what there was before."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def table(results: dict[str, dict[str, Any]]) -> str:
    """Lay the results out as a markdown table."""
    lines = [
        "| network | dim | forwards | weights, MB | ms at 1: ours, plain | ms at 32: ours, plain | ours / plain at 1, 32 "
        "| memory at 32, MB |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, found in results.items():
        times = [found[f"batch_{count}"] for count in BATCHES]
        cells = [
            name,
            str(found["dimension"]),
            str(found["forwards"]),
            f"{found['weights_bytes'] / 1e6:.0f}",
            *[f"{time['ours_ms']:.1f}, {time['plain_ms']:.1f}" for time in times],
            ", ".join(f"{time['ours_ms'] / time['plain_ms']:.2f}" for time in times),
            f"{found['peak_bytes'] / 1e6:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.recognition",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these networks; all if none is given")
    names = parser.parse_args(arguments).names or sorted(WEIGHTS)
    if unknown := [name for name in names if name not in WEIGHTS]:
        parser.error(f"no network is called {', '.join(unknown)}; there are {', '.join(sorted(WEIGHTS))}")
    described, results = machine.describe(), {}
    RESULTS.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for name in names:
            print(name, file=sys.stderr, flush=True)
            results[name] = processes.submit(measure, name).result()
            RESULTS.write_text(json.dumps({"machine": described, "networks": results}, indent=2))
    print(f"{machine.sentence(described)}; one thread\n\n{table(results)}")


if __name__ == "__main__":
    main()
