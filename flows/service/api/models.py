"""Models: versions, promotion through the gate, and the upgrade of the catalog's embeddings."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from flows.service import events, jobs
from flows.service.access import Admin, Here, Reader
from flows.service.dto import LOCATION, JobOut, ModelOut, Page, RolledBackOut, UpgradeOut, VersionOut
from flows.service.idempotency import IdempotentRoute
from flows.service.problems import Problem, not_found
from flows.service.state import Service
from infra.catalog.tables.upgrades import UpgradeStatus

router = APIRouter(route_class=IdempotentRoute)
Name = Annotated[str, Path(max_length=100)]
OVER = frozenset(UpgradeStatus) - {UpgradeStatus.BACKFILLING}


@router.get("/models", tags=["models"])
def list_models(service: Here, who: Reader) -> Page[ModelOut]:
    """Every model that this release knows, with its versions here."""
    return Page(items=models(service))


@router.get("/models/{name}", tags=["models"])
def show_model(service: Here, who: Reader, name: Name) -> ModelOut:
    """One model."""
    return model(service, name)


@router.post("/models/{name}/versions/{version}/promote", tags=["models"])
def promote_version(
    service: Here,
    who: Admin,
    name: Name,
    version: Annotated[int, Path(ge=1, le=2**31)],
    force: Annotated[bool, Query(description="Also if it was measured worse, or not at all.")] = False,
) -> ModelOut:
    """Make a version the champion: collections are processed with it from their next run on.

    What makes the catalog's embeddings is replaced by a backfill, which this plans; it is refused if it is worse.
    """
    return promote_to_champion(service, name, version, force)


@router.post("/models/{name}/rollback", tags=["models"])
def rollback_model(service: Here, who: Admin, name: Name) -> RolledBackOut:
    """Let queries and nights use the version again that was replaced. Nothing is computed."""
    return roll_back(service, name)


@router.get("/upgrade", tags=["models"])
def show_upgrade(service: Here, who: Reader) -> UpgradeOut:
    """How far the latest upgrade of the embedding model has got, and the gate's verdict."""
    return _upgrade(service)


@router.get("/upgrade/events", tags=["models"], response_class=Response, responses=events.EVENTS)  # type: ignore[arg-type]
def watch_upgrade(service: Here, who: Reader, request: Request) -> Response:
    """How far the latest upgrade has got, as its backfill goes on."""
    return events.stream(service, request, lambda: _upgrade(service), OVER)


@router.post("/upgrade/backfill", status_code=202, tags=["models"], responses={202: LOCATION})
def start_backfill(service: Here, who: Admin, response: Response) -> JobOut:
    """Embed what lacks the new version, beside the nights; then queries switch to it."""
    job = backfill(service, who.name)
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return job


def models(service: Service) -> list[ModelOut]:
    """All models as the API gives them."""
    from tasks.versioning.model_overview import overview  # noqa: PLC0415 - imports torch

    with service.catalog.read() as session:
        rows = overview(session, service.registry)
    return [
        ModelOut(
            name=row.spec.name,
            role=row.spec.role.value,
            title=row.spec.title,
            licence=row.spec.licence,
            source=row.spec.source,
            paper=row.spec.paper,
            dimension=row.spec.dimension,
            notes=row.spec.notes,
            versions=[VersionOut.model_validate(version) for version in row.versions],
        )
        for row in rows
    ]


def model(service: Service, name: str) -> ModelOut:
    """Raises Problem 404 if this release knows no such model."""
    found = next((m for m in models(service) if m.name == name), None)
    if found is None:
        raise not_found(f"A model {name!r}")
    return found


def promote_to_champion(service: Service, name: str, version: int, force: bool = False) -> ModelOut:
    """Promote a version that is on this machine.

    Raises:
        Problem: 404 if there is no such model or version.
        PromotionRefused: if it would replace one that is at work, and is measured worse, or not at all.
    """
    from tasks.versioning.upgrade import start  # noqa: PLC0415 - imports torch

    there = [known.version for known in model(service, name).versions]
    if version not in there:
        numbers = ", ".join(map(str, there)) or "none"
        raise Problem(
            404, "not-found", "There is no such version", f"{name} has no version {version}; there are: {numbers}."
        )
    start(service.catalog, service.settings, f"{name}@{version}", force)
    return model(service, name)


def roll_back(service: Service, name: str) -> RolledBackOut:
    """Go back to the version that was replaced."""
    from tasks.versioning.upgrade import rollback  # noqa: PLC0415 - imports torch

    replaced, serving = rollback(service.catalog, service.settings, name)
    return RolledBackOut(replaced=replaced, serving=serving)


def upgrade_of(service: Service) -> UpgradeOut | None:
    """The latest upgrade; None if there has been none."""
    from tasks.versioning.upgrade import NoUpgrade, progress  # noqa: PLC0415 - imports torch

    try:
        with service.catalog.read() as session:
            return UpgradeOut.model_validate(progress(session))
    except NoUpgrade:
        return None


def _upgrade(service: Service) -> UpgradeOut:
    """It is counted over all faces: for all who watch together, at most once a second."""
    found = service.cached("upgrade", lambda: upgrade_of(service), events.SECONDS / 2)
    if found is None:
        raise not_found("An upgrade")
    return found


def backfill(service: Service, who: str) -> JobOut:
    """Start the backfill of the upgrade that is under way.

    Raises:
        NoUpgrade: if none is.
        JobRunning: if it is at work already.
    """
    from tasks.versioning.upgrade import under_way  # noqa: PLC0415 - imports torch

    with service.catalog.read() as session:
        under_way(session)
    return JobOut.model_validate(jobs.start(service, "backfill", "the catalog", who, ["backfill", "run", "--json"]))
