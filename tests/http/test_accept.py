"""Who gets in, how long a request may take to come, and what those hear who do not."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import httpx
import pytest

from session_http.accept import ANSWER_S, MOST_CONNECTIONS, connections_for
from session_http.serve import StopTimes
from session_http.settings import HttpSettings
from session_http.wire import ConnectionLimits
from tests.http.servers import (
    BOTH_LOOPS,
    PATIENCE_S,
    Address,
    World,
    accepting,
    eventually,
    on_hypercorn,
    world,
)
from tests.http.test_serve import connected, is_idle, post, script, serve_until_stopped
from tests.support.own_time import OwnTime

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BOTH_LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Both loops: they accept in their own ways."""
    return request.param


@asynccontextmanager
async def serving(
    settings: HttpSettings | None = None, **options: Any
) -> AsyncGenerator[tuple[World, Address]]:
    async with world(script, settings=settings) as one, on_hypercorn(one, **options) as address:
        yield one, address


def connections() -> int:
    """How many are served; the test is in the same loop."""
    return sum("Acceptor._serve" in repr(task) for task in asyncio.all_tasks())


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


# -- how many ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "connections"),
    [(64, 32), (256, 128), (1024, 768), (65_536, MOST_CONNECTIONS), (None, MOST_CONNECTIONS)],
)
def test_the_limit_of_files_leaves_room_for_processes(files: int | None, connections: int) -> None:
    assert connections_for(files) == connections


async def test_who_is_one_too_many_is_told_so_and_served_later() -> None:
    async with serving(max_connections=3) as (_, address), AsyncExitStack() as stack:
        inside = [await stack.enter_async_context(connected(address, HEALTH)) for _ in range(3)]
        for one in inside:
            assert (await one.answer())[0] == 200
        async with connected(address, HEALTH) as outside:
            status, body = await outside.answer()
            assert (status, body["code"], body["retry_after"]) == (503, "too_many_connections", 5)
            assert await outside.closed()
        inside[0].writer.close()

        async def served() -> bool:
            async with connected(address, HEALTH) as raw:
                return (await raw.answer())[0] == 200

        await eventually(served)
        inside[1].writer.write(HEALTH)
        assert (await inside[1].answer())[0] == 200


async def test_a_crowd_that_is_turned_away_is_told_so_and_leaves_nothing() -> None:
    async with serving(max_connections=1) as (one, address):
        async with connected(address, HEALTH) as inside:
            assert (await inside.answer())[0] == 200
            crowd = [socket.create_connection((address.host, address.port)) for _ in range(300)]
            inside.writer.write(HEALTH)
            assert (await inside.answer())[0] == 200
            for one_ in crowd:
                one_.setblocking(False)
                async with asyncio.timeout(PATIENCE_S):
                    said = await asyncio.get_running_loop().sock_recv(one_, 4096)
                assert said.startswith(b"HTTP/1.1 503 ")
                one_.close()
        await is_idle(one)


@contextmanager
def no_more_files(besides: int) -> Generator[list[socket.socket]]:
    """Leave the process without a file descriptor; yields so many sockets that it has before."""
    kept = [socket.socket() for _ in range(besides)]
    for one in kept:
        one.setblocking(False)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(one.fileno() for one in kept)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    fillers: list[socket.socket] = []
    try:
        with suppress(OSError):
            while True:
                fillers.append(socket.socket())
        yield kept
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for one in (*fillers, *kept):
            one.close()


async def all_said(one: socket.socket) -> bytes:
    said = b""
    while data := await asyncio.get_running_loop().sock_recv(one, 4096):
        said += data
    return said


async def test_without_file_descriptors_clients_are_told_so_and_later_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    async with (
        serving(max_connections=100) as (_, address),
        connected(address, HEALTH) as inside,
    ):
        assert (await inside.answer())[0] == 200
        with no_more_files(3) as outside:
            for one in outside:
                await loop.sock_connect(one, (address.host, address.port))
                await loop.sock_sendall(one, HEALTH)
            for one in outside:
                async with asyncio.timeout(PATIENCE_S):
                    said = await all_said(one)
                assert said.startswith(b"HTTP/1.1 503 ")
                assert b"too_many_connections" in said
            inside.writer.write(HEALTH)
            assert (await inside.answer())[0] == 200
        async with connected(address, HEALTH) as raw:
            assert (await raw.answer())[0] == 200
    complaints = [record for record in caplog.records if "turned away" in record.getMessage()]
    assert len(complaints) == 1
    assert "ulimit -n" in complaints[0].getMessage()


async def test_without_file_descriptors_nobody_waits_for_those_who_are_slow_to_leave() -> None:
    loop = asyncio.get_running_loop()
    async with (
        serving(max_connections=100) as (_, address),
        connected(address, HEALTH) as inside,
    ):
        assert (await inside.answer())[0] == 200
        # More than there are descriptors to spare.
        with no_more_files(40) as outside:
            spent = OwnTime()
            for one in outside:
                await loop.sock_connect(one, (address.host, address.port))
            async with asyncio.timeout(PATIENCE_S):
                told = [await all_said(one) for one in outside]  # none of them closes
            # One after the other they would take a second each.
            assert spent.seconds < 5 * ANSWER_S
            assert all(said.startswith(b"HTTP/1.1 503 ") for said in told)
            inside.writer.write(HEALTH)
            assert (await inside.answer())[0] == 200
        async with connected(address, HEALTH) as raw:
            assert (await raw.answer())[0] == 200


# -- how long ----------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [b"G", b"GET /health HTTP/1.1\r\nHost: x\r\n", HEALTH[:-1]])
async def test_a_head_that_never_ends_is_a_408(begin: bytes) -> None:
    limits = ConnectionLimits(head_s=0.2)
    async with serving(limits=limits) as (one, address):
        async with connected(address, begin) as raw:
            status, body = await raw.answer()
            assert (status, body["code"]) == (408, "request_timeout")
            assert await raw.closed()
        await is_idle(one)


async def test_a_head_that_drips_is_a_408_too() -> None:
    limits = ConnectionLimits(head_s=0.3)
    async with serving(limits=limits) as (one, address):
        async with connected(address, b"GET /health HTTP/1.1\r\n") as raw:

            async def drip() -> None:
                while True:
                    raw.writer.write(b"A: b\r\n")
                    await asyncio.sleep(0.02)

            dripping = asyncio.create_task(drip())
            status, _ = await raw.answer()
            dripping.cancel()
            assert status == 408
        await is_idle(one)


async def test_the_second_request_of_a_connection_has_its_own_time() -> None:
    limits = ConnectionLimits(head_s=1.0, idle_s=60.0)
    async with serving(limits=limits) as (_, address), connected(address) as raw:
        for _ in range(2):
            raw.writer.write(HEALTH[:10])
            await asyncio.sleep(0.05)
            raw.writer.write(HEALTH[10:])
            assert (await raw.answer())[0] == 200
            await asyncio.sleep(1.1)  # idle for longer than a head may take
        raw.writer.write(HEALTH[:10])
        assert (await raw.answer())[0] == 408


async def test_who_says_nothing_is_let_go() -> None:
    limits = ConnectionLimits(head_s=0.2, idle_s=0.4)
    async with serving(limits=limits) as (one, address):
        async with connected(address) as silent, connected(address, HEALTH) as served:
            assert await silent.closed()
            assert (await served.answer())[0] == 200
            assert await served.closed()
        await is_idle(one)


async def test_a_thousand_half_open_connections_are_let_go_while_others_are_served() -> None:
    limits = ConnectionLimits(head_s=0.5)
    async with serving(limits=limits, max_connections=2_000) as (one, address):
        crowd = [socket.create_connection((address.host, address.port)) for _ in range(300)]
        for one_ in crowd:
            one_.send(b"GET / HTTP/1.1\r\n")
        async with httpx.AsyncClient(base_url=address.url, timeout=PATIENCE_S) as client:
            assert (await client.get("/health")).status_code == 200
        await is_idle(one)
        for one_ in crowd:
            one_.close()


async def test_what_came_while_we_stood_still_is_read_before_a_connection_is_ended() -> None:
    limits = ConnectionLimits(head_s=2.0, idle_s=1.0)
    async with serving(limits=limits) as (one, address):
        async with connected(address) as late, connected(address) as half:
            await eventually(lambda: connections() == 2)
            late.writer.write(HEALTH)
            half.writer.write(HEALTH[:10])
            time.sleep(limits.head_s + 0.1)  # noqa: ASYNC251 - the loop, and with it the server
            assert (await late.answer())[0] == 200
            assert await late.closed(), "and it is not forgotten when it is idle"
            assert (await half.answer())[0] == 408
        await is_idle(one)


async def test_an_answer_that_nobody_reads_is_given_up() -> None:
    limits = ConnectionLimits(unread_s=0.3, linger_s=0.2)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 50_000_000})

    async with accepting(app, limits=limits) as address:
        tasks = len(asyncio.all_tasks())
        async with connected(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as raw:
            raw.pause()
            await eventually(lambda: len(asyncio.all_tasks()) > tasks)
            await eventually(lambda: len(asyncio.all_tasks()) == tasks)


# -- what is no proper request -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400, "malformed_http"),
        (b"GET /health\r\n\r\n", 400, "malformed_http"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n", 400, "malformed_http"),
        (HEALTH[:-2] + b"A: b\r\n" * 10_000, 431, "headers_too_large"),
        (HEALTH[:-2] + b"A: " + b"b" * 100_000, 431, "headers_too_large"),
        (b"GET /" + b"x" * 100_000, 431, "headers_too_large"),
    ],
    ids=["tls", "short", "no host", "hosts", "coding", "headers", "header", "target"],
)
async def test_it_is_refused_in_json_and_closed(data: bytes, status: int, code: str) -> None:
    async with serving() as (one, address):
        async with connected(address, data) as raw:
            answered, body = await raw.answer()
            assert (answered, body["code"]) == (status, code)
            assert await raw.closed()
        await is_idle(one)


async def test_garbage_behind_a_head_request_is_refused_without_a_body(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = b"HEAD /health HTTP/1.0\r\nHost: x\r\n\r\nmore"
    async with serving() as (one, address):
        async with connected(address, data) as raw:
            head, _, body = (await raw.reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            assert body == b""
        await is_idle(one)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_client_may_go_before_the_end_of_its_answer_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        # What ends the answer is that the connection does.
        await send({"type": "http.response.body", "body": b""})
        gone.set()

    async with accepting(app) as address:
        client = socket.create_connection((address.host, address.port))
        client.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            await gone.wait()
    assert not caplog.records


async def test_a_target_may_be_a_whole_url_whose_host_is_the_one_that_counts() -> None:
    settings = HttpSettings(trusted_hosts=frozenset({"localhost"}))
    async with serving(settings) as (_, address):
        for url, host, status in [
            (b"http://localhost/health?", b"evil.example", 200),
            (b"HTTP://localhost:3000/health", b"localhost", 200),
            (b"http://evil.example/health", b"localhost", 403),
            (b"http://localhost", b"localhost", 200),
            (b"http://localhost?", b"localhost", 200),
            (b"http://", b"localhost", 403),
            (b"http:///health", b"localhost", 403),
            (b"http://[", b"localhost", 403),
            (b"http://a]b/health", b"localhost", 403),
            (b"http://[::x]/health", b"localhost", 403),
        ]:
            async with connected(
                address, b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (url, host)
            ) as raw:
                assert (await raw.answer())[0] == status, url


async def test_an_offer_of_a_web_socket_is_ignored() -> None:
    data = (
        b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    async with serving() as (one, address):
        for path, status in ((b"/health", 200), (b"/nope", 404)):
            async with connected(address, data % path) as raw:
                assert (await raw.answer())[0] == status
        await is_idle(one)


# -- who asks before sending -------------------------------------------------------------------


def asking(path: str, length: int) -> bytes:
    return post(path, b"", length=length)[:-2] + b"Expect: 100-continue\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "length", "status"), [("/query", 10_000_000, 413), ("/nope", 10, 404)]
)
async def test_who_asks_first_hears_at_once_that_it_is_not_wanted(
    path: str, length: int, status: int
) -> None:
    async with serving(HttpSettings(max_body_bytes=100)) as (one, address):
        async with connected(address, asking(path, length)) as raw, asyncio.timeout(20):
            head = await raw.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            assert b"connection: close" in head.lower()
        await is_idle(one)


async def test_who_asks_first_hears_that_it_is_wanted() -> None:
    body = json.dumps({"prompt": "hi"}).encode()
    async with serving() as (_, address), connected(address, asking("/query", len(body))) as raw:
        assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        raw.writer.write(body)
        assert (await raw.answer())[0] == 200


# -- half-closed, and the end ------------------------------------------------------------------


async def test_a_client_that_has_said_all_still_gets_its_answer() -> None:
    async with serving() as (one, address):
        async with connected(address, HEALTH) as raw:
            raw.writer.write_eof()
            assert (await raw.answer())[0] == 200
            assert await raw.closed()
        async with connected(address, post("/query", b'{"prompt": "wait 0.3"}')) as raw:
            raw.writer.write_eof()
            status, body = await raw.answer()
            assert (status, body["response"]) == (200, "Done.")
            await one.supervisor.close(body["session_id"])
        await is_idle(one)


async def test_a_stop_answers_those_whose_body_has_not_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with world(script) as one:
        stop, address, task = await serve_until_stopped(one, StopTimes(drain_s=0))
        async with (
            connected(address, post("/query", b"{", length=99)) as half,
            connected(address, post("/nope", b"{", length=99)) as unwanted,
            connected(address) as silent,
        ):
            await eventually(lambda: one.app.open_requests == 2)
            stop.ask()
            status, body = await half.answer()
            assert (status, body["code"]) == (503, "draining")
            assert (await unwanted.answer())[0] == 404
            assert await silent.closed()
        async with asyncio.timeout(PATIENCE_S):
            await task
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
