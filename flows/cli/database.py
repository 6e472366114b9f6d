"""`visage db`: the catalog's database: bring it up to date, check it, copy it."""

from typing import Annotated

import typer

from flows.cli.output import Json, console, errors, literal, print_json, print_table
from infra.catalog.checking import check as check_catalog
from infra.catalog.database import Catalog, create_catalog_engine, revision
from infra.catalog.exchange.copying import copy_catalog
from infra.catalog.search.vectors import index_all
from infra.settings import load_settings

app = typer.Typer(name="db", help="Bring the catalog's database up to date, check it, copy it.", no_args_is_help=True)


@app.command()
def upgrade(as_json: Json = False) -> None:
    """Bring the database up to this version of Visage, with its indexes. Every other command does the first by itself."""
    url = load_settings().catalog_url
    engine = create_catalog_engine(url)
    with engine.connect() as connection:
        before = revision(connection)
    engine.dispose()
    catalog = Catalog(url)
    with catalog.engine.begin() as connection:
        after, indexed = revision(connection), index_all(connection)
    catalog.close()
    if as_json:
        print_json({"before": before, "after": after, "indexed": indexed})
        return
    console.print(literal(f"was at {before or 'nothing'}, is at {after}; indexes made: {', '.join(indexed) or 'none'}"))


@app.command()
def check(as_json: Json = False) -> None:
    """Read the whole catalog and say what is wrong with it. Exit code 1 if something is."""
    catalog = Catalog(load_settings().catalog_url)
    found = check_catalog(catalog)
    catalog.close()
    if as_json:
        print_json(found)
    else:
        print_table(f"{found.location}, revision {found.revision}", ["table", "rows"], list(found.rows.items()))
        for problem in found.problems:
            console.print("[red]bad[/]", literal(problem))
        if not found.problems:
            console.print("[green]ok[/]", "nothing is wrong with it")
    if found.problems:
        raise typer.Exit(1)


@app.command()
def copy(
    source: Annotated[str, typer.Argument(help="URL of the catalog to copy, as sqlite:////home/me/.visage/catalog.db")],
    target: Annotated[str, typer.Argument(help="URL of an empty database, as postgresql://user@host/visage")],
    as_json: Json = False,
) -> None:
    """Copy a catalog into an empty database and verify every row. Interrupted, the same command goes on."""

    def progress(table: str, rows: int) -> None:
        errors.print(literal(f"{table}: {rows:,}"))

    copied = copy_catalog(source, target, progress)
    if as_json:
        print_json(copied)
        return
    print_table(
        "Copied and read back on both sides",
        ["table", "rows", "SHA-256"],
        [[c.table, c.rows, c.digest] for c in copied],
    )
    console.print("Crops and models are elsewhere and stay. Set VISAGE_DATABASE_URL to the new database to use it.")
