"""The plots of a report, each an SVG that stands by itself."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType] # of its types, half
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from bench.quantiles import median
from bench.suite.judge import load_of
from bench.suite.results import Cell, LayerCell, Results, Soak
from bench.suite.scenarios import SCENARIOS
from bench.suite.targets import BARE, BASELINE, OURS

STYLE: Mapping[Any, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#334155",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "grid.color": "#e2e8f0",
    "figure.facecolor": "white",  # also where the page around it is dark
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be found, and the file is small
}

BESIDE: Mapping[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "fontsize": 7}
"""Where legends are: never on what they explain."""

COLOURS: Mapping[str, str] = {OURS: "#2563eb", BASELINE: "#ea580c", BARE: "#64748b"}
OTHERS = ("#0d9488", "#9333ea", "#ca8a04", "#db2777", "#65a30d")
"""A target has one colour in all plots: these are Okabe and Ito's idea, if not their colours."""

MODES = ("closed", "open")
"""Loads that have a throughput."""

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""A load has one line."""

PERCENTILES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
"""Marked on the axis of a distribution."""


def latencies(cells: Sequence[Cell], what: str) -> str | None:
    """Plot the distribution of a time: for each share of visits, how long it took at most.

    Args:
        cells: Of one scenario.
        what: The time.
    """
    curves = [
        (cell.target, load_of(cell), cell.times[what].curve())
        for cell in cells
        if what in cell.times
    ]
    return None if not curves else _distribution(curves, f"{what}, ms")


def lags(cells: Sequence[LayerCell]) -> str | None:
    """Plot the distribution of the lag of each server under each load."""
    curves = [
        (cell.server, f"{cell.offered:,.0f}/s", cell.lag.curve())
        for cell in cells
        if cell.lag is not None
    ]
    return None if not curves else _distribution(curves, "lag, ms")


def throughput(cells: Sequence[Cell]) -> str | None:
    """Plot visits completed in a second over users, and over visits due in a second."""
    loads = [cell for cell in cells if cell.mode != "burst"]
    levels = {mode: {cell.level for cell in loads if cell.mode == mode} for mode in MODES}
    modes = [mode for mode in MODES if len(levels[mode]) > 1]
    if not modes:
        return None
    with rc_context(dict(STYLE)):
        figure = _figure(5.0 * len(modes) + 0.6, 3.0)
        for number, mode in enumerate(modes, start=1):
            axes = figure.add_subplot(1, len(modes), number)
            for name in _targets(loads):
                line = sorted(
                    (cell.level, cell.rate, min(cell.rates), max(cell.rates))
                    for cell in loads
                    if cell.mode == mode and cell.target == name
                )
                if line:
                    level, rate, low, high = zip(*line, strict=True)
                    colour = _colour(name, _targets(loads))
                    axes.plot(level, rate, marker="o", label=name, color=colour)
                    axes.fill_between(level, low, high, alpha=0.15, color=colour)
            if mode == "open":
                most = max(cell.level for cell in loads if cell.mode == mode)
                axes.plot((0, most), (0, most), color="#94a3b8", linestyle=":", label="as due")
            axes.set_xlabel("users" if mode == "closed" else "visits due in a second")
            axes.set_ylabel("visits completed in a second")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.legend(**BESIDE)
        return _svg(figure)


def memory(cells: Sequence[Cell]) -> str | None:
    """Plot the memory of a server with all its processes over open sessions."""
    some = [cell for cell in cells if cell.scenario == "storm" and cell.memory and cell.sessions]
    if not some:
        return None
    with rc_context(dict(STYLE)):
        figure = _figure(5.8, 3.0)
        axes = figure.add_subplot(1, 1, 1)
        for name in _targets(some):
            mine = [cell for cell in some if cell.target == name]
            line = sorted(
                [(0, min(median(cell.memory_idle) for cell in mine) / 1e6)]
                + [(cell.sessions, median(cell.memory) / 1e6) for cell in mine]
            )
            colour = _colour(name, _targets(some))
            axes.plot(*zip(*line, strict=True), marker="o", label=name, color=colour)
        axes.set_xlabel("open sessions")
        axes.set_ylabel("memory of all processes, MB")
        axes.set_ylim(bottom=0)
        axes.legend(**BESIDE)
        return _svg(figure)


def cost(cells: Sequence[Cell]) -> str | None:
    """Plot the processor time that a visit costs, of each scenario, load and target."""
    some = [cell for cell in cells if cell.cpu_s and cell.mode != "burst"]
    rows = [
        (f"{cell.scenario}, {load_of(cell)}", cell.target, [one * 1000 for one in cell.cpu_s])
        for cell in some
    ]
    return None if not rows else _bars(rows, "processor time of a visit, ms")


def layer_cost(cells: Sequence[LayerCell]) -> str | None:
    """Plot the processor time of a delta, of each server under each load."""
    rows = [
        (f"{cell.streams} streams, {cell.offered:,.0f}/s", cell.server, cell.cpu_us_delta)
        for cell in cells
    ]
    return None if not rows else _bars(rows, "processor time of a delta, us")


def soak(done: Soak) -> str | None:
    """Plot a server over the time of a soak: its memory, what it has open, and its answers."""
    if not done.samples:
        return None
    minutes = [one.at_s / 60 for one in done.samples]
    with rc_context(dict(STYLE)):
        figure = _figure(7.6, 5.6)
        memory, counts, answers = figure.subplots(3, 1, sharex=True)
        for name, label, colour in (("own", "own", "#2563eb"), ("pss", "PSS", "#93c5fd")):
            sizes = [getattr(one, name) / 1e6 for one in done.samples]
            memory.plot(minutes, sizes, label=f"server, {label}", color=colour)
        memory.set_ylabel("MB")
        memory.set_ylim(bottom=0)
        for name, colour in (
            ("descriptors", "#0d9488"),
            ("tasks", "#9333ea"),
            ("threads", "#ca8a04"),
            ("processes", "#64748b"),
        ):
            line = [(one.at_s / 60, getattr(one, name)) for one in done.samples]
            known = [(at, number) for at, number in line if number is not None]
            if known:
                counts.plot(*zip(*known, strict=True), label=name, color=colour, linewidth=1)
        counts.set_ylabel("number")
        counts.set_ylim(bottom=0)
        for name, colour in (("p50", "#2563eb"), ("p99", "#ea580c")):
            parts = [(one.at_s / 60, getattr(one, name)) for one in done.minutes]
            told = [(at, ms) for at, ms in parts if ms is not None]
            if told:
                answers.plot(*zip(*told, strict=True), label=f"first text, {name}", color=colour)
        answers.set_yscale("log")
        answers.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        answers.minorticks_off()
        answers.yaxis.set_major_formatter("{x:g}")
        answers.set_ylabel("ms")
        answers.set_xlabel("minutes")
        for axes in (memory, counts, answers):
            axes.axvspan(0, done.settled_s / 60, color="#f1f5f9", zorder=0)
            axes.legend(**BESIDE)
        return _svg(figure)


def pictures(results: Results) -> Mapping[str, str]:
    """Return the plots that stand for a run, by the name of their file."""
    cells = results.cells
    singles = {
        f"latency-{name}": latencies(
            [cell for cell in cells if cell.scenario == name], SCENARIOS[name].main
        )
        for name in ("oneoff",)
    }
    found = {
        **singles,
        "throughput": throughput([cell for cell in cells if cell.scenario == "oneoff"]),
        "memory": memory(cells),
        "cost": cost(cells),
        "layer-lag": lags(results.layer),
        "layer-cost": layer_cost(results.layer),
        "soak": next((svg for one in results.soak if (svg := soak(one))), None),
    }
    return {name: svg for name, svg in found.items() if svg is not None}


def _distribution(
    curves: Sequence[tuple[str, str, Sequence[tuple[float, float]]]], label: str
) -> str:
    """Plot curves, each of a target under a load."""
    targets = list(dict.fromkeys(name for name, _, _ in curves))
    loads = list(dict.fromkeys(load for _, load, _ in curves))
    with rc_context(dict(STYLE)):
        figure = _figure(7.6, 3.6)
        axes = figure.add_subplot(1, 1, 1)
        for name, load, curve in curves:
            # 1 / (1 - share), on a logarithmic axis: the tail has the room that it needs.
            rarity = [1 / max(1 - share / 100, 1e-9) for share, _ in curve]
            axes.plot(
                rarity,
                [ms for _, ms in curve],
                label=f"{name}, {load}",
                linewidth=1.4,
                color=_colour(name, targets),
                linestyle=LINES[loads.index(load) % len(LINES)],
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        most = max(1 / max(1 - curve[-1][0] / 100, 1e-9) for _, _, curve in curves)
        marks = [share for share in PERCENTILES if 1 / (1 - share / 100) <= most * 1.01]
        axes.set_xticks([1 / (1 - share / 100) for share in marks])
        axes.set_xticklabels([f"{share:g}%" for share in marks])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel("share that took no longer")
        axes.set_ylabel(label)
        axes.legend(**BESIDE)
        return _svg(figure)


def _bars(rows: Sequence[tuple[str, str, Sequence[float]]], label: str) -> str:
    """Plot groups of horizontal bars, with the range of the rounds."""
    groups = list(dict.fromkeys(group for group, _, _ in rows))
    names = list(dict.fromkeys(name for _, name, _ in rows))
    with rc_context(dict(STYLE)):
        height = 0.8 + 0.22 * len(rows) + 0.12 * len(groups)
        figure = _figure(7.6, height)
        axes = figure.add_subplot(1, 1, 1)
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            mine = [(groups.index(group), values) for group, one, values in rows if one == name]
            at = [place + number * width for place, _ in mine]
            middle = [median(values) for _, values in mine]
            below = [median(values) - min(values) for _, values in mine]
            above = [max(values) - median(values) for _, values in mine]
            axes.barh(
                at,
                middle,
                width * 0.9,
                xerr=(below, above),
                label=name,
                color=_colour(name, names),
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#334155"},
            )
        axes.set_yticks([place + 0.4 - width / 2 for place in range(len(groups))])
        axes.set_yticklabels(groups)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.legend(**BESIDE)
        return _svg(figure)


def _colour(name: str, names: Sequence[str]) -> str:
    """Return the colour of a target, of those that a plot has."""
    if name in COLOURS:
        return COLOURS[name]
    unknown = [one for one in names if one not in COLOURS]
    return OTHERS[unknown.index(name) % len(OTHERS)]


def _targets(cells: Sequence[Cell]) -> Sequence[str]:
    return list(dict.fromkeys(cell.target for cell in cells))


def _figure(width: float, height: float) -> Any:
    """Return an empty figure, inches; without its type, since half of matplotlib's is unknown."""
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> str:
    """Return a figure as an element for a page: without the prologue, and the same each time."""
    file = io.StringIO()
    with rc_context({"svg.hashsalt": "bench"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
