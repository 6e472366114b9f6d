"""`visage evaluate grouping`: are people kept whole and strangers apart?"""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.evaluate import REFERENCE, Images, progress
from flows.cli.output import Json, console, print_json, print_table
from infra.settings import load_settings
from infra.words import count


def grouping(
    images: Images,
    labels: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="CSV with image,person; default: by folder, or LFW's names (Person_0001.jpg).",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"{REFERENCE}; default: what the settings name.")] = None,
    as_json: Json = False,
) -> None:
    """Let labelled faces arrive in several nights and orders; report BCubed precision, recall and F."""
    from flows.measure_grouping import measure_grouping  # noqa: PLC0415 - imports torch

    with progress() as on_progress:
        report, run = measure_grouping(load_settings(), model, images, labels, on_progress)
    if as_json:
        print_json({"tracking_run": run, **report.model_dump()})
        return
    print_table(
        f"Grouping {count(report.faces, 'face')} of {count(report.people, 'person', 'people')} (BCubed)",
        ["nights", "order", "precision", "recall", "F", "merges", "proposed", "seconds"],
        [[r.nights, r.order, r.precision, r.recall, r.f, r.merges, r.proposals, r.seconds] for r in report.rounds],
    )
    console.print(f"No face was found in {count(report.without_face, 'picture')}: left out.")
    console.print(
        f"Of {count(report.twins, 'pair')} of the most similar strangers, each in one photo, "
        f"{report.twins_merged:,} became one person."
    )
    console.print(f"Written to MLflow as run {run}.")
