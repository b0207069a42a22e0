"""Many sessions, few processes: memory of one that is hibernated, its wake, and starting with all.

`python -m bench.density`; see `README.md`. Memory and start are measured in processes of their own,
on a SQLite file, with scripted agents; the wake with the real Claude Code CLI on the offline model,
turn about with a bare SDK client that resumes a conversation as long.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench.arguments import count, count_or_none
from bench.processes import Memory, clean_surroundings
from bench.quantiles import Estimate, Summary, median_with_interval
from bench.report import Run, table
from bench.scripted_server import agent_of
from bench.turns import MODEL, bare_sdk, embedded_turn
from session_http.offline import OfflineModel, Pacing
from session_http.serve import run
from session_supervisor import Session, SessionSpec, State, Supervisor, SupervisorConfig
from session_supervisor.stores.sqlite import SqliteStore

GOAL_KB = 20.0
"""Memory of a hibernated session, thousands of bytes."""

GOAL_START_S = 2.0
"""Start with the most sessions, seconds."""

GOAL_WAKE = 1.1
"""Wake to first text, as a multiple of a bare resume."""

LIMIT_S = 900.0
"""Seconds after which a run is given up."""

AT_ONCE = 32
"""Sessions that are made at the same time."""

WARM = 50
"""Sessions before the first measurement, so that what is made once does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run was told.

    Attributes:
        sessions: Numbers of sessions.
        wakes: Wakes of each kind; 0 leaves that out.
        context: Turns of the conversations that are woken.
    """

    sessions: tuple[int, ...] = (100, 1_000, 10_000)
    wakes: int = 20
    context: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Hibernated:
    """So many hibernated sessions, each with a turn.

    Attributes:
        sessions: How many.
        made_s: Seconds in which they were made.
        uss: What each added to the memory of the process that made them, bytes.
        database: What each takes in the file, bytes.
        start_s: Seconds in which another process opened them.
        start_uss: What each added to the memory of that, bytes.
    """

    sessions: int
    made_s: float
    uss: float
    database: float
    start_s: float
    start_uss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wakes:
    """Milliseconds from asking to the first text, in a conversation without a process.

    Attributes:
        bare: A bare SDK client that resumes.
        ours: A hibernated session.
        added: The difference of neighbours.
        ratio: Of the medians.
    """

    bare: Summary
    ours: Summary
    added: Estimate
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All of it."""

    hibernated: tuple[Hibernated, ...]
    wakes: Wakes | None


async def measure(settings: Settings, home: Path) -> Results:
    """Measure memory and start for each number, then the wake."""
    async with asyncio.timeout(LIMIT_S):
        hibernated = [await _hibernated(number, home) for number in settings.sessions]
        wakes = await _wakes(settings, home) if settings.wakes else None
    return Results(hibernated=tuple(hibernated), wakes=wakes)


async def _hibernated(number: int, home: Path) -> Hibernated:
    path = home / f"{number}.db"
    made = await in_a_process("make", number, path)
    opened = await in_a_process("open", number, path)
    return Hibernated(
        sessions=number,
        made_s=made["seconds"],
        uss=made["uss"],
        database=path.stat().st_size / (number + WARM),
        start_s=opened["seconds"],
        start_uss=opened["uss"],
    )


async def in_a_process(what: str, number: int, path: Path) -> Mapping[str, Any]:
    """Make so many hibernated sessions in a file, or open them; what each took, and how long."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.density", what, str(number), str(path)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"to {what} sessions ended with status {process.returncode}")
    found: Mapping[str, Any] = json.loads(said)
    return found


# -- the wake ------------------------------------------------------------------------------------


async def _wakes(settings: Settings, home: Path) -> Wakes:
    from session_supervisor.agents.claude import ClaudeAgent

    work = home / "work"
    work.mkdir()
    bare: list[float] = []
    ours: list[float] = []
    config = SupervisorConfig(turn_timeout_s=60.0)
    async with OfflineModel(pacing=Pacing(tokens=20)) as model:
        env = {**model.environment(), "CLAUDE_CONFIG_DIR": str(home / "bare")}
        agent = ClaudeAgent(env=model.environment(), config_dir=home / "ours", model=MODEL)
        store = SqliteStore(home / "wake.db", config.retention)
        async with Supervisor(agent, store=store, config=config) as supervisor:
            session = await supervisor.start(SessionSpec(cwd=str(work), allowed_tools=("Read",)))
            conversation = str(uuid4())
            async with bare_sdk(work, ("Read",), env, session_id=conversation) as way:
                for turn in range(settings.context):
                    await way.turn(f"number {turn}")
                    await embedded_turn(session, f"number {turn}")
            await asyncio.sleep(0.5)  # for the CLI's transcript
            for turn in range(settings.wakes):
                pair = (_bare(work, env, conversation, bare), _ours(session, ours))
                for one in pair if turn % 2 else reversed(pair):
                    await one
    added = [mine - theirs for mine, theirs in zip(ours, bare, strict=True)]
    theirs, mine = Summary.of(bare), Summary.of(ours)
    return Wakes(
        bare=theirs, ours=mine, added=median_with_interval(added), ratio=mine.p50 / theirs.p50
    )


async def _bare(work: Path, env: Mapping[str, str], conversation: str, took: list[float]) -> None:
    began = time.perf_counter()
    async with bare_sdk(work, ("Read",), env, resume=conversation) as way:
        connected = time.perf_counter() - began
        took.append((connected + (await way.turn("again")).first_text) * 1000)


async def _ours(session: Session, took: list[float]) -> None:
    await _asleep(session)
    took.append((await embedded_turn(session, "again")).first_text * 1000)
    await _asleep(session)


# -- in processes of their own -------------------------------------------------------------------


async def _make(number: int, path: Path) -> Mapping[str, float]:
    config = SupervisorConfig(max_sessions=number + WARM, max_live=2 * AT_ONCE)
    store = SqliteStore(path, config.retention)
    async with Supervisor(agent_of(tokens=20), store=store, config=config) as supervisor:
        await _fill(supervisor, WARM)
        gc.collect()
        before, began = Memory.of().uss, time.perf_counter()
        await _fill(supervisor, number)
        took = time.perf_counter() - began
        gc.collect()
        return {"uss": (Memory.of().uss - before) / number, "seconds": took}


async def _open(number: int, path: Path) -> Mapping[str, float]:
    config = SupervisorConfig(max_sessions=number + WARM)
    agent = agent_of(tokens=20)
    gc.collect()
    before, began = Memory.of().uss, time.perf_counter()
    store = SqliteStore(path, config.retention)
    async with Supervisor(agent, store=store, config=config) as supervisor:
        took = time.perf_counter() - began
        found = supervisor.list()
        assert len(found) == number + WARM, f"{len(found)} were found"
        gc.collect()
        return {"uss": (Memory.of().uss - before) / len(found), "seconds": took}


async def _fill(supervisor: Supervisor, number: int) -> None:
    for first in range(0, number, AT_ONCE):
        await asyncio.gather(
            *(_one(supervisor) for _ in range(first, min(first + AT_ONCE, number)))
        )


async def _one(supervisor: Supervisor) -> None:
    session = await supervisor.start(SessionSpec(cwd="/"))
    await (await session.query("ping")).result()
    await _asleep(session)


async def _asleep(session: Session) -> None:
    """Hibernate a session, and wait until it is."""
    while session.state is not State.HIBERNATED:
        await session.hibernate()
        await asyncio.sleep(0.002)


# -- the report ----------------------------------------------------------------------------------


def text_of(results: Results) -> str:
    """Return the report for people."""
    parts = [
        "Hibernated sessions with one turn each\n"
        + table(
            ("sessions", "kB each", "kB in file", "made in s", "start s", "kB each then"),
            [
                (
                    f"{one.sessions:,}",
                    f"{one.uss / 1000:.1f}",
                    f"{one.database / 1000:.1f}",
                    f"{one.made_s:.1f}",
                    f"{one.start_s:.2f}",
                    f"{one.start_uss / 1000:.1f}",
                )
                for one in results.hibernated
            ],
        )
    ]
    most = results.hibernated[-1]
    parts.append(
        f"Goals: {GOAL_KB:g} kB each: {_met(most.uss <= GOAL_KB * 1000)}; "
        f"start in {GOAL_START_S:g} s: {_met(most.start_s <= GOAL_START_S)}"
    )
    wakes = results.wakes
    if wakes is not None:
        rows = [
            (name, str(one.count), *(f"{value:.0f}" for value in (one.p50, one.p95, one.greatest)))
            for name, one in (("bare SDK, resume", wakes.bare), ("hibernated", wakes.ours))
        ]
        parts.append(
            "To the first text of a conversation without a process, milliseconds\n"
            + table(("", "wakes", "p50", "p95", "longest"), rows)
            + f"\nDifference {wakes.added.value:+.0f} [{wakes.added.low:+.0f}, "
            f"{wakes.added.high:+.0f}]; ratio {wakes.ratio:.2f}, goal {GOAL_WAKE:g}: "
            + _met(wakes.ratio <= GOAL_WAKE)
        )
    return "\n\n".join(parts)


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _numbers(given: Sequence[int] | None, default: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(given or default))


def main() -> None:
    """Run the benchmark."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m bench.density",
        description="Measure hibernated sessions: memory, wake, and starting with all of them.",
    )
    parser.add_argument("--sessions", type=count, nargs="+", help="numbers of sessions")
    parser.add_argument("--wakes", type=count_or_none, default=default.wakes, help="of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    settings = Settings(sessions=_numbers(options.sessions, default.sessions), wakes=options.wakes)
    circumstances = Run.begin("density", dataclasses.asdict(settings))
    print(circumstances.heading(), end="\n\n", flush=True)
    with clean_surroundings() as home:
        results = run(measure(settings, home))
    print(text_of(results))
    if options.json is not None:
        circumstances.write(options.json, results)


def _measured(what: str, number: str, path: str) -> None:
    work = {"make": _make, "open": _open}[what]
    print(json.dumps(run(work(int(number), Path(path)))))


if __name__ == "__main__":
    if sys.argv[1:2] in (["make"], ["open"]):
        _measured(*sys.argv[1:])
    else:
        main()
