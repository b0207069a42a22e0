"""What differs between two runs: only where their rounds do not overlap is a difference claimed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.quantiles import median
from bench.report import table
from bench.suite.judge import load_of
from bench.suite.results import Cell, LayerCell, Results, Scale

ENOUGH = 2
"""Rounds that each run needs, or their range says nothing."""


def compared(before: Results, after: Results) -> str:
    """Return a comparison of two runs in plain text."""
    parts = [f"before: {before.date:%Y-%m-%d %H:%M} UTC, after: {after.date:%Y-%m-%d %H:%M} UTC"]
    parts += _circumstances(before, after)
    rows = [
        *_cells(before.cells, after.cells),
        *_cells(before.techniques, after.techniques),
        *_layers(before.layer, after.layer),
        *_scales(before.scale, after.scale),
    ]
    if rows:
        parts.append(table(("", "what", "before", "after", "ratio", ""), rows))
    else:
        parts.append("The runs have nothing in common.")
    return "\n\n".join(parts)


def _circumstances(before: Results, after: Results) -> Iterator[str]:
    """Say what else was different: then a difference may not be the program's."""
    for name, one, other in (
        ("machine", before.machine, after.machine),
        ("versions", before.versions, after.versions),
        ("settings", before.settings, after.settings),
    ):
        changed = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
        if changed:
            told = "; ".join(f"{key}: {one.get(key)} -> {other.get(key)}" for key in changed)
            yield f"Different {name}: {told}"


def _cells(before: Sequence[Cell], after: Sequence[Cell]) -> Iterator[tuple[str, ...]]:
    old = {(*cell.key, cell.target): cell for cell in before}
    for cell in after:
        match = old.get((*cell.key, cell.target))
        if match is None:
            continue
        where = f"{cell.scenario}, {load_of(cell)}, {cell.target}"
        for what in cell.medians:
            if what in match.medians:
                yield _row(where, f"{what}, ms", match.medians[what], cell.medians[what])
                where = ""
        yield _row(where, "visits/s", match.rates, cell.rates)
        yield _row("", "CPU-s a visit", match.cpu_s, cell.cpu_s)
        yield _row("", "memory, MB", _mb(match.memory), _mb(cell.memory))
        if match.errors or cell.errors:
            yield ("", "errors", _shown(match.errors), _shown(cell.errors), "", "")


def _layers(before: Sequence[LayerCell], after: Sequence[LayerCell]) -> Iterator[tuple[str, ...]]:
    old = {(cell.server, cell.streams, cell.offered): cell for cell in before}
    for cell in after:
        match = old.get((cell.server, cell.streams, cell.offered))
        if match is not None:
            where = f"layer, {cell.streams} streams, {cell.offered:,.0f}/s, {cell.server}"
            yield _row(where, "us an event", match.cpu_us, cell.cpu_us)
            yield _row("", "us a delta", match.cpu_us_delta, cell.cpu_us_delta)
            yield _row("", "deltas/s", [match.delivered], [cell.delivered])
            if match.lag is not None and cell.lag is not None:
                # Runs of an older version have it of all rounds together only.
                old_p99, new_p99 = match.lag_p99, cell.lag_p99
                if not old_p99 or not new_p99:
                    old_p99, new_p99 = [match.lag.p99], [cell.lag.p99]
                yield _row("", "lag p99, ms", old_p99, new_p99)


def _scales(before: Sequence[Scale], after: Sequence[Scale]) -> Iterator[tuple[str, ...]]:
    old = {(one.target, one.sessions): one for one in before}
    for one in after:
        match = old.get((one.target, one.sessions))
        if match is None:
            continue
        where = f"{one.sessions:,} sessions, {one.target}"
        if match.made is not None and one.made is not None:
            yield _row(where, "kB a session", [match.made / 1000], [one.made / 1000])
            where = ""
        looks = {look.load: look for look in match.looks}
        for look in one.looks:
            for name, times in look.times.items():
                if look.load in looks and name in looks[look.load].times:
                    earlier = looks[look.load].times[name]
                    what = f"{name} p99, ms, {look.load}"
                    yield _row(where, what, [earlier.p99], [times.p99])
                    where = ""


def _row(where: str, what: str, before: Sequence[float], after: Sequence[float]) -> tuple[str, ...]:
    if not before or not after:
        return (where, what, _range(before), _range(after), "", "")
    old, new = median(before), median(after)
    ratio = f"{new / old:.2f} x" if old else ""
    return (where, what, _range(before), _range(after), ratio, _difference(before, after))


def _difference(before: Sequence[float], after: Sequence[float]) -> str:
    if min(len(before), len(after)) < ENOUGH:
        return "one round"
    if min(after) > max(before):
        return "more"
    if max(after) < min(before):
        return "less"
    return "the same"


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = _number(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _mb(sizes: Sequence[int]) -> Sequence[float]:
    return [size / 1e6 for size in sizes]


def _shown(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{code} x{count}" for code, count in errors.items()) or "none"
