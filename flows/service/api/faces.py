"""Faces: crops, estimates, restorations, and who looks alike."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from flows.service import paging, pictures, searching
from flows.service.access import Here, Reader
from flows.service.api.images import PICTURE, Cursor, Limit
from flows.service.dto import AnswerOut, FaceOut, Id, Page
from flows.service.faces import face_out
from flows.service.problems import LARGEST_ID, not_found
from flows.service.state import Service
from infra.catalog import collections
from infra.catalog.queries import photographs, views
from infra.catalog.versioning.versions import serving

router = APIRouter(prefix="/faces", tags=["faces"])
FaceId = Annotated[Id, Path()]


@router.get("")
def list_faces(
    service: Here,
    who: Reader,
    collection: Annotated[str | None, Query(max_length=100)] = None,
    identity: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
    min_quality: Annotated[float, Query(ge=0, le=1)] = 0.0,
    after: Cursor = None,
    limit: Limit = 50,
) -> Page[FaceOut]:
    """Faces in the order of their ids, of photographs that are still in their collection."""
    place = paging.place(after)
    with service.catalog.read() as session:
        if collection is not None:
            collections.by_name(session, collection)
        after_id = 0 if place is None else place[0]
        found = views.faces(session, collection, identity, min_quality, limit + 1, after_id)
    following = paging.cursor([found[limit - 1].face_id]) if len(found) > limit else None
    return Page(items=[face_out(view) for view in found[:limit]], next=following)


@router.get("/{face_id}")
def show_face(service: Here, who: Reader, face_id: FaceId) -> FaceOut:
    """One face with everything derived from it."""
    return face_of(service, face_id)


def face_of(service: Service, face_id: int) -> FaceOut:
    """Raises Problem 404 if there is no such face."""
    with service.catalog.read() as session:
        version = serving(session)
        view = views.faces_by_id(session, [face_id], None if version is None else version.id).get(face_id)
        image = photographs.photograph_of_face(session, face_id)
    if view is None:
        raise not_found(f"Face {face_id}")
    return face_out(view, image)


@router.get("/{face_id}/crop", response_class=Response, responses=PICTURE)  # type: ignore[arg-type]
def face_crop(service: Here, who: Reader, request: Request, face_id: FaceId) -> Response:
    """The face as photographed."""
    return pictures.crop(service, request, face_id)


@router.get("/{face_id}/restored", response_class=Response, responses=PICTURE | {200: {"content": {"image/png": {}}}})  # type: ignore[arg-type]
def face_restored(service: Here, who: Reader, request: Request, face_id: FaceId) -> Response:
    """The face as restored: detail invented by a model, also where it was rejected. The file says so itself."""
    return pictures.crop(service, request, face_id, restored=True)


@router.get("/{face_id}/neighbours")
def face_neighbours(
    service: Here, who: Reader, face_id: FaceId, limit: Annotated[int, Query(ge=1, le=100)] = 12
) -> AnswerOut:
    """The faces that look most like this one, with the probability of showing the same person."""
    return searching.by_face(service, who, face_id, limit)
