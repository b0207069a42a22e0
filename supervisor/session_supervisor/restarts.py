"""Restart intensity: how often a crashed process may come back, and how soon."""

from __future__ import annotations

from collections.abc import Callable

from session_supervisor.config import RestartPolicy


class RestartBudget:
    """The restarts of one session, against its policy.

    Args:
        policy: What is allowed.
        random: Returns a number in [0, 1), for the jitter.
    """

    def __init__(self, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self._policy = policy
        self._random = random
        self._recent: list[float] = []
        self._starting_s = 0.0
        self.total = 0

    def forgive(self) -> None:
        """Begin anew: what crashed before does not count any more."""
        self._recent.clear()

    def spend(self, now: float, *, starting_s: float = 0.0) -> float | None:
        """Take one restart for a crash.

        Args:
            now: Monotonic time of the crash, seconds.
            starting_s: Seconds of that for which a process was starting that did not come up. The
                window does not go on meanwhile: where each start hangs for as long as it may, its
                session would be tried for ever, and whoever asked it wait for ever.

        Returns:
            Seconds to wait before the restart, or None if there have been too many.
        """
        self._starting_s += starting_s
        now -= self._starting_s
        self._recent = [at for at in self._recent if at > now - self._policy.window_s]
        n = len(self._recent)
        if n >= self._policy.max_restarts:
            return None
        self._recent.append(now)
        self.total += 1
        # The exponent is capped so that a generous policy cannot overflow a float.
        delay = min(self._policy.max_delay_s, self._policy.base_delay_s * 2.0 ** min(n, 64))
        return delay * (1.0 + self._policy.jitter * self._random())
