"""A training from pictures of people to a restorer: find faces, keep some people for judging, train both stages, register."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from infra.settings import Settings
from infra.tracking import Run
from infra.words import count
from models import table
from models.restoration.st_lpips import ST_LPIPS
from models.spec import Role
from models.template import LandmarkTemplate
from tasks.model_version import ModelVersion
from tasks.recipe import version_for
from tasks.training import run
from tasks.training.collection import read_collection
from tasks.training.holdout import TooFewPeople, set_apart
from tasks.training.loop import RECIPE
from tasks.training.restoration.options import RestorationOptions
from tasks.training.restoration.worker import Job, work
from tasks.training.run import Progress
from tasks.versioning.install import Installed

MIN_HELD = 4  # faces


class UnfitRecogniser(ValueError):
    """The recognition model cannot judge crops of a restorer."""


@dataclass(frozen=True)
class Plan(run.Plan[RestorationOptions]):
    """A training that can begin, and the models that judge it."""

    perceptual: ModelVersion | None
    recogniser: ModelVersion


@dataclass(frozen=True)
class Trained:
    """A new version of a restorer, and how it was judged, from the first judgement to the last."""

    installed: Installed
    tracking_run: str
    history: list[dict[str, float]]


def plan(settings: Settings, images: Path, labels: Path | None, options: RestorationOptions) -> Plan:
    """Find the models, read who is on which picture, and name the training by all that decides its result.

    Raises:
        UnknownModel, NotInstalled, WrongRole, UnfitRecogniser: if a model that judges cannot be had.
        UnusableLabels: if it is not clear who is on which picture.
    """
    recogniser = version_for(Role.EMBED, options.recogniser, settings)
    if recogniser.spec.preprocess is None or not isinstance(recogniser.spec.preprocess.template, LandmarkTemplate):
        raise UnfitRecogniser(f"{recogniser.name} does not see faces by their landmarks: --recogniser names another.")
    perceptual = version_for(Role.COMPARE, ST_LPIPS.name, settings) if options.perceptual else None
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    labelled = read_collection(images, labels)
    judges = [version.contract for version in (detector, recogniser, perceptual) if version is not None]
    facts = ["restoration", RECIPE, options.model_dump(mode="json"), labelled.digest, judges]
    spec, folder = table.spec(options.model), run.folder_of(settings, facts)
    return Plan(settings, options, labelled, detector, spec, folder, perceptual, recogniser)


def prepare(planned: Plan, tracking_run: str, on_progress: Progress = lambda done, total: None) -> Job:
    """Find the faces and decide whose are kept for judging.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
        TooFewPeople: if the collection is too small.
    """
    settings, options = planned.settings, planned.options
    faces = run.find_faces(planned, on_progress)
    people = len(set(faces.identities))
    trained, held = set_apart(faces.identities, options.holdout)
    if len(held) < MIN_HELD or len(trained) < options.batch_size:
        raise TooFewPeople(
            f"{count(people, 'person', 'people')} with {count(len(faces), 'face')}: "
            f"{len(held):,} are kept for judging and {len(trained)} are left "
            f"to train on; at least {MIN_HELD} and {options.batch_size} are needed. Give more pictures, or change --holdout."
        )
    return Job(
        options=options,
        spec=planned.spec,
        perceptual=planned.perceptual,
        recogniser=planned.recogniser,
        faces=faces,
        rows=trained,
        held=held,
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
    origin = {"labelled pictures": planned.labelled.digest, planned.recogniser.reference: planned.recogniser.digest}
    installed = run.enter(planned, run.network_of(state), origin, tracking_run)
    return Trained(installed, tracking_run, state["history"])


def tracked(planned: Plan) -> AbstractContextManager[Run]:
    """Open the training's run in MLflow, the one of before if it was interrupted, and keep others from training the same.

    Raises:
        TrainingFailed: if another process is at this very training.
    """
    return run.tracked(planned, {"judge": planned.recogniser.reference})
