"""Clients that take their time, alone and in crowds: each is bounded, and nobody waits for them."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack

import pytest

from session_http import app
from tests.http.hostile.attacks import CHUNKED, INTERRUPT
from tests.http.hostile.client import HEALTH, HOST, JSON, Connection, ask, connected, head, post
from tests.http.hostile.siege import ANSWER_S, HASTY, QUICK, Siege, besieged
from tests.support.own_time import OwnTime

pytestmark = pytest.mark.anyio

MANY = 1_000
SLACK_S = 0.5
"""What our own work may add to a time-out, however busy the machine is."""

HEADS = {
    "the request line": b"GET /" + b"a" * 5_000,
    "a field": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 5_000,
    "fields": b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 1_000,
}
BODIES = {
    "a body": post(INTERRUPT, b"", length=9_999),
    "a body where none belongs": head(b"GET", b"/health", HOST, (b"Content-Length", b"9999")),
}


async def timed(line: Connection) -> tuple[int, str, float]:
    """Return the status, the code and our own seconds until the server closed the connection."""
    spent = OwnTime()
    answer = await line.answer()
    assert answer.fields["connection"] == "close"
    assert await line.ended()
    return answer.status, answer.json["code"], spent.seconds


@pytest.fixture(scope="module")
async def siege() -> AsyncGenerator[Siege]:
    async with besieged(limits=HASTY) as one:
        yield one


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_that_comes_byte_by_byte_is_given_up(siege: Siege, name: str) -> None:
    async with connected(siege.address) as line:
        dripping = asyncio.create_task(line.drip(HEADS[name], every_s=0.01))
        status, code, seconds = await timed(line)
        assert (status, code) == (408, "request_timeout")
        assert seconds < HASTY.head_s + SLACK_S
        dripping.cancel()
        await asyncio.wait({dripping})
    await siege.goes_on()


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_comes_byte_by_byte_is_given_up(siege: Siege, name: str) -> None:
    async with connected(siege.address, BODIES[name]) as line:
        dripping = asyncio.create_task(line.drip(b"a" * 9_000, every_s=0.01))
        status, code, seconds = await timed(line)
        assert (status, code) == (408, "request_timeout")
        assert seconds < QUICK.body_timeout_s + SLACK_S
        dripping.cancel()
        await asyncio.wait({dripping})
    await siege.goes_on()


async def test_a_body_to_nobody_is_not_waited_for(
    siege: Siege, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "DISCARD_S", 0.3)
    async with connected(siege.address, post(b"/nowhere", b"", length=9_999)) as line:
        dripping = asyncio.create_task(line.drip(b"a" * 9_000, every_s=0.01))
        status, code, seconds = await timed(line)
        assert (status, code) == (404, "not_found")
        assert seconds < 2 * app.DISCARD_S + SLACK_S
        dripping.cancel()
        await asyncio.wait({dripping})
    await siege.goes_on()


async def test_chunks_that_never_end_are_given_up(siege: Siege) -> None:
    async with connected(siege.address, head(b"POST", INTERRUPT, HOST, JSON, CHUNKED)) as line:
        dripping = asyncio.create_task(line.drip(b"1\r\n \r\n" * 1_000, every_s=0.01))
        assert (await timed(line))[:2] == (408, "request_timeout")
        dripping.cancel()
        await asyncio.wait({dripping})
    await siege.goes_on()


@pytest.mark.parametrize("data", [b"", HEALTH], ids=["never", "no more"])
async def test_a_connection_on_which_nothing_is_asked_is_closed(siege: Siege, data: bytes) -> None:
    async with connected(siege.address, data) as line:
        if data:
            await line.answer()
        spent = OwnTime()
        assert await line.ended()
        assert spent.seconds < HASTY.idle_s + SLACK_S
    await siege.goes_on()


async def test_a_hundred_slow_clients_delay_nobody(siege: Siege) -> None:
    """Each drips its own way, for as long as it may."""
    ways = [*HEADS.values(), *(one + b"a" * 5_000 for one in BODIES.values())]
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for number in range(100):
            line = await stack.enter_async_context(connected(siege.address))
            data = ways[number % len(ways)]
            line.say(data[:20])
            tasks.create_task(line.drip(data[20:120], every_s=0.02))
        for _ in range(20):
            spent = OwnTime()
            assert (await ask(siege.address, HEALTH)).status == 200
            assert spent.seconds < ANSWER_S
            await asyncio.sleep(0.02)
    await siege.goes_on()


@pytest.fixture
def many_files() -> Generator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3 * MANY:
        pytest.skip(f"needs {3 * MANY} file descriptors, and the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * MANY), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
@pytest.mark.parametrize("data", [b"", b"GET /hea"], ids=["silent", "half-asked"])
async def test_a_thousand_half_open_connections_delay_nobody(siege: Siege, data: bytes) -> None:
    async with AsyncExitStack() as stack:
        lines = [
            await stack.enter_async_context(connected(siege.address, data, at_once=True))
            for _ in range(MANY)
        ]
        spent = OwnTime()
        assert (await ask(siege.address, HEALTH)).status == 200
        assert spent.seconds < ANSWER_S
        # None is kept for longer than it may: the client need not do anything.
        answers = [await line.rest() for line in lines]
        assert all(b" 408 " in said if data else not said for said in answers)
        assert (await ask(siege.address, HEALTH)).status == 200
    await siege.goes_on()


@pytest.mark.usefixtures("many_files")
async def test_a_thousand_connections_that_are_reset_leave_nothing(siege: Siege) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(MANY):
            line = await stack.enter_async_context(connected(siege.address, b"GET /hea"))
            line.reset()
    await siege.goes_on()
