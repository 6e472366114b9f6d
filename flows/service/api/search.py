"""Search by photograph."""

from typing import Annotated

from fastapi import APIRouter, Query

from flows.service import searching
from flows.service.access import Here, Reader
from flows.service.dto import AnswerOut
from flows.service.upload import PHOTO_BODY, Photo

router = APIRouter(prefix="/search", tags=["search"])


@router.post("", openapi_extra=PHOTO_BODY)
def search_by_photo(
    service: Here, who: Reader, photo: Photo, limit: Annotated[int, Query(ge=1, le=100)] = 12
) -> list[AnswerOut]:
    """Who looks like this? One answer for each face in the photograph, which is not kept."""
    return searching.by_photo(service, who, photo, limit).answers
