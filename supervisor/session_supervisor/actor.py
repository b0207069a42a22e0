"""One session as an actor: one task, one mailbox, at most one agent process.

Everything that happens to a session reaches its actor as one of four things, which it serves
one at a time: a control message, at once; then what its process has said until now, new queries,
and deadlines, in this order, so that none can starve another. Then it hands the next queued turn
over, if the agent is at rest, and sleeps.

The rules, which the tests check against a small model:

1. Only the actor's task changes the session's state, ledger and log.
2. It never waits for the process, a reader or a caller; only for the store. What takes long
   runs in child tasks of its incarnation, which post what comes of it.
3. What an incarnation says after it was given up is not heard, but for what it has cost.
4. At most one prompt is with the agent at a time. A turn that was given up is still with it
   until it says so, or is gone.
5. A turn's end is in the log before anybody is told of it, and so is what became of a request to
   a human before the agent is told.
6. The next process is not started before the last one is gone, and the session does not end
   before its process has, whatever goes wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from uuid import uuid4

from session_supervisor import events
from session_supervisor.agents.port import (
    Agent,
    AgentMessage,
    Alive,
    AskWithdrawn,
    BackgroundWork,
    Binding,
    ContextUsage,
    Exit,
    Fingerprint,
    Initialized,
    PermissionAsked,
    QuestionAsked,
    TextBlock,
    TextDelta,
    TextWithdrawn,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
    TurnBegan,
    TurnEnded,
    UpstreamLimit,
    UpstreamRetry,
)
from session_supervisor.answer import Correction
from session_supervisor.asks import Allow, Decision, Deny, Request, Resolution
from session_supervisor.budgets import conversation_budget
from session_supervisor.config import SupervisorConfig
from session_supervisor.core import SessionCore
from session_supervisor.errors import (
    AgentMissing,
    AgentStartFailed,
    BudgetExceeded,
    Busy,
    Draining,
    Failure,
    FailureCode,
    InvalidSpec,
    NotFailed,
    NothingToFork,
    NotQueued,
    Refused,
    RequestNotFound,
    ResumeNotFound,
    SessionClosed,
    SessionFailed,
    TurnNotFound,
)
from session_supervisor.events import Event
from session_supervisor.incarnation import (
    ENDED,
    Down,
    Faulty,
    Incarnation,
    Moved,
    Probed,
    Said,
    Signal,
    Unchanged,
    Up,
)
from session_supervisor.latch import Latch
from session_supervisor.lifecycle import State, Trigger, advance
from session_supervisor.log import Draft
from session_supervisor.messages import (
    Accepted,
    Close,
    Closed,
    CloseReason,
    Configure,
    Control,
    Decide,
    Hibernate,
    Inspect,
    Inspection,
    Interrupt,
    Interrupted,
    InterruptOutcome,
    KeepStill,
    OnBusy,
    Query,
    Restart,
    Settings,
    Wake,
    Withdraw,
)
from session_supervisor.pool import Pool
from session_supervisor.quotas import Place
from session_supervisor.requests import (
    NOBODY_THERE,
    STOPPED,
    AskingPolicy,
    asked_event,
    check_decision,
    expired,
    resolution_of,
    resolved_event,
    with_rules,
)
from session_supervisor.results import Accounting, Origin, Outcome, Phase
from session_supervisor.shielding import to_the_end
from session_supervisor.slots import Slots
from session_supervisor.spec import Prompt, SessionKind
from session_supervisor.stores.records import Claim
from session_supervisor.timers import Timers, is_due
from session_supervisor.turns import Turn

logger = logging.getLogger(__name__)

CHECKPOINT_EVENTS = 256
CHECKPOINT_S = 0.25
"""Published events, and seconds, after which they are stored, though no block has ended."""

RESERVED_EVENTS = 4 * CHECKPOINT_EVENTS
"""Numbers that are set aside for what is shown before it is stored, while there is a turn."""


_LOST = "in the middle of the turn. What the turn did until then is done; ask again to go on."

SERVER_RESTART = Failure(
    code=FailureCode.CRASHED,
    message=f"The server went away {_LOST}",
    retryable=True,
    cause="server_restart",
)
"""What became of a turn that ran under the supervisor before this."""

SERVER_FAULT = Failure(
    code=FailureCode.CRASHED,
    message=f"The server made a mistake, or could not store what it did, {_LOST}",
    retryable=True,
    cause="server_fault",
)
"""What became of a turn whose actor ended by a fault."""


AT_HAND_S = 0.05
"""Seconds that the acceptance of a query may wait for a process that only has to be looked at.

That takes a few milliseconds, and then the query is stored along with its start. Whoever waits to
hear that it was accepted need not notice where it takes longer.
"""

SETTLING_S = 1.0
"""Seconds after the end of work in the background in which an agent may begin a turn about it."""


class Timer(StrEnum):
    """An actor's deadlines, besides those of its turns."""

    RESTART = "restart"
    MODEL = "model_watchdog"
    SILENCE = "probe"
    INTERRUPT = "interrupt_escalation"
    GRACE = "drain_deadline"
    IDLE = "idle_timeout"
    EXPIRY = "expiry"
    SETTLING = "settling"
    AT_HAND = "process_at_hand"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class TurnDeadline:
    """When a turn is given up."""

    turn_id: str

    def __str__(self) -> str:
        return "turn_timeout"


@dataclass(frozen=True, slots=True)
class RequestDeadline:
    """When a request to a human is denied for want of an answer."""

    request_id: str

    def __str__(self) -> str:
        return "permission_timeout"


TOLD_BY_TURNS = frozenset({State.IDLE, State.RUNNING, State.WAITING})
"""States between which a turn's own events tell of the change."""

TOLD_WHEN_STORED = frozenset({State.FAILED, State.CLOSED})
"""States that readers hear of once that is stored, as of every end."""

PIECES = (TextDelta, ThinkingDelta)
"""What a turn says that readers see before it is stored."""

SIGNALS_AT_ONCE = 64
"""Signals that are served before queries and deadlines have their turn."""


@dataclass(slots=True, eq=False)
class Interruption:
    """An interrupt that waits for turns to end.

    Attributes:
        message: To be answered then.
        running: The turns that it is for.
        withdrawn: Queued turns that it took out.
    """

    message: Interrupt
    running: tuple[Turn, ...]
    withdrawn: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarted:
    """A process crashed and will be started again; for monitors.

    Attributes:
        session_id: Whose.
        attempt: How many times that has happened to the session.
        delay_s: Seconds until the start.
        cause: What is known of the crash.
    """

    session_id: str
    attempt: int
    delay_s: float
    cause: str


class Actor:
    """Runs one session.

    Args:
        core: The session.
        agent: Starts its processes.
        config: Limits and policies.
        slots: Room for processes.
        starting: Held while a process comes up, so that few do at the same time.
        prepare: Called before each start of a process.
        cut_off: What became of turns that it finds running.
        durable: Whether the session is there again after the supervisor: then it is not closed
            when that goes, and queued turns wait for the next.
        on_restart: Called for each crash that is followed by a restart.
        on_failed: Called when the session has given up and has no process any more.
        on_retried: Called when it is tried again after that, with what it counts as from now on.
        pool: Processes that stand ready; None: there are none.
    """

    def __init__(
        self,
        core: SessionCore,
        *,
        agent: Agent,
        config: SupervisorConfig,
        slots: Slots,
        starting: AbstractAsyncContextManager[object],
        prepare: Callable[[], Awaitable[None]],
        cut_off: Failure,
        durable: bool,
        on_restart: Callable[[Restarted], None],
        on_failed: Callable[[], None],
        on_retried: Callable[[Place | None], None],
        pool: Pool | None = None,
    ) -> None:
        self._core = core
        self._mailbox = core.mailbox
        self._ledger = core.ledger
        self._log = core.log
        self._requests = core.requests
        self._agent = agent
        self._config = config
        self._watchdogs = config.watchdogs
        self._slots = slots
        self._starting = starting
        self._prepare = prepare
        self._cut_off = cut_off
        self._durable = durable
        self._on_restart = on_restart
        self._on_failed = on_failed
        self._on_retried = on_retried
        self._pool = pool

        self._timers = Timers()
        self._signals: list[Signal] = []
        self._queued: dict[str, Turn] = {}
        self._interrupts: list[Interruption] = []
        self._restarts: list[Restart] = []
        self._stills: list[KeepStill] = []
        """Of those who want it to keep still, who were not answered yet."""
        self._closes: list[Close] = []
        self._close_reason: CloseReason | None = None
        self._slept = False
        """Whether it had no process, and needed none, when it was to end."""
        self._finished = False
        self._agent_turns = 0

        self._incarnation: Incarnation | None = None
        self._last_exit: Exit | None = None
        self._handed: Turn | None = None
        """The user's turn that is with the agent."""
        self._query: Query | None = None
        """What was handed over last."""
        self._alone: Turn | None = None
        """The turn that the agent began by itself and is busy with."""
        self._owed: set[str] = set()
        """Prompts with the agent whose turns have had their end."""
        self._owes_own = False
        """Whether the agent is busy with a turn of its own that has had its end."""
        self._answering: tuple[str, ...] = ()
        """The prompts of the turn that the agent is in."""
        self._tools: dict[str, str] = {}
        self._time_left: dict[str, float] = {}
        """Seconds that turns still have whose time stands still."""
        self._untold: list[str] = []
        """Requests that were cancelled, of which the agent is to be told once it has stopped."""
        self._in_force = core.spec
        """What the process was started with, or told since."""
        self._stale = False
        """Whether the process could not be told, so that there has to be another."""
        self._model_cause = "no_first_byte"
        self._background = 0
        self._strayed = False
        self._had_a_turn = False
        """Whether its process was handed a prompt."""
        self._wanted = False
        """Whether somebody wants a process while the last one is being stopped."""
        self._last_message: float | None = None
        self._last_piece = float("-inf")
        self._probing = False
        self._started_at = self._up_at = 0.0

    async def run(self) -> None:
        """Serve the session until it is closed; nothing of it runs then.

        Raises:
            ExceptionGroup: The store failed, or this has a bug. No process is left.
        """
        async with asyncio.TaskGroup() as self._tasks:
            try:
                await self._begin()
                await self._serve()
                while not self._closed:
                    await self._core.wakeup.wait(self._timers.earliest())
                    await self._serve()
            except BaseException:
                # Leaving the group would cancel the task that stops the process.
                if self._incarnation is not None:
                    self._incarnation.give_up()
                    await to_the_end(self._incarnation.gone.wait())
                raise
            finally:
                self._core.wakeup.mute()

    async def _begin(self) -> None:
        """Start a process or, in a session that was found, mend what its last one left behind."""
        if self._core.state is State.STARTING:
            self._start_process()
            await asyncio.sleep(0)  # its task takes one that stands ready, if there is one
            if self._live().at_hand:
                self._timers.set(Timer.AT_HAND, self._now() + AT_HAND_S)
            return
        waiting: list[Query] = []
        for turn in self._ledger.open():
            if turn.phase is Phase.RUNNING:
                await self._end(turn, Outcome.LOST, self._cut_off)
            else:
                waiting.append(self._query_of(turn))
                self._queued[turn.turn_id] = turn
        await self._resolve_all(Resolution.LOST)
        for query in reversed(waiting):
            query.reply.settle(Accepted(turn_id=query.key, seq=0, position=0))
            self._mailbox.put_back(query)
            if query.timeout_s is not None:
                self._timers.set(TurnDeadline(query.key), self._now() + query.timeout_s)
        if self._core.state is State.FAILED:
            stored = self._core.stored
            await self._be_failed(
                self._core.failure or "",
                FailureCode.SESSION_FAILED,
                told=stored is not None and stored.state is State.FAILED,
            )
        elif self._core.kind is SessionKind.ONEOFF and not waiting:
            self._finished = True

    def _query_of(self, turn: Turn) -> Query:
        """Return what was asked of a turn that was found waiting."""
        return Query(
            prompt=Prompt(
                prompt_id=turn.turn_id,
                text=turn.prompt,
                attachments=turn.attachments,
                command=turn.command,
            ),
            timeout_s=turn.timeout_s,
            on_permission=turn.on_permission,
            permission_timeout_s=turn.permission_timeout_s,
            budget_usd=turn.budget_usd,
        )

    # -- serving -------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Serve everything there is, and then tell readers what is new."""
        if not self._serve_pieces():
            while not self._closed and await self._serve_some():
                # Many may have come while the store was waited for. The rest is looked at again
                # in any case: a turn that was only just handed over has more to be done for it.
                self._serve_pieces()
        self._log.tell()

    def _serve_pieces(self) -> bool:
        """Serve pieces of what a turn says; return whether there is nothing else to serve.

        That is what happens most. It needs neither the store nor a decision, and of what is looked
        at after anything else that happens, nothing depends on it.
        """
        signals, log, mailbox = self._signals, self._log, self._mailbox
        turn = self._speaker()
        if self._core.state is not State.RUNNING or turn is None or mailbox.waiting_control:
            return False
        now = self._now()
        room = min(SIGNALS_AT_ONCE, CHECKPOINT_EVENTS - log.unstored)
        count = 0
        for signal in signals:
            if not isinstance(signal, Said) or not isinstance(signal.message, PIECES):
                break
            if count == room or signal.incarnation is not self._incarnation:
                break
            self._on_piece(signal.message, turn)
            count += 1
        if count:
            del signals[:count]
            self._live().served(count)
            self._note_piece(now)
        return not (
            signals
            or log.unseen
            or log.unstored >= CHECKPOINT_EVENTS
            or mailbox.has_new_work
            or self._timers.is_due(now)
        )

    async def _serve_some(self) -> bool:
        """Serve what is here now; return whether there may be more."""
        for _ in range(min(len(self._signals), SIGNALS_AT_ONCE)):
            await self._serve_control()
            await self._on_signal(self._signals.pop(0))
        await self._serve_control()
        if not self._soon_up:
            await self._accept_all(may_begin=True)
        while (timer := self._timers.pop_due(self._now())) is not None:
            await self._on_timer(timer)
        if self._finished and self._core.state is not State.CLOSING and not self._closed:
            await self._shut_down(CloseReason.FINISHED)
        self._tell_stopped()
        self._let_others()
        if self._core.state is State.IDLE and not self._replace() and await self._hand_over():
            return True
        if self._core.state is State.HIBERNATED and (self._wanted or self._mailbox.waiting_work):
            self._wake()
        await self._serve_restarts()
        self._keep_still()
        self._watch_idleness()
        if self._log.unseen and self._core.state is not State.CLOSING:
            await self._commit()
        new_work = self._mailbox.has_new_work and not self._soon_up
        return bool(self._signals or self._mailbox.waiting_control or new_work)

    async def _serve_control(self) -> None:
        while (control := self._mailbox.next_control()) is not None:
            await self._on_control(control)

    async def _on_control(self, message: Control) -> None:
        match message:
            case Inspect():
                self._on_inspect(message)
            case Interrupt():
                await self._on_interrupt(message)
            case Decide():
                await self._on_decide(message)
            case Withdraw():
                await self._on_withdraw(message)
            case Configure():
                await self._on_configure(message)
            case Restart():
                await self._on_restart_asked(message)
            case KeepStill():
                self._stills.append(message)  # until all is served that came before
            case Hibernate():
                if not self._hibernate():
                    # So that it is asked again, once it rests.
                    self._slots.works(self._core.session_id)
                message.reply.settle(self._core.state)
            case Wake():
                self._wake()
                message.reply.settle(self._core.state)
            case Close():
                await self._on_close(message)

    async def _on_signal(self, signal: Signal) -> None:
        if isinstance(signal, Down):
            await self._on_down(signal)
        elif isinstance(signal, Moved):
            await self._commit()
            signal.stored.set()
        elif signal.incarnation.given_up or signal.incarnation is not self._incarnation:
            return
        else:
            match signal:
                case Said():
                    signal.incarnation.served()
                    await self._on_message(signal.message)
                case Up():
                    self._timers.clear(Timer.AT_HAND)
                    self._up_at = self._now()
                    self._advance(Trigger.STARTED)
                    self._configure_process()
                case Probed():
                    self._probing = False
                    self._watch_silence()
                case Unchanged():
                    self._stale = True
                case Faulty():
                    signal.incarnation.give_up()
                    if self._handed is not None and not signal.incarnation.took(
                        self._handed.turn_id
                    ):
                        self._put_back()
                    await self._crashed(signal.cause)

    async def _on_timer(self, timer: Hashable) -> None:
        match timer:
            case TurnDeadline():
                await self._time_out(timer.turn_id)
            case RequestDeadline():
                await self._expire(timer.request_id)
            case Timer.MODEL:
                if not self._moved(timer):
                    await self._stalled()
            case Timer.SILENCE:
                if not self._moved(timer) and (self._busy or self._background):
                    self._probing = True
                    self._live().probe()
            case Timer.INTERRUPT:
                await self._escalate()
            case Timer.RESTART:
                # While the crashed process is still being removed, `_on_down` starts the next.
                if self._incarnation is None:
                    self._restart()
            case Timer.GRACE:
                await self._shut_down(CloseReason.DRAINED)
            case Timer.IDLE:
                self._hibernate()
            case Timer.EXPIRY:
                # Something may have begun since it was looked at last.
                if self._at_rest or (self._asleep and not self._mailbox.waiting_work):
                    await self._shut_down(CloseReason.EXPIRED)
            case Timer.CHECKPOINT:
                await self._commit()
            case Timer.SETTLING:
                pass  # the process may be spared now, if it is at rest
            case Timer.AT_HAND:
                pass  # what was asked is accepted now
            case _:
                raise AssertionError(f"nothing is known of timer {timer!r}")

    # -- queries -------------------------------------------------------------------------

    async def _accept(self, query: Query, *, may_begin: bool) -> None:
        """Enter a query; if it is its turn already, hand it over: that is one commit, not two."""
        turn_id = query.key
        preempts = query.on_busy is OnBusy.INTERRUPT
        position = len(self._running) + (0 if preempts else len(self._queued))
        seq = self._log.next_seq
        turn = self._ledger.accept(
            turn_id,
            origin=Origin.USER,
            prompt=query.prompt.text,
            first_seq=seq,
            on_permission=query.on_permission,
            permission_timeout_s=query.permission_timeout_s,
            attachments=query.prompt.attachments,
            command=query.prompt.command,
            budget_usd=query.budget_usd,
            timeout_s=query.timeout_s,
            place=query.place,
        )
        if preempts:
            self._queued = {turn_id: turn, **self._queued}
            self._mailbox.prefer(turn_id)
        else:
            self._queued[turn_id] = turn
        self._core.active_at = turn.accepted_at
        self._timers.clear(Timer.IDLE, Timer.EXPIRY)
        if query.timeout_s is not None:
            self._timers.set(TurnDeadline(turn_id), turn.accepted_time + query.timeout_s)
        accepted = events.Turn(phase="accepted", origin=Origin.USER, position=position)
        drafts: list[Draft] = [(accepted, turn_id)]
        at_once = may_begin and self._can_begin(query)
        if at_once:
            self._mailbox.withdraw(turn_id)
            drafts.append(self._begin_turn(turn, query))
        claims = () if query.claim is None else (query.claim,)
        await self._commit(*drafts, claims=claims)
        if at_once:
            self._send(turn, query)
        query.reply.settle(Accepted(turn_id=turn_id, seq=seq, position=position))
        running = self._running and self._core.state in (State.RUNNING, State.WAITING)
        if preempts and running and not at_once:
            await self._stop_running()

    async def _hand_over(self) -> bool:
        """Give the agent, which is at rest, the next turn; False without one."""
        query = self._mailbox.take()
        if query is None:
            return False
        turn = self._queued[query.key]
        try:
            self._core.check_budgets(query.budget_usd)
        except BudgetExceeded as error:  # since it was accepted
            del self._queued[query.key]
            failure = Failure(code=FailureCode.BUDGET, message=str(error))
            await self._end(turn, Outcome.FAILED, failure)
            return True
        await self._commit(self._begin_turn(turn, query))
        self._send(turn, query)
        return True

    @property
    def _soon_up(self) -> bool:
        """Whether a process is about to be up, so that what is asked is begun as it is accepted."""
        return self._timers.is_set(Timer.AT_HAND) and self._live().at_hand

    def _can_begin(self, query: Query) -> bool:
        """Whether a query that is just being entered can be handed over at once."""
        # Where somebody waits for room, or the process is to be another one, that is looked at
        # first: `_let_others`, `_replace`.
        free = not (self._slots.waiting or self._stale or self._untold)
        if self._core.state is not State.IDLE or len(self._queued) > 1 or not free:
            return False
        with suppress(BudgetExceeded):
            self._core.check_budgets(query.budget_usd)
            return True
        return False

    def _begin_turn(self, turn: Turn, query: Query) -> Draft:
        """Enter that a turn is handed over; it is, once what this returns is stored."""
        del self._queued[turn.turn_id]
        waited_from = max(turn.accepted_time, self._started_at)
        self._ledger.start(turn, spawn_s=max(0.0, self._up_at - waited_from))
        self._handed, self._query, self._agent_turns = turn, query, 0
        self._had_a_turn = True
        self._advance(Trigger.TURN_BEGAN)
        return events.Turn(phase="started", origin=Origin.USER), turn.turn_id

    def _send(self, turn: Turn, query: Query) -> None:
        """Hand a turn over of which it is stored that it was begun."""
        turn.sent = True
        self._live().send(query.prompt)
        self._expect_model()
        self._watch_silence()

    def _put_back(self) -> None:
        """Let the turn wait again that was handed over and not taken, in front of all others."""
        turn, query = self._handed, self._query
        assert turn is not None
        assert query is not None
        self._handed = None
        self._ledger.put_back(turn)
        self._mailbox.put_back(query)
        self._queued = {turn.turn_id: turn, **self._queued}

    async def _accept_all(self, *, may_begin: bool = False) -> None:
        """Enter every query that was offered and is not in the ledger yet.

        Args:
            may_begin: Whether one whose turn it is may be handed over as well.
        """
        while (query := self._mailbox.acknowledge()) is not None:
            await self._accept(query, may_begin=may_begin)

    async def _withdraw(self, turn_id: str, outcome: Outcome, failure: Failure | None) -> None:
        """End a turn that no process has seen."""
        self._mailbox.withdraw(turn_id)
        await self._end(self._queued.pop(turn_id), outcome, failure)

    async def _on_withdraw(self, message: Withdraw) -> None:
        await self._accept_all()
        turn_id = message.turn_id
        if turn_id in self._queued:
            await self._withdraw(turn_id, Outcome.INTERRUPTED, None)
            message.reply.settle(None)
        elif self._ledger.find(turn_id) is not None:
            message.reply.refuse(NotQueued(turn_id, running=True))
        else:
            message.reply.refuse(TurnNotFound(turn_id))  # nor does it wait if it has ended

    async def _withdraw_all(self, outcome: Outcome, failure: Failure | None) -> None:
        await self._accept_all()
        for turn_id in list(self._queued):
            await self._withdraw(turn_id, outcome, failure)

    async def _time_out(self, turn_id: str) -> None:
        failure = Failure(
            code=FailureCode.TIMEOUT,
            message="The turn took longer than it was allowed to and was stopped.",
            retryable=True,
        )
        if turn_id in self._queued:
            await self._withdraw(turn_id, Outcome.FAILED, failure)
        elif self._handed is not None and self._handed.turn_id == turn_id:
            await self._abandon(failure, self._handed)

    # -- what the agent says ---------------------------------------------------------------

    async def _on_message(self, message: AgentMessage) -> None:
        self._last_message = self._now()
        self._watch_silence()
        match message:
            case Initialized():
                self._core.agent_session_id = message.agent_session_id
            case BackgroundWork():
                if self._background and not message.pending:
                    self._timers.set(Timer.SETTLING, self._now() + SETTLING_S)
                self._background = message.pending
                self._watch_silence()
            case TurnBegan():
                await self._on_turn_began(message)
            case TurnEnded():
                await self._on_turn_ended(message)
            case Alive():
                pass
            case PermissionAsked() | QuestionAsked():
                await self._on_asked(message)
            case AskWithdrawn(request_id):
                await self._on_ask_withdrawn(request_id)
            case UpstreamLimit():
                self._on_limit(message)
            case ToolStarted() | ToolFinished() if message.parent_tool_use_id is not None:
                await self._on_subagent(message)
            case _:
                turn = self._speaker()
                if turn is not None:
                    await self._on_content(message, turn)
                elif not self._owed and not self._owes_own:
                    self._on_stray(message)
        if self._log.unstored >= CHECKPOINT_EVENTS:
            await self._commit()

    async def _on_content(
        self,
        message: TextDelta
        | TextBlock
        | TextWithdrawn
        | ThinkingDelta
        | ToolStarted
        | ToolFinished
        | UpstreamRetry,
        turn: Turn,
    ) -> None:
        match message:
            case TextDelta() | ThinkingDelta():
                self._on_piece(message, turn)
                self._expect_progress()
            case TextBlock(text):
                self._correct(turn, turn.answer.confirm(text, last_seq=self._log.last_seq))
                await self._commit()
                self._expect_progress()
            case TextWithdrawn(blocks):
                self._correct(turn, turn.answer.withdraw(blocks))
                self._expect_model()
            case ToolStarted():
                self._core.has_context = True
                self._tools[message.tool_use_id] = message.name
                self._timers.clear(Timer.MODEL)
                await self._commit((_tool_event(message), turn.turn_id))
            case ToolFinished():
                self._tools.pop(message.tool_use_id, None)
                self._expect_model()
                await self._commit((_tool_event(message), turn.turn_id))
            case UpstreamRetry():
                retrying = events.Retrying(
                    attempt=message.attempt,
                    max_attempts=message.max_attempts,
                    delay_ms=round(message.delay_s * 1000),
                    status=message.status,
                    reason=message.reason,
                )
                self._publish(retrying, turn.turn_id)
                self._expect_model(after_s=message.delay_s)

    def _on_piece(self, message: TextDelta | ThinkingDelta, turn: Turn) -> None:
        """Publish a piece of what a turn says."""
        if isinstance(message, TextDelta):
            self._say(turn, turn.answer.delta(message.text, last_seq=self._log.last_seq))
        elif self._core.spec.thinking is not False:
            self._publish(events.Thinking(content=message.text), turn.turn_id)

    def _on_limit(self, message: UpstreamLimit) -> None:
        """Say how near the upstream's limit is."""
        self._core.pacing.hear(self._core.owner, message)
        turn = self._speaker()
        limit = events.RateLimit(
            rejected=message.rejected,
            resets_at=message.resets_at,
            kind=message.kind,
            utilization=message.utilization,
        )
        self._publish(limit, None if turn is None else turn.turn_id)

    def _on_stray(self, message: AgentMessage) -> None:
        """Say once that the adapter breaks its contract; there is no turn that this could be of."""
        if not self._strayed:
            self._strayed = True
            logger.warning(
                "session %s: the agent sent a %s outside of any turn, which is dropped",
                self._core.session_id,
                type(message).__name__,
                extra={"session_id": self._core.session_id},
            )

    async def _on_subagent(self, message: ToolStarted | ToolFinished) -> None:
        """Log what a subagent does. It may outlive the turn that started it, and begins none."""
        turn = self._alone or self._handed
        await self._commit((_tool_event(message), None if turn is None else turn.turn_id))

    def _correct(self, turn: Turn, correction: Correction) -> None:
        if correction.discard_after is not None:
            self._publish(events.Discard(after=correction.discard_after), turn.turn_id)
        self._say(turn, correction.content)

    def _say(self, turn: Turn, content: str) -> None:
        if content:
            if turn.first_text_time is None:
                turn.first_text_time = self._now()
            self._core.has_context = True
            self._publish(events.Text(content=content), turn.turn_id)

    def _speaker(self) -> Turn | None:
        """Return the turn that content belongs to; None where that has had its end."""
        if self._alone is not None:
            return self._alone
        if self._owes_own or (self._owed and not self._owed.isdisjoint(self._answering)):
            return None
        return self._handed

    async def _on_turn_began(self, message: TurnBegan) -> None:
        self._answering = message.prompt_ids
        if not message.prompt_ids and self._alone is None:
            await self._begin_alone()

    async def _begin_alone(self) -> None:
        """Enter a turn that the agent began by itself."""
        turn_id = str(uuid4())
        policy = self._asking_policy
        self._alone = turn = self._ledger.accept(
            turn_id,
            origin=Origin.AGENT,
            prompt="",
            first_seq=self._log.next_seq,
            on_permission=policy.on_permission,
            permission_timeout_s=policy.timeout_s,
        )
        self._ledger.start(turn)
        if self._core.state is State.IDLE:
            self._advance(Trigger.TURN_BEGAN)
        self._timers.clear(Timer.IDLE)
        await self._commit((events.Turn(phase="started", origin=Origin.AGENT), turn_id))
        self._expect_model()
        self._watch_silence()
        self._agent_turns += 1
        if self._agent_turns > self._config.max_agent_turns:
            await self._abandon(
                Failure(
                    code=FailureCode.AGENT_TURN_LIMIT,
                    message=f"The agent began {self._agent_turns} turns in a row by itself, more "
                    "than it may. Query the session to let it go on.",
                ),
                turn,
            )

    async def _on_turn_ended(self, message: TurnEnded) -> None:
        cost_usd = self._charge(message.cost_usd)
        accounting = Accounting(
            num_turns=message.num_turns,
            total_cost_usd=cost_usd,
            usage=message.usage,
            stop_reason=message.stop_reason,
            permission_denials=message.permission_denials,
            structured_output=message.structured_output,
            anchor=message.anchor,
        )
        if message.failure is not None:
            outcome = Outcome.FAILED
        elif message.interrupted:
            outcome = Outcome.INTERRUPTED
        else:
            outcome = Outcome.COMPLETED
            self._core.has_context = True
            self._core.pacing.succeeded(self._core.owner)
        self._tools.clear()
        self._answering = ()
        self._owed.difference_update(message.prompt_ids)
        self._owes_own = False
        alone, handed = self._alone, self._handed
        answered = handed is not None and handed.turn_id in message.prompt_ids
        if alone is not None:
            self._alone = None
            # Answering both at once, the agent accounts for both in the user's turn.
            await self._end(
                alone, outcome, message.failure, Accounting() if answered else accounting
            )
        if handed is not None and answered:
            self._handed = None
            await self._end(handed, outcome, message.failure, accounting)
        if self._handed is not None:
            self._expect_model()
        elif self._owed:
            # What was given up before the agent came to it must not run now.
            self._get_off()
        else:
            await self._rest()

    def _charge(self, conversation_cost_usd: float) -> float:
        """Enter what the conversation has cost by now; return how much that is more."""
        cost_usd = self._ledger.charge(conversation_cost_usd)
        self._core.spending.add(self._core.owner, cost_usd)
        return cost_usd

    async def _rest(self) -> None:
        """The agent is done and waits for the next prompt."""
        self._timers.clear(Timer.MODEL, Timer.SILENCE, Timer.INTERRUPT)
        self._watch_silence()
        self._live().let_go()
        if self._core.state is State.DRAINING:
            await self._shut_down(CloseReason.DRAINED)
        elif self._core.state is not State.IDLE:
            self._advance(Trigger.TURN_ENDED)

    # -- what needs a human ------------------------------------------------------------------

    async def _on_asked(self, asked: PermissionAsked | QuestionAsked) -> None:
        """Have a human asked, if that is wanted."""
        turn = self._speaker()
        stopping = self._timers.is_set(Timer.INTERRUPT) or (
            turn is None and bool(self._owed or self._owes_own)
        )
        policy = self._asking_policy
        if turn is not None:
            policy = AskingPolicy(
                on_permission=turn.on_permission, timeout_s=turn.permission_timeout_s
            )
        if stopping or policy.on_permission == "deny":
            self._live().answer(asked.request_id, STOPPED if stopping else NOBODY_THERE)
            return
        if self._requests.find(asked.request_id) is not None:
            return
        turn_id = None if turn is None else turn.turn_id
        request = self._requests.ask(asked, turn_id=turn_id, timeout_s=policy.timeout_s)
        if request.expires_at is not None:
            left_s = (request.expires_at - request.asked_at).total_seconds()
            self._timers.set(RequestDeadline(request.request_id), self._now() + left_s)
        if turn_id is not None and (ends := self._timers.at(TurnDeadline(turn_id))) is not None:
            self._timers.clear(TurnDeadline(turn_id))
            self._time_left[turn_id] = ends - self._now()
        self._watch_humans()
        await self._commit((asked_event(request), turn_id))

    async def _on_decide(self, message: Decide) -> None:
        request_id, decision = message.request_id, message.decision
        request = self._requests.find(request_id)
        if request is None:
            message.reply.refuse(RequestNotFound(request_id))  # the session knows what it was
            return
        try:
            check_decision(request, decision)
        except InvalidSpec as error:
            message.reply.refuse(error)
            return
        over = await self._answer(request, resolution_of(decision), decision, decision)
        message.reply.settle(over)
        ends = isinstance(decision, Deny) and decision.end_turn
        if ends and any(turn.turn_id == request.turn_id for turn in self._running):
            await self._stop_running()

    async def _expire(self, request_id: str) -> None:
        """Deny what nobody has answered in time."""
        request = self._requests.find(request_id)
        assert request is not None, "its deadline goes with it"
        assert request.expires_at is not None
        limit_s = (request.expires_at - request.asked_at).total_seconds()
        await self._answer(request, Resolution.EXPIRED, None, expired(limit_s))

    async def _answer(
        self, request: Request, resolution: Resolution, decision: Decision | None, told: Decision
    ) -> Request:
        """Resolve a request, and tell the agent once that is stored.

        Args:
            request: Which.
            resolution: What becomes of it.
            decision: The answer that it had, if it had one.
            told: What the agent is told.
        """
        core = self._core
        rules = core.rules
        if isinstance(told, Allow):
            core.rules = with_rules(rules, told.remember)
        message = told.message if isinstance(told, Deny) else None
        over = self._resolve(request, resolution, decision)
        try:
            await self._commit((resolved_event(over, message), over.turn_id))
        except BaseException:
            core.rules = rules
            raise
        self._live().answer(over.request_id, told)
        if over.turn_id is not None:
            self._expect_model()
        return over

    async def _on_ask_withdrawn(self, request_id: str) -> None:
        """The agent does not need an answer any more."""
        request = self._requests.find(request_id)
        if request is not None:
            over = self._resolve(request, Resolution.CANCELLED)
            await self._commit((resolved_event(over), over.turn_id))
            if over.turn_id is not None:
                self._expect_model()

    def _resolve(
        self, request: Request, resolution: Resolution, decision: Decision | None = None
    ) -> Request:
        """Enter what becomes of a request, which is to be stored next."""
        over = self._requests.resolve(request, resolution, decision)
        turn_id = over.turn_id
        self._timers.clear(RequestDeadline(over.request_id))
        if turn_id in self._time_left and not self._requests.of({turn_id}):
            left_s = self._time_left.pop(turn_id)
            self._timers.set(TurnDeadline(turn_id), self._now() + left_s)
        self._watch_humans()
        return over

    async def _resolve_all(self, resolution: Resolution, *turns: Turn) -> None:
        """End what waits for a human without an answer.

        Args:
            resolution: How.
            turns: Whose; none: all that there is.
        """
        asked = (
            self._requests.of([turn.turn_id for turn in turns]) if turns else self._requests.open
        )
        if asked:
            over = [self._resolve(request, resolution) for request in asked]
            await self._commit(*((resolved_event(one), one.turn_id) for one in over))
            self._untold += [one.request_id for one in over]

    async def _stop_running(self) -> None:
        """Have the agent stop what it does; nobody need answer what it asked about it."""
        if self._running:
            await self._resolve_all(Resolution.CANCELLED, *self._running)
        self._get_off()

    def _tell_stopped(self) -> None:
        """Tell the agent that nobody will answer what it asked, in case it waits for that still."""
        untold, self._untold = self._untold, []
        for request_id in untold:
            if self._incarnation is not None and self._incarnation.up:
                self._incarnation.answer(request_id, STOPPED)

    def _watch_humans(self) -> None:
        """Note whether a turn waits for a human."""
        if self._awaits_human:
            self._timers.clear(Timer.MODEL)
            if self._core.state is State.RUNNING:
                self._advance(Trigger.ASKED)
        elif self._core.state is State.WAITING:
            self._advance(Trigger.ANSWERED)

    @property
    def _awaits_human(self) -> bool:
        """Whether a turn that is with the agent waits for a human."""
        turns = [turn.turn_id for turn in self._running]
        return self._requests.any_open and bool(self._requests.of(turns))

    @property
    def _asking_policy(self) -> AskingPolicy:
        """What happens to what needs a human outside of a turn that somebody asked for."""
        return AskingPolicy.of(self._core.spec, kind=self._core.kind, config=self._config)

    # -- ends ----------------------------------------------------------------------------

    async def _end(
        self,
        turn: Turn,
        outcome: Outcome,
        failure: Failure | None = None,
        accounting: Accounting | None = None,
        *,
        forced: bool = False,
    ) -> None:
        """Give a turn its end: into the ledger, then the log, then to whoever waits for it.

        Args:
            turn: Which.
            outcome: How it ended.
            failure: Why there is no answer, if there is none.
            accounting: What it took, where the agent has said so.
            forced: Whether it ended with its process.
        """
        asked = self._requests.of({turn.turn_id})
        resolution = Resolution.LOST if outcome is Outcome.LOST else Resolution.CANCELLED
        over = [self._resolve(request, resolution) for request in asked]
        self._timers.clear(TurnDeadline(turn.turn_id))
        if self._query is not None and self._query.key == turn.turn_id:
            self._query = None
        last_seq = self._log.next_seq + len(over) + (accounting is not None)
        result = self._ledger.end(
            turn, outcome, last_seq=last_seq, failure=failure, accounting=accounting
        )
        self._core.active_at = self._core.clock.now()
        spent = result.accounting
        drafts: list[Draft] = [(resolved_event(one), one.turn_id) for one in over]
        if accounting is not None:
            drafts.append(
                (
                    events.Result(
                        num_turns=spent.num_turns,
                        total_cost_usd=spent.total_cost_usd,
                        usage=spent.usage,
                        stop_reason=spent.stop_reason,
                        permission_denials=spent.permission_denials,
                        structured_output=spent.structured_output,
                    ),
                    turn.turn_id,
                )
            )
        drafts.append((events.end_of(result), turn.turn_id))
        *_, end = await self._commit(*drafts)
        self._ledger.announce(turn, end)
        if outcome is not Outcome.LOST and not forced:
            self._untold += [one.request_id for one in over]
        self._settle_interrupts(forced=forced)
        if self._core.kind is SessionKind.ONEOFF and turn.origin is Origin.USER:
            self._finished = True

    async def _give_up_turn(
        self, turn: Turn, outcome: Outcome, failure: Failure | None = None, *, forced: bool = False
    ) -> None:
        """End a turn that is with the agent, which may not have noticed."""
        if turn is self._alone:
            self._alone, self._owes_own = None, True
        else:
            self._handed = None
            self._owed.add(turn.turn_id)
        await self._end(turn, outcome, failure, forced=forced)

    async def _give_up_turns(
        self, outcome: Outcome, failure: Failure | None = None, *, forced: bool = False
    ) -> None:
        for turn in (self._alone, self._handed):
            if turn is not None:
                await self._give_up_turn(turn, outcome, failure, forced=forced)

    async def _abandon(self, failure: Failure, *turns: Turn) -> None:
        """End running turns now, and get the agent off them in bounded time."""
        for turn in turns:
            await self._give_up_turn(turn, Outcome.FAILED, failure)
        if self._alone is not None or self._handed is not None:
            # The agent is in another one, and is told when it comes to this.
            self._expect_model()
        elif self._core.state is State.DRAINING:
            await self._shut_down(CloseReason.DRAINED)
        else:
            self._get_off()

    def _get_off(self) -> None:
        """Tell the agent to stop what it does, and see to it that it will."""
        self._timers.clear(Timer.MODEL)
        if self._core.state is State.RUNNING:
            self._advance(Trigger.INTERRUPT)
        if not self._timers.is_set(Timer.INTERRUPT):
            self._timers.set(Timer.INTERRUPT, self._now() + self._watchdogs.interrupt_s)
            self._live().interrupt()

    async def _stalled(self) -> None:
        limit = (
            self._watchdogs.first_byte_s
            if self._model_cause == "no_first_byte"
            else self._watchdogs.progress_s
        )
        failure = Failure(
            code=FailureCode.STALLED,
            message=f"The model said nothing for {limit:g} s, so the turn was given up.",
            retryable=True,
            cause=self._model_cause,
        )
        # One that waits behind a turn of the agent's own has heard nothing for as long.
        await self._abandon(failure, *self._running)

    # -- interrupt -------------------------------------------------------------------------

    async def _on_interrupt(self, message: Interrupt) -> None:
        await self._accept_all()
        wanted = message.turn_id
        running = self._running
        withdraw: list[str] = list(self._queued) if message.queued else []
        if wanted is not None:
            running = tuple(each for each in running if each.turn_id == wanted)
            if not running and wanted not in self._queued and not message.ended:
                message.reply.refuse(TurnNotFound(wanted))
                return
            if wanted in self._queued:
                withdraw = [wanted]
        elif not running and not withdraw and not self._owed and not self._owes_own:
            # Nothing is in front of the next turn but the start of a process: to its caller
            # it is the one that runs.
            withdraw = list(self._queued)[:1]
        for turn_id in withdraw:
            await self._withdraw(turn_id, Outcome.INTERRUPTED, None)
        self._interrupts.append(Interruption(message, running, tuple(withdraw)))
        if running:
            await self._stop_running()
        else:
            self._settle_interrupts()

    def _settle_interrupts(self, *, forced: bool = False) -> None:
        """Answer the interrupts whose turns have all ended."""
        waiting: list[Interruption] = []
        for interrupt in self._interrupts:
            if not all(turn.announced.is_set() for turn in interrupt.running):
                waiting.append(interrupt)
                continue
            turn_ids = interrupt.withdrawn + tuple(
                turn.turn_id
                for turn in interrupt.running
                if turn.result is not None and turn.result.outcome is Outcome.INTERRUPTED
            )
            if forced:
                outcome = InterruptOutcome.ESCALATED
            elif turn_ids:
                outcome = InterruptOutcome.INTERRUPTED
            else:
                outcome = InterruptOutcome.NOTHING_RUNNING
            interrupt.message.reply.settle(Interrupted(outcome=outcome, turn_ids=turn_ids))
        self._interrupts = waiting

    async def _escalate(self) -> None:
        """The agent did not come to rest in time: end its process, and resume with another."""
        await self._give_up_turns(Outcome.INTERRUPTED, forced=True)
        await self._resolve_all(Resolution.LOST)
        if self._core.state is State.DRAINING:
            await self._shut_down(CloseReason.DRAINED)
        else:
            self._forget_agent()
            self._live().give_up()

    # -- process ---------------------------------------------------------------------------

    def _start_process(self) -> None:
        core = self._core
        self._strayed = self._stale = self._had_a_turn = False
        self._in_force = core.spec
        self._started_at = self._now()
        fingerprint = Fingerprint.of(
            core.spec,
            owner=core.owner,
            cwd=core.cwd,
            kind=core.kind,
            # A query may want to be asked though the one before did not.
            asks=core.kind is SessionKind.CONVERSATION
            or self._asking_policy.on_permission == "ask",
            rules=core.rules,
        )
        fingerprint = replace(
            fingerprint,
            max_budget_usd=conversation_budget(
                core.spec.max_budget_usd,
                spent_usd=core.ledger.total_cost_usd,
                conversation_usd=core.ledger.conversation_cost_usd,
            ),
        )
        seat = None
        if self._pool is not None:
            seat = self._pool.seat(
                core.session_id,
                fingerprint,
                private=core.private,
                resume=core.agent_session_id,
                adopt=self._move,
                store=self._store_move,
            )
        self._incarnation = Incarnation(
            self._agent,
            fingerprint,
            binding=Binding(session_id=core.session_id),
            resume=core.agent_session_id,
            watchdogs=self._watchdogs,
            slots=self._slots,
            starting=self._starting,
            prepare=self._prepare,
            post=self._post,
            tasks=self._tasks,
            seat=seat,
        )
        core.look = self._incarnation.tree

    def _move(self, directory: Path) -> None:
        """Work somewhere else; it is stored before anything is handed over, and with the end."""
        self._core.cwd = str(directory)

    def _store_move(self) -> Latch:
        """Have it stored where the session works; return what is set then."""
        stored = Latch()
        self._post(Moved(stored))
        return stored

    def _restart(self) -> None:
        self._advance(Trigger.RETRY)
        self._start_process()

    def _post(self, signal: Signal) -> None:
        self._signals.append(signal)
        self._core.wakeup.ring()

    async def _on_down(self, signal: Down) -> None:
        given_up = signal.incarnation.given_up
        self._incarnation = None
        self._core.look = None
        if signal.incarnation.came_up or self._last_exit is None:
            self._last_exit = signal.exit
        self._forget_agent()
        state = self._core.state
        # Of what it did when it was given up nothing counts but its price.
        unheard_usd = self._charge(signal.incarnation.cost_usd)
        if state is State.CLOSING:
            await self._finish()
            return
        if unheard_usd:
            await self._commit()
        if state is State.RESTARTING:
            if not self._timers.is_set(Timer.RESTART):
                self._restart()
        elif state is State.INTERRUPTING and given_up:
            self._advance(Trigger.STOPPED)
            self._start_process()
        elif state is State.HIBERNATING:
            self._advance(Trigger.STOPPED)
            await self._commit()
            # What it needs from here on, the store has.
            self._log.forget()
            self._query = self._last_exit = None
            if self._wanted:
                self._wake()
        elif state is State.FAILED:
            self._on_failed()
        else:
            await self._not_there(signal)

    async def _not_there(self, signal: Down) -> None:
        """The process went away by itself, or did not come up."""
        error = signal.error
        resumed = self._core.agent_session_id is not None
        if isinstance(error, ResumeNotFound) and resumed and not self._core.has_context:
            # It died before its first prompt was on record: there is nothing to resume.
            logger.info(
                "session %s begins its conversation anew: nothing was completed in the one before",
                self._core.session_id,
                extra={"session_id": self._core.session_id},
            )
            self._core.agent_session_id = None
            self._start_process()
        elif isinstance(error, (ResumeNotFound, AgentMissing)):
            await self._give_up(str(error), FailureCode.START_FAILED)
        elif isinstance(error, AgentStartFailed):
            await self._crashed(str(error), FailureCode.START_FAILED)
        else:
            await self._crashed(signal.exit.cause or ENDED)

    async def _crashed(self, cause: str, code: FailureCode = FailureCode.CRASHED) -> None:
        """Go on without the process: end what it had, and start another after a while."""
        self._forget_agent()
        lost = Failure(
            code=FailureCode.CRASHED,
            message=f"{cause} What the turn did until then is done; ask again to go on.",
            retryable=True,
        )
        await self._give_up_turns(Outcome.LOST, lost, forced=True)
        await self._resolve_all(Resolution.LOST)
        self._owed.clear()
        self._owes_own = False
        if self._core.state is State.DRAINING:
            await self._shut_down(CloseReason.DRAINED)
            return
        if self._finished:
            # A one-off has had its turn: nobody needs another process.
            await self._shut_down(CloseReason.FINISHED)
            return
        starting_s = 0.0
        if code is FailureCode.START_FAILED:  # it may have waited for its turn to start before
            starting_s = min(self._now() - self._started_at, self._watchdogs.start_s)
        delay = self._core.restarts.spend(self._now(), starting_s=starting_s)
        if delay is None:
            await self._give_up(f"It crashed too often. The last time: {cause}", code)
            return
        self._advance(Trigger.CRASHED, reason=cause)
        self._timers.set(Timer.RESTART, self._now() + delay)
        self._on_restart(
            Restarted(
                session_id=self._core.session_id,
                attempt=self._core.restarts.total,
                delay_s=delay,
                cause=cause,
            )
        )

    async def _give_up(self, cause: str, code: FailureCode) -> None:
        """Fail the session: no process, and no more work."""
        core = self._core
        self._advance(Trigger.GAVE_UP)
        core.failure = cause
        failed_code = code if code is FailureCode.START_FAILED else FailureCode.SESSION_FAILED
        await self._be_failed(cause, failed_code)

    async def _be_failed(self, cause: str, code: FailureCode, *, told: bool = False) -> None:
        core = self._core
        self._mailbox.shut_work(lambda: SessionFailed(core.session_id, cause))
        await self._withdraw_all(Outcome.FAILED, Failure(code=code, message=cause))
        if not told:
            await self._commit((events.Status(state=core.state, reason=cause), None))
        if self._incarnation is None:
            self._on_failed()

    async def _on_restart_asked(self, message: Restart) -> None:
        """Try again with a session that was given up."""
        core = self._core
        if core.state is not State.FAILED:
            message.refuse(NotFailed(core.session_id))
            return
        if self._incarnation is not None or self._kept_still:
            self._restarts.append(message)  # until the last process is gone
            return
        failure, core.failure = core.failure, None
        try:
            await self._commit()
        except BaseException:
            core.failure = failure
            raise
        core.restarts.forgive()
        self._mailbox.reopen()
        self._on_retried(message.place)
        self._restart()
        message.reply.settle(core.state)

    async def _serve_restarts(self) -> None:
        """Try again what could not be tried before the last process was gone."""
        if self._restarts and self._incarnation is None and not self._kept_still:
            restarts, self._restarts = self._restarts, []
            for message in restarts:
                await self._on_restart_asked(message)

    # -- keeping still -----------------------------------------------------------------------

    @property
    def _kept_still(self) -> bool:
        """Whether there must be no process, as its conversation is being copied."""
        core = self._core
        core.stills = [over for over in core.stills if not over.is_set()]
        return bool(core.stills)

    def _keep_still(self) -> None:
        """Answer those who want it to have no process for a while, as far as can be said."""
        core = self._core
        if core.state in (State.CLOSING, State.CLOSED):
            return  # they hear of that
        stills, self._stills = self._stills, []
        for message in stills:
            if message.over.is_set():  # whoever asked does not want it any more
                message.reply.settle(None)
            elif core.agent_session_id is None or not core.has_context:
                message.refuse(NothingToFork(core.session_id))
            elif self._is_still:
                core.stills.append(message.over)
                message.reply.settle(None)
            elif self._may_rest:
                self._stills.append(message)
            else:
                message.refuse(
                    Busy("The session has something to do. Wait until it is idle, and try again.")
                )

    @property
    def _is_still(self) -> bool:
        """Whether there is no process, and nothing that wants one."""
        return (
            self._incarnation is None
            and self._core.state in (State.HIBERNATED, State.FAILED)
            and not self._mailbox.waiting_work
        )

    @property
    def _may_rest(self) -> bool:
        """Whether a process that is not needed is on its way out, or will soon be."""
        state = self._core.state
        unheard = state is State.IDLE and bool(self._signals)
        return unheard or state is State.FAILED or self._hibernate()

    # -- what can be changed -----------------------------------------------------------------

    async def _on_configure(self, message: Configure) -> None:
        core = self._core
        before = core.spec, core.title, core.metadata
        if message.model is not None:
            core.spec = replace(core.spec, model=message.model)
        if message.permission_mode is not None:
            core.spec = replace(core.spec, permission_mode=message.permission_mode)
        if message.title is not None:
            core.title = message.title or None
        if message.metadata is not None:
            core.metadata = dict(message.metadata)
        try:
            await self._commit()
        except BaseException:
            core.spec, core.title, core.metadata = before
            raise
        settings = Settings(
            model=core.spec.model,
            permission_mode=core.spec.permission_mode,
            title=core.title,
            metadata=core.metadata,
        )
        # Not before the process has taken it, or will be replaced: a turn that is asked for then
        # has what is new.
        if telling := self._configure_process():
            telling.add_done_callback(lambda _: self._answer_unless_over(message, settings))
        else:
            message.reply.settle(settings)

    @staticmethod
    def _answer_unless_over(message: Configure, settings: Settings) -> None:
        # Where the session has ended meanwhile, its caller has heard that.
        if not message.settled:
            message.reply.settle(settings)

    def _configure_process(self) -> asyncio.Task[None] | None:
        """Tell the process what has changed since it was started, or told.

        Returns:
            What does so; None if there is nothing to tell, or nobody.
        """
        spec, before = self._core.spec, self._in_force
        up = self._incarnation is not None and self._incarnation.up
        if not up or self._core.state is State.STARTING or spec == before:
            return None
        mode = spec.permission_mode
        self._in_force = spec
        return self._live().configure(
            model=None if spec.model == before.model else spec.model,
            permission_mode=None if mode == before.permission_mode else mode,
        )

    def _replace(self) -> bool:
        """Give the process up that could not be changed, before its next turn.

        Returns:
            Whether it is on its way, or will be once what it has said is heard.
        """
        if self._stale and not self._background and not self._requests.open:
            if self._signals:
                return True
            self._advance(Trigger.HIBERNATE)
            self._live().give_up()
        return self._core.state is State.HIBERNATING

    # -- hibernation -----------------------------------------------------------------------

    @property
    def _at_rest(self) -> bool:
        """Whether the process has nothing to do, and nothing is on its way."""
        return self._between_turns and not self._mailbox.waiting_work

    @property
    def _asleep(self) -> bool:
        """Whether it does without a process, or soon will."""
        return self._core.state in (State.HIBERNATING, State.HIBERNATED)

    @property
    def _between_turns(self) -> bool:
        """Whether the process has nothing to do, though there may be something for it."""
        return (
            self._core.state is State.IDLE
            and self._core.kind is SessionKind.CONVERSATION
            and not self._background
            and not self._requests.open
            and not self._timers.is_set(Timer.SETTLING)
            and not self._signals
        )

    def _let_others(self) -> None:
        """Give up the process between two turns, if others have waited long for their first."""
        if (
            self._had_a_turn
            and self._between_turns
            and self._mailbox.waiting_work
            and self._slots.yields(self._core.session_id)
        ):
            self._advance(Trigger.HIBERNATE)
            self._live().give_up()

    def _hibernate(self) -> bool:
        """Give up the process, if it has nothing to do; return whether it is on its way."""
        if self._at_rest:
            self._advance(Trigger.HIBERNATE)
            self._live().give_up()
        return self._core.state is State.HIBERNATING

    def _wake(self) -> None:
        """Have a process again; one that is being stopped is waited for."""
        if self._core.state is State.HIBERNATED and not self._kept_still:
            self._wanted = False
            self._advance(Trigger.WAKE)
            self._start_process()
        elif self._core.state in (State.HIBERNATING, State.HIBERNATED):
            self._wanted = True

    def _watch_idleness(self) -> None:
        """Note whether the process could be spared, and since when."""
        if self._at_rest:
            self._slots.rests(self._core.session_id, self._ask_to_hibernate)
            idle_timeout_s = self._core.spec.idle_timeout_s
            if idle_timeout_s is None:
                idle_timeout_s = self._config.idle_timeout_s
            self._set_once(Timer.IDLE, idle_timeout_s)
        elif not self._asleep and self._core.state is not State.CLOSING:
            self._slots.works(self._core.session_id)
            self._timers.clear(Timer.IDLE, Timer.EXPIRY)
        if self._at_rest or self._asleep:
            self._set_once(Timer.EXPIRY, self._expiry_s())

    def _set_once(self, timer: Timer, after_s: float | None) -> None:
        if after_s is not None and not self._timers.is_set(timer):
            self._timers.set(timer, self._now() + after_s)

    def _expiry_s(self) -> float | None:
        """Return the seconds until the session is closed for want of use; None never."""
        expiry_s = self._core.spec.expiry_s
        if expiry_s is None:
            expiry_s = self._config.expiry_s
        if expiry_s is None:
            return None
        unused_s = (self._core.clock.now() - self._core.active_at).total_seconds()
        # Clocks are set, forward and back.
        return min(max(0.0, expiry_s - unused_s), expiry_s)

    def _ask_to_hibernate(self) -> None:
        # Through the mailbox, as everybody: this is called from another session's task.
        with suppress(Refused):
            self._mailbox.offer_control(Hibernate(), always=True)

    def _forget_agent(self) -> None:
        """Nothing of what a process was doing is true of the next one."""
        self._timers.clear(Timer.MODEL, Timer.SILENCE, Timer.INTERRUPT, Timer.IDLE, Timer.AT_HAND)
        self._tools.clear()
        self._background = 0
        self._last_message = None
        self._probing = False
        self._answering = ()
        self._untold.clear()
        self._owed.clear()
        self._owes_own = False

    # -- close -----------------------------------------------------------------------------

    async def _on_close(self, message: Close) -> None:
        self._closes.append(message)
        if self._core.state is State.CLOSING:
            return
        await self._accept_all()  # one of them may stop the running turn
        state = self._core.state
        self._close_reason = self._close_reason or message.reason
        if message.grace_s > 0 and state in (State.RUNNING, State.WAITING, State.DRAINING):
            self._mailbox.shut_work(Draining)
            await self._leave_queue(message.reason)
            if state is not State.DRAINING:
                self._advance(Trigger.DRAIN)
                self._timers.set(Timer.GRACE, self._now() + message.grace_s)
        else:
            await self._shut_down(message.reason)

    async def _shut_down(self, reason: CloseReason) -> None:
        """End every turn, and stop the process."""
        self._close_reason = reason = self._close_reason or reason
        failure = self._end_of_session(reason)
        self._mailbox.shut_work(
            Draining
            if reason is CloseReason.DRAINED
            else partial(SessionClosed, self._core.session_id)
        )
        await self._leave_queue(reason)
        if reason is CloseReason.DRAINED:
            await self._give_up_turns(Outcome.INTERRUPTED)
        else:
            await self._give_up_turns(Outcome.FAILED, failure)
        self._slept = self._core.state in (State.HIBERNATED, State.FAILED)
        await self._resolve_all(Resolution.CANCELLED)
        self._advance(Trigger.CLOSE)
        self._timers.clear(*Timer)
        if self._incarnation is None:
            await self._finish()
        else:
            self._incarnation.give_up()

    async def _leave_queue(self, reason: CloseReason) -> None:
        """End every turn that waits, or leave it to whoever goes on with the session."""
        if self._goes_on(reason):
            await self._accept_all()
            # What runs may take its time; those who wait for what will not run hear of it now.
            self._ledger.suspend(Draining, queued_only=True)
        else:
            await self._withdraw_all(Outcome.FAILED, self._end_of_session(reason))

    def _goes_on(self, reason: CloseReason) -> bool:
        """Whether the session goes on under another supervisor."""
        return self._durable and reason is CloseReason.DRAINED

    async def _finish(self) -> None:
        core = self._core
        reason = self._close_reason or CloseReason.REQUESTED
        # First of all: until this is stored, the session can still end by a fault.
        if self._goes_on(reason):
            asleep = (events.Status(state=State.HIBERNATED), None)
            await self._commit(*(() if self._slept else (asleep,)), last=True)
            self._ledger.suspend(Draining)
        else:
            core.active_at = core.clock.now()
            closed = events.Status(state=State.CLOSED, reason=reason)
            await self._commit((closed, None), last=True, closed=True)
        self._advance(Trigger.STOPPED)
        closed_by = Closed(reason=reason, exit=self._last_exit)
        core.move(core.state, closed_by)
        self._log.close()
        for message in self._closes:
            message.reply.settle(closed_by)
        # One that goes on is not closed, whatever is asked of it between now and then.
        self._mailbox.shut(
            Draining if self._goes_on(reason) else partial(SessionClosed, core.session_id)
        )

    def _end_of_session(self, reason: CloseReason) -> Failure:
        if reason is CloseReason.DRAINED:
            return Failure(
                code=FailureCode.DRAINED,
                message="The server is shutting down before the turn could run. Ask again later.",
                retryable=True,
            )
        return Failure(
            code=FailureCode.CLOSED,
            message="The session was closed before the turn ended.",
        )

    # -- the log ---------------------------------------------------------------------------

    def _publish(self, body: events.Body, turn_id: str | None = None) -> None:
        """Let readers see an event now, if they may; it is stored soon."""
        self._log.publish(body, turn_id)
        # A store that goes with this process saves nothing from its end.
        if self._durable and not self._timers.is_set(Timer.CHECKPOINT):
            self._timers.set(Timer.CHECKPOINT, self._now() + CHECKPOINT_S)

    async def _commit(
        self,
        *drafts: Draft,
        claims: Sequence[Claim] = (),
        last: bool = False,
        closed: bool = False,
    ) -> tuple[Event, ...]:
        """Store what there is to store, and let readers see it.

        Args:
            drafts: Events that nobody may see before they are stored.
            claims: Keys for work that begins with it.
            last: Whether nothing is published after it.
            closed: Whether the session has ended for good.
        """
        self._timers.clear(Timer.CHECKPOINT)
        record = self._core.record(closed=closed)
        requests = self._requests.take_changed()
        stored = await self._log.commit(
            *drafts,
            turns=self._ledger.take_changed(),
            session=None if record == self._core.stored else record,
            claims=claims,
            requests=requests,
            reserve=RESERVED_EVENTS if self._ledger.open() and not last else 0,
        )
        self._core.stored = record
        self._requests.show(requests)
        return stored

    # -- small things ----------------------------------------------------------------------

    def _now(self) -> float:
        return self._core.clock.monotonic()

    def _advance(self, trigger: Trigger, *, reason: str | None = None) -> None:
        before, now = self._core.state, advance(self._core.state, trigger)
        self._core.move(now)
        # Of what happens to a turn its own events tell; and of a session's end, what is committed.
        # One that goes on under the next supervisor is not closing but falls asleep.
        told = {before, now} <= TOLD_BY_TURNS or now in TOLD_WHEN_STORED
        goes_on = self._close_reason is not None and self._goes_on(self._close_reason)
        if not told and not (now is State.CLOSING and goes_on):
            self._publish(events.Status(state=now, reason=reason))

    def _live(self) -> Incarnation:
        assert self._incarnation is not None, "there is no process in this state"
        return self._incarnation

    @property
    def _closed(self) -> bool:
        return self._core.state is State.CLOSED

    @property
    def _running(self) -> tuple[Turn, ...]:
        """The turns that are with the agent and have not had their end."""
        return tuple(turn for turn in (self._alone, self._handed) if turn is not None)

    @property
    def _busy(self) -> bool:
        return (
            self._handed is not None
            or self._alone is not None
            or bool(self._owed)
            or self._owes_own
        )

    def _expect_model(self, after_s: float = 0.0) -> None:
        self._model_cause = "no_first_byte"
        self._watch_model(after_s + self._watchdogs.first_byte_s)

    def _expect_progress(self) -> None:
        self._model_cause = "no_progress"
        self._watch_model(self._watchdogs.progress_s)

    def _watch_model(self, limit_s: float) -> None:
        # A running tool may take as long as it likes, and so may a human.
        if self._running and not self._tools and not self._awaits_human:
            self._timers.set(Timer.MODEL, self._now() + limit_s)

    def _watch_silence(self) -> None:
        # What hangs with work in the background would have its room for ever.
        if (self._busy or self._background) and not self._probing:
            self._timers.set(Timer.SILENCE, self._now() + self._watchdogs.silence_s)

    def _note_piece(self, now: float) -> None:
        """Note that the agent said a piece of text: it lives, and so does the model.

        Pieces are so many that watchdogs are not set anew by each, but when they would fire.
        """
        self._last_message = self._last_piece = now
        if self._model_cause != "no_progress" or not self._timers.is_set(Timer.MODEL):
            self._expect_progress()
        if not self._timers.is_set(Timer.SILENCE):
            self._watch_silence()

    def _moved(self, timer: Timer) -> bool:
        """Set a watchdog to when it is due since the last piece; return whether that is to come."""
        if timer is Timer.SILENCE:
            due = self._last_piece + self._watchdogs.silence_s
        elif self._model_cause == "no_progress":
            due = self._last_piece + self._watchdogs.progress_s
        else:
            return False
        if is_due(due, self._now()):
            return False
        self._timers.set(timer, max(due, self._timers.at(timer) or due))
        return True

    def _on_inspect(self, message: Inspect) -> None:
        for timer in (Timer.MODEL, Timer.SILENCE):
            if self._timers.is_set(timer):
                self._moved(timer)
        inspection = self._inspection()

        def tell(context: ContextUsage | None) -> None:
            if not message.reply.settled:  # the session may have ended since
                message.reply.settle(replace(inspection, context=context))

        if message.context and self._incarnation is not None and self._incarnation.up:
            self._incarnation.context(tell)
        else:
            message.reply.settle(inspection)

    def _inspection(self) -> Inspection:
        now = self._now()
        turn = self._alone or self._handed
        upcoming = self._timers.next()
        return Inspection(
            session_id=self._core.session_id,
            state=self._core.state,
            turn_id=None if turn is None else turn.turn_id,
            turn_origin=None if turn is None else turn.origin,
            queued=self._mailbox.waiting_work,
            waiting_control=self._mailbox.waiting_control,
            waiting_for=self._waiting_for(),
            last_message_s=None if self._last_message is None else now - self._last_message,
            pid=None if self._incarnation is None else self._incarnation.pid,
            agent_session_id=self._core.agent_session_id,
            background=self._background,
            restarts=self._core.restarts.total,
            next_timer=None if upcoming is None else (str(upcoming[0]), upcoming[1] - now),
            last_seq=self._log.last_seq,
            requests=tuple(request.request_id for request in self._requests.shown),
        )

    def _waiting_for(self) -> str | None:
        asked = self._requests.open
        match self._core.state:
            case State.STARTING if self._slots.waits(self._core.session_id):
                return "room for its process"
            case State.STARTING:
                return "the agent to start"
            case State.HIBERNATING:
                return "the process to end"
            case State.WAITING | State.DRAINING if self._awaits_human:
                return "a human, about " + ", ".join(sorted({one.tool for one in asked}))
            case State.RUNNING | State.DRAINING if self._tools:
                return "tools: " + ", ".join(sorted(set(self._tools.values())))
            case State.RUNNING | State.WAITING | State.DRAINING:
                return "the model"
            case State.INTERRUPTING:
                return "the agent to come to rest"
            case State.RESTARTING:
                return "the next start"
            case State.CLOSING:
                return "the process to end"
            case State.IDLE if asked:
                return "a human, about " + ", ".join(sorted({one.tool for one in asked}))
            case State.IDLE if self._background:
                return "background work"
            case State.HIBERNATED | State.FAILED if self._kept_still:
                return "its conversation to be copied"
            case State.IDLE | State.HIBERNATED | State.FAILED | State.CLOSED:
                return None


def _tool_event(message: ToolStarted | ToolFinished) -> events.ToolUse | events.ToolResult:
    if isinstance(message, ToolStarted):
        return events.ToolUse(
            tool_use_id=message.tool_use_id,
            name=message.name,
            input=message.input,
            parent_tool_use_id=message.parent_tool_use_id,
        )
    return events.ToolResult(
        tool_use_id=message.tool_use_id,
        content=message.content,
        is_error=message.is_error,
        parent_tool_use_id=message.parent_tool_use_id,
    )
