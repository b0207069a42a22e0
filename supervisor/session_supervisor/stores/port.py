"""The port `Store`: where sessions, their turns and their logs are kept.

A store lets one writer at a time extend a session. `create` and `acquire` make the caller that
writer and give it a lease with a fence, a number that grows; a commit with an older fence is
refused, so that a writer which was presumed dead can do no harm. (Leslie Lamport's and Martin
Kleppmann's fencing tokens.) `expected_seq` catches a writer that is wrong about where the log
ends.

A log is append-only, its events numbered from 1. Numbers have no holes but one kind: what a writer
reserved, showed to readers and never stored is lost with it, and the next writer goes on above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from session_supervisor.asks import Request
from session_supervisor.events import Event
from session_supervisor.results import TurnRecord
from session_supervisor.stores.records import (
    Batch,
    Claim,
    Damaged,
    Found,
    Lease,
    SessionRecord,
)

JUST_ENDED_S = 60.0
"""Seconds for which a turn that has ended stays, however much there is: somebody waits for it."""


class Store(Protocol):
    """Sessions with their turns and fenced, append-only logs."""

    @property
    def durable(self) -> bool:
        """Whether what it keeps outlives the process that it is in."""
        ...

    async def create(self, session: SessionRecord, *, first: Batch | None = None) -> Lease:
        """Keep a new session with what it begins with, all or none, and become its only writer.

        It is safe when this returns, like a commit. A question that is asked once is stored so as a
        whole: the session, that it was accepted and, if there is a process for it, that it began.

        Args:
            session: The session.
            first: What it begins with, its events numbered from 1; `session` in it is left out.

        Returns:
            The lease; its `last_seq` is the number of the last of those events.

        Raises:
            AlreadyExists: There is a session with its id.
            SequenceConflict: The events do not begin with 1.
            ClaimTaken: A key has been claimed before; nothing was kept.
        """
        ...

    async def acquire(self, session_id: str) -> Lease:
        """Become the only writer of a session that is kept. Every earlier lease is void.

        Raises:
            UnknownSession: There is none, or it was erased.
        """
        ...

    async def take_over(self) -> Sequence[Found | Damaged]:
        """Become the only writer of every session that is kept; oldest first.

        One that is damaged is told of, and takes no other with it.
        """
        ...

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        """Add to a session, all or none; it is safe when this returns.

        Args:
            session_id: Which.
            fence: From the lease.
            expected_seq: Number of the last event that was committed or, if none was since,
                `Lease.last_seq`.
            batch: What to add.

        Raises:
            Fenced: Somebody acquired the session since, or it was erased.
            SequenceConflict: The log does not end at `expected_seq`, or the events do not go on
                from there.
            ClaimTaken: A key has been claimed before.
        """
        ...

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[Event]:
        """Return events of a log in order.

        Args:
            session_id: Whose log.
            after: Number before the first wanted; 0 from the beginning.
            limit: Most events to return.

        Returns:
            The first events still kept whose number is greater than `after`, up to the next hole;
            empty at the end of the log and for an unknown session. The first number is greater
            than `after + 1` where events before it are lost, or retention has dropped them.

        Raises:
            Spoiled: Some of them are damaged.
        """
        ...

    async def turn(self, session_id: str, turn_id: str) -> TurnRecord | None:
        """Return a turn, or None if there is none, or it is no longer kept."""
        ...

    async def turns(self, session_id: str) -> Sequence[TurnRecord]:
        """Return every turn of a session that is kept, in the order of their first commit."""
        ...

    async def told(self, session_id: str, *, after: int, limit: int) -> Sequence[TurnRecord]:
        """Return turns that an agent was handed and that have ended, in the order of their ends.

        Args:
            session_id: Whose turns.
            after: Number of an event: only turns whose last one came later.
            limit: Most turns to return.
        """
        ...

    async def requests(self, session_id: str) -> Sequence[Request]:
        """Return everything of a session that needed a human and is kept; oldest first."""
        ...

    async def request(self, session_id: str, request_id: str) -> Request | None:
        """Return a request, or None if there is none, or it is no longer kept."""
        ...

    async def claim(self, owner: str, key: str, *, now: datetime) -> Claim | None:
        """Return what an owner's key stands for, or None if it stands for nothing (any more).

        Args:
            owner: Whose key.
            key: What the caller named its work.
            now: Claims that expired by then are void.
        """
        ...

    async def spending(self) -> Mapping[str, float]:
        """Return what all sessions of each owner have cost, in US dollars, those erased included.

        It is what their `total_cost_usd` has grown by, from one commit to the next.
        """
        ...

    async def erase(self, session_id: str, *, claims: bool = False) -> None:
        """Forget a session with everything of it; nothing happens if there is none.

        Args:
            session_id: Which.
            claims: Whether the keys for its work may be used for other work: there was none. Else
                they go on until they expire, so that a late retry does not do the work again.
        """
        ...

    async def trim(self, *, now: datetime) -> bool:
        """Drop some of what is too old, or too much for all sessions together.

        It takes no longer than a few commits do. Nothing goes of a turn that has not ended, and
        always the newest event of a log stays, by which readers learn that others are gone.

        Args:
            now: What time it is.

        Returns:
            Whether there is more to drop: then it is to be called again, a little later.
        """
        ...

    async def aclose(self) -> None:
        """Finish all that is under way and let go of every resource."""
        ...
