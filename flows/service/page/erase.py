"""Erase: look at what would go, type the word, get the certificate."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from flows.service import erasing
from flows.service.access import Here, Principal, check_role
from flows.service.orders import ErasureIn, ErasureOrder
from flows.service.page.probe import data_url
from flows.service.page.render import Form, Submitted, Visitor, go, page
from flows.service.problems import LARGEST_ID, Problem, problem_of
from flows.service.state import Service
from flows.service.upload import photo_of
from infra.catalog.service.tokens import Role
from tasks.custody import erase

router = APIRouter(include_in_schema=False)
Chosen = Annotated[int | None, Query(ge=1, le=LARGEST_ID)]
CERTIFICATES, SHOWN = 50, 24
KINDS = ("face", "identity", "image", "photo")
CALLED = {
    "images": "photographs",
    "person": "entries about a person",
    "embedding": "vectors",
    "attribute": "estimates",
    "face_identity": "places among people",
    "restoration": "restored pictures",
    "statement": "decisions",
    "objects": "stored crops",
    "reports": "reports of runs, with contact sheets",
    "exhibits": "pages and exports",
    "unreached": "files in places that are no more",
}
MOST_FACES = 10_000  # of an order
MOST_CHARACTERS = 20 * MOST_FACES  # of their ids
MOST_CHOICES = 500  # faces to look at one by one; a form takes no more than 1,000 fields


@router.get("/erase")
def look(
    request: Request,
    service: Here,
    who: Visitor,
    face: Chosen = None,
    identity: Chosen = None,
    image: Chosen = None,
    done: Chosen = None,
) -> Response:
    """What would go, and what went before."""
    check_role(who, Role.ADMIN)
    chosen = [(kind, n) for kind, n in zip(KINDS, (face, identity, image), strict=False) if n is not None]
    if len(chosen) > 1:
        raise Problem(422, "form", "One thing at a time", "Choose a face, a person or a photograph to erase.")
    if not chosen:
        return _page(request, service, who, done=done)
    [(kind, number)] = chosen
    back = {"face": "/faces/", "identity": "/people/", "image": "/photographs/"}[kind] + str(number)
    plan = erasing.plan(service, _asked(kind, [number]))
    return _page(request, service, who, plan=plan, kind=kind, subject=str(number), back=back)


@router.post("/erase/photo")
def by_photo(request: Request, service: Here, form: Form) -> Response:
    """Whoever a photograph shows: the faces that look so, to choose from. What cannot be looked at is said on the page."""
    check_role(form.who, Role.ADMIN)
    try:
        found = erasing.plan_by_photo(service, form.who, photo_of(form.form), None)
    except Exception as error:
        problem = problem_of(error)
        if problem.status not in (409, 422, 503):
            raise
        return _page(request, service, form.who, problem.status, problem=problem)
    return _page(request, service, form.who, found=found, probe=data_url(found.pixels))


@router.post("/erase/faces")
def chosen_faces(request: Request, service: Here, form: Form) -> Response:
    """What erasing the chosen of these faces would take."""
    check_role(form.who, Role.ADMIN)
    faces = sorted({*form.numbers("face"), *_ids(form.text("rest", MOST_CHARACTERS))})
    if not 1 <= len(faces) <= MOST_FACES:
        raise Problem(422, "form", "Nothing is chosen", f"Choose the faces that are meant, at most {MOST_FACES:,}.")
    plan = erasing.plan(service, _asked("photo", faces))
    subject = ",".join(map(str, faces))
    return _page(request, service, form.who, plan=plan, kind="photo", subject=subject, back="/erase")


@router.post("/erase")
def carry_out(service: Here, form: Form) -> Response:
    """Erase what was seen."""
    check_role(form.who, Role.ADMIN)
    certificate = erasing.carry_out(service, form.who.name, _order(form))
    return go(f"/erase?done={certificate.erasure_id}")


def _page(
    request: Request, service: Service, who: Principal, status: int = 200, done: int | None = None, **content: Any
) -> Response:
    with service.catalog.read() as session:
        certificates = erase.certificates(session, CERTIFICATES)
    shown = {"plan": None, "kind": "", "subject": "", "back": "", "found": None, "probe": "", "problem": None} | content
    response = page(
        request,
        who,
        "erase.html",
        status,
        word=erasing.WORD,
        certificates=certificates,
        done=next((c for c in certificates if c.erasure_id == done), None),
        shown=SHOWN,
        called=CALLED,
        most=MOST_CHOICES,
        megabytes=service.settings.upload_bytes // 2**20,
        **shown,
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _asked(kind: str, numbers: list[int]) -> ErasureIn:
    match kind:
        case "face":
            return ErasureIn.of(faces=numbers)
        case "photo":
            return ErasureIn.of(faces=numbers, by="photo")
        case "identity":
            return ErasureIn.of(identity=numbers[0])
        case _:
            return ErasureIn.of(image=numbers[0])


def _order(form: Submitted) -> ErasureOrder:
    kind, reason, digest = form.text("kind"), form.text("reason"), form.text("digest")
    numbers = _ids(form.text("subject", MOST_CHARACTERS))
    if not reason:
        raise Problem(422, "form", "Nothing was erased", "Say why it is erased: the certificate keeps the reason.")
    if kind not in KINDS or not 1 <= len(numbers) <= MOST_FACES or len(digest) != 64:
        raise Problem(422, "form", "Nothing was erased", "The form does not fit: look at what would go again.")
    asked = _asked(kind, numbers).model_dump(exclude_none=True)
    return ErasureOrder.of(**asked, digest=digest, word=form.text("word", 20), reason=reason)


def _ids(text: str) -> list[int]:
    """Numbers between commas; what is none makes the list empty."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    fit = all(part.isdecimal() and len(part) < 19 for part in parts)
    return [int(part) for part in parts] if fit else []
