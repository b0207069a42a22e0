"""Our server's own settings: each changed alone, against the server as it is, turn about.

There is no CLI in it: what these settings are about is the layer, and a scripted agent leaves it
all of a core.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

from bench.processes import Server, cpu_s
from bench.quantiles import quantile
from bench.suite import layer
from bench.suite.changes import CHANGES, LoadName
from bench.suite.display import Display
from bench.suite.h2client import Http2Client, connected
from bench.suite.results import Tuned
from bench.suite.slow import SlowReader
from bench.suite.turnabout import measured
from bench.suite.wire import Client, Failed

AS_IT_IS = "as it is"

STREAMS = layer.Load(streams=300, offered=6_000.0)
"""As many as leave a core something to spare, or lag would be all that is measured."""

SLOW = layer.Load(streams=10, offered=5_000.0)
"""What readers get who read slower than that."""

WORD_BYTES = 1024
"""Of each of its deltas: merged, small ones would be so few bytes that nobody need wait."""

SLOW_BYTES_S = 256 * 1024.0
"""Bytes that such a reader reads in a second: half of what is said to it."""

HOLD_S = 1.0
"""Seconds for which it reads nothing at first, so that the server's marks are reached."""

STORED = layer.Load(streams=200, offered=4_000.0)
"""With SQLite, whose threads want the interpreter as well."""

USERS = 16
"""Who ask all the time, on a connection each."""

UPLOAD = {"prompt": "x" * 2**20}
"""A body that is read, for a session that there is not."""

CONNECTIONS = 4
"""Over which users of HTTP/2 share their bodies: with 16 users, four at once on each."""

STORM = 1_000
"""Connections that come at the same moment."""

WARM_S = 0.5
"""Seconds of load before what is measured."""


@dataclass(slots=True, kw_only=True)
class Round:
    """One load on one server.

    Attributes:
        done: Deltas, requests or connections.
        cpu_s: Processor seconds of the server for them.
        times: Milliseconds that each took, or was late.
        errors: By code.
    """

    done: int = 0
    cpu_s: float = 0.0
    times: list[float] = field(default_factory=list[float])
    errors: Counter[str] = field(default_factory=Counter[str])


async def measure(display: Display, found: list[Tuned], *, rounds: int, window_s: float) -> None:
    """Measure all loads, each on the server as it is and with each change that is about it.

    Args:
        display: Is told how far it is.
        found: Takes what was measured, load by load.
        rounds: How often each.
        window_s: Seconds that are measured each time.
    """
    for load in LOADS:
        for one in await _under(load, display, rounds=rounds, window_s=window_s):
            found.append(one)
            display.say(line_of(one))


async def _under(
    load: LoadName, display: Display, *, rounds: int, window_s: float
) -> Sequence[Tuned]:
    about, one_round = LOADS[load]

    async def once(name: str, server: Server) -> Round:
        display.doing(f"settings: {about}, {name}")
        with layer.a_core_each(server.pid):
            done = await one_round(server, window_s)
        display.step()
        return done

    told = {name: _arguments(load, name, window_s) for name in names_of(load)}
    taken = await measured(told, once, rounds=rounds)
    return [tuned(about, name, some) for name, some in taken.items()]


def names_of(load: LoadName) -> Sequence[str]:
    """Return what a load is measured with: the server as it is, and the changes."""
    return [AS_IT_IS, *(name for name, change in CHANGES.items() if load in change.loads)]


def steps(rounds: int) -> int:
    """Return how many rounds there are, for the display."""
    return sum(len(names_of(load)) for load in LOADS) * rounds


def line_of(one: Tuned) -> str:
    """Return a measurement in one line."""
    errors = "".join(f"  {code} x{count}" for code, count in one.errors.items())
    if not one.cpu_us:
        return f"settings  {one.load:40} {one.change:32} nothing was done in its time{errors}"
    return (
        f"settings  {one.load:40} {one.change:32} "
        f"{quantile(sorted(one.cpu_us), 0.5):9.1f} us  p50 {quantile(sorted(one.p50), 0.5):8.2f}  "
        f"p99 {quantile(sorted(one.p99), 0.5):8.2f} ms{errors}"
    )


def _arguments(load: LoadName, name: str, window_s: float) -> Sequence[str]:
    change = () if name == AS_IT_IS else ("--change", name)
    way = layer.WAYS[0]
    match load:
        case "streams":
            return (*layer.arguments(way, STREAMS, window_s), *change)
        case "slow":
            size = ("--word-bytes", str(WORD_BYTES))
            return (*layer.arguments(way, SLOW, window_s + HOLD_S), *size, *change)
        case "stored":
            return (*layer.arguments(way, STORED, window_s), "--stored", *change)
        case "http2":
            return ("--http2", *change)
        case _:
            return change


def tuned(about: str, name: str, rounds: Sequence[Round]) -> Tuned:
    """Return what rounds of a load gave; of one in which nothing was done only its errors."""
    errors = Counter[str]()
    for one in rounds:
        errors.update(one.errors)
    good = [one for one in rounds if one.times]
    return Tuned(
        load=about,
        change=name,
        cpu_us=[one.cpu_s / max(one.done, 1) * 1e6 for one in good],
        p50=[quantile(sorted(one.times), 0.5) for one in good],
        p99=[quantile(sorted(one.times), 0.99) for one in good],
        errors=dict(errors),
    )


# -- the loads -------------------------------------------------------------------------------------


async def _streams(server: Server, load: layer.Load, window_s: float) -> Round:
    done = await layer.one_round(server, load, window_s)
    errors = done.errors.copy()
    if done.whole < load.streams:
        errors["text not whole"] += load.streams - done.whole
    return Round(done=done.deltas, cpu_s=done.server_cpu_s, times=done.lags.tolist(), errors=errors)


async def _slow(server: Server, window_s: float) -> Round:
    """Have streams read slowly; a time is how late a delta is when it is read at last."""
    done, tokens = layer.Round(), layer.tokens_of(SLOW, window_s + HOLD_S)
    request = Client(server.url).request("POST", "/query", {"prompt": "ping", "stream": True})
    before = cpu_s(server.pid)
    begin = time.monotonic() + HOLD_S
    end = begin + window_s

    async def account() -> None:
        await asyncio.sleep(end - time.monotonic())
        done.server_cpu_s = cpu_s(server.pid) - before

    async def one() -> None:
        try:
            reader = SlowReader(request, bytes_s=SLOW_BYTES_S)
            answer = await reader.run(server.address, begin_s=begin, end_s=end)
        except Failed as failure:
            done.errors[failure.code] += 1
        else:
            layer.take(done, answer, SLOW, round(begin * 1e9), round(end * 1e9), tokens)

    await asyncio.gather(account(), *(one() for _ in range(SLOW.streams)))
    if done.whole < SLOW.streams:
        done.errors["text not whole"] += SLOW.streams - done.whole
    # For each that was said, whether it was read yet or not.
    said = round(SLOW.offered * (HOLD_S + window_s))
    return Round(done=said, cpu_s=done.server_cpu_s, times=done.lags.tolist(), errors=done.errors)


async def _asking(
    server: Server,
    window_s: float,
    ask: Callable[[Client], Awaitable[None]],
) -> Round:
    """Have users ask again as soon as they are answered."""
    client = Client(server.url)
    try:
        return await _users(server, window_s, [partial(ask, client)] * USERS)
    finally:
        client.close()


async def _users(
    server: Server, window_s: float, asks: Sequence[Callable[[], Awaitable[None]]]
) -> Round:
    """Have each user ask again as soon as it is answered."""
    done = Round()
    begin = time.monotonic() + WARM_S
    end = begin + window_s
    before = 0.0

    async def user(ask: Callable[[], Awaitable[None]]) -> None:
        while (began := time.monotonic()) < end:
            try:
                await ask()
            except Failed as failure:
                done.errors[failure.code] += 1
                await asyncio.sleep(0.1)
            else:
                if began >= begin:
                    done.times.append((time.monotonic() - began) * 1e3)

    async def account() -> None:
        nonlocal before
        await asyncio.sleep(WARM_S)
        before = cpu_s(server.pid)

    await asyncio.gather(account(), *(user(ask) for ask in asks))
    done.cpu_s = cpu_s(server.pid) - before
    done.done = len(done.times)
    return done


async def _http2(server: Server, window_s: float) -> Round:
    """Have users send bodies over HTTP/2."""

    async def upload(client: Http2Client) -> None:
        if (status := await client.post("/session/none/query", UPLOAD)) != 404:
            raise Failed(str(status))

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connected(*server.address)) for _ in range(CONNECTIONS)
        ]
        asks = [partial(upload, clients[n % CONNECTIONS]) for n in range(USERS)]
        return await _users(server, window_s, asks)


async def _health(client: Client) -> None:
    (await client.ask("GET", "/health")).must_be_good()


async def _description(client: Client) -> None:
    (await client.ask("GET", "/openapi.json")).must_be_good()


async def _upload(client: Client) -> None:
    answer = await client.ask("POST", "/session/none/query", UPLOAD)
    if answer.status != 404:
        answer.must_be_good()
        raise Failed("there is such a session")


async def _storm(server: Server, _window_s: float) -> Round:
    """Ask on many new connections at once; a time is from the first one's beginning."""
    done, client = Round(), Client(server.url)
    before, began = cpu_s(server.pid), time.monotonic()

    async def one() -> None:
        try:
            await _health(client)
        except Failed as failure:
            done.errors[failure.code] += 1
        else:
            done.times.append((time.monotonic() - began) * 1e3)

    try:
        await asyncio.gather(*(one() for _ in range(STORM)))
        done.cpu_s = cpu_s(server.pid) - before
    finally:
        client.close()
    done.done = len(done.times)
    await asyncio.sleep(WARM_S)  # for the server to close them
    return done


LOADS: Mapping[LoadName, tuple[str, Callable[[Server, float], Awaitable[Round]]]] = {
    "streams": (
        f"a delta, {STREAMS.streams} streams, {STREAMS.offered:,.0f}/s: lag",
        lambda server, window_s: _streams(server, STREAMS, window_s),
    ),
    "stored": (
        f"a delta, {STORED.streams} streams, {STORED.offered:,.0f}/s, SQLite: lag",
        lambda server, window_s: _streams(server, STORED, window_s),
    ),
    "requests": (
        f"GET /health, {USERS} users",
        lambda server, window_s: _asking(server, window_s, _health),
    ),
    "downloads": (
        f"GET /openapi.json, {USERS} users",
        lambda server, window_s: _asking(server, window_s, _description),
    ),
    "uploads": (
        f"1 MiB posted, {USERS} users",
        lambda server, window_s: _asking(server, window_s, _upload),
    ),
    "slow": (
        f"a delta of 1 KiB, {SLOW.streams} streams, {SLOW.offered:,.0f}/s, slow readers: lag",
        _slow,
    ),
    "http2": (f"1 MiB posted over HTTP/2, {USERS} users on {CONNECTIONS} connections", _http2),
    "storm": (f"a connection, {STORM:,} at once", _storm),
}
"""What is asked, in words, and how."""
