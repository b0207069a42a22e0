"""Histograms, schedules and process trees: what the suite's numbers rest on."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from itertools import pairwise

import pytest
from bench.quantiles import quantile
from bench.suite.histogram import Distribution
from bench.suite.schedule import arrivals
from bench.suite.tree import descendants, tree_of, until_quiet


def test_percentiles_are_those_of_the_values() -> None:
    chance = random.Random(3)
    times = [chance.lognormvariate(2, 1.5) for _ in range(20_000)]
    ordered = sorted(times)
    found = Distribution.of(times)
    for value, share in (
        (found.p50, 0.5),
        (found.p90, 0.9),
        (found.p95, 0.95),
        (found.p99, 0.99),
        (found.p999, 0.999),
    ):
        assert value == pytest.approx(quantile(ordered, share), rel=0.01)
    assert found.count == 20_000
    assert found.longest == pytest.approx(ordered[-1], rel=0.002)
    assert found.mean == pytest.approx(sum(times) / len(times), rel=0.01)


def test_distributions_add_up() -> None:
    low, high = [1.0] * 90, [500.0] * 10
    assert Distribution.sum([Distribution.of(low), Distribution.of(high)]) == Distribution.of(
        low + high
    )


def test_a_distribution_can_be_drawn_from_what_is_in_the_file() -> None:
    written = Distribution.of(float(n) for n in range(1, 1001)).model_dump_json()
    curve = Distribution.model_validate_json(written).curve(points=50)
    shares, times = zip(*curve, strict=True)
    assert list(shares) == sorted(shares)
    assert list(times) == sorted(times)
    assert curve[0][0] == 0.0
    assert shares[-3:] == pytest.approx((99.9, 99.9, 99.95))
    assert times[-3:] == pytest.approx((999, 1000, 1000), rel=0.002)


def test_the_longest_of_a_few_is_drawn_too() -> None:
    curve = Distribution.of([1.0, 2.0, 50.0]).curve()
    assert max(ms for _, ms in curve) == pytest.approx(50.0, rel=0.002)


def test_extremes_are_kept_within_what_can_be_said() -> None:
    found = Distribution.of([0.0, 1e9])
    assert found.count == 2
    assert found.longest == pytest.approx(3_600_000, rel=0.002)


def test_no_times_are_no_distribution() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Distribution.of([])


@pytest.mark.parametrize(
    ("count", "share", "tells"),
    [(10, 90, True), (9, 90, False), (100, 99, True), (99, 99, False), (1000, 99.9, True)],
)
def test_a_percentile_needs_times_beyond_it(count: int, share: float, tells: bool) -> None:
    assert Distribution.of([1.0] * count).tells(share) is tells


# -- schedules -------------------------------------------------------------------------------------


def test_visits_are_due_evenly() -> None:
    assert arrivals(4, 1.0) == pytest.approx([0, 0.25, 0.5, 0.75])


def test_a_ramp_has_half_the_visits_and_ends_at_the_full_rate() -> None:
    due = arrivals(100, 10.0, ramp_s=4.0)
    assert due == sorted(due)
    in_ramp = [at for at in due if at < 4.0]
    assert len(in_ramp) == pytest.approx(200, abs=1)
    assert sum(at < 2.0 for at in in_ramp) == pytest.approx(50, abs=1)
    assert sum(5.0 <= at < 6.0 for at in due) == pytest.approx(100, abs=1)


def test_visits_by_chance_come_at_the_rate_and_the_same_for_a_seed() -> None:
    due = arrivals(50, 100.0, seed=1)
    assert len(due) == pytest.approx(5000, rel=0.05)
    assert due == arrivals(50, 100.0, seed=1)
    assert due != arrivals(50, 100.0, seed=2)
    pauses = [later - earlier for earlier, later in pairwise(due)]
    mean = sum(pauses) / len(pauses)
    spread = (sum((pause - mean) ** 2 for pause in pauses) / len(pauses)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.1)  # exponential: its deviation is its mean


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_no_rate_is_no_schedule(rate: float) -> None:
    with pytest.raises(ValueError, match="not above 0"):
        arrivals(rate, 1.0)


# -- trees -----------------------------------------------------------------------------------------

BUSY = "import time; end = time.process_time() + {s}\nwhile time.process_time() < end: pass"
PARENT = (
    "import subprocess, sys\n"
    f"subprocess.run([sys.executable, '-c', {BUSY.format(s=0.3)!r}])\n"
    "print('waited', flush=True); sys.stdin.read()"
)


@pytest.mark.anyio
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
async def test_a_child_that_has_ended_counts_through_who_waited_for_it() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        await process.stdout.readline()
        tree = tree_of(process.pid)
        assert tree.processes == 1
        assert tree.cpu_s >= 0.28
        assert tree.pss > 1_000_000
        assert await until_quiet(process.pid, within_s=60.0)
        assert process.pid in descendants(os.getpid())
    finally:
        process.stdin.close()
        await process.wait()


@pytest.mark.anyio
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
async def test_a_tree_that_works_is_not_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.suite.tree.QUIET", 0.0)  # however little the others leave to it
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", BUSY.format(s=60))
    try:
        assert not await until_quiet(process.pid, within_s=2.0, every_s=0.5)
    finally:
        process.kill()
        await process.wait()
