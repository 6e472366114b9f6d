"""Sign in and out, the assets of the page, and its first address."""

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from flows.service.access import COOKIE, Here
from flows.service.page.render import STATIC, Form, go, page, set_cookie
from flows.service.problems import Problem, not_found
from flows.service.state import Service
from flows.service.upload import read_form
from infra.catalog.service import tokens

router = APIRouter(include_in_schema=False)
KINDS = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
FOR_EVER = "public, max-age=31536000, immutable"


@router.get("/")
def first() -> Response:
    return go("/photographs")


@router.get("/static/{version}/{name}")
def asset(version: str, name: str) -> Response:
    """An asset, by a name of a fixed list."""
    if name not in STATIC:
        raise not_found(f"{name!r}")
    kind = KINDS[name.rpartition(".")[2]]
    return Response(STATIC[name], media_type=kind, headers={"Cache-Control": FOR_EVER})


@router.post("/sign-in")
async def sign_in(request: Request, service: Here) -> Response:
    """Take a token, and give the browser a session of its own."""
    form = await read_form(request)
    token, following = form.get("token", ""), form.get("next", "/")
    client = request.client.host if request.client else "unknown"
    secret, why = await run_in_threadpool(_open, service, str(token).strip(), client)
    following = following if isinstance(following, str) and _is_ours(following) else "/"
    if secret is None:
        return page(request, None, "door.html", 401, why=why, next=following)
    response = go(following)
    set_cookie(request, response, secret)
    return response


@router.post("/sign-out")
def sign_out(form: Form, service: Here) -> Response:
    """Forget the browser, and let it forget what it has seen."""
    if form.who.cookie is not None:
        with service.catalog.write() as session:
            tokens.close_session(session, form.who.cookie)
    response = go("/")
    response.delete_cookie(COOKIE)
    response.headers["Clear-Site-Data"] = '"cache", "storage"'  # "cookies" would take those of our neighbours
    return response


def _open(service: Service, token: str, client: str) -> tuple[str | None, str]:
    with service.catalog.write() as session:
        held, why = tokens.holder(session, token)
        if held is not None:
            return tokens.open_session(session, held.token_id), ""
    try:
        service.refusals.take(client)
    except Problem as problem:
        return None, problem.detail
    return None, why


def _is_ours(address: str) -> bool:
    """Whether an address stays on this service, whatever browsers make of slashes."""
    return address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
