"""The tables of a report, whatever it is written as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.quantiles import median, median_with_interval
from bench.suite.histogram import SHARES, Distribution
from bench.suite.judge import Ratio, load_of
from bench.suite.results import Cell, LayerCell, Profile, Scale, Tuned
from bench.suite.scenarios import SCENARIOS
from bench.suite.trend import Trend

HOTTEST = 15
"""Functions of a profile that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        head: Of its columns.
        rows: Of as many cells each.
        texts: Columns at the left that hold words; the others hold numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int


def ratio_table(ratios: Sequence[Ratio], first: str) -> Table:
    """Return how others compare with the first."""
    rows = [
        (
            f"{one.scenario}, {one.load}",
            one.what,
            one.of,
            _measure(one.what, one.first),
            _measure(one.what, one.other),
            f"{one.value:.2f} x",
            one.interval,
        )
        for one in sorted(ratios, key=lambda one: (one.scenario, one.load, one.what))
    ]
    head = ("", "what", "target", first, "the target", f"x {first}", "95% interval")
    return Table(head=head, rows=rows, texts=3)


def _measure(what: str, value: float) -> str:
    match what:
        case "rate":
            return f"{value:.2f} /s"
        case "CPU of a visit":
            return f"{value * 1000:,.0f} ms"
        case _:
            return f"{value:,.1f} ms"


def times_table(cells: Sequence[Cell], scenario: str, *, looks: bool = True) -> Table:
    """Return the times of a scenario, what it is about first; milliseconds.

    Args:
        cells: Of it.
        scenario: Its name.
        looks: Whether those of looks at the server are among them.
    """
    known = SCENARIOS.get(scenario)
    main = known.main if known is not None else ""
    rows = [
        (load_of(cell), cell.target, what, *_numbers(times))
        for cell in cells
        for what, times in sorted(cell.times.items(), key=lambda one: (one[0] != main, one[0]))
        if looks or not what.startswith("GET ")
    ]
    head = ("load", "target", "time, ms", "count", "p50", "p90", "p95", "p99", "p99.9", "longest")
    return Table(head=head, rows=rows, texts=3)


def _numbers(times: Distribution) -> Sequence[str]:
    values = (times.p50, times.p90, times.p95, times.p99, times.p999)
    shown = (
        f"{value:,.1f}" if times.tells(share) else ""
        for share, value in zip(SHARES, values, strict=True)
    )
    return (f"{times.count:,}", *shown, f"{times.longest:,.1f}")


def visits_table(cells: Sequence[Cell]) -> Table:
    """Return what became of the visits of a scenario, and what they cost."""
    head = (
        *("load", "target", "errors", "due", "completed", "per second"),
        *("CPU-s a visit", "memory, MB", "client us/event", "client CPU", "late p99, ms"),
    )
    return Table(head=head, rows=[_visits(cell) for cell in cells], texts=3)


def _visits(cell: Cell) -> Sequence[str]:
    return (
        load_of(cell),
        cell.target,
        _errors(cell.errors) or "none",
        f"{cell.visits:,}",
        f"{cell.completed:,}",
        f"{cell.rate:.2f}" if cell.mode != "burst" else "",
        f"{median(cell.cpu_s):.3f}" if cell.cpu_s else "",
        f"{median(cell.memory) / 1e6:,.0f}" if cell.memory else "",
        f"{cell.client_cpu_us:.0f}" if cell.events else "",
        f"{cell.client_cpu_share:.0%}",
        f"{cell.client_late.p99:.1f}" if cell.client_late else "",
    )


def layer_table(cells: Sequence[LayerCell]) -> Table:
    """Return what the layer took, of each server under each load."""
    head = (
        *("server", "streams", "offered/s", "deltas/s", "events/s", "us an event", "us a delta"),
        *("server CPU", "lag p50, ms", "p99", "p99.9", "whole", "client us/event", "client CPU"),
    )
    return Table(head=head, rows=[_layer(cell) for cell in cells], texts=1)


def _layer(cell: LayerCell) -> Sequence[str]:
    lag = cell.lag
    errors = _errors(cell.errors)
    return (
        cell.server,
        f"{cell.streams:,}",
        f"{cell.offered:,.0f}",
        f"{cell.delivered:,.0f}",
        f"{cell.events:,.0f}",
        f"{median(cell.cpu_us):.1f}",
        f"{median(cell.cpu_us_delta):.1f}",
        f"{median(cell.server_cpu):.0%}",
        *(("", "", "") if lag is None else (f"{ms:.1f}" for ms in (lag.p50, lag.p99, lag.p999))),
        f"{cell.whole:,} of {cell.expected:,}{errors and f', {errors}'}",
        f"{cell.client_cpu_us:.1f}",
        f"{cell.client_cpu_share:.0%}",
    )


def tuned_table(tuned: Sequence[Tuned]) -> Table:
    """Return what a setting of our server gives: the first of a load is the server as it is."""
    first: dict[str, Tuned] = {}
    rows = [_tuned(one, first.setdefault(one.load, one)) for one in tuned]
    head = (
        *("one", "the server", "errors", "CPU, us", "x as it is", "95% interval"),
        *("p50, ms", "x", "p99, ms", "x"),
    )
    return Table(head=head, rows=rows, texts=3)


def _tuned(one: Tuned, first: Tuned) -> Sequence[str]:
    pairs = [a / b for a, b in zip(one.cpu_us, first.cpu_us, strict=False) if b]
    cpu = median_with_interval(pairs) if pairs and one is not first else None
    return (
        one.load,
        one.change,
        _errors(one.errors) or "none",
        f"{median(one.cpu_us):,.1f}" if one.cpu_us else "",
        f"{cpu.value:.2f} x" if cpu else "",
        f"{cpu.low:.2f} to {cpu.high:.2f}" if cpu and len(pairs) > 1 else "",
        *_against(one.p50, first.p50 if one is not first else ()),
        *_against(one.p99, first.p99 if one is not first else ()),
    )


def _against(times: Sequence[float], first: Sequence[float]) -> tuple[str, str]:
    pairs = [a / b for a, b in zip(times, first, strict=False) if b]
    return (
        f"{median(times):,.2f}" if times else "",
        f"{median(pairs):.2f} x" if pairs else "",
    )


def scale_table(scale: Scale) -> Table:
    """Return what a server with many sessions takes."""
    known = (
        ("a session, in the process that made it and gave its process up", scale.made, 1e3, "kB"),
        ("a session, in a server that found it when it started", scale.found, 1e3, "kB"),
        ("a session, in the database, with its turn", scale.file, 1e3, "kB"),
        ("until the server takes requests", scale.start_s, 1.0, "s"),
        ("the same without any session", scale.start_empty_s, 1.0, "s"),
    )
    rows = [
        (what, f"{value / unit:,.1f} {name}")
        for what, value, unit, name in known
        if value is not None
    ]
    return Table(head=("", f"{scale.target}: {scale.sessions:,} sessions"), rows=rows, texts=1)


def looks_table(scale: Scale) -> Table:
    """Return how soon it answers looks, under each load; milliseconds."""
    rows = [
        (one.load, name, _errors(one.errors) or "none", one.done, *numbers)
        for one in scale.looks
        for name, numbers in (
            [(name, _numbers(times)) for name, times in one.times.items()]
            or [("none was answered", [""] * 7)]
        )
    ]
    head = (
        *("load", "look", "errors", "meanwhile"),
        *("count", "p50, ms", "p90", "p95", "p99", "p99.9", "longest"),
    )
    return Table(head=head, rows=rows, texts=4)


def trend_table(trends: Sequence[Trend]) -> Table:
    """Return what grew in a soak."""
    rows = [
        (
            one.what,
            one.verdict,
            f"{one.level:,.1f}",
            f"{one.slope:+.2f}",
            f"{one.low:+.2f} to {one.high:+.2f}",
        )
        for one in trends
    ]
    return Table(head=("", "", "median", "in an hour", "95% interval"), rows=rows, texts=2)


def profile_table(profile: Profile) -> Table:
    """Return where processor time went, what ran itself first."""
    rows = [
        (one.name, one.where, f"{one.own:.1%}", f"{one.total:.1%}")
        for one in profile.functions[:HOTTEST]
    ]
    return Table(head=("function", "file", "own", "with what it calls"), rows=rows, texts=2)


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{code} ({count})" for code, count in errors.items())
