"""`visage encryption`: embeddings encrypted at rest."""

from contextlib import closing

import typer

from flows.cli.output import Json, console, errors, literal, print_json
from infra.catalog import encryption
from infra.catalog.database import Catalog
from infra.settings import load_settings
from infra.words import count

app = typer.Typer(name="encryption", help="Encrypt embeddings at rest.", no_args_is_help=True)


@app.command("new-key")
def new_key(as_json: Json = False) -> None:
    """Print a random key. Keep it well, apart from the catalog: without it no embedding can be read again."""
    key = encryption.new_key()
    if as_json:
        print_json({"key": key})
    else:
        print(key)


@app.command()
def on(as_json: Json = False) -> None:
    """Encrypt all embeddings with VISAGE_EMBEDDING_KEY (or _FILE). Search then works from memory alone, and starts slower."""
    _switch(True, as_json)


@app.command()
def off(as_json: Json = False) -> None:
    """Decrypt all embeddings; unset the key afterwards."""
    _switch(False, as_json)


@app.command()
def status(as_json: Json = False) -> None:
    """Say whether the embeddings of the catalog are encrypted."""
    with closing(Catalog(load_settings().catalog_url, unlock=False)) as catalog, catalog.read() as session:
        encrypted = encryption.is_encrypted(session)
    if as_json:
        print_json({"encrypted": encrypted})
    else:
        console.print(f"The embeddings are {'encrypted' if encrypted else 'not encrypted'}.")


def _switch(wanted: bool, as_json: bool) -> None:
    from tasks.custody.encryption import switch  # noqa: PLC0415 - a second of imports

    settings = load_settings()
    embeddings, finished = switch(settings, settings.acting, wanted)
    if as_json:
        print_json({"embeddings": embeddings, "left": finished.left})
    else:
        told = count(embeddings, "embedding is", "embeddings are")
        console.print(f"{told} {'encrypted' if wanted else 'decrypted'} now.")
    for problem in finished.left:
        errors.print(literal(f"left to do by the next run or 'visage retention': {problem}"))
    if finished.left:
        raise typer.Exit(1)
