"""Problem details (RFC 9457): every error says what happened and what to do, to programs as JSON and to people as a page."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from infra.asked import AskedWrongly
from infra.catalog.collections import CollectionExists, UnknownCollection
from infra.catalog.custody.places import UnknownPlace
from infra.catalog.database import CatalogTooNew, CatalogUnfinished
from infra.catalog.encryption import EmbeddingsLocked
from infra.catalog.faults import CatalogUnavailable, CatalogUnreachable
from infra.catalog.identities.decisions import DecisionError, UnknownSubject
from infra.catalog.queries.language import InvalidQuestion
from infra.catalog.service.jobs import JobRunning
from infra.catalog.work.runs import RunInProgress
from infra.catalog.work.schedules import ScheduleExists, UnknownSchedule
from infra.evaluations import UnknownEvaluation
from infra.storage import ObjectMissing, StoreError
from tasks.nights.schedules import UnusableSchedule

MEDIA_TYPE = "application/problem+json"
API = "/api/"
UNAVAILABLE, RETRY_SECONDS = 503, "5"
LARGEST_ID = 2**63 - 1  # what the catalog's ids can be


class Problem(Exception):
    """What went wrong with a request. `kind` is stable, for programs; `detail` is for people and says what to do."""

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.title, self.detail = status, kind, title, detail
        self.headers = dict(headers or {})
        self.more = more

    def as_dict(self, instance: str) -> dict[str, Any]:
        return {
            "type": f"urn:visage:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            **self.more,
        }


def not_found(what: str) -> Problem:
    """The thing is not there, or not any more."""
    return Problem(404, "not-found", "There is no such thing", f"{what} is not in the catalog, or not any more.")


# What errors mean to whoever made the request. Those that live beside torch are told by name, so that they need not be
# imported here.
_KNOWN: dict[str | type[Exception], tuple[int, str, str]] = {
    UnknownCollection: (404, "not-found", "There is no such collection"),
    CollectionExists: (409, "exists", "The name is taken"),
    RunInProgress: (409, "run-in-progress", "A run is at work on this collection"),
    CatalogUnavailable: (503, "catalog-locked", "The catalog is locked or away"),
    CatalogUnreachable: (503, "catalog-unreachable", "The catalog cannot be used"),
    CatalogTooNew: (503, "catalog-too-new", "The catalog was made by a later Visage"),
    CatalogUnfinished: (503, "catalog-unfinished", "A copy into the catalog was interrupted"),
    EmbeddingsLocked: (503, "embeddings-locked", "The embeddings cannot be read"),
    ObjectMissing: (404, "picture-gone", "The picture is not there any more"),
    StoreError: (503, "store", "The object store did not give it"),
    DecisionError: (409, "decision", "This cannot be decided so"),
    UnknownPlace: (404, "not-found", "There is no such place"),
    UnknownSubject: (404, "not-found", "There is no such thing"),
    UnknownSchedule: (404, "not-found", "There is no such schedule"),
    ScheduleExists: (409, "exists", "The name is taken"),
    UnusableSchedule: (422, "schedule", "This is no schedule"),
    JobRunning: (409, "job-running", "This is being done already"),
    ClientDisconnect: (400, "cut-off", "The request ended early"),
    AskedWrongly: (422, "query", "This cannot be asked so"),
    InvalidQuestion: (422, "question", "This question cannot be read"),
    UnknownEvaluation: (404, "not-found", "There is no such evaluation"),
    "NothingToSearch": (422, "nothing-to-search", "There is nothing to search"),
    "UnknownFace": (404, "not-found", "There is no such face"),
    "NothingFailed": (404, "not-found", "Nothing stands as failed so"),
    "UnreadablePhoto": (422, "unreadable-photo", "This is no picture that can be read"),
    "CannotErase": (409, "erasure", "This cannot be erased now"),
    "NotInstalled": (503, "model-missing", "A model is not installed"),
    "WeightsError": (503, "weights", "The weights of a model cannot be used"),
    "CheckpointMismatch": (503, "weights", "The weights of a model cannot be used"),
    "UnknownModel": (404, "not-found", "There is no such model"),
    "NoUpgrade": (404, "not-found", "There is no such upgrade"),
    "RollbackIncomplete": (409, "rollback", "This cannot be rolled back"),
    "PromotionRefused": (409, "promotion-refused", "The gate does not let this version pass"),
    "WrongRole": (422, "wrong-role", "The model does other work"),
}


def problem_of(error: Exception) -> Problem:
    """Say what an error means to whoever made the request."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, Problem):  # of the gate, while the body was read
            return error.__cause__
        return Problem(error.status_code, "http", str(error.detail), str(error.detail), headers=error.headers)
    for ancestor in type(error).__mro__:
        known = _KNOWN.get(ancestor) or _KNOWN.get(ancestor.__name__)
        if known is not None:
            later = {"Retry-After": RETRY_SECONDS} if known[0] == UNAVAILABLE else {}
            return Problem(*known, _words(error), headers=later)
    return Problem(
        500, "bug", "Something is broken in Visage", "This is a mistake of ours. The log of the service has it."
    )


def _words(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def invalid(found: Iterable[Any]) -> Problem:
    """What pydantic has found wrong with a request."""
    errors = [{"where": ".".join(str(part) for part in e["loc"]), "what": e["msg"]} for e in found]
    first = "; ".join(f"{e['where']}: {e['what']}" for e in errors[:3])
    return Problem(422, "invalid", "The request does not fit", first, errors=errors)


def install(app: FastAPI, refuse: Callable[[Request, Problem], Response]) -> None:
    """Let `refuse` answer FastAPI's own errors; the gate does it for all others."""

    async def answer(request: Request, error: Exception) -> Response:
        return refuse(request, problem_of(error))

    for kind in (RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer)


def as_json(request: Request, problem: Problem) -> Response:
    """A problem as programs read it."""
    body = problem.as_dict(request.url.path)
    return JSONResponse(body, problem.status, headers=problem.headers, media_type=MEDIA_TYPE)
