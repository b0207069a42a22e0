"""Whether something grows: a line through a soak that few odd values cannot turn.

The slope is the median of those between all pairs of points (Theil and Sen), and its 95% interval
the one of Sen (1968), which assumes no distribution. The points are medians of thirty parts of the
time, since neighbouring samples are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.quantiles import median
from bench.suite.results import Sample, Soak

POINTS = 30
"""Parts of the time, each of which is one point."""

FEW = 8
"""Points without which there is no trend."""

ALLOWED = 0.05
"""Growth in an hour that counts as flat, as a share of the level."""

ALLOWED_NUMBER = 2.0
"""The same for what is counted, if that is more."""

RULE = (
    "Flat: the upper end of the slope's 95% interval (Theil and Sen, over medians of thirty parts "
    f"of the time, the first sixth of it left out) is below {ALLOWED:.0%} of the level in an hour, "
    f"or {ALLOWED_NUMBER:g} in an hour for what is counted. It grows: the lower end is above that. "
    "Between the two the soak was too short, or too restless, to tell."
)

MEASURES: Sequence[tuple[str, str, float]] = (
    ("server, own memory, MB", "own", 1e6),
    ("server, PSS, MB", "pss", 1e6),
    ("with all processes, PSS, MB", "tree_pss", 1e6),
    ("processes", "processes", 1.0),
    ("descriptors", "descriptors", 1.0),
    ("threads", "threads", 1.0),
    ("tasks", "tasks", 1.0),
)
"""What has a trend: in words, of a sample, and what it is divided by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How something went.

    Attributes:
        what: In words, with its unit.
        level: Its median.
        slope: By how much it grew in an hour.
        low: Lower end of the slope's 95% interval.
        high: Upper end.
        verdict: By the rule.
    """

    what: str
    level: float
    slope: float
    low: float
    high: float
    verdict: Literal["flat", "grows", "cannot tell"]

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.level:,.1f}, {self.slope:+.2f} in an hour "
            f"[{self.low:+.2f}, {self.high:+.2f}]: {self.verdict}"
        )


def trends(soak: Soak) -> Sequence[Trend]:
    """Return the trend of all that was sampled, as far as there is enough of it."""
    settled = [one for one in soak.samples if one.at_s >= soak.settled_s]
    found = (_trend(settled, what, name, unit) for what, name, unit in MEASURES)
    return [one for one in found if one is not None]


def _trend(samples: Sequence[Sample], what: str, name: str, unit: float) -> Trend | None:
    values = [
        (one.at_s / 3600, getattr(one, name) / unit)
        for one in samples
        if getattr(one, name) is not None
    ]
    points = _points(values)
    if len(points) < FEW:
        return None
    level = median([value for _, value in values])
    slope, low, high = slope_of(points)
    counted = unit == 1.0
    allowed = max(ALLOWED * level, ALLOWED_NUMBER) if counted else ALLOWED * level
    verdict: Literal["flat", "grows", "cannot tell"] = (
        "flat" if high < allowed else "grows" if low > allowed else "cannot tell"
    )
    return Trend(what=what, level=level, slope=slope, low=low, high=high, verdict=verdict)


def _points(values: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return a point for each part of the time that has values."""
    if len(values) < 2:
        return values
    first, last = values[0][0], values[-1][0]
    parts: dict[int, list[tuple[float, float]]] = {}
    for at, value in values:
        part = min(int((at - first) / max(last - first, 1e-12) * POINTS), POINTS - 1)
        parts.setdefault(part, []).append((at, value))
    return [
        (median([at for at, _ in some]), median([value for _, value in some]))
        for some in parts.values()
    ]


def slope_of(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the slope through at least two points, and the ends of its 95% interval."""
    slopes = sorted(
        (value - earlier_value) / (at - earlier)
        for number, (at, value) in enumerate(points)
        for earlier, earlier_value in points[:number]
        if at > earlier
    )
    count = len(points)
    width = 1.96 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(math.floor((len(slopes) - width) / 2), 0)
    high = min(math.ceil((len(slopes) + width) / 2), len(slopes) - 1)
    return median(slopes), slopes[low], slopes[high]
