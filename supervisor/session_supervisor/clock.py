"""Time as a parameter, so that tests can run on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """The two times that a supervisor needs.

    Attributes:
        monotonic: Seconds on the clock that the event loop's timers run on.
        now: The time of day, UTC.
    """

    monotonic: Callable[[], float] = _loop_time
    now: Callable[[], datetime] = _utc_now
