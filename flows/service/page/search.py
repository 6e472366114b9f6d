"""Search by photograph."""

from fastapi import APIRouter, Request, Response

from flows.service import searching
from flows.service.access import Here, Principal
from flows.service.page.probe import data_url
from flows.service.page.render import Form, Visitor, page
from flows.service.problems import Problem, problem_of
from flows.service.state import Service
from flows.service.upload import photo_of

router = APIRouter(include_in_schema=False)
MATCHES = 24


@router.get("/search")
def ask(request: Request, service: Here, who: Visitor) -> Response:
    """The place to drop a photograph."""
    return _page(request, service, who)


@router.post("/search")
def answer(request: Request, service: Here, form: Form) -> Response:
    """The matches of every face in it. What cannot be searched with is said on the same page."""
    try:
        found = searching.by_photo(service, form.who, photo_of(form.form), MATCHES)
    except Exception as error:
        problem = problem_of(error)
        if problem.status not in (422, 503):
            raise
        return _page(request, service, form.who, problem.status, problem=problem)
    return _page(request, service, form.who, found=found, probe=data_url(found.pixels))


def _page(
    request: Request,
    service: Service,
    who: Principal,
    status: int = 200,
    problem: Problem | None = None,
    found: searching.Found | None = None,
    probe: str = "",
) -> Response:
    megabytes = service.settings.upload_bytes // 2**20
    response = page(request, who, "search.html", status, problem=problem, found=found, probe=probe, megabytes=megabytes)
    response.headers["Cache-Control"] = "no-store"
    return response
