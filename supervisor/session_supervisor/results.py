"""What became of a turn: frozen values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydantic import JsonValue

from session_supervisor.errors import Failure
from session_supervisor.spec import Attachment, OnPermission


class Origin(StrEnum):
    """Who began a turn."""

    USER = "user"
    AGENT = "agent"


class Outcome(StrEnum):
    """How a turn ended."""

    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    LOST = "lost"


class Phase(StrEnum):
    """Where a turn is."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """What a turn took.

    Attributes:
        num_turns: Model round trips.
        total_cost_usd: Price of this turn alone, in US dollars.
        usage: Tokens, as the upstream counts them.
        stop_reason: Why the model stopped.
        permission_denials: Tool calls that were denied.
        structured_output: The answer as JSON, where a schema was given and met.
        anchor: By which the agent knows the place in the conversation where the turn ended.
    """

    num_turns: int = 0
    total_cost_usd: float = 0.0
    usage: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    stop_reason: str | None = None
    permission_denials: tuple[JsonValue, ...] = ()
    structured_output: JsonValue = None
    anchor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult:
    """How a turn ended.

    Attributes:
        session_id: Whose turn it was.
        turn_id: Which.
        origin: Who began it.
        outcome: How it ended.
        text: All top-level text of the turn, blocks joined by a blank line; partial unless
            the turn completed.
        failure: Why there is no answer, if there is none.
        accounting: What it took.
        duration_ms: Milliseconds from acceptance to the end, queueing included.
        queued_ms: Milliseconds of that before the agent was handed the prompt.
        spawn_ms: Milliseconds of those while a process was coming up.
        first_text_ms: Milliseconds from acceptance to the first text, or None without text.
    """

    session_id: str
    turn_id: str
    origin: Origin
    outcome: Outcome
    text: str
    failure: Failure | None = None
    accounting: Accounting = field(default_factory=Accounting)
    duration_ms: int = 0
    queued_ms: int = 0
    spawn_ms: int = 0
    first_text_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """A turn as it can be looked up.

    Attributes:
        session_id: Whose turn.
        turn_id: Its id, which is also the prompt's.
        origin: Who began it.
        prompt: What was asked; empty for a turn that the agent began.
        attachments: What went with it; without its data once the turn has ended.
        command: Whether the prompt is a command to the agent itself.
        on_permission: What happens to tool calls that need a permission.
        permission_timeout_s: Seconds that a human has to answer; None: any time.
        budget_usd: What its owner might spend when it was asked, in US dollars; None: any amount.
        phase: Where it is.
        text: The text so far.
        accepted_at: When it entered the ledger, UTC.
        started_at: When the agent was handed the prompt.
        ended_at: When it ended.
        result: How it ended, once it has.
        first_seq: Sequence number of its first event.
        last_seq: Sequence number of its terminal event, once it has ended.
        timeout_s: Seconds from its acceptance after which it is given up, or from when another
            supervisor found it; None never.
    """

    session_id: str
    turn_id: str
    origin: Origin
    prompt: str
    phase: Phase
    text: str
    accepted_at: datetime
    first_seq: int
    last_seq: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    result: TurnResult | None = None
    timeout_s: float | None = None
    attachments: tuple[Attachment, ...] = ()
    command: bool = False
    on_permission: OnPermission = "deny"
    permission_timeout_s: float | None = None
    budget_usd: float | None = None
