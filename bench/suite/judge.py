"""What results say: how many times as much one target takes as another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.quantiles import median, median_with_interval
from bench.report import table
from bench.suite.goals import goals, verdict
from bench.suite.results import Cell, Results
from bench.suite.scenarios import SCENARIOS
from bench.suite.targets import OURS


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times as much another target takes as the first, round by round.

    Attributes:
        of: The other.
        scenario: Where.
        load: Under which load, in words.
        what: Was compared.
        first: The first's, median of the rounds: milliseconds, visits a second, or seconds.
        other: The other's.
        value: The median of the rounds.
        low: Lower end of its 95% bootstrap interval; with few rounds, their range.
        high: Upper end.
        rounds: How many; one tells nothing about how sure that is.
    """

    of: str
    scenario: str
    load: str
    what: str
    first: float
    other: float
    value: float
    low: float
    high: float
    rounds: int

    @property
    def interval(self) -> str:
        """Return the interval in words, if there is one."""
        return f"{self.low:.2f} to {self.high:.2f}" if self.rounds > 1 else "one round"


def load_of(cell: Cell) -> str:
    """Return a load in words."""
    match cell.mode:
        case "closed":
            return f"{cell.level:g} user{'s' if cell.level != 1 else ''}"
        case "open":
            return f"{cell.level:g}/s due"
        case _:
            return f"{cell.level:g} at once"


def ratios(results: Results) -> Sequence[Ratio]:
    """Compare every target with the first, where both were measured under the same load."""
    return _ratios(results.cells, results.targets[0]) if results.targets else []


GAINED = ("start", "start to model asked", "model asked", "total")
"""Times that techniques are about, beside what a scenario is."""


def gains(results: Results) -> Sequence[Ratio]:
    """Compare our server without a technique with it as it is."""
    return _ratios(results.techniques, OURS, also=GAINED)


def _ratios(cells: Sequence[Cell], name: str, *, also: Sequence[str] = ()) -> Sequence[Ratio]:
    first = {cell.key: cell for cell in cells if cell.target == name}
    found: list[Ratio] = []
    for cell in cells:
        ours = first.get(cell.key)
        if ours is None or ours is cell:
            continue
        main = SCENARIOS[cell.scenario].main if cell.scenario in SCENARIOS else ""
        rows: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {
            **{
                what: (ours.medians.get(what, []), cell.medians.get(what, []))
                for what in dict.fromkeys((main, *also))
            },
            "rate": (ours.rates, cell.rates),
            "CPU of a visit": (ours.cpu_s, cell.cpu_s),
        }
        for what, (mine, theirs) in rows.items():
            pairs = [a / b for a, b in zip(theirs, mine, strict=False) if b > 0 and a > 0]
            # Processor time is known of some rounds only, so the others might be no pairs.
            if pairs and (len(mine) == len(theirs) or what != "CPU of a visit"):
                estimate = median_with_interval(pairs)
                found.append(
                    Ratio(
                        of=cell.target,
                        scenario=cell.scenario,
                        load=load_of(cell),
                        what=what,
                        first=median(mine),
                        other=median(theirs),
                        value=estimate.value,
                        low=estimate.low,
                        high=estimate.high,
                        rounds=len(pairs),
                    )
                )
    return found


# -- for people ------------------------------------------------------------------------------------


def summary(results: Results) -> str:
    """Return ratios and goals in plain text."""
    parts: list[str] = []
    for title, compared, first in (
        ("", ratios(results), results.targets[0] if results.targets else ""),
        ("What each technique gives: our server without it\n", gains(results), OURS),
    ):
        rows = [
            (
                f"{one.scenario}, {one.load}",
                one.of,
                one.what,
                f"{one.value:.2f} x",
                one.interval,
            )
            for one in compared
        ]
        if rows:
            parts.append(title + table(("", "target", "what", f"x {first}", "interval"), rows))
    judged = goals(results)
    if judged:
        parts.append("\n".join(f"{verdict(one):12} {one.text}: {one.measured}" for one in judged))
    return "\n\n".join(parts) or "Nothing to compare."
