import asyncio
from collections.abc import Callable

import pytest

from session_supervisor.timers import (
    LONG_STEP_S,
    TICK_S,
    WOKEN_AT_ONCE,
    Gate,
    Timers,
    Wakeup,
    is_due,
)
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


def test_a_timer_that_fired_a_tick_too_early_is_due() -> None:
    assert is_due(1.0, 1.0 - TICK_S / 2)
    assert not is_due(1.0, 1.0 - 2 * TICK_S)


@virtual()
async def test_who_is_woken_before_its_time_needs_no_other_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bell, loop = Wakeup(), asyncio.get_running_loop()
    alarms: list[float] = []
    call_at = loop.call_at

    def counted(when: float, callback: Callable[..., object], *args: object) -> object:
        alarms.append(when)
        return call_at(when, callback, *args)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "call_at", counted)
        for n in range(100):
            loop.call_soon(bell.ring)
            await bell.wait(10.0 + n)
        assert alarms == [10.0]
        await bell.wait(110.0)  # for the time that was given first
        assert loop.time() == 10.0
        loop.call_soon(bell.ring)
        await bell.wait(5_000.0)
        loop.call_soon(bell.ring)
        await bell.wait(20.0)
        assert alarms == [10.0, 5_000.0, 20.0]
    bell.mute()


@pytest.mark.parametrize(("gate", "most"), [(Gate(), WOKEN_AT_ONCE), (Gate(2), 2)])
@virtual()
async def test_of_many_who_are_woken_at_once_few_go_on_in_a_step_in_their_order(
    gate: Gate, most: int
) -> None:
    loop, woken = asyncio.get_running_loop(), list[int]()
    bells = [Wakeup(gate) for _ in range(5 * WOKEN_AT_ONCE + 1)]

    async def sleep(number: int) -> None:
        await bells[number].wait(None)
        woken.append(number)

    async with asyncio.TaskGroup() as sleepers:
        for number in range(len(bells)):
            sleepers.create_task(sleep(number))
        await asyncio.sleep(1)
        for bell in bells:
            bell.ring()
            bell.ring()  # again does no harm
        in_steps = list[int]()
        while len(woken) < len(bells):
            before = len(woken)
            await asyncio.sleep(0)
            in_steps.append(len(woken) - before)
    assert woken == list(range(len(bells)))
    assert max(in_steps) == most
    assert loop.time() == 1.0


@virtual()
async def test_as_long_as_steps_are_long_fewer_go_on_in_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, loop = Gate(), asyncio.get_running_loop()
    time, took = loop.time(), 2 * LONG_STEP_S

    async def let_on(number: int) -> list[int]:
        """Return how many go on in each step, out of so many more than there is room for."""
        nonlocal time
        for _ in range(gate.room):
            gate.answer(loop.create_future(), None, None)
        waiting = [loop.create_future() for _ in range(number)]
        for one in waiting:
            gate.answer(one, None, None)
        in_steps = list[int]()
        while sum(in_steps) < number:
            time += took
            before = sum(one.done() for one in waiting)
            await asyncio.sleep(0)
            in_steps.append(sum(one.done() for one in waiting) - before)
        return in_steps

    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: time)
        assert await let_on(9) == [4, 2, 1, 1, 1]
        took = LONG_STEP_S / 2
        assert await let_on(40) == [2, 3, 4, 5, 6, 7, 8, 5]


@virtual()
async def test_who_is_answered_at_a_gate_has_the_answer_or_the_error() -> None:
    gate, loop = Gate(), asyncio.get_running_loop()
    asked = [loop.create_future() for _ in range(2 * WOKEN_AT_ONCE)]
    for number, one in enumerate(asked):
        gate.answer(one, number, OSError(number) if number % 2 else None)
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert found[::2] == list(range(0, len(asked), 2))
    assert [error.args for error in found[1::2] if isinstance(error, OSError)] == [
        (number,) for number in range(1, len(asked), 2)
    ]


@virtual()
async def test_who_gives_up_waiting_at_a_gate_takes_nobody_elses_place() -> None:
    gate = Gate()
    bells = [Wakeup(gate) for _ in range(3 * WOKEN_AT_ONCE)]
    tasks = [asyncio.create_task(bell.wait(None)) for bell in bells]
    await asyncio.sleep(1)
    for bell in bells:
        bell.ring()
    gone = tasks[WOKEN_AT_ONCE : 2 * WOKEN_AT_ONCE]
    for task in gone:
        task.cancel()
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [task in gone for task in tasks]
    # And there is room again.
    task = asyncio.create_task(bells[0].wait(None))
    await asyncio.sleep(1)
    bells[0].ring()
    await task
