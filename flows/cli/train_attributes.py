"""`visage train attributes`: a head on a recognition model that tells an attribute."""

from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.evaluate import REFERENCE
from flows.cli.evaluate_attributes import LeaveOut
from flows.cli.output import Json, console, print_json, print_table
from flows.cli.train import run_training, validated

if TYPE_CHECKING:
    from tasks.evaluation.attributes import AttributeEvaluation
    from tasks.training.attributes.train import Trained


def attributes(
    images: Annotated[Path, typer.Argument(exists=True, help="Folder or tar file of pictures.")],
    labels: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="CSV with image, the attribute, and maybe identity.")
    ],
    attribute: Annotated[str, typer.Option(help="What the head is to tell, by its name in the vocabulary.")],
    backbone: Annotated[str, typer.Option(help=f"Recognition model that it reads: {REFERENCE}.")] = "dlib-resnet",
    people: Annotated[
        str,
        typer.Option(
            metavar="PATTERN", help="Who is on a picture: the first group of a regular expression in its name."
        ),
    ] = "",
    hidden: Annotated[int, typer.Option(help="Width of a layer between; 0: a linear head.")] = 0,
    class_weights: Annotated[float, typer.Option(help="0: every face weighs alike, 1: every class.")] = 0.5,
    epochs: Annotated[int, typer.Option(help="How often each labelled face is seen.")] = 60,
    batch_size: Annotated[int, typer.Option(help="Faces of one step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="The highest; it rises at first and falls to 0.")] = 3e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.1,
    holdout: Annotated[float, typer.Option(help="Share of the people whose faces are kept for judging.")] = 0.2,
    leave_out: LeaveOut = None,
    against: Annotated[str | None, typer.Option(help=f"A describing model to compare with: {REFERENCE}.")] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that embed together, with a GPU each where there are any.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Another one draws other shares of the labels.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a head that tells an attribute from a recognition model's embeddings, on 1%, 10% and all of the labels.

    The result is the challenger of its model, MODEL-ATTRIBUTE. Started again after a crash, the same command goes on.
    """
    chosen = {name: value for name, value in locals().items() if name not in ("images", "labels", "as_json")}
    from tasks.training.attributes.options import AttributeOptions  # noqa: PLC0415 - imports torch

    options = validated(AttributeOptions, {**chosen, "leave_out": leave_out or ()})
    from tasks.evaluation.attribute_metrics import ClassReport  # noqa: PLC0415
    from tasks.training.attributes.train import plan  # noqa: PLC0415

    trained, comparison = run_training("train_attributes", plan, images, labels, options)
    model, shares = trained.installed.model, _by_share(trained)
    difference = _advantage(comparison)
    if as_json:
        result = {"name": model.name, "version": model.version, "digest": model.digest, "contract": model.contract}
        judged = {e.model.reference: e.report.model_dump() for e in comparison}
        print_json(
            {
                **result,
                "tracking_run": trained.tracking_run,
                "shares": shares,
                "held_back": judged,
                "advantage": difference,
            }
        )
        return
    print_table(
        f"{model.reference} on people whom it has not seen, by the share of the labels that it was trained on",
        ["labels", "faces", "accuracy", "balanced accuracy", "macro-F1", "calibration error"],
        [[f"{row.pop('share'):.0%}", round(row.pop("faces")), *row.values()] for row in _texts(shares)],
    )
    print_table(
        "On the same people, through the pipeline",
        ["model", "faces", "accuracy", "macro-F1", "calibration error"],
        [
            [e.model.reference, e.report.faces, e.report.accuracy.value, e.report.macro_f1, e.report.calibration_error]
            for e in comparison
            if isinstance(e.report, ClassReport)
        ],
    )
    if difference is not None:
        console.print(
            f"{model.reference} less {against}: {100 * difference.accuracy:+.1f} points of accuracy "
            f"({100 * difference.accuracy_low:+.1f} to {100 * difference.accuracy_high:+.1f}) and {difference.macro_f1:+.3f} "
            f"of macro-F1 ({difference.macro_f1_low:+.3f} to {difference.macro_f1_high:+.3f}).",
            soft_wrap=True,
        )
    console.print(f"All of it is in MLflow as run {trained.tracking_run}, with held_back.csv.")
    use = f"'visage models promote {model.reference}' makes it the champion; "
    use = "" if trained.installed.champion else use
    console.print(
        f"Registered as {model.reference}, the challenger: {use}VISAGE_DESCRIBE_MODELS puts {model.name} to use.",
        soft_wrap=True,
    )


def _by_share(trained: "Trained") -> list[dict[str, float]]:
    """The mean over the draws of each share of the labels, and how far they lie apart."""
    found = []
    for share in dict.fromkeys(row["share"] for row in trained.history):
        rows = [row for row in trained.history if row["share"] == share]
        means = {name: mean(row[name] for row in rows) for name in rows[0]}
        apart = {f"{name}_deviation": stdev(row[name] for row in rows) if len(rows) > 1 else 0.0 for name in rows[0]}
        found.append({**means, **apart, "draws": float(len(rows))})
    return found


def _texts(shares: list[dict[str, float]]) -> list[dict[str, Any]]:
    measures = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error")
    return [
        {"share": row["share"], "faces": row["faces"]}
        | {
            name: f"{row[name]:.3f}" + (f" ± {row[f'{name}_deviation']:.3f}" if row["draws"] > 1 else "")
            for name in measures
        }
        for row in shares
    ]


def _advantage(comparison: "list[AttributeEvaluation]") -> Any:
    from tasks.training.attributes.train import advantage  # noqa: PLC0415 - imports torch

    return advantage(comparison)
