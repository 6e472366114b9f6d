"""`visage train`: models of one's own."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flows.cli.nights import Bars
from flows.cli.output import Json, console, errors, print_json, print_table
from infra.settings import load_settings

if TYPE_CHECKING:
    from tasks.training.options import TrainingOptions
    from tasks.training.train import Trained

app = typer.Typer(name="train", help="Train models on labelled pictures.", no_args_is_help=True)


@app.callback()
def _frame() -> None:
    """Train models on labelled pictures."""


@app.command()
def recognition(
    images: Annotated[
        Path, typer.Argument(exists=True, help="Folder with a folder for each person; else see --labels.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV with image,identity for a folder or tar file of pictures."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Start from: NAME (its champion), NAME@VERSION or NAME@ALIAS.")
    ] = "dlib-resnet",
    loss: Annotated[str, typer.Option(help="Loss over the identities, by name.")] = "cosface",
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK", help="Adapt to low resolution by adapters of this rank; the backbone stays as it is."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often each face is seen.")] = 16,
    batch_size: Annotated[int, typer.Option(help="Faces of one step, over all workers.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="The highest; it rises at first and falls to 0.")] = 1e-3,
    holdout: Annotated[
        float, typer.Option(help="Share of the people with two faces or more kept for verification.")
    ] = 0.1,
    workers: Annotated[int, typer.Option(help="Processes, with a GPU each where there are any.")] = 1,
    seed: Annotated[int, typer.Option(help="Another one gives another order of faces.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a recognition model on labelled pictures; the result is a new version, the challenger of its model.

    Started again after a crash, the same command goes on from the last checkpoint.
    """
    trained = _train(
        images,
        labels,
        {
            "backbone": backbone,
            "loss": loss,
            "lora": lora,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "holdout": holdout,
            "workers": workers,
            "seed": seed,
        },
    )
    model = trained.installed.model
    if as_json:
        result = {"name": model.name, "version": model.version, "digest": model.digest, "contract": model.contract}
        print_json({**result, "tracking_run": trained.tracking_run, "before": trained.before, "after": trained.after})
        return
    rows = [[name, trained.before[name], value] for name, value in trained.after.items()]
    print_table(f"{model.reference} on people whom it has not seen", ["measure", "before", "after"], rows)
    console.print(f"Every epoch is in MLflow as run {trained.tracking_run}.")
    use = f"'visage models promote {model.reference}' puts it to use"
    if trained.installed.champion:
        use = f"VISAGE_EMBED_MODEL={model.name} puts it to use"
    console.print(f"Registered as {model.reference}, the challenger: {use}.", soft_wrap=True)


def _train(images: Path, labels: Path | None, options: dict[str, Any]) -> "Trained":
    """Run the flow in this process, once it is clear that it can begin."""
    from infra import prefect_server  # noqa: PLC0415 - only this command needs it
    from tasks.training.train import plan  # noqa: PLC0415 - imports torch

    settings, validated = load_settings(), _validated(options)
    plan(settings, images, labels, validated)
    server = prefect_server.begin(settings.home_folder)
    os.environ.update(prefect_server.environment(server.url(), settings.home_folder))
    from flows.train import observer, train_recognition  # noqa: PLC0415 - Prefect reads its settings when imported

    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        bars = Bars(progress)
        token = observer.set(bars)
        try:
            trained = train_recognition(images, labels, validated)
            bars.finish()
            return trained
        finally:
            observer.reset(token)


def _validated(options: dict[str, Any]) -> "TrainingOptions":
    from pydantic import ValidationError  # noqa: PLC0415

    from tasks.training.options import TrainingOptions  # noqa: PLC0415 - imports torch

    try:
        return TrainingOptions(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise typer.BadParameter(f"{first['input']!r}: {first['msg']}", param_hint=option) from None
