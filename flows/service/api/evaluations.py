"""Evaluations: how good models were measured to be, and for whom."""

import math
from typing import Annotated

from fastapi import APIRouter, Path, Response

from flows.service import paging
from flows.service.access import Here, Reader
from flows.service.api.images import Cursor, Limit
from flows.service.dto import EvaluationOut, Page
from flows.service.state import Service
from infra.evaluations import Evaluation, milliseconds
from tasks.evaluation.fairness import FairnessReport

router = APIRouter(prefix="/evaluations", tags=["evaluations"])
RunId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
KINDS = {".png": "image/png", ".svg": "image/svg+xml", ".json": "application/json", ".csv": "text/csv"}
FAIRNESS = "fairness.json"


@router.get("")
def list_evaluations(service: Here, who: Reader, after: Cursor = None, limit: Limit = 50) -> Page[EvaluationOut]:
    """What was measured of models, the latest first."""
    place = paging.place(after)
    found = service.evaluations.latest(limit + 1, None if place is None else max(place[0], 0))
    following = paging.cursor([milliseconds(found[limit - 1].when)]) if len(found) > limit else None
    return Page(items=[evaluation_out(e) for e in found[:limit]], next=following)


@router.get("/{run_id}")
def show_evaluation(service: Here, who: Reader, run_id: RunId) -> EvaluationOut:
    """One evaluation, with the names of its files."""
    return evaluation_out(service.evaluations.show(run_id))


@router.get("/{run_id}/files/{name}", response_class=Response)
def evaluation_file(service: Here, who: Reader, run_id: RunId, name: Annotated[str, Path(max_length=200)]) -> Response:
    """A plot or table that an evaluation keeps."""
    data = service.evaluations.read(run_id, name)
    kind = next((kind for ending, kind in KINDS.items() if name.endswith(ending)), "application/octet-stream")
    disposition = "inline" if kind == "image/png" else "attachment"
    return Response(data, media_type=kind, headers={"Content-Disposition": disposition})


@router.get("/{run_id}/fairness")
def show_fairness(service: Here, who: Reader, run_id: RunId) -> FairnessReport:
    """A fairness report: every measure of every group with interval and count, None where there are too few to judge."""
    return fairness_report(service, run_id)


def fairness_report(service: Service, run_id: str) -> FairnessReport:
    """Raises UnknownEvaluation if the evaluation keeps no such report."""
    return FairnessReport.model_validate_json(service.evaluations.read(run_id, FAIRNESS))


def evaluation_out(evaluation: Evaluation) -> EvaluationOut:
    """An evaluation as the API gives it; JSON has no word for numbers that are not finite."""
    metrics = {name: value for name, value in evaluation.metrics.items() if math.isfinite(value)}
    return EvaluationOut(
        id=evaluation.run_id,
        kind=evaluation.kind,
        name=evaluation.name,
        when=evaluation.when,
        metrics=metrics,
        params=dict(evaluation.params),
        tags=dict(evaluation.tags),
        files=list(evaluation.files),
    )
