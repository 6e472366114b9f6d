"""`visage evaluate attributes`: estimates against labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.evaluate import REFERENCE, Images, progress
from flows.cli.output import Json, console, print_json, print_table
from infra.settings import load_settings
from infra.words import count

if TYPE_CHECKING:
    from tasks.evaluation.attributes import AttributeEvaluation

Labels = Annotated[
    Path,
    typer.Option("--labels", exists=True, dir_okay=False, help="CSV with image and columns named as attributes."),
]
LeaveOut = Annotated[
    list[str] | None, typer.Option("--leave-out", metavar="CLASS", help="Pictures labelled so are not judged.")
]


def attributes(
    images: Images,
    labels: Labels,
    model: Annotated[
        list[str] | None, typer.Option(help=f"{REFERENCE}; several if given so; default: what the settings name.")
    ] = None,
    leave_out: LeaveOut = None,
    as_json: Json = False,
) -> None:
    """Judge what models say of faces by labels: accuracy, macro-F1, calibration, confusion; errors of numbers."""
    from flows.measure_attributes import measure_attributes  # noqa: PLC0415 - imports torch

    with progress("describing") as on_progress:
        evaluations, run = measure_attributes(
            load_settings(), model or (), images, labels, leave_out or (), on_progress
        )
    if as_json:
        print_json({"tracking_run": run, "evaluations": [_plain(evaluation) for evaluation in evaluations]})
        return
    for evaluation in evaluations:
        _print(evaluation)
    console.print(f"Written to MLflow as run {run}, with plots and every single estimate.")


def _plain(evaluation: "AttributeEvaluation") -> dict[str, Any]:
    return {
        "model": evaluation.model.reference,
        "attribute": evaluation.attribute.name,
        "without_face": evaluation.without_face,
        **evaluation.report.model_dump(),
    }


def _print(evaluation: "AttributeEvaluation") -> None:
    from tasks.evaluation.attribute_metrics import ClassReport  # noqa: PLC0415

    report, without = evaluation.report, len(evaluation.without_face)
    title = f"{evaluation.attribute.name} by {evaluation.model.reference} on {count(report.faces, 'face')}"
    if not isinstance(report, ClassReport):
        rows = [
            ["mean absolute error", f"{report.mean_absolute_error:.2f} ± {report.standard_error:.2f} {report.unit}"],
            ["median absolute error", f"{report.median_absolute_error:.2f} {report.unit}"],
            ["bias", f"{report.bias:+.2f} {report.unit}"],
            ["always answering the mean", f"{report.mean_absolute_error_of_the_mean:.2f} {report.unit}"],
            ["labelled pictures without a face", str(without)],
        ]
        print_table(title, ["measure", "value"], rows)
        return
    accuracy = report.accuracy
    print_table(
        title,
        ["measure", "value"],
        [
            ["accuracy", f"{accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f})"],
            ["balanced accuracy", f"{report.balanced_accuracy:.3f}"],
            ["macro-F1", f"{report.macro_f1:.3f} ({report.macro_f1_low:.3f} to {report.macro_f1_high:.3f})"],
            ["calibration error", f"{report.calibration_error:.3f}"],
            ["mean confidence", f"{report.mean_confidence:.3f}"],
            ["labelled pictures without a face", str(without)],
        ],
    )
    print_table(
        "By class",
        ["class", "labelled", "estimated", "precision", "recall", "F1"],
        [[s.name, s.labelled, s.estimated, s.precision, s.recall, s.f1] for s in report.scores],
    )
