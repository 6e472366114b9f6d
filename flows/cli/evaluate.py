"""`visage evaluate`: how good the models in use are, measured."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from flows.cli.output import Json, console, errors, print_json, print_table
from infra.settings import load_settings

app = typer.Typer(name="evaluate", help="Measure models on labelled data.", no_args_is_help=True)


@app.callback()
def _frame() -> None:
    """Measure models on labelled data."""


@app.command()
def verification(
    images: Annotated[Path, typer.Option(exists=True, help="Folder or tar file of pictures.")],
    pairs: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="CSV with the columns fold,a,b,same.")],
    as_json: Json = False,
) -> None:
    """Verify pairs by LFW's protocol; store the calibrated thresholds with the model version."""
    from flows.measure import measure_verification  # noqa: PLC0415 - imports torch

    settings = load_settings()
    with Progress(console=errors) as progress:
        task = progress.add_task("embedding", total=None)
        result, model, tracking_run = measure_verification(
            settings, images, pairs, lambda done, total: progress.update(task, completed=done, total=total)
        )
    if as_json:
        print_json({"model": model, "tracking_run": tracking_run, **result.report.model_dump()})
        return
    report = result.report
    print_table(
        f"Verification by {model} on {report.pairs} pairs of {images.name}",
        ["measure", "value"],
        [
            ["accuracy", f"{report.accuracy:.4f} ± {report.accuracy_standard_error:.4f}"],
            *[
                [f"TAR at FAR {p.far_target:.1%}", f"{p.tar:.4f} ({p.tar_low:.4f} to {p.tar_high:.4f})"]
                for p in report.operating_points
            ],
            ["equal error rate", f"{report.eer:.4f}"],
            ["area under the ROC curve", f"{report.auc:.4f}"],
            ["pictures without a face", str(len(result.without_face))],
        ],
    )
    console.print(
        f"Written to MLflow as run {tracking_run}; thresholds and probabilities of {model} are calibrated now."
    )
