"""Idempotency keys: a write that is sent twice is done once, and answered alike."""

import hashlib
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from flows.service.access import SAFE, identify
from flows.service.problems import Problem
from flows.service.state import Service, service_of
from infra.catalog.service import idempotency

HEADER = "Idempotency-Key"
KEY = re.compile(r"[\x21-\x7e]{1,200}")
PARAMETER = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "1 to 200 visible characters, such as a UUID. Sent again with it, the same request is done once.",
    "schema": {"type": "string", "pattern": "^[\x21-\x7e]{1,200}$"},
}


class IdempotentRoute(APIRoute):
    """A route whose writes honour `Idempotency-Key`, and say so."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        if not SAFE.issuperset(more["methods"]):
            more["openapi_extra"] = {**(more.get("openapi_extra") or {}), "parameters": [PARAMETER]}
        super().__init__(path, endpoint, **more)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get(HEADER)
            if key is None or request.method in SAFE:
                return await handle(request)
            if not KEY.fullmatch(key):
                raise Problem(
                    422, "idempotency-key", "Not a key", f"{HEADER} is 1 to 200 visible characters, such as a UUID."
                )
            who = (await run_in_threadpool(identify, request)).name
            body = await request.body()
            asked = hashlib.sha256(
                f"{request.method} {request.url.path}?{request.url.query}\n".encode() + body
            ).hexdigest()
            service = service_of(request)
            earlier = await run_in_threadpool(_begin, service, who, key, asked)
            if earlier is not None:
                return earlier
            try:
                response = await handle(request)
            except BaseException:
                await run_in_threadpool(_abandon, service, who, key)
                raise
            await run_in_threadpool(_end, service, who, key, asked, response)
            return response

        return once


def _begin(service: Service, who: str, key: str, asked: str) -> Response | None:
    with service.catalog.write() as session:
        known = idempotency.begin(session, who, key, asked)
    if known is None:
        return None
    if known.request_digest != asked:
        raise Problem(
            422,
            "idempotency-key",
            "Key used for something else",
            f"This {HEADER} came with another request before; use a new one.",
        )
    if known.status is None:
        raise Problem(
            409,
            "in-progress",
            "Still at work",
            "The first request with this key is not answered yet.",
            headers={"Retry-After": "1"},
        )
    headers = {"Idempotency-Replayed": "true"} | ({"Location": known.location} if known.location else {})
    return Response(known.body, known.status, headers, JSONResponse.media_type if known.body else None)


def _abandon(service: Service, who: str, key: str) -> None:
    with service.catalog.write() as session:
        idempotency.abandon(session, who, key)


def _end(service: Service, who: str, key: str, asked: str, response: Response) -> None:
    with service.catalog.write() as session:
        body = bytes(response.body).decode()
        idempotency.end(session, who, key, asked, response.status_code, body, response.headers.get("location"))
