"""Runs scenarios on targets, turn about: what the machine does meanwhile meets all alike."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from bench.quantiles import median
from bench.suite.display import Display
from bench.suite.histogram import Distribution
from bench.suite.load import Books, Load, Times, Visit
from bench.suite.profile import NoProfile, record
from bench.suite.results import Cell, Profile
from bench.suite.scenarios import SCENARIOS, Asking, Mode, Scenario, close, probe
from bench.suite.schedule import arrivals
from bench.suite.targets import BARE, Target, lost
from bench.suite.tree import Tree, tree_of, until_quiet
from bench.suite.turnabout import turns
from bench.turns import NoAnswer, Way

CLOSING = 8
"""Sessions that are closed at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A scenario under one load.

    Attributes:
        scenario: Which.
        mode: How visits come.
        level: Users, visits due in a second, or visits at once.
    """

    scenario: Scenario
    mode: Mode
    level: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a plan is carried out.

    Attributes:
        times: Of each load.
        rounds: How often, on each target.
        asking: What is asked.
        probe_hz: Looks at health and the list of sessions, of each so many in a second.
        seed: Of whatever is left to chance.
    """

    times: Times
    rounds: int
    asking: Asking
    probe_hz: float = 5.0
    seed: int = 1


@dataclass(slots=True, kw_only=True)
class Round:
    """One load on one target.

    Attributes:
        books: What was measured.
        rate: Visits completed in a second.
        cpu_s: Processor seconds of the server's tree, what the load left to be done included.
        client_cpu_s: Of this process, while the load ran.
        took_s: Seconds that it ran.
        idle: The tree before.
        loaded: The tree under the load.
    """

    books: Books
    rate: float = 0.0
    cpu_s: float | None = None
    client_cpu_s: float = 0.0
    took_s: float = 0.0
    idle: Tree | None = None
    loaded: Tree | None = None


Rounds: TypeAlias = dict[str, list[Round]]


@dataclass(slots=True)
class Outcome:
    """What a run gave.

    Attributes:
        cells: Of all scenarios and targets.
        left_out: Why a target has none of a scenario, by `scenario, target`.
        gone: Why a target is not measured any more, by its name.
        profiles: Where the processor time of servers went.
        notes: What went wrong.
    """

    cells: list[Cell] = field(default_factory=list[Cell])
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    gone: dict[str, str] = field(default_factory=dict[str, str])
    profiles: list[Profile] = field(default_factory=list[Profile])
    notes: list[str] = field(default_factory=list[str])


async def carry_out(
    plans: Sequence[Plan],
    targets: Sequence[Target],
    settings: Settings,
    display: Display,
    outcome: Outcome,
    *,
    bare: Way | None = None,
    profiled: str | None = None,
) -> None:
    """Carry out all plans on all targets.

    Args:
        plans: What to do.
        targets: On which servers.
        settings: How.
        display: Is told how far it is.
        outcome: Takes what is measured, also what there is when this is cancelled.
        bare: A bare SDK client that is connected, for one-off queries by one user.
        profiled: The target that is profiled, in a further round of each scenario under its
            hardest load; None: none.
    """
    for plan in plans:
        left = [one for one in targets if one.name not in outcome.gone]
        if targets and not left:
            return
        by_name = {one.name: one for one in left if _offers(one, plan.scenario, outcome)}
        names = list(by_name)
        if bare is not None and plan == replace(plan, scenario=SCENARIOS["oneoff"], level=1.0):
            names += [BARE] if plan.mode == "closed" else []
        rounds: Rounds = {name: [] for name in names}
        try:
            for number, name in turns(names, settings.rounds):
                if name not in outcome.gone:
                    display.doing(f"{plan.scenario.name} {plan.mode} {plan.level:g}, {name}")
                    if name in by_name:
                        once = await one_round(by_name[name], plan, settings, number)
                        await _look_whether_gone(by_name[name], plan, once, outcome, display)
                    else:
                        once = await _bare_round(bare, plan, settings)
                    rounds[name].append(once)
                display.step()
        finally:
            for name, taken in rounds.items():
                if taken:
                    cell = _cell(name, plan, taken, settings)
                    outcome.cells.append(cell)
                    display.say(line_of(cell, plan.scenario))
        if profiled in by_name and profiled not in outcome.gone and plan in _hardest(plans):
            display.doing(f"{plan.scenario.name} {plan.mode} {plan.level:g}, {profiled}, profile")
            await _profile(by_name[profiled], plan, settings, outcome, display)


def _hardest(plans: Sequence[Plan]) -> Sequence[Plan]:
    """Return the plan of each scenario with the most users, or where there are none, the most."""
    by_scenario: dict[str, Plan] = {}
    for plan in sorted(plans, key=lambda one: (one.mode == "closed", one.level)):
        by_scenario[plan.scenario.name] = plan
    return list(by_scenario.values())


async def _look_whether_gone(
    target: Target, plan: Plan, once: Round, outcome: Outcome, display: Display
) -> None:
    """Give a target up that is not there any more: its errors would say nothing."""
    if not any(code.startswith(("no connection", "connection lost")) for code in once.books.errors):
        return
    why = await lost(target)
    if why is not None:
        outcome.gone[target.name] = why
        note = f"{target.name} was given up in {plan.scenario.name}: {why}"
        outcome.notes.append(note)
        display.say(note)


async def _profile(
    target: Target, plan: Plan, settings: Settings, outcome: Outcome, display: Display
) -> None:
    assert target.pid is not None
    load = f"{plan.scenario.name}, {plan.mode} {plan.level:g}"
    seconds = settings.times.all_s
    loading = asyncio.create_task(one_round(target, plan, settings, settings.rounds))
    try:
        outcome.profiles.append(await record(target.pid, seconds, load))
    except NoProfile as error:
        outcome.notes.append(str(error))
        display.say(str(error))
    except asyncio.CancelledError:
        loading.cancel()
        raise
    finally:
        await asyncio.wait([loading])


def steps(plans: Sequence[Plan], targets: int, rounds: int) -> int:
    """Return how many rounds there are at most, for the display."""
    return len(plans) * targets * rounds


def line_of(cell: Cell, scenario: Scenario) -> str:
    """Return a cell in one line."""
    main = cell.times.get(scenario.main)
    time_of = "none begun in the measured time"
    if main is not None:
        # Of a few, a percentile would be one of them at random.
        high = f"{main.p99:8.1f} p99" if main.tells(99.0) else f"{main.longest:8.1f} longest"
        time_of = f"{main.p50:8.1f} ms p50 {high}"
    errors = ", ".join(f"{code} x{count}" for code, count in cell.errors.items())
    return (
        f"{cell.scenario:10} {cell.mode:6} {cell.level:6g}  {cell.target:10} "
        f"{scenario.main}: {time_of}  {cell.rate:6.2f}/s"
        + (f"  errors: {errors}" if errors else "")
        + f"  client {cell.client_cpu_us:.0f} us/event"
    )


def _offers(target: Target, scenario: Scenario, outcome: Outcome) -> bool:
    if scenario.needs is None or scenario.needs in target.paths:
        return True
    outcome.left_out[f"{scenario.name}, {target.name}"] = f"it does not offer {scenario.needs}"
    return False


async def one_round(target: Target, plan: Plan, settings: Settings, number: int) -> Round:
    """Put one load on one target, and wait until what it left to be done is done."""
    if target.pid is not None:
        await until_quiet(target.pid)
    client = target.client()
    seed = settings.seed + number
    is_readers = plan.scenario.name == "readers"
    visiting = plan.scenario.visiting(settings.asking, int(plan.level) if is_readers else seed)
    load = Load(client, visiting, settings.times)
    idle = await _measured(target)
    done = Round(books=load.books, idle=idle)
    began, own = time.monotonic(), time.process_time()
    over = asyncio.Event()
    watching = asyncio.create_task(_watch(target, plan, settings, load.books, done, over))
    try:
        match plan.mode:
            case "closed":
                await load.closed(int(plan.level))
            case "open":
                times = settings.times
                due = arrivals(plan.level, times.all_s, ramp_s=times.ramp_s, seed=seed)
                await load.open(due)
            case "burst":
                await load.burst(1 if is_readers else int(plan.level))
        done.took_s = time.monotonic() - began
        done.client_cpu_s = time.process_time() - own
        if plan.mode == "burst":
            done.loaded = await _measured(target)
        else:
            done.rate = load.books.work / settings.times.measured_s
        over.set()
        await watching
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await _close_all(target, load.books.opened)
        client.close()
    if target.pid is not None and idle is not None:
        await until_quiet(target.pid)
        done.cpu_s = tree_of(target.pid, memory=False).cpu_s - idle.cpu_s
    return done


async def _watch(
    target: Target,
    plan: Plan,
    settings: Settings,
    books: Books,
    done: Round,
    over: asyncio.Event,
) -> None:
    """Look at the server while the load is on it: its memory, and how soon it answers looks."""
    client = target.client(timeout_s=10.0)
    times = settings.times
    measured_from = time.monotonic_ns() + round((times.ramp_s + times.warmup_s) * 1e9)

    def visit_of(due_ns: int) -> Visit:
        counts = plan.mode == "burst" or due_ns >= measured_from
        return Visit(client, books, due_ns, counts=counts)

    async def weigh() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(times.all_s * 0.9):
                await over.wait()
        done.loaded = await _measured(target)

    work: list[Awaitable[None]] = []
    if settings.probe_hz > 0:
        work.append(probe(visit_of, settings.probe_hz, over))
    if plan.mode != "burst":
        work.append(weigh())
    try:
        await asyncio.gather(*work)
    finally:
        client.close()


async def _measured(target: Target) -> Tree | None:
    """Measure a tree, in a thread: the kernel takes its time for that."""
    return None if target.pid is None else await asyncio.to_thread(tree_of, target.pid)


async def _close_all(target: Target, sessions: Sequence[str]) -> None:
    client = target.client()
    try:
        for first in range(0, len(sessions), CLOSING):
            some = sessions[first : first + CLOSING]
            await asyncio.gather(*(close(client, session_id) for session_id in some))
    finally:
        client.close()


async def _bare_round(bare: Way | None, plan: Plan, settings: Settings) -> Round:
    """Take turns of a bare SDK client, one after the other, for as long as a load is measured."""
    assert bare is not None
    done = Round(books=Books())
    books, times = done.books, settings.times
    began, own = time.monotonic(), time.process_time()
    while time.monotonic() < began + times.measured_s:
        books.visits += 1
        try:
            timing = await bare.turn(settings.asking.prompt)
        except NoAnswer:
            books.errors["no answer"] += 1
            await asyncio.sleep(0.1)
            continue
        books.note(plan.scenario.main, timing.first_text * 1000)
        books.note("total", timing.total * 1000)
        if timing.model_asked is not None:
            books.note("model asked", timing.model_asked * 1000)
        books.completed += 1
    done.took_s = time.monotonic() - began
    done.client_cpu_s = time.process_time() - own
    done.rate = books.completed / done.took_s
    return done


def _cell(name: str, plan: Plan, rounds: Sequence[Round], settings: Settings) -> Cell:
    books = [one.books for one in rounds]
    whats = sorted({what for one in books for what in one.times})
    errors = Counter[str]()
    for one in books:
        errors.update(one.errors)
    arrived = sum(one.events for one in books)
    late = [ms for one in books for ms in one.late]
    own = sum(one.client_cpu_s for one in rounds)
    return Cell(
        scenario=plan.scenario.name,
        target=name,
        mode=plan.mode,
        level=plan.level,
        rounds=len(rounds),
        seconds=settings.times.measured_s * len(rounds),
        visits=sum(one.visits for one in books),
        completed=sum(one.completed for one in books),
        rate=median([one.rate for one in rounds]),
        errors=dict(errors),
        times={what: _all_times(books, what) for what in whats},
        medians={
            what: [median(one.times[what]) for one in books if what in one.times] for what in whats
        },
        rates=[one.rate for one in rounds],
        cpu_s=[
            one.cpu_s / one.books.finished
            for one in rounds
            if one.cpu_s is not None and one.books.finished
        ],
        memory=[one.loaded.pss for one in rounds if one.loaded is not None],
        memory_idle=[one.idle.pss for one in rounds if one.idle is not None],
        sessions=max((len(one.opened) for one in books), default=0),
        events=arrived,
        deltas=sum(one.deltas for one in books),
        client_cpu_us=own / arrived * 1e6 if arrived else 0.0,
        client_cpu_share=own / max(sum(one.took_s for one in rounds), 1e-9),
        client_late=Distribution.of(late) if late else None,
    )


def _all_times(books: Sequence[Books], what: str) -> Distribution:
    return Distribution.of(ms for one in books for ms in one.times.get(what, ()))


def plans_of(
    names: Sequence[str],
    levels: Mapping[str, Sequence[tuple[Mode, float]]],
) -> list[Plan]:
    """Return the plans of scenarios, in order.

    Args:
        names: Of the scenarios.
        levels: The loads of each.
    """
    return [
        Plan(scenario=SCENARIOS[name], mode=mode, level=level)
        for name in names
        for mode, level in levels[name]
    ]
