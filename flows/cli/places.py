"""`visage places`: where content lies outside of the catalog, and what waits there to be erased."""

from contextlib import closing
from typing import Annotated

import typer

from flows.cli.output import Json, console, errors, literal, print_json, print_table
from infra.catalog.custody import places
from infra.catalog.database import Catalog
from infra.settings import load_settings

app = typer.Typer(
    name="places", help="See where content lies outside of the catalog: erasures reach it there.", no_args_is_help=True
)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the places that hold crops, reports, thumbnails, indexes or exports, and how many files wait there for erasure."""
    with closing(Catalog(load_settings().catalog_url)) as catalog, catalog.read() as session:
        found = places.every(session)
    if as_json:
        print_json(found)
        return
    print_table(
        "Places",
        ["place", "keeps", "address", "home folder", "machine", "last seen", "to remove"],
        [[p.place_id, p.keeps, p.address or "-", p.folder, p.host, p.seen_at, p.errands] for p in found],
    )


@app.command()
def forget(
    place: Annotated[int, typer.Argument(help="Its number, as 'visage places list' shows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Say that a place is no more, or that you have emptied it yourself: certificates stop waiting for it, and say so."""
    from tasks.custody.outside import forget_place  # noqa: PLC0415 - a second of imports

    settings = load_settings()
    with closing(Catalog(settings.catalog_url)) as catalog:
        if not yes and (as_json or not typer.confirm(f"Is what lay in place {place} really gone?", err=True)):
            errors.print("nothing was forgotten" + (" ('--yes' does it)" if as_json else ""))
            return
        unreached = forget_place(catalog, settings.acting, place)
    if as_json:
        print_json({"place": place, "unreached": unreached})
    else:
        console.print(literal(f"Place {place} is forgotten; files that were to be removed there: {unreached}"))
