"""`visage run`, `runs`, `failures`: the nightly job and what became of it."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flows.cli.output import Json, console, errors, literal, print_json, print_table
from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.images import any_image
from infra.catalog.queries import views
from infra.catalog.work import nights
from infra.catalog.work.key_range import EVERY_KEY, KeyRange
from infra.settings import Settings, load_settings
from infra.storage import StoreError, open_store
from infra.words import count

if TYPE_CHECKING:
    from infra.prefect_server import PendingServer
    from tasks.nights.status import Status

EXIT_WITH_FAILURES = 3
Limit = Annotated[int, typer.Option(min=1, help="Maximum number of rows.")]
OfCollection = Annotated[str | None, typer.Option("--collection", help="Only of this collection.")]


class Bars:
    """Progress bars on stderr, one per step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task: TaskID | None = None
        self.total: int | None = None

    def step(self, name: str, total: int | None) -> None:
        self.finish()
        self.task, self.total = self.progress.add_task(name, total=total, count=""), total

    def advance(self, done: int) -> None:
        if self.task is not None:
            count = f"{done}" if self.total is None else f"{done}/{self.total}"
            self.progress.update(self.task, completed=done, count=count)

    def finish(self) -> None:
        """The step is over: its bar is full, whether or not there was anything to count."""
        if self.task is not None:
            self.progress.update(self.task, total=1, completed=1)


@contextmanager
def bars_of(observer: ContextVar[Any]) -> Iterator[None]:
    """Show the steps of the flow that asks for its `observer`."""
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        bars = Bars(progress)
        token = observer.set(bars)
        try:
            yield
            bars.finish()
        finally:
            observer.reset(token)


def run(
    collection: Annotated[str, typer.Argument(help="Name of the collection.")],
    part: Annotated[
        str | None, typer.Option(help="Only this part of it, like 2/4: several machines can share a collection.")
    ] = None,
    after_key: Annotated[str | None, typer.Option(help="Only keys after this one.")] = None,
    through_key: Annotated[str | None, typer.Option(help="Only keys up to and including this one.")] = None,
    as_json: Json = False,
) -> None:
    """Process what is new or changed in a collection. Exit code 3: done, but some images stand as failed."""
    keys = _keys(collection, part, after_key, through_key)
    counts = run_nightly(collection, keys)
    if as_json:
        print_json(counts)
    else:
        _print_summary(collection, counts)
    if counts["failed_images"]:
        raise typer.Exit(EXIT_WITH_FAILURES)


def _keys(collection: str, part: str | None, after_key: str | None, through_key: str | None) -> KeyRange:
    from tasks.nights.parts import keys_of  # noqa: PLC0415

    if part is not None and not after_key is through_key is None:
        raise typer.BadParameter("give either --part, or --after-key and --through-key")
    if part is not None:
        return keys_of(load_settings(), collection, part)
    try:
        return KeyRange(after_key, through_key)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--after-key") from error


def run_nightly(collection: str, keys: KeyRange = EVERY_KEY) -> dict[str, Any]:
    """Run the nightly flow in this process, with a local Prefect server of ours unless PREFECT_API_URL names another.

    Raises:
        UnknownCollection: before any server is started.
    """
    from infra import prefect_server, ray_cluster  # noqa: PLC0415 - only this command needs them

    settings = load_settings()
    with Catalog(settings.catalog_url).read() as session:
        wanted = collections.by_name(session, collection)
        first = not any_image(session, wanted.id)
    server = prefect_server.begin(settings.home_folder)  # starts while the rest is imported
    if first and _will_take_ray(settings, wanted.uri):
        ray_cluster.begin(settings.cpu_count)  # likewise
    try:
        return _run_nightly(collection, keys, settings, server)
    finally:
        ray_cluster.end()


def _will_take_ray(settings: Settings, uri: str) -> bool:
    """Whether a collection of which nothing is known yet will take a cluster of ours; its listing's first page tells."""
    if settings.ray_address or settings.engine == "inline":
        return False
    if settings.engine == "ray":
        return True
    with suppress(StoreError):  # the night will say what is wrong
        return len(next(open_store(uri, settings.storage_options).list(), [])) >= settings.ray_from_images
    return False


def _run_nightly(collection: str, keys: KeyRange, settings: Settings, server: "PendingServer") -> dict[str, Any]:
    from flows import night  # noqa: F401, PLC0415 - torch and the models
    from infra import mlflow_client, prefect_server  # noqa: PLC0415

    os.environ.update(prefect_server.environment(server.address(), settings.home_folder))
    from flows.nightly import nightly, observer  # noqa: PLC0415 - Prefect reads its settings when imported

    mlflow_client.load()  # while the server may still be starting
    server.url()

    with bars_of(observer):
        counts: dict[str, Any] = nightly(collection, after_key=keys.after, through_key=keys.through)
    return counts


def _print_summary(collection: str, counts: dict[str, Any]) -> None:
    told = (
        f"{collection}: {counts['new']} new, {counts['changed']} changed, {counts['missing']} missing, "
        f"{counts['unchanged']} unchanged; processed {count(counts['processed'], 'image')} with "
        f"{count(counts['faces'], 'face')} ({counts['restored']} sent to restoration) "
        f"in {counts['seconds'].get('process', 0):.1f} s"
    )
    console.print(literal(told))
    if counts["duplicates"]:
        copies = count(counts["duplicates"], "image holds", "images hold")
        console.print(f"{copies} the same bytes as another: not processed again")
    people = counts["people"]
    if people["grouped"] or people["alone"]:
        console.print(
            f"people: {count(people['grouped'], 'face')} placed, {count(people['founded'], 'new identity', 'new identities')}, "
            f"{people['merged']:,} merged, "
            f"{count(people['proposed'], 'merge')} proposed"
        )
    if not people["calibrated"]:
        console.print(
            "faces are not grouped into people: the embedding model is not calibrated (visage evaluate verification)"
        )
    if counts["failed_images"]:
        failed = count(counts["failed_images"], "image stands", "images stand")
        why = f"'visage failures --collection {shlex.quote(collection)}' says why"
        console.print(literal(f"{failed} as failed: {why}"))


def runs(limit: Limit = 20, as_json: Json = False) -> None:
    """List the latest runs."""
    with Catalog(load_settings().catalog_url).read() as session:
        rows = nights.runs(session, limit)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Runs",
        ["run", "collection", "status", "started", "seconds", "images", "faces", "failed", "error"],
        [
            [
                row.run_id,
                row.collection,
                row.status,
                row.started_at,
                None if row.finished_at is None else round((row.finished_at - row.started_at).total_seconds(), 1),
                row.counts.get("processed"),
                row.counts.get("faces"),
                sum(row.counts.get("failed", {}).values()),
                row.error,
            ]
            for row in rows
        ],
    )


def failures(
    collection: OfCollection = None,
    run_id: Annotated[int | None, typer.Option("--run", help="Only of this run.")] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Also those overcome since.")] = False,
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List what could not be processed, and why."""
    with Catalog(load_settings().catalog_url).read() as session:
        if collection is not None:
            collections.by_name(session, collection)
        rows = views.failures(session, collection, run_id, limit, resolved)
    if as_json:
        print_json(rows)
        return
    print_table(
        "Failures",
        ["run", "collection", "key", "stage", "reason", "again", "what happened"],
        [[r.run_id, r.collection, r.key, r.stage, r.reason, r.retryable, r.message] for r in rows],
    )


def status(as_json: Json = False) -> None:
    """Say in one screen whether last night was good. Exit code 3 if it was not, or did not happen."""
    from tasks.nights.status import status as judge  # noqa: PLC0415 - not needed by the other commands

    with Catalog(load_settings().catalog_url).read() as session:
        found = judge(session)
    if as_json:
        print_json(found)
    else:
        _print_status(found)
    if not found.good:
        raise typer.Exit(EXIT_WITH_FAILURES)


def _print_status(found: "Status") -> None:
    print_table(
        "All is well" if found.good else "Not all is well",
        ["collection", "last night", "last run", "ended", "processed", "waiting", "since", "failed", "next"],
        [
            [
                row.collection,
                "BAD" if row.problems else ("good" if row.last_run else "never run"),
                f"{row.last_run.run_id} {row.last_run.status}" if row.last_run else None,
                row.last_run.finished_at if row.last_run else None,
                row.last_run.counts.get("processed") if row.last_run else None,
                row.pending,
                row.oldest_pending,
                row.failed,
                min((s.next_at for s in row.schedules if s.next_at is not None), default=None),
            ]
            for row in found.collections
        ],
    )
    for row in found.collections:
        for problem in row.problems:
            console.print(literal(f"{row.collection}: {problem}"), soft_wrap=True)
        if row.at_work is not None:
            console.print(literal(f"{row.collection}: run {row.at_work.run_id} is at work now"))


def metrics(
    out: Annotated[
        Path | None,
        typer.Option(help="File to write, as a whole or not at all, for node_exporter's textfile collector."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print Prometheus metrics of the catalog, or write them to a file."""
    from infra.metrics import render  # noqa: PLC0415

    with closing(Catalog(load_settings().catalog_url)) as catalog:
        text = render(catalog)
    if out is not None:
        part = out.with_name(f".{out.name}.part")
        part.write_bytes(text)
        part.replace(out)
        if as_json:
            print_json({"written": out})
    elif as_json:
        print_json({"metrics": text.decode()})
    else:
        sys.stdout.write(text.decode())
