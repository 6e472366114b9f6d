"""`visage schedule` and `visage serve-schedules`: the job that runs every night by itself."""

import json
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows.cli.output import Json, console, errors, literal, print_json, print_table
from infra.catalog.database import Catalog
from infra.settings import load_settings

WORDS = {"add", "list", "pause", "resume", "remove"}
NAME = Annotated[str, typer.Argument(help="Name of the schedule.")]


class AddByDefault(TyperGroup):
    """`visage schedule NAME ...` means `visage schedule add NAME ...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = not args or args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["add", *args])


app = typer.Typer(
    name="schedule",
    cls=AddByDefault,
    help="When collections are processed: 'visage schedule NAME --collection C --cron \"0 2 * * *\"', list, pause, remove.",
    no_args_is_help=True,
)


@app.command()
def add(
    name: NAME,
    collection: Annotated[str, typer.Option(help="Collection to process.")],
    cron: Annotated[str, typer.Option(help="Minute, hour, day, month, weekday: '0 2 * * *' is every night at two.")],
    timezone: Annotated[str, typer.Option(help="Time zone of these times, like Europe/Berlin.")] = "UTC",
    catch_up: Annotated[
        bool, typer.Option("--catch-up", help="Make up, once, for times that passed while nothing was running.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Add a schedule. It runs while 'visage serve-schedules' does."""
    from tasks.nights.schedules import add_schedule  # noqa: PLC0415

    if name in WORDS:
        raise typer.BadParameter(f"{name!r} is what 'visage schedule {name}' means", param_hint="NAME")
    with closing(Catalog(load_settings().catalog_url)) as catalog:
        row = add_schedule(catalog, name, collection, cron, timezone, catch_up)
    if as_json:
        print_json(row)
        return
    console.print(literal(f"Added {row.name}: {row.collection} at {row.cron} {row.timezone}, next {row.next_at}"))
    console.print("It runs while 'visage serve-schedules' does.")


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the schedules, with the time that each has dealt with last and its next."""
    from tasks.nights.schedules import list_schedules  # noqa: PLC0415

    with closing(Catalog(load_settings().catalog_url)) as catalog:
        rows = list_schedules(catalog)
    if as_json:
        print_json(rows)
        return
    columns = ["name", "collection", "cron", "time zone", "catch up", "paused", "last", "next"]
    print_table(
        "Schedules",
        columns,
        [[r.name, r.collection, r.cron, r.timezone, r.catch_up, r.paused, r.last_slot, r.next_at] for r in rows],
    )


@app.command()
def pause(name: NAME, as_json: Json = False) -> None:
    """Let a schedule rest."""
    from tasks.nights.schedules import pause_schedule  # noqa: PLC0415

    with closing(Catalog(load_settings().catalog_url)) as catalog:
        pause_schedule(catalog, name)
    _answer(as_json, name, f"{name} is paused; 'visage schedule resume {name}' lets it go on")


@app.command()
def resume(name: NAME, as_json: Json = False) -> None:
    """Let a paused schedule go on; what would have run meanwhile is not made up for."""
    from tasks.nights.schedules import resume_schedule  # noqa: PLC0415

    with closing(Catalog(load_settings().catalog_url)) as catalog:
        resume_schedule(catalog, name)
    _answer(as_json, name, f"{name} goes on")


@app.command()
def remove(name: NAME, as_json: Json = False) -> None:
    """Remove a schedule; its runs stay in the catalog."""
    from tasks.nights.schedules import remove_schedule  # noqa: PLC0415

    with closing(Catalog(load_settings().catalog_url)) as catalog:
        remove_schedule(catalog, name)
    _answer(as_json, name, f"{name} is removed")


def _answer(as_json: bool, name: str, news: str) -> None:
    if as_json:
        print_json({"name": name, "news": news})
    else:
        console.print(literal(news))


def schedules(as_json: Json = False) -> None:
    """List the schedules (the same as 'visage schedule list')."""
    list_(as_json)


def serve_schedules(as_json: Json = False) -> None:
    """Run what is scheduled, for as long as this process lives. One per catalog; let systemd or a container keep it up."""
    from flows.serve import serve  # noqa: PLC0415

    def say(news: str) -> None:
        if as_json:  # a line each, as programs like to read what goes on
            print(json.dumps({"at": datetime.now(UTC).isoformat(), "news": news}), flush=True)
        else:
            errors.print(literal(news), soft_wrap=True)

    with suppress(KeyboardInterrupt):  # how it is meant to end
        serve(load_settings(), say)
