"""A training from labelled pictures to a new version of a model: prepare, fit, register.

A training has a folder of its own under the home folder, named by everything that decides its result. Whoever starts the same
training again after a crash goes on with it: faces that were found, steps up to the last checkpoint, the run in MLflow. The
folder is removed when the new version is registered: faces of people stay no longer than they are needed.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from infra.settings import Settings
from infra.tracking import Run
from models import table
from models.lora import SUFFIX
from models.spec import ModelSpec, Role
from tasks.model_version import ModelVersion
from tasks.recipe import version_for
from tasks.training import run
from tasks.training.collection import read_collection
from tasks.training.holdout import split
from tasks.training.loop import RECIPE
from tasks.training.options import TrainingOptions
from tasks.training.run import Progress
from tasks.training.worker import Job, work
from tasks.versioning.install import Installed


class NotAdaptable(ValueError):
    """The backbone cannot be trained as it is asked for; the message says why."""


@dataclass(frozen=True)
class Plan(run.Plan[TrainingOptions]):
    """A training that can begin, and the model that it begins with."""

    backbone: ModelVersion


@dataclass(frozen=True)
class Trained:
    """A new version of a model. `before` and `after`: verification of held-out people, by metric/size."""

    installed: Installed
    tracking_run: str
    before: dict[str, float]
    after: dict[str, float]


def plan(settings: Settings, images: Path, labels: Path | None, options: TrainingOptions) -> Plan:
    """Find the models, read who is on which picture, and name the training by all that decides its result.

    Raises:
        UnknownModel, NotInstalled, WrongRole, NotAdaptable: if the backbone cannot be trained so.
        UnusableLabels: if it is not clear who is on which picture.
    """
    backbone = version_for(Role.EMBED, options.backbone, settings)
    spec = _made_of(backbone, options)
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    labelled = read_collection(images, labels)
    facts = [RECIPE, options.model_dump(), labelled.digest, detector.contract, backbone.contract, spec.name]
    return Plan(settings, options, labelled, detector, spec, run.folder_of(settings, facts), backbone)


def prepare(planned: Plan, tracking_run: str, on_progress: Progress = lambda done, total: None) -> Job:
    """Find the faces and decide who is kept for verification.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
        TooFewPeople: if the collection is too small.
    """
    options, settings = planned.options, planned.settings
    faces = run.find_faces(planned, on_progress)
    return Job(
        options=options,
        backbone=planned.backbone,
        spec=planned.spec,
        faces=faces,
        split=split(faces.identities, options.holdout, options.seed),
        folder=planned.folder,
        tracking_uri=settings.mlflow_uri,
        tracking_run=tracking_run,
        threads=max(1, settings.cpu_count // options.workers),
    )


def fit(planned: Plan, job: Job, on_progress: Progress = lambda done, total: None) -> Path:
    """Train with Ray, from the last checkpoint if there is one; returns the file of the last state.

    Raises:
        TrainingFailed: if a worker gives up, or there are not enough processors or GPUs for all workers.
    """
    return run.fit(planned, partial(work, job), job.steps, on_progress)


def publish(planned: Plan, state_file: Path, tracking_run: str) -> Trained:
    """Make the trained weights a version of the model and its challenger; the champion too where there is none yet."""
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    origin = {planned.backbone.reference: planned.backbone.digest, "labelled pictures": planned.labelled.digest}
    installed = run.enter(planned, run.network_of(state), origin, tracking_run)
    return Trained(installed, tracking_run, state["history"][0], state["history"][-1])


def tracked(planned: Plan) -> AbstractContextManager[Run]:
    """Open the training's run in MLflow, the one of before if it was interrupted, and keep others from training the same.

    Raises:
        TrainingFailed: if another process is at this very training.
    """
    return run.tracked(planned, {"from": f"{planned.backbone.reference} {planned.backbone.contract}"})


def _made_of(backbone: ModelVersion, options: TrainingOptions) -> ModelSpec:
    """The entry of the model table that the result belongs to."""
    if backbone.name.endswith(SUFFIX):
        raise NotAdaptable(
            f"{backbone.name} has adapters already: train its backbone {backbone.name.removesuffix(SUFFIX)}."
        )
    if options.lora is None:
        return backbone.spec
    if backbone.name + SUFFIX not in table.MODELS:
        known = ", ".join(name.removesuffix(SUFFIX) for name in table.MODELS if name.endswith(SUFFIX))
        raise NotAdaptable(f"no adapters fit {backbone.name}; they fit {known}.")
    return table.MODELS[backbone.name + SUFFIX]
