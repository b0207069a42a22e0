"""Clients that go away, in each phase of a request and in each way that there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.http.hostile.attacks import CHUNKED
from tests.http.hostile.client import HEALTH, HOST, JSON, Connection, connected, get, head, post
from tests.http.hostile.siege import Siege
from tests.http.servers import BOTH_LOOPS, eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(
    scope="module",
    params=BOTH_LOOPS,
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Both loops: they hear of a client's end at different moments."""
    return request.param


WAIT = b'{"prompt": "wait 0.2"}'
STREAM = b'{"prompt": "wait 0.2", "stream": true}'
LONG = get(b"/assets/redoc.standalone.js")


@dataclass(frozen=True, slots=True)
class Phase:
    """How far a client comes.

    Attributes:
        name: Of the phase.
        data: What the client has sent by then.
        sign: What it has heard by then.
        requests: How many requests are being answered by then.
    """

    name: str
    data: bytes
    sign: bytes = b""
    requests: int = 0


PHASES = (
    Phase("connected", b""),
    Phase("in the request line", b"GET /hea"),
    Phase("in a field", b"GET /health HTTP/1.1\r\nHost: loc"),
    Phase("before the head's last line", HEALTH[:-2]),
    Phase("after the head", post(b"/query", b"", length=99), requests=1),
    Phase("in the body", post(b"/query", b'{"prompt": ', length=99), requests=1),
    Phase("in a chunk", head(b"POST", b"/query", HOST, JSON, CHUNKED) + b"63\r\n{", requests=1),
    Phase("in an unwanted body", post(b"/nowhere", b"x", length=9_999_999), requests=1),
    Phase("before the answer", post(b"/query", WAIT), requests=1),
    Phase("in the answer", LONG, sign=b"HTTP/1.1 200"),
    Phase("in a stream", post(b"/query", STREAM), sign=b"retry: ", requests=1),
    Phase("after the answer", HEALTH, sign=b"\r\n\r\n"),
    Phase("in the next request", HEALTH + b"GET /hea", sign=b"\r\n\r\n"),
    Phase("before the answer, with more asked", post(b"/query", WAIT) + HEALTH, requests=1),
    Phase("in the answer, with more asked", LONG + HEALTH, sign=b"HTTP/1.1 200"),
    Phase("in a stream, with more asked", post(b"/query", STREAM) + HEALTH, b"retry: ", 1),
    Phase("in a stream, in what more is asked", post(b"/query", STREAM) + HEALTH[:9], b"retry: "),
)

WAYS: dict[str, Callable[[Connection], None]] = {
    "closes": Connection.close,
    "resets": Connection.reset,
    "says no more": Connection.say_no_more,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_a_client_that_goes_away_leaves_nothing(siege: Siege, phase: Phase, way: str) -> None:
    async with connected(siege.address, phase.data) as line:
        if phase.sign:
            await line.hear(phase.sign)
        await eventually(lambda: siege.world.app.open_requests >= phase.requests)
        WAYS[way](line)
        if way == "says no more":
            await line.rest()
    await siege.goes_on()


@pytest.mark.parametrize(
    "request_", [HEALTH, LONG, post(b"/query", WAIT)], ids=["short", "long", "slow"]
)
async def test_who_says_no_more_still_gets_the_answer(siege: Siege, request_: bytes) -> None:
    async with connected(siege.address, request_) as line:
        line.say_no_more()
        assert (await line.answer()).status == 200
        assert await line.ended()
    await siege.goes_on()


@pytest.mark.parametrize("more", [b"", HEALTH, HEALTH[:9]], ids=["nothing", "more", "half"])
async def test_a_silent_stream_of_a_client_that_is_gone_ends(siege: Siege, more: bytes) -> None:
    """Also where the connection is not read from, for what it asks next must wait."""
    session = await siege.world.supervisor.start()
    path = f"/session/{session.session_id}/events".encode()
    async with connected(siege.address, get(path) + more) as line:
        await line.hear(b"retry: ")
        line.reset()
    await eventually(lambda: siege.world.app.open_streams == 0)
    await eventually(lambda: "connections" not in siege.left())
    await siege.world.supervisor.close(session.session_id)
    await siege.goes_on()


async def test_a_turn_goes_on_without_the_client_that_asked(siege: Siege) -> None:
    session = await siege.world.supervisor.start()
    path = f"/session/{session.session_id}/query".encode()
    async with connected(siege.address, post(path, WAIT)) as line:
        await eventually(lambda: siege.world.app.open_requests == 1)
        line.reset()
    await eventually(lambda: siege.world.app.open_requests == 0)
    (record,) = await session.turns()
    turn = await session.turn(record.turn_id)
    assert (await turn.result()).text == "Done."
    await siege.world.supervisor.close(session.session_id)
    await siege.goes_on()
