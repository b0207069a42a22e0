"""What a session says: the bodies of its events and their envelope.

Bodies are what goes out as JSON, so field names here are the field names of the API. The
envelope carries the sequence number, which is the event's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

from pydantic import JsonValue

from session_supervisor import asks
from session_supervisor.asks import Resolution, Rule
from session_supervisor.results import Origin, Outcome, TurnResult
from session_supervisor.spec import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn entered the ledger (`accepted`) or was handed to the agent (`started`).

    Attributes:
        phase: Which of the two.
        origin: `user` for a query, `agent` for a turn that the agent began by itself.
        position: Turns in front of it when it was accepted; 0 runs next.
    """

    phase: Literal["accepted", "started"]
    origin: Origin
    position: int = 0
    type: Literal["turn"] = "turn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A piece of the answer, as the model wrote it.

    Attributes:
        content: The text to append. The first piece of each further block begins with the
            blank line that joins blocks.
    """

    content: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """Withdraws every text event of the turn after a sequence number.

    The upstream broke off and began again; what it had said is void.

    Attributes:
        after: Text events of this turn with a greater id no longer count.
    """

    after: int
    type: Literal["discard"] = "discard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """A piece of the model's thinking; not part of the answer."""

    content: str
    type: Literal["thinking"] = "thinking"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The model calls a tool.

    Attributes:
        tool_use_id: Links the call with its result.
        name: The tool.
        input: Its arguments.
        parent_tool_use_id: The call of the subagent that makes this call, if one does.
    """

    tool_use_id: str
    name: str
    input: JsonObject
    parent_tool_use_id: str | None = None
    type: Literal["tool_use"] = "tool_use"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a tool gave back.

    Attributes:
        tool_use_id: The call it answers.
        content: Text, or a list of content blocks.
        is_error: Whether the tool failed or was denied.
        parent_tool_use_id: The call of the subagent that made the call, if one did.
    """

    tool_use_id: str
    content: JsonValue
    is_error: bool = False
    parent_tool_use_id: str | None = None
    type: Literal["tool_result"] = "tool_result"


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionRequest:
    """A tool call waits for a human's permission.

    Attributes:
        request_id: To answer it by.
        tool: The tool.
        tool_use_id: The call.
        input: Its arguments.
        suggestions: What may be remembered for the session.
        expires_at: When it is denied if nobody answers, UTC; None: never.
    """

    request_id: str
    tool: str
    tool_use_id: str
    input: JsonObject
    suggestions: tuple[Rule, ...] = ()
    expires_at: datetime | None = None
    type: Literal["permission_request"] = "permission_request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The agent asks something.

    Attributes:
        request_id: To answer it by.
        tool_use_id: The call of the tool by which it asks.
        questions: What it wants to know.
        expires_at: When it goes without an answer, UTC; None: never.
    """

    request_id: str
    tool_use_id: str
    questions: tuple[asks.Question, ...]
    expires_at: datetime | None = None
    type: Literal["question"] = "question"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A permission request or a question is over.

    Attributes:
        request_id: Which.
        resolution: How it ended.
        message: Why, where there is more to say.
    """

    request_id: str
    resolution: Resolution
    message: str | None = None
    type: Literal["resolved"] = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """The upstream says how near its limit of use is.

    Attributes:
        rejected: Whether it takes no request until then.
        resets_at: When the limit is counted anew, UTC, if it says so.
        kind: The upstream's own name for the limit.
        utilization: Share of it that is used, 0 to 1, if it says so.
    """

    rejected: bool
    resets_at: datetime | None = None
    kind: str | None = None
    utilization: float | None = None
    type: Literal["rate_limit"] = "rate_limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """The agent tries its upstream again after a failure.

    Attributes:
        attempt: Number of the coming attempt, from 1.
        max_attempts: After how many the agent gives up.
        delay_ms: Milliseconds until the attempt.
        status: HTTP status of the failure, if there was one.
        reason: The upstream's own name for it.
    """

    attempt: int
    max_attempts: int
    delay_ms: int
    status: int | None = None
    reason: str | None = None
    type: Literal["retrying"] = "retrying"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The session's state changed, in a way that no event of a turn tells.

    That a turn runs, and that the session is idle after it, is told by the turn's own events.

    Attributes:
        state: The new state, from `session_supervisor.lifecycle.State`.
        reason: Why, where that is not plain from the state.
    """

    state: str
    reason: str | None = None
    type: Literal["status"] = "status"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a turn took: the accounting before its terminal event.

    Attributes:
        num_turns: Model round trips.
        total_cost_usd: Price of this turn in US dollars.
        usage: Tokens, as the upstream counts them.
        stop_reason: Why the model stopped.
        permission_denials: Tool calls that were denied.
        structured_output: The answer as JSON, where a schema was given and met.
    """

    num_turns: int
    total_cost_usd: float
    usage: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    stop_reason: str | None = None
    permission_denials: tuple[JsonValue, ...] = ()
    structured_output: JsonValue = None
    type: Literal["result"] = "result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Terminal event of a turn that completed or was interrupted.

    Attributes:
        outcome: `completed` or `interrupted`.
        response: The whole answer: every text event less what was discarded.
        duration_ms: Milliseconds from acceptance to the end, queueing included.
        num_turns: Model round trips.
        total_cost_usd: Price of this turn in US dollars.
        structured_output: The answer as JSON, where a schema was given and met.
    """

    outcome: Literal[Outcome.COMPLETED, Outcome.INTERRUPTED]
    response: str
    duration_ms: int
    num_turns: int
    total_cost_usd: float
    structured_output: JsonValue = None
    type: Literal["done"] = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Terminal event of a turn that failed or was lost.

    Attributes:
        outcome: `failed` or `lost`.
        code: One of `session_supervisor.errors.FailureCode`.
        message: What happened and what to do.
        retryable: Whether asking again may help.
        response: The text that the turn had so far; not an answer.
        retry_after: Seconds to wait first, where known.
    """

    outcome: Literal[Outcome.FAILED, Outcome.LOST]
    code: str
    message: str
    retryable: bool
    response: str = ""
    retry_after: float | None = None
    type: Literal["error"] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Events that the reader has not had are gone and cannot be replayed.

    Made for one reader; never stored.

    Attributes:
        after: Last id that the reader had.
        before: First id that is still there.
    """

    after: int
    before: int
    type: Literal["gap"] = "gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bye:
    """The stream ends here, though what it is of has not.

    Made for one reader; never stored.

    Attributes:
        after: The cursor to come back with.
        reason: `draining`: the server is going away; `store_unavailable`: it cannot store anything
            at the moment, and goes on when it can.
    """

    after: int
    reason: Literal["draining", "store_unavailable"] = "draining"
    type: Literal["bye"] = "bye"


Body: TypeAlias = (
    Turn
    | Text
    | Discard
    | Thinking
    | ToolUse
    | ToolResult
    | PermissionRequest
    | Question
    | Resolved
    | RateLimit
    | Retrying
    | Status
    | Result
    | Done
    | Error
    | Gap
    | Bye
)
"""Everything that a session can say; told apart by `type`."""


TERMINAL = (Done, Error)
"""Those that end a turn."""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a session's log.

    Attributes:
        seq: Its number in the session's log, from 1, without holes: the event's id.
        turn_id: The turn that it belongs to, or None for the session's own events.
        at: When it was logged, UTC.
        body: What is said.
    """

    seq: int
    turn_id: str | None
    at: datetime
    body: Body

    @property
    def is_terminal(self) -> bool:
        """Whether this is the one event that ends its turn."""
        return isinstance(self.body, TERMINAL)


def end_of(result: TurnResult) -> Done | Error:
    """Return the terminal event of a turn that ended so."""
    failure = result.failure
    if result.outcome is Outcome.COMPLETED or result.outcome is Outcome.INTERRUPTED:
        return Done(
            outcome=result.outcome,
            response=result.text,
            duration_ms=result.duration_ms,
            num_turns=result.accounting.num_turns,
            total_cost_usd=result.accounting.total_cost_usd,
            structured_output=result.accounting.structured_output,
        )
    assert failure is not None, "a turn without an answer says why"
    return Error(
        outcome=result.outcome,
        code=failure.code,
        message=failure.message,
        retryable=failure.retryable,
        response=result.text,
        retry_after=failure.retry_after,
    )


def weight(event: Event) -> int:
    """Return about how many bytes an event holds, for retention.

    Text counts by the character; everything else of an event by a flat sum.
    """
    body = event.body
    if isinstance(body, Text):  # most are
        return 200 + len(body.content)
    match body:
        case Thinking():
            size = len(body.content)
        case Done() | Error():
            size = len(body.response)
        case ToolUse() | PermissionRequest():
            size = len(repr(body.input))
        case ToolResult():
            size = len(body.content) if isinstance(body.content, str) else len(repr(body.content))
        case _:
            size = 0
    return 200 + size
