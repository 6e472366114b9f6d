"""`visage collections`: which photographs there are, and what may be done with them."""

import shlex
from contextlib import closing
from typing import Annotated

import typer

from flows.cli.output import Json, console, literal, print_json, print_table
from infra.catalog import collections as stored
from infra.catalog.database import Catalog
from infra.catalog.queries.views import image_counts
from infra.settings import load_settings

RetentionDays = Annotated[
    int | None,
    typer.Option(min=0, max=stored.MOST_DAYS, help="Delete embeddings this many days after their face was found."),
]
LegalBasis = Annotated[str | None, typer.Option(help="On what grounds faces are processed, in your words.")]
ConsentNote = Annotated[str | None, typer.Option(help="Where consents are kept, or what was agreed.")]

app = typer.Typer(name="collections", help="Add and list collections of photographs.", no_args_is_help=True)


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
    from tasks.nights.collections import InvalidCollection, check  # noqa: PLC0415 - imports torch

    settings = load_settings()
    try:
        checked = check(settings, name, uri, include or [], exclude, sensitive or [])
    except InvalidCollection as error:
        raise typer.BadParameter(str(error)) from error
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
    name: Annotated[str, typer.Argument(help="Name of the collection.")],
    retention_days: RetentionDays = None,
    legal_basis: LegalBasis = None,
    consent_note: ConsentNote = None,
    as_json: Json = False,
) -> None:
    """Say on what grounds a collection is kept, and for how long. What is not given stays; 0 days keep for ever."""
    from tasks.custody.retention import set_terms  # noqa: PLC0415 - a second of imports

    with closing(Catalog(load_settings().catalog_url)) as catalog:
        collection = set_terms(catalog, name, retention_days, legal_basis, consent_note)
    terms = {
        "name": name,
        "retention_days": collection.retention_days,
        "legal_basis": collection.legal_basis,
        "consent_note": collection.consent_note,
    }
    if as_json:
        print_json(terms)
    else:
        print_table("Collection", ["what", "value"], list(terms.items()))


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
                "kept": "for ever" if c.retention_days is None else f"{c.retention_days} days",
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
    name: Annotated[str, typer.Argument(help="Name of the collection.")],
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
