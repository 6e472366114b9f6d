"""A training from labelled pictures to a head: find faces, keep some people for judging, fit, register, compare."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from infra.settings import Settings
from infra.tracking import Run
from infra.words import count
from models import table
from models.attributes.head import classes_of
from models.spec import Attribute, Role
from tasks.evaluation.attribute_metrics import Difference, paired_difference
from tasks.evaluation.attributes import AttributeEvaluation, evaluate_attributes
from tasks.evaluation.labels import IMAGE, Table, UnusableLabels, numbers, read_table
from tasks.model_version import ModelVersion
from tasks.recipe import version_for
from tasks.training import run
from tasks.training.attributes.options import AttributeOptions
from tasks.training.attributes.worker import Job, work
from tasks.training.collection import Labelled, picture_state
from tasks.training.holdout import TooFewPeople, set_apart
from tasks.training.loop import RECIPE
from tasks.training.run import Progress
from tasks.versioning.install import Installed

IDENTITY = "identity"
MIN_HELD, MIN_TRAINED = 20, 40  # faces


@dataclass(frozen=True)
class Plan(run.Plan[AttributeOptions]):
    """A training that can begin. `labels` are the classes of the pictures of `labelled`, in their order."""

    labels: tuple[int, ...]
    backbone: ModelVersion
    rival: ModelVersion | None


@dataclass(frozen=True)
class Trained:
    """A new version of a head. `history`: how the head of each share of the labels was judged, in the order of the training."""

    installed: Installed
    tracking_run: str
    history: list[dict[str, float]]


def plan(settings: Settings, images: Path, labels: Path, options: AttributeOptions) -> Plan:
    """Find the models, read the labels, and name the training by all that decides its result.

    Raises:
        UnknownModel, NotInstalled, WrongRole: if a model is not there or does other work.
        UnusableLabels: if it is not clear what a picture shows, or who is on it.
    """
    backbone = version_for(Role.EMBED, options.backbone, settings)
    spec = table.spec(f"{backbone.name}-{options.attribute}")
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    rival = None if options.against is None else version_for(Role.DESCRIBE, options.against, settings)
    labelled, classes = _labelled(images, read_table(labels), spec.attributes[0], options)
    chosen = options.model_dump(mode="json", exclude={"against"})
    facts = ["attributes", RECIPE, chosen, labelled.digest, detector.contract, backbone.contract]
    folder = run.folder_of(settings, facts)
    return Plan(settings, options, labelled, detector, spec, folder, classes, backbone, rival)


def prepare(planned: Plan, tracking_run: str, on_progress: Progress = lambda done, total: None) -> Job:
    """Find the faces and decide whose are kept for judging.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
        TooFewPeople: if the collection is too small.
    """
    settings, options = planned.settings, planned.options
    faces = run.find_faces(planned, on_progress)
    label = dict(zip(planned.labelled.names, planned.labels, strict=True))
    people = len(set(faces.identities))
    trained, held = set_apart(faces.identities, options.holdout)
    if len(held) < MIN_HELD or len(trained) < MIN_TRAINED:
        raise TooFewPeople(
            f"{count(people, 'person', 'people')} with {count(len(faces), 'face')}: "
            f"{len(held):,} are kept for judging and {len(trained)} are "
            f"left to train on; at least {MIN_HELD} and {MIN_TRAINED} are needed. Label more, or change --holdout."
        )
    return Job(
        options=options,
        backbone=planned.backbone,
        spec=planned.spec,
        faces=faces,
        labels=np.array([label[name] for name in faces.names], np.int64),
        trained=trained,
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
    """Make the head a version of its model and its challenger; the champion too where there is none yet."""
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    origin = {planned.backbone.reference: planned.backbone.digest, "labelled pictures": planned.labelled.digest}
    installed = run.enter(planned, state["network"], origin, tracking_run)
    return Trained(installed, tracking_run, state["history"])


def compare(
    planned: Plan, job: Job, trained: Trained, on_progress: Progress = lambda done, total: None
) -> list[AttributeEvaluation]:
    """Judge the new version, and the model that it is to beat, on the people kept for judging: as `visage evaluate` does."""
    versions = [trained.installed.model, *([planned.rival] if planned.rival else [])]
    return evaluate_attributes(
        planned.settings,
        planned.detector,
        versions,
        planned.labelled.images,
        held_back(planned, job),
        on_progress=on_progress,
    )


def advantage(evaluations: Sequence[AttributeEvaluation]) -> Difference | None:
    """How much better the first of two models is than the second; None if there is one alone, or another gives more."""
    if len(evaluations) != 2 or evaluations[0].names != evaluations[1].names:
        return None
    first, second = (evaluation.estimates.argmax(axis=1) for evaluation in evaluations)
    labels = evaluations[0].labels.astype(np.int64)
    return paired_difference(evaluations[0].estimates.shape[1], labels, first, second)


def held_back(planned: Plan, job: Job) -> Table:
    """The labels of the pictures whose people were kept for judging."""
    attribute = planned.spec.attributes[0]
    names = [job.faces.names[row] for row in job.held]
    texts = tuple(_text(attribute, int(job.labels[row])) for row in job.held)
    return Table(Path("held_back.csv"), tuple(names), {attribute.name: texts}, tuple(range(2, 2 + len(names))))


def as_csv(labels: Table) -> str:
    """A table of labels as the CSV that it would be read from."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([IMAGE, *labels.columns])
    writer.writerows(zip(labels.names, *labels.columns.values(), strict=True))
    return text.getvalue()


def tracked(planned: Plan) -> AbstractContextManager[Run]:
    """Open the training's run in MLflow, the one of before if it was interrupted, and keep others from training the same.

    Raises:
        TrainingFailed: if another process is at this very training.
    """
    return run.tracked(planned, {"from": f"{planned.backbone.reference} {planned.backbone.contract}"})


def _labelled(
    images: Path, labels: Table, attribute: Attribute, options: AttributeOptions
) -> tuple[Labelled, tuple[int, ...]]:
    if attribute.name not in labels.columns:
        there = ", ".join(labels.columns)
        raise UnusableLabels(f"{labels.path}, line 1: no column {attribute.name}; there are image, {there}")
    classes = numbers(labels, attribute, options.leave_out)
    people = _people(labels, options.people)
    rows = sorted(
        (name, who, int(value))
        for name, who, value in zip(labels.names, people, classes, strict=True)
        if not np.isnan(value)
    )
    found = sorted({value for _, _, value in rows})
    if len(found) < 2:
        only = classes_of(attribute)[found[0]]
        raise UnusableLabels(f"{labels.path}: all pictures are labelled {only}; a head needs two classes to tell apart")
    names, who, values = zip(*rows, strict=True)
    facts = hashlib.sha256(json.dumps([names, who, values, picture_state(images, names)]).encode()).hexdigest()
    return Labelled(images, names, who, facts), values


def _people(labels: Table, pattern: str) -> tuple[str, ...]:
    """Who is on each picture: by a pattern of names, by a column, or else, each picture for itself."""
    if not pattern:
        return labels.columns.get(IDENTITY, labels.names)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UnusableLabels(f"--people {pattern!r} is no regular expression: {error}") from None
    if not expression.groups:
        raise UnusableLabels(f"--people {pattern!r} has no group: put what names the person into brackets")
    people = []
    for name, line in zip(labels.names, labels.lines, strict=True):
        match = expression.search(name)
        if match is None:
            raise UnusableLabels(f"{labels.path}, line {line}: {name!r} does not fit --people {pattern!r}")
        people.append(match[1])
    return tuple(people)


def _text(attribute: Attribute, value: int) -> str:
    return attribute.classes[value] if attribute.classes else str(value)
