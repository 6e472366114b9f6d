"""The gate that every request passes, before anything reads it: host, origin, size, rate; and the headers of every answer."""

import ipaddress
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.service.limits import Limiter
from flows.service.problems import Problem, problem_of

logger = logging.getLogger(__name__)
BUG = 500
SAFE = ("GET", "HEAD", "OPTIONS")
SMALL_BODY = 2**20  # bytes; forms and JSON are far smaller
UPLOADS = ("/api/v1/search", "/search", "/api/v1/erasures/plan/photo", "/erase/photo")
ROOM_FOR_FORM = 64 * 2**10  # what a multipart form adds to the photograph in it

POLICY = "; ".join(
    (
        "default-src 'none'",
        "img-src 'self' data: blob:",
        "style-src 'self'",
        "script-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Gate:
    """ASGI middleware.

    On localhost only names of this machine are accepted as `Host` (a page elsewhere could make its own name point here), and a
    write that a browser sends from another site is refused wherever it comes from.
    """

    def __init__(
        self,
        app: ASGIApp,
        requests: Limiter,
        upload_bytes: int,
        exposed: bool,
        refuse: Callable[[Request, Problem], Response],
    ) -> None:
        self.app, self.requests, self.exposed, self.refuse = app, requests, exposed, refuse
        self.upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        answer = _with_headers(watched, secure=scope["scheme"] == "https")
        try:
            self._check(scope)
            asked = {**scope, "query_string": without_empty(scope["query_string"])}
            if scope["method"] == "HEAD":
                asked["method"], answer = "GET", _head_of(answer)
            await self.app(asked, _limited(receive, self._most_bytes(scope["path"])), answer)
        except Exception as error:
            problem = problem_of(error)
            if problem.status == BUG or begun:
                logger.exception("%s %s", scope["method"], scope["path"])
            if begun:
                raise  # the connection is cut, so that nobody takes half an answer for a whole one
            await self.refuse(Request(scope), problem)(scope, receive, answer)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        client = scope["client"][0] if scope.get("client") else "unknown"
        self.requests.take(client)
        host = headers.get("host", "")
        if not self.exposed and not is_loopback(_name(host)):
            raise Problem(
                421,
                "host",
                "Not under this name",
                f"This service is for this machine only, not for {host[:80]!r}. Open it as http://localhost, or let "
                "'visage serve' know the name with --public-name.",
            )
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise Problem(400, "nul", "Not an address", "No text here has a NUL character (%00). Leave it out.")
        if scope["method"] not in SAFE:
            _check_origin(headers, host)
        most = self._most_bytes(scope["path"])
        if _announced(headers) > most:
            raise too_large(most)

    def _most_bytes(self, path: str) -> int:
        return self.upload_bytes + ROOM_FOR_FORM if path in UPLOADS else SMALL_BODY


def without_empty(query: bytes) -> bytes:
    """A query without its empty fields. A form sends every field that it has, and an empty one means the same as none."""
    return b"&".join(field for field in query.split(b"&") if field.partition(b"=")[2])


def _name(host: str) -> str:
    """A `Host` without its port; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _check_origin(headers: Headers, host: str) -> None:
    origin = headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != host
    if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Problem(
            403,
            "cross-site",
            "Sent by another site",
            "A page of another site sent this. Do it from this service's own page.",
        )


def _announced(headers: Headers) -> int:
    """The size of the body, as its head says."""
    length = headers.get("content-length", "0")
    # By itself, isdigit takes other scripts' digits, and powers.
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        words = "Content-Length must be a whole number of bytes, in the digits 0 to 9."
        raise Problem(400, "length", "No length", words)
    return int(length)


def too_large(most: int) -> Problem:
    """The body is larger than the service takes."""
    advice = "Send less at once" if most == SMALL_BODY else "Send a smaller picture, or raise VISAGE_UPLOAD_BYTES"
    words = f"More than the {most / 2**20:.0f} MiB that are taken here. {advice}."
    return Problem(413, "too-large", "Too large", words)


def _limited(receive: Receive, most: int) -> Receive:
    """Count what really comes, whatever was announced."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise too_large(most)
        return message

    return counted


def _head_of(send: Send) -> Send:
    """Send the head of an answer, and end it there: that of a stream would not end by itself."""

    async def headed(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body"})

    return headed


def _with_headers(send: Send, secure: bool) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "private, no-cache")
            if secure:
                headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        await send(message)

    return extended
