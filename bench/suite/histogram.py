"""Distributions of times, in HdrHistogram's form: exact to three digits from 1 us to an hour.

They add up, are small in a file, and other tools read their encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped] # it has no types
from pydantic import BaseModel, ConfigDict

LONGEST_US = 3_600_000_000

SHARES = (50.0, 90.0, 95.0, 99.0, 99.9)
"""Percentiles that tables have."""


class Distribution(BaseModel):
    """Many times, milliseconds.

    Attributes:
        count: How many.
        mean: Their mean.
        p50: Half of them were not longer.
        p90: 90% were not longer.
        p95: 95% were not longer.
        p99: 99% were not longer.
        p999: 99.9% were not longer.
        longest: The longest.
        encoded: All of them, as HdrHistogram's V2 compressed encoding of microseconds, Base64.
    """

    model_config = ConfigDict(frozen=True)

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    longest: float
    encoded: str

    @classmethod
    def of(cls, times_ms: Iterable[float]) -> Distribution:
        """Take times in; there must be at least one. Shorter than 1 us counts as that."""
        histogram = _empty()
        for one in times_ms:
            histogram.record_value(min(max(round(one * 1000), 1), LONGEST_US))
        return cls._from(histogram)

    @classmethod
    def sum(cls, parts: Sequence[Distribution]) -> Distribution:
        """Return all times of several, at least one."""
        histogram = _empty()
        for part in parts:
            histogram.decode_and_add(part.encoded)
        return cls._from(histogram)

    def curve(self, *, points: int = 200) -> Sequence[tuple[float, float]]:
        """Return percentiles, denser towards the end, and the times that they stand for.

        No percentile is given that there are too few times for; beyond the last one is the longest
        alone, to half of what is left.
        """
        histogram = _empty()
        histogram.decode_and_add(self.encoded)
        finest = 1 / max(self.count, 2)
        shares = [100 * (1 - finest ** (n / points)) for n in range(points + 1)]
        values = histogram.get_percentile_to_value_dict(shares)
        beyond = (shares[-1], 100 * (1 - finest / 2))
        return [
            *((share, values[share] / 1000) for share in shares),
            *((share, self.longest) for share in beyond),
        ]

    def tells(self, share: float) -> bool:
        """Whether there are enough times to speak of a percentile: one beyond it, at least."""
        return round(self.count * (100 - share), 6) >= 100

    @classmethod
    def _from(cls, histogram: Any) -> Distribution:
        if not histogram.get_total_count():
            raise ValueError("A distribution needs at least one time.")
        values = histogram.get_percentile_to_value_dict(list(SHARES))
        p50, p90, p95, p99, p999 = (values[share] / 1000 for share in SHARES)
        return cls(
            count=histogram.get_total_count(),
            mean=histogram.get_mean_value() / 1000,
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            p999=p999,
            longest=histogram.get_max_value() / 1000,
            encoded=histogram.encode().decode("ascii"),
        )


def _empty() -> Any:
    return HdrHistogram(1, LONGEST_US, 3)
