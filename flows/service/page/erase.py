"""Erase: look at what would go, type the word, get the certificate."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from flows.service import erasing
from flows.service.access import Here, check_role
from flows.service.orders import ErasureIn, ErasureOrder
from flows.service.page.render import Form, Submitted, Visitor, go, page
from flows.service.problems import LARGEST_ID, Problem
from infra.catalog.tokens import Role
from tasks import erase

router = APIRouter(include_in_schema=False)
Chosen = Annotated[int | None, Query(ge=1, le=LARGEST_ID)]
CERTIFICATES, SHOWN = 50, 24
KINDS = ("face", "identity", "image")


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
    chosen = {kind: value for kind, value in zip(KINDS, (face, identity, image), strict=True) if value is not None}
    if len(chosen) > 1:
        raise Problem(422, "form", "One thing at a time", "Choose a face, a person or a photograph to erase.")
    kind, number = next(iter(chosen.items()), ("", 0))
    plan = erasing.plan(service, _asked(kind, number)) if kind else None
    with service.catalog.read() as session:
        certificates = erase.certificates(session, CERTIFICATES)
    return page(
        request,
        who,
        "erase.html",
        plan=plan,
        kind=kind,
        number=number,
        word=erasing.WORD,
        certificates=certificates,
        done=next((c for c in certificates if c.erasure_id == done), None),
        shown=SHOWN,
    )


@router.post("/erase")
def carry_out(service: Here, form: Form) -> Response:
    """Erase what was seen."""
    check_role(form.who, Role.ADMIN)
    certificate = erasing.carry_out(service, form.who.name, _order(form))
    return go(f"/erase?done={certificate.erasure_id}")


def _asked(kind: str, number: int) -> ErasureIn:
    if kind == "face":
        return ErasureIn(faces=[number])
    return ErasureIn(identity=number) if kind == "identity" else ErasureIn(image=number)


def _order(form: Submitted) -> ErasureOrder:
    kind, reason, digest = form.text("kind"), form.text("reason"), form.text("digest")
    if kind not in KINDS or not reason or len(digest) != 64:
        raise Problem(422, "form", "Nothing was erased", "Say why it is erased: the certificate keeps the reason.")
    asked = _asked(kind, form.number("number")).model_dump(exclude_none=True)
    return ErasureOrder(**asked, digest=digest, word=form.text("word", 20), reason=reason)
