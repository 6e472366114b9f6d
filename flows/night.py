"""A night's work on one collection, step by step: what the Prefect flow schedules and the tests call."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from sqlalchemy import update
from structlog.contextvars import bound_contextvars

from flows.opening import open_job, said_by
from infra import logs
from infra.catalog import collections
from infra.catalog.custody import places
from infra.catalog.custody.erasing import drop_returned
from infra.catalog.database import Catalog
from infra.catalog.identities.enforcement import PEOPLE
from infra.catalog.images import count_pending
from infra.catalog.ledger import Audit, audit, prune, settle
from infra.catalog.queries import views
from infra.catalog.statements import exclusive
from infra.catalog.tables.custody import Keeps
from infra.catalog.tables.schema import Collection, Run, RunStatus, now
from infra.catalog.versioning.upgrades import SERVING
from infra.catalog.versioning.versions import serve_when_complete, serving_id
from infra.catalog.work.heartbeat import beating
from infra.catalog.work.key_range import EVERY_KEY, KeyRange
from infra.catalog.work.runs import (
    Before,
    Slot,
    close_run,
    disown,
    has_company,
    hold,
)
from infra.patience import patient
from infra.settings import Settings
from infra.storage import Filter
from infra.tracking import track
from tasks.custody.errands import finish
from tasks.custody.retention import expire
from tasks.discover import Discovery, discover
from tasks.group import Grouped, group_new_faces
from tasks.job import Job
from tasks.nights.collections import own_places
from tasks.nights.report import Tally, contact_sheet
from tasks.nights.run_report import CONTACT_SHEET, HTML, JSON, SHOWN, RunReport, as_html, as_json
from tasks.nights.sweep import sweep
from tasks.photo_faces import PhotoFaces
from tasks.pipeline import engine_for, process
from tasks.recipe import Recipe
from tasks.search_index import prepare_index

log = logs.logger()


class Observer(Protocol):
    """Whoever wants to see how a run gets on."""

    def step(self, name: str, total: int | None) -> None:
        """A step begins, of `total` items if that is known."""
        ...

    def advance(self, done: int) -> None:
        """`done` items of the step are done so far."""
        ...


class Silent:
    """Nobody watches."""

    def step(self, name: str, total: int | None) -> None:
        pass

    def advance(self, done: int) -> None:
        pass


class AuditFailed(RuntimeError):
    """The catalog does not hold what the run should have left in it."""


@dataclass
class Night:
    """The state of one run while it is at work."""

    settings: Settings
    catalog: Catalog
    collection: Collection
    job: Job
    observer: Observer
    before: Before
    tally: Tally = field(default_factory=Tally)
    discovery: Discovery = field(default_factory=Discovery)
    grouped: Grouped = field(default_factory=Grouped)
    audited: Audit | None = None
    engine: str = "none"
    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def failed_images(self) -> int:
        """Images of the collection that stand as failed, whenever they did."""
        failed = 0 if self.audited is None else self.audited.images.get("failed", 0)
        return failed + self.discovery.unlisted

    def counts(self) -> dict[str, Any]:
        """What happened, as the catalog keeps it of a run."""
        return {
            **asdict(self.discovery),
            "processed": self.tally.images,
            "faces": self.tally.faces,
            "restored": self.tally.restored,
            "duplicates": self.tally.shared,
            "failed": dict(self.tally.failures),
            "people": asdict(self.grouped),
            "engine": self.engine,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "stage_seconds": {name: round(value, 3) for name, value in self.tally.seconds.items()},
            "audited": None if self.audited is None else {"images": self.audited.images, "faces": self.audited.faces},
        }


@contextmanager
def night(
    settings: Settings,
    collection_name: str,
    observer: Observer | None = None,
    keys: KeyRange = EVERY_KEY,
    slot: Slot | None = None,
) -> Iterator[Night]:
    """Open a run on a collection, or on some of its keys, and close it whatever happens.

    `slot` is the time of a schedule that the run claims.

    Raises:
        UnknownCollection, NotInstalled: before anything is done.
        RunInProgress: if another run is at work on these keys; that this one was skipped is written down.
        SlotTaken: if another run has claimed the slot.
    """
    logs.configure(settings)
    catalog = Catalog(settings.catalog_url)
    try:
        with catalog.read() as session:
            collection = collections.by_name(session, collection_name)
        places.enter(catalog, settings, Keeps.OBJECTS, Keeps.REPORTS)
        places.index_here(catalog, settings)
        erasures = finish(catalog, settings)  # whose process died, or which could not do it then or there
        for problem in erasures.left:
            log.warning("erasure not finished", problem=problem)
        for place in erasures.waiting:
            log.info("erasure waits", place=place)
        job, earlier = open_job(settings, catalog, collection, keys, slot)
        state = Night(settings, catalog, collection, job, observer or Silent(), earlier)
        with bound_contextvars(run=job.run_id, collection=collection.name):
            log.info("run opened", keys=str(keys), recipe=job.recipe.digest, slot=None if slot is None else slot.at)
            try:
                with beating(catalog, job.run_id):
                    yield state
            except BaseException as error:
                _close_as_failed(state, error, slot)
                raise
            status = RunStatus.DONE_WITH_FAILURES if state.failed_images else RunStatus.DONE
            with catalog.write() as session:
                close_run(session, job.run_id, status, state.counts())
            log.info("run closed", status=status.value, images=state.tally.images, faces=state.tally.faces)
    finally:
        catalog.close()


def _close_as_failed(state: Night, error: BaseException, slot: Slot | None) -> None:
    # A scheduled run that is told to end (a restart, say) has died, and may be made up for.
    told_to_end = slot is not None and not isinstance(error, Exception | KeyboardInterrupt)
    status = RunStatus.CRASHED if told_to_end else RunStatus.FAILED
    log.error("run closed", status=status.value, error=said_by(error), exc_info=isinstance(error, Exception))
    try:
        with state.catalog.write() as session:
            close_run(session, state.job.run_id, status, state.counts(), said_by(error))
    except Exception:  # the catalog itself is what fails: the next run closes this one as crashed
        log.exception("run could not be closed")
        disown(state.catalog.engine.url, state.job.run_id)


@contextmanager
def _timed(state: Night, name: str, total: int | None = None) -> Iterator[None]:
    state.observer.step(name, total)
    start = time.monotonic()
    try:
        yield
    finally:
        state.seconds[name] = time.monotonic() - start
        log.info("step ended", step=name, seconds=round(state.seconds[name], 3), total=total)


def discover_images(state: Night) -> Discovery:
    """Compare the listing with the catalog."""
    collection, job = state.collection, state.job
    photographs = job.photographs()
    own = own_places(state.settings, photographs)
    wanted = Filter(tuple(collection.include), tuple(collection.exclude), own)
    with _timed(state, "discover"):
        state.discovery = discover(
            state.catalog,
            photographs,
            wanted,
            collection.id,
            job.run_id,
            job.recipe.digest,
            state.observer.advance,
            job.keys,
        )
    return state.discovery


def process_images(state: Night, on_batch: Callable[[], None] = lambda: None) -> Tally:
    """Run the pipeline over whatever is pending, and settle images that share their bytes with another."""
    job = state.job
    with state.catalog.read() as session:
        pending = count_pending(session, job.collection_id, job.keys)

    def watch(photos: Sequence[PhotoFaces]) -> None:
        state.tally.add(photos)
        for failure in (photo.failure for photo in photos if photo.failure is not None):
            log.warning(
                "image failed",
                stage=failure.stage,
                key=failure.key,
                reason=failure.reason,
                again=failure.retryable,
            )
        state.observer.advance(state.tally.images)
        on_batch()

    with _timed(state, "process", pending):
        state.engine = engine_for(state.settings, pending, state.before.crashes)
        process(state.catalog, job, state.engine, watch)
        crops = job.crops()
        failed, left_over = _settled(state.catalog, job)
        state.tally.failures += failed
        for key in left_over:
            patient(crops.delete)(key)
        if not state.before.well:
            sweep(state.catalog, crops, job.collection_id, job.run_id)
    return state.tally


@patient
def _settled(catalog: Catalog, job: Job) -> tuple[Counter[str], list[str]]:
    """Close the books on copies and replaced photos: returns why copies failed, and crops that nothing refers to any more."""
    with catalog.write() as session:
        exclusive(session, PEOPLE)  # the faces that come and go here are none that a grouping has in hand
        hold(session, job.run_id)
        failed = settle(session, job.run_id, job.collection_id, job.recipe.digest, job.photographs().url(""))
        dropped = drop_returned(session, job.collection_id)
        # Beside other runs nobody can tell what is left over from what they are about to refer to.
        alone = not has_company(session, job.run_id, job.collection_id)
        return failed, [*sorted(dropped), *(prune(session, job.collection_id) if alone else [])]


def group_faces(state: Night) -> Grouped:
    """Assign new faces to people."""
    with _timed(state, "group"):
        state.grouped = group_new_faces(state.catalog, state.job)
    return state.grouped


def audit_catalog(state: Night) -> Audit:
    """Prove that nothing was lost, and let queries use this embedding version if it is complete.

    Raises:
        AuditFailed: naming what is wrong.
    """
    job = state.job
    with _timed(state, "audit"):
        with state.catalog.read() as session:
            state.audited = audit(session, job.collection_id, job.contract, len(job.recipe.stored_attributes), job.keys)
        if state.audited.problems:
            raise AuditFailed(
                f"run {job.run_id} of {state.collection.name!r} left the catalog incomplete: "
                f"{'; '.join(state.audited.problems)}. Run it again; if this stays, report it with the log."
            )
        with state.catalog.write() as session:
            exclusive(session, SERVING)
            if serving_id(session) == job.serving_id:  # else an upgrade or a rollback has decided since
                serve_when_complete(session, job.contract.embedder_id)
        prepare_index(state.catalog, state.settings)
    return state.audited


def expire_embeddings(state: Night) -> int:
    """Delete the embeddings that the collection no longer keeps; returns of how many faces."""
    with _timed(state, "expire"):
        return sum(expire(state.catalog, state.settings, "the night", state.collection.name).values())


def report_run(state: Night) -> RunReport:
    """Log the run to MLflow: parameters, counts, failures, speed, seconds per stage, a contact sheet, and its report."""
    job, tally = state.job, state.tally
    with (
        _timed(state, "report"),
        track(
            state.settings.mlflow_uri,
            state.settings.artifacts_folder,
            "nightly",
            f"{state.collection.name} {job.run_id}",
            {"collection": state.collection.name, "run": str(job.run_id)},
        ) as run,
    ):
        with state.catalog.write() as session:  # before there is anything in it that an erasure has to find
            session.execute(update(Run).where(Run.id == job.run_id).values(tracking_run_id=run.run_id))
        run.params(
            {
                "recipe": job.recipe.digest,
                "engine": state.engine,
                "device": job.device,
                "attributes": ", ".join(sorted(job.recipe.attributes)),
                **{v.spec.role.value + "/" + v.name: f"{v.version} {v.contract}" for v in job.recipe.versions},
            }
        )
        seconds = max(state.seconds.get("process", 0.0), 1e-9)
        run.metrics(
            {
                "images": tally.images,
                "faces": tally.faces,
                "restored": tally.restored,
                "failures": sum(tally.failures.values()),
                "images_per_second": tally.images / seconds,
                "faces_per_second": tally.faces / seconds,
                **{f"discovery/{name}": count for name, count in asdict(state.discovery).items()},
                **{f"seconds/{name}": value for name, value in state.seconds.items()},
                **{f"stage_seconds/{name}": value for name, value in tally.seconds.items()},
            }
        )
        run.text(json.dumps(state.counts(), indent=2), "counts.json")
        sheet = contact_sheet(tally)
        if sheet is not None:
            run.bytes(sheet, CONTACT_SHEET)
        report = _report(state)
        run.text(as_html(report, sheet), HTML)
        run.text(as_json(report), JSON)
    return report


def _report(state: Night) -> RunReport:
    job = state.job
    with state.catalog.read() as session:
        started_at = session.get_one(Run, job.run_id).started_at
        failures = views.failures(session, state.collection.name, job.run_id, SHOWN)
    return RunReport(
        collection=state.collection.name,
        place=state.collection.uri,
        keys=str(job.keys),
        run=job.run_id,
        started_at=started_at,
        reported_at=now(),
        models=_by_role(job.recipe),
        counts=state.counts(),
        failures=tuple(failures),
    )


def _by_role(recipe: Recipe) -> dict[str, str]:
    roles: dict[str, list[str]] = {}
    for version in recipe.versions:
        roles.setdefault(version.spec.role.value, []).append(version.reference)
    return {role: ", ".join(references) for role, references in roles.items()}
