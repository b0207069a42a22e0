"""What one owner may have at once, and what it has.

A place is taken before anything that waits, so that any number at once keep within the quota, and
given back exactly once, whatever becomes of what it was taken for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from session_supervisor.errors import QuotaExceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Most of what one owner may have at once; it comes with each request, and may change.

    Attributes:
        sessions: Conversations that have not ended; None: any number.
        turns: Turns that were asked for and whose end nobody has seen yet, queued ones and one-offs
            included; None: any number.
        budget_usd: What all its turns may cost, those of sessions that are gone included, in US
            dollars; None: any amount.
    """

    sessions: int | None = None
    turns: int | None = None
    budget_usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one owner has now; counted as in `Quota`. What it has spent is not given back."""

    sessions: int
    turns: int


class Place:
    """One of what an account counts, until it is given back."""

    __slots__ = ("_give_back",)

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def release(self) -> None:
        """Give it back; again does no harm."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class Account:
    """What one owner has; shared by all its sessions, and gone with the last."""

    def __init__(self) -> None:
        self._sessions = 0
        self._turns = 0

    @property
    def usage(self) -> Usage:
        """What there is now."""
        return Usage(sessions=self._sessions, turns=self._turns)

    def take_session(self, quota: Quota | None) -> Place:
        """Count one more conversation.

        Raises:
            QuotaExceeded: There are as many as there may be.
        """
        bound = None if quota is None else quota.sessions
        if bound is not None and self._sessions >= bound:
            raise QuotaExceeded("sessions", bound)
        self._sessions += 1
        return Place(self._session_over)

    def take_turn(self, quota: Quota | None) -> Place:
        """Count one more turn.

        Raises:
            QuotaExceeded: There are as many as there may be.
        """
        bound = None if quota is None else quota.turns
        if bound is not None and self._turns >= bound:
            raise QuotaExceeded("turns", bound)
        self._turns += 1
        return Place(self._turn_over)

    def _session_over(self) -> None:
        self._sessions -= 1

    def _turn_over(self) -> None:
        self._turns -= 1
