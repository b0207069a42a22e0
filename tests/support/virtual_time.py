"""Virtual time: an event loop whose selector advances the clock instead of sleeping.

The idea is that of trio's `MockClock` with `autojump_threshold=0`: whenever every task is
blocked, the clock jumps to the next timer. A test of an hour takes milliseconds, and gives the
same result each time. When every task is blocked and there is no timer either, nothing can ever
happen again, and `Deadlock` says who waits where.

    def test_a_retry_waits() -> None:
        async def main() -> None:
            await retry()                       # sleeps for minutes
            assert asyncio.get_running_loop().time() == 480.0

        run(main, limit_s=600.0)                # or decorate an async test: @virtual()

A `VirtualWorld` stops between steps, for a Hypothesis state machine or a test that looks at
a moment:

    with VirtualWorld() as world:
        session = world.run(start())            # until it returns
        world.settle()                          # until all are blocked; time stands still
        world.advance(5.0)                      # five seconds pass

Not supported, and refused where that can be noticed: threads (`run_in_executor`, `to_thread`,
`call_soon_threadsafe` from another thread), sockets, pipes and subprocesses. They live in real
time, and the clock would run away before they answered.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import math
import selectors
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor
from contextvars import Context
from datetime import UTC, datetime, timedelta
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

from session_supervisor.clock import Clock

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LIMIT_S = 86_400.0
"""Virtual seconds that one `run` may take, where nobody says otherwise."""

MAX_STEPS = 200_000
"""Iterations of the loop at one moment after which it is said to spin."""


class VirtualTimeFailure(AssertionError):
    """What ran on virtual time did not behave. The message says which tasks wait where."""


class Deadlock(VirtualTimeFailure):
    """All tasks are blocked and no timer is set: somebody hangs."""


class TimeLimit(VirtualTimeFailure):
    """It takes longer, in virtual time, than it may."""


class Livelock(VirtualTimeFailure):
    """Tasks keep each other busy while time stands still."""


class TasksLeft(VirtualTimeFailure):
    """There are tasks at the end that nobody awaited."""


class Unhandled(VirtualTimeFailure):
    """A callback failed, or a task whose exception nobody retrieved."""


class NotOnVirtualTime(RuntimeError):
    """Something was used that lives in real time."""


class _Selector(selectors.SelectSelector):
    """Watches nothing; whenever it should sleep, it asks what to do instead."""

    def __init__(self, on_select: Callable[[float | None], None]) -> None:
        super().__init__()
        self._on_select = on_select
        self.sealed = False

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.sealed:
            raise NotOnVirtualTime("A file descriptor lives in real time: use a real event loop.")
        return super().register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._on_select(timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time, which begins at 0.0 seconds.

    Args:
        max_steps: Iterations at one moment after which `Livelock` is raised.
    """

    _scheduled: list[asyncio.TimerHandle]  # asyncio's heap of timers, which typeshed leaves out

    def __init__(self, *, max_steps: int = MAX_STEPS) -> None:
        self._now = 0.0
        self._steps = 0
        self._max_steps = max_steps
        self._thread = threading.get_ident()
        self.deadline = math.inf
        self.stop_at: float | None = None
        self.unhandled: list[dict[str, Any]] = []
        selector = _Selector(self._on_select)
        super().__init__(selector)
        selector.sealed = True  # from here on: its own pipe is in it
        self.set_exception_handler(lambda _loop, context: self.unhandled.append(context))

    def time(self) -> float:
        """Return virtual seconds."""
        return self._now

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Do as `call_soon`, and refuse to be called from another thread."""
        if threading.get_ident() != self._thread:
            raise NotOnVirtualTime("A thread cannot wake a loop on virtual time.")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Ts], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        """Refuse: a thread lives in real time."""
        raise NotOnVirtualTime(f"A thread for {func!r} lives in real time: use a real event loop.")

    async def _refuse(self, *_args: Any, **_options: Any) -> Any:
        raise NotOnVirtualTime(
            "Sockets, pipes and subprocesses live in real time: use a real event loop."
        )

    create_connection: Any = _refuse
    create_server: Any = _refuse
    create_unix_connection: Any = _refuse
    create_unix_server: Any = _refuse
    create_datagram_endpoint: Any = _refuse
    connect_read_pipe: Any = _refuse
    connect_write_pipe: Any = _refuse
    subprocess_exec: Any = _refuse
    subprocess_shell: Any = _refuse

    def _on_select(self, timeout: float | None) -> None:
        if timeout == 0:
            self._steps += 1
            if self._steps > self._max_steps:
                self._steps = 0
                raise Livelock(
                    self._report(f"{self._max_steps} iterations, and it is still t={self._now} s")
                )
            return
        self._steps = 0
        # The timer's own time, since `now + timeout` may miss it by a rounding error.
        when = self._scheduled[0].when() if timeout is not None else math.inf
        if self.stop_at is not None and when > self.stop_at:
            self._now = max(self._now, self.stop_at)
            self.stop()
        elif timeout is None:
            raise Deadlock(
                self._report(f"All tasks are blocked and no timer is set at t={self._now} s")
            )
        elif when > self.deadline:
            raise TimeLimit(
                self._report(f"It is t={self._now} s, and the next timer is after the limit")
            )
        else:
            self._now = when

    def _report(self, what: str) -> str:
        return f"{what}. The tasks:\n{describe(asyncio.all_tasks(self))}"


class VirtualWorld:
    """A loop on virtual time that is stepped from outside, and what must hold at its end.

    Use it as a context manager, or call `close`.

    Args:
        max_steps: Iterations at one moment after which `Livelock` is raised.
    """

    def __init__(self, *, max_steps: int = MAX_STEPS) -> None:
        self._runner = asyncio.Runner(
            loop_factory=functools.partial(VirtualTimeLoop, max_steps=max_steps)
        )
        loop = self._runner.get_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self.loop = loop

    @property
    def now(self) -> float:
        """Virtual seconds since the world began."""
        return self.loop.time()

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """Every task that is not done, in the order of their names."""
        return tuple(sorted(asyncio.all_tasks(self.loop), key=lambda task: task.get_name()))

    def run(self, coro: Coroutine[Any, Any, T], *, limit_s: float = LIMIT_S) -> T:
        """Run a coroutine until it returns; other tasks run along, and stay.

        Args:
            coro: What to run.
            limit_s: Virtual seconds that it may take.

        Raises:
            Deadlock: Nothing can happen any more.
            TimeLimit: It takes longer than it may.
            Livelock: Time does not pass.
            Unhandled: Something failed beside it.
        """
        self.loop.deadline = self.now + limit_s
        try:
            result = self._runner.run(coro)
        finally:
            self.loop.deadline = math.inf
        self._raise_unhandled()
        return result

    def start(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Make a task that begins with the next step."""
        return self.loop.create_task(coro, name=name)

    def settle(self) -> None:
        """Let everything happen that can happen without time passing.

        Raises:
            Livelock: That never ends.
            Unhandled: Something failed.
        """
        self.advance(0.0)

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that happens until then.

        Args:
            seconds: Virtual seconds.

        Raises:
            Livelock: Time does not pass.
            Unhandled: Something failed.
        """
        self.loop.stop_at = self.now + seconds
        try:
            self.loop.run_forever()
        finally:
            self.loop.stop_at = None
        self._raise_unhandled()

    def clock(self) -> Clock:
        """Return this world's time; its time of day begins at the year 2000, UTC."""
        return Clock(monotonic=self.loop.time, now=self._time_of_day)

    def close(self, *, failing: bool = False) -> None:
        """End the world: cancel what is left, close generators, close the loop.

        Args:
            failing: Whether there is a failure already, which the end must not hide.

        Raises:
            TasksLeft: Somebody left tasks behind.
            Unhandled: Something failed.
        """
        left = self.tasks
        report = describe(left)
        self.loop.deadline = self.now + LIMIT_S
        try:
            self._runner.close()
        except VirtualTimeFailure:  # a task that does not even end when it is cancelled
            if not failing:
                raise
        if failing:
            return
        if left:
            raise TasksLeft(f"Nobody awaited these tasks:\n{report}")
        self._raise_unhandled()

    def __enter__(self) -> VirtualWorld:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close(failing=exc_type is not None)

    def _time_of_day(self) -> datetime:
        return datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)

    def _raise_unhandled(self) -> None:
        contexts, self.loop.unhandled = self.loop.unhandled, []
        if not contexts:
            return
        messages = [f"{context['message']}: {context}" for context in contexts]
        cause = next((context["exception"] for context in contexts if "exception" in context), None)
        raise Unhandled("\n".join(messages)) from cause


def run(main: Callable[[], Coroutine[Any, Any, T]], *, limit_s: float = LIMIT_S) -> T:
    """Run a coroutine function in a world of its own, and leave nothing behind.

    Args:
        main: What to run.
        limit_s: Virtual seconds that it may take.

    Raises:
        Deadlock: Nothing can happen any more.
        TimeLimit: It takes longer than it may.
        Livelock: Time does not pass.
        TasksLeft: It left tasks behind.
        Unhandled: Something failed beside it.
    """
    with VirtualWorld() as world:
        return world.run(main(), limit_s=limit_s)


def virtual(
    *, limit_s: float = LIMIT_S
) -> Callable[[Callable[P, Coroutine[Any, Any, None]]], Callable[P, None]]:
    """Make a plain test of an async one, fixtures and Hypothesis arguments included.

    Args:
        limit_s: Virtual seconds that it may take.
    """

    def decorate(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
        @functools.wraps(test)
        def on_virtual_time(*args: P.args, **kwargs: P.kwargs) -> None:
            run(functools.partial(test, *args, **kwargs), limit_s=limit_s)

        return on_virtual_time

    return decorate


def describe(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """Return each task's name and where it is suspended, outermost call first."""
    lines = list[str]()
    for task in sorted(tasks, key=lambda task: task.get_name()):
        lines.append(f"  {task.get_name()}:")
        frames, awaited = _suspension(task.get_coro())
        summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
        for entry in summary.format():
            lines += [f"    {line.strip()}" for line in entry.splitlines()]
        if awaited is not None:
            lines.append(f"    waits for {awaited!r}")
    return "\n".join(lines) or "  none"


def _suspension(awaited: object) -> tuple[list[FrameType], object]:
    """Return the frames of nested coroutines and generators, and what the last waits for."""
    frames = list[FrameType]()
    while awaited is not None and not asyncio.isfuture(awaited):
        frame: FrameType | None = None
        inner: object
        if inspect.iscoroutine(awaited):
            frame, inner = awaited.cr_frame, awaited.cr_await
        elif inspect.isasyncgen(awaited):
            frame, inner = awaited.ag_frame, awaited.ag_await
        elif inspect.isgenerator(awaited):
            frame, inner = awaited.gi_frame, awaited.gi_yieldfrom
        else:  # the iterator of a future, or of an async generator's step: it names neither
            inner = next(
                (
                    each
                    for each in gc.get_referents(awaited)
                    if asyncio.isfuture(each) or inspect.isasyncgen(each)
                ),
                None,
            )
            if inner is None:
                return frames, awaited
        if frame is not None:
            frames.append(frame)
        awaited = inner
    return frames, awaited
