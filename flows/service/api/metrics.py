"""Metrics for Prometheus, and whether last night was good."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from flows.service.access import Here, Reader
from flows.service.dto import StatusOut
from infra.metrics import render
from tasks.nights.status import status

router = APIRouter(tags=["metrics"])
TEXT = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/metrics", response_class=Response, responses=TEXT)  # type: ignore[arg-type]
def metrics(service: Here, who: Reader) -> Response:
    """All metrics in Prometheus' text format; Prometheus sends its token as `authorization`."""
    return Response(render(service.catalog), media_type=CONTENT_TYPE_LATEST)


@router.get("/status")
def show_status(service: Here, who: Reader) -> StatusOut:
    """Whether the last night of every collection was good, and if not, what is wrong with it."""
    with service.catalog.read() as session:
        return StatusOut.model_validate(status(session))
