"""Health and readiness, and who is asking."""

from fastapi import APIRouter, Response
from sqlalchemy import select

from flows.service.access import Here, Reader
from flows.service.dto import HealthOut, Me, ReadyOut
from infra.catalog.tables.schema import Collection

router = APIRouter()


@router.get("/health", tags=["health"])
async def health() -> HealthOut:
    """Whether the service answers at all. Needs no token, and no thread that a long answer could have taken."""
    return HealthOut(status="ok")


@router.get("/ready", tags=["health"], responses={503: {"model": ReadyOut}})
def ready(service: Here, response: Response) -> ReadyOut:
    """Whether the catalog can be asked; 503 if not. Needs no token, and tells nothing of what is in it."""
    try:
        with service.catalog.read() as session:
            session.execute(select(Collection.id).limit(1))
        checks = {"catalog": "ok"}
    except Exception as error:
        checks = {"catalog": type(error).__name__}
    well = all(state == "ok" for state in checks.values())
    response.status_code = 200 if well else 503
    return ReadyOut(ready=well, checks=checks)


@router.get("/me", tags=["access"])
def me(who: Reader) -> Me:
    """Whose token this is."""
    return Me(name=who.name, role=who.role.label)
