"""The application: the API, the page, and the gate in front of both."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi.routing import APIRoute

from flows.service import errands, jobs, problems
from flows.service.api import (
    collections,
    erasure,
    evaluations,
    faces,
    health,
    identities,
    images,
    metrics,
    models,
    runs,
    schedules,
    search,
)
from flows.service.dto import ProblemOut
from flows.service.gate import Gate
from flows.service.limits import Rates
from flows.service.page import door, erase, fairness, live, people, render, wall
from flows.service.page import faces as page_faces
from flows.service.page import models as page_models
from flows.service.page import nights as page_nights
from flows.service.page import search as page_search
from flows.service.problems import API, MEDIA_TYPE, Problem
from flows.service.state import Service
from infra.settings import Settings

ROUTERS = (
    collections,
    images,
    faces,
    search,
    identities,
    runs,
    schedules,
    models,
    evaluations,
    erasure,
    metrics,
    health,
)
PAGES = (door, wall, page_faces, people, page_search, page_nights, page_models, fairness, erase, live)
DESCRIPTION = (
    "Collections of face photographs: what is in them, who looks alike, and what people decided about it. Attributes, people "
    "and probabilities are estimates by models. Restored pictures hold detail that was invented. Errors are problem details "
    "(RFC 9457). Writes take an Idempotency-Key."
)


def create_app(settings: Settings, *, exposed: bool = False, rates: Rates | None = None) -> FastAPI:
    """Make the application over one catalog.

    `exposed`: others than this machine can reach it; then nobody comes in without a token, even if none was ever made.
    """
    service = Service(settings, exposed, rates or Rates())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with jobs.kept(service), errands.done_here(service):
            yield
        service.close()

    app = FastAPI(
        title="Visage",
        version="1",
        description=DESCRIPTION,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_name,
    )
    app.state.service = service
    api = APIRouter(prefix="/api/v1")
    for module in ROUTERS:
        api.include_router(module.router)
    app.include_router(api)
    for page in PAGES:
        app.include_router(page.router)
    problems.install(app, refuse)
    app.add_middleware(
        Gate, requests=service.requests, upload_bytes=settings.upload_bytes, exposed=exposed, refuse=refuse
    )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def refuse(request: Request, problem: Problem) -> Response:
    """Answer with a problem: to programs as JSON, to people as a page."""
    return (problems.as_json if request.url.path.startswith(API) else render.refuse)(request, problem)


def _name(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, with our errors instead of its own."""
    if app.openapi_schema is None:
        routes = [
            route for route in app.routes if getattr(route, "path", "").startswith(API) or not hasattr(route, "path")
        ]
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=routes)
        schemas = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        problem_schema = ProblemOut.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= {**problem_schema.pop("$defs"), "ProblemOut": problem_schema}
        problem = {
            "description": "Problem details",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemOut"}}},
        }
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = problem
        app.openapi_schema = schema
    return app.openapi_schema
