"""The flow behind every schedule. Prefect rings; what is due, and whether it is still to be done, the catalog says."""

from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.nightly import work
from infra.catalog.database import Catalog
from infra.catalog.work import schedules
from infra.catalog.work.runs import RunInProgress, SlotTaken
from infra.settings import load_settings
from tasks.nights.schedules import due, give_up


@flow(name="scheduled", flow_run_name="{schedule}", persist_result=False)
def scheduled(schedule: str) -> dict[str, Any] | State[Any]:
    """Run what a schedule has due. Returns the run's counts, or a state that says why nothing was done."""
    now = max(datetime.now(UTC), runtime.flow_run.scheduled_start_time or datetime.now(UTC))  # clocks differ
    with closing(Catalog(load_settings().catalog_url)) as catalog:
        with catalog.read() as session:
            row = schedules.by_name(session, schedule)
            collection = next(c.name for s, c in schedules.every(session) if s.id == row.id)
            found = due(session, row, now)
        if found is None:
            return Completed(name="NothingDue", message=f"{schedule}: nothing is due; another run has seen to it.")
        if not found.on_time and not row.catch_up:
            give_up(catalog, row, found)
            return Completed(name="Missed", message=f"{schedule}: {found.slot.at:%Y-%m-%d %H:%M} UTC has passed.")
    try:
        return work(collection, slot=found.slot)
    except SlotTaken as taken:
        return Completed(name="NothingDue", message=str(taken))
    except RunInProgress as busy:
        return Completed(name="Skipped", message=str(busy))
