"""`visage backfill`: do what an upgrade of the embedding model takes, and see how far it has got."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.evaluate import progress as bar
from flows.cli.output import Json, console, literal, print_json, print_table
from infra.catalog.custody import audit
from infra.catalog.database import Catalog
from infra.settings import load_settings
from infra.words import count

app = typer.Typer(name="backfill", help="Embed the catalog's faces with a new model version.", no_args_is_help=True)


@app.command()
def run(
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Maximum number of faces per second; a quarter of it while a run is at work."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Do what is left of the upgrade that 'visage models promote' has planned, then switch queries to it."""
    from infra import prefect_server  # noqa: PLC0415 - only this command needs it
    from tasks.versioning.upgrade import under_way  # noqa: PLC0415 - imports torch

    settings = load_settings()
    with Catalog(settings.catalog_url).read() as session:
        under_way(session)  # before any server is started
    prefect_server.use(settings.home_folder)
    from flows.backfilling import backfill, on_progress  # noqa: PLC0415 - Prefect reads its settings when imported

    with bar("backfill") as show:
        token = on_progress.set(show)
        try:
            ended: dict[str, Any] = backfill(rate)
        finally:
            on_progress.reset(token)
    if as_json:
        print_json(ended)
        return
    console.print(
        f"Queries use {ended['target']} now; 'visage models rollback' goes back to {ended['former']} at once."
    )
    if ended["given_up"]:
        console.print(
            f"{count(ended['given_up'], 'face')} could not be embedded; the next night looks at their photos again."
        )


@app.command()
def status(as_json: Json = False) -> None:
    """Tell how far the latest upgrade has got, how long it will take, and what the bridge between the versions loses."""
    from tasks.versioning.bridge import describe  # noqa: PLC0415 - imports torch
    from tasks.versioning.upgrade import NoUpgrade, progress  # noqa: PLC0415

    with Catalog(load_settings().catalog_url).read() as session:
        try:
            found = progress(session)
        except NoUpgrade as none:  # which is an answer
            if as_json:
                print_json({"status": None})
            else:
                console.print(literal(str(none)))
            return
    if as_json:
        print_json({**asdict(found), "seconds_left": found.seconds_left})
        return
    rows: list[list[str]] = [
        ["status", found.status],
        ["faces with both versions", f"{found.faces - found.missing - found.given_up} of {found.faces}"],
        ["given up", str(found.given_up)],
        ["embedded from", found.source],
        ["time left", duration(found.seconds_left)],
        ["bridge", describe(found.bridge)],
        ["gate", f"{found.verdict}{', forced' if found.forced else ''}: {found.reason}"],
    ]
    print_table(f"From {found.former} to {found.target}", ["what", "value"], rows)


@app.command()
def search(
    photo: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A photograph; it is not kept.")],
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 10,
    as_json: Json = False,
) -> None:
    """Search by the version to come before it is complete: faces that lack it are seen through the bridge."""
    from tasks.search import read_photo  # noqa: PLC0415 - imports torch
    from tasks.versioning.bridge import describe  # noqa: PLC0415
    from tasks.versioning.bridged_search import search_across  # noqa: PLC0415

    settings = load_settings()
    catalog = Catalog(settings.catalog_url)
    asked = read_photo(photo, settings)
    with catalog.read() as session:
        answers = search_across(session, settings, asked, limit)
    found = [match.face.face_id for answer in answers for match in answer.matches]
    with catalog.write() as session:
        audit.searched(session, settings.acting, "upgrade", found, [asked.data], limit=limit)
    if as_json:
        print_json(answers)
        return
    for number, answer in enumerate(answers, start=1):
        print_table(
            f"Face {number} of {len(answers)}, compared by {answer.model} ({answer.method})",
            ["face", "photo", "similarity", "probability", "bridged"],
            [[m.face.face_id, ", ".join(m.face.keys), m.similarity, m.probability, m.bridged] for m in answer.matches],
        )
    console.print(f"Bridge: {describe(answers[0].bridge)}", markup=False)
    if answers[0].unseen:
        console.print(f"{count(answers[0].unseen, 'face')} not embedded by this version yet cannot be seen.")


def duration(seconds: float | None) -> str:
    """A time for a person, as far as it is known."""
    if seconds is None:
        return "unknown: nothing was measured yet"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
