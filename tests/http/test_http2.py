"""HTTP/2: what it carries, and clients that abuse it."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import h2.connection
import h2.errors
import h2.events
import h2.settings
import hypercorn.protocol
import pytest
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.events import Closed, RawData
from hypercorn.typing import ConnectionState

from session_http.http2 import MOST_STREAMS, Http2, Patience
from session_http.serve import StopTimes
from session_http.settings import HttpSettings
from session_http.sse import StreamSettings
from session_http.wire import ConnectionLimits, Wire, hypercorn_settings
from tests.http.contract import parse_stream
from tests.http.h2_client import H2Client, frame, http2
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
from tests.http.test_serve import connected, is_idle, script, serve_until_stopped

pytestmark = pytest.mark.anyio

Codes = h2.errors.ErrorCodes


@pytest.fixture(params=BOTH_LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Both loops: they differ in how connections end."""
    return request.param


@asynccontextmanager
async def serving(
    limits: ConnectionLimits | None = None, **options: Any
) -> AsyncGenerator[tuple[World, Address]]:
    async with world(script, **options) as one, on_hypercorn(one, limits=limits) as address:
        yield one, address


def said(body: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(body)
    return answer


# -- what it carries ---------------------------------------------------------------------------


async def test_requests_are_answered_as_over_http_1() -> None:
    async with serving() as (one, address):
        async with http2(address) as client:
            health = await client.get("/health")
            assert health.status == 200
            assert "date" in health.headers
            assert "connection" not in health.headers
            answer = await client.answer(client.post("/query", b'{"prompt": "hi"}'))
            assert said(answer.body)["response"] == "You said: hi"
            await one.supervisor.close(said(answer.body)["session_id"])
            missing = await client.get("/nope")
            assert (missing.status, said(missing.body)["code"]) == (404, "not_found")
            head = await client.answer(client.request("/health", method="HEAD"))
            assert (head.status, head.body, head.ended) == (200, b"", True)
        await is_idle(one)


async def test_a_post_without_a_body_needs_none() -> None:
    """Nothing in the head of such a request says whether there is one."""
    async with serving() as (one, address), http2(address) as client:
        session = await one.supervisor.start()
        path = f"/session/{session.session_id}/interrupt"
        answer = await client.answer(client.request(path, method="POST"))
        assert answer.status == 200
        bare = await client.answer(client.request("/query", method="POST"))
        assert (bare.status, said(bare.body)["code"]) == (400, "malformed_json")


async def test_a_stream_can_be_resumed() -> None:
    async with serving() as (one, address):
        session = await one.supervisor.start()
        path = f"/session/{session.session_id}/events"
        await (await session.query("one")).result()
        async with http2(address) as client:
            stream = client.streams[number := client.request(path)]
            await client.until(lambda: b'"text"' in stream.body)
            client.reset(number)
            had = [event.id for event in parse_stream(stream.body) if event.id]
        async with http2(address) as client:
            number = client.request(path, headers=[("last-event-id", str(had[1]))])
            rest = client.streams[number]
            await client.until(lambda: b'"done"' in rest.body)
            assert parse_stream(rest.body)[0].id == had[1] + 1


async def test_a_long_body_goes_up_and_a_long_answer_down() -> None:
    async def echo(_scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * size})

    async with accepting(echo) as address, http2(address) as client:
        number = client.request("/", method="POST", end=False)
        await client.upload(number, b"x" * 3_000_000, end=True)
        answer = await client.answer(number)
        assert len(answer.body) == 3_000_000


async def test_trailers_arrive() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"x"})
        await send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})

    async with accepting(app) as address, http2(address) as client:
        answer = await client.answer(client.request("/", headers=[("te", "trailers")]))
        assert (answer.body, answer.trailers, answer.ended) == (b"x", {"a": "b"}, True)


async def test_a_thousand_streams_are_open_on_one_connection_and_all_get_the_event() -> None:
    async with serving() as (one, address), http2(address) as client:
        session = await one.supervisor.start()
        path = f"/session/{session.session_id}/events"
        await client.read()
        numbers = [client.request(path) for _ in range(MOST_STREAMS)]
        streams = [client.streams[number] for number in numbers]
        await client.until(lambda: all(b"retry" in stream.body for stream in streams))
        assert one.app.open_streams == MOST_STREAMS
        await (await session.query("hi")).result()
        await client.until(lambda: all(b'"done"' in stream.body for stream in streams))
        for number in numbers:
            client.reset(number)
        await eventually(lambda: one.app.open_streams == 0)
        assert (await client.get("/health")).status == 200


async def test_more_requests_than_a_thousand_do_not_end_the_connection() -> None:
    async with serving() as (one, address), http2(address) as client:
        session = await one.supervisor.start()
        number = client.request(f"/session/{session.session_id}/events")
        for _ in range(11):
            batch = [client.request("/health") for _ in range(100)]
            for one_ in batch:
                assert (await client.answer(one_)).status == 200
        await (await session.query("hi")).result()
        await client.until(lambda: b'"done"' in client.streams[number].body)
        assert not client.streams[number].over


@pytest.mark.parametrize("begin", [b"GET /health HTTP/1.1", b"PRI * HTTP/2.0"])
async def test_an_offer_to_change_to_http_2_is_ignored(begin: bytes) -> None:
    """Through a proxy that passes it on, any request could follow, whatever the proxy forbids."""
    offer = (
        b"%s\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    async with serving() as (one, address):
        async with connected(address, offer % begin) as raw:
            line = await raw.reader.readexactly(12)
            assert line == b"HTTP/1.1 200" or not (begin.startswith(b"GET") or b" 101" in line)
        await is_idle(one)


async def test_it_can_be_turned_off() -> None:
    async with (
        world(script) as one,
        on_hypercorn(one, http2=False) as address,
    ):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert b" 404 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_hypercorn_is_left_as_it_is_for_others() -> None:
    before = dict(vars(hypercorn.protocol))
    async with serving():
        assert dict(vars(hypercorn.protocol)) == before


@pytest.mark.parametrize(
    ("authority", "host", "outcome"),
    [
        ("localhost", None, 200),
        ("evil.example", None, 403),
        (None, "localhost", 200),
        (None, "evil.example", 403),
        ("localhost", "localhost", 200),
        ("localhost", "evil.example", Codes.PROTOCOL_ERROR),
        ("evil.example", "localhost", Codes.PROTOCOL_ERROR),
    ],
)
async def test_the_host_that_counts_is_the_one_that_is_meant(
    authority: str | None, host: str | None, outcome: int
) -> None:
    settings = HttpSettings(trusted_hosts=frozenset({"localhost"}))
    async with serving(settings=settings) as (_, address), http2(address) as client:
        fields = [(":method", "GET"), (":scheme", "http"), (":path", "/health")]
        if authority is not None:
            fields.append((":authority", authority))
        if host is not None:
            fields.append(("host", host))
        client.h2.send_headers(1, fields, end_stream=True)
        client.flush()
        if isinstance(outcome, Codes):
            assert await client.end() == outcome
        else:
            assert (await client.answer(1)).status == outcome


# -- clients that read nothing -----------------------------------------------------------------


async def test_a_stream_without_a_window_waits_alone() -> None:
    async with serving() as (one, address):
        session = await one.supervisor.start()
        path = f"/session/{session.session_id}/events"
        async with http2(address, grants=False, window=0) as client:
            number = client.request(path)
            await client.until(lambda: client.streams[number].status == 200)
            turn = await session.query("flood 200")
            await turn.result()
            assert one.app.open_streams == 1
            assert client.streams[number].body == b""
            assert (await client.answer(client.request("/health", method="HEAD"))).status == 200
            client.h2.increment_flow_control_window(50, number)
            client.flush()
            await client.until(lambda: len(client.streams[number].body) == 50)
            client.h2.increment_flow_control_window(2**24, number)
            client.h2.increment_flow_control_window(2**24)
            client.flush()
            await client.until(lambda: b'"done"' in client.streams[number].body)
            client.reset(number)
            await eventually(lambda: one.app.open_streams == 0)


async def test_streams_take_turns_when_the_window_of_the_connection_is_small() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 400_000})

    async with accepting(app) as address, http2(address, window=2**20, grants=False) as client:
        numbers = [client.request("/") for _ in range(4)]
        for _ in range(15):
            client.h2.increment_flow_control_window(65_535)
            client.flush()
        total = 16 * 65_535
        await client.until(lambda: sum(len(client.streams[n].body) for n in numbers) == total)
        sizes = [len(client.streams[number].body) for number in numbers]
        assert max(sizes) - min(sizes) <= 2 * 65_536, sizes


async def test_an_answer_that_nobody_reads_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    limits = ConnectionLimits(unread_s=0.3)
    async with serving(limits) as (one, address):
        async with http2(address, window=0) as client:
            answer = await client.get("/openapi.json")
            assert (answer.status, answer.body, answer.reset) == (200, b"", Codes.CANCEL)
            await eventually(lambda: one.app.open_requests == 0)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_event_stream_that_nobody_reads_is_given_up() -> None:
    streams = StreamSettings(send_timeout_s=0.3, heartbeat_s=0.1)
    async with (
        serving(settings=HttpSettings(streams=streams)) as (one, address),
        http2(address, window=0) as client,
    ):
        session = await one.supervisor.start()
        stream = await client.get(f"/session/{session.session_id}/events")
        assert stream.reset == Codes.INTERNAL_ERROR
        assert one.app.open_streams == 0


async def test_a_client_that_reads_no_bytes_at_all_is_dropped() -> None:
    limits = ConnectionLimits(unread_s=0.3)
    async with (
        serving(limits) as (one, address),
        http2(address, window=2**30, grants=False) as client,
    ):
        session = await one.supervisor.start()
        client.h2.increment_flow_control_window(2**30)
        client.request(f"/session/{session.session_id}/events")
        transport: Any = client.writer.transport
        transport.pause_reading()
        await (await session.query("flood 20000")).result()
        await eventually(lambda: one.app.open_streams == 0)


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end() -> None:
    released = asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 50_000_000})
        released.set()

    limits = ConnectionLimits(unread_s=60, linger_s=0.1)
    async with (
        asyncio.timeout(PATIENCE_S),
        AsyncExitStack() as stack,
        accepting(app, limits=limits) as address,
    ):
        client = await stack.enter_async_context(http2(address, window=2**30, grants=False))
        client.h2.increment_flow_control_window(2**30)
        number = client.request("/")
        await client.until(lambda: client.streams[number].body != b"")
        transport: Any = client.writer.transport
        transport.pause_reading()
        await asyncio.sleep(0.3)  # until nothing goes out any more
        client.reset(number)
        await released.wait()


def wired(
    group: asyncio.TaskGroup, app: Any, sent: list[Any], *, unread_s: float = 60.0
) -> tuple[Http2, Wire]:
    """Return a connection's HTTP/2 without a connection; what it sends is put into a list."""

    async def send(event: Any) -> None:
        sent.append(event)

    wire = Wire(
        app=app,
        config=hypercorn_settings(),
        context=WorkerContext(None),
        group=group,
        state=ConnectionState({}),
        ssl=False,
        client=None,
        server=None,
        http2=True,
        limits=ConnectionLimits(unread_s=unread_s),
        send=send,
        write_now=lambda _data: False,
    )
    return Http2(wire), wire


def requesting(*, window: int) -> tuple[h2.connection.H2Connection, RawData]:
    """Return a client, and a request of its."""
    client = h2.connection.H2Connection()
    client.local_settings = h2.settings.Settings(
        client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
    )
    client.initiate_connection()
    client.send_headers(
        1,
        [(":method", "GET"), (":scheme", "http"), (":authority", "x"), (":path", "/")],
        end_stream=True,
    )
    return client, RawData(data=client.data_to_send())


async def says_x(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


async def test_a_client_may_go_in_the_moment_in_which_it_is_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        server, _ = wired(group, says_x, [], unread_s=0.1)
        await server.initiate()
        await server.handle(requesting(window=0)[1])
        await asyncio.sleep(0.01)
        # Both are due when the loop looks next, and it hears of the client first.
        loop.call_later(0.05, lambda: group.create_task(server.handle(Closed())))
        time.sleep(0.2)  # noqa: ASYNC251 - that the loop does not look is the point
    assert not caplog.records


async def test_a_request_that_comes_when_the_server_ends_is_refused() -> None:
    sent: list[Any] = []
    async with asyncio.TaskGroup() as group:
        server, wire = wired(group, says_x, sent)
        await server.initiate()
        await wire.context.terminated.set()
        client, request = requesting(window=100)
        await server.handle(request)
        await server.handle(Closed())
    data = b"".join(event.data for event in sent if isinstance(event, RawData))
    (refused,) = (
        event for event in client.receive_data(data) if isinstance(event, h2.events.StreamReset)
    )
    assert refused.error_code == Codes.REFUSED_STREAM


async def test_the_last_answer_is_followed_by_a_farewell_when_the_server_ends() -> None:
    sent: list[Any] = []
    may_answer = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await may_answer.wait()
        await says_x(scope, receive, send)

    async with asyncio.TaskGroup() as group:
        server, wire = wired(group, app, sent)
        await server.initiate()
        client, request = requesting(window=100)
        await server.handle(request)
        await wire.context.terminated.set()
        may_answer.set()
    data = b"".join(event.data for event in sent if isinstance(event, RawData))
    assert isinstance(client.receive_data(data)[-1], h2.events.ConnectionTerminated)
    assert isinstance(sent[-1], Closed)


async def test_who_reads_slowly_is_not_taken_for_one_who_does_not_read() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 1_500_000})

    limits = ConnectionLimits(unread_s=2.0)
    async with accepting(app, limits=limits) as address, http2(address, grants=False) as client:
        answer = client.streams[number := client.request("/")]
        while not answer.over:
            for one in (None, number):
                client.h2.increment_flow_control_window(65_535, one)
            client.flush()
            await asyncio.sleep(0.1)
            await client.read()
        assert (answer.ended, len(answer.body)) == (True, 1_500_000)


# -- failures ----------------------------------------------------------------------------------


async def test_an_application_that_fails_in_its_answer_is_reported_to_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["path"] == "/before":
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/ended":
            return
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ZeroDivisionError

    async with accepting(app) as address, http2(address) as client:
        half = await client.get("/")
        assert (half.body, half.ended, half.reset) == (b"half", False, Codes.INTERNAL_ERROR)
        silent = await client.get("/ended")
        assert (silent.ended, silent.reset) == (False, Codes.INTERNAL_ERROR)
        before = await client.get("/before")
        assert (before.status, before.ended) == (500, True)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("way", ["reset", "disconnect"])
async def test_a_client_that_leaves_ends_its_streams_at_once(way: str) -> None:
    async with serving() as (one, address):
        session = await one.supervisor.start()
        async with http2(address, grants=False, window=100) as client:
            numbers = [client.request(f"/session/{session.session_id}/events") for _ in range(50)]
            await client.until(lambda: client.streams[numbers[-1]].body != b"")
            await (await session.query("flood 100")).result()
            assert one.app.open_streams == 50
            if way == "reset":
                for number in numbers:
                    client.reset(number)
            else:
                client.writer.transport.abort()
            await eventually(lambda: one.app.open_streams == 0)
        await one.supervisor.close(session.session_id)
        await is_idle(one)


# -- requests whose body does not come, or is not wanted ---------------------------------------


PATIENT = HttpSettings(max_body_bytes=100_000, body_timeout_s=0.3)


async def test_a_body_that_never_ends_is_a_408_and_costs_the_connection_nothing() -> None:
    async with serving(settings=PATIENT) as (one, address):
        async with http2(address) as client:
            json_ = [("content-type", "application/json")]
            number = client.request("/query", method="POST", headers=json_, end=False)
            client.h2.send_data(number, b"{")
            client.flush()
            answer = await client.answer(number)
            assert (answer.status, said(answer.body)["code"]) == (408, "request_timeout")
            assert "connection" not in answer.headers
            await client.until(lambda: answer.reset is not None)
            assert answer.reset == Codes.NO_ERROR
            assert (await client.get("/health")).status == 200
        await is_idle(one)


@pytest.mark.parametrize(("path", "status"), [("/query", 413), ("/nope", 404)])
async def test_a_long_body_that_is_not_wanted_gets_its_answer(path: str, status: int) -> None:
    async with serving(settings=PATIENT) as (one, address):
        async with http2(address) as client:
            json_ = [("content-type", "application/json")]
            number = client.request(path, method="POST", headers=json_, end=False)
            await client.upload(number, b"x" * 1_000_000, end=True)
            assert (await client.answer(number)).status == status
            assert (await client.get("/health")).status == 200
        await is_idle(one)


async def test_an_application_that_reads_no_body_holds_nobody_up() -> None:
    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await asyncio.Event().wait()
        if scope["path"] == "/ignores":
            await asyncio.sleep(0.01)  # in which its body comes
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async with accepting(app) as address, http2(address) as client:
        slow = client.request("/slow", method="POST", end=False)
        room = client.h2.local_flow_control_window(slow)
        await client.upload(slow, b"x" * room)
        assert (await client.get("/")).status == 200
        # One that has answered gets rid of the client, which has more to send than it may.
        fast = client.request("/", method="POST", end=False)
        await client.upload(fast, b"x" * 1000)
        assert (await client.answer(fast)).status == 200
        await client.until(lambda: client.streams[fast].reset is not None)
        # And what it had not read is not held against the others.
        for _ in range(60):
            number = client.request("/ignores", method="POST", end=False)
            with_room = min(60_000, client.h2.local_flow_control_window(number))
            assert with_room == 60_000
            client.h2.send_data(number, b"x" * 10_000)
            client.h2.send_data(number, b"x" * 10_000)
            client.flush()
            assert (await client.answer(number)).status == 200


# -- abuse -------------------------------------------------------------------------------------


def resets(client: H2Client) -> None:
    client.reset(client.request("/health"))


def pings(client: H2Client) -> None:
    client.raw(frame(6, 0, 0, b"12345678"))


def settings(client: H2Client) -> None:
    client.raw(frame(4, 0, 0, b"\0\4\0\0\1\0"))


def priorities(client: H2Client) -> None:
    client.raw(frame(2, 0, 1, b"\0\0\0\3\1"))


def unknown(client: H2Client) -> None:
    client.raw(frame(0xAB, 0, 1, b""))


FLOOD = 3 * MOST_STREAMS
"""More than is borne at once."""


@pytest.fixture
def nothing_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have patience not come back: a slow machine takes longer for a flood than that needs."""
    lasting = functools.partial(Patience, each_second=0.0)
    monkeypatch.setattr("session_http.http2.Patience", lasting)


@pytest.mark.usefixtures("nothing_restored")
@pytest.mark.parametrize("nuisance", [resets, pings, settings, priorities, unknown])
async def test_a_flood_of_what_costs_nothing_ends_the_connection(
    nuisance: Callable[[H2Client], None],
) -> None:
    async with serving() as (one, address):
        async with http2(address) as client, http2(address) as other:
            await client.read()
            for _ in range(FLOOD):
                nuisance(client)
            assert await client.end() in (Codes.ENHANCE_YOUR_CALM, None)
            assert (await other.get("/health")).status == 200
        await is_idle(one)


@pytest.mark.usefixtures("nothing_restored")
async def test_a_flood_of_empty_pieces_of_a_body_ends_the_connection() -> None:
    async with serving() as (one, address):
        async with http2(address) as client:
            number = client.request("/query", method="POST", end=False)
            client.raw(frame(0, 0, number, b"") * FLOOD)
            assert await client.end() in (Codes.ENHANCE_YOUR_CALM, None)
        await is_idle(one)


async def test_as_many_requests_as_there_may_be_can_be_taken_back_at_once() -> None:
    async with serving() as (_, address), http2(address) as client:
        await client.read()
        for number in [client.request("/health") for _ in range(MOST_STREAMS)]:
            client.reset(number)
        assert (await client.get("/health")).status == 200


async def test_requests_that_were_taken_back_count_until_their_calls_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("session_http.http2.MOST_CALLS", 3)
    called, may_end = 0, asyncio.Event()

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        nonlocal called
        called += 1
        if scope["path"] == "/slow":
            await may_end.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async with accepting(app) as address, http2(address) as client:
        for _ in range(3):
            client.reset(client.request("/slow"))
        await eventually(lambda: called == 3)
        assert (await client.get("/")).reset == Codes.REFUSED_STREAM
        may_end.set()
        await asyncio.sleep(0)
        assert (await client.get("/")).status == 200


def test_patience_is_restored() -> None:
    patience = Patience(most=3, each_second=1)
    assert [patience.lasts(100.0) for _ in range(4)] == [True, True, True, False]
    assert [patience.lasts(now) for now in (102.5, 102.5)] == [True, False]


@pytest.mark.parametrize(
    "bomb",
    [
        # One long field in the table, and then again and again by one byte.
        frame(1, 5, 1, b"\x82\x86\x84\x40\x01a\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 12_000),
        # A head that never ends.
        frame(1, 0, 1, b"\x82\x86\x84") + frame(9, 0, 1, b"\x40\x01a\x01b") * 200,
        # Ten thousand fields.
        frame(1, 4, 1, b"\x82\x86\x84\x41\x01x" + b"\x10\x01a\x00" * 4_000),
        frame(1, 4, 1, b"\xff" * 100),
        frame(0, 0, 1, b"x"),
        frame(8, 0, 0, b"\0\0\0\0"),
        frame(9, 4, 1, b""),
        b"\xff" * 100,
    ],
    ids=["hpack", "continuation", "fields", "garbage", "data", "window", "naked", "length"],
)
async def test_what_breaks_the_rules_ends_the_connection_and_nothing_else(
    bomb: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as (one, address):
        async with http2(address) as client, http2(address) as other:
            await client.read()
            client.raw(bomb)
            assert await client.end() not in (0, None)
            assert (await other.get("/health")).status == 200
        await is_idle(one)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    "payload",
    [b"\0\0\0\1\xff", b"\0\0\0\7\1", b"\x80\0\0\0\1", b"\x80\0\0\x63\xff"],
    ids=["itself", "unknown", "alone", "alone below unknown"],
)
async def test_priorities_change_nothing(payload: bytes) -> None:
    async with serving() as (_, address), http2(address) as client:
        number = client.request("/health", method="POST", end=False)
        for stream in (number, 101, 9, number):
            client.raw(frame(2, 0, stream, payload))
        if payload.startswith(b"\0\0\0\1"):  # which is against the rules
            assert await client.end() == Codes.PROTOCOL_ERROR
        else:
            assert (await client.get("/health")).status == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "outcome"),
    [
        ("GET", "/\xff", [], Codes.PROTOCOL_ERROR),
        ("G\xffT", "/", [], Codes.PROTOCOL_ERROR),
        ("GET", "/a b", [], Codes.PROTOCOL_ERROR),
        ("GET", "*", [], 404),
        ("GET", "/%ff%00", [], 404),
    ],
)
async def test_odd_requests_are_refused_one_by_one(
    method: str, path: str, headers: list[tuple[str, str]], outcome: int
) -> None:
    async with serving() as (one, address):
        async with http2(address) as client:
            answer = await client.answer(client.request(path, method=method, headers=headers))
            assert outcome in (answer.reset, answer.status)
            assert (await client.get("/health")).status == 200
        await is_idle(one)


async def test_nobody_is_connected_to_anybody() -> None:
    async with serving() as (_, address), http2(address) as client:
        client.h2.send_headers(1, [(":method", "CONNECT"), (":authority", "x")], end_stream=True)
        client.flush()
        assert (await client.answer(1)).status == 405


# -- the end -----------------------------------------------------------------------------------


async def test_an_idle_connection_is_ended_with_a_farewell() -> None:
    limits = ConnectionLimits(idle_s=0.2, head_s=0.2)
    async with serving(limits) as (one, address):
        async with http2(address) as client:
            assert (await client.get("/health")).status == 200
            assert await client.end() == Codes.NO_ERROR
        await is_idle(one)


async def test_a_busy_connection_is_not_idle() -> None:
    limits = ConnectionLimits(idle_s=0.1, head_s=0.1)
    async with serving(limits) as (_, address), http2(address) as client:
        answer = await client.answer(client.post("/query", b'{"prompt": "wait 0.5"}'))
        assert said(answer.body)["response"] == "Done."


async def test_a_stop_lets_streams_end_and_says_farewell() -> None:
    async with world(script) as one:
        stop, address, task = await serve_until_stopped(one, StopTimes(drain_s=60))
        session = await one.supervisor.start()
        async with http2(address) as client, http2(address) as idle:
            await idle.read()
            events = client.request(f"/session/{session.session_id}/events")
            json_ = [("content-type", "application/json")]
            half = client.request("/query", method="POST", headers=json_, end=False)
            turn = client.post(f"/session/{session.session_id}/query", b'{"prompt": "wait 0.5"}')
            await client.until(lambda: b'"started"' in client.streams[events].body)
            stop.ask()
            assert said((await client.answer(turn)).body)["response"] == "Done."
            stream = await client.answer(events)
            assert stream.ended
            assert parse_stream(stream.body)[-1].type == "bye"
            refused = await client.answer(half)
            assert (refused.status, said(refused.body)["code"]) == (503, "draining")
            assert await client.end() == Codes.NO_ERROR
            assert await idle.end() == Codes.NO_ERROR
        async with asyncio.timeout(PATIENCE_S):
            await task
