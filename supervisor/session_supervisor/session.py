"""Handles on sessions and turns: what an embedder and the HTTP layer hold.

A handle puts messages into the session's mailbox and reads its log and ledger. It may be kept,
shared and dropped at will; the session does not depend on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Self
from uuid import uuid4

from session_supervisor.asks import Decision, Request
from session_supervisor.claims import ClaimKey, Hold
from session_supervisor.config import SupervisorConfig
from session_supervisor.core import SessionCore
from session_supervisor.errors import (
    Busy,
    ClaimConflict,
    Draining,
    InvalidSpec,
    NotQueued,
    Refused,
    RequestNotFound,
    RequestOver,
    SessionClosed,
    StoreError,
    TurnFailed,
    TurnNotFound,
    Unavailable,
)
from session_supervisor.events import TERMINAL, Event, Gap
from session_supervisor.lifecycle import ACTIVE, State
from session_supervisor.log import Cursor
from session_supervisor.messages import (
    Close,
    Closed,
    Configure,
    Decide,
    Hibernate,
    Inspect,
    Inspection,
    Interrupt,
    Interrupted,
    OnBusy,
    Query,
    Settings,
    Wake,
    Withdraw,
)
from session_supervisor.quotas import Quota
from session_supervisor.requests import AskingPolicy
from session_supervisor.results import Outcome, TurnRecord, TurnResult
from session_supervisor.spec import (
    Attachment,
    OnPermission,
    PermissionMode,
    Prompt,
    SessionKind,
    SessionSpec,
)
from session_supervisor.stores.records import Claim
from session_supervisor.turns import Turn

COMPACT = "/compact"
"""The command by which agents sum a conversation up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSnapshot:
    """A session at one moment.

    Attributes:
        session_id: Its id.
        owner: Whose it is.
        kind: What it is for.
        state: Where it is in its life.
        model: Its model, None for the agent's default.
        created_at: When it was started, UTC.
        queued: Queries that wait.
        restarts: How often its process was restarted after a crash.
        last_seq: Number of its last event.
        total_cost_usd: What its turns have cost so far, in US dollars.
        deleted: Whether it was closed by its owner, and only what it said is still there.
        title: What its owner calls it.
        metadata: What its owner notes about it.
        permission_mode: What happens to tools that are not allowed outright.
        pending: Ids of what waits for a human, oldest first.
        forked_from: The session and the turn whose context it began with, if any.
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
    title: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    permission_mode: PermissionMode = "default"
    pending: tuple[str, ...] = ()
    forked_from: tuple[str, str | None] | None = None


def check_query(
    prompt: str, timeout_s: float | None, permission_timeout_s: float | None = None
) -> None:
    """Refuse what cannot be asked.

    Raises:
        InvalidSpec: The prompt is empty, or a time limit is not positive.
    """
    if not prompt.strip():
        raise InvalidSpec("prompt", "must not be empty")
    limits = {"timeout_s": timeout_s, "permission_timeout_s": permission_timeout_s}
    for name, limit_s in limits.items():
        if limit_s is not None and not limit_s > 0:
            raise InvalidSpec(name, "must be greater than 0")


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
        turn_id = self._turn.turn_id
        wanted: list[Event] = []
        for event in batch:
            if event.turn_id == turn_id:
                wanted.append(event)
                if isinstance(event.body, TERMINAL):
                    return wanted, True
            elif isinstance(event.body, Gap):
                end = self._turn.end
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
        config: SupervisorConfig,
        check: Callable[[SessionSpec], None],
        attached: bool = False,
    ) -> None:
        self._core = core
        self._config = config
        self._check = check
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
        """What was asked for when it was started, as it was changed since."""
        return self._core.spec

    @property
    def workspace(self) -> Path | None:
        """The private directory that it works in; None where it was given a directory.

        With a pool it is another one once a process is there, and once a one-off has ended; what
        is in it moves along.
        """
        return Path(self._core.cwd) if self._core.private else None

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
        attachments: Sequence[Attachment] = (),
        timeout_s: float | None = None,
        turn_id: str | None = None,
        on_busy: OnBusy = OnBusy.QUEUE,
        on_permission: OnPermission | None = None,
        permission_timeout_s: float | None = None,
        quota: Quota | None = None,
        claim: ClaimKey | None = None,
    ) -> TurnHandle:
        """Ask; returns when the query is accepted, not when it is answered.

        Args:
            prompt: What is asked.
            attachments: Images and documents that go with it.
            timeout_s: Seconds from now after which the turn is given up, without those in which it
                waits for a human; None takes the supervisor's default.
            turn_id: Id for the turn, a UUID that was never used before; None makes one. Of turns
                that retention has dropped the ids are forgotten, too: used again, the agent may
                skip the prompt, and the turn is given up as stalled.
            on_busy: What to do where a turn runs or waits already.
            on_permission: What happens to tool calls that need a permission, and to questions; None
                as the session's spec says or, if it does not, the supervisor's configuration.
            permission_timeout_s: Seconds that a human has to answer; None as those say.
            quota: What the session's owner may have at once; None: any number of turns.
            claim: The caller's key. If it was used before, this returns the turn that was begun
                then, whatever became of it.

        Raises:
            ClaimConflict: The key stands for something else.
            TurnNotFound: What the key stands for is no longer kept.
            InvalidSpec: The prompt is empty, a time limit is not positive, or the turn's id
                was used before.
            Busy: A turn runs or waits, and `on_busy` is `reject`.
            MailboxFull: Too many queries wait already.
            QuotaExceeded: The owner has as many turns as it may have.
            BudgetExceeded: The session, or its owner, has spent all that it may.
            UpstreamLimited: The upstream takes no requests of the owner's for a while.
            SessionClosed: The session has ended.
            SessionFailed: The session gave up on its agent.
            Unavailable: The store fails.
            Draining: The supervisor is shutting down.
        """
        check_query(prompt, timeout_s, permission_timeout_s)
        asked = Prompt(
            prompt_id=turn_id or str(uuid4()), text=prompt, attachments=tuple(attachments)
        )
        policy = AskingPolicy.of(self._core.spec, kind=self._core.kind, config=self._config)
        query = Query(
            prompt=asked,
            timeout_s=self._config.turn_timeout_s if timeout_s is None else timeout_s,
            on_busy=on_busy,
            on_permission=on_permission or policy.on_permission,
            permission_timeout_s=(
                policy.timeout_s if permission_timeout_s is None else permission_timeout_s
            ),
        )
        return await self._ask(query, quota, claim, fresh=turn_id is None)

    async def compact(
        self,
        *,
        instructions: str | None = None,
        timeout_s: float | None = None,
        quota: Quota | None = None,
        claim: ClaimKey | None = None,
    ) -> TurnHandle:
        """Have the conversation summed up, so that there is room for more.

        It is a turn like any other: it waits for those before it, and costs.

        Args:
            instructions: What the summary is to pay attention to.
            timeout_s: As in `query`, like the others.
            quota: What the session's owner may have at once.
            claim: The caller's key.

        Raises:
            Refused: As in `query`.
        """
        check_query(COMPACT, timeout_s)
        command = f"{COMPACT} {instructions or ''}".rstrip()
        query = Query(
            prompt=Prompt(prompt_id=str(uuid4()), text=command, command=True),
            timeout_s=self._config.turn_timeout_s if timeout_s is None else timeout_s,
        )
        return await self._ask(query, quota, claim, fresh=True)

    async def _ask(
        self, query: Query, quota: Quota | None, claim: ClaimKey | None, *, fresh: bool
    ) -> TurnHandle:
        """Put a query to the session, or find the one that a key stands for.

        Args:
            query: What to ask.
            quota: What the session's owner may have at once.
            claim: The caller's key.
            fresh: Whether its id cannot have been used.
        """
        core, hold = self._core, None
        if claim is not None:
            found = await core.claims.take(core.owner, claim)
            if isinstance(found, Claim):
                if found.session_id != core.session_id or found.turn_id is None:
                    raise ClaimConflict(claim.key)
                return await attach(core, found.turn_id)
            hold = found
        try:
            query = await self._admit(query, quota, hold, fresh=fresh)
        except BaseException:
            if hold is not None:
                hold.release()
            raise
        if hold is not None:
            query.on_settled(hold.release)
        return await submit(core, query)

    async def _admit(
        self, query: Query, quota: Quota | None, hold: Hold | None, *, fresh: bool
    ) -> Query:
        """Return a query with all that it counts as; it must be offered at once."""
        core, turn_id = self._core, query.key
        if core.kind is SessionKind.ONEOFF:  # its only turn was asked when it was made
            raise SessionClosed(core.session_id)
        if not fresh and await self._knows(turn_id):
            raise InvalidSpec("turn_id", f"{turn_id!r} was used before in this session")
        rejects = query.on_busy is OnBusy.REJECT
        if rejects and (core.mailbox.waiting_work or core.ledger.open()):
            raise Busy("The session is busy with another turn. Wait for its end, or interrupt it.")
        core.pacing.check(core.owner)
        budget_usd = None if quota is None else quota.budget_usd
        core.check_budgets(budget_usd)
        return replace(
            query,
            budget_usd=budget_usd,
            place=core.account.take_turn(quota),
            claim=None if hold is None else hold.claim(core.session_id, turn_id),
        )

    async def withdraw(self, turn_id: str) -> None:
        """Take a turn out that waits. It never ran, and ends as interrupted.

        Raises:
            TurnNotFound: There is no such turn, or it is no longer kept.
            NotQueued: It runs, or has ended.
            SessionClosed: The session has ended.
            Unavailable: The store fails.
        """
        message = Withdraw(turn_id=turn_id)
        self._core.mailbox.offer_control(message)
        try:
            await message.reply.wait()
        except TurnNotFound:
            # Not by the actor, which must not depend on what is read for somebody else.
            if await self._has_ended(turn_id):
                raise NotQueued(turn_id, running=False) from None
            raise

    async def configure(
        self,
        *,
        model: str | None = None,
        permission_mode: PermissionMode | None = None,
        title: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Settings:
        """Change what can change in the session, from the next request to the model on.

        Args:
            model: Name or alias of the model; None, here as in the others, leaves it as it is.
            permission_mode: What happens to tools that are not allowed outright.
            title: What its owner calls it; empty: nothing.
            metadata: What its owner notes about it, in place of what was noted.

        Returns:
            What is in force, and stored.

        Raises:
            InvalidSpec: The agent cannot do that.
            NotAllowed: The operator has not allowed it.
            SessionClosed: The session has ended.
            Unavailable: The store fails.
        """
        spec = self._core.spec
        wanted = replace(
            spec,
            model=spec.model if model is None else model,
            permission_mode=permission_mode or spec.permission_mode,
        )
        if wanted != spec:
            self._check(wanted)
        message = Configure(
            model=model, permission_mode=permission_mode, title=title, metadata=metadata
        )
        self._core.mailbox.offer_control(message)
        return await message.reply.wait()

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

    async def requests(self, *, pending: bool = False) -> tuple[Request, ...]:
        """Return what needed a human and is kept, oldest first.

        Args:
            pending: Only what waits for one.
        """
        core = self._core
        return core.requests.shown if pending else tuple(await core.store.requests(core.session_id))

    async def request(self, request_id: str) -> Request:
        """Return something that needs a human, or needed one.

        Raises:
            RequestNotFound: There is no such request, or it is no longer kept.
        """
        request = await self._core.store.request(self._core.session_id, request_id)
        if request is None:
            raise RequestNotFound(request_id)
        return request

    async def decide(self, request_id: str, decision: Decision) -> Request:
        """Answer what the agent asked a human.

        Args:
            request_id: What.
            decision: The answer: `Answers` to a question, `Allow` to a permission, `Deny` to both.

        Returns:
            The request, as it is now. The answer is stored, and the agent is told.

        Raises:
            RequestNotFound: There is no such request, or it is no longer kept.
            RequestOver: It was answered before, or is over without an answer.
            InvalidSpec: That is no answer to it.
            SessionClosed: The session has ended.
            Unavailable: The store fails.
        """
        core, message = self._core, Decide(request_id=request_id, decision=decision)
        try:
            core.mailbox.offer_control(message)
            return await message.reply.wait()
        except (SessionClosed, RequestNotFound):
            # Not by the actor, which must not depend on what is read for somebody else.
            try:
                over = await core.store.request(core.session_id, request_id)
            except StoreError as error:
                raise Unavailable from error
            if over is None or over.resolution is None:
                raise
            raise RequestOver(over) from None

    async def inspect(self, *, context: bool = False) -> Inspection:
        """Say what the session is doing, also in the middle of a turn.

        Args:
            context: Whether to say, too, how full the model's context is, where there is a process
                that knows it. It may take two seconds.

        Raises:
            SessionClosed: The session has ended.
        """
        message = Inspect(context=context)
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
            title=core.title,
            metadata=core.metadata,
            permission_mode=core.spec.permission_mode,
            pending=tuple(request.request_id for request in core.requests.shown),
            forked_from=core.forked_from,
        )
