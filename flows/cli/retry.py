"""`visage retry`: take up what failed."""

from typing import Annotated

import typer

from flows.cli.output import Json, console, literal, print_json, print_table
from infra.catalog.database import Catalog
from infra.settings import load_settings
from infra.words import count


def retry(
    collection: Annotated[str | None, typer.Argument(help="Name of a collection; all without it.")] = None,
    reason: Annotated[list[str] | None, typer.Option(help="Only what failed for this reason.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Only this key.")] = None,
    as_json: Json = False,
) -> None:
    """Let the next run take up failed images that may succeed now; says which would only fail again, and why."""
    from tasks.nights import retry as again  # noqa: PLC0415 - imports what reads pictures

    catalog = Catalog(load_settings().catalog_url)
    with catalog.read() as session:
        plan = again.plan(session, collection, reason or (), key or ())
    taken = again.retry(catalog, collection, reason or (), key or ())
    if as_json:
        refused = [{"reason": name, "images": n, "why": why} for name, (n, why) in plan.refused.items()]
        print_json({"taken": taken, "refused": refused})
        return
    told = count(taken, "image is", "images are")
    console.print(literal(f"{told} taken up by the next run" + (f" of {collection}" if collection else "")))
    if plan.refused:
        rows = [[name, count, why] for name, (count, why) in sorted(plan.refused.items())]
        print_table("Not taken up", ["reason", "images", "why"], rows)
