"""Schedules: when collections are processed by themselves."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from flows.service.access import Admin, Here, Reader
from flows.service.dto import Page, ScheduleOut
from flows.service.idempotency import IdempotentRoute
from flows.service.orders import ScheduleIn
from flows.service.problems import not_found
from flows.service.state import Service
from tasks.nights import schedules

router = APIRouter(prefix="/schedules", tags=["schedules"], route_class=IdempotentRoute)
Name = Annotated[str, Path(max_length=100)]


@router.get("")
def list_schedules(service: Here, who: Reader) -> Page[ScheduleOut]:
    """All schedules, by name. They run while 'visage serve-schedules' does."""
    return Page(items=[ScheduleOut.model_validate(row) for row in schedules.list_schedules(service.catalog)])


@router.post("", status_code=201)
def add_schedule(service: Here, who: Admin, new: ScheduleIn) -> ScheduleOut:
    """Process a collection at the times of a cron expression."""
    row = schedules.add_schedule(service.catalog, new.name, new.collection, new.cron, new.timezone, new.catch_up)
    return ScheduleOut.model_validate(row)


@router.post("/{name}/pause")
def pause_schedule(service: Here, who: Admin, name: Name) -> ScheduleOut:
    """Let a schedule rest."""
    schedules.pause_schedule(service.catalog, name)
    return _one(service, name)


@router.post("/{name}/resume")
def resume_schedule(service: Here, who: Admin, name: Name) -> ScheduleOut:
    """Let a schedule go on from now."""
    schedules.resume_schedule(service.catalog, name)
    return _one(service, name)


@router.delete("/{name}", status_code=204, response_class=Response)
def remove_schedule(service: Here, who: Admin, name: Name) -> Response:
    """Remove a schedule; its runs stay."""
    schedules.remove_schedule(service.catalog, name)
    return Response(status_code=204)


def _one(service: Service, name: str) -> ScheduleOut:
    found = next((row for row in schedules.list_schedules(service.catalog) if row.name == name), None)
    if found is None:
        raise not_found(f"A schedule {name!r}")
    return ScheduleOut.model_validate(found)
