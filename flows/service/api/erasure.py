"""Erasure, and the audit log of who searched, decided and erased."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from flows.service import erasing, paging
from flows.service.access import Admin, Here
from flows.service.api.images import Cursor
from flows.service.dto import AlikeOut, AuditOut, CertificateOut, ForgottenOut, Id, Page, PlaceOut, PlanOut
from flows.service.idempotency import IdempotentRoute
from flows.service.orders import ErasureIn, ErasureOrder
from flows.service.upload import PHOTO_BODY, Photo
from infra.catalog.custody import audit, places
from tasks.custody import erase, outside

router = APIRouter(route_class=IdempotentRoute)
Few = Annotated[int, Query(ge=1, le=500)]


@router.post("/erasures/plan", tags=["erasure"])
def plan_erasure(service: Here, who: Admin, asked: ErasureIn) -> PlanOut:
    """What would go. Nothing is changed."""
    return erasing.plan(service, asked)


@router.post("/erasures/plan/photo", tags=["erasure"], openapi_extra=PHOTO_BODY)
def plan_erasure_by_photo(
    service: Here,
    who: Admin,
    photo: Photo,
    least: Annotated[
        float | None, Query(ge=-1, le=1, description="From which similarity on a face is meant; else calibrated.")
    ] = None,
) -> list[AlikeOut]:
    """What would go of each person in a photograph, which is not kept. Carry it out by its faces, with `by` 'photo'."""
    return erasing.plan_by_photo(service, who, photo, least).faces


@router.post("/erasures", status_code=201, tags=["erasure"])
def carry_out_erasure(service: Here, who: Admin, order: ErasureOrder) -> CertificateOut:
    """Erase what the plan showed, for good."""
    return erasing.carry_out(service, who.name, order)


@router.get("/erasures", tags=["erasure"])
def list_erasures(service: Here, who: Admin, after: Cursor = None, limit: Few = 50) -> Page[CertificateOut]:
    """Certificates, the latest first."""
    place = paging.place(after)
    with service.catalog.read() as session:
        found = erase.certificates(session, limit + 1, None if place is None else place[0])
    following = paging.cursor([found[limit - 1].erasure_id]) if len(found) > limit else None
    return Page(items=[CertificateOut.model_validate(row) for row in found[:limit]], next=following)


@router.get("/places", tags=["erasure"])
def list_places(service: Here, who: Admin) -> Page[PlaceOut]:
    """Where content lies outside of the catalog, and what waits there to be removed."""
    with service.catalog.read() as session:
        return Page(items=[PlaceOut.model_validate(place) for place in places.every(session)])


@router.delete("/places/{place_id}", tags=["erasure"])
def forget_place(service: Here, who: Admin, place_id: Annotated[Id, Path()]) -> ForgottenOut:
    """Say that a place is no more: certificates stop waiting for it, and count what was to be removed there."""
    return ForgottenOut(place_id=place_id, unreached=outside.forget_place(service.catalog, who.name, place_id))


@router.get("/audit", tags=["audit"])
def list_audit(
    service: Here,
    who: Admin,
    action: Annotated[str | None, Query(max_length=50, description="Its beginning: search, decide, erase.")] = None,
    after: Cursor = None,
    limit: Few = 100,
) -> Page[AuditOut]:
    """Who searched, decided and erased, the latest first."""
    place = paging.place(after)
    with service.catalog.read() as session:
        found = audit.entries(session, limit + 1, action, None if place is None else place[0])
    following = paging.cursor([found[limit - 1].entry_id]) if len(found) > limit else None
    return Page(items=[AuditOut.model_validate(entry) for entry in found[:limit]], next=following)
