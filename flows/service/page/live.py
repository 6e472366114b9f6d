"""How far everything gets on that a page shows at work: one answer for all of it, asked for while somebody looks.

No stream of events: each would hold one of the six connections that a browser opens to a host, over all of its tabs.
"""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from flows.service import events
from flows.service.access import Here
from flows.service.api.models import upgrade_of
from flows.service.api.runs import run_of
from flows.service.dto import Dto, Id, UpgradeOut
from flows.service.page.render import Visitor
from infra.catalog.queries import photographs
from infra.catalog.service import jobs
from infra.catalog.tables.service import JobStatus
from infra.catalog.tables.upgrades import UpgradeStatus

router = APIRouter(include_in_schema=False)
MOST = 100  # of each kind on one page
Ids = Annotated[list[Id], Query(max_length=MOST)]


class Live(Dto):
    """How far work has got; `total` is None where nothing is counted. `over`: the page has something else to show now."""

    over: bool
    done: int = 0
    total: int | None = None
    seconds_left: float | None = None


@router.get("/live")
def live(service: Here, who: Visitor, run: Ids = [], job: Ids = [], upgrade: bool = False) -> dict[str, Live]:  # noqa: B006
    """By what was asked for, as the address has it: 'run=3'."""
    with service.catalog.read() as session:
        found = {f"run={n}": _run(session, n) for n in run} | {f"job={n}": _job(session, n) for n in job}
    if upgrade:
        found["upgrade=true"] = _upgrade(service.cached("upgrade", lambda: upgrade_of(service), events.SECONDS))
    return found


def _run(session: Session, run_id: int) -> Live:
    found = photographs.progress(session, run_id)
    if found is None or found.status in events.OVER:
        return Live(over=True)
    return Live(over=False, done=found.done, total=found.total)


def _job(session: Session, job_id: int) -> Live:
    found = jobs.job(session, job_id)
    return Live(over=found is None or found.status != JobStatus.RUNNING or run_of(session, found) is not None)


def _upgrade(found: UpgradeOut | None) -> Live:
    if found is None or found.status != UpgradeStatus.BACKFILLING:
        return Live(over=True)
    done = found.faces - found.missing - found.given_up
    return Live(over=False, done=done, total=found.faces, seconds_left=found.seconds_left)
