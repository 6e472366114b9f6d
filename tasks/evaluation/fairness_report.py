"""The fairness report on pictures: groups out of a table, or of what is measured on the photographs, and models to judge."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from infra.words import count
from models.attributes.measured import MEASURED
from models.spec import Attribute, Kind
from tasks.evaluation import fairness
from tasks.evaluation.attributes import opinions_on, probabilities_of
from tasks.evaluation.central_face import Progress
from tasks.evaluation.fairness import FairnessReport, Measure
from tasks.evaluation.labels import Table, UnusableLabels, classes_of, labelled_attributes, numbers
from tasks.evaluation.seen import Seen, look_at
from tasks.evaluation.verification import Pairs, pair_similarities
from tasks.model_version import ModelVersion
from tasks.photo_faces import estimate
from tasks.recipe import MEASURED_VERSION

THIRDS = ("third 1 (lowest)", "third 2", "third 3 (highest)")
Groups = Mapping[str, Mapping[str, str]]  # by column, the group of each picture by name


@dataclass(frozen=True)
class Question:
    """What is to be judged, on which pictures.

    Groups are the columns `by` of `table` (none named: all that are no labelled attribute), and thirds of the pictures by
    what is `measured`. `pairs` judge `embedder`, the attributes among the table's columns judge `describers`.
    """

    images: Path
    table: Table | None = None
    by: Sequence[str] = ()
    measured: Sequence[str] = ()
    pairs: Pairs | None = None
    embedder: ModelVersion | None = None
    labels: Table | None = None
    describers: Sequence[ModelVersion] = ()
    leave_out: Collection[str] = ()
    far_target: float = 0.01
    minimum: int = fairness.MINIMUM


def evaluate_fairness(
    settings: Settings,
    detector: ModelVersion,
    question: Question,
    on_progress: Progress = lambda done, total: None,
) -> FairnessReport:
    """Measure everything that can be, for every group and every two columns' intersections.

    Raises:
        UnusableLabels: if groups or labels do not say what they should, or there is nothing to judge.
        UnusablePairs: if no pair of two people gives a threshold.
        ImagesMissing: naming the first pictures that are not there.
    """
    columns = _columns(question)
    labelled = [] if question.labels is None else labelled_attributes(question.labels)
    judged = {v: on for v in question.describers if (on := opinions_on(v, labelled))}
    if question.pairs is None and not judged:
        raise UnusableLabels("nothing to judge: give --pairs for recognition, --labels for attributes, or both")
    names = _names(question)
    embedder = None if question.pairs is None else question.embedder
    seen = look_at(settings, detector, question.images, names, list(judged), embedder, on_progress)
    if question.measured and not seen.names:
        looked = count(len(names), "picture")
        raise UnusableLabels(f"{question.images}: no face was found in {looked}: nothing to measure groups by")
    groups, notes = _groups(question, columns, seen)
    measures = [fairness.detection(_of(groups, names, columns), np.isin(names, seen.names))]
    if question.measured:
        measures, why = [], "Faces found are not counted: what is measured on a face divides only pictures with one."
        notes.append(why)
    if question.pairs is not None:
        similarities = pair_similarities(question.pairs, seen.embeddings)
        found, threshold = fairness.verification(question.pairs, similarities, groups, question.far_target)
        measures += found
        notes.append(
            f"Pairs are accepted from a similarity of {threshold:.4f} on, for every group alike: that lets at most "
            f"{question.far_target:.1%} of all pairs of two people pass. Only pairs within a group are counted for it."
        )
    for version, what in judged.items():
        for given, attribute in what.items():
            assert question.labels is not None
            labels = numbers(question.labels, attribute, question.leave_out)
            by_name = dict(zip(question.labels.names, labels, strict=True))
            # By its own labels an attribute would be judged class by class, which is no question of groups.
            others = {**groups, attribute.name: {}} if attribute.name in groups else groups
            measures += _attribute_measures(version, given, by_name, seen, others, columns)
    return fairness.report(measures, columns, question.minimum, notes)


def _columns(question: Question) -> list[str]:
    columns: list[str] = []
    if question.table is not None:
        labels = set() if question.labels is None else {a.name for a in labelled_attributes(question.labels)}
        same = question.labels is not None and question.labels.path == question.table.path
        columns = list(question.by) or [c for c in question.table.columns if not (same and c in labels)]
        if unknown := [column for column in columns if column not in question.table.columns]:
            there = ", ".join(question.table.columns)
            raise UnusableLabels(f"{question.table.path}: no column {', '.join(unknown)}; there are {there}")
    known = [attribute.name for attribute in MEASURED.attributes]
    if unknown := [name for name in question.measured if name not in known]:
        raise UnusableLabels(f"{', '.join(unknown)} is not measured; what is: {', '.join(known)}")
    columns += [name for name in question.measured if name not in columns]
    if not columns:
        raise UnusableLabels("no groups: give --groups with a CSV of image and columns, or --measured with a measure")
    return columns


def _names(question: Question) -> list[str]:
    """The pictures that something is known of: grouped ones, but all that are judged where groups are measured."""
    judged = set[str]()
    if question.pairs is not None:
        judged |= {*question.pairs.a, *question.pairs.b}
    if question.labels is not None:
        judged |= set(question.labels.names)
    if question.table is not None and not question.measured:
        grouped = set(question.table.names)
        if not judged & grouped:
            raise UnusableLabels(f"{question.table.path}: none of its pictures is in the pairs or the labels")
    return sorted(judged)


def _groups(question: Question, columns: Sequence[str], seen: Seen) -> tuple[Groups, list[str]]:
    groups: dict[str, dict[str, str]] = {}
    notes = []
    for column in columns:
        if column in question.measured:
            groups[column], note = _thirds(column, seen)
            notes.append(note)
        else:
            assert question.table is not None
            pairs = zip(question.table.names, question.table.columns[column], strict=True)
            groups[column] = {name: text for name, text in pairs if text}
    return groups, notes


def _thirds(name: str, seen: Seen) -> tuple[dict[str, str], str]:
    attribute = next(attribute for attribute in MEASURED.attributes if attribute.name == name)
    values = seen.columns[estimate(MEASURED_VERSION.contract, name, "value")]
    if attribute.kind is Kind.CATEGORY:
        return {
            picture: attribute.classes[int(value)] for picture, value in zip(seen.names, values, strict=True)
        }, f"{name}: as it was measured on each photograph."
    values = np.abs(values) if attribute.kind is Kind.DEGREES else values
    limits = np.quantile(values, (1 / 3, 2 / 3))
    places = np.digitize(values, limits)
    what = f"the angle's size, {name}" if attribute.kind is Kind.DEGREES else name
    return {picture: THIRDS[place] for picture, place in zip(seen.names, places, strict=True)}, (
        f"{name}: thirds of the photographs by {what}, at {limits[0]:.3g} and {limits[1]:.3g} ({attribute.kind.unit}). "
        "These are groups of photographs, not of people."
    )


def _of(groups: Groups, names: Sequence[str], columns: Sequence[str]) -> dict[str, list[str]]:
    return {column: [groups[column].get(name, "") for name in names] for column in columns}


def _attribute_measures(
    version: ModelVersion,
    given: Attribute,
    labels: Mapping[str, float],
    seen: Seen,
    groups: Groups,
    columns: Sequence[str],
) -> list[Measure]:
    own = np.array([labels.get(name, np.nan) for name in seen.names])
    known = ~np.isnan(own)
    if not known.any():
        raise UnusableLabels(f"in none of the pictures that have a label of {given.name} a face was found")
    names = [name for name, there in zip(seen.names, known, strict=True) if there]
    estimates: NDArray[np.float64] = probabilities_of(version, given, seen.columns)[known]
    what, by = f"{given.name} by {version.reference}", _of(groups, names, columns)
    if classes := classes_of(given):
        return fairness.classes(what, classes, by, own[known].astype(np.int64), estimates)
    return [fairness.errors(what, given.kind.unit, by, estimates - own[known])]
