"""Opening a run: who may work on these keys, and with which models."""

import time
from dataclasses import dataclass

from sqlalchemy.orm import Session

from infra import logs
from infra.catalog.database import Catalog
from infra.catalog.statements import exclusive
from infra.catalog.tables.schema import Collection, Run, RunStatus
from infra.catalog.tables.schema import ModelVersion as ModelVersionRow
from infra.catalog.versioning import upgrades
from infra.catalog.versioning.versions import serving_id
from infra.catalog.work.key_range import KeyRange
from infra.catalog.work.runs import (
    HEARTBEAT_SECONDS,
    LEASE,
    Before,
    RunInProgress,
    Slot,
    SlotTaken,
    before,
    enter_unopened,
    open_run,
)
from infra.ray_cluster import device
from infra.settings import Settings
from tasks.calibration import calibration_of
from tasks.job import Job
from tasks.model_version import ModelVersion, NotInstalled
from tasks.recipe import Recipe, current_recipe, enter
from tasks.versioning.at_work import companion, embedder_at_work

log = logs.logger()


def open_job(
    settings: Settings, catalog: Catalog, collection: Collection, keys: KeyRange, slot: Slot | None
) -> tuple[Job, Before]:
    """Open a run on a collection, or on some of its keys; returns also how those before it have ended.

    One that cannot be opened is written down as skipped or failed.

    Raises:
        NotInstalled: if a model that it needs is not here.
        RunInProgress: if another run is at work on these keys.
        SlotTaken: if another run has claimed the slot.
    """
    try:
        try:
            run, models = _open_run(settings, catalog, collection, keys, slot)
        except RunInProgress as error:
            if slot is None or not error.waiting_helps:
                raise
            time.sleep(LEASE.total_seconds() + HEARTBEAT_SECONDS)  # by then it has shown that it lives, or it is dead
            run, models = _open_run(settings, catalog, collection, keys, slot)
        with catalog.write() as session:
            contract = enter(session, models.recipe, models.companion)
            least_similarity = _least_similarity(session, contract.embedder_id)
            earlier = before(session, run)
    except SlotTaken:
        raise
    except Exception as error:
        status = RunStatus.SKIPPED if isinstance(error, RunInProgress) else RunStatus.FAILED
        log.error("run not opened", collection=collection.name, status=status.value, error=said_by(error))
        with catalog.write() as session:
            enter_unopened(session, collection.id, status, said_by(error), keys, slot)
        raise
    job = Job(
        settings,
        collection.id,
        collection.uri,
        run.id,
        models.recipe,
        contract,
        device(),
        least_similarity,
        keys,
        models.serving_id,
        models.companion,
    )
    return job, earlier


@dataclass(frozen=True)
class _Models:
    """What a run works with: the recipe, which embedding version queries use, and a second one to embed with.

    `upgrade`: the latest one, and where it stood.
    """

    recipe: Recipe
    serving_id: int | None
    companion: ModelVersion | None
    upgrade: tuple[int, str] | None


def _open_run(
    settings: Settings, catalog: Catalog, collection: Collection, keys: KeyRange, slot: Slot | None
) -> tuple[Run, _Models]:
    while True:
        models = _models(settings, catalog, collection)
        with catalog.write() as session:
            exclusive(session, upgrades.SERVING)
            # Else an upgrade has begun, switched or ended at this very moment.
            if (serving_id(session), _upgrade(session)) == (models.serving_id, models.upgrade):
                return open_run(session, collection.id, models.recipe.digest, keys, slot), models


def _models(settings: Settings, catalog: Catalog, collection: Collection) -> _Models:
    with catalog.read() as session:
        embedder = embedder_at_work(session, settings)
        try:
            beside = companion(session, settings)
        except NotInstalled as missing:
            log.warning("new faces are embedded by one version of the upgrade only", error=str(missing))
            beside = None
        recipe = current_recipe(settings, frozenset(collection.sensitive_attributes), embedder)
        return _Models(recipe, serving_id(session), beside, _upgrade(session))


def _upgrade(session: Session) -> tuple[int, str] | None:
    latest = upgrades.latest(session)
    return None if latest is None else (latest.id, latest.status)


def said_by(error: BaseException) -> str:
    """What an error says, in one line."""
    if not isinstance(error, Exception):
        return "interrupted"
    return str(error) if isinstance(error, RunInProgress) else f"{type(error).__name__}: {error}"


def _least_similarity(session: Session, embedder_id: int) -> float | None:
    calibration = calibration_of(session.get_one(ModelVersionRow, embedder_id))
    return None if calibration is None else calibration.thresholds.far_1e_3
