"""When Python looks for garbage in cycles: at what is new often, at everything when it is quiet.

By default it goes through everything that lives whenever a quarter of that is new. Events live for
as long as their log keeps them, so with a thousand streams that was a third of all time, and a
second at a time in which nobody was answered. Next to nothing of ours is garbage in cycles, and
what is waits for a moment in which nobody else does.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

YOUNG = (5_000, 1 << 30, 1 << 30)
"""New objects after which they are looked at, which takes a few milliseconds; and how often before
older ones are, and all: never by itself."""

LOOK_S = 1.0
"""Seconds between two looks whether it is quiet."""

QUIET = 0.1
"""Share of the time below which the server has something to do: it computes, or waits for a core.
Who waits for one uses little of it, and does not want to hold up what it is late with anyway."""

SCHEDULED = Path("/proc/self/schedstat")
"""What Linux says of the thread of the event loop: nanoseconds on a core, and waiting for one."""

DUE, LATE, OVERDUE = 20, 100, 1_000
"""Looks at new objects after which all are looked at: as soon as it is quiet, though it waits for a
core, and in any case."""


@contextmanager
def calm_collector() -> Generator[None]:
    """Have garbage in cycles looked for so, while the context is open.

    To be entered with the event loop running, once all is set up: what is there then stays, and is
    not looked at any more.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG)
    collector = _Collector()
    try:
        yield
    finally:
        collector.stop()
        gc.set_threshold(*before)
        gc.unfreeze()


class _Collector:
    """Has everything looked at when it is quiet."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin()

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _begin(self) -> None:
        self._began = self._loop.time()
        self._computed, self._waited = time.process_time(), _waited()
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        much = QUIET * (self._loop.time() - self._began)
        computed, waited = time.process_time() - self._computed, _waited() - self._waited
        due = OVERDUE if computed >= much else LATE if computed + waited >= much else DUE
        if gc.get_count()[1] >= due:
            gc.collect()
        self._begin()


def _waited() -> float:
    """Seconds for which the thread of the event loop has waited for a core."""
    try:
        return int(SCHEDULED.read_bytes().split()[1]) * 1e-9
    except (OSError, IndexError):  # not Linux, or a kernel that does not count it
        return 0.0
