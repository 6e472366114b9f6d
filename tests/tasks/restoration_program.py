"""A tiny restorer and parts of a portrait, to train for real in seconds.

Also a program, for tests that kill a training: `python -m tests.tasks.restoration_program HOME WEIGHTS URI OPTIONS` trains,
and prints the version's digest.
"""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from infra.settings import Settings
from tasks.training.collection import CROPS, FACES
from tasks.training.loop import STATE
from tasks.training.restoration.options import RestorationOptions
from tasks.training.restoration.train import Plan, Trained, fit, plan, prepare, publish, tracked
from tasks.training.restoration.worker import Job, Training
from tasks.training.run import Progress
from tests.portraits import portrait
from tests.tasks.training_program import PEOPLE, PICTURES, labelled_pictures

TINY = RestorationOptions(
    size=64, width=32, blocks=1, codes=16, dictionary_steps=2, steps=3, batch_size=2, learning_rate=1e-3, perceptual=0,
    dictionary_adversaries_from=1, adversaries_from=1, judge_every=2,
)  # fmt: skip


def faces(size: int) -> np.ndarray:
    """(PEOPLE * PICTURES, size, size, 3) uint8: parts of a portrait, each of other brightness."""
    picture = portrait(size * 2)
    rng = np.random.default_rng(0)
    crops = []
    for _ in range(PEOPLE * PICTURES):
        top, left = rng.integers(0, size, 2)
        crops.append((picture[top : top + size, left : left + size] * rng.uniform(0.6, 1)).astype(np.uint8))
    return np.stack(crops)


def planned(settings: Settings, options: RestorationOptions) -> Plan:
    """A training whose faces are found already."""
    made = plan(settings, *labelled_pictures(settings.home_folder / "pictures"), options)
    folder = made.folder / "faces"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / CROPS, faces(options.size))
    known = {"identities": list(made.labelled.identities), "without_face": []}
    (folder / FACES).write_text(json.dumps(known), encoding="utf-8")
    return made


def train(settings: Settings, options: RestorationOptions, on_progress: Progress = lambda done, total: None) -> Trained:
    """Train as the flow does, on those faces."""
    made = planned(settings, options)
    with tracked(made) as run:
        return publish(made, fit(made, prepare(made, run.run_id), on_progress), run.run_id)


def one_of_two(rank: int, job: Job, place: Path) -> None:
    """Be one of two workers: train to the end, and once more from the first step's checkpoint. Leaves RANK.pt in `place`."""
    meeting = f"file://{place / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    whole, resumed = (Training(job, rank, 2, torch.device("cpu")) for _ in range(2))
    whole.begin()
    whole.join()
    whole.take()
    whole.used = torch.arange(job.options.codes) == rank
    whole.save(place / STATE)
    torch.distributed.barrier()
    resumed.resume(place / STATE)
    resumed.join()
    found: dict[str, object] = {"used": resumed.used.clone()}
    for name, training in {"whole": whole, "resumed": resumed}.items():
        while not training.over:
            training.take()
        found[name] = dict(training.objective.named_parameters())
    torch.save(found, place / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def main(home: str, weights_dir: str, uri: str, options: str) -> None:
    settings = Settings(home=Path(home), weights=Path(weights_dir), tracking_uri=uri, cpus=1)
    tell = partial(print, "step", flush=True)
    trained = train(settings, RestorationOptions.model_validate_json(options), tell)
    print("digest", trained.installed.model.digest, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
