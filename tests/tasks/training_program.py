"""A tiny backbone and synthetic people, to train for real in seconds.

Also a program, for tests that kill a training: `python -m tests.tasks.training_program HOME WEIGHTS URI EPOCHS` trains, and
prints the version's digest.
"""

import json
import sys
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra import weights
from infra.registry import Registry
from infra.settings import Settings
from models import table
from models.checkpoint import load
from models.lora import Adapted, adapted
from models.spec import Color, ModelSpec, Preprocess, Role, StateDict
from models.template import ARCFACE_112
from tasks.training.collection import CROPS, FACES
from tasks.training.options import TrainingOptions
from tasks.training.train import Plan, Progress, Trained, fit, plan, prepare, publish, tracked
from tasks.versioning.install import register

TEMPLATE = ARCFACE_112.scaled("tiny-40", 40)
PEOPLE, PICTURES = 12, 6


class Tiny(nn.Module):
    """(N, 3, 40, 40) to (N, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=4)
        self.fc = nn.Linear(8 * 9 * 9, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).flatten(1))


def build(state_dict: StateDict) -> nn.Module:
    return load(Tiny(), state_dict, "tiny")


TINY = ModelSpec(
    name="tiny", role=Role.EMBED, title="Tiny", licence="MIT", source="this test", paper="", build=build, dimension=16,
    preprocess=Preprocess(TEMPLATE, Color.RGB, mean=(127.5,) * 3, std=(127.5,) * 3),
)  # fmt: skip


def enter_tiny(settings: Settings) -> None:
    """Put the tiny model and its adapted form into the table, and seeded weights of it into the registry."""
    table.MODELS = MappingProxyType({**table.MODELS, "tiny": TINY, "tiny-lora": adapted(TINY)})
    torch.manual_seed(0)
    _enter(settings, TINY, Tiny().state_dict())


def enter_tiny_adapted(settings: Settings) -> None:
    """Put weights of the adapted form into the registry."""
    _enter(settings, table.spec("tiny-lora"), Adapted(Tiny(), rank=2).state_dict())


def _enter(settings: Settings, spec: ModelSpec, state: StateDict) -> None:
    stored = weights.store(
        settings.weights_folder, spec.name, state, licence="MIT", source="here", origin={"seed": "0"}
    )
    register(Registry(settings.mlflow_uri), spec, "here", stored, converted=True)


def synthetic_faces() -> np.ndarray:
    """(PEOPLE * PICTURES, 40, 40, 3) uint8: a smooth pattern for each person, other noise in each picture."""
    random = torch.Generator().manual_seed(0)
    people = F.interpolate(torch.rand(PEOPLE, 3, 8, 8, generator=random), (40, 40), mode="bicubic")
    pictures = people.repeat_interleave(PICTURES, dim=0) * 180 + 40
    pictures += 25 * torch.randn(pictures.shape, generator=random)
    return pictures.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def labelled_pictures(folder: Path) -> tuple[Path, Path]:
    """A folder and a CSV that labels pictures in it, whose faces `train` gets from `synthetic_faces`."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = folder / "labels.csv"
    rows = [f"{person:02}_{n}.jpg,person {person}" for person in range(PEOPLE) for n in range(PICTURES)]
    labels.write_text("\n".join(["image,identity", *rows]), encoding="utf-8")
    return folder, labels


def with_faces(planned: Plan) -> None:
    """Leave the synthetic faces where the training looks for faces that it has found before."""
    folder = planned.folder / "faces"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / CROPS, synthetic_faces())
    facts = {"identities": list(planned.labelled.identities), "without_face": []}
    (folder / FACES).write_text(json.dumps(facts), encoding="utf-8")


def train(settings: Settings, options: TrainingOptions, on_progress: Progress = lambda done, total: None) -> Trained:
    """Train as the flow does, on synthetic faces."""
    planned = plan(settings, *labelled_pictures(settings.home_folder / "pictures"), options)
    with_faces(planned)
    with tracked(planned) as run:
        job = prepare(planned, run.run_id)
        return publish(planned, fit(planned, job, on_progress), run.run_id)


def main(home: str, weights_dir: str, uri: str, options: str) -> None:
    settings = Settings(home=Path(home), weights=Path(weights_dir), tracking_uri=uri, cpus=1)
    enter_tiny(settings)
    tell = partial(print, "step", flush=True)
    trained = train(settings, TrainingOptions.model_validate_json(options), tell)
    print("digest", trained.installed.model.digest, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
