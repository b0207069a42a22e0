"""Who gets the next process when there are too few."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from session_supervisor.slots import Slots
from tests.support.virtual_time import virtual


@given(
    bound=st.integers(1, 4),
    coming=st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    leaving=st.lists(st.integers(0, 3), max_size=12),
)
@virtual()
async def test_the_next_slot_goes_to_the_owner_with_the_fewest(
    bound: int, coming: list[str], leaving: list[int]
) -> None:
    slots = Slots(bound)
    tasks: dict[str, asyncio.Task[None]] = {}
    holding: list[str] = []
    waiting: list[str] = []
    for number, owner in enumerate(coming):
        name = f"{owner}{number}"
        tasks[name] = asyncio.create_task(slots.take(name, owner=owner))
        (holding if len(holding) < bound else waiting).append(name)
        await asyncio.sleep(0)
    for index in leaving:
        slots.give_back(holding.pop(index % len(holding)))
        if waiting:
            # As many as it has, and among equals the first that came.
            fewest = min(waiting, key=lambda one: sum(one[0] == has[0] for has in holding))
            waiting.remove(fewest)
            holding.append(fewest)
        for _ in range(3):
            await asyncio.sleep(0)
        assert {name for name, task in tasks.items() if task.done()} >= set(holding)
        assert not any(tasks[name].done() for name in waiting)
        if not holding:
            break
    for name in waiting:
        tasks[name].cancel()
    await asyncio.wait(tasks.values())
    assert slots.waiting == 0


@virtual()
async def test_one_owner_s_many_keep_nobody_waiting_for_long() -> None:
    slots = Slots(2)
    many = [asyncio.create_task(slots.take(f"a{one}", owner="ann")) for one in range(10)]
    await asyncio.sleep(0)
    ben = asyncio.create_task(slots.take("b", owner="ben"))
    await asyncio.sleep(0)
    slots.give_back("a0")
    await asyncio.wait_for(ben, 1)
    assert [one.done() for one in many] == [True, True] + [False] * 8
    for one in many[2:]:
        one.cancel()
    await asyncio.wait(many)
