"""Server-sent events: how a run or a job gets on, asked of the catalog once a second."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from flows.service.access import identify
from flows.service.problems import Problem
from flows.service.state import Service

SECONDS = 1.0
OVER = frozenset({"done", "done_with_failures", "failed", "crashed", "skipped", "missed"})
EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}, "retry": {"type": "integer"}},
}
EVENTS = {
    200: {
        "description": "Server-sent events: 'progress' with the same JSON as without /events, at last 'end'; or 'problem' with "
        "problem details, as when the token was revoked meanwhile.",
        "content": {"text/event-stream": {"schema": EVENT}},
    }
}


def stream(
    service: Service, request: Request, look: Callable[[], BaseModel], over: Collection[str] = OVER
) -> StreamingResponse:
    """Send `look()` whenever it changes, until its `status` is among those that say that it is over, or who asks may no more.

    Raises:
        Problem: 503 if too many are watching.
    """
    first = look()  # what is not there is a problem, not an empty stream
    if not service.streams.acquire(blocking=False):
        raise Problem(503, "too-many-streams", "Too many are watching", "Close other pages, or ask again later.")

    def look_again() -> BaseModel:
        identify(request)
        return look()

    async def events() -> AsyncIterator[str]:
        seen, state = None, first
        try:
            yield "retry: 3000\n\n"
            while True:
                content = state.model_dump(mode="json")
                if content != seen:
                    yield _event("progress", content)
                    seen = content
                if content["status"] in over:
                    yield _event("end", content)
                    return
                await asyncio.sleep(SECONDS)
                if await request.is_disconnected():
                    return
                state = await run_in_threadpool(look_again)
        except Problem as problem:
            yield _event("problem", problem.as_dict(request.url.path))
        finally:
            service.streams.release()

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _event(name: str, content: object) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
