"""`visage evaluate`: how good the models are, measured."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from flows.cli.output import Json, console, errors, print_json, print_table
from infra.settings import load_settings
from infra.words import count

app = typer.Typer(name="evaluate", help="Measure models on labelled data.", no_args_is_help=True)
Images = Annotated[Path, typer.Option(exists=True, help="Folder or tar file of pictures.")]
PairsFile = Annotated[Path, typer.Option("--pairs", exists=True, dir_okay=False, help="CSV with fold,a,b,same.")]
REFERENCE = "NAME (its champion), NAME@VERSION or NAME@ALIAS"


class Budget(StrEnum):
    """The tracks of FRUITS, in ms (Zhu et al., "WebFace260M", CVPR 2021, arXiv:2103.04098)."""

    MS_100 = "100"
    MS_500 = "500"
    MS_1000 = "1000"


@app.command()
def verification(
    images: Images,
    pairs: PairsFile,
    model: Annotated[str | None, typer.Option(help=f"{REFERENCE}; default: what the settings name.")] = None,
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Replace a calibration that stands on more pairs of two people, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify pairs by LFW's protocol; store the calibrated thresholds with the model version."""
    from flows.measure import measure_verification  # noqa: PLC0415 - imports torch

    with progress() as on_progress:
        measured = measure_verification(load_settings(), model, images, pairs, on_progress, recalibrate)
    result, reference = measured.verification, measured.verification.model.reference
    report = result.report
    if as_json:
        print_json(
            {
                "model": reference,
                "tracking_run": measured.tracking_run,
                "not_calibrated": measured.not_calibrated,
                "calibration_stays": measured.stays,
                **report.model_dump(),
            }
        )
        return
    print_table(
        f"Verification by {reference} on {count(report.pairs, 'pair')} of {images.name}",
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
    console.print(f"Written to MLflow as run {measured.tracking_run}.")
    if measured.not_calibrated:
        console.print(f"{reference} is not calibrated: {measured.not_calibrated}", markup=False)
    elif measured.stays:
        console.print(measured.stays, markup=False)
    else:
        console.print(f"Thresholds and probabilities of {reference} are calibrated now.")
        if measured.calibration and not measured.calibration.measures_every_rate:
            console.print(
                "The similarity that one pair of strangers in a thousand reaches is estimated from "
                f"{measured.calibration.different_pairs} of them; from 1000 on it is measured."
            )


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=f"Recognition models: {REFERENCE}.")],
    images: Images,
    pairs: PairsFile,
    budget_ms: Annotated[
        Budget | None,
        typer.Option(help="FRUITS: time detection, alignment and embedding of one face on one core; who fits?"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Set recognition models side by side: accuracy, TAR at FAR, time, size, licence."""
    from flows.measure import measure_comparison  # noqa: PLC0415 - imports torch

    budget = None if budget_ms is None else int(budget_ms)
    with progress() as on_progress:
        comparison, run = measure_comparison(load_settings(), models, images, pairs, budget, on_progress)
    if as_json:
        print_json({"tracking_run": run, "budget_ms": budget, "how": comparison.how, "models": comparison.rows})
        return
    names = ["model", "accuracy", "TAR at FAR 1%", "TAR at FAR 0.1%", "ms alone", "ms in batch", "MB", "dim", "licence"]
    rows = [
        [
            row.model,
            f"{row.accuracy:.4f} ± {row.accuracy_standard_error:.4f}",
            row.tar_at_far_1e_2,
            row.tar_at_far_1e_3,
            f"{row.ms_alone:.1f}",
            f"{row.ms_in_batch:.1f}",
            f"{row.megabytes:.1f}",
            row.dimension,
            row.licence,
        ]
        for row in comparison.rows
    ]
    if budget is not None:
        names[6:6] = ["ms in all", f"fits {budget} ms"]
        for cells, row in zip(rows, comparison.rows, strict=True):
            cells[6:6] = [f"{row.pipeline_ms:.1f}", row.fits]
    print_table(f"{count(comparison.verifications[0].report.pairs, 'pair')} of {images.name}", names, rows)
    console.print(f"Times: {comparison.how}.", markup=False)
    console.print(f"Written to MLflow as run {run}, with the ROC curves and accuracy over time.")


@contextmanager
def progress(what: str = "embedding") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields what moves it."""
    with Progress(console=errors) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
