"""What goes through actors: messages a second, latency, and memory of a session.

`python -m bench.mailbox`; see `README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.arguments import amount, count, count_or_none
from bench.idle import Density, measure_density, source_table, until_idle
from bench.quantiles import Summary
from bench.report import Run, table
from bench.scripted_server import agent_of
from session_http.serve import run
from session_supervisor import Session, SessionSpec, Supervisor, SupervisorConfig

GOAL_KB = 25.0
"""Memory of an idle session, less its agent's; thousands of bytes."""

LIMIT_S = 600.0
"""Seconds after which a run is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run was told.

    Attributes:
        sessions: Numbers of sessions.
        in_flight: Messages that wait for an answer at the same time, at most one a session.
        seconds: Longest that one cell of the table may take.
        messages: Most messages in one cell.
        density: Sessions of which memory is measured; 0 leaves that out.
    """

    sessions: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    in_flight: int = 64
    seconds: float = 2.0
    messages: int = 30_000
    density: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """What the garbage collector took in one cell, in milliseconds.

    Attributes:
        total: All of it.
        longest: The longest time that everything stood still.
    """

    total: float
    longest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One lane, at one number of sessions and of messages in flight.

    Attributes:
        lane: `control` (an `inspect` and its answer) or `work` (a query and its result).
        sessions: How many there were; every one of them was asked in turn.
        in_flight: Messages that waited for an answer at the same time.
        rate: Messages answered in a second.
        latency: From the offer to the answer, microseconds.
        pauses: Of the garbage collector.
    """

    lane: str
    sessions: int
    in_flight: int
    rate: float
    latency: Summary
    pauses: Pauses


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """How long it took until so many sessions were idle."""

    sessions: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All of it."""

    cells: tuple[Cell, ...]
    started: tuple[Started, ...]
    density: tuple[Density, ...]
    goal_kb: float
    goal_met: bool | None


class PauseMeter:
    """Listens to the garbage collector, while the context is open."""

    def __init__(self) -> None:
        self._began = 0.0
        self._taken: list[float] = []

    def __enter__(self) -> PauseMeter:
        gc.callbacks.append(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._hear)

    def read(self) -> Pauses:
        """Return what it has taken."""
        return Pauses(total=sum(self._taken) * 1000, longest=max(self._taken, default=0.0) * 1000)

    def _hear(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self._taken.append(time.perf_counter() - self._began)


Ask = Callable[[Session], Awaitable[object]]
"""Offers one message to a session, and returns when it is answered."""


async def inspect(session: Session) -> None:
    """Go through the control lane."""
    await session.inspect()


async def query(session: Session) -> None:
    """Go through the work lane, the agent and the log."""
    turn = await session.query("ping")
    await turn.result()


async def measure(settings: Settings) -> Results:
    """Fill every cell, and measure memory in processes of its own."""
    cells: list[Cell] = []
    started: list[Started] = []
    async with asyncio.timeout(LIMIT_S):
        for size in settings.sessions:
            config = SupervisorConfig(max_sessions=size, max_live=size)
            async with Supervisor(agent_of(tokens=1), config=config) as supervisor:
                began = time.perf_counter()
                sessions = await start(supervisor, size)
                started.append(Started(sessions=size, seconds=time.perf_counter() - began))
                for (lane, ask), at_once in itertools.product(
                    (("control", inspect), ("work", query)),
                    sorted({1, min(size, settings.in_flight)}),
                ):
                    gc.collect()
                    cells.append(await _cell(lane, sessions, ask, at_once, settings))
        density = await measure_density(settings.density) if settings.density else ()
    return Results(
        cells=tuple(cells),
        started=tuple(started),
        density=tuple(density),
        goal_kb=GOAL_KB,
        goal_met=all(entry.own_uss < GOAL_KB * 1000 for entry in density if not entry.turns)
        if density
        else None,
    )


async def start(supervisor: Supervisor, number: int) -> Sequence[Session]:
    """Start sessions in a directory that is there already, and wait until all are idle."""
    spec = SessionSpec(cwd="/")
    sessions = [await supervisor.start(spec) for _ in range(number)]
    await until_idle(sessions)
    return sessions


async def _cell(
    lane: str, sessions: Sequence[Session], ask: Ask, at_once: int, settings: Settings
) -> Cell:
    """Keep so many messages in flight: whoever has an answer asks the next session."""
    latencies: list[float] = []
    clock = time.perf_counter
    ends_at = 0.0

    async def caller(own: Sequence[Session], most: int) -> None:
        for session in itertools.islice(itertools.cycle(own), most):
            began = clock()
            await ask(session)
            latencies.append(clock() - began)
            if clock() > ends_at:
                return

    async def callers(messages: int) -> float:
        began = clock()
        async with asyncio.TaskGroup() as tasks:
            for number in range(at_once):
                own = sessions[number::at_once]
                tasks.create_task(caller(own, -(-messages // at_once)))
        return clock() - began

    ends_at = clock() + settings.seconds / 4
    await callers(settings.messages // 20)
    latencies.clear()
    ends_at = clock() + settings.seconds
    with PauseMeter() as meter:
        took = await callers(settings.messages)
    return Cell(
        lane=lane,
        sessions=len(sessions),
        in_flight=at_once,
        rate=len(latencies) / took,
        latency=Summary.of([latency * 1e6 for latency in latencies]),
        pauses=meter.read(),
    )


# -- the report --------------------------------------------------------------------------------


def text_of(results: Results) -> str:
    """Return the report for people."""
    parts = [
        "Through an actor with ScriptedAgent; latency in microseconds, pauses in milliseconds\n"
        + _cells_table(results.cells),
        "Starting sessions\n"
        + table(
            ("sessions", "seconds", "a second"),
            [
                (f"{one.sessions:,}", f"{one.seconds:.3f}", f"{one.sessions / one.seconds:,.0f}")
                for one in results.started
            ],
        ),
    ]
    if results.density:
        goal = (
            f"Goal: an idle session has less than {results.goal_kb:g} kB without its agent's own "
            f"memory, before its first turn. {'Met' if results.goal_met else 'MISSED'}."
        )
        parts += [
            "Memory of an idle session, thousands of bytes\n" + _density_table(results.density),
            goal,
            "Where it is, per session, before its first turn (tracemalloc)\n"
            + source_table(results.density[0]),
        ]
    return "\n\n".join(parts)


def _cells_table(cells: Sequence[Cell]) -> str:
    return table(
        (
            "lane",
            "sessions",
            "in flight",
            "messages/s",
            "p50",
            "p95",
            "p99",
            "max",
            "GC",
            "longest",
        ),
        [
            (
                cell.lane,
                f"{cell.sessions:,}",
                str(cell.in_flight),
                f"{cell.rate:,.0f}",
                f"{cell.latency.p50:,.0f}",
                f"{cell.latency.p95:,.0f}",
                f"{cell.latency.p99:,.0f}",
                f"{cell.latency.greatest:,.0f}",
                f"{cell.pauses.total:.0f}",
                f"{cell.pauses.longest:.0f}",
            )
            for cell in cells
        ],
    )


def _density_table(density: Sequence[Density]) -> str:
    return table(
        ("turns each", "sessions", "USS", "of it agent", "session", "PSS", "tracemalloc"),
        [
            (
                str(entry.turns),
                f"{entry.sessions:,}",
                *(
                    f"{size / 1000:.1f}"
                    for size in (entry.uss, entry.agent_uss, entry.own_uss, entry.pss, entry.traced)
                ),
            )
            for entry in density
        ],
    )


def main() -> None:
    """Run the benchmark."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m bench.mailbox",
        description="Messages a second, latency and memory of sessions with a scripted agent.",
    )
    parser.add_argument("--sessions", type=count, nargs="+", default=default.sessions)
    parser.add_argument("--in-flight", type=count, default=default.in_flight)
    parser.add_argument("--seconds", type=amount, default=default.seconds, help="per cell")
    parser.add_argument("--messages", type=count, default=default.messages, help="most per cell")
    parser.add_argument(
        "--density", type=count_or_none, default=default.density, help="0 leaves memory out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    settings = Settings(
        sessions=tuple(options.sessions),
        in_flight=options.in_flight,
        seconds=options.seconds,
        messages=options.messages,
        density=options.density,
    )
    circumstances = Run.begin("mailbox", dataclasses.asdict(settings))
    print(circumstances.heading(), end="\n\n", flush=True)
    results = run(measure(settings))
    print(text_of(results))
    if options.json is not None:
        circumstances.write(options.json, results)


if __name__ == "__main__":
    main()
