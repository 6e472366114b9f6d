"""Images: photographs with the boxes of their faces."""

from functools import partial
from typing import Annotated, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from flows.service import paging, pictures
from flows.service.access import Here, Reader
from flows.service.dto import BoxOut, Id, ImageOut, Page
from flows.service.problems import LARGEST_ID, Problem, not_found
from infra.catalog.queries import photographs
from infra.catalog.queries.language import LONGEST
from infra.catalog.queries.photographs import Order, PhotoFilter, PhotoView
from infra.catalog.tables.schema import ImageStatus
from tasks.thumbnails import Size

router = APIRouter(prefix="/images", tags=["images"])
Limit = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str | None, Query(max_length=200, description="'next' of the page before.")]
Text = Annotated[str | None, Query(max_length=200)]
PICTURE = {200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}}
PICTURE[304] = {"description": "Not modified"}  # type: ignore[dict-item]


def photo_filter(
    collection: Text = None,
    person: Annotated[int | None, Query(ge=1, le=LARGEST_ID, description="Identity whose face is in it.")] = None,
    text: Annotated[str | None, Query(max_length=200, description="Part of the key.")] = None,
    faces: Literal["with", "without"] | None = None,
    min_quality: Annotated[float | None, Query(ge=0, le=1)] = None,
    label: Annotated[str | None, Query(max_length=200, description="attribute:label, as expression:happy.")] = None,
    taken_from: Annotated[str | None, Query(max_length=30, description="A year, month or day: 1923, 1923-04.")] = None,
    taken_to: Annotated[str | None, Query(max_length=30)] = None,
    question: Annotated[
        str | None, Query(max_length=LONGEST, description="As 'visage query' reads it; some face answers to it.")
    ] = None,
    status: ImageStatus = ImageStatus.DONE,
    order: Order = "newest",
    reason: Annotated[str | None, Query(max_length=100, description="Of a failure that stands; see status.")] = None,
) -> PhotoFilter:
    """Read the filters of a wall from the address."""
    pair = None
    if label:
        name, colon, value = label.partition(":")
        if not colon:
            raise Problem(422, "label", "Not a label", f"{label!r}: write attribute:label, as in expression:happy.")
        pair = (name, value)
    return PhotoFilter(
        collection or None,
        person,
        text or None,
        faces,
        min_quality,
        pair,
        taken_from or None,
        taken_to or None,
        (question or "").strip() or None,
        status,
        order,
        reason or None,
    )


Wanted = Annotated[PhotoFilter, Depends(photo_filter)]


@router.get("")
def list_images(service: Here, who: Reader, wanted: Wanted, after: Cursor = None, limit: Limit = 50) -> Page[ImageOut]:
    """Photographs, each of its bytes once, in an order that does not move while others come and go."""
    place = paging.place(after)
    with service.catalog.read() as session:
        found = photographs.photographs(session, wanted, None if place is None else place[0], limit + 1)
    following = paging.cursor([found[limit - 1].image_id]) if len(found) > limit else None
    return Page(items=[image_out(view) for view in found[:limit]], next=following)


@router.get("/{image_id}")
def show_image(service: Here, who: Reader, image_id: Annotated[Id, Path()]) -> ImageOut:
    """One photograph."""
    with service.catalog.read() as session:
        view = photographs.photograph(session, image_id)
    if view is None:
        raise not_found(f"Image {image_id}")
    return image_out(view)


@router.get("/{image_id}/picture", response_class=Response, responses=PICTURE)  # type: ignore[arg-type]
async def image_picture(
    service: Here,
    who: Reader,
    request: Request,
    image_id: Annotated[Id, Path()],
    size: Annotated[Size, Query(description="Pixels of the longer side.")] = Size.WALL,
) -> Response:
    """The photograph as JPEG, upright, in sRGB."""
    draw = partial(pictures.photograph, service, request, image_id, size)
    return await to_thread.run_sync(draw, limiter=service.drawing)


def image_out(view: PhotoView) -> ImageOut:
    """A photograph as the API gives it."""
    return ImageOut(
        id=view.image_id,
        collection=view.collection,
        key=view.key,
        others=view.others,
        status=view.status,
        width=view.width,
        height=view.height,
        taken_at=view.taken_at,
        faces=[BoxOut.model_validate(face) for face in view.faces],
        picture=None if view.sha256 is None else f"/api/v1/images/{view.image_id}/picture",
    )
