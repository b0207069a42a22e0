"""What our server aims at, and whether a run shows that it gets there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.quantiles import median
from bench.suite.layer import LIGHT
from bench.suite.results import Cell, LayerCell, Results
from bench.suite.targets import BARE, BASELINE, OURS
from bench.suite.trend import trends

SOAK_S = 1_750.0
"""Seconds that a soak must have lasted to be judged: half an hour, less its edges."""

MANY = 10_000
"""Sessions that a server with many has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What was aimed at.

    Attributes:
        text: In words.
        measured: What was measured, in words.
        met: Whether it was; None: it was not measured in this run.
    """

    text: str
    measured: str
    met: bool | None


def goals(results: Results) -> Sequence[Goal]:
    """Judge all that our server aims at, also what this run did not measure.

    Nothing is judged of other servers: the goals are about ours, beside others on one machine.
    """
    beside = (*(one.target for one in results.scale), *(one.target for one in results.soak))
    own = {OURS} & {*results.targets, *beside}
    if not own and not results.layer and not results.techniques:
        return []
    return [*_one_off(results), *_layer(results.layer), *_many(results), _flat(results)]


def verdict(goal: Goal) -> str:
    """Return whether a goal was met, in words."""
    return {True: "met", False: "MISSED", None: "not measured"}[goal.met]


def _single(results: Results, target: str) -> Cell | None:
    """Return the one-off queries of one user."""
    cells = (cell for cell in results.cells if cell.key == ("oneoff", "closed", 1.0))
    return next((cell for cell in cells if cell.target == target), None)


def _one_off(results: Results) -> Sequence[Goal]:
    ours, baseline, bare = (_single(results, name) for name in (OURS, BASELINE, BARE))
    first = "first text"
    return [
        _goal(
            "one-off: first text at most 1.15 x that of a bare SDK client, connected and warm",
            _times(ours, bare, lambda cell: _p50(cell, first)),
            lambda ratio: ratio <= 1.15,
        ),
        _goal(
            "one-off: first text at least 4 x as soon as the baseline's",
            _times(baseline, ours, lambda cell: _p50(cell, first)),
            lambda ratio: ratio >= 4,
        ),
        _goal(
            "one-off: CPU-seconds at most 1/4 of the baseline's",
            _times(ours, baseline, lambda cell: median(cell.cpu_s) if cell.cpu_s else None),
            lambda ratio: ratio <= 0.25,
        ),
        _sustained(results),
        *_starts(results),
    ]


def _sustained(results: Results) -> Goal:
    text = "one-off: at least 4 x the baseline's rate, with p99 below the baseline's p50"

    def best(target: str) -> Cell | None:
        cells = [
            cell for cell in results.cells if cell.scenario == "oneoff" and cell.target == target
        ]
        return max(cells, key=lambda cell: cell.rate, default=None)

    ours, baseline = best(OURS), best(BASELINE)
    if ours is None or baseline is None or not baseline.rate:
        return Goal(text=text, measured="", met=None)
    mine, theirs = ours.times.get("total"), baseline.times.get("total")
    if mine is None or theirs is None:
        return Goal(text=text, measured="no visit was completed", met=False)
    return Goal(
        text=text,
        measured=f"{ours.rate:.2f}/s and {baseline.rate:.2f}/s; p99 {mine.p99:.0f} ms against "
        f"p50 {theirs.p50:.0f} ms",
        met=ours.rate >= 4 * baseline.rate and mine.p99 < theirs.p50,
    )


def _starts(results: Results) -> Sequence[Goal]:
    plain = "session start with a warm pool, no question: answered in less than 20 ms"
    asked = "session start with a warm pool and a question: the model is asked in less than 20 ms"
    cell = next(
        (one for one in results.cells if one.scenario == "starts" and one.target == OURS), None
    )
    start = None if cell is None else _p50(cell, "start")
    model = None if cell is None else _p50(cell, "start to model asked")
    bare = _single(results, BARE)
    theirs = None if bare is None else _p50(bare, "model asked")
    beside = "" if theirs is None else f"; a bare, warm SDK client asks it after {theirs:.0f} ms"
    later = None if cell is None else _p50(cell, "model asked")
    beside += "" if later is None else f"; the first query of a session without: {later:.0f} ms"
    return [
        Goal(text=plain, measured="", met=None)
        if start is None
        else Goal(text=plain, measured=f"{start:.1f} ms", met=start < 20),
        Goal(text=asked, measured="", met=None)
        if model is None
        else Goal(text=asked, measured=f"{model:.0f} ms{beside}", met=model < 20),
    ]


def _many(results: Results) -> Sequence[Goal]:
    each = "10,000 sessions on one server: below 20 kB each hibernated"
    looks = "10,000 sessions: p99 of GET /sessions and /health below 20 ms under full load"
    scale = next(
        (one for one in results.scale if one.target == OURS and one.sessions >= MANY), None
    )
    if scale is None or scale.made is None or scale.found is None:
        return [Goal(text=text, measured="", met=None) for text in (each, looks)]
    found = [
        Goal(
            text=each,
            measured=f"{scale.made / 1000:.1f} kB where it was made, {scale.found / 1000:.1f} kB "
            "where it was found",
            met=max(scale.made, scale.found) < 20_000,
        )
    ]
    worst = [
        max(
            (times.p99, f"{times.p99:.1f} ms ({name}, {one.load})")
            for name, times in one.times.items()
        )
        for one in scale.looks
        if one.times
    ]
    unanswered = sum(
        count for one in scale.looks for code, count in one.errors.items() if "GET /" in code
    )
    if not worst:
        return [*found, Goal(text=looks, measured="no look was answered", met=False)]
    ms, _ = max(worst)
    lost = f"; {unanswered} not answered" if unanswered else ""
    told = "; ".join(text for _, text in worst)
    return [
        *found,
        Goal(
            text=looks,
            measured=f"{told}{lost}",
            met=ms < 20 and not unanswered,
        ),
    ]


def _flat(results: Results) -> Goal:
    text = "memory of the server flat over a soak of 30 minutes"
    soak = next((one for one in results.soak if one.target == OURS), None)
    if soak is None or soak.seconds < SOAK_S:
        short = "" if soak is None else f"the soak lasted {soak.seconds / 60:.1f} minutes"
        return Goal(text=text, measured=short, met=None)
    memory = next((one for one in trends(soak) if one.what.startswith("server, own memory")), None)
    if memory is None:
        return Goal(text=text, measured="too few samples", met=None)
    return Goal(text=text, measured=str(memory), met=memory.verdict == "flat")


def _layer(cells: Sequence[LayerCell]) -> Sequence[Goal]:
    by_load: dict[tuple[int, float], dict[str, LayerCell]] = {}
    for cell in cells:
        by_load.setdefault((cell.streams, cell.offered), {})[cell.server] = cell
    loads = [by_load[load] for load in sorted(by_load, key=lambda load: load[1])]
    ahead = [
        _ahead(some["ours on hypercorn"], some["fastapi on uvicorn"])
        for some in loads
        if {"ours on hypercorn", "fastapi on uvicorn"} <= some.keys()
    ]
    return [
        _delivered(loads[-1].get("ours on hypercorn") if loads else None),
        _unloaded(by_load.get((LIGHT.streams, LIGHT.offered), {})),
        *(ahead or [Goal(text=AHEAD, measured="", met=None)]),
    ]


def _delivered(ours: LayerCell | None) -> Goal:
    text = "the layer: 1,000 streams, 30,000 deltas/s, p99 lag below 150 ms, text intact"
    if ours is None or ours.lag is None or ours.offered < 30_000 or ours.streams < 1_000:
        return Goal(text=text, measured="", met=None)
    return Goal(
        text=text,
        measured=f"{ours.delivered:,.0f} deltas/s, p99 {ours.lag.p99:.0f} ms, "
        f"{ours.whole} of {ours.expected} whole",
        # What is offered arrives late or early at the edges of the window, not less.
        met=ours.delivered >= 0.99 * 30_000 and ours.lag.p99 < 150 and ours.whole == ours.expected,
    )


def _unloaded(cells: Mapping[str, LayerCell]) -> Goal:
    mine, least = cells.get("ours on hypercorn"), cells.get("starlette on hypercorn")
    return _goal(
        "the layer, unloaded: an event costs at most 1.3 x one of prepared bytes",
        median([a / b for a, b in zip(mine.cpu_us, least.cpu_us, strict=True) if b])
        if mine is not None and least is not None
        else None,
        lambda ratio: ratio <= 1.3,
    )


AHEAD = "the layer: less CPU and lag for a delta than FastAPI's own SSE on uvicorn"


def _ahead(ours: LayerCell, framework: LayerCell) -> Goal:
    """Judge one load: where FastAPI does not carry it, its lag is not what tells."""
    text = f"{AHEAD}, {ours.streams:,} streams, {ours.offered:,.0f}/s"
    cpu, their_cpu = median(ours.cpu_us_delta), median(framework.cpu_us_delta)
    told = f"{cpu:.1f} against {their_cpu:.1f} us"
    if ours.lag is None or framework.lag is None:
        return Goal(text=text, measured=f"{told}; lag was not measured", met=None)
    lag, their_lag = ours.lag.p99, framework.lag.p99
    told += f"; p99 {_ms(lag)} against {_ms(their_lag)} ms"
    if not framework.carried:
        told += (
            f"; FastAPI is overrun: of {framework.offered:,.0f} deltas/s it delivers "
            f"{framework.delivered:,.0f}"
        )
    kept_up = ours.carried or not framework.carried
    return Goal(text=text, measured=told, met=cpu < their_cpu and lag < their_lag and kept_up)


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _goal(text: str, ratio: float | None, holds: Callable[[float], bool]) -> Goal:
    if ratio is None:
        return Goal(text=text, measured="", met=None)
    return Goal(text=text, measured=f"{ratio:.2f} x", met=holds(ratio))


def _times(
    one: Cell | None, other: Cell | None, of: Callable[[Cell], float | None]
) -> float | None:
    if one is None or other is None:
        return None
    upper, lower = of(one), of(other)
    return None if upper is None or not lower else upper / lower


def _p50(cell: Cell, what: str) -> float | None:
    found = cell.times.get(what)
    return None if found is None else found.p50
