"""All sessions: start, find, admit, drain, look at.

The supervisor owns the task of every actor, and outwaits them all when it is left. An actor
contains the failures of its agent by itself; what it cannot contain, a bug of ours or a failing
store, ends its session and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4
from weakref import WeakValueDictionary

from session_supervisor import events
from session_supervisor.actor import Actor, Restarted
from session_supervisor.agents.port import Agent
from session_supervisor.clock import Clock
from session_supervisor.config import SupervisorConfig
from session_supervisor.core import SessionCore
from session_supervisor.errors import (
    AtCapacity,
    Draining,
    Failure,
    FailureCode,
    Refused,
    SessionClosed,
    SessionNotFound,
)
from session_supervisor.lifecycle import ACTIVE, State
from session_supervisor.log import EventLog
from session_supervisor.mailbox import Mailbox
from session_supervisor.messages import Close, Closed, CloseReason, Control, Query
from session_supervisor.monitors import Down, Monitor, Notice
from session_supervisor.quotas import Account, Place, Quota, Usage
from session_supervisor.restarts import RestartBudget
from session_supervisor.results import Outcome
from session_supervisor.session import Session, SessionSnapshot, TurnHandle, check_query, submit
from session_supervisor.shielding import to_the_end
from session_supervisor.spec import LOCAL_OWNER, Prompt, SessionKind, SessionSpec
from session_supervisor.stores.memory import MemoryStore
from session_supervisor.stores.port import Store
from session_supervisor.timers import Wakeup
from session_supervisor.turns import Ledger
from session_supervisor.workspaces import PrivateDirectories, Workspaces

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSnapshot:
    """A supervisor at one moment.

    Attributes:
        sessions: Every session that is not gone, one-offs and ended ones included.
        active: Conversations that take queries.
        live: Sessions that have a process, or are about to.
        max_sessions: Most conversations that have not ended.
        max_live: Most processes.
        draining: Whether no new work is taken.
    """

    sessions: tuple[SessionSnapshot, ...]
    active: int
    live: int
    max_sessions: int
    max_live: int
    draining: bool


@dataclass(slots=True, eq=False)
class _Entry:
    core: SessionCore
    session: Session
    private_cwd: Path | None
    place: Place | None
    counts: bool = True
    forget: asyncio.TimerHandle | None = None


class Supervisor:
    """Runs sessions. An async context manager: leaving it ends them all.

    Args:
        agent: Answers prompts.
        store: Keeps the logs; None keeps them in memory.
        config: Limits and policies; None for the defaults.
        workspaces: Allots directories to sessions that name none; None makes them below
            `config.workspace`.
        clock: What time it is.
        random: Returns a number in [0, 1), for jitter.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        store: Store | None = None,
        config: SupervisorConfig | None = None,
        workspaces: Workspaces | None = None,
        clock: Clock | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._agent = agent
        self._config = config or SupervisorConfig()
        self._store = store or MemoryStore(self._config.retention)
        self._workspaces = workspaces or PrivateDirectories(self._config.workspace)
        self._clock = clock or Clock()
        self._random = random
        self._entries: dict[str, _Entry] = {}
        # Of owners that have something; whatever counts holds on to its account.
        self._accounts = WeakValueDictionary[str, Account]()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._monitors: set[Monitor] = set()
        self._starting = asyncio.Semaphore(self._config.max_starting)
        self._live = 0
        self._conversations = 0
        self._open = False
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._admissions: set[asyncio.Future[None]] = set()

    @property
    def config(self) -> SupervisorConfig:
        """Its limits and policies."""
        return self._config

    async def __aenter__(self) -> Self:
        if self._open or self._draining:
            raise RuntimeError("A supervisor is opened once. Make another one.")
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Cancelling the embedder must leave neither a process nor anybody without an answer.
        await to_the_end(self._shut_down())

    async def _shut_down(self) -> None:
        await self.drain(0.0)
        self._open = False
        while under_way := self._tasks | self._admissions:
            await asyncio.wait(under_way)
        for monitor in self._monitors:
            monitor.close()
        for entry in tuple(self._entries.values()):
            if entry.forget is not None:
                entry.forget.cancel()
            await self._release(entry)
        await self._store.aclose()
        await self._workspaces.aclose()

    # -- start and find ------------------------------------------------------------------

    async def start(
        self,
        spec: SessionSpec | None = None,
        *,
        owner: str = LOCAL_OWNER,
        quota: Quota | None = None,
    ) -> Session:
        """Start a conversation.

        It takes queries at once; they wait while its process comes up.

        Args:
            spec: What is wanted; None takes the agent's defaults.
            owner: Whose session it is.
            quota: What that owner may have at once; None: any number of sessions.

        Raises:
            InvalidSpec: The agent could not do what is asked.
            AtCapacity: There are as many sessions, or processes, as there may be.
            QuotaExceeded: The owner has as many sessions as it may have.
            NoWorkspace: No directory can be made for it.
            Draining: The supervisor is shutting down.
        """
        spec, kind = spec or SessionSpec(), SessionKind.CONVERSATION
        self._check(spec, kind)
        place = self._account(owner).take_session(quota)
        try:
            entry = await self._admit(spec, owner, kind, place)
        except BaseException:
            place.release()
            raise
        return entry.session

    async def query(
        self,
        prompt: str,
        spec: SessionSpec | None = None,
        *,
        owner: str = LOCAL_OWNER,
        timeout_s: float | None = None,
        quota: Quota | None = None,
    ) -> TurnHandle:
        """Ask once, without a conversation.

        The turn has a session of its own, which ends with it and stays readable for a while.

        Args:
            prompt: What is asked.
            spec: What is wanted of the session; None takes the agent's defaults.
            owner: On whose behalf.
            timeout_s: Seconds from now after which the turn is given up.
            quota: What the owner may have at once; None: any number of turns.

        Raises:
            InvalidSpec: The prompt is empty, or the agent could not do what is asked.
            AtCapacity: There are as many processes as there may be.
            QuotaExceeded: The owner has as many turns as it may have.
            Draining: The supervisor is shutting down.
        """
        check_query(prompt, timeout_s)
        spec, kind = spec or SessionSpec(), SessionKind.ONEOFF
        self._check(spec, kind)
        place = self._account(owner).take_turn(quota)
        try:
            entry = await self._admit(spec, owner, kind)
        except BaseException:
            place.release()
            raise
        query = Query(
            prompt=Prompt(prompt_id=str(uuid4()), text=prompt),
            timeout_s=self._config.turn_timeout_s if timeout_s is None else timeout_s,
            place=place,
        )
        try:
            return await submit(entry.core, query)
        except Refused:
            await self.close(entry.core.session_id)
            raise

    def check_admission(self, kind: SessionKind = SessionKind.CONVERSATION) -> None:
        """Return if a session of this kind would be admitted now.

        Args:
            kind: What it would be for.

        Raises:
            AtCapacity: There are as many sessions, or processes, as there may be.
            Draining: The supervisor is shutting down.
        """
        self._refuse_when_draining()
        config = self._config
        if kind is SessionKind.CONVERSATION and self._conversations >= config.max_sessions:
            raise AtCapacity("sessions", config.max_sessions)
        if self._live >= config.max_live:
            raise AtCapacity("agent processes", config.max_live)

    def get(self, session_id: str, *, owner: str | None = None) -> Session:
        """Return a session, also one that has ended and is still kept.

        Args:
            session_id: Which.
            owner: Find only this owner's; None finds anybody's.

        Raises:
            SessionNotFound: There is none, or it is somebody else's.
        """
        entry = self._entries.get(session_id)
        if entry is None or (owner is not None and entry.core.owner != owner):
            raise SessionNotFound(session_id)
        return entry.session

    def list(self, *, owner: str | None = None) -> tuple[Session, ...]:
        """Return the conversations that take queries, oldest first.

        Args:
            owner: Only this owner's; None everybody's.
        """
        return tuple(
            entry.session
            for entry in self._entries.values()
            if entry.core.kind is SessionKind.CONVERSATION
            and entry.core.state in ACTIVE
            and (owner is None or entry.core.owner == owner)
        )

    async def close(self, session_id: str, *, owner: str | None = None) -> Closed:
        """End a session and forget it; returns when its process is gone.

        Args:
            session_id: Which.
            owner: Only if it is this owner's.

        Raises:
            SessionNotFound: There is none, or it is somebody else's.
        """
        session = self.get(session_id, owner=owner)
        entry = self._entries[session_id]
        closed = await session.close()
        await to_the_end(self._forget(entry))
        return closed

    # -- look and listen -----------------------------------------------------------------

    def snapshot(self) -> SupervisorSnapshot:
        """Return what everything looks like now."""
        return SupervisorSnapshot(
            sessions=tuple(entry.session.snapshot() for entry in self._entries.values()),
            active=len(self.list()),
            live=self._live,
            max_sessions=self._config.max_sessions,
            max_live=self._config.max_live,
            draining=self._draining,
        )

    def usage(self, owner: str) -> Usage:
        """Return what an owner has now, of what a `Quota` limits."""
        return self._account(owner).usage

    @asynccontextmanager
    async def monitor(self) -> AsyncGenerator[Monitor, None]:
        """Hear of sessions that go down or are restarted, while the context is open."""
        monitor = Monitor()
        if not self._open:
            monitor.close()
        self._monitors.add(monitor)
        try:
            yield monitor
        finally:
            self._monitors.discard(monitor)

    # -- drain ---------------------------------------------------------------------------

    async def drain(self, budget_s: float) -> None:
        """Take no new work, let running turns end, then end every session.

        Turns that run get the budget and are interrupted after it; queued ones end at once.
        Returns when every process is gone.

        Args:
            budget_s: Seconds that running turns may still take.
        """
        self._draining = True
        for entry in tuple(self._entries.values()):
            entry.core.mailbox.shut_work(Draining)
            message = Close(reason=CloseReason.DRAINED, grace_s=budget_s)
            # One that has ended needs no telling.
            with suppress(Refused):
                entry.core.mailbox.offer_control(message, always=True)
        for entry in tuple(self._entries.values()):
            await entry.core.ended.wait()

    # -- inside --------------------------------------------------------------------------

    def _check(self, spec: SessionSpec, kind: SessionKind) -> None:
        """Refuse what could not be begun; nothing may be awaited between this and counting."""
        if not self._open:
            raise RuntimeError("The supervisor is not open: use `async with Supervisor(...)`.")
        self._agent.check(spec)
        self.check_admission(kind)

    def _account(self, owner: str) -> Account:
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = Account()
        return account

    async def _admit(
        self, spec: SessionSpec, owner: str, kind: SessionKind, place: Place | None = None
    ) -> _Entry:
        conversation = kind is SessionKind.CONVERSATION
        # Counted before the first wait, so that many at once keep within the limits.
        self._live += 1
        self._conversations += conversation
        admitted = asyncio.get_running_loop().create_future()
        self._admissions.add(admitted)
        try:
            return await self._admit_counted(spec, owner, kind, place)
        except BaseException:
            self._live -= 1
            self._conversations -= conversation
            raise
        finally:
            self._admissions.discard(admitted)
            admitted.set_result(None)

    async def _admit_counted(
        self, spec: SessionSpec, owner: str, kind: SessionKind, place: Place | None
    ) -> _Entry:
        entry = await self._make(spec, owner, kind, place)
        try:
            self._refuse_when_draining()
        except Draining:
            await to_the_end(self._erase(entry))
            raise
        self._entries[entry.core.session_id] = entry
        self._own(self._run(entry), name=f"session {entry.core.session_id}")
        return entry

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Draining

    def _own(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        """Run what contains its own failures, and outwait it when the supervisor is left."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _vacate(self, entry: _Entry) -> None:
        """Let others have the places that a session without a process had."""
        if entry.counts:
            entry.counts = False
            self._live -= 1
            self._conversations -= entry.core.kind is SessionKind.CONVERSATION
            if entry.place is not None:
                entry.place.release()

    async def _make(
        self, spec: SessionSpec, owner: str, kind: SessionKind, place: Place | None
    ) -> _Entry:
        session_id = str(uuid4())
        private_cwd = await self._workspaces.allot(session_id) if spec.cwd is None else None
        try:
            fence = await self._store.acquire(session_id)
        except BaseException:
            if private_cwd is not None:
                await self._workspaces.release(private_cwd)
            raise
        config, wakeup = self._config, Wakeup()
        core = SessionCore(
            session_id=session_id,
            owner=owner,
            account=self._account(owner),
            kind=kind,
            spec=spec,
            cwd=str(private_cwd) if private_cwd is not None else str(spec.cwd),
            created_at=self._clock.now(),
            mailbox=Mailbox[Control, Query](
                max_work=config.max_queued, max_control=config.max_control, on_offer=wakeup.ring
            ),
            ledger=Ledger(session_id, clock=self._clock, retention=config.retention),
            log=EventLog(
                session_id,
                self._store,
                fence=fence,
                clock=self._clock,
                store_s=config.watchdogs.store_s,
            ),
            restarts=RestartBudget(config.restarts, self._random),
            wakeup=wakeup,
            clock=self._clock,
        )
        session = Session(core, default_timeout_s=config.turn_timeout_s)
        return _Entry(core, session, private_cwd, place)

    async def _run(self, entry: _Entry) -> None:
        """Run an actor to its end, and clear up after it whatever that end is."""
        core = entry.core

        def on_failed() -> None:
            self._vacate(entry)
            # It is as good as ended: it may be looked at for as long, and then goes.
            self._keep_for_a_while(entry)
            self._tell(
                Down(
                    session_id=core.session_id,
                    owner=core.owner,
                    reason=None,
                    failure=core.failure,
                )
            )

        def on_restart(notice: Restarted) -> None:
            self._tell(notice)

        actor = Actor(
            core,
            agent=self._agent,
            config=self._config,
            starting=self._starting,
            on_restart=on_restart,
            on_failed=on_failed,
        )
        try:
            await actor.run()
        except* Exception as errors:  # a bug of ours or a failing store: contained here
            logger.error(
                "session %s ended by a fault",
                core.session_id,
                exc_info=errors,
                extra={"session_id": core.session_id},
            )
        finally:
            if core.closed is None:
                await self._settle(core)
            self._vacate(entry)
            core.ended.set()
        self._tell(
            Down(
                session_id=core.session_id,
                owner=core.owner,
                reason=None if core.closed is None else core.closed.reason,
                failure=core.failure,
            )
        )
        self._keep_for_a_while(entry)

    async def _settle(self, core: SessionCore) -> None:
        """Answer everything that an actor which ended by a fault could not."""
        failure = Failure(
            code=FailureCode.INTERNAL,
            message="The server made a mistake and ended the session. Start a new one.",
        )
        core.state = State.CLOSED
        core.failure = failure.message
        core.closed = Closed(reason=CloseReason.FAULT)
        for turn in core.ledger.unannounced():
            result = turn.result or core.ledger.end(turn, Outcome.FAILED, failure=failure)
            end = events.end_of(result)
            try:
                (event,) = await core.log.commit((end, turn.turn_id))
            except Exception:  # the store's failure may be why we are here
                logger.exception(
                    "the end of turn %s could not be stored",
                    turn.turn_id,
                    extra={"session_id": core.session_id, "turn_id": turn.turn_id},
                )
                event = core.log.publish(end, turn.turn_id)
            core.ledger.announce(turn, event)
        core.log.close()
        core.mailbox.shut(lambda: SessionClosed(core.session_id))

    def _tell(self, notice: Notice) -> None:
        for monitor in self._monitors:
            monitor.hear(notice)

    def _keep_for_a_while(self, entry: _Entry) -> None:
        """Let a session that ended be read until retention ends."""
        retention = self._config.retention
        session_id = entry.core.session_id
        if session_id in self._ended or self._entries.get(session_id) is not entry:
            return
        loop = asyncio.get_running_loop()
        entry.forget = loop.call_later(retention.ended_s, self._forget_later, entry)
        self._ended[session_id] = None
        while len(self._ended) > retention.ended_sessions:
            oldest, _ = self._ended.popitem(last=False)
            self._forget_later(self._entries[oldest])

    def _forget_later(self, entry: _Entry) -> None:
        if self._open:
            self._own(self._forget_quietly(entry), name=f"forget {entry.core.session_id}")

    async def _forget_quietly(self, entry: _Entry) -> None:
        try:
            await entry.session.close()
            await self._forget(entry)
        except Exception:  # a store that fails to erase must not take the living with it
            logger.exception(
                "session %s could not be erased",
                entry.core.session_id,
                extra={"session_id": entry.core.session_id},
            )

    async def _forget(self, entry: _Entry) -> None:
        """Erase a session that has ended.

        Raises:
            StoreError: What the store has of it is still there.
        """
        session_id = entry.core.session_id
        if entry.forget is not None:
            entry.forget.cancel()
        self._ended.pop(session_id, None)
        if self._entries.pop(session_id, None) is not None:
            await self._erase(entry)

    async def _erase(self, entry: _Entry) -> None:
        try:
            await self._store.erase(entry.core.session_id)
        finally:
            await self._release(entry)

    async def _release(self, entry: _Entry) -> None:
        if entry.private_cwd is not None:
            await self._workspaces.release(entry.private_cwd)
