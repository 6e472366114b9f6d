"""The gate by itself: what no server in front of it lets through, and another may."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from flows.service.gate import SMALL_BODY, Gate
from flows.service.limits import Limiter, Rate
from flows.service.problems import as_json


def answer_to(content_length: bytes) -> int:
    """The status of the answer to a write whose head says so of its body."""
    sent: list[Message] = []

    async def within(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    gate = Gate(within, Limiter(Rate(9, 9), "requests"), SMALL_BODY, exposed=False, refuse=as_json)
    headers = [(b"host", b"localhost"), (b"content-length", content_length)]
    scope = {"type": "http", "method": "POST", "scheme": "http", "path": "/api/v1/x", "query_string": b""}
    asyncio.run(gate({**scope, "headers": headers}, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "length", [b"", b"\xb2", b"1\xb2", b"-1", b"+1", b"1_0", b" 1", b"0x10", b"1, 1", "٣".encode(), b"9" * 5000]
)
def test_a_length_that_is_no_number_is_a_bad_request(length: bytes) -> None:
    assert answer_to(length) == 400


def test_a_length_is_taken_up_to_the_limit() -> None:
    lengths = (b"0", b"00012", str(SMALL_BODY).encode(), str(SMALL_BODY + 1).encode(), b"9" * 18)
    assert [answer_to(length) for length in lengths] == [200, 200, 200, 413, 413]
