"""Time as a thread has it that nobody takes the processor from.

A bound in seconds fails on a busy machine, or is so wide that hardly anything fails it. Linux
counts for how long a thread could have run and did not: without that, seconds are those of the
code, however much else the machine does. What the thread sleeps or waits for counts, so this is for
waits that end within the process, not for other programs' work. On a machine that leaves it little,
time-outs that pass meanwhile look shorter: a bound then holds less, but it never fails in vain.
"""

from __future__ import annotations

import time
from pathlib import Path

_SCHEDULED = Path("/proc/thread-self/schedstat")
"""Nanoseconds that a thread ran, nanoseconds that it could have, and how often it began to."""


class OwnTime:
    """The thread's own seconds since this was made; where nobody counts them (macOS), none."""

    def __init__(self) -> None:
        self._began = _now_s()

    @property
    def seconds(self) -> float:
        """How many there were until now."""
        return _now_s() - self._began


def _now_s() -> float:
    try:
        waited_ns = int(_SCHEDULED.read_text().split()[1])
    except OSError:
        return 0.0
    return time.monotonic() - waited_ns / 1e9
