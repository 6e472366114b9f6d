"""`visage serve` and `visage tokens`: the API and the page, and who may use them."""

import sys
from contextlib import suppress
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.output import Json, console, literal, print_json, print_table
from infra.catalog.database import Catalog
from infra.catalog.service import tokens
from infra.settings import load_settings

app = typer.Typer(name="tokens", help="Make, list and revoke tokens for the web service.", no_args_is_help=True)


class RoleName(StrEnum):
    """What a token's owner may do."""

    READ = "read"
    CURATE = "curate"
    ADMIN = "admin"


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen at; beyond this machine only once there is a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")] = 8008,
    public_name: Annotated[
        list[str] | None,
        typer.Option(help="Name under which others reach it (behind a proxy); tokens are needed then."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve the page and the API over the catalog, for this machine only unless told otherwise. Stop with Ctrl-C."""
    from flows.service.gate import is_loopback  # noqa: PLC0415
    from flows.service.run import run  # noqa: PLC0415 - imports FastAPI

    settings = load_settings()
    exposed = not is_loopback(host) or bool(public_name)
    with Catalog(settings.catalog_url).read() as session:
        allowed, guarded = tokens.any_active(session), tokens.any_exist(session)
    if exposed and not allowed:
        raise typer.BadParameter(
            "others than this machine could reach it, and nobody has a token: "
            "make one first with 'visage tokens create NAME --role admin'",
            param_hint="--host",
        )
    with suppress(KeyboardInterrupt):  # how it is meant to end
        run(settings, host, port, exposed, tuple(public_name or ()), lambda url: _say(url, guarded, as_json))


def _say(url: str, guarded: bool, as_json: bool) -> None:
    if as_json:
        print_json({"url": url, "guarded": guarded})
        sys.stdout.flush()
        return
    console.print(literal(f"Visage is at {url}"))
    if not guarded:
        console.print(
            "Everybody with an account on this machine has full access, until there is a token: 'visage tokens create'"
        )


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what it is for; the audit log names them so.")],
    role: Annotated[RoleName, typer.Option(help="read: look and search; curate: also decide; admin: everything.")],
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="Days until it expires; default: never.")] = None,
    as_json: Json = False,
) -> None:
    """Make a token and print it: it is shown this once, and only its digest is kept."""
    if not name.strip() or not name.isprintable() or name == "local":
        raise typer.BadParameter(f"{name!r} is no name for a token", param_hint="NAME")
    life = None if days is None else timedelta(days=days)
    with Catalog(load_settings().catalog_url).write() as session:
        token = tokens.create(session, name, tokens.Role[role.value.upper()], life)
    if as_json:
        print_json({"name": name, "role": role.value, "token": token})
        return
    console.print(literal(token))
    console.print(
        "Keep it: it is not shown again. Programs send it as 'Authorization: Bearer TOKEN'; the page asks for it."
    )


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the tokens, without what would let anybody in."""
    with Catalog(load_settings().catalog_url).read() as session:
        found = tokens.every(session)
    if as_json:
        print_json([{**vars(token), "state": token.state} for token in found])
        return
    columns = ["name", "role", "state", "created", "expires", "last used"]
    rows = [[t.name, t.role, t.state, t.created_at, t.expires_at, t.last_used_at] for t in found]
    print_table("Tokens", columns, rows)


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="Name of the token.")], as_json: Json = False) -> None:
    """End a token at once, with every page that is signed in by it."""
    with Catalog(load_settings().catalog_url).write() as session:
        tokens.revoke(session, name)
    if as_json:
        print_json({"revoked": name})
        return
    console.print(literal(f"{name} is revoked."))
