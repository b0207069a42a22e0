"""Who may start a process, and who makes way."""

from __future__ import annotations

import asyncio

from session_supervisor.starts import Starts
from tests.support.virtual_time import virtual


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@virtual()
async def test_only_so_many_start_at_once_in_their_order() -> None:
    starts, order = Starts(2), list[int]()

    async def start(number: int) -> None:
        async with starts:
            order.append(number)
            assert starts.under_way <= 2
            await asyncio.sleep(1)

    await asyncio.gather(*(start(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]
    assert starts.under_way == 0


@virtual()
async def test_a_spare_start_waits_for_all_others_and_makes_way_for_one_that_needs_its_place() -> (
    None
):
    starts, told = Starts(2), list[str]()
    assert await starts.enter("a")
    assert not starts.begin_spare("s", lambda: told.append("s"))
    starts.leave()
    assert starts.begin_spare("s", lambda: told.append("s"))
    assert await starts.enter("b")
    assert not told, "there is room for both"
    waiting = asyncio.create_task(starts.enter("c"))
    await turn()
    assert told == ["s"]
    assert not waiting.done(), "it has to be gone first"
    starts.end_spare("s")
    assert await waiting
    starts.leave()
    starts.leave()
    assert starts.under_way == 0


@virtual()
async def test_who_needs_no_start_any_more_takes_no_place() -> None:
    starts = Starts(1)
    assert await starts.enter("a")
    waiting = asyncio.create_task(starts.enter("b"))
    await turn()
    starts.excuse("b")
    assert await waiting is False
    starts.leave()
    assert starts.under_way == 0
    assert await starts.enter("c")


@virtual()
async def test_who_is_cancelled_takes_no_place_with_them() -> None:
    starts = Starts(1)
    assert await starts.enter("a")
    waiting = [asyncio.create_task(starts.enter(one)) for one in "bc"]
    await turn()
    starts.leave()
    waiting[0].cancel()
    await turn()
    assert await waiting[1]
    starts.leave()
    assert starts.under_way == 0
