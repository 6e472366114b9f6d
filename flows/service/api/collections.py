"""Collections: which photographs there are, and tonight's work on them."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Response
from sqlalchemy.orm import Session

from flows.service import jobs
from flows.service.access import Admin, Curator, Here, Reader
from flows.service.dto import LOCATION, CollectionOut, JobOut, Page
from flows.service.idempotency import IdempotentRoute
from flows.service.orders import CollectionIn
from flows.service.problems import Problem
from infra.catalog import collections as stored
from infra.catalog.queries.views import image_counts
from infra.catalog.service import jobs as job_book
from infra.catalog.tables.schema import Collection
from infra.storage import StoreError

router = APIRouter(prefix="/collections", tags=["collections"], route_class=IdempotentRoute)
Name = Annotated[str, Path(max_length=100)]


@router.get("")
def list_collections(service: Here, who: Reader) -> Page[CollectionOut]:
    """All collections, by name."""
    with service.catalog.read() as session:
        return Page(items=[_out(session, collection) for collection in stored.every(session)])


@router.post("", status_code=201, responses={201: LOCATION})
def add_collection(service: Here, who: Admin, new: CollectionIn, response: Response) -> CollectionOut:
    """Add a collection. The server may read any folder that it is given: only an admin may say which."""
    from tasks.nights.collections import InvalidCollection, check  # noqa: PLC0415 - imports torch

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


@router.post("/{name}/runs", status_code=202, responses={202: LOCATION})
def start_run(service: Here, who: Curator, name: Name, response: Response) -> JobOut:
    """Process what is new or changed, now. The job's events tell how it gets on."""
    with service.catalog.read() as session:
        stored.by_name(session, name)
    try:
        job = jobs.start(service, "run", name, who.name, ["run", "--json", "--", name])
    except job_book.JobRunning as error:
        raise Problem(409, "run-in-progress", "A run is at work on this collection", str(error)) from error
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.model_validate(job)


def _out(session: Session, collection: Collection) -> CollectionOut:
    return CollectionOut(
        name=collection.name,
        uri=collection.uri,
        include=collection.include,
        exclude=collection.exclude,
        sensitive_attributes=collection.sensitive_attributes,
        images=image_counts(session, collection.id),
    )
