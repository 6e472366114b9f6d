"""`visage collections`: which photographs there are, and what may be done with them."""

import shlex
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.erasure import say_what_is_left
from flows.cli.output import Json, console, errors, literal, print_json, print_table
from infra.catalog import collections as stored
from infra.catalog.database import Catalog
from infra.catalog.queries.views import image_counts
from infra.settings import Settings, load_settings
from infra.words import count

if TYPE_CHECKING:
    from tasks.custody.remove_collection import Removal
    from tasks.nights.collections import Moved

RetentionDays = Annotated[
    int | None,
    typer.Option(min=0, max=stored.MOST_DAYS, help="Delete embeddings this many days after their face was found."),
]
LegalBasis = Annotated[str | None, typer.Option(help="On what grounds faces are processed, in your words.")]
ConsentNote = Annotated[str | None, typer.Option(help="Where consents are kept, or what was agreed.")]

Name = Annotated[str, typer.Argument(help="Name of the collection.")]

app = typer.Typer(
    name="collections", help="Add, list, change and remove collections of photographs.", no_args_is_help=True
)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="A short name.")],
    uri: Annotated[str, typer.Argument(help="A folder, or s3://bucket/prefix.")],
    include: Annotated[
        list[str] | None, typer.Option(help="Glob of keys to take; default: all image suffixes.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Glob of keys to leave out.")] = None,
    sensitive: Annotated[
        list[str] | None,
        typer.Option(help="Sensitive attribute to estimate (age, gender, ...); none unless you say so."),
    ] = None,
    retention_days: RetentionDays = None,
    legal_basis: LegalBasis = None,
    consent_note: ConsentNote = None,
    as_json: Json = False,
) -> None:
    """Add a collection. Nothing is read until 'visage run NAME'."""
    from tasks.nights.collections import check  # noqa: PLC0415 - only this command needs it

    settings = load_settings()
    checked = check(settings, name, uri, include or [], exclude, sensitive or [])
    with Catalog(settings.catalog_url).write() as session:
        added = stored.add(session, name, checked.uri, checked.include, checked.exclude, checked.sensitive_attributes)
        added.retention_days, added.legal_basis, added.consent_note = retention_days or None, legal_basis, consent_note
    if as_json:
        print_json({"name": name, "uri": checked.uri, "empty": checked.empty})
        return
    console.print(literal(f"Added {name}: {checked.uri}" + (" (no object there yet)" if checked.empty else "")))
    for prefix in checked.own:
        console.print(literal(f"Visage keeps files of its own in {prefix} there; they are passed over"))
    console.print(literal(f"Process it with: visage run {shlex.quote(name)}"))


@app.command("set")
def set_(
    name: Name,
    uri: Annotated[
        str | None, typer.Option(help="Where the same photographs lie now: a folder, or s3://bucket/prefix.")
    ] = None,
    retention_days: RetentionDays = None,
    legal_basis: LegalBasis = None,
    consent_note: ConsentNote = None,
    as_json: Json = False,
) -> None:
    """Say where a collection lies, on what grounds it is kept, for how long. What is not given stays; 0 days: for ever."""
    from tasks.custody.retention import set_terms  # noqa: PLC0415 - a second of imports

    settings = load_settings()
    with closing(Catalog(settings.catalog_url)) as catalog:
        moved = None if uri is None else _move(catalog, settings, name, uri)
        collection = set_terms(catalog, name, retention_days, legal_basis, consent_note)
    terms = {
        "name": name,
        "uri": collection.uri,
        "retention_days": collection.retention_days,
        "legal_basis": collection.legal_basis,
        "consent_note": collection.consent_note,
    }
    if as_json:
        found = {} if moved is None else {"found": moved.found, "missing": moved.missing, "new": moved.new}
        print_json(terms | found)
        return
    print_table("Collection", ["what", "value"], list(terms.items()))
    if moved is not None:
        photos = count(moved.found, "photograph is", "photographs are")
        console.print(f"{photos} there under the same key; {moved.missing:,} missing, {moved.new:,} new.")
        console.print("The next run reads them, and processes anew only those whose bytes have changed.")


def _move(catalog: Catalog, settings: Settings, name: str, uri: str) -> "Moved":
    from tasks.nights.collections import move  # noqa: PLC0415 - only this command needs it

    return move(catalog, settings, name, uri)


@app.command()
def rename(name: Name, new: Annotated[str, typer.Argument(help="A name that is free.")], as_json: Json = False) -> None:
    """Call a collection something else. Schedules and runs stay; commands, pages and addresses know the new name only."""
    from tasks.nights.collections import rename as call  # noqa: PLC0415 - only this command needs it

    with closing(Catalog(load_settings().catalog_url)) as catalog:
        call(catalog, name, new)
    if as_json:
        print_json({"name": new, "before": name})
    else:
        console.print(literal(f"{name} is called {new} now"))


@app.command()
def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Show what the catalog knows of a collection, and remove all of it. The photographs themselves stay where they are."""
    from tasks.custody import remove_collection as removing  # noqa: PLC0415 - a second of imports

    settings = load_settings()
    with closing(Catalog(settings.catalog_url)) as catalog:
        with catalog.read() as session:
            plan = removing.plan(session, name)
        if not yes:
            _preview(plan, as_json)
            if as_json or not typer.confirm(f"Remove {name}? It cannot be undone", err=True):
                errors.print("nothing was removed" + (" ('--yes' does it)" if as_json else ""))
                return
        certificate, finished = removing.remove(catalog, settings, settings.acting, plan)
    if as_json:
        print_json({"certificate": certificate, "finished": finished, "notes": plan.notes})
    else:
        console.print(literal(f"Removed {name}: certificate {certificate.erasure_id}"))
    say_what_is_left(finished)


def _preview(plan: "Removal", as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    print_table(f"Would be removed of {plan.collection}", ["what", "how many"], list(plan.counts.items()))
    for name in plan.schedules:
        console.print(literal(f"would end with it: the schedule {name}"))
    for place in plan.exhibits:
        console.print(literal(f"may show its faces, and would be deleted: {place}"))
    for note in plan.notes:
        console.print(literal(f"- {note}"))


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the collections with the state of their images."""
    catalog = Catalog(load_settings().catalog_url)
    with catalog.read() as session:
        rows = [
            {
                "name": c.name,
                "uri": c.uri,
                "sensitive": ", ".join(c.sensitive_attributes) or "none",
                "kept": "for ever" if c.retention_days is None else count(c.retention_days, "day"),
                "legal_basis": c.legal_basis,
                "consent_note": c.consent_note,
                **image_counts(session, c.id),
            }
            for c in stored.every(session)
        ]
    if as_json:
        print_json(rows)
        return
    columns = ["name", "uri", "done", "failed", "pending", "missing", "sensitive", "kept"]
    print_table("Collections", columns, [[r[c] for c in columns] for r in rows])


@app.command()
def split(
    name: Name,
    parts: Annotated[int, typer.Argument(min=1, help="How many parts.")],
    anew: Annotated[bool, typer.Option("--anew", help="Cut it afresh: it has grown unevenly.")] = False,
    as_json: Json = False,
) -> None:
    """Show where a collection is cut into parts for 'visage run NAME --part 1/PARTS', which several machines can share."""
    from tasks.nights.parts import split as cut  # noqa: PLC0415

    settings = load_settings()
    ranges = cut(settings, Catalog(settings.catalog_url), name, parts, anew)
    if as_json:
        print_json(ranges)
        return
    rows = [[f"{number}/{parts}", keys.after, keys.through] for number, keys in enumerate(ranges, start=1)]
    print_table(f"Parts of {name}", ["part", "after key", "up to key"], rows)
