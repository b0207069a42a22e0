"""When an upstream says that it takes no more: an owner's new turns are refused until it will.

Each owner by itself: it reaches the upstream by its own credential. What was accepted before runs,
and if it succeeds, the upstream takes requests again, whatever it has said.
"""

from __future__ import annotations

from session_supervisor.agents.port import UpstreamLimit
from session_supervisor.clock import Clock
from session_supervisor.errors import UpstreamLimited

UNKNOWN_S = 60.0
"""Seconds to wait where the upstream does not say how long."""

LONGEST_S = 8 * 86_400.0
"""Seconds to wait at the most; the longest limits that there are last a week."""


class Pacing:
    """Which owners have to wait for their upstream.

    Args:
        clock: What time it is.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opens_at: dict[str, dict[str | None, float]] = {}
        """Of each owner, and each kind of limit, until when."""

    def hear(self, owner: str, limit: UpstreamLimit) -> None:
        """Take note of a limit. A warning slows nothing, nor does what other models are free of.

        Args:
            owner: Whose turn was told of it.
            limit: What was said.
        """
        if not limit.rejected or limit.of_one_model:
            return
        left_s = UNKNOWN_S
        if limit.resets_at is not None:
            left_s = (limit.resets_at - self._clock.now()).total_seconds()
        opens_at = self._clock.monotonic() + min(left_s, LONGEST_S)
        self._opens_at.setdefault(owner, {})[limit.kind] = opens_at

    def succeeded(self, owner: str) -> None:
        """Take note that a turn of an owner had its answer."""
        self._opens_at.pop(owner, None)

    def check(self, owner: str) -> None:
        """Refuse a new turn while the upstream takes none.

        Raises:
            UpstreamLimited: It says when it will.
        """
        limits = self._opens_at.get(owner)
        if limits is None:
            return
        left_s = max(limits.values()) - self._clock.monotonic()
        if left_s > 0:
            raise UpstreamLimited(left_s)
        del self._opens_at[owner]
