"""The wall of photographs, and each of them."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Request, Response

from flows.service import paging
from flows.service.access import Here
from flows.service.api.images import Cursor, Wanted
from flows.service.dto import Id
from flows.service.page.render import Visitor, page
from flows.service.problems import not_found
from flows.service.state import Service
from infra.catalog import collections
from infra.catalog.queries import photographs
from infra.catalog.queries.language import LONGEST, InvalidQuestion, read_date
from infra.catalog.queries.photographs import PhotoFilter, PhotoView
from infra.catalog.queries.views import image_counts
from infra.catalog.tables.schema import ImageStatus
from infra.catalog.work import nights

router = APIRouter(include_in_schema=False)
TILES = 60


@dataclass(frozen=True)
class Standing:
    """How many photographs of each status every collection has."""

    collections: dict[str, dict[str, int]]

    def count(self, status: ImageStatus, collection: str | None) -> int:
        """Of one collection, or of all."""
        return sum(counts[status] for name, counts in self.collections.items() if collection in (None, name))


@router.get("/photographs")
def wall(request: Request, service: Here, who: Visitor, wanted: Wanted, after: Cursor = None) -> Response:
    """Photographs with their faces outlined; the address holds the filters and the place."""
    place, misread, found = paging.place(after), _misread(wanted), list[PhotoView]()
    with service.catalog.read() as session:
        try:
            if not misread:
                found = photographs.photographs(session, wanted, None if place is None else place[0], TILES + 1)
        except InvalidQuestion as error:
            misread["question"] = str(error)
        reasons = nights.reasons(session, [photo.image_id for photo in found if photo.status == ImageStatus.FAILED])
    query = _query(wanted)
    more = None
    if len(found) > TILES:
        more = _address({**query, "after": paging.cursor([found[TILES - 1].image_id])})
    standing = service.cached("standing", lambda: _standing(service))
    labels = service.cached("labels", lambda: _labels(service))
    return page(
        request,
        who,
        "wall.html",
        status=422 if misread else 200,
        misread=misread,
        photos=found[:TILES],
        more=more,
        after=after,
        start=_address(query),
        query=f"?{urlencode(query)}" if query else "",
        wanted=wanted,
        reasons=reasons,
        active=bool(query.keys() - {"order"}),
        narrowed=bool(query.keys() - {"order", "collection"}) or wanted.collection not in (None, *standing.collections),
        chips=_chips(wanted, query),
        collections=list(standing.collections),
        total=standing.count(ImageStatus.DONE, wanted.collection),
        failed=standing.count(ImageStatus.FAILED, wanted.collection),
        pending=standing.count(ImageStatus.PENDING, wanted.collection),
        all_failed=_address(_query(PhotoFilter(collection=wanted.collection, status=ImageStatus.FAILED))),
        labels=labels,
        longest=LONGEST,
    )


@router.get("/photographs/{image_id}")
def photograph(
    request: Request, service: Here, who: Visitor, wanted: Wanted, image_id: Annotated[Id, Path()]
) -> Response:
    """One photograph, and those before and after it on the wall."""
    with service.catalog.read() as session:
        photo = photographs.photograph(session, image_id)
        if photo is None:
            raise not_found(f"Photograph {image_id}")
        before, later = photographs.neighbours(session, wanted, image_id)
        failures = nights.failures_of_image(session, image_id) if photo.status == ImageStatus.FAILED else []
    query = _query(wanted)
    return page(
        request,
        who,
        "photograph.html",
        photo=photo,
        before=before,
        later=later,
        failures=failures,
        query=f"?{urlencode(query)}" if query else "",
    )


def _misread(wanted: PhotoFilter) -> dict[str, str]:
    """What cannot be read of the days that are asked for, by the field that it stands in."""
    said = {}
    for field, day in (("taken_from", wanted.taken_from), ("taken_to", wanted.taken_to)):
        try:
            if day:
                read_date(day)
        except InvalidQuestion as error:
            said[field] = str(error)
    return said


def _standing(service: Service) -> Standing:
    with service.catalog.read() as session:
        return Standing({there.name: image_counts(session, there.id) for there in collections.every(session)})


def _labels(service: Service) -> list[tuple[str, str]]:
    with service.catalog.read() as session:
        return photographs.labels(session)


def _query(wanted: PhotoFilter) -> dict[str, str]:
    """The filters as the address has them; what is the rule is left out."""
    values = {
        "collection": wanted.collection,
        "person": wanted.person,
        "text": wanted.text,
        "faces": wanted.faces,
        "min_quality": wanted.min_quality,
        "label": None if wanted.label is None else ":".join(wanted.label),
        "taken_from": wanted.taken_from,
        "taken_to": wanted.taken_to,
        "question": wanted.question,
        "status": None if wanted.status is ImageStatus.DONE else wanted.status.value,
        "reason": wanted.reason,
        "order": None if wanted.order == "newest" else wanted.order,
    }
    return {name: str(value) for name, value in values.items() if value is not None}


def _address(query: dict[str, str]) -> str:
    return f"/photographs?{urlencode(query)}" if query else "/photographs"


def _chips(wanted: PhotoFilter, query: dict[str, str]) -> list[tuple[str, str]]:
    """What is filtered by, and the address without it."""
    words = {
        "collection": wanted.collection,
        "person": f"person {wanted.person}",
        "text": f"name has {wanted.text!r}",
        "faces": f"{wanted.faces} faces",
        "min_quality": f"quality from {wanted.min_quality}",
        "label": "" if wanted.label is None else " ".join(wanted.label).replace("_", " "),
        "taken_from": f"from {wanted.taken_from}",
        "taken_to": f"to {wanted.taken_to}",
        "question": wanted.question,
        "status": wanted.status.value,
        "reason": (wanted.reason or "").replace("_", " "),
    }
    return [
        (str(text), _address({name: value for name, value in query.items() if name != chip}))
        for chip, text in words.items()
        if chip in query
    ]
