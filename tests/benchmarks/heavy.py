"""The whole night with the heaviest networks: RestoreFormer++ where the gate sends a face to it, IResNet-100 for every face.

    python -m tests.benchmarks.heavy [--photographs 210] [--engine ray]

With seeded weights, since speed does not depend on them. Said beside each other: faces per second of the whole process step,
start-up included, so take many photographs; the forwards of both networks alone on inputs that are there already, in the batch
and precision of the night, which is the most that the device gives; and how busy the GPU was. Made for a machine with a GPU:
without, a restored face takes five seconds.
"""

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

import torch

from infra.ray_cluster import device
from infra.settings import Settings
from tasks import embed
from tasks.execution import restorer
from tasks.execution.inference import load_for_inference
from tasks.model_version import find_version
from tasks.versioning.register import add_checkpoint
from tests.benchmarks import machine, photo_sets
from tests.benchmarks.progress import say
from tests.benchmarks.workplace import make_home, run, workplace
from tests.models.recognition.golden import checkpoint
from tests.weights import CACHE

EMBEDDER, RESTORER = "elasticface-arc", "restoreformer++"
ROUNDS = 5
SAMPLED_MS = 200


def settings_with_both(folder: Path, photographs: int, engine: str) -> Settings:
    """Make a home in which both networks are champions, with photographs to process."""
    weights, registry = folder / "weights", f"sqlite:///{folder / 'mlflow.db'}"
    shutil.copytree(CACHE / "weights", weights)
    layouts = {EMBEDDER: ("elasticface/state_dict.tsv", 0.7), RESTORER: ("restoreformerpp/state_dict.tsv", 1.0)}
    for name, (layout, gain) in layouts.items():
        file = folder / f"{name}.pth"
        torch.save(checkpoint(layout, gain), file)
        add_checkpoint(name, [file], weights, registry)
    photos = photo_sets.photographs(folder / "photos", photographs)
    home = make_home(folder, "home", photos, engine=engine, embed_model=EMBEDDER, restore_model=RESTORER)
    return home.model_copy(update={"weights": weights})


def alone(settings: Settings, where: str) -> dict[str, float]:
    """Seconds a face of each network's forwards, on inputs on the device."""
    found = {}
    for name, batch in ((EMBEDDER, embed.BATCH), (RESTORER, restorer.BATCH)):
        version = find_version(name, settings.weights_folder, settings.mlflow_uri)
        network, spec = load_for_inference(version, where), version.spec
        assert spec.preprocess is not None
        size = spec.preprocess.template.size
        crops = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=where)
        half = name == RESTORER and where == "cuda"

        def work(network: torch.nn.Module = network, crops: torch.Tensor = crops, half: bool = half) -> None:
            restorer.forward(network, spec, crops, None, half)  # noqa: B023 - called at once

        found[name] = _seconds(work) / batch
    return found


def _seconds(work: Callable[[], None]) -> float:
    """Mean seconds of a call, after a first one that does not count."""
    wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work()
    wait()
    start = time.perf_counter()
    for _ in range(ROUNDS):
        work()
    wait()
    return (time.perf_counter() - start) / ROUNDS


@contextmanager
def gpu_use() -> Iterator[list[float]]:
    """Sample how busy the GPU is, in percent, into a list that is filled when the context ends; empty without a GPU."""
    samples: list[float] = []
    if not torch.cuda.is_available():
        yield samples
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={SAMPLED_MS}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        try:
            yield samples
        finally:
            watching.terminate()
            assert watching.stdout is not None
            samples += [float(line) for line in watching.stdout if line.strip().isdigit()]


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.heavy", description=__doc__)
    parser.add_argument("--photographs", type=int, default=210)
    parser.add_argument("--engine", choices=["inline", "ray"], default="ray")
    chosen = parser.parse_args()
    say(machine.sentence(machine.describe()))
    with workplace() as folder:
        settings = settings_with_both(folder, chosen.photographs, chosen.engine)
        bare = alone(settings, device())
        say(", ".join(f"{name} alone: {1 / seconds:.1f} faces/s" for name, seconds in bare.items()))
        with gpu_use() as used:
            ran = run(settings)
    tally = ran.state.tally
    rate = tally.faces / ran.state.seconds["process"]
    least = bare[EMBEDDER] + bare[RESTORER] * tally.restored / tally.faces
    result = {
        "device": device(),
        "images": tally.images,
        "faces": tally.faces,
        "restored": tally.restored,
        "to_first_s": ran.recorded[0][0],
        "faces_per_second": rate,
        "most_that_both_networks_give": 1 / least,
        "share_of_it": rate * least,
        "gpu_busy_percent": mean(used) if used else None,
    }
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
