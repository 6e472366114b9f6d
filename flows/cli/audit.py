"""`visage audit`: who searched, decided and erased, and whether the log still holds."""

from contextlib import closing
from typing import Annotated

import typer

from flows.cli.output import Json, console, literal, print_json, print_table
from infra.catalog.custody import audit as log
from infra.catalog.database import Catalog
from infra.settings import load_settings
from infra.words import count

app = typer.Typer(name="audit", help="Read and verify the audit log.", no_args_is_help=True)


@app.command("list")
def list_(
    action: Annotated[str | None, typer.Option(help="Only this kind: search, decide, erase, ...")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 50,
    as_json: Json = False,
) -> None:
    """List what was done, the latest first."""
    with closing(Catalog(load_settings().catalog_url)) as catalog, catalog.read() as session:
        rows = log.entries(session, limit, action)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Audit log",
        ["entry", "when", "who", "action", "subject"],
        [
            [row.entry_id, row.at, row.who, row.action, ", ".join(f"{k} {v}" for k, v in row.subject.items())]
            for row in rows
        ],
    )


@app.command()
def verify(
    head: Annotated[str | None, typer.Option(help="A digest printed earlier: shows that nothing was cut off.")] = None,
    as_json: Json = False,
) -> None:
    """Prove that no entry was changed, removed or inserted. Exit code 1, naming the first wrong entry, if one was."""
    with closing(Catalog(load_settings().catalog_url)) as catalog, catalog.read() as session:
        verified = log.verify(session, head)
    if as_json:
        print_json(verified)
        return
    console.print(
        literal(f"The audit log holds: {count(verified.entries, 'entry', 'entries')}. Its digest now: {verified.head}")
    )
    console.print("Keep this digest somewhere else; with --head it shows later that the end was not cut off.")
