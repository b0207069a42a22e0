"""The bodies of requests and answers: what the API takes and gives, field by field.

Requests are strict: a field of the wrong type or an unknown one is an error. An optional field may
also be null, which is as if it were not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from signal import Signals
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    WithJsonSchema,
)

from session_supervisor.agents.port import Exit
from session_supervisor.errors import Failure
from session_supervisor.lifecycle import State
from session_supervisor.messages import InterruptOutcome
from session_supervisor.results import Origin, Outcome, Phase, TurnRecord, TurnResult
from session_supervisor.spec import PermissionMode, SessionKind

NOT_BLANK = r"[^\s\x1c-\x1f\x85\ufeff]"
"""What a prompt must have some of: neither Python nor JavaScript, and so Claude Code, calls it a
space. The same in both languages, whose `\\s` differ."""


def _not_blank(text: str) -> str:
    if not re.search(NOT_BLANK, text):
        raise ValueError("must not be empty")
    return text


def _is_path(path: str) -> str:
    if "\0" in path:
        raise ValueError("must not hold a NUL character")
    if ".." in path.split("/"):
        raise ValueError("must not have '..' in it")
    return path


def _only_digits(number: object) -> object:
    if isinstance(number, str) and not (number.isascii() and number.isdigit()):
        # Else `1_0` would be 10, and `1.0` or ` 1` would be 1, which no server has sent.
        raise ValueError("must be the id of an event that was sent")
    return number


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Prompt: TypeAlias = Annotated[
    str, AfterValidator(_not_blank), Field(json_schema_extra={"pattern": NOT_BLANK})
]
Time: TypeAlias = Annotated[
    datetime,
    PlainSerializer(_rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""RFC 3339, in UTC, with a Z."""

UUID_EXAMPLE = "550e8400-e29b-41d4-a716-446655440000"
TURN_EXAMPLE = "0b9f0c8e-6f0a-4d53-9c0e-3f4f1f0f2a11"
TIME_EXAMPLE = "2025-10-14T10:30:00.000Z"

SessionId: TypeAlias = Annotated[str, Field(description="The session.", examples=[UUID_EXAMPLE])]
TurnId: TypeAlias = Annotated[str, Field(description="The turn.", examples=[TURN_EXAMPLE])]
AnswerOutcome: TypeAlias = Annotated[
    Literal["completed", "interrupted"],
    Field(description="`interrupted`: `response` holds the text until then."),
]
DurationMs: TypeAlias = Annotated[
    int, Field(description="Milliseconds from acceptance to the end, queueing included.")
]
CostUsd: TypeAlias = Annotated[
    float, Field(description="Price of the turn, in US dollars.", examples=[0.001234])
]
Denials: TypeAlias = Annotated[
    tuple[JsonValue, ...], Field(description="Tool calls that were denied.")
]
RoundTrips: TypeAlias = Annotated[int, Field(description="Model round trips.", examples=[1])]

Model: TypeAlias = Annotated[
    str | None,
    Field(
        min_length=1,
        description="Name or alias of the model; without it, the operator's default.",
        examples=["sonnet"],
    ),
]
AllowedTools: TypeAlias = Annotated[
    Annotated[tuple[str, ...], Field(max_length=256, fail_fast=True)] | None,
    Field(
        description="The only tools that exist in the session; they run without asking. Empty or "
        "omitted: all tools.",
        examples=[["Read", "Write"]],
    ),
]
Mode: TypeAlias = Annotated[
    PermissionMode | None,
    Field(
        description="What happens to tools that are not allowed outright; `default` if omitted. "
        "`bypassPermissions` only where the operator has allowed it.",
    ),
]
Cwd: TypeAlias = Annotated[
    Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_is_path)] | None,
    Field(
        description="Directory that the session works in: below the one that the operator has set "
        "aside, absolute or relative to it. It must exist. Without it the session gets a private "
        "one, which goes with it.",
        examples=["project"],
    ),
]
Stream: TypeAlias = Annotated[
    bool | None, Field(description="Whether to answer with Server-Sent Events.")
]
TimeoutS: TypeAlias = Annotated[
    float | None,
    Field(
        gt=0,
        le=7 * 86_400,
        allow_inf_nan=False,
        description="Seconds from acceptance, queueing included, after which the turn is given "
        "up and answered with 504. Without it the operator's limit holds.",
    ),
]
RestS: TypeAlias = Annotated[float | None, Field(gt=0, le=366 * 86_400, allow_inf_nan=False)]
"""How long something may rest, in seconds."""


# Requests


class Request(BaseModel):
    """What requests have in common."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)


class QueryRequest(Request):
    """A question without a conversation."""

    prompt: Prompt = Field(
        description="The question or instruction.", examples=["What is Python?"], min_length=1
    )
    model: Model = None
    allowed_tools: AllowedTools = None
    permission_mode: Mode = None
    cwd: Cwd = None
    stream: Stream = None
    timeout_s: TimeoutS = None


class StartRequest(Request):
    """A new conversation."""

    initial_prompt: Prompt | None = Field(
        default=None,
        min_length=1,
        description="First message of the conversation; the answer waits for the model's. Without "
        "it the session starts at once and takes its first prompt from `/query`.",
        examples=["What is Docker?"],
    )
    model: Model = None
    allowed_tools: AllowedTools = None
    permission_mode: Mode = None
    cwd: Cwd = None
    timeout_s: TimeoutS = None
    idle_timeout_s: RestS = Field(
        default=None,
        description="Seconds without work after which the session gives up its process; it wakes "
        "by itself, with its context. Without it the operator's limit holds.",
    )
    expiry_s: RestS = Field(
        default=None,
        description="Seconds without work after which the session is closed. Without it the "
        "operator's limit holds.",
    )


class SessionQueryRequest(Request):
    """The next message of a conversation."""

    prompt: Prompt = Field(
        description="Follow-up question or instruction.",
        examples=["How do I install it?"],
        min_length=1,
    )
    stream: Stream = None
    timeout_s: TimeoutS = None


class InterruptRequest(Request):
    """What to stop; the body may be left out."""

    turn_id: str | None = Field(
        default=None,
        description="Only this turn, running or queued; without it, the one that runs.",
        examples=[TURN_EXAMPLE],
    )
    queued: bool | None = Field(
        default=None, description="Whether queued turns are taken out as well."
    )


class NoParameters(Request):
    """A request that takes none."""


class Parameters(BaseModel):
    """What query strings have in common: all of it is text, which becomes what it means."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class SessionsParameters(Parameters):
    """Which sessions are listed."""

    owner: str | None = Field(
        default=None,
        description="The caller's own when left out. With the role `admin`: any owner's, or `*` "
        "for everybody's.",
    )
    state: State | None = Field(
        default=None,
        description="Only sessions in this state; left out, all that take queries.",
    )
    cursor: str | None = Field(
        default=None, description="`next_cursor` of an earlier answer, for the sessions after it."
    )
    limit: int | None = Field(
        default=None, ge=1, le=1000, description="Most sessions to list; left out, all."
    )


class MessagesParameters(Parameters):
    """Which messages are listed."""

    after: str | None = Field(
        default=None,
        description="Id of the last message already had; left out, from the beginning.",
    )
    limit: int = Field(default=100, ge=1, le=1000, description="Most messages to list.")


class EventsParameters(Parameters):
    """Where to begin reading; `Last-Event-ID` wins over it."""

    after: Annotated[int | None, BeforeValidator(_only_digits)] = Field(
        default=None,
        ge=0,
        description="Id of the last event already had; 0 or nothing: from the beginning.",
    )


# Answers


class Reply(BaseModel):
    """What answers have in common."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class Health(Reply):
    """How the server is."""

    status: Literal["healthy"] = "healthy"
    authenticated: bool = Field(description="Whether there is a Claude credential.")
    active_sessions: int = Field(description="The caller's sessions.", examples=[2])
    timestamp: Time = Field(description="Now.", examples=[TIME_EXAMPLE])
    offline: bool = Field(
        description="Whether the offline model answers instead of Claude. Its answers mean nothing."
    )


class Ready(Reply):
    """The server takes new work."""

    status: Literal["ready"] = "ready"


class Index(Reply):
    """What there is."""

    name: str
    version: str
    endpoints: tuple[str, ...] = Field(description="Every path of the API.")


class QueryReply(Reply):
    """The answer to a question."""

    response: str = Field(
        description="All text of the turn, blocks joined by a blank line.",
        examples=["Python is a high-level programming language..."],
    )
    duration_ms: DurationMs
    num_turns: RoundTrips
    total_cost_usd: CostUsd
    session_id: SessionId
    turn_id: TurnId
    outcome: AnswerOutcome
    permission_denials: Denials = ()


class StartReply(Reply):
    """A session has started."""

    session_id: SessionId
    status: Literal["started"] = "started"
    initial_response: str | None = Field(
        description="The answer to `initial_prompt`; null without one.",
        examples=["Docker is a platform for containerization..."],
    )
    created_at: Time = Field(description="When it started.", examples=[TIME_EXAMPLE])
    turn_id: str | None = Field(default=None, description="The first turn, if there was a prompt.")
    outcome: AnswerOutcome | None = Field(default=None, description="How the first turn ended.")
    permission_denials: Denials = ()


class SessionQueryReply(Reply):
    """The answer of a conversation."""

    session_id: SessionId
    response: str = Field(
        description="All text of the turn, blocks joined by a blank line.",
        examples=["To install Docker, you can..."],
    )
    duration_ms: DurationMs
    turn_id: TurnId
    outcome: AnswerOutcome
    num_turns: RoundTrips
    total_cost_usd: CostUsd
    permission_denials: Denials = ()


class InterruptReply(Reply):
    """The session has come to rest."""

    status: Literal["interrupted"] = "interrupted"
    session_id: SessionId
    outcome: InterruptOutcome = Field(
        description="`nothing_running`: there was nothing to stop. `escalated`: the agent did not "
        "stop in time, so its process was ended and will be resumed."
    )
    turn_ids: tuple[str, ...] = Field(description="The turns that it ended.")


class SessionReply(Reply):
    """A session."""

    session_id: SessionId
    created_at: Time = Field(description="When it started.", examples=[TIME_EXAMPLE])
    active: bool = Field(description="Whether it takes queries, or will again.")
    model: str = Field(description="The model asked for, else the operator's default.")
    state: str = Field(description="Where it is in its life.", examples=["idle"])
    owner: str = Field(description="Whose it is.", examples=["local"])


class SessionsReply(Reply):
    """Sessions that take queries, or are in the state that was asked for, oldest first."""

    active_sessions: tuple[str, ...] = Field(
        description="Their ids; some of them, where `limit` says how many.",
        examples=[[UUID_EXAMPLE]],
    )
    count: int = Field(description="How many there are.", examples=[1])
    next_cursor: str | None = Field(
        default=None, description="Where to go on; null if there are no more."
    )


class RestReply(Reply):
    """The session has been told."""

    session_id: SessionId
    state: State = Field(description="Where it is in its life now.")


class ProcessExit(Reply):
    """How a process ended."""

    code: int | None = Field(description="Its exit status, if it ended by itself.")
    signal: str | None = Field(
        description="The signal that ended it, if one did.", examples=["SIGTERM"]
    )
    cause: str = Field(description="What is known of why, for people.")

    @classmethod
    def of(cls, ended: Exit) -> ProcessExit:
        """Return it as it is answered."""
        status = ended.returncode
        return cls(
            code=None if status is None or status < 0 else status,
            signal=None if status is None or status >= 0 else _signal_name(-status),
            cause=ended.cause,
        )


class CloseReply(Reply):
    """The session is gone, and its process with all that it started."""

    status: Literal["closed"] = "closed"
    session_id: SessionId
    exit: ProcessExit | None = Field(
        default=None,
        description="How its last process ended; null if it never had one, or had given it up.",
    )


class TreeProcess(Reply):
    """One process of a session."""

    pid: int
    parent: int = Field(description="Id of its parent; not of the tree for the first, and orphans.")
    name: str = Field(description="Short name of its program.", examples=["claude"])
    pss_bytes: int = Field(
        description="The memory that it takes, pages that it shares with others counted in part."
    )


class Lanes(Reply):
    """How much waits in a session's mailbox."""

    control: int = Field(description="Interrupts, looks and the like, which are served at once.")
    work: int = Field(description="Turns.")


class InspectReply(Reply):
    """What a session is doing at this moment."""

    session_id: SessionId
    state: State = Field(description="Where it is in its life.")
    turn_id: str | None = Field(description="The turn that runs.")
    turn_origin: Origin | None = Field(description="Who began it.")
    queued: int = Field(description="Turns that wait.")
    lanes: Lanes
    waiting_for: str | None = Field(
        description="What the session waits for, for people.", examples=["the model"]
    )
    last_message_s: float | None = Field(
        description="Seconds since its process last said anything; null without a process."
    )
    pid: int | None = Field(description="Its process.")
    processes: tuple[TreeProcess, ...] = Field(
        description="That and all that it started, disowned ones included."
    )
    pss_bytes: int = Field(description="The memory that they take together.")
    agent_session_id: str | None = Field(
        description="What Claude Code calls the conversation; it changes."
    )
    background: int = Field(description="Tasks that the agent has running in the background.")
    restarts: int = Field(description="How often its process was restarted after a crash.")
    next_timer: str | None = Field(description="What happens next if nothing else does.")
    next_timer_s: float | None = Field(description="In how many seconds.")
    last_event_id: int = Field(description="Id of its newest event.")


class SupervisedSession(Reply):
    """One session of the tree."""

    session_id: SessionId
    owner: str
    kind: SessionKind = Field(description="`oneoff`: for a `POST /query`.")
    state: State
    model: str | None = Field(description="The model asked for.")
    created_at: Time
    queued: int = Field(description="Turns that wait.")
    restarts: int
    last_event_id: int
    total_cost_usd: float = Field(description="What its turns have cost, in US dollars.")
    inside: InspectReply | None = Field(
        description="What it is doing; null if it rests without a process or has ended, or did "
        "not say within five seconds."
    )


class SupervisorReply(Reply):
    """All sessions and processes."""

    active: int = Field(description="Conversations that take queries.")
    live: int = Field(description="Processes, those that come up or are being stopped included.")
    waiting: int = Field(description="Sessions that wait for room for one.")
    max_sessions: int
    max_live: int
    draining: bool = Field(description="Whether the server shuts down.")
    memory_bytes: int | None = Field(
        description="What the processes take, as last measured; null where nobody looks."
    )
    memory_budget_bytes: int | None = Field(
        description="What they may take; null where nobody looks."
    )
    sessions: tuple[SupervisedSession, ...] = Field(
        description="Every session that is kept, one-offs and ended ones included."
    )


class TurnError(Reply):
    """Why a turn has no answer."""

    code: str
    message: str
    retryable: bool
    retry_after: float | None = Field(default=None, description="Seconds to wait first.")

    @classmethod
    def of(cls, failure: Failure) -> TurnError:
        """Return it as it is answered."""
        return cls(
            code=failure.code.value,
            message=failure.message,
            retryable=failure.retryable,
            retry_after=failure.retry_after,
        )


class TurnSummary(Reply):
    """A turn without its texts."""

    turn_id: TurnId
    session_id: SessionId
    origin: Origin = Field(description="`agent`: the agent began the turn by itself.")
    phase: Phase
    outcome: Outcome | None = Field(description="How it ended, once it has.")
    accepted_at: Time
    started_at: Time | None
    ended_at: Time | None
    duration_ms: int | None = Field(description="Milliseconds from acceptance to the end.")
    first_event_id: int = Field(description="Id of its first event; its events begin there.")
    error: TurnError | None = Field(description="Why there is no answer, if there is none.")


class TurnReply(TurnSummary):
    """A turn."""

    prompt: str = Field(description="What was asked; empty if the agent began the turn.")
    response: str = Field(description="The text; all so far while the turn runs.")
    num_turns: int | None
    total_cost_usd: float | None
    usage: Mapping[str, JsonValue] | None = Field(description="Tokens, as the upstream counts.")
    stop_reason: str | None
    permission_denials: Denials


class TurnsReply(Reply):
    """The turns of a session that are kept, oldest first."""

    session_id: SessionId
    turns: tuple[TurnSummary, ...]
    count: int


Role: TypeAlias = Literal["user", "assistant"]


class Message(Reply):
    """What was said to the model, or by it."""

    id: str = Field(description="For `after`.", examples=[f"{TURN_EXAMPLE}.user"])
    turn_id: TurnId
    role: Role
    content: str
    at: Time = Field(description="When it was accepted, or was complete.")
    outcome: Outcome | None = Field(
        description="How the turn ended, on the model's messages; not all of them are whole."
    )


class MessagesReply(Reply):
    """The transcript of a session, oldest first."""

    session_id: SessionId
    messages: tuple[Message, ...]
    has_more: bool = Field(description="Whether there are more after the last of these.")


class FieldProblem(Reply):
    """What is wrong with one field of a request."""

    field: str = Field(description="Its name; empty for the whole body.")
    message: str


class ProblemReply(Reply):
    """Why a request was not served."""

    detail: str = Field(description="What happened and what to do, for people.")
    code: str = Field(description="What happened, for programs.")
    retry_after: float | None = Field(
        default=None, description="Seconds after which trying again makes sense."
    )
    errors: tuple[FieldProblem, ...] | None = Field(
        default=None, description="What is wrong with the request, field by field."
    )
    session_id: str | None = Field(
        default=None, description="Whose turn failed, or goes on without the caller."
    )
    turn_id: str | None = Field(default=None, description="That turn; it can be looked up.")


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return str(number)


def turn_summary(record: TurnRecord) -> TurnSummary:
    """Return a turn as it is listed."""
    result = record.result
    failure = None if result is None else result.failure
    return TurnSummary(
        turn_id=record.turn_id,
        session_id=record.session_id,
        origin=record.origin,
        phase=record.phase,
        outcome=None if result is None else result.outcome,
        accepted_at=record.accepted_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        duration_ms=None if result is None else result.duration_ms,
        first_event_id=record.first_seq,
        error=None if failure is None else TurnError.of(failure),
    )


def turn_reply(record: TurnRecord) -> TurnReply:
    """Return a turn as it is looked up."""
    result = record.result
    spent = None if result is None else result.accounting
    return TurnReply(
        **dict(turn_summary(record)),
        prompt=record.prompt,
        response=record.text if result is None else result.text,
        num_turns=None if spent is None else spent.num_turns,
        total_cost_usd=None if spent is None else spent.total_cost_usd,
        usage=None if spent is None else spent.usage,
        stop_reason=None if spent is None else spent.stop_reason,
        permission_denials=() if spent is None else spent.permission_denials,
    )


def answer_outcome(result: TurnResult) -> Literal["completed", "interrupted"]:
    """Return how a turn ended that has an answer."""
    return "interrupted" if result.outcome is Outcome.INTERRUPTED else "completed"
