"""Results as Markdown: the tables of `docs/performance.md`, where no number is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from bench.suite.goals import goals, verdict
from bench.suite.judge import gains, ratios
from bench.suite.results import Results
from bench.suite.tables import (
    Table,
    layer_table,
    looks_table,
    profile_table,
    ratio_table,
    scale_table,
    times_table,
    trend_table,
    tuned_table,
    visits_table,
)
from bench.suite.targets import OURS
from bench.suite.trend import RULE, trends

_BLOCK = re.compile(r"(<!-- bench: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(results: Results) -> str:
    """Return all tables of a run, each part under its heading."""
    found = blocks(results).items()
    return "\n\n".join(f"## {name}\n\n{text}" for name, text in found)


def into(text: str, results: Results) -> str:
    """Return a text whose marked parts are made anew, as far as the run has them.

    A part is what stands between `<!-- bench: NAME -->` and `<!-- end -->`, each on a line.
    """
    made = blocks(results)

    def replaced(found: re.Match[str]) -> str:
        if found[2] not in made:
            return found[0]
        return f"{found[1]}{made[found[2]]}\n{found[3]}"

    return _BLOCK.sub(replaced, text)


def blocks(results: Results) -> Mapping[str, str]:
    """Return the parts of a run by name: those that it has something for."""
    return {name: "\n\n".join(parts) for name, parts in _blocks(results)}


def _blocks(results: Results) -> Iterator[tuple[str, Sequence[str]]]:
    yield "circumstances", [_circumstances(results)]
    judged = goals(results)
    if judged:
        rows = [
            (one.text, one.measured, verdict(one).replace("MISSED", "**missed**")) for one in judged
        ]
        yield "goals", [_table(Table(head=("goal", "measured", ""), rows=rows, texts=3))]
    compared = ratios(results)
    if compared:
        yield "ratios", [_table(ratio_table(compared, results.targets[0]))]
    for name in dict.fromkeys(cell.scenario for cell in results.cells):
        cells = [cell for cell in results.cells if cell.scenario == name]
        yield name, [_table(times_table(cells, name, looks=False)), _table(visits_table(cells))]
    given = gains(results)
    if given:
        yield "techniques", [_table(ratio_table(given, OURS))]
    if results.layer:
        yield "layer", [_table(layer_table(results.layer))]
    if results.tuned:
        yield "settings", [_table(tuned_table(results.tuned))]
    if results.scale:
        yield (
            "scale",
            [
                _table(one)
                for scale in results.scale
                for one in (scale_table(scale), looks_table(scale))
            ],
        )
    if results.soak:
        yield "soak", [*_soak(results), RULE]
    if results.profiles:
        yield (
            "profiles",
            [
                text
                for one in results.profiles
                for text in (
                    f"{one.load}, {one.samples:,} samples:",
                    _table(profile_table(one)),
                )
            ],
        )
    if results.notes:
        yield "notes", [f"> {note}" for note in results.notes]


def _soak(results: Results) -> Iterator[str]:
    for soak in results.soak:
        errors = ", ".join(f"{code} ({count})" for code, count in soak.errors.items()) or "none"
        yield (
            f"{soak.seconds / 60:.0f} minutes on {soak.target}: {soak.completed:,} of "
            f"{soak.visits:,} visits completed, {soak.rate:g} due in a second. Errors: {errors}."
        )
        found = trends(soak)
        if found:
            yield _table(trend_table(found))


def _circumstances(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return (
        f"{results.date:%Y-%m-%d %H:%M} UTC: {machine.get('cores')} cores of "
        f"{machine.get('processor')}, {machine.get('memory_mb')} MB, {machine.get('system')}, "
        f"{machine.get('python')}, load {machine.get('load')} at the beginning; {versions}."
    )


def _table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"

    rule = ["---" if n < table.texts else "---:" for n in range(len(table.head))]
    return "\n".join([line(table.head), line(rule), *(line(row) for row in table.rows)])
