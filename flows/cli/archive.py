"""`visage archive` and `visage import`: a collection as one file, from one Visage to another."""

import shlex
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.output import Json, console, literal, print_json
from infra.catalog.database import Catalog
from infra.settings import load_settings
from infra.words import count


def archive(
    name: Annotated[str, typer.Argument(help="Name of the collection.")],
    file: Annotated[Path, typer.Argument(help="A new file; it holds faces that anybody who has it can read.")],
    as_json: Json = False,
) -> None:
    """Write a collection into one file, with people and decisions, for another Visage to take in with 'visage import'."""
    from tasks.exchange.archive import archive as write  # noqa: PLC0415 - imports pyarrow

    settings = load_settings()
    with closing(Catalog(settings.catalog_url)) as catalog:
        made = write(catalog, settings, name, file, settings.acting)
    if as_json:
        print_json(made)
        return
    told = (
        f"{made.path}: {count(made.photos, 'photo')}, "
        f"{count(made.faces, 'face')}, {count(made.objects, 'picture')}; digest {made.digest}"
    )
    console.print(literal(told), soft_wrap=True)
    if made.decrypted:
        console.print(
            "The catalog's embeddings are encrypted, those in this file are NOT: keep it as you keep the key."
        )


def import_(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What 'visage archive' has written.")],
    name: Annotated[str | None, typer.Option("--as", help="Another name for the collection.")] = None,
    uri: Annotated[
        str | None, typer.Option(help="Where its photographs lie for this machine: a folder, or s3://bucket/prefix.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Take in a collection from an archive: all of it or nothing. Interrupted, the same command goes on."""
    from tasks.exchange.archive_import import import_archive  # noqa: PLC0415 - imports torch

    settings = load_settings()
    with closing(Catalog(settings.catalog_url)) as catalog:
        taken = import_archive(catalog, settings, file, settings.acting, name, uri)
    if as_json:
        print_json(taken)
        return
    console.print(
        literal(
            f"{taken.collection}: {count(taken.photos, 'photo')}, {count(taken.faces, 'face')}, "
            f"{count(taken.identities, 'person', 'people')}"
        ),
        soft_wrap=True,
    )
    console.print(literal(f"Its photographs are looked for in {taken.uri} (--uri names another place)"), soft_wrap=True)
    if taken.held_photos or taken.held_faces:
        held = f"{count(taken.held_photos, 'photo')}, {count(taken.held_faces, 'face')}"
        console.print(f"Kept out, for they were erased here: {held}")
    if taken.lacking:
        console.print(
            literal(
                f"{count(taken.lacking, 'face lacks', 'faces lack')} the embedding version that queries use here; "
                f"'visage run {shlex.quote(taken.collection)}' makes it"
            )
        )
    for problem in taken.left:
        console.print(literal(f"To be cleaned up by the next run: {problem}"), soft_wrap=True)
