"""Everything that can go wrong, by chance and for a given time; and then whether all was kept.

`python -m bench.chaos`; see `README.md`. Unlike the benchmarks it can fail: its exit status is 1 if
a promise of `docs/reliability.md` was not kept.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import random
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.arguments import amount, count
from bench.chaos_checks import Checks
from bench.chaos_client import Api, Broken, Silent
from bench.chaos_conversation import Bag, Conversation
from bench.chaos_faults import Faults
from bench.chaos_keep import Keeper
from bench.chaos_record import Record, Violation
from bench.chaos_talk import MANNERS, UPSTREAM, Talker
from bench.chaos_world import ADMIN, World
from bench.disk import SmallDisk, mount_small_disk
from bench.processes import NotReady, clean_surroundings, serving
from bench.quantiles import Summary
from bench.report import Run, table
from session_http.serve import run

OWNERS = ("ann", "bob", "cyd")
"""Who has sessions; the clients are shared out among them."""

DISK_MB = 512
"""Size of the disk that is filled, 2**20 bytes."""

AFTER_S = 240.0
"""Seconds that the end of a run may take, and half its length: turns that end, and the checks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run was told.

    Attributes:
        seed: Of every choice. What happens between two choices is up to the machine.
        seconds: How long faults are injected.
        talkers: Clients that talk at the same time.
    """

    seed: int = 1
    seconds: float = 60.0
    talkers: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Survived:
    """What became of the faults of one kind.

    Attributes:
        kind: Which.
        injected: How many.
        went_on: After how many a turn completed, that was asked for later, in the session that was
            met, or anywhere if all were.
        session_over: After how many there was no such turn because the session had ended.
        went_on_s: Seconds until that turn had completed; None without one.
    """

    kind: str
    injected: int
    went_on: int
    session_over: int
    went_on_s: Summary | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All of it.

    Attributes:
        survived: The faults.
        prompts: Prompts that were sent.
        acknowledged: Those that were acknowledged.
        outcomes: How clients heard that turns ended.
        statuses: How requests were answered.
        conversations: Sessions that were started.
        given_up: Why some of them ended before they were closed, and how many.
        contexts: Conversations that were asked in the end what they had been told.
        oneoffs: One-off queries that were answered.
        recycled: How often a process came back from one, at least.
        resumed: Times that a client came back to a stream.
        over_http2: Requests over HTTP/2.
        gaps: Turns whose client was told that something is missing.
        starts_s: From the start of a server until it was ready.
        stops_s: From SIGTERM until it was gone.
        logged: Errors in the servers' log, by their first words.
        disk: Whether the disk could be filled up.
        violations: What was promised and not kept.
        seconds: The whole run.
    """

    survived: Sequence[Survived]
    prompts: int
    acknowledged: int
    outcomes: Mapping[str, int]
    statuses: Mapping[int, int]
    conversations: int
    given_up: Mapping[str, int]
    contexts: int
    oneoffs: int
    recycled: int
    resumed: int
    over_http2: int
    gaps: int
    starts_s: Summary
    stops_s: Summary | None
    logged: Mapping[str, int]
    disk: bool
    violations: Sequence[Violation]
    seconds: float


async def torment(
    settings: Settings, home: Path, disk: SmallDisk | None, state: Path, keep: Path | None = None
) -> Results:
    """Run it: faults and clients for the time that is set, then the checks.

    Args:
        settings: What it was told.
        home: The user's home, for whatever a run writes.
        disk: The disk of the state, if it has one of its own.
        state: The state directory.
        keep: Where to keep what there is of sessions whose promises were not kept; None: nowhere.
    """
    record = Record()
    async with serving("session_http.offline") as model:
        upstream = {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": "offline"}
        world = World(record, home, state, upstream, OWNERS)
        talkers = _talkers(settings, record, world)
        admin = Api("127.0.0.1", world.port, world.keys[ADMIN])
        checks = Checks(admin, world.vitals, record, talkers)
        keeper = None if keep is None else world.keeper(keep)
        try:
            async with asyncio.timeout(settings.seconds * 1.5 + AFTER_S):
                await _torment(settings, record, world, checks, disk, keeper)
        except* (TimeoutError, NotReady, Broken, Silent) as errors:
            for error in errors.exceptions:
                record.violate("the run comes to its end", f"{type(error).__name__}: {error}")
        finally:
            await world.kill()
    return _results(record, world, checks, disk)


def _talkers(settings: Settings, record: Record, world: World) -> Sequence[Talker]:
    chance = random.Random(f"{settings.seed} shared")
    upstream, manners = Bag(tuple(UPSTREAM), chance), Bag(MANNERS, chance)
    everybody: list[Conversation] = []
    talkers: list[Talker] = []
    for number in range(settings.talkers):
        owner = OWNERS[number % len(OWNERS)]
        seed = f"{settings.seed} talker {number}"
        api = Api("127.0.0.1", world.port, world.keys[owner], random.Random(f"{seed} HTTP/2"))
        talkers.append(
            Talker(
                name=f"t{number}",
                owner=owner,
                api=api,
                record=record,
                everybody=everybody,
                running=world.clis,
                upstream=upstream,
                manners=manners,
                seed=seed,
            )
        )
    return talkers


async def _torment(
    settings: Settings,
    record: Record,
    world: World,
    checks: Checks,
    disk: SmallDisk | None,
    keeper: Keeper | None,
) -> None:
    faults = Faults(world, record, disk, random.Random(f"{settings.seed} faults"), settings.seconds)
    await world.start()
    new = await world.vitals()
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(faults.inject(over))
        for talker in checks.talkers:
            group.create_task(talker.talk())
        await asyncio.sleep(settings.seconds)
        over.set()
        for talker in checks.talkers:
            talker.stop()
    vitals = await world.vitals()
    checks.of_vitals(vitals, new, when="faults over", sessions=await checks.sessions())
    await world.stop()
    await world.start()
    new = await world.vitals()
    await checks.of_turns()
    await checks.of_contexts()
    if keeper is not None:  # before all is closed, and erased with that
        keeper.keep(record, checks.conversations)
    await checks.of_the_end(new)
    await world.stop()


def _results(record: Record, world: World, checks: Checks, disk: SmallDisk | None) -> Results:
    conversations = checks.conversations
    given_up = collections.Counter(_plain(one.over) for one in conversations if one.over)
    return Results(
        survived=_survived(record),
        prompts=checks.prompts,
        acknowledged=checks.acknowledged,
        outcomes=record.outcomes,
        statuses=dict(sorted(record.statuses.items())),
        conversations=len(conversations),
        given_up=dict(given_up),
        contexts=checks.contexts,
        oneoffs=record.oneoffs,
        recycled=sum(world.recycled),
        resumed=record.resumed,
        over_http2=sum(talker.api.over_http2 for talker in checks.talkers),
        gaps=record.gaps,
        starts_s=Summary.of(world.starts),
        stops_s=Summary.of(world.stops) if world.stops else None,
        logged=_logged(world.log_lines()),
        disk=disk is not None,
        violations=tuple(record.violations),
        seconds=time.monotonic() - record.began,
    )


def _survived(record: Record) -> Sequence[Survived]:
    found: list[Survived] = []
    for kind in dict.fromkeys(sorted(one.kind for one in record.injected)):
        mine = [one for one in record.injected if one.kind == kind]
        took = [one.went_on_s for one in mine if one.went_on_s is not None]
        found.append(
            Survived(
                kind=kind,
                injected=len(mine),
                went_on=len(took),
                session_over=sum(one.over for one in mine),
                went_on_s=Summary.of(took) if took else None,
            )
        )
    return found


def _logged(lines: Sequence[str]) -> Mapping[str, int]:
    """Count errors by what they say, whoever they are about."""
    said = collections.Counter[str]()
    for line in lines:
        if not line.startswith("{"):
            continue
        entry = json.loads(line)
        if entry.get("level") in ("error", "critical"):
            exception = str(entry.get("exception", "")).strip().rpartition("\n")[2]
            said[_plain(f"{entry['event']} {exception}".strip())] += 1
    return dict(said.most_common(20))


def _plain(words: str) -> str:
    """Return what is said, whoever it is about."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|/\S+/|\b\d+\b", "*", words)[:160]


# -- the report ----------------------------------------------------------------------------------


def text_of(results: Results, settings: Settings) -> str:
    """Return the report for people."""
    return "\n\n".join(
        part
        for part in (
            _fault_table(results.survived),
            _summary(results),
            _violations(results, settings),
        )
        if part
    )


def _fault_table(survived: Sequence[Survived]) -> str:
    rows = [
        (
            one.kind,
            str(one.injected),
            str(one.went_on),
            str(one.session_over),
            "" if one.went_on_s is None else f"{one.went_on_s.p50:.1f}",
            "" if one.went_on_s is None else f"{one.went_on_s.greatest:.1f}",
        )
        for one in survived
    ]
    return table(("fault", "injected", "went on", "session over", "p50 s", "longest s"), rows)


def _summary(results: Results) -> str:
    starts = results.starts_s
    lines = [
        f"conversations: {results.conversations}",
        f"prompts: {results.prompts}, acknowledged: {results.acknowledged}",
        f"ends, as clients heard of them: {_counts(results.outcomes)}",
        f"answers: {_counts(results.statuses)}; asked over HTTP/2: {results.over_http2}",
        f"clients that came back to a stream: {results.resumed}; told of a gap: {results.gaps}",
        f"conversations that were asked what they had been told: {results.contexts}",
        f"one-offs: {results.oneoffs}; processes that came back from them: {results.recycled}",
        f"servers: {starts.count}; ready after {starts.p50:.1f} s, at most {starts.greatest:.1f} s",
    ]
    if results.stops_s is not None:
        lines.append(f"gone {results.stops_s.greatest:.1f} s after SIGTERM at most")
    if results.given_up:
        lines.append(f"sessions that ended before they were closed: {_counts(results.given_up)}")
    if results.logged:
        lines += ["errors in the log:", *(f"{n:5} {what}" for what, n in results.logged.items())]
    if not results.disk:
        lines.append("the disk was not filled: mounting one of our own is not allowed here")
    return "\n".join(lines)


def _violations(results: Results, settings: Settings) -> str:
    if not results.violations:
        return f"No violation in {results.seconds:.0f} s, seed {settings.seed}."
    lines = [f"{len(results.violations)} VIOLATIONS, seed {settings.seed}:"]
    for promise, many in collections.Counter(one.promise for one in results.violations).items():
        lines.append(f"{many:5} {promise}")
    lines += [f"  {one.at:7.2f} s {one.promise}: {one.what}" for one in results.violations[:40]]
    lines.append(
        f"Again: python -m bench.chaos --seed {settings.seed} --seconds {settings.seconds:g} "
        f"--talkers {settings.talkers}"
    )
    return "\n".join(lines)


def _counts(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def main() -> int:
    """Run it; return the exit status."""
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos",
        description="Inject faults into a real server on the offline model, and check what it "
        "promises. Exit status 1 if a promise was not kept.",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of every choice")
    parser.add_argument("--seconds", type=amount, default=default.seconds, help="of faults")
    parser.add_argument("--talkers", type=count, default=default.talkers, help="clients at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the servers' log there")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep there what there is of sessions about which a promise was not kept",
    )
    options = parser.parse_args()
    settings = Settings(seed=options.seed, seconds=options.seconds, talkers=options.talkers)
    circumstances = Run.begin("chaos", dataclasses.asdict(settings))
    print(circumstances.heading(), end="\n\n", flush=True)
    with clean_surroundings() as home:
        state = home / "state"
        state.mkdir(mode=0o700)
        disk = mount_small_disk(state, DISK_MB)
        try:
            results = run(torment(settings, home, disk, state, options.keep))
        finally:
            if disk is not None:
                disk.unmount()
            if options.log is not None and (home / "server.log").exists():
                options.log.write_bytes((home / "server.log").read_bytes())
    print(text_of(results, settings))
    if options.json is not None:
        circumstances.write(options.json, results)
    return 1 if results.violations else 0


if __name__ == "__main__":
    sys.exit(main())
