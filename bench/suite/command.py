"""The command: `python -m bench`, to run, to compare, and to make the report again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.arguments import Parser
from bench.processes import LeftBehind, NotReady, clean_surroundings
from bench.report import Run
from bench.suite.compare import compared
from bench.suite.display import Display
from bench.suite.judge import summary
from bench.suite.markdown import into, markdown
from bench.suite.options import SOAK, choice_of, parser, settings_of, told_of
from bench.suite.page import page
from bench.suite.plots import pictures
from bench.suite.profile import NoProfile
from bench.suite.results import NoResults, Results, together
from bench.suite.stages import Measured, measure
from bench.suite.targets import NoTarget, headers_from
from session_http.serve import raise_file_limit, run

LIMIT_S = 5_400.0
"""Seconds after which a run is given up; those of a soak come on top."""

STOPPED = 130
"""Exit status after Ctrl-C, as a shell has it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        match given[:1]:
            case ["compare"]:
                return _compare(given[1:])
            case ["report"]:
                return _report(given[1:])
            case _:
                return _run(given)
    except (NoResults, NoTarget, NotReady, NoProfile) as error:
        return _wrong(str(error))
    except KeyboardInterrupt:
        return STOPPED


def _run(given: Sequence[str]) -> int:
    told = parser()
    options = told.parse_args(given)
    choice, settings = choice_of(told, options), settings_of(options)
    headers = headers_from(choice.key_from)
    # Now, and not when an hour was measured.
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told.error(f"--out {options.out}: {error.strerror}")
    if not os.access(options.out.parent, os.W_OK):
        told.error(f"--out {options.out}: {options.out.parent} cannot be written to")
    console = Console()
    raise_file_limit()
    circumstances = Run.begin("suite", told_of(choice, settings))
    console.print(circumstances.heading(), highlight=False, markup=False, soft_wrap=True)
    measured = Measured()
    limit_s = LIMIT_S + (choice.minutes * 60 if SOAK in choice.names else 0)
    status = 0
    # What ends a run is to end what it started too, and to leave what it measured; also where a
    # shell began it in the background, and had it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    try:
        with clean_surroundings() as home:
            display = Display(console)

            async def limited() -> None:
                async with asyncio.timeout(limit_s):
                    await measure(choice, settings, home, headers, display, measured)

            run(limited())
    except KeyboardInterrupt:
        status = _ended(measured, "The run was stopped before its end.", STOPPED)
    except TimeoutError:
        status = _ended(measured, f"The run was given up after {limit_s:g} s.", 1)
    except (NoTarget, NotReady, NoProfile, LeftBehind) as error:
        status = _ended(measured, str(error), 1)
    results = Results.of(circumstances, **measured.fields())
    if not results.is_empty:
        _write(results, options.out)
    return status


def _ended(measured: Measured, why: str, status: int) -> int:
    """Note why a run ended early; what it measured is written all the same."""
    measured.notes.append(why)
    _wrong(why)
    return status


def _wrong(what: str) -> int:
    print(f"python -m bench: {what}", file=sys.stderr)
    return 1


def _write(results: Results, base: Path) -> None:
    # Not `with_suffix`, which would take what follows a dot in the name away.
    data, report = base.with_name(f"{base.name}.json"), base.with_name(f"{base.name}.html")
    results.write(data)
    report.write_text(page(results), encoding="utf-8")
    print(f"\n{summary(results)}\n\n{data}\n{report}")


def _compare(given: Sequence[str]) -> int:
    told = Parser(prog="python -m bench compare", description="Say what differs between two runs.")
    told.add_argument("before", type=Path, help="results of one run, JSON")
    told.add_argument("after", type=Path, help="results of another")
    options = told.parse_args(given)
    print(compared(Results.load(options.before), Results.load(options.after)))
    return 0


def _report(given: Sequence[str]) -> int:
    told = Parser(
        prog="python -m bench report",
        description="Make the report of a run again, or one of several runs as if they were one.",
    )
    told.add_argument("results", type=Path, nargs="+", help="results of a run, JSON")
    told.add_argument("--out", type=Path, help="the report (beside the first results)")
    told.add_argument("--markdown", action="store_true", help="print it as Markdown instead")
    told.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        help="write it into the marked parts of a Markdown file",
    )
    told.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="write its plots there, as SVG"
    )
    options = told.parse_args(given)
    results = together([Results.load(path) for path in options.results])
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for name, svg in pictures(results).items():
            (options.pictures / f"{name}.svg").write_text(svg, encoding="utf-8")
    if options.into is not None:
        before = options.into.read_text(encoding="utf-8")
        options.into.write_text(into(before, results), encoding="utf-8")
    if options.markdown:
        print(markdown(results))
    if options.markdown or options.into is not None:
        return 0
    out = options.out or options.results[0].with_suffix(".html")
    out.write_text(page(results), encoding="utf-8")
    print(f"{summary(results)}\n\n{out}")
    return 0
