"""`visage curate`: which labels of a set of pictures may be wrong."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.evaluate import progress
from flows.cli.output import Json, console, literal, print_json, print_table
from infra.catalog.database import Catalog
from infra.settings import load_settings
from infra.words import count


def curate(
    out: Annotated[Path, typer.Option(help="A new folder for report and lists; it shows faces.")],
    pictures: Annotated[
        Path | None, typer.Argument(exists=True, help="Folder with a folder for each person; else see --labels.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option(help="Instead of pictures: a collection, by the vectors that the catalog has of it.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="CSV with image,identity: for a tar file, a folder, a collection."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Compare by NAME or NAME@VERSION; default: as nights do.")] = None,
    as_json: Json = False,
) -> None:
    """Propose which pictures of an identity do not belong, which identities are one person, what is a copy. Deletes nothing."""
    if (pictures is None) == (collection is None):
        raise typer.BadParameter("name either pictures or a --collection")
    if collection is not None and (labels is None or model is not None):
        raise typer.BadParameter("a --collection wants --labels, and is compared by the version that queries use")
    from tasks.curation.curate import curate_collection, curate_pictures  # noqa: PLC0415 - imports torch
    from tasks.curation.report import as_json as told  # noqa: PLC0415

    settings = load_settings()
    with progress() as on_progress:
        if pictures is not None:
            found, files = curate_pictures(settings, pictures, labels, model, out, on_progress)
        else:
            assert collection is not None
            assert labels is not None
            with closing(Catalog(settings.catalog_url)) as catalog:
                found, files = curate_collection(
                    catalog, settings, collection, labels, out, settings.acting, on_progress
                )
    if as_json:
        print_json({**told(found), "files": [str(path) for path in files]})
        return
    print_table(
        f"{count(len(found.labels), 'picture')} of "
        f"{count(len(found.people), 'identity', 'identities')}, compared by {found.studied.model}",
        ["round", "do not belong", "one person"],
        [[n, len(one.findings), len(one.merges)] for n, one in enumerate(found.rounds, start=1)],
    )
    console.print(f"Copies: {len(found.copies)}; left in the cleaned list: {len(found.cleaned()):,}")
    console.print(literal(f"Look at {files[0]} before you act; nothing was deleted."), soft_wrap=True)
