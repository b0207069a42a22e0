"""The port `Store`: where a session's log is kept.

A store holds one append-only log for each session, and lets one writer at a time extend it.
`acquire` makes the caller that writer and gives it a fence, a number that grows; an append with
an older fence is refused, so that a writer which was presumed dead can do no harm. (Leslie
Lamport's and Martin Kleppmann's fencing tokens.) `expected_seq` catches a writer that is wrong
about where the log ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from session_supervisor.events import Event


class Store(Protocol):
    """Append-only, fenced logs, one for each session."""

    async def acquire(self, session_id: str) -> int:
        """Become the session's only writer, and make its log if there is none.

        Returns:
            The fence to write with. Every earlier one is void.
        """
        ...

    async def append(
        self, session_id: str, *, fence: int, expected_seq: int, events: Sequence[Event]
    ) -> None:
        """Add events to the end of a log, all or none; they are safe when this returns.

        Args:
            session_id: Whose log.
            fence: From `acquire`.
            expected_seq: Sequence number of the last event in the log, 0 for an empty one.
            events: In order, numbered on from `expected_seq`.

        Raises:
            Fenced: Somebody acquired the session since, or it was erased.
            SequenceConflict: The log does not end at `expected_seq`.
        """
        ...

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[Event]:
        """Return events of a log in order.

        Args:
            session_id: Whose log.
            after: Sequence number before the first wanted; 0 from the beginning.
            limit: Most events to return.

        Returns:
            The first events still kept whose number is greater than `after`; empty at the end of
            the log and for an unknown session. The first number is greater than `after + 1`
            where retention has dropped some.
        """
        ...

    async def erase(self, session_id: str) -> None:
        """Forget a session; nothing happens if there is none."""
        ...

    async def aclose(self) -> None:
        """Finish all that is under way and let go of every resource."""
        ...
