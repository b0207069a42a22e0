"""Handles on sessions and turns: what an embedder and the HTTP layer hold.

A handle puts messages into the session's mailbox and reads its log and ledger. It may be kept,
shared and dropped at will; the session does not depend on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self
from uuid import uuid4

from session_supervisor.claims import ClaimKey, Hold
from session_supervisor.core import SessionCore
from session_supervisor.errors import (
    Busy,
    ClaimConflict,
    Draining,
    InvalidSpec,
    Refused,
    SessionClosed,
    StoreError,
    TurnFailed,
    TurnNotFound,
    Unavailable,
)
from session_supervisor.events import Event, Gap
from session_supervisor.lifecycle import ACTIVE, State
from session_supervisor.log import Cursor
from session_supervisor.messages import (
    Close,
    Closed,
    Hibernate,
    Inspect,
    Inspection,
    Interrupt,
    Interrupted,
    Query,
    Wake,
)
from session_supervisor.quotas import Quota
from session_supervisor.results import Outcome, TurnRecord, TurnResult
from session_supervisor.spec import Prompt, SessionKind, SessionSpec
from session_supervisor.stores.records import Claim
from session_supervisor.turns import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSnapshot:
    """A session at one moment.

    Attributes:
        session_id: Its id.
        owner: Whose it is.
        kind: What it is for.
        state: Where it is in its life.
        model: The model it was started with, None for the agent's default.
        created_at: When it was started, UTC.
        queued: Queries that wait.
        restarts: How often its process was restarted after a crash.
        last_seq: Number of its last event.
        total_cost_usd: What its turns have cost so far, in US dollars.
        deleted: Whether it was closed by its owner, and only what it said is still there.
    """

    session_id: str
    owner: str
    kind: SessionKind
    state: State
    model: str | None
    created_at: datetime
    queued: int
    restarts: int
    last_seq: int
    total_cost_usd: float
    deleted: bool = False


def check_query(prompt: str, timeout_s: float | None) -> None:
    """Refuse what cannot be asked.

    Raises:
        InvalidSpec: The prompt is empty, or the time limit is not positive.
    """
    if not prompt.strip():
        raise InvalidSpec("prompt", "must not be empty")
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidSpec("timeout_s", "must be greater than 0")


async def submit(core: SessionCore, query: Query) -> TurnHandle:
    """Put a query to a session; its place goes with it, also when nobody waits any more.

    Raises:
        Refused: It was not accepted.
    """
    try:
        core.mailbox.offer_work(query)
    except Refused as error:
        query.refuse(error)
        raise
    accepted = await query.reply.wait()
    return TurnHandle(core, await _find(core, accepted.turn_id), position=accepted.position)


async def attach(core: SessionCore, turn_id: str) -> TurnHandle:
    """Return a turn that was asked for before, under the same key.

    Raises:
        TurnNotFound: It is no longer kept.
    """
    return TurnHandle(core, await _find(core, turn_id), attached=True)


async def _find(core: SessionCore, turn_id: str) -> Turn:
    """Return a turn, running or ended.

    Raises:
        TurnNotFound: There is no such turn, or it is no longer kept.
    """
    turn = core.ledger.find(turn_id)
    if turn is not None:
        return turn
    record = await core.store.turn(core.session_id, turn_id)
    if record is None:
        raise TurnNotFound(turn_id)
    return Turn.restored(record)


class TurnHandle:
    """One turn.

    Iterating gives the turn's events from its acceptance to its one terminal event.
    """

    def __init__(
        self, core: SessionCore, turn: Turn, *, position: int = 0, attached: bool = False
    ) -> None:
        self._core = core
        self._turn = turn
        self.position = position
        """Turns that were in front of it when it was accepted, the running one included."""
        self.attached = attached
        """Whether it was asked for before, under the same key."""

    @property
    def turn_id(self) -> str:
        """The turn's id."""
        return self._turn.turn_id

    @property
    def session_id(self) -> str:
        """The id of its session."""
        return self._core.session_id

    def record(self) -> TurnRecord:
        """Return the turn as it is now."""
        return self._turn.record()

    async def wait(self) -> TurnResult:
        """Return how the turn ended, whichever way, once it has.

        Raises:
            Draining: The supervisor went away before it could run. It will, under the next.
            Unavailable: The store fails. How the turn ended is known when it does not any more.
        """
        await self._turn.announced.wait()
        # Not by the result alone: a turn that was left may yet get one that is not stored.
        if self._turn.end is None or self._turn.result is None:
            raise Draining if self._turn.left is None else self._turn.left()
        return self._turn.result

    async def result(self) -> TurnResult:
        """Return the answer, once there is one; a partial one if the turn was interrupted.

        Raises:
            TurnFailed: The turn failed or was lost.
            Draining: The supervisor went away before it could run. It will, under the next.
            Unavailable: The store fails. How the turn ended is known when it does not any more.
        """
        result = await self.wait()
        if result.failure is not None and result.outcome in (Outcome.FAILED, Outcome.LOST):
            raise TurnFailed(result.failure, session_id=self.session_id, turn_id=self.turn_id)
        return result

    def cursor(self) -> Cursor:
        """Return a reader of the session's log that begins at the turn's first event."""
        return self._core.log.cursor(self._turn.first_seq - 1)

    def select(self, batch: Sequence[Event]) -> tuple[list[Event], bool]:
        """Return what of its session's events concerns the turn, and whether its end is among it.

        A `Gap` concerns every turn. Where the turn's end is among what is gone it is said again
        behind the gap, with the gap's number: nobody may wait for it in vain.

        Args:
            batch: Events of the log, in order.
        """
        wanted: list[Event] = []
        for event in batch:
            end = self._turn.end
            if event.turn_id == self.turn_id:
                wanted.append(event)
                if event.is_terminal:
                    return wanted, True
            elif isinstance(event.body, Gap):
                wanted.append(event)
                if end is not None and end.seq <= event.seq:
                    wanted.append(Event(event.seq, end.turn_id, end.at, end.body))
                    return wanted, True
        return wanted, False

    def __aiter__(self) -> TurnEvents:
        return TurnEvents(self)


class TurnEvents:
    """The events of one turn, out of its session's log, up to its terminal event."""

    def __init__(self, turn: TurnHandle) -> None:
        self._turn = turn
        self._cursor = turn.cursor()
        self._ready: deque[Event] = deque()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            batch = () if self._ended else await self._cursor.read()
            if not batch:
                raise StopAsyncIteration
            wanted, self._ended = self._turn.select(batch)
            self._ready.extend(wanted)
        return self._ready.popleft()


class Session:
    """One session."""

    def __init__(
        self,
        core: SessionCore,
        *,
        default_timeout_s: float | None = None,
        attached: bool = False,
    ) -> None:
        self._core = core
        self._default_timeout_s = default_timeout_s
        self.attached = attached
        """Whether it was started before, under the same key."""

    @property
    def session_id(self) -> str:
        """Its id, a UUID."""
        return self._core.session_id

    @property
    def owner(self) -> str:
        """Whose session it is."""
        return self._core.owner

    @property
    def spec(self) -> SessionSpec:
        """What was asked for when it was started."""
        return self._core.spec

    @property
    def created_at(self) -> datetime:
        """When it was started, UTC."""
        return self._core.created_at

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._core.standing

    @property
    def active(self) -> bool:
        """Whether it takes queries, or will again."""
        return self._core.standing in ACTIVE

    async def query(
        self,
        prompt: str,
        *,
        timeout_s: float | None = None,
        turn_id: str | None = None,
        queue: bool = True,
        quota: Quota | None = None,
        claim: ClaimKey | None = None,
    ) -> TurnHandle:
        """Ask; returns when the query is accepted, not when it is answered.

        Args:
            prompt: What is asked.
            timeout_s: Seconds from now after which the turn is given up; None takes the
                supervisor's default.
            turn_id: Id for the turn, a UUID that was never used before; None makes one. Of turns
                that retention has dropped the ids are forgotten, too: used again, the agent may
                skip the prompt, and the turn is given up as stalled.
            queue: Whether to wait behind other turns; otherwise `Busy` is raised.
            quota: What the session's owner may have at once; None: any number of turns.
            claim: The caller's key. If it was used before, this returns the turn that was begun
                then, whatever became of it.

        Raises:
            ClaimConflict: The key stands for something else.
            TurnNotFound: What the key stands for is no longer kept.
            InvalidSpec: The prompt is empty, the time limit is not positive, or the turn's id
                was used before.
            Busy: A turn runs or waits, and `queue` is False.
            MailboxFull: Too many queries wait already.
            QuotaExceeded: The owner has as many turns as it may have.
            SessionClosed: The session has ended.
            SessionFailed: The session gave up on its agent.
            Unavailable: The store fails.
            Draining: The supervisor is shutting down.
        """
        check_query(prompt, timeout_s)
        core, hold = self._core, None
        if claim is not None:
            found = await core.claims.take(core.owner, claim)
            if isinstance(found, Claim):
                if found.session_id != core.session_id or found.turn_id is None:
                    raise ClaimConflict(claim.key)
                return await attach(core, found.turn_id)
            hold = found
        try:
            query = await self._query(prompt, timeout_s, turn_id, queue, quota, hold)
        except BaseException:
            if hold is not None:
                hold.release()
            raise
        if hold is not None:
            query.on_settled(hold.release)
        return await submit(core, query)

    async def _query(
        self,
        prompt: str,
        timeout_s: float | None,
        turn_id: str | None,
        queue: bool,
        quota: Quota | None,
        hold: Hold | None,
    ) -> Query:
        core = self._core
        if core.kind is SessionKind.ONEOFF:  # its only turn was asked when it was made
            raise SessionClosed(core.session_id)
        if turn_id is not None and await self._knows(turn_id):
            raise InvalidSpec("turn_id", f"{turn_id!r} was used before in this session")
        if not queue and (core.mailbox.waiting_work or core.ledger.open()):
            raise Busy("The session is busy with another turn. Wait for its end, or interrupt it.")
        turn_id = turn_id or str(uuid4())
        return Query(
            prompt=Prompt(prompt_id=turn_id, text=prompt),
            timeout_s=self._default_timeout_s if timeout_s is None else timeout_s,
            place=core.account.take_turn(quota),
            claim=None if hold is None else hold.claim(core.session_id, turn_id),
        )

    async def interrupt(self, *, turn_id: str | None = None, queued: bool = False) -> Interrupted:
        """Stop the running turn, or the next one while its process starts.

        Args:
            turn_id: Only this turn, running or queued.
            queued: Take every queued turn out as well.

        Returns:
            What was found, once the turn's end is in the log.

        Raises:
            TurnNotFound: There is no turn `turn_id`.
            SessionClosed: The session has ended.
            Unavailable: The store fails, and only it could know the turn.
        """
        message = Interrupt(turn_id=turn_id, queued=queued)
        self._core.mailbox.offer_control(message)
        try:
            return await message.reply.wait()
        except TurnNotFound:
            # Not by the actor, which must not depend on what is read for somebody else.
            if turn_id is None or not await self._has_ended(turn_id):
                raise
        message = Interrupt(turn_id=turn_id, queued=queued, ended=True)
        self._core.mailbox.offer_control(message)
        return await message.reply.wait()

    async def _has_ended(self, turn_id: str) -> bool:
        try:
            return await self._core.store.turn(self._core.session_id, turn_id) is not None
        except StoreError as error:
            raise Unavailable from error

    async def inspect(self) -> Inspection:
        """Say what the session is doing, also in the middle of a turn.

        Raises:
            SessionClosed: The session has ended.
        """
        message = Inspect()
        self._core.mailbox.offer_control(message)
        found = await message.reply.wait()
        # Not by the actor, which has other things to do than to look at processes.
        look = self._core.look
        return found if look is None else replace(found, tree=await look())

    async def close(self) -> Closed:
        """End the session; returns when its process is gone. Closing again does no harm."""
        message = Close()
        try:
            self._core.mailbox.offer_control(message, always=True)
            await message.reply.wait()
        except SessionClosed:
            pass
        return await self.ended()

    async def ended(self) -> Closed:
        """Return why and how the session ended, once it has."""
        await self._core.ended.wait()
        closed = self._core.closed
        assert closed is not None, "what has ended was closed"
        return closed

    async def hibernate(self) -> State:
        """Have the session give up its process, if that has nothing to do.

        It wakes by itself, with its context, when there is something to do.

        Returns:
            The state that follows: `hibernating` or, if it needs its process, another.

        Raises:
            SessionClosed: The session has ended.
        """
        message = Hibernate()
        self._core.mailbox.offer_control(message)
        return await message.reply.wait()

    async def wake(self) -> State:
        """Have the session get a process before it is needed.

        Returns:
            The state that follows.

        Raises:
            SessionClosed: The session has ended.
        """
        message = Wake()
        self._core.mailbox.offer_control(message)
        return await message.reply.wait()

    async def turn(self, turn_id: str) -> TurnHandle:
        """Return a turn, running or ended.

        Raises:
            TurnNotFound: There is no such turn, or it is no longer kept.
        """
        return TurnHandle(self._core, await _find(self._core, turn_id))

    async def turns(self) -> tuple[TurnRecord, ...]:
        """Return every turn that is kept, oldest first."""
        core = self._core
        records = {turn.turn_id: turn for turn in await core.store.turns(core.session_id)}
        # Those that have not ended are further on than what is stored of them.
        records.update((turn.turn_id, turn) for turn in core.ledger.records())
        return tuple(records.values())

    async def told(self, *, after: int = 0, limit: int) -> tuple[TurnRecord, ...]:
        """Return turns that the agent was handed, those that have ended in the order of their ends.

        Behind the last of these come those that run.

        Args:
            after: Number of an event: only turns whose last one came later, or will.
            limit: Most turns to return, at least 1.
        """
        core = self._core
        # Looked at first: one that ends meanwhile is told of twice, and not never.
        running = [turn for turn in core.ledger.records() if turn.started_at is not None]
        found = {
            turn.turn_id: turn
            for turn in await core.store.told(core.session_id, after=after, limit=limit)
        }
        if len(found) < limit:
            for turn in running:
                found.setdefault(turn.turn_id, turn)
        return tuple(found.values())[:limit]

    async def _knows(self, turn_id: str) -> bool:
        core = self._core
        # Nothing may be awaited between the last look and the offer of the query.
        stored = await core.store.turn(core.session_id, turn_id)
        return (
            stored is not None
            or core.mailbox.waits(turn_id)
            or core.ledger.find(turn_id) is not None
        )

    def events(self, after: int = 0) -> Cursor:
        """Return a reader of all the session's events.

        Args:
            after: Number of the last event already had; 0 from the beginning.

        Raises:
            InvalidSpec: There was no event with that number yet.
        """
        if not 0 <= after <= self._core.log.last_seq:
            raise InvalidSpec(
                "after",
                f"must be the id of an event that was sent, at most {self._core.log.last_seq}",
            )
        return self._core.log.cursor(after)

    def snapshot(self) -> SessionSnapshot:
        """Return what the session looks like now."""
        core = self._core
        return SessionSnapshot(
            session_id=core.session_id,
            owner=core.owner,
            kind=core.kind,
            state=core.standing,
            model=core.spec.model,
            created_at=core.created_at,
            queued=core.mailbox.waiting_work,
            restarts=core.restarts.total,
            last_seq=core.log.last_seq,
            total_cost_usd=core.ledger.total_cost_usd,
            deleted=core.deleted_at is not None,
        )
