"""Errands: what erasures have left in the outbox. A crash leaves it there, and every run and every erasure goes on with it.

Each is done where its place is (`infra.catalog.custody.places`): here, or by a process of another home.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from infra.catalog.custody import erasing, exhibits, places
from infra.catalog.database import Catalog
from infra.catalog.tables.custody import Errand, Outbox
from infra.settings import Settings
from infra.storage import StoreError, open_store
from infra.tracking import remove_artifact, remove_own_artifact

WORKERS = 8  # crops that are deleted at once: most of the time is waiting for the store


@dataclass(frozen=True)
class Finished:
    """What became of the outbox: errands done, those that are left, with what stood in the way, and those for other homes."""

    done: int
    left: tuple[str, ...]
    waiting: tuple[str, ...] = ()


def finish(catalog: Catalog, settings: Settings) -> Finished:
    """Do the errands that erasures have left, also those of a process that died. Costs a look into an empty table otherwise."""
    found = run_errands(catalog, settings)
    with catalog.read() as session:
        to_scrub = erasing.scrubs(session)
    if not to_scrub:
        return found
    try:
        erasing.scrub(catalog.engine)
    except erasing.NotScrubbed as error:
        return replace(found, left=(*found.left, f"the database's files: {error}"))
    with catalog.write() as session:
        erasing.close(session, to_scrub)
    return replace(found, done=found.done + len(to_scrub))


def run_errands(catalog: Catalog, settings: Settings) -> Finished:
    """Do what erasures have left to do in this home and in shared places, and complete certificates; scrub nothing."""
    done, after, left = 0, 0, []
    with catalog.read() as session:
        home_id = places.here(session, settings)
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="errand") as workers:
        while True:
            with catalog.read() as session:
                errands = erasing.open_errands(session, home_id, after)
            if not errands:
                break
            finished = []
            for errand, problem in _run_all(catalog, settings, errands, workers):
                if problem:
                    left.append(f"{errand.errand} {errand.place}: {problem}")
                else:
                    finished.append(errand.id)
            with catalog.write() as session:
                erasing.done(session, finished)
            done, after = done + len(finished), errands[-1][0].id
    if done:
        with catalog.write() as session:
            erasing.close(session, ())
    with catalog.read() as session:
        waiting = places.waiting_elsewhere(session, home_id)
    return Finished(done, tuple(left), tuple(map(_waits, waiting)))


def _waits(place: places.Place) -> str:
    return (
        f"place {place.place_id}, {place.keeps} of {place.folder} on {place.host}: {place.errands} to remove; any run, page or "
        f"'visage retention' there does it. If it is no more: 'visage places forget {place.place_id}'"
    )


def _run_all(
    catalog: Catalog, settings: Settings, errands: Sequence[tuple[Outbox, str | None]], workers: Executor
) -> Iterator[tuple[Outbox, str]]:
    """Do errands, those in stores of crops side by side; with each, what stood in the way."""
    in_stores = [found for found in errands if found[0].errand == Errand.OBJECT.value]
    elsewhere = [found for found in errands if found[0].errand != Errand.OBJECT.value]
    for found, run in (in_stores, workers.map), (elsewhere, map):
        problems = run(lambda errand: _run(catalog, settings, *errand), found)
        yield from zip((errand for errand, _ in found), problems, strict=True)


def _run(catalog: Catalog, settings: Settings, errand: Outbox, address: str | None) -> str:
    """Do one errand, at an address or (None) where these settings say; returns what stood in the way."""
    there = settings if address is None else places.at(settings, address)
    try:
        if errand.errand == Errand.OBJECT.value:
            open_store(there.crops_uri, there.storage_options).delete(errand.place)
        elif errand.errand == Errand.ARTIFACT.value:
            run_id, _, name = errand.place.partition("/")
            if there.tracking_uri:
                remove_artifact(there.mlflow_uri, run_id, name)
            else:
                remove_own_artifact(there.artifacts_folder, run_id, name)
        elif Path(errand.place).is_absolute():
            with catalog.read() as session:
                mark = exhibits.known_mark(session, errand.place)
            exhibits.remove_marked(errand.place, mark)
        else:
            for found in list(settings.home_folder.glob(errand.place)):
                exhibits.remove(found)
    except (StoreError, OSError, exhibits.NotOurs) as error:
        return str(error)
    except Exception as error:  # MLflow's stores raise whatever their servers do
        return f"{type(error).__name__}: {error}"
    return ""
