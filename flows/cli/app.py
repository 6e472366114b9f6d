"""The command line's frame: commands, exit codes, errors.

Exit codes: 0 all done, 1 error, 2 wrong usage, 3 done, but some images failed (`status`: last night was not good), 130
interrupted. Commands import what is heavy only when they run, so that help and errors come at once.
"""

import sys
import traceback
from collections.abc import Callable

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
from flows.cli.output import errors, print_error
from infra.telemetry import silence

OURS = {"flows", "tasks", "models", "infra"}
EXIT_ERROR = 1

app = typer.Typer(
    name="visage",
    help="Process collections of face photographs: detect, restore, embed, describe; then ask who is where.",
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


def run() -> None:
    """Run the command and turn every error into a message and an exit code."""
    silence()
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # what Typer makes of KeyboardInterrupt
            errors.print("interrupted; what was recorded stays, the next run goes on from there")
        raise
    except Exception as error:
        if not _speaks_for_itself(error):
            traceback.print_exc()
        print_error(_message(error))
        sys.exit(EXIT_ERROR)


def _speaks_for_itself(error: Exception) -> bool:
    """Errors of our own, and those of the operating system, say what to do; any other is a bug and shows its trace."""
    return type(error).__module__.split(".")[0] in OURS or isinstance(error, OSError)


def _message(error: Exception) -> str:
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)
