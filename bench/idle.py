"""Memory of an idle session: many of them in a process of their own, and what each added to it.

Three processes for each number of turns. One holds sessions, one only scripted processes, so that
what belongs to the agent can be subtracted; both are measured from outside the interpreter, by what
the kernel counts. The third holds fewer sessions and is traced, which says where memory is, and
costs so much itself that it says nothing about how much.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench.processes import Memory
from bench.report import table
from bench.scripted_server import agent_of
from session_http.serve import run
from session_supervisor import Session, SessionSpec, State, Supervisor, SupervisorConfig
from session_supervisor.agents.port import AgentMessage, Binding, Fingerprint, TurnEnded
from session_supervisor.agents.scripted import ScriptedProcess
from session_supervisor.spec import LOCAL_OWNER, Prompt

TURNS = (0, 1, 10)
"""Turns that sessions have had when they are measured."""

TRACED = 1_000
"""Sessions that are traced."""

SOURCES = 14
"""Lines of source that are listed."""

WARM = 50
"""Sessions before the first measurement, so that what is made once does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A line of source, and what it allocated for one session that is still there."""

    line: str
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """What one idle session takes, in bytes.

    Attributes:
        turns: Turns that it has had.
        sessions: How many there were.
        uss: What it added to the process's own memory (unique set size), its agent included.
        pss: The same of the proportional set size.
        agent_uss: What a scripted process alone adds, that has had as many turns and rests.
        own_uss: The session without its agent: `uss` less `agent_uss`.
        traced: What Python's own accounts say, agent included.
        sources: The lines that allocated most of that.
    """

    turns: int
    sessions: int
    uss: float
    pss: float
    agent_uss: float
    own_uss: float
    traced: float
    sources: tuple[Source, ...]


async def measure_density(count: int) -> Sequence[Density]:
    """Measure with so many sessions, one process at a time."""
    return [await _density(count, turns) for turns in TURNS]


async def until_idle(sessions: Sequence[Session]) -> None:
    """Return when all of these sessions are."""
    for session in sessions:
        while session.state is not State.IDLE:  # noqa: ASYNC110  (nobody is told of it)
            await asyncio.sleep(0.001)


def source_table(density: Density) -> str:
    """Return where the memory is, for people."""
    rows = [(source.line, f"{source.bytes:,.0f}") for source in density.sources]
    rest = density.traced - sum(source.bytes for source in density.sources)
    return table(("allocated by", "bytes"), [*rows, ("everywhere else", f"{rest:,.0f}")])


async def _density(count: int, turns: int) -> Density:
    whole = await _in_a_process("sessions", count, turns)
    agent = await _in_a_process("agents", count, turns)
    traced = await _in_a_process("traced", min(count, TRACED), turns)
    return Density(
        turns=turns,
        sessions=count,
        uss=whole["uss"],
        pss=whole["pss"],
        agent_uss=agent["uss"],
        own_uss=whole["uss"] - agent["uss"],
        traced=traced["traced"],
        sources=tuple(Source(line=line, bytes=size) for line, size in traced["sources"]),
    )


async def _in_a_process(what: str, count: int, turns: int) -> Mapping[str, Any]:
    arguments = ("-m", "bench.idle", what, str(count), str(turns))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"measuring {what} ended with status {process.returncode}")
    found: Mapping[str, Any] = json.loads(said)
    return found


# -- in that process -----------------------------------------------------------------------------


async def _measure(what: str, count: int, turns: int) -> Mapping[str, object]:
    match what:
        case "sessions":
            return await _grown(count, turns, _sessions)
        case "agents":
            return await _grown(count, turns, _agents)
        case _:
            return await _traced(count, turns)


async def _grown(count: int, turns: int, hold: Any) -> Mapping[str, object]:
    """Return what each of so many adds to the memory of this process."""
    async with hold(WARM, turns):
        gc.collect()
        before = Memory.of()
        async with hold(count, turns):
            gc.collect()
            after = Memory.of()
    return {"uss": (after.uss - before.uss) / count, "pss": (after.pss - before.pss) / count}


async def _traced(count: int, turns: int) -> Mapping[str, object]:
    async with _sessions(WARM, turns):
        gc.collect()
        tracemalloc.start()
        async with _sessions(count, turns):
            gc.collect()
            found = tracemalloc.take_snapshot()
            tracemalloc.stop()
    found = found.filter_traces([tracemalloc.Filter(False, tracemalloc.__file__)])
    lines = found.statistics("lineno")
    return {
        "traced": sum(line.size for line in lines) / count,
        "sources": [
            (_short(line.traceback[0].filename, line.traceback[0].lineno), line.size / count)
            for line in lines[:SOURCES]
        ],
    }


@asynccontextmanager
async def _sessions(count: int, turns: int) -> AsyncGenerator[None]:
    """Hold sessions that have had their turns and are idle."""
    config = SupervisorConfig(max_sessions=count, max_live=count)
    async with Supervisor(agent_of(tokens=1), config=config) as supervisor:
        spec = SessionSpec(cwd="/")
        sessions: list[Session] = []
        for _ in range(count):
            session = await supervisor.start(spec)
            for _ in range(turns):
                await (await session.query("ping")).result()
            sessions.append(session)
        await until_idle(sessions)
        del sessions
        yield


@asynccontextmanager
async def _agents(count: int, turns: int) -> AsyncGenerator[None]:
    """Hold scripted processes that have had their turns and wait for a prompt, being read."""
    agent = agent_of(tokens=1)
    held: list[tuple[ScriptedProcess, Any]] = []
    for _ in range(count):
        fingerprint = Fingerprint(owner=LOCAL_OWNER, cwd="/")
        process = await agent.spawn(fingerprint)
        process.bind(Binding(session_id=str(uuid4())))
        messages = process.messages()
        for _ in range(turns):
            await process.send(Prompt(prompt_id=str(uuid4()), text="ping"))
            await _to_the_end(messages)
        # A reader waits for the next message, as the session's does; but without a task of
        # its own, which would be the session's memory.
        reading: Any = messages.__anext__()
        reading.send(None)
        held.append((process, reading))
    yield
    for process, reading in held:
        reading.close()
        await process.stop()


async def _to_the_end(messages: AsyncIterator[AgentMessage]) -> None:
    async for message in messages:
        if isinstance(message, TurnEnded):
            return


def _short(path: str, line: int) -> str:
    """Return a place in source without the folders of this machine."""
    parts = Path(path).parts
    for root in ("session_supervisor", "session_http", "site-packages", "asyncio"):
        if root in parts:
            return f"{os.sep.join(parts[parts.index(root) :])}:{line}"
    return f"{Path(path).name}:{line}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.idle")
    parser.add_argument("what", choices=("sessions", "agents", "traced"))
    parser.add_argument("count", type=int)
    parser.add_argument("turns", type=int)
    options = parser.parse_args()
    print(json.dumps(run(_measure(options.what, options.count, options.turns))))
