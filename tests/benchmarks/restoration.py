"""What a restored face costs: seconds and peak memory by model and batch, beside the plain forward, and the share of pasting.

    python -m tests.benchmarks.restoration                               every restorer: half an hour on two quiet cores
    python -m tests.benchmarks.restoration real-esrgan-x4plus --batches 1

Weights are of chance: time and memory do not depend on them. Each model and batch has a process of its own, with one thread,
in which the restorer (preprocessing, batches of 4, rounding, grey, checks) and its bare forward take turns.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from models import table
from models.paste import enlarged, paste
from models.restoration import restoreformer
from models.restoration.components import boxes_from_5
from models.restoration.dfdnet import ENTRIES, DFDNet
from models.restoration.real_esrgan import RealEsrgan
from models.restoration.restoreformer import Architecture, RestoreFormer
from models.template import LandmarkTemplate
from tasks.execution.restorer import Restorer, forward

SMALL = Architecture((32, 64, 128), 1, 128, 512)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "real-esrgan-x4plus": RealEsrgan,
    "dfdnet": lambda: DFDNet({name: torch.randn(16, *shape) for name, shape in ENTRIES.items()}),
    "restoreformer": partial(RestoreFormer, Architecture(), restoreformer.RESTORER),
    "restoreformer++": partial(RestoreFormer, Architecture(), restoreformer.RESTORER_PLUS_PLUS),
    "restoreformer-64": partial(RestoreFormer, SMALL, restoreformer.RESTORER),
}
PHOTO = (1200, 1600)  # rows and columns
EYES = 20.0  # px apart in the photo: a face that the quality gate sends to the restorer
ROUNDS = 2


def restorer_of(name: str) -> Restorer:
    """A restorer with weights of chance."""
    torch.manual_seed(0)
    spec = table.spec(name)
    made = Restorer.__new__(Restorer)
    assert spec.preprocess is not None
    network = NETWORKS[name]().eval().requires_grad_(False)
    vars(made).update(spec=spec, device="cpu", template=spec.preprocess.template, network=network, half=False)
    return made


def measure(name: str, batch: int) -> dict[str, float]:
    """Seconds per face of restorer, bare forward and pasting (medians), and peak memory, in this process."""
    torch.set_num_threads(1)
    before = peak()
    restorer = restorer_of(name)
    template = restorer.template
    assert isinstance(template, LandmarkTemplate)
    crops = torch.randint(0, 256, (batch, template.size, template.size, 3), dtype=torch.uint8)
    landmarks = torch.tensor(template.points).expand(batch, 5, 2).contiguous()
    guide = None if restorer.spec.guide is None else boxes_from_5(landmarks)
    photo = torch.randint(0, 256, (*PHOTO, 3), dtype=torch.uint8)
    seconds: dict[str, list[float]] = {"restorer": [], "forward": [], "paste": [], "paste_twice_as_large": []}
    double = photo.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    for _ in range(ROUNDS):
        pixels = timed(seconds["restorer"], restored, restorer, crops, landmarks)
        timed(seconds["forward"], plain, restorer, crops, guide)
        places = transforms(batch, pixels.shape[1], template)
        timed(seconds["paste"], paste, photo, pixels, places)
        timed(seconds["paste_twice_as_large"], paste, double, pixels, enlarged(places, 2))
    found = {what: statistics.median(values) / batch for what, values in seconds.items()}
    return {**found, "megabytes": peak(), "of_it_before": before}


def restored(restorer: Restorer, crops: Tensor, landmarks: Tensor) -> Tensor:
    return restorer(crops, landmarks).pixels


def plain(restorer: Restorer, crops: Tensor, guide: Tensor | None) -> Tensor:
    """The bare forward, in batches as large as the restorer's."""
    parts = [
        forward(restorer.network, restorer.spec, part, None if guide is None else guide[4 * i : 4 * i + 4], half=False)
        for i, part in enumerate(crops.split(4))
    ]
    return torch.cat(parts)


def transforms(count: int, size: int, template: LandmarkTemplate) -> Tensor:
    """Where faces with eyes EYES px apart lie in the photo, side by side."""
    scale = EYES / (template.points[1][0] - template.points[0][0]) * template.size / size
    places = [[[scale, 0, 20.0 + 150 * k], [0, scale, 300.0]] for k in range(count)]
    return torch.tensor(places)


def timed(seconds: list[float], work: Callable[..., Tensor], *arguments: object) -> Tensor:
    start = time.perf_counter()
    result = work(*arguments)
    seconds.append(time.perf_counter() - start)
    return result


def peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure each model and batch in a process of its own, and print a table."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.restoration")
    parser.add_argument("models", nargs="*", default=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.models[0], arguments.batches[0])))
        return
    print("| model | batch | s/face | bare forward | ratio | peak MB (libraries) | paste ms/face (x2) | share of it |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.models:
        for batch in arguments.batches:
            command = [sys.executable, "-m", "tests.benchmarks.restoration", name, "--batches", str(batch), "--here"]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            restore, bare, large = found["restorer"], found["forward"], found["paste_twice_as_large"]
            memory = f"{found['megabytes']:.0f} ({found['of_it_before']:.0f})"
            pasting = f"{1000 * found['paste']:.1f} ({1000 * large:.1f})"
            share = f"{found['paste'] / (found['paste'] + restore):.1%} ({large / (large + restore):.1%})"
            print(
                f"| {name} | {batch} | {restore:.3f} | {bare:.3f} | {restore / bare:.2f} | {memory} | {pasting} | {share} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
