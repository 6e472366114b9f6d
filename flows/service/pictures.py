"""Pictures by database id alone, with ETags: nobody names a path, and what is erased is gone at the next look."""

import hashlib

from fastapi import Request, Response

from flows.service.problems import Problem, not_found
from flows.service.state import Service
from infra.catalog.queries import photographs, views
from infra.storage import ObjectMissing, StoreError
from tasks.thumbnails import Size, keep, thumbnail, to_keep

MAX_CROP_BYTES = 20 * 2**20


def photograph(service: Service, request: Request, image_id: int, size: Size) -> Response:
    """A photograph as JPEG, at most `size` pixels wide and high."""
    with service.catalog.read() as session:
        view = photographs.photograph(session, image_id)
    if view is None or view.sha256 is None:
        raise not_found(f"A picture of image {image_id}")
    etag = _etag("photo", view.sha256, str(size.value))
    if _known(request, etag):
        return _not_modified(etag)
    from tasks.decode import DecodeFailure  # noqa: PLC0415 - by now it is imported anyway

    try:
        data = thumbnail(service.settings, view.collection_uri, view.key, view.etag, view.sha256, size)
    except (StoreError, DecodeFailure, MemoryError) as error:
        raise Problem(404, "picture-gone", "The photograph cannot be shown", str(error)) from error
    if not _still_there(service, image_id, view.sha256, size, data):
        raise not_found(f"A picture of image {image_id}")
    return Response(data, media_type="image/jpeg", headers={"ETag": etag})


def _still_there(service: Service, image_id: int, sha256: str, size: Size, data: bytes) -> bool:
    """Whether no erasure has come since the photograph was looked for; keeps its picture, if so."""
    if not to_keep(service.settings, sha256, size):
        with service.catalog.read() as session:
            return photographs.digest(session, image_id) == sha256
    with service.catalog.write() as session:
        still = photographs.digest(session, image_id, hold=True) == sha256
        if still:
            keep(service.settings, sha256, size, data)
        return still


def crop(service: Service, request: Request, face_id: int, restored: bool = False) -> Response:
    """A face as photographed, or as restored: then its detail is invented, and a header says so."""
    with service.catalog.read() as session:
        view = views.faces_by_id(session, [face_id], None).get(face_id)
    if view is None or (restored and view.restoration is None):
        raise not_found(f"{'A restored crop' if restored else 'A crop'} of face {face_id}")
    key = view.restoration.crop_key if restored and view.restoration is not None else view.crop_key
    etag = _etag("crop", key)
    if _known(request, etag):
        return _not_modified(etag)
    try:
        data = service.crops.read(key, MAX_CROP_BYTES).data
    except ObjectMissing as error:
        raise Problem(404, "picture-gone", "The crop is not there any more", str(error)) from error
    kind = "image/png" if key.endswith(".png") else "image/jpeg"
    marked = {"X-Visage-Synthetic": "true"} if restored else {}
    return Response(data, media_type=kind, headers={"ETag": etag, **marked})


def _etag(*parts: str) -> str:
    return f'"{hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]}"'


def _known(request: Request, etag: str) -> bool:
    given = request.headers.get("if-none-match", "")
    return etag in [tag.strip().removeprefix("W/") for tag in given.split(",")]


def _not_modified(etag: str) -> Response:
    return Response(status_code=304, headers={"ETag": etag})
