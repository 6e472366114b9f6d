"""Evaluations of models that describe, kept in MLflow."""

from collections.abc import Collection, Sequence
from pathlib import Path

from infra.ray_cluster import device
from infra.settings import Settings
from infra.tracking import Run, track
from models.spec import Role
from tasks.evaluation.attribute_metrics import ClassReport, plot_classes
from tasks.evaluation.attributes import AttributeEvaluation, evaluate_attributes
from tasks.evaluation.central_face import Progress
from tasks.evaluation.labels import read_table
from tasks.recipe import version_for


def measure_attributes(
    settings: Settings,
    models: Sequence[str],
    images: Path,
    labels: Path,
    leave_out: Collection[str],
    on_progress: Progress,
) -> tuple[list[AttributeEvaluation], str]:
    """Evaluate versions (NAME, NAME@VERSION or NAME@ALIAS; none: those that the settings name) on labelled pictures.

    Returns also the MLflow run that keeps the reports, the plots and every single estimate.

    Raises:
        UnknownModel, NotInstalled, WrongRole: if there is no such describing model here.
        UnusableLabels, ImagesMissing: if it cannot be measured on these labels.
    """
    table = read_table(labels)
    names = list(models or settings.describe_models)
    describers = list(dict.fromkeys(version_for(Role.DESCRIBE, name, settings) for name in names))
    detector = version_for(Role.DETECT, settings.detect_model, settings)
    evaluations = evaluate_attributes(settings, detector, describers, images, table, leave_out, on_progress)
    judged = ", ".join(dict.fromkeys(evaluation.model.reference for evaluation in evaluations))
    with track(
        settings.mlflow_uri, settings.artifacts_folder, "attributes", f"{judged} on {images.name}", {"models": judged}
    ) as run:
        facts = {"detector": detector.reference, "images": images, "labels": labels, "left_out": ", ".join(leave_out)}
        run.params({**facts, "device": device(), **{f"contract/{d.name}-{d.version}": d.contract for d in describers}})
        for evaluation in evaluations:
            log_evaluation(run, evaluation)
    return evaluations, run.run_id


def log_evaluation(run: Run, evaluation: AttributeEvaluation) -> None:
    """Log a report, its plot, and every single estimate, under attribute and model."""
    model, name, report = evaluation.model, evaluation.attribute.name, evaluation.report
    stem = f"{name}/{model.name}-{model.version}"
    run.text(report.model_dump_json(indent=2), f"{stem}/report.json")
    metrics = {"faces": float(report.faces), "without_face": float(len(evaluation.without_face))}
    rows: dict[str, Sequence[object]] = {"image": evaluation.names}
    if isinstance(report, ClassReport):
        metrics |= {
            "accuracy": report.accuracy.value,
            "balanced_accuracy": report.balanced_accuracy,
            "macro_f1": report.macro_f1,
            "calibration_error": report.calibration_error,
            "log_loss": report.log_loss,
        }
        run.figure(plot_classes(report, f"{name} by {model.reference}"), f"{stem}/confusion.png")
        rows["label"] = [report.classes[int(label)] for label in evaluation.labels]
        rows["estimate"] = [report.classes[int(place)] for place in evaluation.estimates.argmax(axis=1)]
        rows["confidence"] = evaluation.estimates.max(axis=1).round(5).tolist()
    else:
        metrics |= {
            "mean_absolute_error": report.mean_absolute_error,
            "median_absolute_error": report.median_absolute_error,
            "bias": report.bias,
        }
        rows |= {"label": evaluation.labels.tolist(), "estimate": evaluation.estimates.round(5).tolist()}
    run.metrics({f"{stem}/{metric}": value for metric, value in metrics.items()})
    run.table(rows, f"{stem}/estimates.json")
