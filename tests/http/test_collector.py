import asyncio
import gc
import itertools
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_http import collector
from session_http.collector import DUE, calm_collector

pytestmark = pytest.mark.anyio


class Knot:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def collector_as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def survive() -> None:
    """Have the young looked at so often that everything is due."""
    for _ in range(DUE):
        gc.collect(0)


def old_garbage() -> asyncio.Event:
    """Leave a knot that is not looked at any more by itself; return what is set when it goes."""
    knot = Knot()
    gone = asyncio.Event()
    weakref.finalize(knot, gone.set)
    survive()
    return gone


async def test_what_became_old_is_found_when_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "LOOK_S", 0.01)
    monkeypatch.setattr(collector, "QUIET", 100.0)
    with calm_collector():
        gone = old_garbage()
        await gone.wait()


async def test_nothing_old_is_looked_at_while_there_is_much_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector, "LOOK_S", 0.01)
    monkeypatch.setattr(collector, "QUIET", 0.0)
    with calm_collector():
        gone = old_garbage()
        gc.collect(0)
        await asyncio.sleep(0.05)
        assert not gone.is_set()
        monkeypatch.setattr(collector, "OVERDUE", DUE)
        await gone.wait()


async def test_what_is_there_at_the_start_is_left_alone() -> None:
    with calm_collector():
        assert gc.get_freeze_count() > 0


@pytest.mark.parametrize("how_long", ["for a while", "always"])
async def test_a_server_that_waits_for_a_core_is_not_quiet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how_long: str
) -> None:
    waited = tmp_path / "schedstat"
    waited.write_text("0 0 0\n")
    monkeypatch.setattr(collector, "SCHEDULED", waited)
    monkeypatch.setattr(collector, "LOOK_S", 0.01)
    monkeypatch.setattr(collector, "QUIET", 100.0)

    async def starve() -> None:
        for seconds in itertools.count(10**6, 10**6):
            waited.write_text(f"0 {seconds * 1_000_000_000} 0\n")
            await asyncio.sleep(0.001)

    with calm_collector():
        starving = asyncio.ensure_future(starve())
        gone = old_garbage()
        await asyncio.sleep(0.05)
        assert not gone.is_set()
        if how_long == "for a while":
            starving.cancel()
        else:
            monkeypatch.setattr(collector, "LATE", DUE)
        await gone.wait()
        starving.cancel()


@pytest.mark.skipif(not collector.SCHEDULED.exists(), reason="Linux counts it")
def test_what_the_kernel_says_of_waiting_is_in_nanoseconds() -> None:
    computed, waited, _ = map(int, collector.SCHEDULED.read_text().split())
    assert waited >= 0
    assert 0.1 < computed * 1e-9 < 10 * time.process_time() + 1
