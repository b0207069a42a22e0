"""What a store keeps: frozen values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from session_supervisor.asks import Request, Rule
from session_supervisor.events import Event
from session_supervisor.lifecycle import State
from session_supervisor.results import TurnRecord
from session_supervisor.spec import SessionKind, SessionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """One session, as it must be known to go on with it in another process of ours.

    Attributes:
        session_id: Its id, a UUID.
        owner: Whose session it is.
        kind: What it is for.
        spec: What was asked for.
        cwd: Where its processes run.
        private: Whether `cwd` was allotted to it, and goes when it goes.
        created_at: When it was started, UTC.
        active_at: When it last had something to do, UTC.
        state: `failed` or `closed`, or else `hibernated`: it has no process to whoever finds it.
        agent_session_id: What to resume the conversation with; None before there is any.
        has_context: Whether the conversation holds anything that a fresh one would not.
        failure: Why it failed, once it has.
        total_cost_usd: What all its turns have cost.
        conversation_cost_usd: What the agent last said that the conversation has cost: the
            baseline from which the next turn counts.
        title: What its owner calls it.
        metadata: What its owner notes about it.
        rules: Tool calls that need no further permission in it.
        forked_from: The session and the turn whose context it began with.
        deleted_at: When its owner closed it, UTC, if that has happened and it is still to be read.
    """

    session_id: str
    owner: str
    kind: SessionKind
    spec: SessionSpec
    cwd: str
    private: bool
    created_at: datetime
    active_at: datetime
    state: State = State.HIBERNATED
    agent_session_id: str | None = None
    has_context: bool = False
    failure: str | None = None
    total_cost_usd: float = 0.0
    conversation_cost_usd: float = 0.0
    title: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    rules: tuple[Rule, ...] = ()
    forked_from: tuple[str, str | None] | None = None
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A caller's key for a piece of work, so that its retry finds the work already begun.

    Attributes:
        owner: Whose key it is; two owners may choose the same one.
        key: What the caller named the work.
        digest: Of all that was asked, so that another request under the same key is noticed.
        session_id: Where the work is.
        turn_id: Which it is; None where a session was started without a prompt.
        claimed_at: When the key was first used, UTC.
        expires_at: When it may be used for other work, UTC.
    """

    owner: str
    key: str
    digest: str
    session_id: str
    turn_id: str | None
    claimed_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a writer adds to its session, all or none.

    Attributes:
        events: New events, in order, without holes.
        turns: Turns that are new or have changed.
        session: The session, if it has changed.
        claims: Keys for work that this batch begins.
        requests: What needs a human, new or changed.
        reserve: How many event numbers after the last of `events` the writer may show to readers
            before it commits again. They are never given to other events, whatever happens.
    """

    events: Sequence[Event] = ()
    turns: Sequence[TurnRecord] = ()
    session: SessionRecord | None = None
    claims: Sequence[Claim] = ()
    requests: Sequence[Request] = ()
    reserve: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to be a session's only writer.

    Attributes:
        fence: What to write with.
        last_seq: Number of the last event that is or may have been shown to anybody; the
            writer's first event has the next one.
    """

    fence: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A session that somebody left, to go on with.

    Attributes:
        session: As it was stored last.
        lease: To go on with it.
        open_turns: Its turns that have not ended, oldest first.
        open_requests: What waits for a human, oldest first.
    """

    session: SessionRecord
    lease: Lease
    open_turns: Sequence[TurnRecord] = ()
    open_requests: Sequence[Request] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A session that somebody left, and nobody can go on with.

    Attributes:
        session_id: Which.
        session: As it was stored last; None: just that is damaged.
        reason: What is wrong with it.
    """

    session_id: str
    session: SessionRecord | None
    reason: str
