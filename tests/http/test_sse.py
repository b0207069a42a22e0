"""Streams on virtual time, with the test as the server: heartbeat, deadlines, ends, leaks.

Every test ends with no task left: that is what virtual time checks.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Task, get_running_loop, sleep, timeout
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from session_http.app import App, create_app
from session_http.frames import CHUNK, PING, Frames
from session_http.settings import HttpSettings
from session_http.sse import StreamSettings
from session_supervisor import Event, Retention, Session, Supervisor
from session_supervisor.agents.port import TextWithdrawn, ThinkingDelta
from session_supervisor.agents.scripted import (
    Conversation,
    Crash,
    Hang,
    Pause,
    Say,
    ScriptedAgent,
    Step,
)
from session_supervisor.spec import Prompt
from tests.http.contract import Said
from tests.http.exchange import Exchange, exchanging
from tests.support.sessions import supervising
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

SETTINGS = StreamSettings(heartbeat_s=15.0, send_timeout_s=60.0, retry_ms=2000)


def script(prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
    match prompt.text.split():
        case ["wait", seconds]:
            yield Pause(float(seconds))
            yield Say("Done.")
        case ["hang"]:
            yield Hang()
        case ["flood", count]:
            for n in range(int(count)):
                yield ThinkingDelta(f"{n} " + "x" * 1000)
            yield Say("Done.")
        case ["count", count, every_s]:
            yield Say(
                "".join(f"{n} " for n in range(int(count))),
                deltas=int(count),
                every_s=float(every_s),
            )
        case ["long", length, seconds]:
            yield Pause(float(seconds))
            yield Say("x" * int(length))
        case ["cut"]:
            yield Say("What was cut ", deltas=3, confirmed=False)
            yield TextWithdrawn()
            yield Say("What was said again.", deltas=4)
        case ["die"]:
            yield Say("Half a ", confirmed=False)
            yield Crash()
        case _:
            yield Say(f"You said: {prompt.text}")


@asynccontextmanager
async def open_session(
    settings: StreamSettings = SETTINGS, **config: object
) -> AsyncGenerator[tuple[App, Supervisor, Session, str]]:
    async with supervising(ScriptedAgent(script), **config) as supervisor:
        app = create_app(supervisor, settings=HttpSettings(streams=settings))
        session = await supervisor.start()
        yield app, supervisor, session, f"/session/{session.session_id}"
        assert app.open_streams == 0, "a stream was left open"
        assert app.open_requests == 0


def query(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "stream": True}


@virtual()
async def test_a_stream_begins_with_how_long_to_wait_before_coming_back() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("hi")) as exchange,
    ):
        await exchange.until("done")
        assert exchange.raw.startswith(b"retry: 2000\n\nid: 1\ndata: ")
        assert exchange.complete


@virtual()
async def test_silence_is_filled_with_heartbeats_and_only_silence() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("wait 100")) as exchange,
    ):
        await exchange.until("done")
        pings = [at for at, message in exchange.sent if message.get("body") == PING]
        assert pings == [15.0, 30.0, 45.0, 60.0, 75.0, 90.0]


@virtual()
async def test_a_stream_that_talks_needs_no_heartbeat() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("count 20 10")) as exchange,
    ):
        await exchange.until("done")
        assert PING not in exchange.raw


@virtual()
async def test_events_go_out_one_by_one_as_they_happen() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("count 5 1")) as exchange,
    ):
        await exchange.until("done")
        texts = [
            (at, message["body"])
            for at, message in exchange.sent
            if b'"text"' in message.get("body", b"")
        ]
        assert [at for at, _ in texts] == [1.0, 2.0, 3.0, 4.0, 5.0]


@virtual()
async def test_what_happens_at_once_is_one_send() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("flood 100")) as exchange,
    ):
        await exchange.until("done")
        assert len([said for said in exchange.said if said.type == "thinking"]) == 100
        assert len(exchange.sent) < 30


@virtual()
@pytest.mark.parametrize("error", [None, OSError("reset"), RuntimeError("some server's own")])
async def test_a_client_that_goes_away_ends_its_stream_at_once_and_not_the_turn(
    error: Exception | None,
) -> None:
    async with open_session() as (app, _, session, path):
        async with exchanging(app, "POST", f"{path}/query", query("wait 100")) as exchange:
            await exchange.until("turn")
            assert app.open_streams == 1
            exchange.disconnect(error)
            await sleep(0.001)
            assert app.open_streams == 0
        (record,) = await session.turns()
        result = await (await session.turn(record.turn_id)).result()
        assert result.text == "Done."
        assert result.duration_ms == 100_000


@virtual()
@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), BrokenPipeError()])
async def test_a_server_that_cannot_send_any_more_ends_its_stream_and_not_the_turn(
    error: Exception,
) -> None:
    async with open_session() as (app, _, session, path):
        async with exchanging(app, "POST", f"{path}/query", query("count 100 1")) as exchange:
            await exchange.until("text")
            exchange.fails = error
            await sleep(1.001)
            assert app.open_streams == 0
        (record,) = await session.turns()
        assert (await (await session.turn(record.turn_id)).result()).duration_ms == 100_000


@virtual()
async def test_a_client_that_reads_nothing_is_dropped_and_the_turn_goes_on() -> None:
    async with open_session() as (app, _, session, path):
        async with exchanging(app, "POST", f"{path}/query", query("wait 100")) as exchange:
            await sleep(1)
            exchange.reads.clear()
            # The next thing to send is a heartbeat, after 15 s; a minute later it is enough.
            await sleep(73.9)
            assert app.open_streams == 1
            await sleep(0.2)
            assert app.open_streams == 0
        (record,) = await session.turns()
        assert (await (await session.turn(record.turn_id)).result()).text == "Done."


@virtual()
async def test_a_client_that_stops_reading_in_a_flood_is_dropped_too() -> None:
    async with open_session() as (app, _, session, path):
        async with exchanging(app, "POST", f"{path}/query", query("count 500 1")) as exchange:
            await exchange.until("text")
            exchange.reads.clear()
            await sleep(60.9)
            assert app.open_streams == 1
            await sleep(0.2)
            assert app.open_streams == 0
        (record,) = await session.turns()
        await (await session.turn(record.turn_id)).result()


@virtual()
async def test_the_server_is_never_given_more_than_a_slice() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("long 1000000 0")) as exchange,
    ):
        done = await exchange.until("done")
        assert done.data["response"] == "x" * 1_000_000
        bodies = [message.get("body", b"") for _, message in exchange.sent]
        assert max(len(body) for body in bodies) == CHUNK == 65536
        assert exchange.complete


async def read_slowly(exchange: Exchange, every_s: float) -> None:
    """Let through one send at a time."""
    exchange.reads.clear()
    while not exchange.complete:
        await sleep(every_s)
        exchange.reads.set()  # for the send that waits
        exchange.reads.clear()  # for the next


@virtual()
async def test_a_client_that_reads_slowly_but_steadily_is_not_dropped() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("long 500000 1")) as exchange,
    ):
        await exchange.until("turn")
        await read_slowly(exchange, SETTINGS.send_timeout_s - 5)
        assert exchange.said[-1].data["response"] == "x" * 500_000
        sends = [at for at, _ in exchange.sent]
        assert sends[-1] - sends[0] > 10 * SETTINGS.send_timeout_s


@virtual()
async def test_a_client_that_stops_reading_within_an_event_is_dropped() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("long 500000 1")) as exchange,
    ):
        await exchange.until("turn")
        with pytest.raises(TimeoutError):
            async with timeout(200):
                await read_slowly(exchange, 50)
        assert not exchange.raw.endswith(b"\n\n")
        await sleep(2 * SETTINGS.send_timeout_s)
        assert app.open_streams == 0
        assert not exchange.complete


@virtual()
async def test_no_heartbeat_comes_within_an_event() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("long 500000 20")) as exchange,
    ):
        await sleep(1)
        # The first heartbeat is still unread when the answer comes, whose every slice then takes
        # longer than it is to the next.
        await read_slowly(exchange, SETTINGS.heartbeat_s + 7)
        raw = b""
        for _, message in exchange.sent:
            body = message.get("body", b"")
            assert PING not in body or (body == PING and raw.endswith(b"\n\n"))
            raw += body
        assert PING in raw
        assert [said.type for said in exchange.said][-1] == "done"


@virtual()
async def test_a_slow_client_gets_everything_in_fewer_events() -> None:
    async with (
        open_session() as (app, _, session, path),
        exchanging(app, "POST", f"{path}/query", query("count 50 1")) as exchange,
    ):
        await exchange.until("text")
        exchange.reads.clear()
        await sleep(40)
        exchange.reads.set()
        done = await exchange.until("done")
        texts = [said for said in exchange.said if said.type == "text"]
        assert "".join(said.data["content"] for said in texts) == done.data["response"]
        assert len(texts) < 15
        assert texts[-1].id == (done.id or 0) - 2
        assert session.snapshot().last_seq == done.id


@virtual()
async def test_a_reader_too_slow_for_retention_is_told_and_still_gets_the_end() -> None:
    retention = Retention(events=10)
    async with (
        open_session(retention=retention) as (app, _, session, path),
        exchanging(app, "POST", f"{path}/query", query("flood 5000")) as exchange,
    ):
        await exchange.until("turn")
        exchange.reads.clear()
        (record,) = await session.turns()
        await (await session.turn(record.turn_id)).result()
        await (await session.query("flood 5000")).result()
        exchange.reads.set()
        done = await exchange.until("done")
        kinds = [said.type for said in exchange.said]
        assert kinds.count("gap") == 1
        assert kinds[-2:] == ["gap", "done"]
        assert done.data["response"] == "Done."
        assert done.data["turn_id"] == record.turn_id
        assert exchange.complete


@virtual()
async def test_the_sessions_stream_goes_on_over_a_gap() -> None:
    async with open_session(retention=Retention(events=10)) as (app, _, session, path):
        await (await session.query("flood 5000")).result()
        async with exchanging(app, "GET", f"{path}/events") as exchange:
            await exchange.until("done")
            said = exchange.said
            assert said[0].type == "gap"
            assert said[0].data["after"] == 0
            assert said[1].id == said[0].data["before"]
            assert [one.id for one in said[1:]] == list(
                range(said[1].id or 0, session.snapshot().last_seq + 1)
            )


@virtual()
async def test_text_that_was_cut_reads_right_for_a_fast_and_for_a_slow_reader() -> None:
    async with open_session() as (app, _, _, path):
        async with exchanging(app, "POST", f"{path}/query", query("cut")) as exchange:
            done = await exchange.until("done")
            assert done.data["response"] == "What was said again."
            assert answer(exchange.said) == done.data["response"]
        async with exchanging(app, "GET", f"{path}/events") as late:
            await late.until("done")
            assert answer(late.said) == done.data["response"]


def answer(said: list[Said]) -> str:
    had: list[tuple[int, str]] = []
    for one in said:
        if one.type == "text":
            had.append((one.id or 0, one.data["content"]))
        elif one.type == "discard":
            had = [(number, text) for number, text in had if number <= one.data["after"]]
    return "".join(text for _, text in had)


@virtual()
async def test_a_stream_has_only_its_own_turn_also_when_another_was_in_front() -> None:
    async with open_session() as (app, _, session, path):
        first = await session.query("count 10 1")
        async with exchanging(app, "POST", f"{path}/query", query("hi")) as exchange:
            done = await exchange.until("done")
            assert {said.data["turn_id"] for said in exchange.said} == {done.data["turn_id"]}
            assert exchange.said[0].data["position"] == 1
        assert (await first.result()).text.startswith("0 1 2 ")


@virtual()
async def test_a_turn_that_is_lost_ends_its_stream_with_an_error() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("die")) as exchange,
    ):
        error = await exchange.until("error")
        assert (error.data["code"], error.data["outcome"]) == ("crashed", "lost")
        assert error.data["retryable"] is True
        assert error.data["response"] == "Half a "
        assert exchange.complete


@virtual()
async def test_a_drain_ends_every_stream() -> None:
    async with (
        open_session() as (app, supervisor, _, path),
        exchanging(app, "POST", f"{path}/query", query("hang")) as turn,
        exchanging(app, "GET", f"{path}/events") as whole,
    ):
        await turn.until("turn")
        await supervisor.drain(5.0)
        await sleep(0.001)
        assert turn.complete
        assert (turn.said[-1].type, turn.said[-1].data["outcome"]) == ("done", "interrupted")
        assert whole.complete
        assert whole.said[-1].type == "bye"
        assert whole.said[-1].data["after"] == whole.said[-2].id


@virtual()
async def test_many_readers_of_one_session_get_the_same() -> None:
    async with open_session() as (app, _, session, path):
        await (await session.query("one")).result()
        async with (
            exchanging(app, "GET", f"{path}/events") as a,
            exchanging(app, "GET", f"{path}/events?after=3") as b,
        ):
            await (await session.query("two")).result()
            await sleep(0.001)
            assert a.said[3:] == b.said
            assert len(b.said) > 3


# -- written at once ---------------------------------------------------------------------------


@virtual()
async def test_many_readers_are_written_the_same_bytes_and_each_event_is_encoded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[int] = []
    encode = Frames.encode

    def counted(frames: Frames, event: Event) -> bytes:
        encoded.append(event.seq)
        return encode(frames, event)

    monkeypatch.setattr(Frames, "encode", counted)
    async with open_session() as (app, _, session, path), AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(
                exchanging(app, "GET", f"{path}/events", writes_now=True)
            )
            for _ in range(5)
        ]
        await sleep(1)
        await (await session.query("count 20 1")).result()
        await sleep(1)
        first, *others = opened
        assert len(first.written) > 20
        for other in others:
            assert all(a is b for a, b in zip(first.written, other.written, strict=True))
            assert other.said == first.said
        told = [said.id or 0 for said in first.said]
        assert told == sorted(set(told))
        live = [seq for seq in encoded if seq > 4]
        assert len(live) == len(set(live)), "an event was encoded for each of its readers"


@virtual()
async def test_an_event_makes_no_task_and_no_timer() -> None:
    loop = get_running_loop()
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("count 200 1"), writes_now=True) as exchange,
    ):
        await exchange.until("text")
        before, tasks = len(exchange.sent), list[str]()

        def count(loop: AbstractEventLoop, coroutine: Any, **options: Any) -> Task[Any]:
            tasks.append(repr(coroutine))
            return Task(coroutine, loop=loop, **options)

        loop.set_task_factory(count)
        try:
            await sleep(100)
        finally:
            loop.set_task_factory(None)
        assert len(exchange.sent) - before >= 99
        assert len(exchange.written) > 100
        assert len(tasks) < 5, tasks  # what the supervisor does from time to time
        await exchange.until("done")


@virtual()
async def test_what_cannot_be_written_at_once_is_sent_in_order() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("count 90 1"), writes_now=True) as exchange,
    ):
        for _ in range(4):
            await sleep(10)
            exchange.reads.clear()
            await sleep(10)
            exchange.reads.set()
        done = await exchange.until("done")
        assert answer(exchange.said) == done.data["response"]
        ids = [said.id or 0 for said in exchange.said]
        assert ids == sorted(set(ids))
        assert len(exchange.written) > 30


@virtual()
async def test_a_heartbeat_comes_between_what_is_written_at_once() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "POST", f"{path}/query", query("count 3 20"), writes_now=True) as exchange,
    ):
        await exchange.until("done")
        pings = [at for at, message in exchange.sent if message.get("body") == PING]
        assert pings == [15.0, 35.0, 55.0]


@virtual()
async def test_streams_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = get_running_loop()
    async with open_session() as (app, _, _, path), AsyncExitStack() as stack:
        timers: list[object] = []
        call_at = loop.call_at

        def counted(when: float, callback: Any, *args: Any, **options: Any) -> Any:
            timers.append(getattr(callback, "__qualname__", callback))
            return call_at(when, callback, *args, **options)

        opened = [
            await stack.enter_async_context(exchanging(app, "GET", f"{path}/events"))
            for _ in range(50)
        ]
        await sleep(1)
        with monkeypatch.context() as patched:
            patched.setattr(loop, "call_at", counted)
            await sleep(60)
        for one in opened:
            pings = [at for at, message in one.sent if message.get("body") == PING]
            assert pings == [15.0, 30.0, 45.0, 60.0]
        assert timers.count("Wheel._turn") <= 8, timers


@virtual()
async def test_the_head_of_a_stream_is_not_a_stream() -> None:
    async with (
        open_session() as (app, _, _, path),
        exchanging(app, "HEAD", f"{path}/events") as exchange,
    ):
        await sleep(0.001)
        assert exchange.complete
        assert exchange.raw == b""
        assert app.open_streams == 0


@virtual(limit_s=1e4)
async def test_a_store_that_fails_ends_streams_with_the_place_to_come_back_to() -> None:
    store = HardStore(durable=True)
    async with open_session(store=store) as (app, supervisor, session, path):
        async with exchanging(app, "POST", f"{path}/query", query("count 9 1")) as exchange:
            await exchange.until("text")
            store.fails |= {"append", "acquire"}
            bye = await exchange.until("bye")
            assert exchange.complete
        assert (bye.id, bye.data["reason"]) == (None, "store_unavailable")
        assert bye.data["after"] == max(said.id or 0 for said in exchange.said)
        async with exchanging(app, "GET", f"{path}/events?after={bye.data['after']}") as early:
            await early.until("bye")
            assert early.complete
        store.fails.clear()
        await sleep(100)
        async with exchanging(app, "GET", f"{path}/events?after={bye.data['after']}") as late:
            end = await late.until("error")
        assert (end.data["turn_id"], end.data["outcome"]) == (bye.data["turn_id"], "lost")
        await supervisor.close(session.session_id)
