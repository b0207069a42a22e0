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
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary

from session_supervisor import events
from session_supervisor.actor import SERVER_FAULT, SERVER_RESTART, Actor, Restarted
from session_supervisor.agents.port import Agent, Fingerprint, Forgets, Forks, Pools, Recovers
from session_supervisor.asks import Resolution
from session_supervisor.budgets import Spending, check_budget
from session_supervisor.claims import ClaimKey, Claims, Hold
from session_supervisor.clock import Clock
from session_supervisor.config import SupervisorConfig
from session_supervisor.core import SessionCore, nothing
from session_supervisor.errors import (
    AgentError,
    AtCapacity,
    ClaimConflict,
    Draining,
    Failure,
    FailureCode,
    Fenced,
    InvalidSpec,
    MemoryFull,
    NotFailed,
    NothingToFork,
    Refused,
    ResumeNotFound,
    SessionClosed,
    SessionNotFound,
    SessionSpoiled,
    StoreError,
    Unavailable,
    UnknownSession,
)
from session_supervisor.forking import (
    Fork,
    anchor_of,
    check_fork,
    copy_files,
    has_ended,
    kept_still,
    spec_of_fork,
)
from session_supervisor.latch import Latch
from session_supervisor.lifecycle import ACTIVE, INITIAL, State
from session_supervisor.log import Create, EventLog
from session_supervisor.mailbox import Mailbox
from session_supervisor.memory import memory_of
from session_supervisor.messages import Close, Closed, CloseReason, Control, Query, Restart
from session_supervisor.monitors import Down, Monitor, Notice
from session_supervisor.pacing import Pacing
from session_supervisor.pool import Pool
from session_supervisor.quotas import Account, Place, Quota, Usage
from session_supervisor.requests import AskingPolicy, Requests, resolved_event
from session_supervisor.restarts import RestartBudget
from session_supervisor.results import Outcome
from session_supervisor.revival import revive, text_left
from session_supervisor.roster import Roster, by_age
from session_supervisor.session import (
    Session,
    SessionSnapshot,
    TurnHandle,
    attach,
    check_query,
    submit,
)
from session_supervisor.shielding import to_the_end
from session_supervisor.slots import Slots
from session_supervisor.spares import PoolSnapshot
from session_supervisor.spec import LOCAL_OWNER, Attachment, Prompt, SessionKind, SessionSpec
from session_supervisor.starts import Starts
from session_supervisor.stores.memory import MemoryStore
from session_supervisor.stores.port import Store
from session_supervisor.stores.records import Batch, Claim, Damaged, Lease, SessionRecord
from session_supervisor.timers import Gate, Wakeup
from session_supervisor.turns import Ledger
from session_supervisor.workspaces import (
    SPARE,
    PrivateDirectories,
    ReusableWorkspaces,
    Workspaces,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

ERASE_AGAIN_S = 60.0
"""Seconds after which a session that could not be erased is tried again."""

STILL_READ = 64
"""Ended sessions, the last ones, whose events stay at hand: somebody may be about to read them."""

TRIM_EVERY_S = 60.0
TRIM_PAUSE_S = 0.02
"""Seconds until the store is asked again to drop what it does not keep, and between its steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSnapshot:
    """A supervisor at one moment.

    Attributes:
        sessions: Every session that is not gone, one-offs and ended ones included.
        active: Conversations that take queries.
        live: Processes, those that come up or are being stopped included.
        waiting: Sessions that wait for room for one.
        max_sessions: Most conversations that have not ended.
        max_live: Most processes.
        draining: Whether no new work is taken.
        memory_bytes: What the processes take, as last measured; None where nobody looks.
        memory_budget_bytes: What they may take; None where nobody looks.
        damaged: Ids of sessions that are there, but cannot be read from the store.
        pool: Processes that stand ready, and what became of others; None: there is no pool.
    """

    sessions: tuple[SessionSnapshot, ...]
    active: int
    live: int
    waiting: int
    max_sessions: int
    max_live: int
    draining: bool
    memory_bytes: int | None = None
    memory_budget_bytes: int | None = None
    damaged: tuple[str, ...] = ()
    pool: PoolSnapshot | None = None


@dataclass(slots=True, eq=False)
class _Entry:
    core: SessionCore
    session: Session
    place: Place | None
    counts: bool = True
    forget: asyncio.TimerHandle | None = None
    faults: RestartBudget | None = None
    ours: bool = True
    """Whether we may write it; else somebody else goes on with it."""
    hold: Hold | None = None
    creating: asyncio.Future[Lease] | None = None
    """Of one that its actor stores: the key for it, and what stores it."""

    @property
    def private_cwd(self) -> Path | None:
        """Its directory, if that is its own; it may get another one with its process."""
        return Path(self.core.cwd) if self.core.private else None


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
        self._workspaces = workspaces or PrivateDirectories(
            self._config.workspace, keep=self._store.durable
        )
        self._clock = clock or Clock()
        self._gate = Gate()
        self._claims = Claims(
            self._store,
            clock=self._clock,
            valid_s=self._config.claim_s,
            wait_s=self._config.watchdogs.store_s,
        )
        self._random = random
        self._entries: dict[str, _Entry] = {}
        self._coming: dict[str, _Entry] = {}
        """Those that are not stored yet, and that nobody is told of before."""
        self._roster = Roster()
        # Of owners that have something; whatever counts holds on to its account.
        self._accounts = WeakValueDictionary[str, Account]()
        self._spending = Spending()
        self._pacing = Pacing(self._clock)
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._still_read: OrderedDict[str, EventLog] = OrderedDict()
        self._damaged: dict[str, Damaged] = {}
        self._monitors: set[Monitor] = set()
        self._starting = Starts(self._config.max_starting)
        memory = self._config.memory
        self._slots = Slots(self._config.max_live, None if memory is None else memory_of(memory))
        self._pool = self._make_pool()
        self._conversations = 0
        self._open = False
        self._leaving = Latch()
        self._tasks: set[asyncio.Task[None]] = set()
        self._admissions: set[asyncio.Future[None]] = set()

    def _make_pool(self) -> Pool | None:
        policy, agent, workspaces = self._config.pool, self._agent, self._workspaces
        if policy is None or not isinstance(agent, Pools):
            return None
        if not isinstance(workspaces, ReusableWorkspaces):
            return None
        return Pool(
            agent,
            policy=policy,
            slots=self._slots,
            starts=self._starting,
            workspaces=workspaces,
            start_s=self._config.watchdogs.start_s,
        )

    @property
    def config(self) -> SupervisorConfig:
        """Its limits and policies."""
        return self._config

    @property
    def _draining(self) -> bool:
        return self._leaving.is_set()

    async def __aenter__(self) -> Self:
        if self._open or self._draining:
            raise RuntimeError("A supervisor is opened once. Make another one.")
        self._open = True
        try:
            await self._recover()
            if self._slots.memory_budget_bytes is not None:
                self._own(self._measure(), name="measure memory")
            self._own(self._trim(), name="trim the store")
            if self._pool is not None:
                self._own(self._pool.run(), name="pool")
        except BaseException:
            await to_the_end(self._shut_down())
            raise
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
            if not self._store.durable:
                with suppress(OSError):  # it is in the log, and the next may be removed
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
        claim: ClaimKey | None = None,
    ) -> Session:
        """Start a conversation.

        It takes queries at once; they wait while its process comes up.

        Args:
            spec: What is wanted; None takes the agent's defaults.
            owner: Whose session it is.
            quota: What that owner may have at once; None: any number of sessions.
            claim: The caller's key. If it was used before, this returns the session that was
                started then, whatever became of it.

        Raises:
            ClaimConflict: The key stands for something else.
            SessionNotFound: The session that it stands for is no longer kept.
            InvalidSpec: The agent could not do what is asked.
            AtCapacity: There are as many sessions, or processes, as there may be.
            QuotaExceeded: The owner has as many sessions as it may have.
            NoWorkspace: No directory can be made for it.
            Unavailable: The store fails.
            Draining: The supervisor is shutting down.
        """
        self._require_open()
        hold = None
        if claim is not None:
            found = await self._claims.take(owner, claim)
            if isinstance(found, Claim):
                core = self._claimed(found)
                if found.turn_id is not None:
                    raise ClaimConflict(claim.key)
                return self._session(core, attached=True)
            hold = found
        try:
            return await self._start(spec or SessionSpec(), owner, quota, hold)
        finally:
            if hold is not None:
                hold.release()

    async def _start(
        self,
        spec: SessionSpec,
        owner: str,
        quota: Quota | None,
        hold: Hold | None,
        fork: Fork | None = None,
    ) -> Session:
        kind = SessionKind.CONVERSATION
        self._check(spec, kind)
        place = self._account(owner).take_session(quota)
        try:
            entry = await self._admit(spec, owner, kind, place, hold, fork)
        except BaseException:
            place.release()
            raise
        return entry.session

    async def claimed(self, claim: ClaimKey, *, owner: str = LOCAL_OWNER) -> bool:
        """Return whether a key stands for work that was begun before.

        Args:
            claim: The caller's key.
            owner: Whose it is.

        Raises:
            ClaimConflict: It stands for something else.
        """
        return await self._claims.find(owner, claim) is not None

    def _claimed(self, claim: Claim) -> SessionCore:
        return self._entry_of(claim.session_id, None).core

    async def query(
        self,
        prompt: str,
        spec: SessionSpec | None = None,
        *,
        owner: str = LOCAL_OWNER,
        attachments: Sequence[Attachment] = (),
        timeout_s: float | None = None,
        quota: Quota | None = None,
        claim: ClaimKey | None = None,
    ) -> TurnHandle:
        """Ask once, without a conversation.

        The turn has a session of its own, which ends with it and stays readable for a while.

        Args:
            prompt: What is asked.
            spec: What is wanted of the session; None takes the agent's defaults.
            owner: On whose behalf.
            attachments: Images and documents that go with the prompt.
            timeout_s: Seconds from now after which the turn is given up.
            quota: What the owner may have at once; None: any number of turns.
            claim: The caller's key. If it was used before, this returns the turn that was begun
                then, whatever became of it.

        Raises:
            ClaimConflict: The key stands for something else.
            SessionNotFound: What the key stands for is no longer kept.
            InvalidSpec: The prompt is empty, or the agent could not do what is asked.
            AtCapacity: There are as many processes as there may be.
            QuotaExceeded: The owner has as many turns as it may have.
            BudgetExceeded: The owner has spent all that it may.
            UpstreamLimited: The upstream takes no requests of the owner's for a while.
            Unavailable: The store fails.
            Draining: The supervisor is shutting down.
        """
        check_query(prompt, timeout_s)
        self._require_open()
        hold = None
        if claim is not None:
            found = await self._claims.take(owner, claim)
            if isinstance(found, Claim):
                core = self._claimed(found)
                if found.turn_id is None or core.kind is not SessionKind.ONEOFF:
                    raise ClaimConflict(claim.key)
                return await attach(core, found.turn_id)
            hold = found
        try:
            asked = Prompt(prompt_id=str(uuid4()), text=prompt, attachments=tuple(attachments))
            entry, query = await self._once(
                asked, spec or SessionSpec(), owner, timeout_s, quota, hold
            )
        except BaseException:
            if hold is not None:
                hold.release()
            raise
        if hold is not None:
            query.on_settled(hold.release)
        # Its actor finds what is asked, and stores both at once.
        core = entry.core
        self._coming[core.session_id] = entry
        self._own(self._run(entry), name=f"session {core.session_id}")
        return await submit(core, query)

    async def _once(
        self,
        prompt: Prompt,
        spec: SessionSpec,
        owner: str,
        timeout_s: float | None,
        quota: Quota | None,
        hold: Hold | None,
    ) -> tuple[_Entry, Query]:
        """Return a one-off that nobody knows yet, and what it is asked."""
        kind = SessionKind.ONEOFF
        self._check(spec, kind)
        self._pacing.check(owner)
        budget_usd = None if quota is None else quota.budget_usd
        check_budget("You", budget_usd, self._spending.of(owner))
        place = self._account(owner).take_turn(quota)
        try:
            with self._admission(kind):
                record = await self._new(spec, owner, kind)
                if self._draining:
                    await to_the_end(self._discard(record))
                    raise Draining
        except BaseException:
            place.release()
            raise
        entry = self._entry(record, self._create, None, state=INITIAL)
        entry.hold = hold
        policy = AskingPolicy.of(spec, kind=kind, config=self._config)
        query = Query(
            prompt=prompt,
            timeout_s=self._config.turn_timeout_s if timeout_s is None else timeout_s,
            place=place,
            claim=None if hold is None else hold.claim(record.session_id, prompt.prompt_id),
            budget_usd=budget_usd,
            on_permission=policy.on_permission,
            permission_timeout_s=policy.timeout_s,
        )
        return entry, query

    async def fork(
        self,
        session_id: str,
        *,
        owner: str | None = None,
        turn_id: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, str] | None = None,
        copy_workspace: bool = False,
        quota: Quota | None = None,
        claim: ClaimKey | None = None,
    ) -> Session:
        """Begin another conversation with the context of one.

        The original must be at rest, and is as it was; meanwhile it gives up its process, and what
        it is asked waits. The copy is its owner's, too, with all that is in force in the original
        and a private directory of its own, unless the original was given a directory. It gets a
        process with its first query.

        Args:
            session_id: The original.
            owner: Only if it is this owner's.
            turn_id: The last turn that the copy knows; None: all of them.
            title: What the copy is called; None as the original, empty: nothing.
            metadata: What is noted about the copy; None as about the original.
            copy_workspace: Whether it begins with the files of the original, as they are now.
            quota: What the owner may have at once; None: any number of sessions.
            claim: The caller's key. If it was used before, this returns the session that was begun
                then, whatever became of it.

        Raises:
            ClaimConflict: The key stands for something else.
            SessionNotFound: There is no such session, or it is somebody else's.
            SessionClosed: It has ended.
            TurnNotFound: It has no turn `turn_id`, or no longer keeps it.
            NothingToFork: It has no context, or none of that turn.
            Busy: It has something to do.
            InvalidSpec: The agent cannot do that, or there are too many files.
            AtCapacity: There are as many sessions, or processes, as there may be.
            QuotaExceeded: The owner has as many sessions as it may have.
            NoWorkspace: No directory can be made for it, or files cannot be copied.
            Unavailable: The store fails, or the agent could not copy the conversation.
            Draining: The supervisor is shutting down.
        """
        self._require_open()
        self._refuse_when_draining()
        if owner is None:
            owner = self._entry_of(session_id, None).core.owner
        hold = None
        if claim is not None:
            found = await self._claims.take(owner, claim)
            if isinstance(found, Claim):
                core = self._claimed(found)
                if found.turn_id is not None or (core.forked_from or ("",))[0] != session_id:
                    raise ClaimConflict(claim.key)
                return self._session(core, attached=True)
            hold = found
        try:
            source = self._entry_of(session_id, owner).core
            fork = Fork(source=source, turn_id=turn_id, copy_workspace=copy_workspace)
            check_fork(fork)
            if not isinstance(self._agent, Forks):
                raise InvalidSpec(
                    "session_id", "this agent cannot begin a conversation with another"
                )
            spec = spec_of_fork(source, title=title, metadata=metadata)
            return await self._start(spec, owner, quota, hold, fork)
        finally:
            if hold is not None:
                hold.release()

    async def restart(
        self, session_id: str, *, owner: str | None = None, quota: Quota | None = None
    ) -> Session:
        """Try again with a session that failed. It counts as a session again, and is kept.

        Args:
            session_id: Which.
            owner: Only if it is this owner's.
            quota: What the owner may have at once; None: any number of sessions.

        Raises:
            SessionNotFound: There is none, or it is somebody else's.
            SessionClosed: It has ended.
            NotFailed: It has not failed.
            AtCapacity: There are as many sessions, or processes, as there may be.
            QuotaExceeded: The owner has as many sessions as it may have.
            Unavailable: The store fails.
            Draining: The supervisor is shutting down.
        """
        self._require_open()
        entry = self._entry_of(session_id, owner)
        core = entry.core
        self._refuse_when_draining()
        if has_ended(core):
            raise SessionClosed(session_id)
        if core.state is not State.FAILED:
            raise NotFailed(session_id)
        self.check_admission(core.kind)
        message = Restart(place=core.account.take_session(quota))
        # Until it counts itself; from then on `_occupy` has counted it.
        self._conversations += 1
        message.on_settled(self._uncount)
        try:
            core.mailbox.offer_control(message)
        except Refused as error:
            message.refuse(error)
            raise
        await message.reply.wait()
        return entry.session

    def check_admission(self, kind: SessionKind = SessionKind.CONVERSATION) -> None:
        """Return if a session of this kind would be admitted now.

        Args:
            kind: What it would be for.

        Raises:
            AtCapacity: There are as many sessions, or processes, as there may be, or they take as
                much memory as they may.
            Draining: The supervisor is shutting down.
        """
        self._refuse_when_draining()
        config = self._config
        if kind is SessionKind.CONVERSATION and self._conversations >= config.max_sessions:
            raise AtCapacity("sessions", config.max_sessions)
        if self._slots.waiting >= config.max_waiting:
            raise AtCapacity("agent processes", config.max_live)
        used, budget = self._slots.memory_bytes, self._slots.memory_budget_bytes
        if used is not None and budget is not None and self._slots.memory_full:
            raise MemoryFull(used, budget)

    def get(self, session_id: str, *, owner: str | None = None) -> Session:
        """Return a session, also one that has ended and is still kept.

        Args:
            session_id: Which.
            owner: Find only this owner's; None finds anybody's.

        Raises:
            SessionNotFound: There is none, it is somebody else's, or it was closed.
            SessionSpoiled: What is stored of it is damaged.
        """
        return self._entry_of(session_id, owner).session

    def kept(self, session_id: str, *, owner: str | None = None) -> Session:
        """Return a session to read what it said, also one that was closed and is not erased yet.

        Args:
            session_id: Which.
            owner: Find only this owner's; None finds anybody's.

        Raises:
            SessionNotFound: There is none, or it is somebody else's.
            SessionSpoiled: What is stored of it is damaged.
        """
        return self._entry_of(session_id, owner, deleted=True).session

    def _entry_of(self, session_id: str, owner: str | None, *, deleted: bool = False) -> _Entry:
        entry = self._entries.get(session_id)
        if entry is None and self._is_damaged(session_id, owner):
            raise SessionSpoiled(session_id)
        if (
            entry is None
            or (owner is not None and entry.core.owner != owner)
            or (entry.core.deleted_at is not None and not deleted)
        ):
            raise SessionNotFound(session_id)
        return entry

    def _is_damaged(self, session_id: str, owner: str | None) -> bool:
        """Whether there is a damaged session, and it is this owner's or nobody knows whose."""
        damaged = self._damaged.get(session_id)
        if damaged is None:
            return False
        return owner is None or damaged.session is None or damaged.session.owner == owner

    def count(self, *, owner: str | None = None) -> int:
        """Return how many conversations take queries.

        Args:
            owner: Only this owner's; None everybody's.
        """
        return self._roster.count(owner)

    def ids(self, *, owner: str | None = None) -> tuple[str, ...]:
        """Return the ids of the conversations that take queries, oldest first.

        Of many it costs a fraction of what a look at each takes.

        Args:
            owner: Only this owner's; None everybody's.
        """
        return self._roster.ids(owner)

    def list(self, *, owner: str | None = None, state: State | None = None) -> tuple[Session, ...]:
        """Return conversations that are kept, oldest first.

        Args:
            owner: Only this owner's; None everybody's.
            state: Those in this state; None: those that take queries.
        """
        if state is None:
            return self._roster.list(owner)
        if state in ACTIVE:
            return tuple(one for one in self._roster.list(owner) if one.state is state)
        found = [
            entry.session
            for entry in self._entries.values()
            if entry.core.kind is SessionKind.CONVERSATION
            and entry.core.deleted_at is None
            and owner in (None, entry.core.owner)
            and entry.core.standing is state
        ]
        return tuple(sorted(found, key=by_age))

    async def close(self, session_id: str, *, owner: str | None = None) -> Closed:
        """End a session and forget it; returns when its process is gone.

        What it said is erased by then or, if `Retention.closed_s` says so, later: until then it can
        be read by `kept`.

        Args:
            session_id: Which.
            owner: Only if it is this owner's.

        Raises:
            SessionNotFound: There is none, or it is somebody else's.
            Unavailable: Something of it could not be erased. Close it again.
        """
        try:
            entry = self._entry_of(session_id, owner)
        except SessionSpoiled:
            return await self._close_damaged(session_id, owner)
        closed = await entry.session.close()
        try:
            if self._config.retention.closed_s > 0 and entry.ours:
                await to_the_end(self._delete(entry))
            else:
                await to_the_end(self._forget(entry))
        except (StoreError, AgentError, OSError, TimeoutError) as error:
            logger.exception(
                "session %s could not be erased", session_id, extra={"session_id": session_id}
            )
            raise Unavailable from error
        return closed

    async def _delete(self, entry: _Entry) -> None:
        """Let nobody find a session that was closed, but who reads what it said.

        Raises:
            StoreError: It cannot be stored.
        """
        core = entry.core
        if core.deleted_at is not None or self._entries.get(core.session_id) is not entry:
            return
        core.deleted_at = self._clock.now()
        try:
            await core.log.commit(session=core.record(closed=True))
        except BaseException:
            core.deleted_at = None
            raise
        if entry.forget is not None:
            entry.forget.cancel()
            entry.forget = None
        self._ended.pop(core.session_id, None)
        self._keep_for_a_while(entry)

    async def _close_damaged(self, session_id: str, owner: str | None) -> Closed:
        """Erase what is left of a session that nobody can go on with."""
        damaged = self._damaged[session_id]
        if damaged.session is None and owner is not None:
            # Whose it was cannot be told any more: that is for who may close everybody's.
            raise SessionSpoiled(session_id)
        try:
            if damaged.session is not None:
                await self._erase_record(damaged.session)
            else:
                await self._store.erase(session_id)
        except (StoreError, AgentError, OSError) as error:
            logger.exception(
                "session %s could not be erased", session_id, extra={"session_id": session_id}
            )
            raise Unavailable from error
        self._damaged.pop(session_id, None)
        return Closed(reason=CloseReason.REQUESTED)

    def forget_owner(self, owner: str) -> None:
        """Stop processes that stand ready for an owner: nobody may ask on their behalf any more.

        Sessions go on, and a one-off that runs; its process does not stand ready after it.

        Args:
            owner: Whose.
        """
        if self._pool is not None:
            self._pool.forget_owner(owner)

    # -- look and listen -----------------------------------------------------------------

    def snapshot(self) -> SupervisorSnapshot:
        """Return what everything looks like now."""
        return SupervisorSnapshot(
            sessions=tuple(entry.session.snapshot() for entry in self._entries.values()),
            active=self.count(),
            live=self._slots.taken,
            waiting=self._slots.waiting,
            max_sessions=self._config.max_sessions,
            max_live=self._config.max_live,
            draining=self._draining,
            memory_bytes=self._slots.memory_bytes,
            memory_budget_bytes=self._slots.memory_budget_bytes,
            damaged=tuple(self._damaged),
            pool=None if self._pool is None else self._pool.snapshot(),
        )

    def usage(self, owner: str) -> Usage:
        """Return what an owner has now, of what a `Quota` limits."""
        return self._account(owner).usage

    def spent(self, owner: str) -> float:
        """Return what all turns of an owner have cost, in US dollars, also in sessions gone by."""
        return self._spending.of(owner)

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
        self._leaving.set()
        if self._pool is not None:
            self._pool.close()
        entries = (*self._entries.values(), *self._coming.values())
        for entry in entries:
            entry.core.mailbox.shut_work(Draining)
            message = Close(reason=CloseReason.DRAINED, grace_s=budget_s)
            # One that has ended needs no telling.
            with suppress(Refused):
                entry.core.mailbox.offer_control(message, always=True)
        for entry in entries:
            await entry.core.ended.wait()
        if self._pool is not None:
            await self._pool.aclose()

    # -- inside --------------------------------------------------------------------------

    def _check(self, spec: SessionSpec, kind: SessionKind) -> None:
        """Refuse what could not be begun; nothing may be awaited between this and counting."""
        self._require_open()
        for name in ("idle_timeout_s", "expiry_s", "permission_timeout_s", "max_budget_usd"):
            limit: float | None = getattr(spec, name)
            if limit is not None and not limit > 0:
                raise InvalidSpec(name, "must be greater than 0")
        self._agent.check(spec)
        self.check_admission(kind)

    def _require_open(self) -> None:
        if not self._open:
            raise RuntimeError("The supervisor is not open: use `async with Supervisor(...)`.")

    def _account(self, owner: str) -> Account:
        account = self._accounts.get(owner)
        if account is None:
            account = self._accounts[owner] = Account()
        return account

    async def _admit(
        self,
        spec: SessionSpec,
        owner: str,
        kind: SessionKind,
        place: Place | None,
        hold: Hold | None,
        fork: Fork | None,
    ) -> _Entry:
        with self._admission(kind):
            return await self._admit_counted(spec, owner, kind, place, hold, fork)

    @contextmanager
    def _admission(self, kind: SessionKind) -> Generator[None]:
        """Count a session while it is being begun, and outwait that when the supervisor is left."""
        conversation = kind is SessionKind.CONVERSATION
        # Counted before the first wait, so that many at once keep within the limits.
        self._conversations += conversation
        admitted = asyncio.get_running_loop().create_future()
        self._admissions.add(admitted)
        try:
            yield
        except BaseException:
            self._conversations -= conversation
            raise
        finally:
            self._admissions.discard(admitted)
            admitted.set_result(None)

    async def _admit_counted(
        self,
        spec: SessionSpec,
        owner: str,
        kind: SessionKind,
        place: Place | None,
        hold: Hold | None,
        fork: Fork | None,
    ) -> _Entry:
        if fork is None:
            record = await self._new(spec, owner, kind)
            entry = await self._keep(record, place, hold, state=INITIAL)
        else:
            record = await self._copy(fork, spec)
            entry = await self._keep(record, place, hold, state=State.HIBERNATED)
        try:
            self._refuse_when_draining()
        except Draining:
            await to_the_end(self._erase(entry, claims=True))
            raise
        self._register(entry)
        self._own(self._run(entry), name=f"session {entry.core.session_id}")
        return entry

    def _register(self, entry: _Entry) -> None:
        """Let a session be found, and listed for as long as it takes queries."""
        core = entry.core
        self._entries[core.session_id] = entry
        if core.kind is SessionKind.CONVERSATION:
            core.moved = partial(self._roster.look, core, entry.session)
            core.moved()

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Draining

    def _own(
        self,
        work: Coroutine[Any, Any, None],
        *,
        name: str,
        over: Callable[[], None] | None = None,
    ) -> None:
        """Run what contains its own failures, and outwait it when the supervisor is left."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if over is not None:
            task.add_done_callback(lambda _: over())

    def _vacate(self, entry: _Entry) -> None:
        """Let others have the places of a session that takes no more queries."""
        if entry.counts:
            entry.counts = False
            self._conversations -= entry.core.kind is SessionKind.CONVERSATION
            if entry.place is not None:
                entry.place.release()

    def _uncount(self) -> None:
        self._conversations -= 1

    def _occupy(self, entry: _Entry, place: Place | None) -> None:
        """Let a session that had failed count again, and be kept."""
        session_id = entry.core.session_id
        entry.place = place
        entry.counts = True
        self._conversations += entry.core.kind is SessionKind.CONVERSATION
        if entry.forget is not None:
            entry.forget.cancel()
            entry.forget = None
        self._ended.pop(session_id, None)
        self._still_read.pop(session_id, None)

    async def _new(self, spec: SessionSpec, owner: str, kind: SessionKind) -> SessionRecord:
        """Return a new session that nobody knows yet; only its directory is there."""
        session_id = str(uuid4())
        # A one-off leaves its directory to its process, if that is used again.
        reused = kind is SessionKind.ONEOFF and self._pool is not None
        name = f"{SPARE}{session_id}" if reused else session_id
        private_cwd = await self._workspaces.allot(name) if spec.cwd is None else None
        now = self._clock.now()
        return SessionRecord(
            session_id=session_id,
            owner=owner,
            kind=kind,
            spec=spec,
            cwd=str(private_cwd) if private_cwd is not None else str(spec.cwd),
            private=private_cwd is not None,
            created_at=now,
            active_at=now,
            title=spec.title,
            metadata=spec.metadata,
        )

    async def _copy(self, fork: Fork, spec: SessionSpec) -> SessionRecord:
        """Return a new session with the context of another; nobody knows it yet."""
        source = fork.source
        async with kept_still(source):
            anchor = await self._read(anchor_of(fork))
            record = replace(
                await self._new(spec, source.owner, source.kind),
                has_context=True,
                rules=source.rules,
                forked_from=(source.session_id, fork.turn_id),
            )
            try:
                if fork.copy_workspace:
                    if has_ended(source):  # then its directory is not to be made again
                        raise SessionClosed(source.session_id)
                    await self._prepare(self._entries[source.session_id])
                    await copy_files(
                        Path(source.cwd),
                        Path(record.cwd),
                        max_bytes=self._config.max_copy_bytes,
                        max_files=self._config.max_copy_files,
                        draining=self._leaving.is_set,
                    )
            except BaseException:
                await to_the_end(self._discard(record))
                raise
            return await self._copy_conversation(source, record, anchor)

    async def _read(self, reading: Coroutine[Any, Any, T]) -> T:
        """Read something of the store for whoever asks.

        Raises:
            Unavailable: The store fails.
        """
        try:
            async with asyncio.timeout(self._config.watchdogs.store_s):
                return await reading
        except (StoreError, TimeoutError) as error:
            raise Unavailable from error

    async def _copy_conversation(
        self, source: SessionCore, record: SessionRecord, anchor: str | None
    ) -> SessionRecord:
        """Return a new session with what the agent knows of another, or leave nothing of it."""
        assert isinstance(self._agent, Forks), "this was checked"
        known = source.record()
        assert known.agent_session_id is not None, "it has a context"
        copying = asyncio.ensure_future(
            self._agent.fork(
                _fingerprint_of(known),
                known.agent_session_id,
                into=_fingerprint_of(record),
                anchor=anchor,
            )
        )
        try:
            # Given up or cancelled, there may be a copy all the same.
            await asyncio.wait({copying}, timeout=self._config.watchdogs.start_s)
            if not copying.done():
                raise Unavailable
            copied = replace(record, agent_session_id=copying.result())
            if has_ended(source):  # it may have been erased while it was copied
                raise Draining if self._draining else SessionClosed(source.session_id)
        except BaseException as error:
            undoing = self._undo_copying(copying, record)
            if copying.done():
                await to_the_end(undoing)
            else:
                self._own(undoing, name=f"undo session {record.session_id}")
            if isinstance(error, ResumeNotFound):
                raise NothingToFork(source.session_id) from error
            if isinstance(error, Exception) and not isinstance(error, Refused):
                logger.exception(
                    "session %s could not be forked",
                    source.session_id,
                    extra={"session_id": source.session_id},
                )
                raise Unavailable from error
            raise
        return copied

    async def _undo_copying(self, copying: asyncio.Future[str], record: SessionRecord) -> None:
        """Leave nothing of a copied conversation that nobody has."""
        await asyncio.wait({copying})
        if not copying.cancelled() and copying.exception() is None:
            record = replace(record, agent_session_id=copying.result())
        await self._discard(record)

    async def _discard(self, record: SessionRecord) -> None:
        """Leave nothing of a session that is not stored."""
        try:
            if record.private:
                with suppress(OSError):  # it is in the log
                    await self._workspaces.release(Path(record.cwd))
            if isinstance(self._agent, Forgets) and record.agent_session_id is not None:
                await self._agent.forget(_fingerprint_of(record), record.agent_session_id)
        except AgentError:
            logger.exception(
                "the conversation of session %s, which nobody has, could not be erased",
                record.session_id,
                extra={"session_id": record.session_id},
            )

    async def _keep(
        self, record: SessionRecord, place: Place | None, hold: Hold | None, *, state: State
    ) -> _Entry:
        """Store a new session, or leave nothing of it."""
        session_id = record.session_id
        claims = () if hold is None else (hold.claim(session_id, None),)
        creating = asyncio.ensure_future(self._store.create(record, first=Batch(claims=claims)))
        try:
            # Given up or cancelled, it may be kept all the same, and then nobody knows of it.
            await asyncio.wait({creating}, timeout=self._config.watchdogs.store_s)
            if not creating.done():
                raise Unavailable
            lease = creating.result()
        except BaseException as error:
            undoing = self._undo(creating, record)
            if creating.done():
                await to_the_end(undoing)
            else:
                # Whoever comes with the same key must not find what is about to be undone.
                over = None if hold is None else hold.keep()
                self._own(undoing, name=f"undo session {session_id}", over=over)
            if isinstance(error, StoreError):
                logger.exception("a session could not be stored")
                raise Unavailable from error
            raise
        return self._entry(record, lease, place, state=state)

    async def _create(self, session: SessionRecord, first: Batch) -> Lease:
        """Store a session with its first question; from then on it is found.

        Raises:
            StoreError: It is not stored, or may be: it is to be undone.
        """
        session_id, store_s = session.session_id, self._config.watchdogs.store_s
        entry = self._coming[session_id]
        entry.creating = asyncio.ensure_future(self._store.create(session, first=first))
        try:
            # Given up, it may be kept all the same.
            await asyncio.wait({entry.creating}, timeout=store_s)
            if not entry.creating.done():
                raise StoreError(f"The store did not take a session within {store_s:g} s.")
            lease = entry.creating.result()
        except BaseException:
            self._refuse(entry)  # who asked need not wait until its process is gone
            raise
        entry.creating = entry.hold = None
        self._register(self._coming.pop(session_id))
        return lease

    def _refuse(self, entry: _Entry) -> Callable[[], None]:
        """Tell who asked that it could not be stored; return what lets others use the key."""
        # Whoever comes with the same one must not find what is about to be undone.
        over = nothing if entry.hold is None else entry.hold.keep()
        entry.core.mailbox.shut(Unavailable)
        return over

    async def _take_back(self, entry: _Entry) -> None:
        """Leave nothing of a session that its actor could not store. Nobody knows of it."""
        core = entry.core
        core.move(State.CLOSED, Closed(reason=CloseReason.FAULT))
        core.log.close()
        over = self._refuse(entry)
        core.ended.set()
        try:
            if entry.creating is None:
                await self._discard(core.record())
            else:
                await self._undo(entry.creating, core.record())
        finally:
            over()

    async def _undo(self, creating: asyncio.Future[Lease], record: SessionRecord) -> None:
        """Leave nothing of a session that was not admitted."""
        try:
            await asyncio.wait({creating})
            if not creating.cancelled() and creating.exception() is None:
                await self._store.erase(record.session_id, claims=True)
        except StoreError:
            logger.exception(
                "session %s, which nobody has, could not be erased",
                record.session_id,
                extra={"session_id": record.session_id},
            )
        finally:
            await self._discard(record)

    def _entry(
        self, record: SessionRecord, lease: Lease | Create, place: Place | None, *, state: State
    ) -> _Entry:
        """Return a session as it was stored, or is to be, in a given state."""
        config, wakeup, clock = self._config, Wakeup(self._gate), self._clock.here()
        core = SessionCore(
            session_id=record.session_id,
            owner=record.owner,
            account=self._account(record.owner),
            spending=self._spending,
            pacing=self._pacing,
            kind=record.kind,
            spec=record.spec,
            cwd=record.cwd,
            private=record.private,
            created_at=record.created_at,
            active_at=record.active_at,
            mailbox=Mailbox[Control, Query](
                max_work=config.max_queued, max_control=config.max_control, on_offer=wakeup.ring
            ),
            ledger=Ledger(
                record.session_id,
                clock=clock,
                total_cost_usd=record.total_cost_usd,
                conversation_cost_usd=record.conversation_cost_usd,
            ),
            requests=Requests(record.session_id, clock=clock),
            log=EventLog(
                record.session_id,
                self._store,
                lease=lease,
                clock=clock,
                store_s=config.watchdogs.store_s,
            ),
            store=self._store,
            claims=self._claims,
            restarts=RestartBudget(config.restarts, self._random),
            wakeup=wakeup,
            clock=clock,
            state=state,
            agent_session_id=record.agent_session_id,
            has_context=record.has_context,
            failure=record.failure,
            title=record.title,
            metadata=record.metadata,
            rules=record.rules,
            forked_from=record.forked_from,
            stored=record if isinstance(lease, Lease) else None,
            deleted_at=record.deleted_at,
        )
        return _Entry(core, self._session(core), place)

    def _session(self, core: SessionCore, *, attached: bool = False) -> Session:
        return Session(core, config=self._config, check=self._agent.check, attached=attached)

    async def _recover(self) -> None:
        """Go on with the sessions that the store has from before."""
        if isinstance(self._agent, Recovers):
            await self._agent.recover()
        self._spending.restore(await self._store.spending())
        for found in await self._store.take_over():
            if isinstance(found, Damaged):
                logger.error(
                    "session %s is set aside: %s",
                    found.session_id,
                    found.reason,
                    extra={"session_id": found.session_id},
                )
                self._damaged[found.session_id] = found
                continue
            record = found.session
            # First of all: an entry that nothing runs for would be waited for without end.
            texts = [await text_left(self._store, turn) for turn in found.open_turns]
            counts = record.kind is SessionKind.CONVERSATION and record.state is State.HIBERNATED
            place = self._account(record.owner).take_session(None) if counts else None
            # One that was closed with something left open was cut off in the middle of that.
            closed = record.state is State.CLOSED
            left_open = bool(found.open_turns or found.open_requests)
            state = State.HIBERNATED if closed and left_open else record.state
            entry = self._entry(record, found.lease, place, state=state)
            entry.counts = counts
            self._conversations += counts
            self._register(entry)
            if state is State.CLOSED:
                self._bury(entry.core)
                self._keep_for_a_while(entry)
                continue
            for turn, text in zip(found.open_turns, texts, strict=True):
                turn_place = entry.core.account.take_turn(None)
                entry.core.ledger.restore(turn, text=text, place=turn_place)
            entry.core.requests.restore(found.open_requests)
            if closed:
                entry.core.mailbox.offer_control(Close(reason=CloseReason.FAULT))
            self._own(self._run(entry), name=f"session {record.session_id}")
        if isinstance(self._workspaces, ReusableWorkspaces) and not self._damaged:
            # Before anything is allotted; where a session is damaged, who knows what is its.
            await self._workspaces.sweep([Path(one.core.cwd) for one in self._entries.values()])

    def _bury(self, core: SessionCore) -> None:
        """Let a session be that was closed before; it can be read for a while."""
        core.move(State.CLOSED, Closed(reason=CloseReason.REQUESTED))
        core.log.close()
        core.mailbox.shut(partial(SessionClosed, core.session_id))
        core.ended.set()

    async def _run(self, entry: _Entry) -> None:
        """Run a session to its end, and clear up after it whatever that end is."""
        core = entry.core
        cut_off = SERVER_RESTART
        try:
            while fault := await self._act(entry, cut_off):
                if self._coming.pop(core.session_id, None) is not None:
                    await self._take_back(entry)
                    return
                if core.closed is not None or not await self._go_on(entry, fault):
                    break
                cut_off = SERVER_FAULT
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
        if not core.goes_on:  # then it has not ended, and is not forgotten
            self._keep_for_a_while(entry)

    async def _act(self, entry: _Entry, cut_off: Failure) -> ExceptionGroup | None:
        """Run an actor to its end; return the fault that it ended by, if it did."""
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

        def on_retried(place: Place | None) -> None:
            self._occupy(entry, place)

        def on_restart(notice: Restarted) -> None:
            self._tell(notice)

        actor = Actor(
            core,
            agent=self._agent,
            config=self._config,
            slots=self._slots,
            starting=self._starting,
            prepare=lambda: self._prepare(entry),
            cut_off=cut_off,
            durable=self._store.durable,
            on_restart=on_restart,
            on_failed=on_failed,
            on_retried=on_retried,
            pool=self._pool,
        )
        fault: ExceptionGroup | None = None
        try:
            await actor.run()
        except* Exception as errors:  # a bug of ours or a failing store: contained here
            logger.error(
                "session %s met with a fault",
                core.session_id,
                exc_info=errors,
                extra={"session_id": core.session_id},
            )
            fault = errors
        return fault

    async def _measure(self) -> None:
        policy = self._config.memory
        assert policy is not None, "it is there if there is a budget"
        while not self._draining:
            await self._sleep(policy.interval_s)
            try:
                await self._slots.measure()
            except Exception:  # an adapter that breaks its contract takes nobody with it
                logger.exception("the memory of the agents' processes could not be measured")

    async def _trim(self) -> None:
        """Have the store drop what is not kept, a little at a time."""
        while not self._draining:
            try:
                more = await self._store.trim(now=self._clock.now())
            except StoreError:
                logger.exception("the store could not drop what is not kept any more")
                more = False
            await self._sleep(TRIM_PAUSE_S if more else TRIM_EVERY_S)

    async def _prepare(self, entry: _Entry) -> None:
        if entry.private_cwd is not None:
            await self._workspaces.restore(entry.private_cwd)

    async def _go_on(self, entry: _Entry, fault: ExceptionGroup) -> bool:
        """Bring a session back from the store after a fault; return whether an actor is to go on.

        As long as it is the store that fails, it is tried again and again: nothing that was
        acknowledged is given up. Other faults are counted like crashes.
        """
        if not self._store.durable:
            return False
        core = entry.core
        if entry.faults is None:
            entry.faults = RestartBudget(self._config.restarts, self._random)
        delay_s = entry.faults.spend(self._clock.monotonic())
        if delay_s is None and fault.split(StoreError)[1] is not None:
            return False
        delay_s = self._config.restarts.max_delay_s if delay_s is None else delay_s
        core.move(State.HIBERNATED)
        refused = [
            message.key
            for message in core.mailbox.shut(Unavailable)
            if isinstance(message, Query) and message.claim is None
        ]
        fenced = fault.subgroup(Fenced) is not None
        restarts = self._config.restarts
        # After a first fault at once: those who wait need not be told that it takes long.
        again = delay_s > restarts.base_delay_s * (1.0 + restarts.jitter)
        while not fenced and not self._draining:
            if again:
                core.ledger.suspend(Unavailable)
                core.log.stall()
                await self._sleep(delay_s)
                delay_s = min(2 * delay_s, self._config.restarts.max_delay_s)
            again = True
            try:
                await revive(core, refused=refused, within_s=self._config.watchdogs.store_s)
            except (Fenced, UnknownSession):
                fenced = True
            except (StoreError, TimeoutError) as error:
                logger.warning(
                    "session %s cannot go on before the store does: %s",
                    core.session_id,
                    error if str(error) else "it takes too long",
                    extra={"session_id": core.session_id},
                )
            else:
                if not self._draining:
                    return True
        entry.ours = not fenced
        self._leave(core, CloseReason.FAULT if fenced else CloseReason.DRAINED)
        return False

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not longer than until the drain."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), seconds)

    def _leave(self, core: SessionCore, reason: CloseReason) -> None:
        """Let a session be that goes on under another supervisor."""
        core.move(State.CLOSED, Closed(reason=reason))
        core.ledger.suspend(Draining)
        core.log.close()
        core.mailbox.shut(
            Draining if reason is CloseReason.DRAINED else partial(SessionClosed, core.session_id)
        )

    async def _settle(self, core: SessionCore) -> None:
        """Answer everything that an actor which ended by a fault could not."""
        failure = Failure(
            code=FailureCode.INTERNAL,
            message="The server made a mistake and ended the session. Start a new one.",
        )
        core.failure = failure.message
        core.move(State.CLOSED, Closed(reason=CloseReason.FAULT))
        await self._settle_requests(core)
        for turn in core.ledger.unannounced():
            seq = core.log.next_seq
            result = turn.result or core.ledger.end(
                turn, Outcome.FAILED, last_seq=seq, failure=failure
            )
            end = events.end_of(result)
            try:
                (event,) = await core.log.commit(
                    (end, turn.turn_id),
                    turns=(turn.stored(),),
                    session=core.record(closed=True),
                )
            except Exception:  # the store's failure may be why we are here
                logger.exception(
                    "the end of turn %s could not be stored",
                    turn.turn_id,
                    extra={"session_id": core.session_id, "turn_id": turn.turn_id},
                )
                core.log.publish(end, turn.turn_id)
                event = events.Event(seq, turn.turn_id, self._clock.now(), end)
            core.ledger.announce(turn, event)
        core.log.close()
        core.mailbox.shut(partial(SessionClosed, core.session_id))

    async def _settle_requests(self, core: SessionCore) -> None:
        """Say of all that others know to wait for a human that it is lost."""
        core.requests.restore(core.requests.shown)
        lost = [core.requests.resolve(one, Resolution.LOST) for one in core.requests.open]
        if not lost:
            return
        drafts = [(resolved_event(one), one.turn_id) for one in lost]
        try:
            await core.log.commit(*drafts, requests=core.requests.take_changed())
        except Exception:  # the store's failure may be why we are here
            logger.exception(
                "what waited for a human could not be stored as lost",
                extra={"session_id": core.session_id},
            )
            for body, turn_id in drafts:
                core.log.publish(body, turn_id)
        core.requests.show(lost)

    def _tell(self, notice: Notice) -> None:
        for monitor in self._monitors:
            monitor.hear(notice)

    def _keep_for_a_while(self, entry: _Entry) -> None:
        """Let a session that ended be read until retention ends."""
        retention = self._config.retention
        session_id, deleted_at = entry.core.session_id, entry.core.deleted_at
        if session_id in self._ended or self._entries.get(session_id) is not entry:
            return
        loop = asyncio.get_running_loop()
        since, kept_s = entry.core.active_at, retention.ended_s
        if deleted_at is not None:
            since, kept_s = deleted_at, retention.closed_s
        if retention.age_s is not None:
            kept_s = min(kept_s, retention.age_s)
        # One that was found has been so for a while.
        ended_s = (self._clock.now() - since).total_seconds()
        after_s = min(max(0.0, kept_s - ended_s), kept_s)
        entry.forget = loop.call_later(after_s, self._forget_later, entry)
        self._still_read[session_id] = entry.core.log
        while len(self._still_read) > STILL_READ:
            _, log = self._still_read.popitem(last=False)
            log.forget()
        if deleted_at is not None:  # its owner does not know of others that end
            return
        self._ended[session_id] = None
        while len(self._ended) > retention.ended_sessions:
            oldest, _ = self._ended.popitem(last=False)
            self._forget_later(self._entries[oldest])

    def _forget_later(self, entry: _Entry) -> None:
        if self._open:
            self._own(self._forget_quietly(entry), name=f"forget {entry.core.session_id}")

    async def _forget_quietly(self, entry: _Entry) -> None:
        if entry.counts:  # it was tried again meanwhile
            return
        try:
            if not entry.core.ended.is_set():
                await entry.session.close()
            await self._forget(entry)
        except Exception:  # a store that fails to erase must not take the living with it
            loop = asyncio.get_running_loop()
            entry.forget = loop.call_later(ERASE_AGAIN_S, self._forget_later, entry)
            logger.exception(
                "session %s could not be erased",
                entry.core.session_id,
                extra={"session_id": entry.core.session_id},
            )

    async def _forget(self, entry: _Entry) -> None:
        """Erase a session that has ended.

        Raises:
            StoreError: What the store has of it is still there, and so is the session.
            AgentError: What the agent has of it is still there, and so is the session.
        """
        session_id = entry.core.session_id
        if entry.forget is not None:
            entry.forget.cancel()
        if self._entries.get(session_id) is entry:
            if entry.ours:
                await self._erase(entry)
            self._entries.pop(session_id, None)
            self._roster.drop(entry.core)
            entry.core.moved = nothing  # it would keep itself alive by it
            self._ended.pop(session_id, None)
            self._still_read.pop(session_id, None)

    async def _erase(self, entry: _Entry, *, claims: bool = False) -> None:
        await self._erase_record(entry.core.record(closed=True), claims=claims)

    async def _erase_record(self, record: SessionRecord, *, claims: bool = False) -> None:
        # First: what an agent remembers of a directory goes only if that is gone.
        if record.private:
            await self._workspaces.release(Path(record.cwd))
        if isinstance(self._agent, Forgets) and record.agent_session_id is not None:
            fingerprint = Fingerprint.of(
                record.spec, owner=record.owner, cwd=record.cwd, kind=record.kind
            )
            await self._agent.forget(fingerprint, record.agent_session_id)
        # Last: whatever failed before, the session is still there to try again.
        await self._store.erase(record.session_id, claims=claims)

    async def _release(self, entry: _Entry) -> None:
        if entry.private_cwd is not None:
            await self._workspaces.release(entry.private_cwd)


def _fingerprint_of(record: SessionRecord) -> Fingerprint:
    return Fingerprint.of(record.spec, owner=record.owner, cwd=record.cwd, kind=record.kind)
