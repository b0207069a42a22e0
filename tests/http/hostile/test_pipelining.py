"""Many requests on one connection, sent before any answer, also with errors in the middle."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.http.hostile.attacks import INTERRUPT
from tests.http.hostile.client import HEALTH, HOST, chunked, connected, get, head, post
from tests.http.hostile.siege import Siege

pytestmark = pytest.mark.anyio

NUMBERED = 300


def numbered(number: int) -> bytes:
    return get(b"/health", (b"X-Request-Id", b"n-%d" % number))


async def test_requests_are_answered_in_their_order(siege: Siege) -> None:
    async with connected(siege.address) as line, asyncio.TaskGroup() as tasks:
        tasks.create_task(line.pour(b"".join(map(numbered, range(NUMBERED)))))
        for number in range(NUMBERED):
            assert (await line.answer()).fields["x-request-id"] == f"n-{number}"
    await siege.goes_on()


async def test_a_slow_answer_holds_up_those_after_it_and_no_other_connection(siege: Siege) -> None:
    slow = post(b"/query", b'{"prompt": "wait 0.3"}')
    async with connected(siege.address, slow + numbered(1) + slow + numbered(2)) as line:
        async with connected(siege.address, HEALTH) as other:
            assert (await other.answer()).status == 200
        assert (await line.answer()).json["response"] == "Done."
        assert (await line.answer()).fields["x-request-id"] == "n-1"
        assert (await line.answer()).json["response"] == "Done."
        assert (await line.answer()).fields["x-request-id"] == "n-2"
    await siege.goes_on()


async def test_after_every_error_of_the_api_the_next_request_is_answered(siege: Siege) -> None:
    long = json.dumps({"prompt": "a" * 2_000_000}).encode()
    errors = [
        (get(b"/nowhere"), 404),
        (post(b"/nowhere", b"x" * 100_000), 404),
        (head(b"PUT", b"/health", HOST), 405),
        (post(b"/query", b"{"), 400),
        (post(b"/query", b"{}"), 400),
        (post(b"/query", long), 413),
        (chunked(b"/query", long), 413),
        (head(b"POST", b"/query", HOST, (b"Content-Length", b"2")) + b"{}", 415),
        (chunked(INTERRUPT, b"{", b"}"), 404),
        (post(INTERRUPT, b"{}", (b"Expect", b"100-continue")), 404),
        (head(b"OPTIONS", b"/query", HOST), 204),
    ]
    async with connected(siege.address) as line, asyncio.TaskGroup() as tasks:
        tasks.create_task(
            line.pour(b"".join(data + numbered(at) for at, (data, _) in enumerate(errors)))
        )
        for at, (data, status) in enumerate(errors):
            assert (await line.answer()).status == status, data[:100]
            assert (await line.answer()).fields["x-request-id"] == f"n-{at}"
    await siege.goes_on()


@pytest.mark.parametrize(
    "nonsense",
    [b"nonsense\r\n\r\n", b"\0", post(INTERRUPT, b"", length=2).replace(b": 2", b": -2")],
    ids=["words", "NUL", "length"],
)
async def test_what_is_no_http_ends_the_connection_and_nothing_after_it_is_done(
    siege: Siege, nonsense: bytes
) -> None:
    start = post(b"/session/start", b"{}")
    async with connected(siege.address, numbered(1) + nonsense + b"\r\n" + start) as line:
        assert (await line.answer()).fields["x-request-id"] == "n-1"
        refused = await line.answer()
        assert (refused.status, refused.json["code"]) == (400, "malformed_http")
        assert await line.ended()
    await siege.goes_on()


async def test_more_than_a_body_was_said_to_be_is_another_request(siege: Siege) -> None:
    data = post(INTERRUPT, b"{}GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", length=2)
    async with connected(siege.address, data) as line:
        assert (await line.answer()).json["code"] == "session_not_found"
        assert (await line.answer()).json["status"] == "healthy"
    await siege.goes_on()


async def test_requests_whose_answers_nobody_reads_are_not_all_carried_out(siege: Siege) -> None:
    """Each answer is a megabyte: the server must not make what it cannot get rid of."""
    async with connected(siege.address) as line:
        line.listen_no_more()
        pouring = asyncio.create_task(line.pour(get(b"/assets/redoc.standalone.js") * 400_000))
        for _ in range(20):
            async with connected(siege.address, HEALTH) as other:
                assert (await other.answer()).status == 200
            assert siege.world.app.open_requests <= 1
        assert not pouring.done()
        pouring.cancel()
        await asyncio.wait({pouring})
    await siege.goes_on()
