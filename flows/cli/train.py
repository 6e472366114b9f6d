"""`visage train`: models of one's own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from flows.cli.nights import bars_of
from flows.cli.output import Json, console, print_json, print_table
from infra.settings import load_settings

if TYPE_CHECKING:
    from tasks.training.restoration.train import Trained as RestorerTrained
    from tasks.training.train import Trained

Options = TypeVar("Options", bound=BaseModel)
app = typer.Typer(name="train", help="Train models on labelled pictures.", no_args_is_help=True)


@app.callback()
def _frame() -> None:
    """Train models on labelled pictures."""


Pictures = Annotated[Path, typer.Argument(exists=True, help="Folder with a folder for each person; else see --labels.")]
Identities = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="CSV with image,identity for a folder or tar file of pictures."),
]


@app.command()
def recognition(
    images: Pictures,
    labels: Identities = None,
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
    seed: Annotated[int, typer.Option(help="Random seed; it decides the order of the faces.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a recognition model on labelled pictures; the result is a new version, the challenger of its model.

    Started again after a crash, the same command goes on from the last checkpoint.
    """
    chosen = {name: value for name, value in locals().items() if name not in ("images", "labels", "as_json")}
    from tasks.training.options import TrainingOptions  # noqa: PLC0415 - imports torch

    options = validated(TrainingOptions, chosen)
    from tasks.training.train import plan  # noqa: PLC0415

    trained: Trained = run_training("train_recognition", plan, images, labels, options)
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


@app.command()
def restoration(
    images: Pictures,
    labels: Identities = None,
    variant: Annotated[str, typer.Option(help="restoreformer or restoreformer++.")] = "restoreformer++",
    size: Annotated[int, typer.Option(help="Side of the crops in px: 64, 128, 256 or 512.")] = 512,
    width: Annotated[int, typer.Option(help="Channels of the highest resolution, a multiple of 32.")] = 64,
    blocks: Annotated[int, typer.Option(help="Residual blocks of a level.")] = 2,
    codes: Annotated[int, typer.Option(help="Entries of the dictionary.")] = 1024,
    dictionary_steps: Annotated[int, typer.Option(help="Steps of the first stage.")] = 100_000,
    steps: Annotated[int, typer.Option(help="Steps of the second stage.")] = 200_000,
    batch_size: Annotated[int, typer.Option(help="Faces of one step, over all workers.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="The highest; it rises at first and falls to 0.")] = 1e-4,
    attention_rate: Annotated[float, typer.Option(help="Factor of it for the restorer's attention.")] = 10.0,
    degradation: Annotated[str, typer.Option(help="classic or extended.")] = "extended",
    perceptual: Annotated[float, typer.Option(help="Weight of ST-LPIPS.")] = 1.0,
    identity: Annotated[float, typer.Option(help="Weight of the distance to the recogniser's embedding.")] = 1.0,
    adversarial: Annotated[float, typer.Option(help="Weight of the adversary of whole pictures.")] = 0.8,
    component: Annotated[float, typer.Option(help="Weight of the adversaries of eyes and mouth.")] = 1.0,
    dictionary_adversaries_from: Annotated[int, typer.Option(help="Step of the first stage they begin at.")] = 30_000,
    adversaries_from: Annotated[int, typer.Option(help="Step of the second stage they begin at.")] = 10_000,
    recogniser: Annotated[
        str, typer.Option(help="Model of the identity loss, and judge of the result.")
    ] = "dlib-resnet",
    judge_every: Annotated[int, typer.Option(help="Steps between judgements, which are checkpoints as well.")] = 1000,
    holdout: Annotated[float, typer.Option(help="Share of the people whose faces are kept for judging.")] = 0.1,
    workers: Annotated[int, typer.Option(help="Processes, with a GPU each where there are any.")] = 1,
    seed: Annotated[int, typer.Option(help="Another one gives other faces and degradations.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a restorer: a dictionary of clean faces first, then the restorer that draws on it. The result is the challenger.

    Started again after a crash, the same command goes on from the last checkpoint.
    """
    chosen = {name: value for name, value in locals().items() if name not in ("images", "labels", "as_json")}
    from tasks.training.restoration.options import RestorationOptions  # noqa: PLC0415 - imports torch

    options = validated(RestorationOptions, chosen)
    from tasks.training.restoration.train import plan  # noqa: PLC0415

    trained: RestorerTrained = run_training("train_restoration", plan, images, labels, options)
    model, last = trained.installed.model, trained.history[-1]
    if as_json:
        result = {"name": model.name, "version": model.version, "digest": model.digest, "contract": model.contract}
        print_json({**result, "tracking_run": trained.tracking_run, "history": trained.history})
        return
    measures = [name.removeprefix("restored/") for name in last if name.startswith("restored/")]
    methods = ("nothing", "bicubic", "restored")
    print_table(
        f"{model.reference} on people whom it has not seen",
        ["measure", *methods],
        [[measure, *(last[f"{method}/{measure}"] for method in methods)] for measure in measures],
    )
    console.print(f"Every judgement is in MLflow as run {trained.tracking_run}, with pictures.")
    console.print(
        f"Registered as {model.reference}, the challenger: 'visage evaluate restoration' judges it beside the others.",
        soft_wrap=True,
    )


def run_training(flow: str, plan: Callable[..., Any], images: Path, labels: Path | None, options: Any) -> Any:
    """Run a flow of `flows.train` in this process, once it is clear that it can begin."""
    from infra import prefect_server  # noqa: PLC0415 - only this command needs it

    settings = load_settings()
    plan(settings, images, labels, options)
    prefect_server.use(settings.home_folder)
    from flows import train as flows  # noqa: PLC0415 - Prefect reads its settings when imported

    with bars_of(flows.observer):
        return getattr(flows, flow)(images, labels, options)


def validated(model: type[Options], options: Mapping[str, Any]) -> Options:
    """Validate options of the command line; the message names the option that does not fit."""
    from pydantic import ValidationError  # noqa: PLC0415

    try:
        return model(**options)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise typer.BadParameter(f"{first['input']!r}: {first['msg']}", param_hint=option) from None
