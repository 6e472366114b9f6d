"""Pages out of templates, and the forms that come back from them."""

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

from fastapi import Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from flows.service.access import (
    COOKIE,
    Principal,
    check_csrf,
    check_role,
    identify,
    new_cookie,
)
from flows.service.dto import AttributeOut
from flows.service.paging import cursor
from flows.service.problems import Problem
from flows.service.upload import read_form
from infra.catalog.service.tokens import SESSION_LIFE, Role
from infra.html import templates
from infra.words import count

HERE = Path(__file__).parent
STATIC = {path.name: path.read_bytes() for path in (HERE / "static").iterdir()}
NARROWEST, WIDEST = 3, 30  # tenths: what the style sheet has a class for
FIRST = "/photographs"
SECTIONS = {  # by how an address begins: where it leads back to
    "photographs": FIRST,
    "faces": FIRST,
    "people": "/people",
    "decisions": "/people",
    "search": "/search",
    "nights": "/nights",
    "models": "/models",
    "evaluations": "/models",
    "fairness": "/models",
    "erase": "/erase",
}


def ratio(width: int, height: int) -> int:
    """A picture's width over its height in tenths, as the style sheet names it."""
    return min(max(round(10 * width / height), NARROWEST), WIDEST)


def number(value: float) -> str:
    """A number as people write it."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if abs(value) >= 10 or value == round(value) else f"{value:.2f}"


def stated(attribute: AttributeOut) -> str:
    """What an estimate says: its class, its number, or of what kind of value there is more than a line can show."""
    if attribute.label:
        return attribute.label.replace("_", " ")
    if attribute.value is not None:
        return number(attribute.value)
    return "a picture of classes" if attribute.vector is None else count(len(attribute.vector), "number")


def duration(seconds: float | None) -> str:
    """How long something took: '0.4 s', '12 min', '3 h 05 min'."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def static(name: str) -> str:
    """The address of an asset; another content has another address, so that browsers may keep it for ever."""
    return f"/static/{hashlib.sha256(STATIC[name]).hexdigest()[:12]}/{name}"


environment = templates(HERE / "templates")
environment.globals.update(
    count=count,
    cursor=cursor,
    ratio=ratio,
    number=number,
    stated=stated,
    duration=duration,
    static=static,
    ADMIN=Role.ADMIN,
    CURATE=Role.CURATE,
)


@dataclass(frozen=True)
class Submitted:
    """A form of a page of ours, and who has sent it."""

    who: Principal
    form: FormData

    def text(self, name: str, most: int = 500) -> str:
        """A field's text without the space around it; empty if it was left out."""
        value = self.form.get(name, "")
        return value.strip()[:most] if isinstance(value, str) else ""

    def number(self, name: str) -> int:
        """A field's number.

        Raises:
            Problem: 422 if it is none.
        """
        numbers = self.numbers(name)
        if len(numbers) != 1:
            raise Problem(422, "form", "The form does not fit", f"{name} is missing.")
        return numbers[0]

    def numbers(self, name: str) -> list[int]:
        """The numbers of all fields of this name."""
        values = [value for value in self.form.getlist(name) if isinstance(value, str)]
        if not all(value.isascii() and value.isdigit() and len(value) < 19 for value in values):
            raise Problem(422, "form", "The form does not fit", f"{name} must be numbers.")
        return [int(value) for value in values]


async def submitted(request: Request) -> Submitted:
    """Read a form, whose sender is signed in and has it from a page of the present session."""
    who = request.state.visitor = await run_in_threadpool(identify, request)
    form = await read_form(request)
    token = form.get("csrf", "")
    check_csrf(who, token if isinstance(token, str) else "")
    return Submitted(who, form)


def visitor(request: Request) -> Principal:
    """Whoever looks at a page."""
    who = request.state.visitor = identify(request)
    check_role(who, Role.READ)
    return who


Form = Annotated[Submitted, Depends(submitted)]
Visitor = Annotated[Principal, Depends(visitor)]


def page(request: Request, who: Principal | None, template: str, status: int = 200, **content: Any) -> Response:
    """Render a template. A browser that needs no token gets its cookie here, on which its forms rest."""
    fresh = who is not None and who.cookie is None and who.token_id is None
    if who is not None and fresh:
        who = replace(who, cookie=new_cookie())

    def csrf() -> Markup:
        value = "" if who is None else who.csrf
        return Markup('<input type="hidden" name="csrf" value="{}">').format(value)

    html = environment.get_template(template).render(me=who, path=request.url.path, csrf=csrf, **content)
    response = HTMLResponse(html, status)
    if who is not None and fresh and who.cookie is not None:
        set_cookie(request, response, who.cookie)
    return response


def set_cookie(request: Request, response: Response, secret: str) -> None:
    """Let the browser keep a secret that no script can read and no other site can use."""
    response.set_cookie(
        COOKIE,
        secret,
        max_age=round(SESSION_LIFE.total_seconds()),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )


def go(address: str) -> Response:
    """Answer a form with the page to look at next."""
    return RedirectResponse(address, 303)


def refuse(request: Request, problem: Problem) -> Response:
    """Show a problem, with a way on; to whoever is not signed in, the door.

    The address of a form's answer is no page to come back to: its section is.
    """
    asked, got = request.url, request.method == "GET"
    if problem.kind == "http" and problem.status == 404:
        problem = Problem(404, "not-found", "There is no such page", f"{asked.path} is no address of this service.")
    here = urlunsplit(("", "", asked.path, asked.query, ""))
    if problem.status == 401:
        response = page(request, None, "door.html", 401, why=problem.detail, next=here if got else "/")
    elif problem.status == 405 and got:
        response = go(_section(asked.path) or FIRST)
    else:
        who = getattr(request.state, "visitor", None)
        again = here if got and (problem.status == 429 or problem.status >= 500) else None
        back = _back(request, here)
        response = page(request, who, "problem.html", problem.status, problem=problem, again=again, back=back)
    response.headers.update(problem.headers)
    return response


def _back(request: Request, here: str) -> str:
    """The page of ours that led here; where there is none, the section that the address belongs to, or the first page."""
    try:
        came = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        came = urlsplit("")
    page_before = urlunsplit(("", "", came.path, came.query, ""))
    ours = came.netloc == request.url.netloc and _section(came.path) is not None
    ways = [page_before] if ours else []
    ways += [_section(request.url.path) or FIRST, FIRST]
    return next(way for way in ways if way != here or request.method != "GET" or way == FIRST)


def _section(path: str) -> str | None:
    return SECTIONS.get(path.removeprefix("/").partition("/")[0])
