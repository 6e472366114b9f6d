"""Collections: which photographs there are, and tonight's work on them."""

import hashlib
import json
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Response
from sqlalchemy.orm import Session

from flows.service import jobs
from flows.service.access import Admin, Curator, Here, Reader
from flows.service.dto import LOCATION, CertificateOut, CollectionOut, JobOut, Page, RemovalOut
from flows.service.idempotency import IdempotentRoute
from flows.service.orders import CollectionChange, CollectionIn, RemovalOrder
from flows.service.problems import Problem
from infra.catalog import collections as stored
from infra.catalog.queries.views import image_counts
from infra.catalog.service import jobs as job_book
from infra.catalog.tables.schema import Collection
from infra.catalog.tables.service import RUN
from infra.storage import StoreError
from tasks.custody import remove_collection

router = APIRouter(prefix="/collections", tags=["collections"], route_class=IdempotentRoute)
WORD = "remove"
Name = Annotated[str, Path(max_length=100)]


@router.get("")
def list_collections(service: Here, who: Reader) -> Page[CollectionOut]:
    """All collections, by name."""
    with service.catalog.read() as session:
        return Page(items=[_out(session, collection) for collection in stored.every(session)])


@router.post("", status_code=201, responses={201: LOCATION})
def add_collection(service: Here, who: Admin, new: CollectionIn, response: Response) -> CollectionOut:
    """Add a collection. The server may read any folder that it is given: only an admin may say which."""
    from tasks.nights.collections import InvalidCollection, check  # noqa: PLC0415 - only this needs it

    try:
        checked = check(service.settings, new.name, new.uri, new.include, new.exclude, new.sensitive_attributes)
    except (InvalidCollection, StoreError) as error:
        raise Problem(422, "collection", "This is no collection", str(error)) from error
    with service.catalog.write() as session:
        collection = stored.add(
            session, checked.name, checked.uri, checked.include, checked.exclude, checked.sensitive_attributes
        )
        out = _out(session, collection)
    response.headers["Location"] = f"/api/v1/collections/{quote(collection.name, safe='')}"
    return out


@router.get("/{name}")
def show_collection(service: Here, who: Reader, name: Name) -> CollectionOut:
    """One collection."""
    with service.catalog.read() as session:
        return _out(session, stored.by_name(session, name))


@router.patch("/{name}")
def change_collection(service: Here, who: Admin, name: Name, change: CollectionChange) -> CollectionOut:
    """Rename a collection, or look for the same photographs, under their keys, in another place from now on."""
    from tasks.nights.collections import InvalidCollection, move, rename  # noqa: PLC0415 - only this needs it

    try:
        if change.uri is not None:
            move(service.catalog, service.settings, name, change.uri)
        if change.name is not None:
            rename(service.catalog, name, change.name)
    except (InvalidCollection, StoreError) as error:
        raise Problem(422, "collection", "The collection stays as it was", str(error)) from error
    with service.catalog.read() as session:
        return _out(session, stored.by_name(session, change.name or name))


@router.get("/{name}/removal")
def plan_removal(service: Here, who: Admin, name: Name) -> RemovalOut:
    """What would go. Nothing is changed."""
    with service.catalog.read() as session:
        return _removal(remove_collection.plan(session, name))


@router.post("/{name}/removal", status_code=201)
def remove(service: Here, who: Admin, name: Name, order: RemovalOrder) -> CertificateOut:
    """Remove what the plan showed, for good. The photographs themselves stay where they are."""
    if order.word.strip().lower() != WORD:
        raise Problem(422, "word", "Nothing was removed", f"Type the word {WORD!r} to remove it.")
    with service.catalog.read() as session:
        planned = remove_collection.plan(session, name)
    if _removal(planned).digest != order.digest:
        raise Problem(
            409,
            "plan-changed",
            "Nothing was removed",
            "The catalog has changed since you looked, and something else would go. Look at it again.",
        )
    certificate, _ = remove_collection.remove(service.catalog, service.settings, who.name, planned)
    return CertificateOut.model_validate(certificate)


@router.post("/{name}/runs", status_code=202, responses={202: LOCATION})
def start_run(service: Here, who: Curator, name: Name, response: Response) -> JobOut:
    """Process what is new or changed, now. The job's events tell how it gets on."""
    with service.catalog.read() as session:
        stored.by_name(session, name)
    try:
        job = jobs.start(service, RUN, name, who.name, ["run", "--json", "--", name])
    except job_book.JobRunning as error:
        raise Problem(409, "run-in-progress", "A run is at work on this collection", str(error)) from error
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.model_validate(job)


def _removal(planned: remove_collection.Removal) -> RemovalOut:
    digest = hashlib.sha256(json.dumps(remove_collection.seen(planned)).encode()).hexdigest()
    return RemovalOut.model_validate({**vars(planned), "digest": digest})


def _out(session: Session, collection: Collection) -> CollectionOut:
    return CollectionOut(
        name=collection.name,
        uri=collection.uri,
        include=collection.include,
        exclude=collection.exclude,
        sensitive_attributes=collection.sensitive_attributes,
        images=image_counts(session, collection.id),
    )
