"""Who is asking, and what they may do: bearer tokens for programs, a cookie for the page."""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from flows.service.problems import Problem
from flows.service.state import Service, service_of
from infra.catalog.service import tokens
from infra.catalog.service.tokens import Role

COOKIE = "visage_session"
CSRF_HEADER = "X-CSRF-Token"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
bearer = HTTPBearer(auto_error=False, description="A token of 'visage tokens create'.")


@dataclass(frozen=True)
class Principal:
    """Whoever makes a request. `name` is what the audit log says; `cookie`: the secret of the browser, if it is one."""

    name: str
    role: Role
    token_id: int | None = None
    cookie: str | None = None

    @property
    def csrf(self) -> str:
        return "" if self.cookie is None else csrf_token(self.cookie)

    def may(self, role: Role) -> bool:
        return self.role >= role


def csrf_token(cookie: str) -> str:
    """What a form of ours must carry: follows from the cookie, which no other site can read."""
    return hmac.digest(cookie.encode(), b"csrf", "sha256").hex()


def new_cookie() -> str:
    return secrets.token_urlsafe(32)


def identify(request: Request) -> Principal:
    """Who is asking.

    Raises:
        Problem: 401, saying why the token or the session does not count; 429 after too many wrong tokens. A valid one always
            counts, however many wrong ones came from the same address: others may be behind it.
    """
    service = service_of(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    cookie = request.cookies.get(COOKIE)
    with service.catalog.read() as session:
        if token:
            held, why = (
                tokens.holder(session, token.strip()) if scheme.lower() == "bearer" else (None, "no bearer token")
            )
        elif not service.exposed and not tokens.any_exist(session):
            return Principal("local", Role.ADMIN, cookie=cookie)
        elif cookie:
            held, why = tokens.session_holder(session, cookie)
        else:
            held, why = None, "this needs a token: 'visage tokens create NAME --role ROLE' makes one"
    if held is None:
        if token:
            service.refusals.take(request.client.host if request.client else "unknown")
        raise Problem(401, "not-signed-in", "Not signed in", why, headers={"WWW-Authenticate": "Bearer"})
    service.note_use(held.token_id)
    return Principal(held.name, held.role, held.token_id, None if token else cookie)


def require(role: Role) -> Callable[..., Principal]:
    """A dependency of API routes: whoever asks must have this role."""

    def dependency(request: Request, _: Annotated[object, Depends(bearer)] = None) -> Principal:
        principal = identify(request)
        check_role(principal, role)
        if request.method not in SAFE and principal.cookie is not None:
            check_csrf(principal, request.headers.get(CSRF_HEADER, ""))
        return principal

    return dependency


def check_role(principal: Principal, role: Role) -> None:
    """Raises Problem 403 if the role does not reach."""
    if not principal.may(role):
        raise Problem(
            403,
            "role",
            "Not allowed",
            f"This needs the role {role.label}; the token {principal.name!r} has {principal.role.label}.",
        )


def check_csrf(principal: Principal, given: str) -> None:
    """Raises Problem 403 if a browser's request does not come from a page of ours."""
    if principal.cookie is None or not hmac.compare_digest(csrf_token(principal.cookie), given):
        raise Problem(
            403,
            "csrf",
            "The form is out of date",
            "The page that this came from is not of your present session. Load the page anew and send it again.",
        )


Reader = Annotated[Principal, Depends(require(Role.READ))]
Curator = Annotated[Principal, Depends(require(Role.CURATE))]
Admin = Annotated[Principal, Depends(require(Role.ADMIN))]
Here = Annotated[Service, Depends(service_of)]
