"""One session's event log: append, read from any sequence number, wait for more.

The log has one writer, the session's actor, and any number of readers, which it does not know.
A reader is a cursor: a number. What the writer publishes is seen at once and stored with the
next commit; what it commits is stored first and seen then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self, TypeAlias

from session_supervisor.clock import Clock
from session_supervisor.errors import StoreError
from session_supervisor.events import Body, Event, Gap
from session_supervisor.stores.port import Store
from session_supervisor.window import Window

Draft: TypeAlias = tuple[Body, str | None]
"""An event to be: what is said, and the turn that it belongs to."""

RECENT_EVENTS = 2_048
RECENT_BYTES = 1 << 20
"""What a log keeps at hand, so that readers who keep up never trouble the store."""


class EventLog:
    """The events of one session.

    Args:
        session_id: Whose events.
        store: Where they are kept.
        fence: From `Store.acquire`.
        clock: Gives each event its time.
        store_s: Seconds that the store may take.
    """

    def __init__(
        self, session_id: str, store: Store, *, fence: int, clock: Clock, store_s: float = 30.0
    ) -> None:
        self._session_id = session_id
        self._store = store
        self._fence = fence
        self._clock = clock
        self._store_s = store_s
        self._recent = Window(max_events=RECENT_EVENTS, max_weight=RECENT_BYTES)
        self._unstored: list[Event] = []
        self._stored_seq = 0
        self._last_seq = 0
        self._closed = False
        self._changed: asyncio.Event | None = None

    @property
    def last_seq(self) -> int:
        """Number of the last event that readers can see, 0 before the first."""
        return self._last_seq

    @property
    def unstored(self) -> int:
        """Events that were published and wait to be stored."""
        return len(self._unstored)

    @property
    def closed(self) -> bool:
        """Whether the last event is the last for ever."""
        return self._closed

    def publish(self, body: Body, turn_id: str | None = None) -> Event:
        """Append an event that readers see at once; it is stored with the next commit.

        Args:
            body: What is said.
            turn_id: The turn it belongs to.
        """
        event = self._number(self._last_seq + 1, body, turn_id)
        self._unstored.append(event)
        self._show((event,))
        return event

    async def commit(self, *drafts: Draft) -> tuple[Event, ...]:
        """Store everything published so far and `drafts`; then let readers see `drafts`.

        For the writer alone, which must not publish until this returns.

        Raises:
            StoreError: Nothing of `drafts` was stored, and no reader sees any of it.
        """
        events = tuple(
            self._number(self._last_seq + n, body, turn_id)
            for n, (body, turn_id) in enumerate(drafts, start=1)
        )
        batch = [*self._unstored, *events]
        if batch:
            await self._append(batch)
            self._stored_seq = batch[-1].seq
            self._unstored.clear()
            self._show(events)
        return events

    def close(self) -> None:
        """Let readers end once they have read everything."""
        self._closed = True
        self._wake()

    async def fetch(self, *, after: int, limit: int) -> Sequence[Event]:
        """Return up to `limit` events after a number, without waiting for new ones."""
        first = self._recent.first_seq
        if first is None or after >= self._last_seq:
            return ()
        if after + 1 >= first:
            return self._recent.read(after=after, limit=limit)
        if after < self._stored_seq:
            stored = await self._store.read(self._session_id, after=after, limit=limit)
            if stored:
                return stored
        unstored = [event for event in self._unstored if event.seq > after]
        return unstored[:limit] or self._recent.read(after=after, limit=limit)

    async def changed(self) -> None:
        """Return when there are new events, or the log was closed, since this was called."""
        # Made by the first of those who wait, for all of them: most logs have no reader.
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()

    def cursor(self, after: int = 0) -> Cursor:
        """Return a reader that begins behind a number.

        Args:
            after: Number of the last event that the reader has had; 0 from the beginning.
        """
        return Cursor(self, after)

    async def _append(self, batch: Sequence[Event]) -> None:
        time_limit = asyncio.timeout(self._store_s)
        try:
            async with time_limit:
                await self._store.append(
                    self._session_id,
                    fence=self._fence,
                    expected_seq=self._stored_seq,
                    events=batch,
                )
        except TimeoutError as error:
            if not time_limit.expired():
                raise
            # Whether it has the events is not known, so nothing can follow them.
            raise StoreError(
                f"The store did not take events within {self._store_s:g} s. Is its disk well?"
            ) from error

    def _number(self, seq: int, body: Body, turn_id: str | None) -> Event:
        return Event(seq, turn_id, self._clock.now(), body)

    def _show(self, events: Sequence[Event]) -> None:
        if events:
            self._recent.extend(events)
            self._last_seq = events[-1].seq
            self._wake()

    def _wake(self) -> None:
        # Whoever waits now has this one; the next one waits for the next change.
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()


class Cursor:
    """One reader's place in a log.

    Iterating gives each event once, in order, from the place on, and ends when the log was closed
    and everything is read. Where retention has dropped events in between, a `Gap` stands for them.
    Either iterate or `read`; not both.
    """

    def __init__(self, log: EventLog, after: int) -> None:
        self._log = log
        self._after = after
        self._iterating = iter(tuple[Event, ...]())

    @property
    def after(self) -> int:
        """Number of the last event that was read: where to resume."""
        return self._after

    async def read(self, limit: int = 256) -> Sequence[Event]:
        """Wait until there is something to read and return it.

        Args:
            limit: Most events to return, at least 1.

        Returns:
            Events in order; empty at the end of a closed log.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        while not (events := await self.read_nowait(limit)):
            if self._log.closed:
                return ()
            if self._log.last_seq <= self._after:
                await self._log.changed()
        return events

    async def read_nowait(self, limit: int = 256) -> Sequence[Event]:
        """Return what there is to read now, perhaps nothing."""
        events = await self._log.fetch(after=self._after, limit=limit)
        if not events:
            return ()
        first = events[0]
        if first.seq > self._after + 1:
            gap = Gap(after=self._after, before=first.seq)
            events = (Event(first.seq - 1, None, first.at, gap), *events)
        self._after = events[-1].seq
        return events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = next(self._iterating, None)
        if event is None:
            self._iterating = iter(await self.read())
            event = next(self._iterating, None)
        if event is None:
            raise StopAsyncIteration
        return event
