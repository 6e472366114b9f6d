"""The backfill: give every face the embedding of the version to come, then switch.

It can be killed at any moment and goes on where it was: what is missing is asked of the catalog. Several processes, on one
machine or on many, share the work: each claims the photos that it has in hand. Beside a night it takes a quarter of the time,
and it switches when no night is at work.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from infra.catalog.custody import places
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.catalog.tables.upgrades import Upgrade, UpgradeStatus
from infra.catalog.versioning import backfill_claims, upgrades
from infra.catalog.work.runs import close_dead_runs
from infra.ray_cluster import device
from infra.settings import Settings
from tasks.recipe import version_of_row
from tasks.search_index import prepare_index
from tasks.versioning import bridge
from tasks.versioning.backfill import Embedded, Embedder, batches, rest_seconds
from tasks.versioning.upgrade import NoUpgrade, Progress, hold, progress, switch, under_way

GROUP = 16  # photos that are claimed at once, and recorded in one transaction: what a kill can cost
SHARE_BESIDE_A_NIGHT = 0.25
WAIT_SECONDS = 5.0  # between looks at whether the night is over, or other processes have done what they have in hand
REFIT_EVERY = 256  # faces, at first: then whenever there are twice as many as the bridge was fitted to

OnProgress = Callable[[int, int], None]


@dataclass
class _Work:
    """A backfill at work in this process, which is one `worker` of perhaps several. `done` and `total` count faces."""

    catalog: Catalog
    upgrade: Upgrade
    embedder: Embedder
    rate: float | None
    on_progress: OnProgress
    worker: str = field(default_factory=backfill_claims.this_process)
    started: float = field(default_factory=time.monotonic)
    done: int = 0
    total: int = 0
    fitted_on: int = 0


def run_backfill(
    settings: Settings, rate: float | None = None, on_progress: OnProgress = lambda d, t: None
) -> Progress:
    """Do what is left of the upgrade under way, at `rate` faces per second at most, and switch to its target.

    Called in several processes, each does a part; the last one switches.

    Raises:
        NoUpgrade: if none is under way, or it is called off meanwhile.
        NotInstalled: if one of its versions is not on this machine.
    """
    catalog = Catalog(settings.catalog_url)
    try:
        places.index_here(catalog, settings)
        with catalog.read() as session:
            upgrade = under_way(session)
            target = version_of_row(session.get_one(ModelVersionRow, upgrade.target_id), settings)
        embedder = Embedder(settings, target, device())
        work = _Work(catalog, upgrade, embedder, rate, on_progress)
        try:
            _embed_all(work)
            bridge.refit(catalog, upgrade)
            while not switch(catalog, settings):
                _embed_all(work)  # what nights have found meanwhile
                _wait_for_others(work)
        except NoUpgrade:
            with catalog.read() as session:
                if session.get_one(Upgrade, upgrade.id).status != UpgradeStatus.SWITCHED.value:  # by another process
                    raise
        finally:
            embedder.close()
        prepare_index(catalog, settings)
        with catalog.read() as session:
            return progress(session)
    finally:
        catalog.close()


def _embed_all(work: _Work) -> None:
    """Embed whatever lacks the target's embedding by now and no other process has in hand, in the order of most use."""
    with work.catalog.read() as session:
        contents = upgrades.contents_to_embed(session, work.upgrade)
        work.total = work.done + upgrades.count_lacking(session, work.upgrade.target_id, work.upgrade.id)
    work.on_progress(work.done, work.total)
    for part in batches(contents, GROUP):
        start = time.monotonic()
        with work.catalog.write() as session:
            part = backfill_claims.claim(session, work.upgrade.id, work.worker, part)  # noqa: PLW2901
            hold(session, work.upgrade.id)
            faces = upgrades.faces_to_embed(session, work.upgrade, part)
        made = work.embedder(faces, work.upgrade.source) if faces else Embedded({}, {})
        work.done += len(faces)
        beside_a_night = _record(work, made)
        work.on_progress(work.done, work.total)
        if work.done >= max(REFIT_EVERY, 2 * work.fitted_on):
            bridge.refit(work.catalog, work.upgrade)
            work.fitted_on = work.done
        seconds = time.monotonic() - start
        time.sleep(rest_seconds(len(faces), seconds, work.rate, SHARE_BESIDE_A_NIGHT if beside_a_night else 1.0))


def _record(work: _Work, made: Embedded) -> bool:
    """Write down what was made, and say whether a night is at work."""
    with work.catalog.write() as session:
        nights = close_dead_runs(session)
        hold(session, work.upgrade.id)
        speed = work.done / (time.monotonic() - work.started)  # rests included
        workers = backfill_claims.count_workers(session, work.upgrade.id)
        upgrades.put_backfilled(session, work.upgrade, made.vectors, made.given_up, speed * max(workers, 1))
        backfill_claims.release(session, work.upgrade.id, work.worker)
        return bool(nights)


def _wait_for_others(work: _Work) -> None:
    """Rest a little while a night is at work, or other processes have in hand what is left."""
    with work.catalog.write() as session:
        waiting = bool(close_dead_runs(session)) or backfill_claims.count_workers(session, work.upgrade.id) > 0
    if waiting:
        time.sleep(WAIT_SECONDS)
