"""One session's event log: append, read from any sequence number, wait for more.

The log has one writer, the session's actor, and any number of readers, which it does not know.
A reader is a cursor: a number. What the writer publishes is seen at once and stored with the
next commit; what it commits is stored first and seen then.

No number may ever mean two things, though the program be killed between showing an event and
storing it. So a number is only shown if the store knows that it may be: each commit reserves some.
Where none is reserved, what is published is seen with the next commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Self, TypeAlias

from session_supervisor.asks import Request
from session_supervisor.clock import Clock
from session_supervisor.errors import StoreError
from session_supervisor.events import Body, Event, Gap
from session_supervisor.results import TurnRecord
from session_supervisor.stores.port import Store
from session_supervisor.stores.records import Batch, Claim, Lease, SessionRecord
from session_supervisor.timers import Wakeup
from session_supervisor.window import Window

Draft: TypeAlias = tuple[Body, str | None]
"""An event to be: what is said, and the turn that it belongs to."""

Create: TypeAlias = Callable[[SessionRecord, Batch], Awaitable[Lease]]
"""Stores a new session with what it begins with."""

RECENT_EVENTS = 2_048
RECENT_BYTES = 1 << 20
"""What a log keeps at hand, so that readers who keep up never trouble the store."""


class EventLog:
    """The events of one session.

    Args:
        session_id: Whose events.
        store: Where they are kept.
        lease: The right to write them; for a session that is not stored yet, what stores it: it is
            created by its first commit.
        clock: Gives each event its time.
        store_s: Seconds that the store may take.
    """

    def __init__(
        self,
        session_id: str,
        store: Store,
        *,
        lease: Lease | Create,
        clock: Clock,
        store_s: float = 30.0,
    ) -> None:
        self._session_id = session_id
        self._store = store
        self._create: Create | None = None
        if not isinstance(lease, Lease):
            self._create, lease = lease, Lease(fence=0, last_seq=0)
        self._fence = lease.fence
        self._clock = clock
        self._store_s = store_s
        self._recent = Window(max_events=RECENT_EVENTS, max_weight=RECENT_BYTES)
        self._unstored: list[Event] = []
        self._held: list[Draft] = []
        self._stored_seq = self._last_seq = self._reserved_seq = lease.last_seq
        self._told_seq = self._last_seq
        self._now: datetime | None = None
        self._stalled = False
        self._closed = False
        self._waiting: dict[Callable[[], None], None] = {}

    @property
    def last_seq(self) -> int:
        """Number of the last event that readers can see, 0 before the first."""
        return self._last_seq

    @property
    def next_seq(self) -> int:
        """Number that the first event of the next commit will have."""
        return self._last_seq + len(self._held) + 1

    @property
    def unstored(self) -> int:
        """Events that were published and wait to be stored."""
        return len(self._unstored) + len(self._held)

    @property
    def unseen(self) -> bool:
        """Whether something was published that nobody sees before the next commit."""
        return bool(self._held)

    @property
    def stalled(self) -> bool:
        """Whether nothing may come for long."""
        return self._stalled

    @property
    def closed(self) -> bool:
        """Whether the last event is the last for ever."""
        return self._closed

    def publish(self, body: Body, turn_id: str | None = None) -> None:
        """Append an event that readers see as soon as they may; it is stored with the next commit.

        Those who wait for news hear of it when they are told (`tell`), or with the next commit.

        Args:
            body: What is said.
            turn_id: The turn it belongs to.
        """
        if self._held or self._last_seq >= self._reserved_seq:
            self._held.append((body, turn_id))
            return
        if self._now is None:  # what is published together is so at one time
            self._now = self._clock.now()
        event = Event(self._last_seq + 1, turn_id, self._now, body)
        self._unstored.append(event)
        self._recent.append(event)
        self._last_seq = event.seq

    def tell(self) -> None:
        """Tell those who wait that there is news, if there is any."""
        self._now = None
        if self._told_seq != self._last_seq:
            self._wake()

    async def commit(
        self,
        *drafts: Draft,
        turns: Sequence[TurnRecord] = (),
        session: SessionRecord | None = None,
        claims: Sequence[Claim] = (),
        requests: Sequence[Request] = (),
        reserve: int = 0,
    ) -> tuple[Event, ...]:
        """Store everything published so far and `drafts`; then let readers see `drafts`.

        For the writer alone, which must not publish until this returns.

        Args:
            drafts: Events that nobody may see before they are stored.
            turns: Turns to store along with them.
            session: The session, if it has changed, and with the first commit of a new one.
            claims: Keys for work that begins with it.
            requests: What needs a human, new or changed.
            reserve: How many events may then be published and seen before the next commit.

        Returns:
            The events that `drafts` became.

        Raises:
            StoreError: Nothing of `drafts` was stored, and no reader sees any of it.
        """
        self.tell()  # it may take long, and they need not wait for it
        events = tuple(
            self._number(self._last_seq + n, body, turn_id)
            for n, (body, turn_id) in enumerate((*self._held, *drafts), start=1)
        )
        batch = Batch(
            events=[*self._unstored, *events],
            turns=turns,
            session=session,
            claims=claims,
            requests=requests,
            reserve=reserve,
        )
        too_many = self._reserved_seq - self._stored_seq > reserve
        if batch.events or turns or requests or session is not None or too_many:
            await self._commit(batch)
            self._stored_seq += len(batch.events)
            self._reserved_seq = self._stored_seq + reserve
            self._unstored.clear()
            self._held.clear()
            self._show(events)
        return events[len(events) - len(drafts) :]

    def close(self) -> None:
        """Let readers end once they have read everything."""
        self._closed = True
        self._wake()

    def stall(self) -> None:
        """Let readers end who have read everything: nothing may come for long, and then goes on."""
        self._stalled = True
        self._wake()

    def resume(self, lease: Lease) -> None:
        """Go on behind all that anybody may have seen; what was not stored is lost.

        Args:
            lease: The right to write, acquired anew.
        """
        self._fence = lease.fence
        self._stored_seq = self._last_seq = self._reserved_seq = lease.last_seq
        self._unstored.clear()
        self._held.clear()
        self._stalled = False
        self.forget()
        # The store may have more than anybody was shown: what it took too late.
        self._wake()

    def forget(self) -> None:
        """Keep nothing at hand: readers that come back are served from the store."""
        if not self._unstored:
            self._recent = Window(max_events=RECENT_EVENTS, max_weight=RECENT_BYTES)

    async def fetch(self, *, after: int, limit: int) -> Sequence[Event]:
        """Return up to `limit` events after a number, without waiting for new ones."""
        stored_seq = -1
        while stored_seq != self._stored_seq:  # it may grow while the store is asked
            if after >= self._last_seq:
                return ()
            first = self._recent.first_seq
            if first is not None and after + 1 >= first:
                return self._recent.read(after=after, limit=limit)
            stored_seq = self._stored_seq
            if after < stored_seq:
                stored = await self._store.read(self._session_id, after=after, limit=limit)
                if stored:
                    return stored
        unstored = [event for event in self._unstored if event.seq > after]
        return unstored[:limit] or self._recent.read(after=after, limit=limit)

    def at_hand(self, *, after: int, limit: int) -> Sequence[Event]:
        """Return up to `limit` events after a number, if the store need not be asked for them."""
        return self._recent.follow(after, limit) if after < self._last_seq else ()

    def notify(self, reader: Callable[[], None]) -> None:
        """Call a reader, once, when there are new events or the log ends.

        It must neither raise nor take long: the session waits for it.
        """
        self._waiting[reader] = None

    def leave(self, reader: Callable[[], None]) -> None:
        """Do not call a reader any more; also for one that waits for nothing."""
        self._waiting.pop(reader, None)

    def cursor(self, after: int = 0) -> Cursor:
        """Return a reader that begins behind a number.

        Args:
            after: Number of the last event that the reader has had; 0 from the beginning.
        """
        return Cursor(self, after)

    async def _commit(self, batch: Batch) -> None:
        if self._create is not None:
            assert batch.session is not None, "a session is created with what there is to know"
            lease = await self._create(batch.session, batch)
            self._create, self._fence = None, lease.fence
            return
        time_limit = asyncio.timeout(self._store_s)
        try:
            async with time_limit:
                await self._store.commit(
                    self._session_id,
                    fence=self._fence,
                    expected_seq=self._stored_seq,
                    batch=batch,
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
        self._told_seq = self._last_seq
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for reader in waiting:
                reader()


class Cursor:
    """One reader's place in a log.

    Iterating gives each event once, in order, from the place on, and ends when the log was closed,
    or cannot be written for a while, and everything is read. Where retention has dropped events in
    between, a `Gap` stands for them. Either iterate or `read`; not both.
    """

    def __init__(self, log: EventLog, after: int) -> None:
        self._log = log
        self._after = after
        self._iterating = iter(tuple[Event, ...]())
        self._bell = Wakeup()

    @property
    def after(self) -> int:
        """Number of the last event that was read: where to resume."""
        return self._after

    @property
    def stalled(self) -> bool:
        """Whether the log goes on, but perhaps not for long."""
        return self._log.stalled

    async def read(
        self, limit: int = 256, *, rest: Callable[[], Awaitable[None]] | None = None
    ) -> Sequence[Event]:
        """Wait until there is something to read and return it.

        Args:
            limit: Most events to return, at least 1.
            rest: Waits in place of this, while there is nothing; by means of `notify`.

        Returns:
            Events in order; empty at the end of a log that was closed or is stalled.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        while True:
            last_seq = self._log.last_seq
            if events := await self.read_nowait(limit):
                return events
            if self._log.last_seq == last_seq:
                if self._log.closed or self._log.stalled:
                    return ()
                await (rest or self._wait)()

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

    def at_hand(self, limit: int = 256) -> Sequence[Event]:
        """Return what can be read at once and without a gap, perhaps nothing; the place stays.

        Args:
            limit: Most events to return.
        """
        return self._log.at_hand(after=self._after, limit=limit)

    def skip(self, events: Sequence[Event]) -> None:
        """Go on behind events that were at hand."""
        self._after = events[-1].seq

    def notify(self, reader: Callable[[], None]) -> None:
        """Call somebody, once, when there is news.

        It must neither raise nor take long: the session waits for it.
        """
        self._log.notify(reader)

    def leave(self, reader: Callable[[], None]) -> None:
        """Do not call somebody any more; also if nothing was to come."""
        self._log.leave(reader)

    async def _wait(self) -> None:
        self._log.notify(self._bell.ring)
        try:
            await self._bell.wait(None)
        except BaseException:  # most logs that are left by a reader say no more for long
            self._log.leave(self._bell.ring)
            raise

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
