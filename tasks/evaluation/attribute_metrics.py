"""How good estimates of attributes are: of classes, with how far their confidence can be believed, and of numbers.

Intervals are 95%: Wilson's for shares (JASA 1927), which holds for few and for extreme ones, and the bootstrap over faces for
macro-F1. Both take faces as independent of each other: several pictures of one person make them too narrow.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Z = 1.959964  # of a two-sided 95% interval
BINS = 15  # of the calibration error, as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017
DRAWS = 2000
SEED = 2017


class Share(BaseModel):
    """`count` of `of`, as a share with its Wilson interval; NaN of nothing."""

    model_config = ConfigDict(frozen=True)

    count: int
    of: int
    value: float
    low: float
    high: float


class ClassScore(BaseModel):
    """One class: how many faces are labelled so, and how the estimates fare on it. NaN where nothing can be said."""

    model_config = ConfigDict(frozen=True)

    name: str
    labelled: int
    estimated: int
    precision: float
    recall: float
    f1: float


class ClassReport(BaseModel):
    """Estimates of a category against labels. `confusion[i][j]`: faces labelled `classes[i]` and estimated `classes[j]`.

    `macro_f1` and `balanced_accuracy` (mean recall) give every class that is labelled at all the same weight.
    `calibration_error` is the mean distance between the confidence and the share of right estimates, over 15 equally wide
    bins weighted by their faces; `log_loss` the mean negative logarithm of the labelled class's probability.
    """

    model_config = ConfigDict(frozen=True)

    faces: int
    classes: tuple[str, ...]
    accuracy: Share
    balanced_accuracy: float
    macro_f1: float
    macro_f1_low: float
    macro_f1_high: float
    mean_confidence: float
    calibration_error: float
    log_loss: float
    scores: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    bins: tuple[tuple[float, float, int], ...]
    """Mean confidence, share of right estimates, and faces of every bin that has some."""


class NumberReport(BaseModel):
    """Estimates of a number against labels, all in `unit`. `bias`: the mean of estimate minus label."""

    model_config = ConfigDict(frozen=True)

    faces: int
    unit: str
    mean_absolute_error: float
    standard_error: float
    median_absolute_error: float
    bias: float
    mean_absolute_error_of_the_mean: float
    """What always answering the labels' own mean would cost: an estimate that does not beat it knows nothing."""


class Difference(BaseModel):
    """How much better one model is than another on the same faces, with its 95% bootstrap interval over them."""

    model_config = ConfigDict(frozen=True)

    faces: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    macro_f1_low: float
    macro_f1_high: float


def wilson(count: int, of: int) -> Share:
    """The share count / of with its 95% interval (Wilson 1927)."""
    if not of:
        return Share(count=0, of=0, value=np.nan, low=np.nan, high=np.nan)
    p, z2 = count / of, Z * Z
    centre, spread = (
        (p + z2 / (2 * of)) / (1 + z2 / of),
        Z / (1 + z2 / of) * np.sqrt(p * (1 - p) / of + z2 / (4 * of**2)),
    )
    return Share(
        count=count, of=of, value=p, low=max(0.0, min(p, centre - spread)), high=min(1.0, max(p, centre + spread))
    )


def class_report(classes: Sequence[str], labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> ClassReport:
    """Judge probabilities (N, C) of faces whose classes are `labels` (N,). N is at least 1."""
    estimated, rows = probabilities.argmax(axis=1), np.arange(len(labels))
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, estimated), 1)
    precision, recall, f1 = _scores(confusion)
    draws = np.random.default_rng(SEED).multinomial(len(labels), (confusion / len(labels)).ravel(), DRAWS)
    spread = _macro_f1(draws.reshape(DRAWS, *confusion.shape))
    bins = _bins(probabilities.max(axis=1), estimated == labels)
    return ClassReport(
        faces=len(labels),
        classes=tuple(classes),
        accuracy=wilson(int((estimated == labels).sum()), len(labels)),
        balanced_accuracy=float(np.nanmean(recall)),
        macro_f1=float(_macro_f1(confusion[None])[0]),
        macro_f1_low=float(np.quantile(spread, 0.025)),
        macro_f1_high=float(np.quantile(spread, 0.975)),
        mean_confidence=float(probabilities.max(axis=1).mean()),
        calibration_error=sum(abs(sure - right) * n for sure, right, n in bins) / len(labels),
        log_loss=float(-np.log(probabilities[rows, labels].clip(1e-12)).mean()),
        scores=tuple(
            ClassScore(
                name=name,
                labelled=int(confusion[i].sum()),
                estimated=int(confusion[:, i].sum()),
                precision=float(precision[i]),
                recall=float(recall[i]),
                f1=float(f1[i]),
            )
            for i, name in enumerate(classes)
        ),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        bins=tuple(bins),
    )


def number_report(unit: str, labels: NDArray[np.float64], values: NDArray[np.float64]) -> NumberReport:
    """Judge values (N,) of faces whose numbers are `labels` (N,). N is at least 1."""
    errors = values - labels
    return NumberReport(
        faces=len(labels),
        unit=unit,
        mean_absolute_error=float(np.abs(errors).mean()),
        standard_error=float(np.abs(errors).std() / np.sqrt(len(errors))),
        median_absolute_error=float(np.median(np.abs(errors))),
        bias=float(errors.mean()),
        mean_absolute_error_of_the_mean=float(np.abs(labels - labels.mean()).mean()),
    )


def _scores(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 (..., C) of confusion matrices (..., C, C)."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    labelled, estimated = confusion.sum(axis=-1), confusion.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / estimated, right / labelled
        f1 = np.where(labelled > 0, 2 * right / (labelled + estimated), np.nan)
    return precision, recall, f1


def _macro_f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.nanmean(_scores(confusion)[2], axis=-1)


def _bins(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    inside = [places == place for place in range(BINS)]
    return [(float(confidence[i].mean()), float(right[i].mean()), int(i.sum())) for i in inside if i.any()]


def paired_difference(
    classes: int, labels: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> Difference:
    """Compare the answers (N,) of two models on faces labelled (N,): of the first, less of the second."""
    random = np.random.default_rng(SEED)
    draws = [np.arange(len(labels)), *(random.integers(len(labels), size=(DRAWS, len(labels))))]

    def scores(answers: NDArray[np.int64]) -> NDArray[np.float64]:
        cells = labels * classes + answers
        confusion = np.stack([np.bincount(cells[rows], minlength=classes**2) for rows in draws])
        confusion = confusion.reshape(-1, classes, classes)
        accuracy = np.trace(confusion, axis1=1, axis2=2) / len(labels)
        return np.stack([accuracy, _macro_f1(confusion)])

    found = scores(first) - scores(second)
    low, high = np.quantile(found[:, 1:], (0.025, 0.975), axis=1)
    return Difference(
        faces=len(labels),
        accuracy=float(found[0, 0]),
        accuracy_low=float(low[0]),
        accuracy_high=float(high[0]),
        macro_f1=float(found[1, 0]),
        macro_f1_low=float(low[1]),
        macro_f1_high=float(high[1]),
    )


def plot_classes(report: ClassReport, title: str) -> "Figure":
    """Draw the confusion matrix, each row as shares of its label, and beside it how far the confidence can be believed."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a third of a second that no night should pay

    figure = Figure(figsize=(11, 5.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    confusion = np.array(report.confusion)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(confusion.shape):
        if confusion[i, j]:
            color = "white" if shares[i, j] > 0.55 else "black"
            left.text(j, i, f"{confusion[i, j]:,}", ha="center", va="center", color=color, fontsize=8)
    places = range(len(report.classes))
    labels = [f"{score.name} ({score.labelled:,})" for score in report.scores]
    left.set_xticks(places, report.classes, rotation=40, ha="right")
    left.set_yticks(places, labels)
    left.set(xlabel="estimated", ylabel="labelled (faces)")
    left.set_title(f"accuracy {report.accuracy.value:.3f}, macro-F1 {report.macro_f1:.3f}", fontsize=10)
    sure, good, count = (np.array(column) for column in zip(*report.bins, strict=True))
    right.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="as sure as right")
    right.plot(sure, good, color="#1f4e79", marker="o", markersize=0)
    right.scatter(
        sure, good, s=15 + 250 * count / count.max(), color="#1f4e79", alpha=0.75, label="bins, by their faces"
    )
    right.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share of right estimates")
    right.set_title(f"calibration error {report.calibration_error:.3f}", fontsize=10)
    right.grid(True, alpha=0.25)
    right.legend(loc="upper left", frameon=False)
    figure.suptitle(f"{title}, {report.faces:,} faces")
    return figure
