"""The application on Hypercorn as the command runs it: real sockets, rude clients, the end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from session_http.listen import open_sockets
from session_http.serve import Stop, StopTimes, serve
from session_http.settings import HttpSettings
from session_http.sse import StreamSettings
from session_supervisor import Retention, SupervisorConfig
from session_supervisor.agents.port import ThinkingDelta
from session_supervisor.agents.scripted import Conversation, Hang, Pause, Say, Step
from session_supervisor.lifecycle import State
from session_supervisor.spec import Prompt
from tests.http.contract import parse_stream
from tests.http.servers import (
    BOTH_LOOPS,
    PATIENCE_S,
    Address,
    World,
    eventually,
    on_hypercorn,
    world,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BOTH_LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Both loops: the command runs on uvloop where there is one, and shutdown differs."""
    return request.param


PATIENT = HttpSettings(max_body_bytes=100_000, body_timeout_s=0.3)
IDLE_TASKS = 6
"""Tasks of a server that serves nobody."""


def script(prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
    match prompt.text.split():
        case ["hang"]:
            yield Say("Partial", confirmed=False)
            yield Hang()
        case ["wait", seconds]:
            yield Pause(float(seconds))
            yield Say("Done.")
        case ["flood", count]:
            for _ in range(int(count)):
                yield ThinkingDelta("x" * 1000)
            yield Say("Done.")
        case _:
            yield Say(f"You said: {prompt.text}")


@asynccontextmanager
async def serving(**options: Any) -> AsyncGenerator[tuple[World, Address]]:
    async with world(script, **options) as one, on_hypercorn(one) as address:
        yield one, address


class Raw:
    """A connection without manners of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def pause(self) -> None:
        """Read nothing more."""
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    @property
    def _transport(self) -> asyncio.Transport:
        return cast("asyncio.Transport", self.writer.transport)

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """Read one answer with a JSON body; return its status and the body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head = await self.reader.readuntil(b"\r\n\r\n")
        fields = {
            name.lower(): value
            for name, _, value in (
                line.partition(": ") for line in head.decode().split("\r\n")[1:] if line
            )
        }
        body = await self.reader.readexactly(int(fields["content-length"]))
        return int(head.split()[1]), json.loads(body) if body else {}

    async def closed(self) -> bool:
        """Whether the server closes the connection."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True


@asynccontextmanager
async def connected(address: Address, data: bytes = b"") -> AsyncGenerator[Raw]:
    reader, writer = await asyncio.open_connection(address.host, address.port, limit=2**16)
    try:
        writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            yield Raw(reader, writer)
    finally:
        writer.transport.abort()


def post(path: str, body: bytes, *, length: int | None = None) -> bytes:
    return (
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % (path.encode(), len(body) if length is None else length)
    ) + body


async def is_idle(one: World) -> None:
    """Wait until nothing is left of any client."""
    here = {asyncio.current_task()}
    await eventually(lambda: one.app.open_requests == 0 and one.app.open_streams == 0)
    sessions = len(one.supervisor.snapshot().sessions)
    assert sessions == 0
    await eventually(lambda: len(asyncio.all_tasks() - here) <= IDLE_TASKS + 2)


# -- rude requests -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (post("/query", b"{"), 400, "malformed_json"),
        (post("/query", b"\xff\xfe"), 400, "malformed_json"),
        (post("/nope", b"x" * 5), 404, "not_found"),
        (post("/nope", b"x" * 3_000_000), 404, "not_found"),
        (post("/query", b"x" * 3_000_000), 413, "payload_too_large"),
        (b"PATCH /query HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 405, None),
        (b"POST /query HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", 415, None),
        (post("/query", b"{", length=99), 408, "request_timeout"),
        (post("/query", b"", length=99), 408, "request_timeout"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx", 408, None),
        (b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else str(value),
)
async def test_a_rude_request_gets_a_clean_answer_and_leaves_nothing(
    request_: bytes, status: int, code: str | None
) -> None:
    async with serving(settings=PATIENT) as (one, address):
        async with connected(address, request_) as raw:
            answered, body = await raw.answer()
            assert answered == status
            assert body["detail"]
            assert code in (None, body["code"])
        await is_idle(one)


async def test_a_long_body_of_unknown_length_is_a_413() -> None:
    head = (
        b"POST /query HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    chunks = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    async with serving(settings=PATIENT) as (one, address):
        async with connected(address, head + chunks * 30 + b"0\r\n\r\n") as raw:
            assert (await raw.answer())[0] == 413
        await is_idle(one)


async def test_a_body_that_never_ends_gets_its_answer_and_a_closed_connection() -> None:
    async with serving(settings=PATIENT) as (one, address):
        async with connected(address, post("/query", b"{", length=50_000)) as raw:
            assert (await raw.answer())[0] == 408
            assert await raw.closed()
        await is_idle(one)


async def test_a_connection_that_its_client_closes_is_let_go_at_once() -> None:
    async with serving() as (one, address):
        for _ in range(20):
            async with connected(address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") as raw:
                assert (await raw.answer())[0] == 200
        await is_idle(one)


# -- streams -----------------------------------------------------------------------------------


def events(session_id: str) -> bytes:
    return b"GET /session/%s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % session_id.encode()


async def test_a_hundred_clients_that_come_and_go_leave_nothing() -> None:
    async with serving() as (one, address):
        session = await one.supervisor.start()
        turn = await session.query("wait 1")
        for _ in range(5):
            async with asyncio.TaskGroup() as tasks:

                async def come_and_go() -> None:
                    async with connected(address, events(session.session_id)) as raw:
                        await raw.reader.readuntil(b'"started"')

                for _ in range(20):
                    tasks.create_task(come_and_go())
        await eventually(lambda: one.app.open_streams == 0)
        assert (await turn.result()).text == "Done."
        await one.supervisor.close(session.session_id)
        await is_idle(one)


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see its memory")
async def test_clients_that_read_nothing_cost_little_memory_and_never_delay_the_turn() -> None:
    """50 MB go by, of which the log keeps one; twenty clients read none of it."""
    retention = Retention(events=2_000, event_bytes=2**20)
    async with (
        serving(config=SupervisorConfig(retention=retention)) as (one, address),
        AsyncExitStack() as stack,
    ):
        session = await one.supervisor.start()
        clients: list[Raw] = []
        for _ in range(20):
            raw = await stack.enter_async_context(connected(address, events(session.session_id)))
            await raw.reader.readuntil(b"retry: ")
            raw.pause()
            clients.append(raw)
        before = resident()
        turn = await session.query("flood 50000")
        async with asyncio.timeout(PATIENCE_S):
            await turn.result()
        assert one.app.open_streams == 20
        assert resident() - before < 40 * 2**20

        clients[0].resume()
        tail = b""
        while b'"type": "done"' not in tail:
            tail = tail[-100:] + await clients[0].reader.read(2**20)


async def test_a_client_that_reads_nothing_is_dropped() -> None:
    streams = StreamSettings(send_timeout_s=0.3, heartbeat_s=0.1)
    async with serving(settings=HttpSettings(streams=streams)) as (one, address):
        session = await one.supervisor.start()
        async with connected(address, events(session.session_id)) as raw:
            await raw.reader.readuntil(b"retry: ")
            raw.pause()
            turn = await session.query("flood 20000")
            await eventually(lambda: one.app.open_streams == 0)
            assert (await turn.result()).text == "Done."


def connections() -> int:
    """How many the server holds."""
    return sum("Acceptor._serve" in repr(task) for task in asyncio.all_tasks())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives such a connection up")
async def test_the_connection_of_a_client_that_reads_nothing_is_closed_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Its buffers are the kernel's, which waits for ever unless it is told not to.
    streams = StreamSettings(send_timeout_s=0.3, heartbeat_s=0.1)
    async with (
        world(script, settings=HttpSettings(streams=streams)) as one,
        on_hypercorn(one, unread_s=0.5) as address,
    ):
        session = await one.supervisor.start()
        async with connected(address, events(session.session_id)) as raw:
            await raw.reader.readuntil(b"retry: ")
            assert connections() == 1
            raw.pause()
            await (await session.query("flood 20000")).result()
            await eventually(lambda: connections() == 0)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_stream_can_be_resumed_on_another_connection() -> None:
    async with serving() as (one, address):
        session = await one.supervisor.start()
        await (await session.query("one")).result()
        async with connected(address, events(session.session_id)) as raw:
            had = await raw.reader.readuntil(b'"text"')
        last = had.decode().rpartition("id: ")[2].partition("\n")[0]
        head = events(session.session_id)[:-2] + b"Last-Event-ID: %s\r\n\r\n" % last.encode()
        async with connected(address, head) as raw:
            rest = await raw.reader.readuntil(b'"done"')
        assert f"id: {int(last) + 1}\n".encode() in rest
        assert f"id: {last}\n".encode() not in rest


# -- the end -----------------------------------------------------------------------------------


async def serve_until_stopped(
    one: World, times: StopTimes
) -> tuple[Stop, Address, asyncio.Task[None]]:
    (listener,) = open_sockets("127.0.0.1", 0)
    stop = Stop()
    task = asyncio.create_task(serve(one.app, one.supervisor, [listener], stop=stop, times=times))
    return stop, Address(host="127.0.0.1", port=listener.getsockname()[1]), task


def at_work(one: World, sessions: int = 1) -> bool:
    """Whether each session has a turn that runs, so that it is acknowledged."""
    states = [each.state for each in one.supervisor.snapshot().sessions]
    return states == [State.RUNNING] * sessions


async def test_a_stop_lets_turns_end_answers_everybody_and_closes() -> None:
    async with world(script) as one:
        stop, address, serving = await serve_until_stopped(one, StopTimes(drain_s=60))
        async with httpx.AsyncClient(base_url=address.url, timeout=PATIENCE_S) as client:
            session = await one.supervisor.start()
            path = f"/session/{session.session_id}"
            ends = client.post(f"{path}/query", json={"prompt": "wait 0.5"})
            streams = client.post("/query", json={"prompt": "wait 0.5", "stream": True})
            whole = client.get(f"{path}/events")
            waiting = [asyncio.create_task(one) for one in (ends, streams, whole)]
            await eventually(lambda: one.app.open_streams == 2 and one.app.open_requests == 3)
            await eventually(lambda: at_work(one, 2))
            stop.ask()
            await asyncio.sleep(0.05)
            assert (await client.get("/ready")).status_code == 503
            refused = await client.post("/query", json={"prompt": "hi"})
            assert refused.json()["code"] == "draining"
            answer, stream, events_ = await asyncio.gather(*waiting)
        assert answer.json()["response"] == "Done."
        assert parse_stream(stream.content)[-1].data["response"] == "Done."
        assert parse_stream(events_.content)[-1].type == "bye"
        async with asyncio.timeout(PATIENCE_S):
            await serving
        with pytest.raises(OSError, match=r"Connect call failed|refused"):
            await asyncio.open_connection(address.host, address.port)


async def test_a_stop_interrupts_what_is_over_its_budget() -> None:
    async with world(script) as one:
        stop, address, serving = await serve_until_stopped(one, StopTimes(drain_s=0.2))
        async with httpx.AsyncClient(base_url=address.url, timeout=PATIENCE_S) as client:
            query = asyncio.create_task(client.post("/query", json={"prompt": "hang"}))
            await eventually(lambda: at_work(one))
            stop.ask()
            answer = await query
        assert answer.json()["outcome"] == "interrupted"
        async with asyncio.timeout(PATIENCE_S):
            await serving


async def test_a_second_wish_does_not_wait_for_the_budget() -> None:
    async with world(script) as one:
        stop, address, serving = await serve_until_stopped(one, StopTimes(drain_s=600, hurry_s=60))
        async with httpx.AsyncClient(base_url=address.url, timeout=PATIENCE_S) as client:
            query = asyncio.create_task(client.post("/query", json={"prompt": "hang"}))
            await eventually(lambda: at_work(one))
            stop.ask()
            await asyncio.sleep(0.1)
            assert not query.done()
            stop.ask()
            answer = await query
        assert answer.json()["outcome"] == "interrupted"
        async with asyncio.timeout(PATIENCE_S):
            await serving


async def test_a_stop_is_not_kept_up_by_clients_that_stay() -> None:
    """Idle, in the middle of a request, and not reading: none of them keeps the server."""
    async with world(script) as one:
        stop, address, serving = await serve_until_stopped(
            one, StopTimes(drain_s=0, flush_s=0.3, close_s=2)
        )
        session = await one.supervisor.start()
        async with (
            connected(address) as _,
            connected(address, post("/query", b"{", length=99)),
            connected(address, events(session.session_id)) as deaf,
        ):
            await deaf.reader.readuntil(b"retry: ")
            deaf.pause()
            await (await session.query("flood 20000")).result()
            stop.ask()
            async with asyncio.timeout(PATIENCE_S):
                await serving


async def test_a_drain_that_fails_still_closes_and_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world(script) as one:
        stop, address, serving = await serve_until_stopped(one, StopTimes())
        async with httpx.AsyncClient(base_url=address.url, timeout=PATIENCE_S) as client:
            await client.get("/health")

        async def broken(_budget_s: float) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(one.supervisor, "drain", broken)
            stop.ask()
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.timeout(PATIENCE_S):
                    await serving
        assert caught.group_contains(ZeroDivisionError)
