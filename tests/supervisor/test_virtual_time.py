"""Virtual time is what many tests stand on, so it is tested itself."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.virtual_time import (
    Deadlock,
    Livelock,
    NotOnVirtualTime,
    TasksLeft,
    TimeLimit,
    Unhandled,
    VirtualWorld,
    run,
    virtual,
)


async def _forever() -> None:
    await asyncio.Event().wait()


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_day_of_sleep_takes_no_real_time() -> None:
    began = time.monotonic()
    run(lambda: asyncio.sleep(86_000))
    assert time.monotonic() - began < 60.0


@virtual()
async def test_the_clock_shows_exactly_the_time_of_the_timer_that_fires() -> None:
    assert now() == 0.0
    for delay in (0.1, 0.2, 1 / 3, 1000.1, 1e-5, 1 / 7):
        due = now() + delay
        await asyncio.sleep(delay)
        assert now() == due


@given(st.lists(st.integers(0, 100), max_size=30))
def test_timers_fire_in_their_order_and_in_the_same_order_each_time(tenths: list[int]) -> None:
    delays = [each / 10 for each in tenths]

    async def main() -> list[tuple[float, int]]:
        fired: list[tuple[float, int]] = []

        async def sleep(index: int, delay: float) -> None:
            await asyncio.sleep(delay)
            fired.append((now(), index))

        async with asyncio.TaskGroup() as tasks:
            for index, delay in enumerate(delays):
                tasks.create_task(sleep(index, delay))
        return fired

    first = run(main)
    assert [at for at, _ in first] == sorted(delays)
    assert run(main) == first


def test_a_deadlock_reaches_the_caller_and_names_every_task_and_where_it_waits() -> None:
    async def never() -> AsyncIterator[None]:
        await _forever()
        yield

    async def read() -> None:
        async for _ in never():
            pass

    async def main() -> None:
        await asyncio.sleep(5.0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read(), name="the reader")

    with pytest.raises(
        Deadlock, match=r"(?s)t=5\.0 s.*the reader:.*in read.*in never.*in _forever"
    ) as raised:
        run(main)
    assert "in main" in str(raised.value)


def test_a_deadlock_is_told_also_when_a_task_does_not_even_end_when_it_is_cancelled() -> None:
    async def main() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(Deadlock, match=r"t=0\.0 s"):
        run(main)


def test_what_takes_longer_than_its_limit_fails() -> None:
    run(lambda: asyncio.sleep(10.0), limit_s=10.0)
    with pytest.raises(TimeLimit, match="sleep"):
        run(lambda: asyncio.sleep(10.1), limit_s=10.0)


def test_what_spins_without_time_passing_fails() -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110  # that is the point
            await asyncio.sleep(0)

    with pytest.raises(Livelock, match="in spin"), VirtualWorld(max_steps=1000) as world:
        world.run(spin())


def test_a_task_that_nobody_awaited_fails_the_run() -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(1.0), name="forgotten")
        await asyncio.sleep(0)
        assert not task.done()

    with pytest.raises(TasksLeft, match="forgotten"):
        run(main)


def test_an_error_that_nobody_retrieved_fails_the_run() -> None:
    async def fail() -> None:
        raise ValueError("unseen")

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task

    with pytest.raises(Unhandled, match="unseen"):
        run(main)


def test_the_failure_of_the_test_itself_is_not_hidden_by_what_it_left_behind() -> None:
    async def main() -> None:
        task = asyncio.create_task(asyncio.sleep(1.0))
        await asyncio.sleep(0)
        raise ValueError(f"the cause, with {task}")

    with pytest.raises(ValueError, match="the cause"):
        run(main)


def test_generators_that_were_left_are_closed_at_the_end() -> None:
    closed: list[bool] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(1.0)
            closed.append(True)

    kept = numbers()

    async def main() -> None:
        assert await anext(kept) == 1

    run(main)
    assert closed == [True]


@pytest.mark.parametrize(
    "use",
    [
        lambda: asyncio.to_thread(time.sleep, 0),
        lambda: asyncio.open_connection("127.0.0.1", 9),
        lambda: asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.create_subprocess_shell("true"),
    ],
    ids=["thread", "client", "server", "exec", "shell"],
)
def test_what_lives_in_real_time_is_refused(use: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    with pytest.raises(NotOnVirtualTime):
        run(use)


def test_another_thread_cannot_wake_the_loop() -> None:
    refused: list[BaseException] = []

    def wake(loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(print)
        except NotOnVirtualTime as error:
            refused.append(error)

    async def main() -> None:
        thread = threading.Thread(target=wake, args=[asyncio.get_running_loop()])
        thread.start()
        thread.join()

    run(main)
    assert refused


@virtual()
async def test_timeouts_of_asyncio_and_anyio_are_exact() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(7.0):
            await asyncio.Event().wait()
    assert now() == 7.0
    with anyio.move_on_after(3.0) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
    assert scope.cancelled_caught
    assert now() == 10.0


def test_settling_runs_all_that_can_run_and_lets_no_time_pass() -> None:
    with VirtualWorld() as world:
        event = asyncio.Event()
        order: list[str] = []

        async def wait() -> None:
            await event.wait()
            order.append("woken")
            await asyncio.sleep(0)
            order.append("again")
            await asyncio.sleep(2.0)
            order.append("later")

        task = world.start(wait())
        world.settle()
        assert order == []
        event.set()
        world.settle()
        assert order == ["woken", "again"]
        assert world.now == 0.0
        assert world.tasks == (task,)
        world.run(asyncio.wait_for(task, 10.0))
        assert order[-1] == "later"
        assert world.now == 2.0


def test_advancing_stops_at_the_moment_after_what_is_due_then() -> None:
    with VirtualWorld() as world:
        fired: list[float] = []

        async def tick() -> None:
            while len(fired) < 10:
                await asyncio.sleep(1.0)
                fired.append(now())

        _ = world.start(tick())
        world.advance(3.0)
        assert fired == [1.0, 2.0, 3.0]
        world.advance(0.5)
        assert world.now == 3.5
        assert len(fired) == 3
        world.advance(100.0)
        assert world.now == 103.5
        assert len(fired) == 10


def test_other_tasks_run_along_with_what_is_run() -> None:
    with VirtualWorld() as world:
        done = world.start(asyncio.sleep(1.0, "done"))
        world.run(asyncio.sleep(2.0))
        assert done.result() == "done"


def test_an_error_between_the_steps_fails_the_step() -> None:
    def fail() -> None:
        raise ValueError("in a callback")

    with VirtualWorld() as world:
        world.loop.call_later(1.0, fail)
        world.advance(0.9)
        with pytest.raises(Unhandled, match="in a callback"):
            world.advance(0.2)


def test_the_time_of_day_moves_with_the_clock() -> None:
    with VirtualWorld() as world:
        clock = world.clock()
        world.advance(90.0)
        assert clock.monotonic() == 90.0
        assert clock.now() == datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=90.0)


class Alarms(RuleBasedStateMachine):
    """A world can be stepped by a state machine: alarms ring when the model says they do."""

    def __init__(self) -> None:
        super().__init__()
        self.world = VirtualWorld()
        self.due: list[float] = []
        self.rung: list[float] = []

    @rule(delay=st.integers(0, 50))
    def set_alarm(self, delay: int) -> None:
        async def ring() -> None:
            await asyncio.sleep(delay)
            self.rung.append(now())

        self.due.append(self.world.now + delay)
        _ = self.world.start(ring())
        self.world.settle()

    @rule(seconds=st.integers(0, 30))
    def pass_time(self, seconds: int) -> None:
        self.world.advance(seconds)

    @rule()
    def wait_for_all(self) -> None:
        async def main() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*tasks)

        self.world.run(main())

    @invariant()
    def exactly_those_rang_that_were_due(self) -> None:
        assert self.rung == sorted(due for due in self.due if due <= self.world.now)

    def teardown(self) -> None:
        self.wait_for_all()
        self.world.close()


TestAlarms = Alarms.TestCase
