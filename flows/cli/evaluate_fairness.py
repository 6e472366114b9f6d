"""`visage evaluate fairness`: the same measures for every group."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.evaluate import REFERENCE, Images, progress
from flows.cli.evaluate_attributes import LeaveOut
from flows.cli.output import Json, console, print_json, print_table
from infra.settings import load_settings
from infra.words import count

CSV = {"exists": True, "dir_okay": False}


def fairness(
    images: Images,
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV with image and a column for each way to group (age group, skin type).", **CSV),
    ] = None,
    by: Annotated[list[str] | None, typer.Option(help="Only this column of --groups; several if given so.")] = None,
    measured: Annotated[
        list[str] | None, typer.Option(help="Also thirds of the photographs by brightness, sharpness, yaw ...")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="CSV with fold,a,b,same: judge recognition.", **CSV)] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV with image and attributes: judge what describes.", **CSV)
    ] = None,
    recogniser: Annotated[str | None, typer.Option(help=f"{REFERENCE}; default: what the settings name.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Models that describe; default: the settings'.")] = None,
    leave_out: LeaveOut = None,
    far: Annotated[float, typer.Option(min=1e-6, max=0.5, help="False accepts that the one threshold allows.")] = 0.01,
    minimum: Annotated[int, typer.Option(min=10, help="Observations under which a group gets no number.")] = 30,
    out: Annotated[Path | None, typer.Option(help="Write the page here as well.")] = None,
    as_json: Json = False,
) -> None:
    """Judge models by group and by intersections of groups, with intervals and counts; refuse groups too small to judge."""
    from flows.measure_fairness import measure_fairness  # noqa: PLC0415 - imports torch
    from tasks.evaluation.fairness_report import Question  # noqa: PLC0415
    from tasks.evaluation.labels import read_table  # noqa: PLC0415
    from tasks.evaluation.verification import read_pairs  # noqa: PLC0415

    question = Question(
        images=images,
        table=None if groups is None else read_table(groups),
        by=by or (),
        measured=measured or (),
        pairs=None if pairs is None else read_pairs(pairs),
        labels=None if labels is None else read_table(labels),
        leave_out=leave_out or (),
        far_target=far,
        minimum=minimum,
    )
    with progress("looking at faces") as on_progress:
        judged = measure_fairness(load_settings(), question, recogniser, model or [], on_progress)
    if out is not None:
        out.write_text(judged.page, encoding="utf-8")
    if as_json:
        print_json({"tracking_run": judged.tracking_run, **judged.report.model_dump()})
        return
    units = {info.name: info for info in judged.report.measures}
    print_table(
        "Widest gaps between groups",
        ["measure", "by", "worst", "best", "gap", "95% interval", "clear"],
        [
            [
                gap.measure,
                " and ".join(gap.by),
                gap.worst,
                gap.best,
                _number(gap.difference, units[gap.measure].unit),
                f"{_number(gap.low, units[gap.measure].unit)} to {_number(gap.high, units[gap.measure].unit)}",
                gap.clear,
            ]
            for gap in sorted(judged.report.gaps, key=lambda gap: -gap.difference)
        ],
    )
    refused = sum(cell.value is None for cell in judged.report.cells)
    console.print(
        f"{count(len(judged.report.cells) - refused, 'number')}, {refused} refused for fewer than {minimum} observations."
    )
    for note in judged.report.notes:
        console.print(note, markup=False)
    console.print(f"All numbers, plots and a page are in MLflow as run {judged.tracking_run}.")
    if out is not None:
        console.print(f"The page is {out}.", markup=False)


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}{unit}" if unit else f"{100 * value:.1f}%"
