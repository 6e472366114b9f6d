"""Identities: people, as far as one embedding model can tell, and what people decide about them."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy.orm import Session

from flows.service import paging
from flows.service.access import Curator, Here, Reader
from flows.service.api.images import Cursor, Limit
from flows.service.dto import DecidedOut, DecisionOut, Id, IdentityOut, Page, ProposalOut
from flows.service.idempotency import IdempotentRoute
from flows.service.orders import FacesIn, NameIn, OtherIn, PairIn
from flows.service.problems import LARGEST_ID, not_found
from flows.service.state import Service
from infra.catalog.queries import portraits
from infra.catalog.queries.portraits import PersonView
from tasks.identities import decisions
from tasks.identities.decisions import Decided

router = APIRouter(route_class=IdempotentRoute)
IdentityId = Annotated[Id, Path()]


@router.get("/identities", tags=["identities"])
def list_identities(
    service: Here,
    who: Reader,
    min_faces: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    named: bool | None = None,
    text: Annotated[str | None, Query(max_length=200, description="Part of the name.")] = None,
    after: Cursor = None,
    limit: Limit = 50,
) -> Page[IdentityOut]:
    """People by the number of their faces, most first; whose number changes between two pages may be left out or come twice."""
    place = paging.place(after, 2)
    with service.catalog.read() as session:
        found = portraits.people(session, min_faces, named, text or None, place, limit + 1)
    following = None
    if len(found) > limit:
        last = found[limit - 1]
        following = paging.cursor([last.faces, last.identity_id])
    return Page(items=[person_out(view) for view in found[:limit]], next=following)


@router.get("/identities/{identity_id}", tags=["identities"])
def show_identity(service: Here, who: Reader, identity_id: IdentityId) -> IdentityOut:
    """One person."""
    with service.catalog.read() as session:
        view = portraits.person(session, identity_id)
    if view is None:
        raise not_found(f"Identity {identity_id}")
    return person_out(view)


@router.put("/identities/{identity_id}/name", tags=["decisions"])
def name_identity(service: Here, who: Curator, identity_id: IdentityId, body: NameIn) -> DecidedOut:
    """Call a person something; the name stays through merges, upgrades and later runs."""
    return decide(service, lambda session: decisions.name(session, who.name, identity_id, body.name))


@router.post("/identities/{identity_id}/confirm", tags=["decisions"])
def confirm_faces(service: Here, who: Curator, identity_id: IdentityId, body: FacesIn) -> DecidedOut:
    """Say that faces are this person: they move there, and stay."""
    return decide(service, lambda session: decisions.confirm(session, who.name, body.faces, identity_id))


@router.post("/identities/{identity_id}/reject", tags=["decisions"])
def reject_faces(service: Here, who: Curator, identity_id: IdentityId, body: FacesIn) -> DecidedOut:
    """Say that faces are not this person: they leave, and never return."""
    return decide(service, lambda session: decisions.reject(session, who.name, body.faces, identity_id))


@router.post("/identities/{identity_id}/merge", tags=["decisions"])
def merge_identity(service: Here, who: Curator, identity_id: IdentityId, body: OtherIn) -> DecidedOut:
    """Say that another identity is the same person; this one's id and name remain."""
    return decide(service, lambda session: decisions.merge(session, who.name, identity_id, body.other))


@router.post("/identities/{identity_id}/ignore", tags=["decisions"])
def ignore_identity(service: Here, who: Curator, identity_id: IdentityId) -> DecidedOut:
    """Leave a person out of lists and proposals."""
    return decide(service, lambda session: decisions.ignore_identity(session, who.name, identity_id))


@router.post("/faces/split", tags=["decisions"])
def split_faces(service: Here, who: Curator, body: FacesIn) -> DecidedOut:
    """Say that some faces of an identity are somebody else: they become an identity of their own."""
    return decide(service, lambda session: decisions.split(session, who.name, body.faces))


@router.post("/faces/ignore", tags=["decisions"])
def ignore_faces(service: Here, who: Curator, body: FacesIn) -> DecidedOut:
    """Leave faces out of all identities: a statue, a poster, a stranger."""
    return decide(service, lambda session: decisions.ignore(session, who.name, body.faces))


@router.get("/proposals", tags=["decisions"])
def list_proposals(service: Here, who: Reader, after: Cursor = None, limit: Limit = 50) -> Page[ProposalOut]:
    """Merges for a person to decide, most similar first, with the pairs of faces that speak for them."""
    place = paging.ranked_place(after)
    with service.catalog.read() as session:
        found = decisions.proposals(session, limit + 1, place)
    following = None
    if len(found) > limit:
        last = found[limit - 1]
        following = paging.cursor([last.similarity, last.identity_a, last.identity_b])
    return Page(items=[ProposalOut.model_validate(p) for p in found[:limit]], next=following)


@router.post("/proposals/accept", tags=["decisions"])
def accept_proposal(service: Here, who: Curator, body: PairIn) -> DecidedOut:
    """The two are one person."""
    return decide(service, lambda session: decisions.accept(session, who.name, body.identity_a, body.identity_b))


@router.post("/proposals/decline", tags=["decisions"])
def decline_proposal(service: Here, who: Curator, body: PairIn) -> DecidedOut:
    """The two are different people: they are never merged, nor proposed again."""
    return decide(service, lambda session: decisions.decline(session, who.name, body.identity_a, body.identity_b))


@router.get("/decisions", tags=["decisions"])
def list_decisions(
    service: Here,
    who: Reader,
    identity: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
    after: Cursor = None,
    limit: Limit = 50,
) -> Page[DecisionOut]:
    """What people decided, the latest first."""
    place = paging.place(after)
    with service.catalog.read() as session:
        found = decisions.history(session, limit + 1, identity, None if place is None else place[0])
    following = paging.cursor([found[limit - 1].decision_id]) if len(found) > limit else None
    return Page(items=[DecisionOut.model_validate(d) for d in found[:limit]], next=following)


@router.post("/decisions/{decision_id}/undo", tags=["decisions"])
def undo_decision(service: Here, who: Curator, decision_id: IdentityId) -> DecidedOut:
    """Take a decision back."""
    return decide(service, lambda session: decisions.undo(session, who.name, decision_id))


def decide(service: Service, decision: Callable[[Session], Decided]) -> DecidedOut:
    """Carry a decision out in a transaction of its own."""
    with service.catalog.write() as session:
        return DecidedOut.model_validate(decision(session))


def person_out(view: PersonView) -> IdentityOut:
    """A person as the API gives them."""
    return IdentityOut(
        id=view.identity_id,
        name=view.name,
        faces=view.faces,
        photos=view.photos,
        cover=None if view.cover_face_id is None else f"/api/v1/faces/{view.cover_face_id}/crop",
    )
