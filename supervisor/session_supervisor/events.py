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
    """

    num_turns: int
    total_cost_usd: float
    usage: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    stop_reason: str | None = None
    permission_denials: tuple[JsonValue, ...] = ()
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
    """

    outcome: Literal[Outcome.COMPLETED, Outcome.INTERRUPTED]
    response: str
    duration_ms: int
    num_turns: int
    total_cost_usd: float
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
    """

    outcome: Literal[Outcome.FAILED, Outcome.LOST]
    code: str
    message: str
    retryable: bool
    response: str = ""
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
    | Retrying
    | Status
    | Result
    | Done
    | Error
    | Gap
    | Bye
)
"""Everything that a session can say; told apart by `type`."""


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
        return isinstance(self.body, (Done, Error))


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
        )
    assert failure is not None, "a turn without an answer says why"
    return Error(
        outcome=result.outcome,
        code=failure.code,
        message=failure.message,
        retryable=failure.retryable,
        response=result.text,
    )


def weight(event: Event) -> int:
    """Return about how many bytes an event holds, for retention.

    Text counts by the character; everything else of an event by a flat sum.
    """
    body = event.body
    match body:
        case Text() | Thinking():
            size = len(body.content)
        case Done() | Error():
            size = len(body.response)
        case ToolUse():
            size = len(repr(body.input))
        case ToolResult():
            size = len(body.content) if isinstance(body.content, str) else len(repr(body.content))
        case _:
            size = 0
    return 200 + size
