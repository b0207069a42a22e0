"""What the layer adds to a turn: HTTP, server, library and Claude Code against the bare SDK.

`python -m bench.overhead`; see `README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.arguments import amount, count, count_or_none
from bench.processes import Server, clean_surroundings, cpu_s, serving
from bench.quantiles import Estimate, Summary, median, median_with_interval
from bench.report import Run, table
from bench.scripted_server import agent_of
from bench.turns import MODEL, Opening, Timing, Way, bare_sdk, embedded, over_http
from session_http.serve import run
from session_supervisor import SessionSpec, Supervisor, SupervisorConfig
from session_supervisor.agents.claude import ClaudeAgent

GOAL_MS = 5.0
"""Added to a session's later turns, at the median."""

BARE, CONTROL, LIBRARY, HTTP = "bare SDK", "bare SDK again", "library", "HTTP"
SCRIPTED_LIBRARY, SCRIPTED_HTTP = "library, scripted", "HTTP, scripted"

LIMIT_S = 900.0
"""Seconds after which a run is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run was told.

    Attributes:
        turns: Measured turns of each way in each round.
        rounds: How often all sessions, and with them all CLIs, are started anew.
        warmup: Turns of each session before they are measured.
        tokens: Deltas of an answer.
        delay_ms: Milliseconds between two deltas.
        tools: The session's only tools.
        pause_ms: Rest between two turns, so that a CLI has written its transcript.
        alone: Turns of the layer alone, with a scripted agent.
    """

    turns: int = 20
    rounds: int = 3
    warmup: int = 3
    tokens: int = 20
    delay_ms: float = 20.0
    tools: tuple[str, ...] = ("Read",)
    pause_ms: float = 40.0
    alone: int = 300


@dataclass(slots=True)
class Sample:
    """The measured turns of one way.

    Attributes:
        turns: Their times; the n-th of each way were taken one right after the other.
        server_cpu: Processor seconds of the server in each, where there is one.
        own_cpu: Processor seconds of this process in each: the client's side.
    """

    turns: list[Timing] = field(default_factory=list[Timing])
    server_cpu: list[float] = field(default_factory=list[float])
    own_cpu: list[float] = field(default_factory=list[float])


@dataclass(frozen=True, slots=True, kw_only=True)
class WayReport:
    """What one way took, in milliseconds.

    Attributes:
        name: Of the way.
        first_text: Until the first delta.
        total: Until the result.
        server_cpu: Processor time of the server for a turn, at the median.
        own_cpu: Processor time of the measuring process for a turn, at the median.
        input_tokens: What the model was sent in the last turn: equal, if the requests were.
    """

    name: str
    first_text: Summary
    total: Summary
    server_cpu: float | None
    own_cpu: float
    input_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What a way takes more than the bare SDK, pair by pair, in milliseconds."""

    name: str
    first_text: Estimate
    total: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All of it."""

    ways: tuple[WayReport, ...]
    added: tuple[Added, ...]
    alone: tuple[WayReport, ...]
    goal_ms: float
    goal_met: bool
    samples: Mapping[str, Sample]


async def measure(settings: Settings, home: Path) -> Results:
    """Take all turns."""
    samples: dict[str, Sample] = {}
    alone: dict[str, Sample] = {}
    pace = ("--tokens", str(settings.tokens), "--delay-ms", str(settings.delay_ms))
    async with asyncio.timeout(LIMIT_S), AsyncExitStack() as stack:
        model = await stack.enter_async_context(serving("session_http.offline", pace))
        env = {
            "ANTHROPIC_BASE_URL": model.url,
            "ANTHROPIC_API_KEY": "offline",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        listen = ("serve", "--host", "127.0.0.1", "--port", "0")
        server = await stack.enter_async_context(serving("session_http", listen, env=env))
        supervisor = await stack.enter_async_context(Supervisor(ClaudeAgent(env=env)))
        for number in range(settings.rounds):
            async with _ways(settings, home, number, server, supervisor, env) as ways:
                await _alternate(ways, settings, samples, server)
    async with asyncio.timeout(LIMIT_S):
        await _measure_alone(settings, alone)
    return _results(samples, alone)


@asynccontextmanager
async def _ways(
    settings: Settings,
    home: Path,
    number: int,
    server: Server,
    supervisor: Supervisor,
    env: Mapping[str, str],
) -> AsyncGenerator[Mapping[str, Way]]:
    """Open every way, each with a CLI of its own, one after the other."""

    def folder(name: str) -> Path:
        path = home / "work" / f"{number} {name}"
        path.mkdir(parents=True)
        return path

    spec = SessionSpec(model=MODEL, allowed_tools=settings.tools, cwd=str(folder(LIBRARY)))
    start = {"model": MODEL, "allowed_tools": list(settings.tools)}
    opening: Mapping[str, Callable[[], Opening]] = {
        BARE: lambda: bare_sdk(folder(BARE), settings.tools, env),
        CONTROL: lambda: bare_sdk(folder(CONTROL), settings.tools, env),
        LIBRARY: lambda: embedded(supervisor, spec),
        HTTP: lambda: over_http(server, start),
    }
    async with AsyncExitStack() as stack:
        # Whose CLI was started first must not be the same one in each round.
        names = _rotated(tuple(opening), number)
        ways = {name: await stack.enter_async_context(opening[name]()) for name in names}
        yield {name: ways[name] for name in opening}


async def _alternate(
    ways: Mapping[str, Way], settings: Settings, samples: dict[str, Sample], server: Server
) -> None:
    """Take turns on all ways, one at a time, the order rotated from turn to turn."""
    for number in range(-settings.warmup, settings.turns):
        for name in _rotated(tuple(ways), number):
            await asyncio.sleep(settings.pause_ms / 1000)
            timing, own, its = await _timed(ways[name], f"Question {number}?", server)
            if number >= 0:
                sample = samples.setdefault(name, Sample())
                sample.turns.append(timing)
                sample.own_cpu.append(own)
                if name in (HTTP, SCRIPTED_HTTP):
                    sample.server_cpu.append(its)


async def _timed(way: Way, prompt: str, server: Server) -> tuple[Timing, float, float]:
    """Return a turn's times, and the processor time of this process and of the server."""
    own, its = time.process_time(), cpu_s(server.pid)
    timing = await way.turn(prompt)
    return timing, time.process_time() - own, cpu_s(server.pid) - its


async def _measure_alone(settings: Settings, samples: dict[str, Sample]) -> None:
    """Take turns with a scripted agent, which answers at once: what is left is the layer."""
    length = ("--tokens", str(settings.tokens))
    quick = Settings(turns=settings.alone, warmup=20, pause_ms=0.0)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving("bench.scripted_server", length))
        supervisor = await stack.enter_async_context(
            Supervisor(agent_of(tokens=settings.tokens), config=SupervisorConfig())
        )
        spec = SessionSpec(cwd="/")
        ways = {
            SCRIPTED_LIBRARY: await stack.enter_async_context(embedded(supervisor, spec)),
            SCRIPTED_HTTP: await stack.enter_async_context(over_http(server, {})),
        }
        await _alternate(ways, quick, samples, server)


def _rotated(names: Sequence[str], by: int) -> Sequence[str]:
    at = by % len(names)
    return (*names[at:], *names[:at])


def _results(samples: Mapping[str, Sample], alone: Mapping[str, Sample]) -> Results:
    bare = samples[BARE].turns
    added = tuple(
        Added(
            name=name,
            first_text=_added(bare, sample.turns, lambda turn: turn.first_text),
            total=_added(bare, sample.turns, lambda turn: turn.total),
        )
        for name, sample in samples.items()
        if name != BARE
    )
    over = next(entry for entry in added if entry.name == HTTP)
    return Results(
        ways=tuple(_way(name, sample) for name, sample in samples.items()),
        added=added,
        alone=tuple(_way(name, sample) for name, sample in alone.items()),
        goal_ms=GOAL_MS,
        goal_met=over.first_text.value < GOAL_MS and over.total.value < GOAL_MS,
        samples={**samples, **alone},
    )


def _added(
    bare: Sequence[Timing], other: Sequence[Timing], of: Callable[[Timing], float]
) -> Estimate:
    return median_with_interval(
        [(of(theirs) - of(ours)) * 1000 for ours, theirs in zip(bare, other, strict=True)]
    )


def _way(name: str, sample: Sample) -> WayReport:
    return WayReport(
        name=name,
        first_text=Summary.of([turn.first_text * 1000 for turn in sample.turns]),
        total=Summary.of([turn.total * 1000 for turn in sample.turns]),
        server_cpu=median(sample.server_cpu) * 1000 if sample.server_cpu else None,
        own_cpu=median(sample.own_cpu) * 1000,
        input_tokens=sample.turns[-1].input_tokens,
    )


# -- the report --------------------------------------------------------------------------------


def text_of(results: Results) -> str:
    """Return the report for people."""
    over = next(entry for entry in results.added if entry.name == HTTP)
    unsure = max(over.first_text.high, over.total.high) >= results.goal_ms
    goal = (
        f"Goal: HTTP adds less than {results.goal_ms:g} ms at the median. "
        f"{'Met' if results.goal_met else 'MISSED'}: {over.first_text.value:.2f} ms to first text, "
        f"{over.total.value:.2f} ms in total."
        + (" Unsure: an interval reaches beyond it." if results.goal_met and unsure else "")
    )
    return "\n\n".join(
        [
            "A turn of a session past its first ones, milliseconds\n" + _ways_table(results.ways),
            "Added to the bare SDK, paired, median with 95% interval, milliseconds\n"
            + table(
                ("", "first text", "total"),
                [
                    (entry.name, _shown(entry.first_text), _shown(entry.total))
                    for entry in results.added
                ],
            ),
            "The layer alone: a scripted agent answers at once, milliseconds\n"
            + _ways_table(results.alone),
            goal,
        ]
    )


def _ways_table(ways: Sequence[WayReport]) -> str:
    return table(
        (
            "",
            "turns",
            "first p50",
            "p95",
            "total p50",
            "p95",
            "CPU server",
            "CPU client",
            "tokens in",
        ),
        [
            (
                way.name,
                str(way.first_text.count),
                f"{way.first_text.p50:.2f}",
                f"{way.first_text.p95:.2f}",
                f"{way.total.p50:.2f}",
                f"{way.total.p95:.2f}",
                "" if way.server_cpu is None else f"{way.server_cpu:.2f}",
                f"{way.own_cpu:.2f}",
                str(way.input_tokens or ""),
            )
            for way in ways
        ],
    )


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def main() -> None:
    """Run the benchmark."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m bench.overhead",
        description="Time a turn through HTTP against the same turn through a bare SDK client.",
    )
    parser.add_argument("--turns", type=count, default=default.turns, help="per way and round")
    parser.add_argument("--rounds", type=count, default=default.rounds, help="each with new CLIs")
    parser.add_argument(
        "--warmup", type=count_or_none, default=default.warmup, help="turns not counted"
    )
    parser.add_argument("--tokens", type=count, default=default.tokens, help="deltas of an answer")
    parser.add_argument("--delay-ms", type=amount, default=default.delay_ms, help="between deltas")
    parser.add_argument("--pause-ms", type=amount, default=default.pause_ms, help="between turns")
    parser.add_argument("--tools", nargs="+", default=default.tools, help="the session's tools")
    parser.add_argument("--alone", type=count, default=default.alone, help="scripted turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    settings = Settings(
        turns=options.turns,
        rounds=options.rounds,
        warmup=options.warmup,
        tokens=options.tokens,
        delay_ms=options.delay_ms,
        tools=tuple(options.tools),
        pause_ms=options.pause_ms,
        alone=options.alone,
    )
    circumstances = Run.begin("overhead", dataclasses.asdict(settings))
    print(circumstances.heading(), end="\n\n", flush=True)
    with clean_surroundings() as home:
        results = run(measure(settings, home))
    print(text_of(results))
    if options.json is not None:
        circumstances.write(options.json, results)


if __name__ == "__main__":
    main()
