"""When visitors come, in the open load model: decided before, whatever the server does.

A client that waits for an answer before it sends the next request measures a slow server less
often than a quick one (coordinated omission, Gil Tene). So arrivals are a schedule, and the time
of a visit begins when it was due, not when the client got round to it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence


def arrivals(
    rate: float, seconds: float, *, ramp_s: float = 0.0, seed: int | None = None
) -> Sequence[float]:
    """Return the seconds after the beginning at which visits are due, in order.

    Args:
        rate: Visits in a second.
        seconds: How long, the ramp included.
        ramp_s: Seconds in which the rate grows evenly from nothing.
        seed: Visits come by chance, as a Poisson process drawn with it; None: evenly.

    Raises:
        ValueError: The rate is not above 0.
    """
    if not rate > 0:
        raise ValueError(f"a rate of {rate:g} visits in a second is not above 0")
    due: list[float] = []
    for expected in _expected(seed):
        at = _reached(expected, rate, ramp_s)
        if at >= seconds:
            return due
        due.append(at)
    raise AssertionError("arrivals never end")


def _expected(seed: int | None) -> Iterator[float]:
    """Yield how many visits were expected until each: their number, or sums of chance."""
    chance = None if seed is None else random.Random(seed)
    so_far = 0.0
    while True:
        if chance is not None:
            so_far += chance.expovariate(1.0)
        yield so_far
        if chance is None:
            so_far += 1.0


def _reached(expected: float, rate: float, ramp_s: float) -> float:
    """Return when so many visits are expected to have come (a Poisson process by time change)."""
    in_ramp = rate * ramp_s / 2
    if expected < in_ramp:
        return math.sqrt(2 * expected * ramp_s / rate)
    return ramp_s + (expected - in_ramp) / rate
