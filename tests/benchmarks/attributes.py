"""What describing a face costs: all tasks of a network in one forward, against three networks that share the tasks out.

    python -m tests.benchmarks.attributes            all networks, some minutes
    python -m tests.benchmarks.attributes swinface   some of them

The three separate networks are of the same architecture, so that only what they share is compared: the backbone, which runs
once or three times. Beside them stand the small bundled models, one for each of expression, age and gender, and the embedding.
Seeded weights in the released layouts; one thread; medians of that thread's processor time per face, the ways by turns. A
markdown table goes to stdout, everything to build/attributes.json.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import torch
from torch import Tensor, nn

from models.spec import EMBEDDING, ModelSpec
from models.table import MODELS
from tasks.execution.side_by_side import torch_threads
from tests.benchmarks import machine
from tests.models.attributes.golden import empty_checkpoint
from tests.reference import seeded
from tests.tasks.describers import by_chance

BATCHES = (1, 16)
ROUNDS = 3
RESULTS = Path("build/attributes.json")
# How three separate networks would share the tasks out.
SHARED_OUT: Mapping[str, tuple[str, tuple[frozenset[str], ...]]] = {
    "swinface": ("swinface", (frozenset({EMBEDDING}), frozenset({"age", "gender"}))),
    "facexformer": ("facexformer", (frozenset({"parsing"}), frozenset({"landmarks_68", "pitch", "yaw", "roll"}))),
    "faceptor-full": ("faceptor", (frozenset({"age", "age_morph2"}), frozenset({"expression"}))),
    "faceptor-full-dense": ("faceptor", (frozenset({"parsing", "parsing_lapa"}), frozenset({"landmarks_68"}))),
}
BUNDLED = ("dlib-resnet", "mini-xception", "dlib-age", "dlib-gender")


def tasks_of(spec: ModelSpec) -> tuple[frozenset[str], ...]:
    """The tasks of a network in three parts: the two that are named, and all the rest."""
    every = frozenset(attribute.name for attribute in spec.attributes) | ({EMBEDDING} if spec.embeds else frozenset())
    first, second = SHARED_OUT[spec.name][1]
    return first, second, every - first - second


def inputs(spec: ModelSpec, count: int) -> Tensor:
    assert spec.preprocess is not None
    size = spec.preprocess.template.size
    faces = torch.cat([255 * seeded().seeded_image(f"face-{index}", size) for index in range(count)])
    return spec.preprocess(faces.permute(0, 2, 3, 1).to(torch.uint8)).contiguous()


def by_turns(ways: Sequence[Callable[[], object]]) -> list[float]:
    """Median ms of a call of each, in turns, so that all meet the same machine."""
    times: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way()
    for _ in range(ROUNDS):
        for way, taken in zip(ways, times, strict=True):
            start = thread_time()
            way()
            taken.append(thread_time() - start)
    return [1000 * median(taken) for taken in times]


def measure(name: str) -> dict[str, Any]:
    """ms per face with all tasks, and of the three networks, by batch."""
    spec = MODELS[name]
    network = spec.build(spec.official(by_chance(empty_checkpoint(SHARED_OUT[name][0], "state_dict.tsv"))))
    parts = tasks_of(spec)
    found: dict[str, Any] = {"tasks": sorted(frozenset().union(*parts)), "shared_out": [sorted(part) for part in parts]}
    for count in BATCHES:
        x = inputs(spec, count)
        ways: list[Callable[[], object]] = [lambda x=x: network(x, frozenset().union(*parts))]
        ways += [lambda x=x, part=part: network(x, part) for part in parts]
        together, *apart = (taken / count for taken in by_turns(ways))
        found[f"batch_{count}"] = {"together_ms": together, "apart_ms": apart}
        print(f"{name} at {count}: {together:.1f} ms, apart {sum(apart):.1f} ms", file=sys.stderr, flush=True)
    return found


def measure_bundled() -> dict[str, Any]:
    """ms per face of the bundled models, which do not depend on the values of their weights."""
    from models.attributes.dlib_age import DlibAge  # noqa: PLC0415
    from models.attributes.dlib_gender import DlibGender  # noqa: PLC0415
    from models.attributes.mini_xception import MiniXception  # noqa: PLC0415
    from models.recognition.dlib_resnet import DlibResNet  # noqa: PLC0415

    kinds: tuple[type[nn.Module], ...] = (DlibResNet, MiniXception, DlibAge, DlibGender)
    networks = [kind().eval() for kind in kinds]
    found: dict[str, Any] = {}
    for count in BATCHES:
        faces = [inputs(MODELS[name], count) for name in BUNDLED]
        ways = [lambda n=n, x=x: n(x) for n, x in zip(networks, faces, strict=True)]
        found[f"batch_{count}"] = dict(zip(BUNDLED, (taken / count for taken in by_turns(ways)), strict=True))
    return found


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay the results out as a markdown table."""
    lines = [
        "| network | tasks | ms per face at 1: together, three apart | at 16: together, three apart | apart / together |"
    ]
    lines.append("| --- | --: | --: | --: | --: |")
    for name, found in results.items():
        times = [(found[f"batch_{n}"]["together_ms"], sum(found[f"batch_{n}"]["apart_ms"])) for n in BATCHES]
        cells = [name, str(len(found["tasks"])), *(f"{a:.1f}, {b:.1f}" for a, b in times)]
        lines.append("| " + " | ".join([*cells, ", ".join(f"{b / a:.2f}" for a, b in times)]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.attributes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these networks; all if none is given")
    names = parser.parse_args(arguments).names or list(SHARED_OUT)
    if unknown := [name for name in names if name not in SHARED_OUT]:
        parser.error(f"no network is called {', '.join(unknown)}; there are {', '.join(SHARED_OUT)}")
    described = machine.describe()
    RESULTS.parent.mkdir(exist_ok=True)
    with torch_threads(1), torch.inference_mode():
        bundled = measure_bundled()
        results = {name: measure(name) for name in names}
    RESULTS.write_text(json.dumps({"machine": described, "networks": results, "bundled": bundled}, indent=2))
    print(f"{machine.sentence(described)}; one thread\n\n{table(results)}\n")
    for count in BATCHES:
        own = bundled[f"batch_{count}"]
        each = ", ".join(f"{name} {ms:.1f}" for name, ms in own.items())
        print(f"Bundled models at {count}: {sum(own.values()):.1f} ms per face in all ({each})")


if __name__ == "__main__":
    main()
