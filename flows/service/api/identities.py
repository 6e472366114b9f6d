"""Identities: people, as far as one embedding model can tell, and what people decided about them."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from flows.service import paging
from flows.service.access import Here, Reader
from flows.service.api.images import Cursor, Limit
from flows.service.dto import Id, IdentityOut, Page
from flows.service.problems import not_found
from infra.catalog import portraits
from infra.catalog.portraits import PersonView

router = APIRouter(prefix="/identities", tags=["identities"])


@router.get("")
def list_identities(
    service: Here,
    who: Reader,
    min_faces: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    named: bool | None = None,
    text: Annotated[str | None, Query(max_length=200, description="Part of the name.")] = None,
    after: Cursor = None,
    limit: Limit = 50,
) -> Page[IdentityOut]:
    """People by the number of their faces, most first."""
    place = paging.place(after, 2)
    with service.catalog.read() as session:
        found = portraits.people(session, min_faces, named, text or None, place, limit + 1)
    following = None
    if len(found) > limit:
        last = found[limit - 1]
        following = paging.cursor([last.faces, last.identity_id])
    return Page(items=[person_out(view) for view in found[:limit]], next=following)


@router.get("/{identity_id}")
def show_identity(service: Here, who: Reader, identity_id: Annotated[Id, Path()]) -> IdentityOut:
    """One person."""
    with service.catalog.read() as session:
        view = portraits.person(session, identity_id)
    if view is None:
        raise not_found(f"Identity {identity_id}")
    return person_out(view)


def person_out(view: PersonView) -> IdentityOut:
    """A person as the API gives them."""
    return IdentityOut(
        id=view.identity_id,
        name=view.name,
        faces=view.faces,
        photos=view.photos,
        cover=None if view.cover_face_id is None else f"/api/v1/faces/{view.cover_face_id}/crop",
    )
