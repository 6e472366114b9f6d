"""Compare recognition models side by side: how well they verify, how long a face takes, how large and how free they are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from infra.settings import Settings
from infra.weights import WEIGHTS
from tasks.evaluation.central_face import FaceFinder, Progress, read_images
from tasks.evaluation.recognition import Verification, evaluate_verification
from tasks.evaluation.timing import embedding_ms, pipeline_ms, processor
from tasks.evaluation.verification import Pairs
from tasks.model_version import ModelVersion

TIMED_PICTURES = 32


@dataclass(frozen=True)
class Row:
    """One model of a comparison. Rates are 0..1, `ms_*` per face; `pipeline_ms` and `fits` only where a budget is given."""

    model: str
    accuracy: float
    accuracy_standard_error: float
    tar_at_far_1e_2: float
    tar_at_far_1e_3: float
    ms_alone: float
    ms_in_batch: float
    pipeline_ms: float | None
    fits: bool | None
    megabytes: float
    dimension: int | None
    licence: str


@dataclass(frozen=True)
class Comparison:
    """The models in the order asked for. `how` says how their times were measured."""

    rows: tuple[Row, ...]
    verifications: tuple[Verification, ...]
    budget_ms: int | None
    how: str


def compare(
    settings: Settings,
    detector: ModelVersion,
    embedders: Sequence[ModelVersion],
    images: Path,
    pairs: Pairs,
    budget_ms: int | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Comparison:
    """Judge models on the same faces, found once, and time each on some of them.

    With `budget_ms`, detection, alignment and embedding of one face on one core are timed too, as FRUITS wants it.

    Raises:
        ImagesMissing: naming the first pictures that are not there.
        UnusablePairs: if no verification can be measured on the pairs.
    """
    verifications = evaluate_verification(settings, detector, embedders, images, pairs, on_progress)
    finder = FaceFinder(settings, detector)
    names = sorted({*pairs.a, *pairs.b} - set(verifications[0].without_face))
    faces = finder(islice(read_images(images, names), TIMED_PICTURES))
    width, height = (
        round(median(side)) for side in zip(*((f.photo.width, f.photo.height) for f in faces), strict=True)
    )
    rows = []
    for verification in verifications:
        alone, in_batch = embedding_ms(verification.model, faces, finder)
        whole = None if budget_ms is None else pipeline_ms(verification.model, faces, finder)
        rows.append(_row(verification, alone, in_batch, whole, budget_ms))
    how = (
        f"medians of processor time, one thread of {processor()}; "
        "ms alone and in a batch of 32: from aligned crop to unit vector"
    )
    if budget_ms is not None:
        how += (
            f"; ms in all: detection, alignment and embedding, over {len(faces)} decoded pictures of {width}x{height}"
        )
    return Comparison(tuple(rows), tuple(verifications), budget_ms, how)


def _row(verification: Verification, alone: float, in_batch: float, whole: float | None, budget_ms: int | None) -> Row:
    model, report = verification.model, verification.report
    far_1e_2, far_1e_3 = report.operating_points
    return Row(
        model=model.reference,
        accuracy=report.accuracy,
        accuracy_standard_error=report.accuracy_standard_error,
        tar_at_far_1e_2=far_1e_2.tar,
        tar_at_far_1e_3=far_1e_3.tar,
        ms_alone=alone,
        ms_in_batch=in_batch,
        pipeline_ms=whole,
        fits=None if whole is None or budget_ms is None else whole <= budget_ms,
        megabytes=(model.weights / WEIGHTS).stat().st_size / 1e6,
        dimension=model.spec.dimension,
        licence=model.spec.licence,
    )


def columns(comparison: Comparison) -> dict[str, list[object]]:
    """The rows as a table, by column; without the columns that hold nothing."""
    rows = [asdict(row) for row in comparison.rows]
    return {name: [row[name] for row in rows] for name in rows[0] if rows[0][name] is not None}


def plot_rocs(comparison: Comparison) -> Figure:
    """Draw every model's TAR over FAR on one logarithmic axis."""
    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    report = comparison.verifications[0].report
    floor = 1 / max(1, report.pairs - report.same_pairs)  # one false accept: nothing is known below
    for verification in comparison.verifications:
        far, tar = np.array(verification.report.roc_far), np.array(verification.report.roc_tar)
        label = f"{verification.model.reference} (AUC {verification.report.auc:.4f})"
        axes.plot(np.maximum(far, floor), tar, drawstyle="steps-post", label=label)
    axes.set_xscale("log")
    axes.set(xlim=(floor, 1), ylim=(None, 1.003), xlabel="False accept rate", ylabel="True accept rate")
    axes.set_title(f"Verification on {report.pairs:,} pairs")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="lower right")
    return figure


def plot_accuracy_over_ms(comparison: Comparison) -> Figure:
    """Draw accuracy, with its standard error, over the time that a face takes; up and to the left is better."""
    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row in comparison.rows:
        time = row.ms_alone if row.pipeline_ms is None else row.pipeline_ms
        axes.errorbar([time], [row.accuracy], [row.accuracy_standard_error], fmt="o", capsize=3, label=row.model)
    if comparison.budget_ms is not None:
        label = f"budget of {comparison.budget_ms} ms"
        axes.axvline(comparison.budget_ms, color="#c0504d", linestyle="--", linewidth=1, label=label)
    what = "embedding" if comparison.budget_ms is None else "detection, alignment and embedding"
    axes.set_xlim(left=0)
    axes.set(xlabel=f"ms for the {what} of one face, in one thread", ylabel="Verification accuracy")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="best")
    return figure
