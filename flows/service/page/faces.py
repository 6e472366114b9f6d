"""A face, and those that look like it."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from flows.service import searching
from flows.service.access import Here
from flows.service.api.faces import face_of
from flows.service.dto import Id
from flows.service.page.render import Visitor, page
from infra.catalog.queries import photographs
from infra.catalog.tables.schema import Face
from tasks.probe import NothingToSearch
from tasks.search import UnknownFace

router = APIRouter(include_in_schema=False)
NEIGHBOURS = 18
MEASURED = "measured@"  # what is computed of a face without learning


@router.get("/faces/{face_id}")
def face(request: Request, service: Here, who: Visitor, face_id: Annotated[Id, Path()]) -> Response:
    """All that is known of a face."""
    shown = face_of(service, face_id)
    with service.catalog.read() as session:
        photo = None if shown.image_id is None else photographs.photograph(session, shown.image_id)
    measured = [a for a in shown.attributes if a.model.startswith(MEASURED)]
    estimates = [a for a in shown.attributes if not a.model.startswith(MEASURED)]
    return page(request, who, "face.html", face=shown, photo=photo, estimates=estimates, measured=measured)


@router.get("/faces/{face_id}/neighbours")
def neighbours(request: Request, service: Here, who: Visitor, face_id: Annotated[Id, Path()]) -> Response:
    """A part of the face's page, which takes longer than the rest. Why a face cannot be compared is said in its place."""
    try:
        answer = searching.by_face(service, who, face_id, NEIGHBOURS)
    except (UnknownFace, NothingToSearch):
        with service.catalog.read() as session:
            there = session.get(Face, face_id)
        if there is None:
            raise
        return page(request, who, "not_compared.html", expired=there.embeddings_expired_at is not None)
    return page(request, who, "matches.html", answer=answer)
