"""The command line's frame: commands, exit codes, errors.

Commands import what is heavy only when they run, so that help and errors come at once.
"""

import importlib.metadata
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from flows.cli import (
    INTERRUPTED,
    archive,
    attributes,
    audit,
    backfill,
    bench,
    catalog,
    collections,
    curate,
    database,
    encryption,
    erasure,
    evaluate,
    evaluate_attributes,
    evaluate_fairness,
    evaluate_grouping,
    evaluate_restoration,
    models,
    nights,
    people,
    places,
    query,
    restore,
    retry,
    schedules,
    search,
    serve,
    train,
    train_attributes,
    upkeep,
)
from flows.cli.output import print_error
from flows.cli.problems import exit_code, speaks_for_itself, words
from infra.telemetry import silence

EXIT_CODES = (
    "Exit codes: 0 done; 1 it did not work, or what was looked at is not well; 2 asked wrongly; 3 done, but some images failed "
    "('status': last night was not good); 130 interrupted. With --json, stdout gets the answer in JSON or nothing; an error is "
    'the last line of stderr, {"error": ..., "exit_code": ...}.'
)

app = typer.Typer(
    name="visage",
    help="Process collections of face photographs: detect, restore, embed, describe; then ask who is where.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for judge in (
    evaluate_attributes.attributes,
    evaluate_fairness.fairness,
    evaluate_grouping.grouping,
    evaluate_restoration.restoration,
):
    evaluate.app.command()(judge)
train.app.command()(train_attributes.attributes)
for module in (
    collections, people, schedules, models, backfill, evaluate, train, serve, database, encryption, audit, places
):  # fmt: skip
    app.add_typer(module.app)
COMMANDS: tuple[Callable[..., None], ...] = (
    nights.run,
    nights.runs,
    nights.failures,
    restore.restore,
    retry.retry,
    nights.status,
    nights.metrics,
    schedules.schedules,
    schedules.serve_schedules,
    search.search,
    catalog.faces,
    catalog.identities,
    attributes.opinions,
    serve.serve,
    query.query,
    query.duplicates,
    query.export,
    archive.archive,
    curate.curate,
    bench.bench,
    erasure.erase,
    erasure.erasures,
    erasure.retention,
    upkeep.doctor,
    upkeep.down,
)
for command in COMMANDS:
    app.command()(command)
app.command("import")(archive.import_)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"visage {importlib.metadata.version('visage')}")
        raise typer.Exit


@app.callback()
def _frame(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What comes before a command."""


def run() -> None:
    """Run the command and turn every error into a message and an exit code."""
    silence()
    in_json = "--json" in sys.argv[1:]
    code: object = 0
    try:
        code = app(standalone_mode=not in_json)  # with it, Typer itself says what is wrong with a command, and exits
    except SystemExit as end:
        code = end.code
    except typer.TyperException as error:
        code = error.exit_code
        print_error(error.format_message(), error.exit_code, in_json)
    except Exception as error:
        code = exit_code(error)
        if not speaks_for_itself(error):
            traceback.print_exc()
        print_error(words(error), exit_code(error), in_json)
    if code == INTERRUPTED:  # what Typer makes of KeyboardInterrupt
        print_error("interrupted; what was recorded stays, the next run goes on from there", INTERRUPTED, in_json)
    sys.exit(code if isinstance(code, int) else 0)
