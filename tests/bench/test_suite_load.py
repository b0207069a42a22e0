"""The load models: who comes when, what counts, and that a slow server cannot hide it.

On virtual time, but where the client itself stands still: what else runs on the machine is late
for nothing here.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest
from bench.suite.load import Load, Times, Visit
from bench.suite.schedule import arrivals
from bench.suite.wire import Client, Failed

from tests.support.virtual_time import virtual

pytestmark = pytest.mark.usefixtures("loop_clock")

NOBODY = Client("http://127.0.0.1:9")


def times(measured_s: float, *, warmup_s: float = 0.0, ramp_s: float = 0.0) -> Times:
    return Times(ramp_s=ramp_s, warmup_s=warmup_s, measured_s=measured_s)


def now_ns() -> int:
    return round(asyncio.get_running_loop().time() * 1e9)


@pytest.fixture
def loop_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a load look at the loop's clock, which may be virtual."""
    monkeypatch.setattr("bench.suite.load.time", SimpleNamespace(monotonic_ns=now_ns))


class Stalling:
    """A server that answers at once, but stands still for a while."""

    def __init__(self, first_s: float, last_s: float) -> None:
        self._begin = asyncio.get_running_loop().time() + first_s
        self._end = self._begin + last_s - first_s

    async def __call__(self, visit: Visit) -> None:
        loop = asyncio.get_running_loop()
        if self._begin <= loop.time() < self._end:
            await asyncio.sleep(self._end - loop.time())
        visit.note("total", now_ns() - visit.due_ns)


@virtual()
async def test_a_closed_load_never_has_more_visits_than_users() -> None:
    running = most = 0

    async def visiting(_visit: Visit) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    books = await Load(NOBODY, visiting, times(0.4)).closed(3)
    assert most == 3
    assert books.visits == books.completed
    assert books.completed == 60


@virtual()
async def test_an_open_load_shows_a_standstill_that_a_closed_one_omits() -> None:
    # The server stands still for 0.4 of 0.8 s. Of the visits that were due, half had to wait.
    stalling = Stalling(0.2, 0.6)

    async def then_pause(visit: Visit) -> None:
        await stalling(visit)
        await asyncio.sleep(0.01)

    closed = await Load(NOBODY, then_pause, times(0.8)).closed(1)
    stalling = Stalling(0.2, 0.6)
    opened = await Load(NOBODY, stalling, times(0.8)).open(arrivals(100, 0.8))
    slow_closed = sum(ms > 50 for ms in closed.times["total"])
    slow_open = sum(ms > 50 for ms in opened.times["total"])
    assert slow_closed <= 1
    assert slow_open >= 25
    assert opened.visits == 80


@pytest.mark.anyio
async def test_a_visit_that_the_client_begins_late_counts_from_when_it_was_due() -> None:
    async def visiting(visit: Visit) -> None:
        visit.note("total", now_ns() - visit.due_ns)

    async def blocking() -> None:
        await asyncio.sleep(0.05)
        time.sleep(0.2)  # noqa: ASYNC251 # the client itself stands still

    load = Load(NOBODY, visiting, times(0.4))
    books, _ = await asyncio.gather(load.open(arrivals(50, 0.4)), blocking())
    assert max(books.times["total"]) > 120
    assert max(books.late) > 120


@virtual()
async def test_only_what_was_due_in_the_measured_time_counts() -> None:
    async def visiting(visit: Visit) -> None:
        visit.note("total", 1_000_000)

    load = Load(NOBODY, visiting, times(0.2, warmup_s=0.2, ramp_s=0.2))
    due = [n / 100 for n in range(60)]
    books = await load.open(due)
    assert books.visits == books.completed == len(books.times["total"]) == 20
    assert books.finished == 60


@virtual()
async def test_a_rate_is_right_for_visits_longer_than_the_measured_time() -> None:
    async def visiting(_visit: Visit) -> None:
        await asyncio.sleep(0.5)

    books = await Load(NOBODY, visiting, times(0.25)).closed(4)
    assert books.work / 0.25 == pytest.approx(4 / 0.5, rel=0.1)


@virtual()
async def test_failures_are_counted_by_code_and_the_load_goes_on() -> None:
    turn = 0

    async def visiting(_visit: Visit) -> None:
        nonlocal turn
        turn += 1
        if turn % 2:
            raise Failed("429 queue_full")

    books = await Load(NOBODY, visiting, times(0.2)).open(arrivals(50, 0.2))
    assert books.errors == {"429 queue_full": 5}
    assert books.completed == 5


@virtual()
async def test_what_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.suite.load.DRAIN_S", 0.1)

    async def visiting(_visit: Visit) -> None:
        await asyncio.get_running_loop().create_future()

    books = await Load(NOBODY, visiting, times(0.1)).closed(2)
    assert books.errors == {"not over in time": 2}


@virtual()
async def test_a_mistake_of_ours_is_no_error_of_the_server() -> None:
    async def visiting(_visit: Visit) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        await Load(NOBODY, visiting, times(0.1)).closed(1)


@virtual()
async def test_a_burst_comes_at_once() -> None:
    began: list[int] = []

    async def visiting(visit: Visit) -> None:
        began.append(visit.due_ns)
        await asyncio.sleep(0.01)

    books = await Load(NOBODY, visiting, times(1.0)).burst(20)
    assert len(set(began)) == 1
    assert books.completed == 20
