"""Models: which version works, what it has made, how good it was measured to be."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from flows.service.access import Here, check_role
from flows.service.api import models as api
from flows.service.api.evaluations import RunId
from flows.service.page.render import Form, Visitor, go, page
from infra.catalog.service import jobs
from infra.catalog.service.tokens import Role

router = APIRouter(include_in_schema=False)
ROLES = {
    "detect": "Find faces",
    "embed": "Recognise",
    "restore": "Restore",
    "describe": "Describe",
}
# Measures that are set side by side: name in MLflow, and words.
MEASURES = (
    ("accuracy", "accuracy"),
    ("tar_at_far_0.01", "TAR at FAR 1%"),
    ("tar_at_far_0.001", "TAR at FAR 0.1%"),
    ("eer", "equal error rate"),
)
EVALUATIONS = 100


@router.get("/models")
def every(request: Request, service: Here, who: Visitor) -> Response:
    """All models by role, and what was measured of them."""
    found = api.models(service)
    evaluations = service.evaluations.latest(EVALUATIONS)
    verifications = [e for e in evaluations if e.kind == "verification"]
    fairness = [e for e in evaluations if e.kind == "fairness"]
    others = [e for e in evaluations if e.kind not in ("verification", "fairness")]
    upgrade = api.upgrade_of(service)
    with service.catalog.read() as session:
        work = [job for job in jobs.standing(session, "backfill") if upgrade and job.started_at >= upgrade.planned_at]
    by_role = {words: [m for m in found if m.role == role] for role, words in ROLES.items()}
    return page(
        request,
        who,
        "models.html",
        by_role=by_role,
        verifications=verifications,
        fairness=fairness,
        others=others,
        measures=MEASURES,
        upgrade=upgrade,
        job=work[0] if work else None,
    )


@router.get("/models/{name}")
def one(request: Request, service: Here, who: Visitor, name: Annotated[str, Path(max_length=100)]) -> Response:
    """One model with its versions."""
    return page(request, who, "model.html", model=api.model(service, name), roles=ROLES)


@router.post("/models/promote")
def promote(service: Here, form: Form) -> Response:
    """Make a version the champion; the gate may refuse, unless it is overruled."""
    check_role(form.who, Role.ADMIN)
    api.promote_to_champion(service, form.text("name"), form.number("version"), form.text("force") == "yes")
    return go("/models")


@router.post("/models/rollback")
def rollback(service: Here, form: Form) -> Response:
    """Go back to the version that was replaced."""
    check_role(form.who, Role.ADMIN)
    api.roll_back(service, form.text("name"))
    return go("/models")


@router.post("/models/backfill")
def backfill(service: Here, form: Form) -> Response:
    """Start the backfill."""
    check_role(form.who, Role.ADMIN)
    api.backfill(service, form.who.name)
    return go("/models")


@router.get("/evaluations/{run_id}")
def evaluation(request: Request, service: Here, who: Visitor, run_id: RunId) -> Response:
    """One evaluation with its plots."""
    return page(request, who, "evaluation.html", evaluation=service.evaluations.show(run_id))
