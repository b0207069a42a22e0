"""A load that goes on and on: does the server stay as it is?

Mixed visits come by chance. Meanwhile the server's memory, descriptors, threads and tasks are
sampled; of a server that was not started here only its answers are known.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Memory
from bench.suite.display import Display
from bench.suite.histogram import Distribution
from bench.suite.load import Books, Load, Times, Visit, Visiting
from bench.suite.results import Minute, Sample, Soak
from bench.suite.scenarios import SCENARIOS, Asking, mixed, probe, wake
from bench.suite.schedule import arrivals
from bench.suite.targets import Target, lost
from bench.suite.tree import tree_of
from bench.suite.wire import Failed

EVERY_S = 5.0
"""Seconds between two samples."""

PARTS = 30
"""Into which the time is divided for what the answers were like."""

SETTLED = 1 / 6
"""Share of the time at the beginning that is left out of trends: caches fill, pools grow."""

LOOKS_HZ = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked for.

    Attributes:
        seconds: How long.
        rate: Visits due in a second.
        asking: What is asked.
        seed: Of chance.
    """

    seconds: float = 1_800.0
    rate: float = 0.5
    asking: Asking
    seed: int = 1


class Soaking:
    """One soak; it can be asked for what it has at any time, also when it was ended early.

    Args:
        wanted: What is asked for.
        target: The server.
        tasks: The file into which it writes how many tasks it has; None: it does not.
    """

    def __init__(self, wanted: Wanted, target: Target, tasks: Path | None) -> None:
        self._wanted = wanted
        self._target = target
        self._tasks = tasks
        self._samples: list[Sample] = []
        self._ends: list[tuple[float, bool, float | None]] = []  # when, whether well, first text
        self._began = time.monotonic()
        self._cpu_s: float | None = None
        self._books = Books()
        self.gone: str | None = None

    async def run(self, display: Display) -> None:
        """Carry it out."""
        target, wanted = self._target, self._wanted
        client = target.client()
        load = Load(
            client,
            self._visiting(),
            Times(ramp_s=0.0, warmup_s=0.0, measured_s=wanted.seconds),
        )
        self._books = load.books
        self._began = time.monotonic()
        before = None if target.pid is None else tree_of(target.pid, memory=False).cpu_s
        over = asyncio.Event()
        due = arrivals(wanted.rate, wanted.seconds, seed=wanted.seed)
        loading = asyncio.create_task(load.open(due))
        beside = [
            asyncio.create_task(self._sampled(display, over)),
            asyncio.create_task(self._looks(over)),
        ]
        try:
            await asyncio.wait([loading, beside[0]], return_when=asyncio.FIRST_COMPLETED)
            if self.gone is None:
                await loading
        finally:
            over.set()
            for task in (loading, *beside):
                if task is not loading or self.gone is not None:
                    task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if not loading.done():
                    loading.cancel()
                    await loading
            await asyncio.gather(*beside, return_exceptions=True)
            client.close()
            if before is not None and target.pid is not None:
                self._cpu_s = tree_of(target.pid, memory=False).cpu_s - before

    def result(self) -> Soak:
        """Return what was measured."""
        lasted = min(time.monotonic() - self._began, self._wanted.seconds)
        if self._ends or self._samples:
            last = max([end for end, _, _ in self._ends] + [one.at_s for one in self._samples])
            lasted = min(lasted, max(last, EVERY_S))
        books = self._books
        part = self._wanted.seconds / PARTS
        return Soak(
            target=self._target.name,
            rate=self._wanted.rate,
            seconds=lasted,
            settled_s=lasted * SETTLED,
            visits=books.visits,
            completed=books.completed,
            errors=dict(books.errors),
            times={what: Distribution.of(times) for what, times in books.times.items()},
            cpu_share=None if self._cpu_s is None else self._cpu_s / max(lasted, 1e-9),
            samples=self._samples,
            minutes=[self._part(n * part, part) for n in range(PARTS) if n * part < lasted],
        )

    def _visiting(self) -> Visiting:
        """Return what visitors do: anything, and a wake where the server can hibernate."""
        asking, seed = self._wanted.asking, self._wanted.seed
        kinds = [mixed(asking, seed)]
        if SCENARIOS["wake"].needs in self._target.paths:
            kinds.append(wake(asking, seed))
        chance = random.Random(seed)

        async def visiting(visit: Visit) -> None:
            (kind,) = chance.choices(kinds, weights=(5, 1)[: len(kinds)])
            times = _Times(visit)
            try:
                await kind(times)
            except Failed:
                self._ends.append((time.monotonic() - self._began, False, None))
                raise
            self._ends.append((time.monotonic() - self._began, True, times.first_ms))

        return visiting

    async def _sampled(self, display: Display, over: asyncio.Event) -> None:
        """Sample the server for as long as it is there."""
        missed = 0
        while not over.is_set():
            at = time.monotonic() - self._began
            display.doing(
                f"soak: {self._target.name}, {at / 60:.0f} of "
                f"{self._wanted.seconds / 60:.0f} minutes"
            )
            display.at(at)
            if self._target.pid is not None:
                with contextlib.suppress(OSError, KeyError):
                    self._samples.append(await asyncio.to_thread(self._sample, at))
            why = await lost(self._target)
            missed = missed + 1 if why else 0
            if why is not None and (missed >= 3 or "ended" in why):
                self.gone = why
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await over.wait()

    def _sample(self, at_s: float) -> Sample:
        pid = self._target.pid
        assert pid is not None
        if self._tasks is not None:
            os.kill(pid, signal.SIGUSR2)  # answered into the file by the next sample
        memory, tree = Memory.of(pid), tree_of(pid)
        return Sample(
            at_s=at_s,
            own=memory.own,
            pss=memory.pss,
            tree_pss=tree.pss,
            processes=tree.processes,
            descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
            tasks=self._number_of_tasks(),
        )

    def _number_of_tasks(self) -> int | None:
        if self._tasks is None or not self._tasks.exists():
            return None
        told = self._tasks.read_text(encoding="ascii")
        return int(told) if told.isdigit() else None

    async def _looks(self, over: asyncio.Event) -> None:
        client = self._target.client(timeout_s=10.0)
        try:
            await probe(
                lambda due_ns: Visit(client, self._books, due_ns, counts=True), LOOKS_HZ, over
            )
        finally:
            client.close()

    def _part(self, begin: float, length: float) -> Minute:
        mine = [one for one in self._ends if begin <= one[0] < begin + length]
        first = array("d", [ms for _, _, ms in mine if ms is not None])
        times = Distribution.of(first) if first else None
        return Minute(
            at_s=begin,
            completed=sum(well for _, well, _ in mine),
            failed=sum(not well for _, well, _ in mine),
            p50=None if times is None else times.p50,
            p99=None if times is None else times.p99,
        )


class _Times(Visit):
    """A visit that also keeps its own time to first text."""

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit.client, visit.books, visit.due_ns, counts=True)
        self.first_ms: float | None = None

    def note(self, what: str, ns: int) -> None:
        super().note(what, ns)
        if what == "first text" and self.first_ms is None:
            self.first_ms = ns / 1e6


def line_of(soak: Soak, trends: Sequence[str]) -> Sequence[str]:
    """Return the measurements in lines."""
    errors = "".join(f"  {code} x{count}" for code, count in soak.errors.items())
    head = (
        f"soak: {soak.seconds / 60:.1f} minutes of {soak.rate:g} visits/s on {soak.target}: "
        f"{soak.completed:,} of {soak.visits:,} visits completed{errors}"
    )
    return [head, *(f"  {one}" for one in trends)]
