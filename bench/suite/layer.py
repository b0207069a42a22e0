"""The layer itself: many streams of a server without any CLI, and what an event costs it.

Server and client have a processor core each, where there are two. What is measured is a window in
which all streams flow: neither their beginning nor their end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from array import array
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import Server, cpu_s
from bench.quantiles import median, quantile
from bench.suite.display import Display
from bench.suite.histogram import Distribution
from bench.suite.results import LayerCell
from bench.suite.stamps import Word, is_whole, words
from bench.suite.turnabout import measured
from bench.suite.wire import Client, Exchange, Failed, events

AT_ONCE = 64
"""Streams that are opened at the same time."""

SETTLE_S = 0.7
"""Seconds between the last stream's opening and the window, and between the window and the end."""

LATE_S = 2.0
"""Seconds that the last streams may take to begin; those that have not then are errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """An application on a server.

    Attributes:
        app: One of `layer_server.APPS`.
        on: One of `layer_server.SERVERS`.
    """

    app: str
    on: str

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"{self.app} on {self.on}"


WAYS = (
    Way(app="ours", on="hypercorn"),
    Way(app="starlette", on="hypercorn"),
    Way(app="fastapi", on="uvicorn"),
    Way(app="ours", on="uvicorn"),
    Way(app="ours", on="granian"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """So many streams, and how fast they speak.

    Attributes:
        streams: At the same time.
        offered: Deltas in a second, all streams together.
    """

    streams: int
    offered: float

    @property
    def delay_s(self) -> float:
        """Seconds between two deltas of a stream."""
        return self.streams / self.offered


LIGHT = Load(streams=10, offered=500.0)
"""What an event costs a server that has little to do."""

EVEN = Load(streams=100, offered=3_000.0)
"""As much as all of them carry, FastAPI's own events too: only there does lag compare servers."""


@dataclass(slots=True, kw_only=True)
class Round:
    """What one load gave.

    Attributes:
        deltas: That arrived in the window.
        events: That they came in.
        window_s: Its length.
        server_cpu_s: Processor seconds of the server in it.
        client_cpu_s: The client's.
        lags: Of the deltas in it, milliseconds.
        whole: Streams whose text was whole.
        errors: By code.
    """

    deltas: int = 0
    events: int = 0
    window_s: float = 0.0
    server_cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    lags: array[float] = field(default_factory=lambda: array("d"))
    whole: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])


async def measure(
    ways: Sequence[Way],
    loads: Sequence[Load],
    display: Display,
    *,
    rounds: int,
    window_s: float,
) -> list[LayerCell]:
    """Put each load on each way, turn about.

    Args:
        ways: Which.
        loads: Of streams.
        display: Is told how far it is.
        rounds: How often.
        window_s: Seconds that are measured each time.
    """
    cells: list[LayerCell] = []
    for load in loads:
        cells += await _under(load, ways, display, rounds=rounds, window_s=window_s)
    return cells


async def _under(
    load: Load, ways: Sequence[Way], display: Display, *, rounds: int, window_s: float
) -> Sequence[LayerCell]:
    async def once(way: Way, server: Server) -> Round:
        display.doing(f"layer {load.streams} x {load.offered:g}/s, {way.name}")
        done = await one_round(server, load, window_s)
        display.step()
        return done

    told = {way: arguments(way, load, window_s) for way in ways}
    taken = await measured(told, once, rounds=rounds)
    cells = [_cell(way, load, some) for way, some in taken.items()]
    for cell in cells:
        display.say(line_of(cell))
    return cells


def line_of(cell: LayerCell) -> str:
    """Return a cell in one line."""
    lag = f"lag p99 {cell.lag.p99:.1f} ms" if cell.lag else "no lag"
    return (
        f"layer {cell.streams:5} streams {cell.offered:7,.0f}/s  {cell.server:22} "
        f"{cell.delivered:7,.0f} deltas/s in {cell.events:7,.0f} events  "
        f"{median(cell.cpu_us):5.1f} us/event  {lag}  whole {cell.whole}/{cell.expected}  "
        f"client {cell.client_cpu_us:.1f} us/event, {cell.client_cpu_share:.0%} of a core"
        + "".join(f"  {code} x{count}" for code, count in cell.errors.items())
    )


def _opening_s(load: Load) -> float:
    """Seconds that opening all streams is given."""
    return 0.5 + load.streams / 400


def tokens_of(load: Load, window_s: float) -> int:
    """Words of an answer that outlasts opening and window, whenever its stream was opened."""
    return round((_opening_s(load) + LATE_S + window_s + 2 * SETTLE_S) / load.delay_s) + 1


def arguments(way: Way, load: Load, window_s: float) -> Sequence[str]:
    """Return what `layer_server` is told for a load that outlasts the window."""
    pace = ("--tokens", str(tokens_of(load, window_s)), "--delay-ms", str(load.delay_s * 1000))
    return ("--app", way.app, "--on", way.on, *pace)


async def one_round(server: Server, load: Load, window_s: float) -> Round:
    """Put one load on one server."""
    done = Round()
    client = Client(server.url, timeout_s=tokens_of(load, window_s) * load.delay_s * 2 + 10)
    with a_core_each(server.pid):
        try:
            streams, begun = await _open(client, load)
            # A stream that has not begun would only make it easier for the others.
            _, late = await asyncio.wait(begun, timeout=LATE_S)
            done.errors.update({"not begun in time": len(late)} if late else {})
            await asyncio.sleep(SETTLE_S)
            begin_ns, spent, own = time.monotonic_ns(), cpu_s(server.pid), time.process_time()
            await asyncio.sleep(window_s)
            end_ns = time.monotonic_ns()
            done.server_cpu_s = cpu_s(server.pid) - spent
            done.client_cpu_s = time.process_time() - own
            answers = await asyncio.gather(*streams, return_exceptions=True)
        finally:
            client.close()
    done.window_s = (end_ns - begin_ns) / 1e9
    tokens = tokens_of(load, window_s)
    for answer in answers:
        if isinstance(answer, Failed):
            done.errors[answer.code] += 1
        elif isinstance(answer, BaseException):
            raise answer
        else:
            take(done, answer, load, begin_ns, end_ns, tokens)
    return done


async def _open(
    client: Client, load: Load
) -> tuple[Sequence[asyncio.Future[Exchange]], Sequence[asyncio.Future[None]]]:
    """Open all streams, evenly over the time that there is for it.

    Returns:
        The streams, and for each a future that is done when it has begun.
    """
    streams: list[asyncio.Future[Exchange]] = []
    loop = asyncio.get_running_loop()
    begun: list[asyncio.Future[None]] = [loop.create_future() for _ in range(load.streams)]
    batches = range(0, load.streams, AT_ONCE)
    pause = (_opening_s(load) - 0.4) / len(batches)
    body = {"prompt": "ping", "stream": True}
    for first in batches:
        began = time.monotonic()
        streams += [
            asyncio.ensure_future(client.ask("POST", "/query", body, text=begun[n]))
            for n in range(first, min(first + AT_ONCE, load.streams))
        ]
        await asyncio.sleep(max(pause - (time.monotonic() - began), 0))
    return streams, begun


def take(
    done: Round, answer: Exchange, load: Load, begin_ns: int, end_ns: int, tokens: int
) -> None:
    """Take a stream apart; all have ended, so the time that it takes is nobody's.

    Args:
        done: Gets what arrived.
        answer: The stream.
        load: That it was part of.
        begin_ns: When the window began.
        end_ns: When it ended.
        tokens: Words that it should have.
    """
    try:
        answer.must_be_good()
        heard = [event for event in events(answer) if event[1].get("type") == "text"]
    except Failed as failure:
        done.errors[failure.code] += 1
        return
    done.whole += is_whole("".join(str(event["content"]) for _, event in heard), tokens)
    begun_ns = next((one.said_ns for _, event in heard[:1] for one in _words(event)), None)
    for at, event in heard:
        if begin_ns <= at < end_ns:
            said = _words(event)
            done.events += 1
            done.deltas += len(said)
            if begun_ns is not None:
                # The first word says when it was due, and by that when each of the others was.
                late_ms = (at - begun_ns) / 1e6
                done.lags.extend(late_ms - one.number * load.delay_s * 1e3 for one in said)


def _words(event: Mapping[str, object]) -> Sequence[Word]:
    return words(str(event["content"]))


def _cell(way: Way, load: Load, rounds: Sequence[Round]) -> LayerCell:
    lags = [ms for one in rounds for ms in one.lags]
    errors = Counter[str]()
    for one in rounds:
        errors.update(one.errors)
    heard = sum(one.events for one in rounds)
    own = sum(one.client_cpu_s for one in rounds)
    return LayerCell(
        server=way.name,
        streams=load.streams,
        offered=load.offered,
        rounds=len(rounds),
        delivered=median([one.deltas / one.window_s for one in rounds]),
        events=median([one.events / one.window_s for one in rounds]),
        cpu_us=[one.server_cpu_s / max(one.events, 1) * 1e6 for one in rounds],
        cpu_us_delta=[one.server_cpu_s / max(one.deltas, 1) * 1e6 for one in rounds],
        server_cpu=[one.server_cpu_s / one.window_s for one in rounds],
        lag=Distribution.of(lags) if lags else None,
        lag_p99=[quantile(sorted(one.lags), 0.99) for one in rounds if one.lags],
        whole=sum(one.whole for one in rounds),
        expected=load.streams * len(rounds),
        errors=dict(errors),
        client_cpu_us=own / max(heard, 1) * 1e6,
        client_cpu_share=own / sum(one.window_s for one in rounds),
    )


@contextmanager
def a_core_each(server: int) -> Generator[None]:
    """Give the server the first core, and this process the others, for a while."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield
        return
    _pin(server, {cores[0]})
    os.sched_setaffinity(0, set(cores[1:]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, set(cores))
        _pin(server, set(cores))


def _pin(pid: int, cores: set[int]) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread, or the process, that has just ended
            os.sched_setaffinity(int(task.name), cores)
