"""The report: one page that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from bench.suite import plots
from bench.suite.goals import Goal, goals, verdict
from bench.suite.judge import gains, ratios
from bench.suite.results import Cell, Results
from bench.suite.scenarios import SCENARIOS
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

STYLE = """
:root { --ink: #0f172a; --soft: #64748b; --line: #e2e8f0; --wash: #f8fafc; --blue: #2563eb }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; margin: 0;
  color: var(--ink); background: var(--wash) }
header { background: #0f172a; color: #f8fafc; padding: 2.2rem 1rem 1.6rem }
header > div, main { max-width: 70rem; margin: 0 auto }
header h1 { font-size: 1.7rem; margin: 0 0 .3rem; letter-spacing: -.01em }
header p { margin: .2rem 0; color: #cbd5e1 }
nav { margin-top: 1rem; display: flex; flex-wrap: wrap; gap: .4rem }
nav a { color: #e2e8f0; text-decoration: none; border: 1px solid #334155; border-radius: 999px;
  padding: .1rem .75rem; font-size: 13px }
nav a:hover { background: #1e293b }
main { padding: 1.2rem 1rem 4rem }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px;
  padding: 1.1rem 1.4rem 1.4rem; margin: 1.2rem 0 }
h2 { font-size: 1.25rem; margin: .1rem 0 .6rem }
h3 { font-size: .95rem; margin: 1.4rem 0 .3rem; color: #334155 }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums;
  width: 100% }
th, td { padding: .28rem .65rem; text-align: right; border-bottom: 1px solid var(--line) }
th { vertical-align: bottom; color: var(--soft); font-weight: 600 }
td { white-space: nowrap }
tbody tr:hover { background: var(--wash) }
th.left, td.left { text-align: left }
td.wraps { white-space: normal; min-width: 13rem }
figure { margin: 1rem 0; overflow-x: auto }
figure svg { width: 100%; max-width: 58rem; height: auto; display: block }
.scroll { overflow-x: auto; margin: .6rem 0 }
.badge { display: inline-block; border-radius: 999px; padding: 0 .6rem; font-weight: 600;
  font-size: 12px; white-space: nowrap }
.met { color: #166534; background: #dcfce7 }
.missed { color: #991b1b; background: #fee2e2 }
.unknown { color: #475569; background: #e2e8f0 }
.note { color: var(--soft) }
.warning { background: #fffbeb; border-color: #fcd34d }
@media print { body { background: #fff } section { break-inside: avoid; border: 0; padding: 0 } }
"""

HOW_TO_READ = (
    "Times of an open load begin when a visit was due, not when it could begin (no coordinated "
    "omission); those of a closed load begin when the user asks. Ratios are taken round by "
    "round, and the interval is that of their median. Processor time and memory are those of a "
    "server with all processes that it started; memory is the proportional set size. Lag is the "
    "time from when the model said a word to its arrival, told by the word itself. Trust ratios "
    "within one run more than the numbers themselves."
)

WIDE = 34
"""Characters above which a cell of words may wrap."""


def page(results: Results) -> str:
    """Return the report of a run as HTML."""
    title = f"Benchmark of {results.date:%Y-%m-%d %H:%M} UTC"
    sections = [(name, "\n".join(parts)) for name, parts in _sections(results)]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name, _ in sections)
    body = "\n".join(
        f'<section id="{_anchor(name)}"{" class=warning" if name == NOTES else ""}>'
        f"<h2>{escape(name)}</h2>\n{parts}\n</section>"
        for name, parts in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<header><div><h1>{escape(title)}</h1><p>{escape(_machine(results))}</p>"
        f"<nav>{links}</nav></div></header>\n<main>\n{body}\n</main></body></html>\n"
    )


NOTES = "What went wrong"


def _sections(results: Results) -> Iterator[tuple[str, Iterator[str]]]:
    if results.notes:
        yield NOTES, (f"<p>{escape(note)}</p>" for note in results.notes)
    judged = goals(results)
    if judged:
        yield "Goals", _verdicts(judged)
    if ratios(results) or results.left_out:
        yield f"Against {results.targets[0]}", _compared(results)
    for name in dict.fromkeys(cell.scenario for cell in results.cells):
        yield name, _scenario(name, [cell for cell in results.cells if cell.scenario == name])
    overall = (("Cost", plots.cost(results.cells)), ("Memory", plots.memory(results.cells)))
    for heading, svg in overall:
        if svg is not None:
            yield heading, iter([_figure(svg)])
    if results.techniques:
        yield "What each technique gives", _techniques(results)
    if results.layer:
        yield "The layer itself", _layer(results)
    if results.tuned:
        yield "The server's settings", _settings(results)
    if results.scale:
        yield "Many sessions", _scale(results)
    if results.soak:
        yield "Soak", _soak(results)
    if results.profiles:
        yield "Profiles", _profiles(results)
    yield "Circumstances", _circumstances(results)


def _anchor(name: str) -> str:
    return "".join(one if one.isalnum() else "-" for one in name.lower())


def _verdicts(judged: Sequence[Goal]) -> Iterator[str]:
    kinds = {True: "met", False: "missed", None: "unknown"}
    rows = "".join(
        f'<tr><td class="left wraps">{escape(one.text)}</td>'
        f'<td class="left"><span class="badge {kinds[one.met]}">{verdict(one)}</span></td>'
        f'<td class="left wraps">{escape(one.measured)}</td></tr>'
        for one in judged
    )
    yield f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _compared(results: Results) -> Iterator[str]:
    found = ratios(results)
    if found:
        yield _table(ratio_table(found, results.targets[0]))
    for where, why in results.left_out.items():
        yield f'<p class="note">{escape(f"{where}: left out, {why}.")}</p>'
    yield f'<p class="note">{escape(HOW_TO_READ)}</p>'


def _scenario(name: str, cells: Sequence[Cell]) -> Iterator[str]:
    known = SCENARIOS.get(name)
    if known is not None:
        yield f"<p>A visit is {escape(known.about)}.</p>"
    main = known.main if known is not None else ""
    for svg in (plots.latencies(cells, main), plots.throughput(cells)):
        if svg is not None:
            yield _figure(svg)
    yield "<h3>Times, ms</h3>"
    yield _table(times_table(cells, name))
    yield "<h3>Visits</h3>"
    yield _table(visits_table(cells))


def _techniques(results: Results) -> Iterator[str]:
    yield (
        "<p>Our server as it is, and once more without one technique each, in the same run and "
        "turn about: by how much a query takes longer without it.</p>"
    )
    yield _table(ratio_table(gains(results), OURS))
    yield "<h3>Visits</h3>"
    yield _table(visits_table(results.techniques))


def _layer(results: Results) -> Iterator[str]:
    yield "<p>Streams of a server without any CLI, which has one processor core.</p>"
    for svg in (plots.lags(results.layer), plots.layer_cost(results.layer)):
        if svg is not None:
            yield _figure(svg)
    yield _table(layer_table(results.layer))


def _settings(results: Results) -> Iterator[str]:
    yield (
        "<p>The layer without any CLI, as it is, and once more with one setting changed each, in "
        "the same run and turn about.</p>"
    )
    yield _table(tuned_table(results.tuned))


def _scale(results: Results) -> Iterator[str]:
    for one in results.scale:
        yield f"<h3>{escape(one.target)}: {one.sessions:,} sessions</h3>"
        yield _table(scale_table(one))
        yield _table(looks_table(one))


def _soak(results: Results) -> Iterator[str]:
    for one in results.soak:
        minutes = f"{one.seconds / 60:.1f} minutes"
        yield (
            f"<h3>{escape(one.target)}: {minutes}, {one.completed:,} of {one.visits:,} visits "
            f"completed, {one.rate:g} due in a second</h3>"
        )
        for code, count in one.errors.items():
            yield f"<p>{escape(code)}: {count}</p>"
        svg = plots.soak(one)
        if svg is not None:
            yield _figure(svg)
        found = trends(one)
        if found:
            yield _table(trend_table(found))
    yield f'<p class="note">{escape(RULE)}</p>'


def _profiles(results: Results) -> Iterator[str]:
    for one in results.profiles:
        yield f"<h3>{escape(one.load)}: {one.samples:,} samples in {one.seconds:g} s</h3>"
        yield _table(profile_table(one))


def _circumstances(results: Results) -> Iterator[str]:
    for heading, values in (
        ("Machine", results.machine),
        ("Versions", results.versions),
        ("Settings", results.settings),
        *((f"Also of {when}", told) for when, told in results.others.items()),
    ):
        yield f"<h3>{escape(heading)}</h3>"
        rows = [(name, str(value)) for name, value in values.items()]
        yield _table(Table(head=("", ""), rows=rows, texts=2))


def _machine(results: Results) -> str:
    machine = results.machine
    return (
        f"{machine.get('cores')} cores of {machine.get('processor')}, "
        f"{machine.get('memory_mb')} MB, {machine.get('system')}, {machine.get('python')}, "
        f"load {machine.get('load')} at the beginning"
    )


def _table(table: Table) -> str:
    def kind(number: int, cell: str) -> str:
        if number >= table.texts:
            return ""
        return ' class="left wraps"' if len(cell) > WIDE else ' class="left"'

    def row(name: str, cells: Sequence[str]) -> str:
        inner = "".join(
            f"<{name}{kind(n, cell)}>{escape(cell)}</{name}>" for n, cell in enumerate(cells)
        )
        return f"<tr>{inner}</tr>"

    head = row("th", table.head) if any(table.head) else ""
    lines = "".join(row("td", cells) for cells in table.rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{lines}</tbody></table></div>'


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"
