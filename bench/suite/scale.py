"""Many sessions on one server: what each takes, and how soon the server answers looks under load.

The sessions are made by the library with a scripted agent, in a process of its own, on the database
of a state directory; a session whose process was given up has none, so it does not matter which it
had. Then the real command is started on that directory, once empty and once with all of them. Of a
server that runs already, its own sessions are taken as they are.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from bench.density import in_a_process
from bench.processes import Memory, NotReady, Server, serving
from bench.suite.display import Display
from bench.suite.histogram import Distribution
from bench.suite.load import Books, Times, Visit
from bench.suite.profile import NoProfile, record
from bench.suite.reading import read
from bench.suite.results import Looks, Profile, Scale
from bench.suite.runner import Plan, Settings, one_round
from bench.suite.scenarios import SCENARIOS, Asking, probe
from bench.suite.stamps import is_whole
from bench.suite.targets import NoTarget, Target, found, ours
from bench.suite.tree import until_quiet
from bench.suite.wire import Client, Exchange, Failed
from session_http.statedir import StateDir

SESSIONS = 10_000
USERS = 4
"""That ask one-off queries of the real CLI, one after the other each."""

STREAMS, DELTAS = 1_000, 30_000.0
"""Of the layer's load, and deltas that are due in a second."""

LOOKS_HZ = 10.0
"""Looks of each kind in a second."""

LONG_S = 30.0
"""Seconds of each load: of 300 looks, a p99 is the third-longest."""

PROFILED_S = 10.0
"""Seconds in which the layer's load is profiled, where that is asked for."""

OPENING_S = 3.5
"""Seconds in which the layer's streams are opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for.

    Attributes:
        sessions: How many.
        seconds: Of each load.
        asking: What one-off queries are.
        profile: Whether the layer's load is profiled.
    """

    sessions: int = SESSIONS
    seconds: float = LONG_S
    asking: Asking
    profile: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Sessions that were made.

    Attributes:
        database: They are in it.
        number: How many.
        each: What each added to the process that made it, bytes.
    """

    database: Path
    number: int
    each: float


async def make(wanted: Wanted, home: Path, display: Display) -> Made:
    """Make sessions, all of which gave up their process."""
    display.doing(f"scale: {wanted.sessions:,} sessions are made")
    state = StateDir(home / "scale-made")
    state.prepare()
    state.make_database()
    told = await in_a_process("make", wanted.sessions, state.database)
    display.step()
    return Made(database=state.database, number=wanted.sessions, each=told["uss"])


async def on_ours(
    wanted: Wanted,
    made: Made,
    home: Path,
    env: Mapping[str, str],
    display: Display,
    *,
    name: str,
    options: Sequence[str],
) -> Scale:
    """Measure our server with sessions that were made, under the loads of the real CLI.

    Args:
        wanted: What is asked for.
        made: The sessions; the server gets a copy.
        home: Where it may write.
        env: What it needs to reach the model.
        display: Is told how far it is.
        name: What the report calls the server.
        options: Further ones of `session-supervisor serve`.
    """
    empty, full = StateDir(home / f"empty-{uuid4()}"), StateDir(home / f"full-{uuid4()}")
    for state in (empty, full):
        state.prepare()
    full.make_database()
    await asyncio.to_thread(shutil.copyfile, made.database, full.database)
    size = full.database.stat().st_size
    more = ("--max-sessions", str(made.number + 1_000), *options)

    display.doing(f"scale: {name} without sessions")
    began = time.monotonic()
    async with ours(empty.path, more, env) as server:
        start_empty_s = time.monotonic() - began
        before = await _uss(server)
    display.step()

    display.doing(f"scale: {name} with {made.number:,} sessions")
    began = time.monotonic()
    async with ours(full.path, more, env) as server:
        start_s = time.monotonic() - began
        after = await _uss(server)
        target = await found(name, server.url, pid=server.pid)
        count = await sessions_of(target)
        looks = [
            await _under_nothing(target, wanted, display),
            await _under_queries(target, wanted, display),
        ]
    return Scale(
        target=name,
        sessions=count,
        made=made.each,
        found=(after - before) / max(count, 1),
        file=size / max(count, 1),
        start_s=start_s,
        start_empty_s=start_empty_s,
        looks=looks,
    )


async def without_cli(
    wanted: Wanted, made: Made, display: Display
) -> tuple[Looks | None, Sequence[Profile], Sequence[str]]:
    """Measure the layer with the sessions that were made, which it goes on with.

    It is the same for every server of ours: their options are the command's.

    Returns:
        The looks, profiles, and what went wrong.
    """
    profiles, notes = list[Profile](), list[str]()
    try:
        looks = await _under_streams(made.database, wanted, display, profiles, notes)
    except (NotReady, NoTarget) as error:  # the rest is worth having
        return None, profiles, [*notes, f"scale without a CLI was left out: {error}"]
    return looks, profiles, notes


async def on_target(wanted: Wanted, target: Target, display: Display) -> Scale:
    """Look at a server that runs already, with the sessions that it has."""
    count = await sessions_of(target)
    looks = [
        await _under_nothing(target, wanted, display),
        await _under_queries(target, wanted, display),
    ]
    return Scale(
        target=target.name,
        sessions=count,
        made=None,
        found=None,
        file=None,
        start_s=None,
        start_empty_s=None,
        looks=looks,
    )


STEPS_ONCE, STEPS_OURS, STEPS_TARGET = 2, 3, 2
"""For the display: of what is done once, of each server of ours, and of one that runs already."""


async def sessions_of(target: Target) -> int:
    """Return how many sessions a server says that it has.

    Raises:
        Failed: It does not say.
    """
    client = target.client()
    try:
        answer = (await client.ask("GET", "/sessions")).json()
    finally:
        client.close()
    return int(answer.get("count", 0))


def line_of(scale: Scale) -> Sequence[str]:
    """Return the measurements in lines."""
    lines = [f"scale: {scale.sessions:,} sessions on {scale.target}"]
    if scale.made is not None and scale.found is not None:
        lines[0] += f", {scale.made / 1000:.1f} kB each, {scale.found / 1000:.1f} kB when found"
    for one in scale.looks:
        times = "  ".join(
            f"{name} p50 {times.p50:.1f} p99 {times.p99:.1f} ms"
            for name, times in one.times.items()
        )
        errors = "".join(f"  {code} x{count}" for code, count in one.errors.items())
        lines.append(f"  under {one.load}: {times}  {one.done}{errors}")
    return lines


async def _uss(server: Server) -> int:
    await until_quiet(server.pid)
    return (await asyncio.to_thread(Memory.of, server.pid)).uss


async def _under_nothing(target: Target, wanted: Wanted, display: Display) -> Looks:
    display.doing("scale: looks, no load")
    books = Books()
    await _look(target, books, wanted.seconds)
    display.step()
    return _looks("no load", books, "")


async def _under_queries(target: Target, wanted: Wanted, display: Display) -> Looks:
    load = f"one-off queries, {USERS} users"
    display.doing(f"scale: looks, {load}")
    plan = Plan(scenario=SCENARIOS["oneoff"], mode="closed", level=float(USERS))
    times = Times(ramp_s=0.0, warmup_s=2.0, measured_s=wanted.seconds)
    settings = Settings(times=times, rounds=1, asking=wanted.asking, probe_hz=LOOKS_HZ)
    once = await one_round(target, plan, settings, 0)
    display.step()
    return _looks(load, once.books, f"{once.rate:.1f} queries/s")


async def _under_streams(
    database: Path, wanted: Wanted, display: Display, profiles: list[Profile], notes: list[str]
) -> Looks:
    load = f"{STREAMS:,} streams, {DELTAS:,.0f} deltas/s, no CLI"
    display.doing(f"scale: looks, {load}")
    delay_s = STREAMS / DELTAS
    profiled_s = PROFILED_S if wanted.profile else 0.0
    tokens = round((OPENING_S + wanted.seconds + profiled_s + 1.0) / delay_s)
    pace = ("--tokens", str(tokens), "--delay-ms", str(delay_s * 1000))
    books = Books()
    async with serving("bench.suite.scale_server", (str(database), *pace)) as server:
        target = await found("ours", server.url, pid=server.pid)
        client = target.client(timeout_s=wanted.seconds * 4 + 60)
        try:
            streams = await _opened(client)
            began = time.monotonic()
            await _look(target, books, wanted.seconds)
            ended = time.monotonic()
            if wanted.profile:  # which stops the server for each sample: after the looks
                await _profile(server.pid, load, profiled_s, profiles, notes)
            answers = await asyncio.gather(*streams, return_exceptions=True)
        finally:
            client.close()
    arrived = _take(answers, tokens, began, ended, books)
    display.step()
    return _looks(load, books, f"{arrived / (ended - began):,.0f} deltas/s delivered")


async def _opened(client: Client) -> Sequence[asyncio.Future[Exchange]]:
    """Open all streams, evenly over the time that there is for it."""
    streams: list[asyncio.Future[Exchange]] = []
    began = time.monotonic()
    for number in range(STREAMS):
        body = {"prompt": "ping", "stream": True}
        streams.append(asyncio.ensure_future(client.ask("POST", "/query", body)))
        due = began + OPENING_S * (number + 1) / STREAMS
        await asyncio.sleep(max(due - time.monotonic(), 0))
    return streams


async def _profile(
    pid: int, load: str, seconds: float, profiles: list[Profile], notes: list[str]
) -> None:
    try:
        profiles.append(await record(pid, seconds, load))
    except NoProfile as error:
        notes.append(str(error))


def _take(
    answers: Sequence[Exchange | BaseException],
    tokens: int,
    began: float,
    ended: float,
    books: Books,
) -> int:
    """Take the streams apart, and return how many deltas arrived in the time."""
    arrived = 0
    for answer in answers:
        if isinstance(answer, Failed):
            books.errors[answer.code] += 1
        elif isinstance(answer, BaseException):
            raise answer
        else:
            try:
                said = read(answer)
            except Failed as failure:
                books.errors[failure.code] += 1
                continue
            if not is_whole(said.text, tokens):
                books.errors["text not whole"] += 1
            arrived += sum(began * 1e9 <= at < ended * 1e9 for at in said.arrived_ns)
    return arrived


async def _look(target: Target, books: Books, seconds: float) -> None:
    """Look at a server for some time; a look that fails is an error."""
    client = target.client(timeout_s=10.0)
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    try:
        await probe(lambda due_ns: Visit(client, books, due_ns, counts=True), LOOKS_HZ, over)
    finally:
        client.close()


def _looks(load: str, books: Books, done: str) -> Looks:
    names = ("GET /health", "GET /sessions")
    times = {name: Distribution.of(books.times[name]) for name in names if name in books.times}
    return Looks(load=load, times=times, done=done, errors=dict(books.errors))
