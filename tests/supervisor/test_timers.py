import asyncio

import pytest

from session_supervisor.timers import Timers, Wakeup
from tests.support.virtual_time import virtual


def test_timers_fire_in_order_of_their_time_and_once() -> None:
    timers = Timers()
    timers.set("b", 2.0)
    timers.set("a", 1.0)
    timers.set("b", 0.5)
    assert timers.next() == ("b", 0.5)
    assert timers.pop_due(0.4) is None
    assert [timers.pop_due(5.0) for _ in range(3)] == ["b", "a", None]
    timers.set("a", 1.0)
    timers.clear("a", "never set")
    assert timers.next() is None


@virtual()
async def test_a_bell_that_rang_before_is_heard() -> None:
    bell = Wakeup()
    bell.ring()
    await bell.wait(None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await bell.wait(None)
    asyncio.get_running_loop().call_later(1, bell.ring)
    await bell.wait(None)


@virtual()
async def test_a_sleeper_wakes_in_time() -> None:
    bell = Wakeup()
    now = asyncio.get_running_loop().time
    await bell.wait(now() + 3)
    assert now() == 3.0
    await bell.wait(now() - 1)
    assert now() == 3.0
