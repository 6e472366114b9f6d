"""`visage query`, `duplicates`, `export`: questions in words, copies, and files for other programs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.catalog import estimate_text
from flows.cli.output import Json, console, print_json, print_table
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.queries import questions
from infra.settings import load_settings
from infra.words import count


class Shape(StrEnum):
    """What an export looks like (tasks.exchange.exports.Format, which is slow to import)."""

    PARQUET = "parquet"
    CSV = "csv"
    JSON_LINES = "jsonl"
    COCO = "coco"
    FOLDER = "folder"


def query(
    question: Annotated[
        str, typer.Argument(help="Like: expression = happiness and taken < 1930 and person is unknown")
    ] = "",
    count_by: Annotated[
        str | None,
        typer.Option(help="Count instead: taken-year, found-day, collection, person, quality, or an attribute."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of faces.")] = 50,
    after: Annotated[int, typer.Option(min=0, help="Go on after this face: the last one of the page before.")] = 0,
    as_json: Json = False,
) -> None:
    """Ask for faces in words; docs/catalog.md has the language, and the SQL views for other programs."""
    with Catalog(load_settings().catalog_url).read() as session:
        if count_by is not None:
            counts = questions.count_by(session, question, count_by)
            if as_json:
                print_json(counts)
            else:
                print_table(f"Faces by {count_by}", [count_by, "faces"], [[c.value, c.faces] for c in counts])
            return
        rows = questions.ask(session, question, limit, after)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Faces (attributes are estimates, not facts)",
        ["face", "photo", "quality", "person", "estimates"],
        [
            [
                row.face_id,
                ", ".join(row.keys),
                row.quality,
                row.identity_name or row.identity_id,
                ", ".join(estimate_text(a) for a in row.attributes if not a.model.startswith("measured@")),
            ]
            for row in rows
        ],
    )
    if len(rows) == limit:
        console.print(f"There may be more: --after {rows[-1].face_id}")


def duplicates(
    collection: Annotated[str, typer.Argument(help="Name of the collection.")],
    near: Annotated[
        int | None,
        typer.Option(
            min=0, max=questions.NEAR, help="Also pictures that look the same; how many of 64 bits may differ."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List photos that are there more than once. Nothing is deleted: the photos are yours."""
    with Catalog(load_settings().catalog_url).read() as session:
        found = questions.duplicates(session, collections.by_name(session, collection).id, near)
    if as_json:
        print_json(found)
        return
    print_table(
        f"Photos of {collection} that are there more than once",
        ["photos", "bits apart", "same bytes"],
        [[", ".join(copies.keys), copies.distance, copies.same_bytes] for copies in found],
    )


def export(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    question: Annotated[str, typer.Argument(help="Which faces, as 'visage query' asks; default: all.")] = "",
    shape: Annotated[
        Shape, typer.Option("--format", help="folder: crops of known people, as 'visage train recognition' reads them.")
    ] = Shape.PARQUET,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="The vectors too; they are biometric data.")] = False,
    min_pictures: Annotated[int, typer.Option(min=1, help="folder: leave out people with fewer pictures.")] = 1,
    as_json: Json = False,
) -> None:
    """Write faces and what is known of them into files. An erasure removes the folder if the person may be in it."""
    from tasks.exchange.exports import Format  # noqa: PLC0415 - imports pyarrow
    from tasks.exchange.exports import export as write  # noqa: PLC0415

    settings = load_settings()
    catalog = Catalog(settings.catalog_url)
    exported = write(
        catalog, settings, question, folder, Format(shape.value), settings.acting, embeddings, min_pictures
    )
    if as_json:
        print_json(exported)
        return
    console.print(
        f"{count(exported.faces, 'face')} in {exported.folder}: {', '.join(exported.files[:6])}", soft_wrap=True
    )
