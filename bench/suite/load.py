"""Load: visits that follow a schedule (open), one another (closed), or come all at once (burst)."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from bench.suite.reading import Said
from bench.suite.wire import Client, Failed

SECOND_NS = 1_000_000_000

MOST_AT_ONCE = 1_024
"""Visits of an open load that run at the same time; a further one waits, and that counts."""

DRAIN_S = 20.0
"""Seconds that visits may take after the last began; what is not over then is an error."""


@dataclass(slots=True)
class Books:
    """What was measured; times are in milliseconds.

    Attributes:
        times: By what was timed.
        errors: Visits that failed, by code.
        visits: That count: they were due in the measured time.
        completed: Of those, without an error.
        finished: Visits that ended well, warm-up included: those that processor time was for.
        work: Visits done in the measured time; one that lies half in it counts half, so that the
            rate is right however long a visit is.
        events: That arrived, warm-up included.
        deltas: Of them, pieces of text.
        late: How long after it was due each visit began: the client's own lateness.
        opened: Ids of sessions that visits left open, for who runs the load to close.
    """

    times: dict[str, array[float]] = field(default_factory=dict[str, "array[float]"])
    errors: Counter[str] = field(default_factory=Counter[str])
    visits: int = 0
    completed: int = 0
    finished: int = 0
    work: float = 0.0
    events: int = 0
    deltas: int = 0
    late: array[float] = field(default_factory=lambda: array("d"))
    opened: list[str] = field(default_factory=list[str])

    def note(self, what: str, ms: float) -> None:
        """Take a time in."""
        if what not in self.times:
            self.times[what] = array("d")
        self.times[what].append(ms)


class Visit:
    """One visitor.

    Args:
        client: Of the server that is visited.
        books: Where times go.
        due_ns: When the visit should begin.
        counts: Whether it is measured, or warms up.
    """

    def __init__(self, client: Client, books: Books, due_ns: int, *, counts: bool) -> None:
        self.client = client
        self.due_ns = due_ns
        self.books = books
        self._counts = counts

    def note(self, what: str, ns: int) -> None:
        """Take in how long something took."""
        if self._counts:
            self.books.note(what, ns / 1e6)

    def failed(self, code: str) -> None:
        """Count something that failed beside what the visit is for."""
        if self._counts:
            self.books.errors[code] += 1

    def leave_open(self, session_id: str) -> None:
        """Leave a session to who runs the load."""
        self.books.opened.append(session_id)

    def heard(self, said: Said, *, lags: str = "lag") -> None:
        """Take in what a stream had."""
        self.books.events += said.events
        self.books.deltas += said.deltas
        for lag in said.lags_ns:
            self.note(lags, lag)


Visiting: TypeAlias = Callable[[Visit], Awaitable[None]]
"""What a visitor does; it raises `Failed` if that cannot be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long a load lasts, in seconds.

    Attributes:
        ramp_s: It grows evenly from nothing.
        warmup_s: It is full, but not measured yet.
        measured_s: It is measured.
    """

    ramp_s: float
    warmup_s: float
    measured_s: float

    @property
    def all_s(self) -> float:
        """All of it."""
        return self.ramp_s + self.warmup_s + self.measured_s


class Load:
    """One load on one server.

    Args:
        client: Of the server.
        visiting: What visitors do.
        times: How long.
    """

    def __init__(self, client: Client, visiting: Visiting, times: Times) -> None:
        self.books = Books()
        self._client = client
        self._visiting = visiting
        self._times = times
        self._began = 0
        self._from = 0
        self._to = 0

    async def closed(self, users: int) -> Books:
        """Have so many users visit, each again as soon as its visit is over."""
        self._begin()
        stop = self._began + round(self._times.all_s * SECOND_NS)

        async def user(number: int) -> None:
            await asyncio.sleep(self._times.ramp_s * number / users)
            while (now := time.monotonic_ns()) < stop:
                await self._visit(now)

        await self._all([user(number) for number in range(users)], self._times.all_s)
        return self.books

    async def open(self, due: Sequence[float]) -> Books:
        """Have a visit begin at each of these seconds, whether others are over or not."""
        self._begin()
        room = asyncio.Semaphore(MOST_AT_ONCE)

        async def visitor(due_ns: int) -> None:
            async with room:
                await self._visit(due_ns)

        async def arrive() -> None:
            async with asyncio.TaskGroup() as visitors:
                for one in due:
                    due_ns = self._began + round(one * SECOND_NS)
                    await asyncio.sleep((due_ns - time.monotonic_ns()) / SECOND_NS)
                    visitors.create_task(visitor(due_ns))

        await self._all([arrive()], self._times.all_s)
        return self.books

    async def burst(self, number: int) -> Books:
        """Have so many visits begin at the same moment, and wait for their end."""
        self._begin(at_once=True)
        now = time.monotonic_ns()
        await self._all([self._visit(now) for _ in range(number)], self._times.measured_s)
        return self.books

    def _begin(self, *, at_once: bool = False) -> None:
        self._began = self._from = time.monotonic_ns()
        if not at_once:
            self._from += round((self._times.ramp_s + self._times.warmup_s) * SECOND_NS)
        self._to = self._from + round(self._times.measured_s * SECOND_NS)

    async def _all(self, work: Sequence[Awaitable[None]], seconds: float) -> None:
        """Do all of it; what is not over in time is given up, and counted as it ends."""
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            await asyncio.wait(tasks, timeout=seconds + DRAIN_S)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _visit(self, due_ns: int) -> None:
        counts = self._from <= due_ns < self._to
        books = self.books
        if counts:
            books.visits += 1
            books.late.append(max(time.monotonic_ns() - due_ns, 0) / 1e6)
        try:
            await self._visiting(Visit(self._client, books, due_ns, counts=counts))
        except Failed as failure:
            if counts:
                books.errors[failure.code] += 1
            await asyncio.sleep(0.01)  # a server that refuses at once is not to be asked in a spin
        except asyncio.CancelledError:
            if counts:
                books.errors["not over in time"] += 1
            raise
        else:
            books.completed += counts
            books.finished += 1
            books.work += _share(due_ns, time.monotonic_ns(), self._from, self._to)


def _share(begin: int, end: int, first: int, last: int) -> float:
    """Return how much of the time from `begin` to `end` lies between `first` and `last`."""
    return max(min(end, last) - max(begin, first), 0) / max(end - begin, 1)
