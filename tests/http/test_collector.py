import asyncio
import gc
import weakref
from collections.abc import Iterator

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
