"""What is said about many measurements: quantiles, and how sure a median is."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

RESAMPLES = 4_000
"""Of a bootstrap; the ends of a 95% interval then rest on a hundred values each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The distribution of some measurements, all in the unit of the measurements.

    Attributes:
        count: How many there were.
        p50: The median.
        p95: 95% were not greater.
        p99: 99% were not greater.
        greatest: The greatest.
    """

    count: int
    p50: float
    p95: float
    p99: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise at least one value."""
        ordered = sorted(values)
        return cls(
            count=len(ordered),
            p50=quantile(ordered, 0.5),
            p95=quantile(ordered, 0.95),
            p99=quantile(ordered, 0.99),
            greatest=ordered[-1],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A median of a sample, and where the true one probably is.

    Attributes:
        value: The median of the sample.
        low: Lower end of its 95% confidence interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that a share of the sorted values is not greater than.

    Between two values it is interpolated (type 7 of Hyndman and Fan, as numpy does).

    Args:
        ordered: At least one value, in ascending order.
        share: From 0 to 1.
    """
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median(values: Sequence[float]) -> float:
    """Return the median of at least one value."""
    return quantile(sorted(values), 0.5)


def median_with_interval(values: Sequence[float], *, seed: int = 1) -> Estimate:
    """Estimate a median by the percentile bootstrap (Efron).

    Args:
        values: At least one; for paired measurements, the differences.
        seed: Of the resampling, so that a report can be made again.
    """
    chance = random.Random(seed)
    size = len(values)
    medians = sorted(median(chance.choices(values, k=size)) for _ in range(RESAMPLES))
    return Estimate(
        value=median(values), low=quantile(medians, 0.025), high=quantile(medians, 0.975)
    )
