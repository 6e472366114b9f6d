"""Evaluate: models that describe, on labelled pictures. Faces are found once, however many models are judged."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from models.spec import Attribute, Kind
from models.table import MODELS
from tasks.describe import Columns
from tasks.evaluation.attribute_metrics import ClassReport, NumberReport, class_report, number_report
from tasks.evaluation.central_face import Progress
from tasks.evaluation.labels import Table, UnusableLabels, classes_of, labelled_attributes, numbers
from tasks.evaluation.seen import Seen, look_at
from tasks.model_version import ModelVersion
from tasks.photo_faces import estimate


@dataclass(frozen=True)
class AttributeEvaluation:
    """What one model made of one labelled attribute.

    `names` (N,) are the pictures with a label and a face, `labels` (N,) their classes or numbers, `estimates` (N, C)
    probabilities or (N,) numbers. `without_face`: labelled pictures that could not be judged.
    """

    model: ModelVersion
    attribute: Attribute
    report: ClassReport | NumberReport
    names: tuple[str, ...]
    labels: NDArray[np.float64]
    estimates: NDArray[np.float64]
    without_face: tuple[str, ...]


def evaluate_attributes(
    settings: Settings,
    detector: ModelVersion,
    describers: Sequence[ModelVersion],
    images: Path,
    table: Table,
    leave_out: Collection[str] = (),
    on_progress: Progress = lambda done, total: None,
) -> list[AttributeEvaluation]:
    """Judge everything that the models say of the labelled attributes, second opinions included.

    In a picture of several faces the one nearest to the centre counts.

    Raises:
        UnusableLabels: if a label is unknown, or no model gives what is labelled.
        ImagesMissing: naming the first pictures that are not there.
    """
    labels = {attribute: numbers(table, attribute, leave_out) for attribute in labelled_attributes(table)}
    judged = [(version, what) for version in describers if (what := opinions_on(version, list(labels)))]
    if not judged:
        raise UnusableLabels(_nobody_gives(list(labels), describers))
    versions = [version for version, _ in judged]
    found = look_at(settings, detector, images, table.names, versions, on_progress=on_progress)
    place = {name: row for row, name in enumerate(table.names)}
    return [
        _judged(version, given, labels[labelled], found, place)
        for version, what in judged
        for given, labelled in what.items()
    ]


def opinions_on(version: ModelVersion, labelled: Sequence[Attribute]) -> dict[Attribute, Attribute]:
    """What a model says of labelled attributes, with the label that belongs to it: `age_morph2` is judged by `age`."""
    return {
        given: attribute
        for attribute in labelled
        for given in version.spec.attributes
        if given.name == attribute.name
        or (
            given.name.startswith(f"{attribute.name}_")
            and (given.kind, given.classes) == (attribute.kind, attribute.classes)
        )
    }


def probabilities_of(version: ModelVersion, attribute: Attribute, columns: Columns) -> NDArray[np.float64]:
    """Estimates of an attribute as probabilities (N, C) of its classes, or as numbers (N,)."""
    value = columns[estimate(version.contract, attribute.name, "value")].astype(np.float64)
    if attribute.kind is Kind.PROBABILITY:
        return np.stack([1 - value, value], axis=1)
    if attribute.kind is Kind.CATEGORY:
        return columns[estimate(version.contract, attribute.name, "probabilities")].astype(np.float64)
    return value


def _judged(
    version: ModelVersion,
    given: Attribute,
    labels: NDArray[np.float64],
    found: Seen,
    place: dict[str, int],
) -> AttributeEvaluation:
    rows = np.array([place[name] for name in found.names], np.int64)
    known = ~np.isnan(labels[rows]) if len(rows) else np.zeros(0, bool)
    if not known.any():
        raise UnusableLabels(f"in none of the pictures that have a label of {given.name} a face was found")
    estimates = probabilities_of(version, given, found.columns)[known]
    own, seen = labels[rows][known], set(found.names)
    report: ClassReport | NumberReport
    if classes := classes_of(given):
        report = class_report(classes, own.astype(np.int64), estimates)
    else:
        report = number_report(given.kind.unit, own, estimates)
    names = tuple(name for name, there in zip(found.names, known, strict=True) if there)
    without_face = tuple(name for name, row in place.items() if not np.isnan(labels[row]) and name not in seen)
    return AttributeEvaluation(version, given, report, names, own, estimates, without_face)


def _nobody_gives(labelled: Sequence[Attribute], describers: Sequence[ModelVersion]) -> str:
    names = {attribute.name for attribute in labelled}
    able = [spec.name for spec in MODELS.values() if names & {attribute.name for attribute in spec.attributes}]
    asked = ", ".join(version.reference for version in describers) or "no model"
    return f"{asked}: none gives {', '.join(sorted(names))}. Name one that does by --model: {', '.join(able) or 'none does'}"
