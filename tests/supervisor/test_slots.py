"""Who gets the next process when there are too few."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from session_supervisor.agents.port import Member, Tree
from session_supervisor.memory import Memory
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


@virtual()
async def test_what_no_session_needs_yet_has_a_slot_only_where_nobody_misses_it() -> None:
    slots = Slots(2)
    gone: list[str] = []
    assert slots.take_spare("one", lambda: gone.append("one"))
    await slots.take("a", owner="ann")
    assert not slots.take_spare("two", lambda: gone.append("two")), "there is no room"
    slots.rests("a", lambda: gone.append("a"))
    waiting = asyncio.create_task(slots.take("b", owner="ben"))
    await asyncio.sleep(0)
    assert gone == ["one"], "it goes before a session that has rested for longer"
    slots.give_back("one")
    await waiting
    slots.works("a")
    more = asyncio.create_task(slots.take("c", owner="ben"))
    await asyncio.sleep(0)
    slots.give_back("a")
    await more
    assert gone == ["one"]


@virtual()
async def test_a_slot_that_is_handed_over_keeps_its_measure_and_ends_the_waiting() -> None:
    memory = Memory(budget_bytes=100, process_bytes=10)
    slots = Slots(1, memory)
    assert slots.take_spare("spare", lambda: None)

    async def look() -> Tree:
        return Tree(members=(Member(pid=1, parent=0, name="cli", pss_bytes=70),))

    slots.lives("spare", look)
    await slots.measure()
    waiting = asyncio.create_task(slots.take("a", owner="ann"))
    await asyncio.sleep(0)
    assert slots.next_waiting() == "a"
    slots.hand_over("spare", "a", owner="ann")
    await waiting
    assert (slots.taken, slots.waiting, slots.memory_bytes) == (1, 0, 70)
    assert not slots.has("spare")
    slots.give_back("a")
    assert slots.memory_bytes == 0


@virtual()
async def test_where_memory_is_short_what_no_session_needs_goes_first() -> None:
    slots = Slots(10, Memory(budget_bytes=30, process_bytes=10))
    gone: list[str] = []
    await slots.take("a", owner="ann")
    slots.rests("a", lambda: gone.append("a"))
    assert slots.take_spare("one", lambda: gone.append("one"))
    assert slots.take_spare("two", lambda: gone.append("two"))
    assert not slots.take_spare("three", lambda: gone.append("three"))
    waiting = asyncio.create_task(slots.take("b", owner="ben"))
    await asyncio.sleep(0)
    assert gone == ["two"], "the latest, and no more than it takes"
    slots.give_back("two")
    await waiting
