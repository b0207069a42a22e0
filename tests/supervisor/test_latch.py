from __future__ import annotations

import asyncio

import pytest

from session_supervisor.latch import Latch
from tests.support.virtual_time import virtual


@virtual()
async def test_everybody_goes_on_who_waited_and_who_comes_later() -> None:
    latch = Latch()
    waiting = [asyncio.get_running_loop().create_task(latch.wait()) for _ in range(3)]
    await asyncio.sleep(1)
    assert not latch.is_set()
    assert not any(task.done() for task in waiting)
    latch.set()
    latch.set()
    await asyncio.gather(*waiting)
    await latch.wait()
    assert latch.is_set()


@virtual()
async def test_one_who_gives_up_waiting_takes_nobody_along() -> None:
    latch = Latch()
    first, second = [asyncio.get_running_loop().create_task(latch.wait()) for _ in range(2)]
    await asyncio.sleep(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done()
    latch.set()
    await second
