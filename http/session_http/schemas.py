"""The bodies of requests and answers: what the API takes and gives, field by field.

Requests are strict: a field of the wrong type or an unknown one is an error. An optional field may
also be null, which is as if it were not there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from signal import Signals
from types import MappingProxyType
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

from session_http.encoding import rfc3339
from session_http.files import FileKind
from session_supervisor.agents.port import Exit
from session_supervisor.errors import Failure
from session_supervisor.lifecycle import State
from session_supervisor.messages import InterruptOutcome, OnBusy
from session_supervisor.results import Origin, Outcome, Phase, TurnRecord, TurnResult
from session_supervisor.spares import PoolSnapshot
from session_supervisor.spec import OnPermission, PermissionMode, SessionKind

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


def _is_text(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must be text, without a NUL character or half of a surrogate pair")
    return text


def _only_digits(number: object) -> object:
    if isinstance(number, str) and not (number.isascii() and number.isdigit()):
        # Else `1_0` would be 10, and `1.0` or ` 1` would be 1, which no server has sent.
        raise ValueError("must be the id of an event that was sent")
    return number


def _whole(value: object) -> object:
    # To JSON, 2.0 is a whole number, too.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_short(text: str) -> str:
    # What a process is started with may have so many bytes and no more.
    if len(text.encode()) > LONGEST_SYSTEM_PROMPT:
        raise ValueError(f"must have at most {LONGEST_SYSTEM_PROMPT} bytes")
    return text


LONGEST_SYSTEM_PROMPT = 100_000
"""Bytes of UTF-8."""

Prompt: TypeAlias = Annotated[
    str, AfterValidator(_not_blank), Field(json_schema_extra={"pattern": NOT_BLANK})
]
Time: TypeAlias = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""RFC 3339, in UTC, with a Z."""

PIXEL_EXAMPLE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
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
StructuredOutput: TypeAlias = Annotated[
    JsonValue,
    Field(description="The answer as JSON, where an `output_schema` was given and met."),
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
PlainText: TypeAlias = Annotated[
    str, AfterValidator(_is_text), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})
]
"""Text that can be stored, and be an argument of a program."""

SystemPrompt: TypeAlias = Annotated[
    Annotated[
        PlainText,
        Field(min_length=1, max_length=LONGEST_SYSTEM_PROMPT),
        AfterValidator(_is_short),
    ]
    | None,
    Field(
        description="Replaces Claude Code's own instructions to the model.",
        examples=["You are a terse reviewer of Python."],
    ),
]
MaxTurns: TypeAlias = Annotated[
    Annotated[int, Field(ge=1, le=10_000), BeforeValidator(_whole)] | None,
    Field(description="Most model round trips in one turn.", examples=[20]),
]
MaxBudgetUsd: TypeAlias = Annotated[
    float | None,
    Field(
        gt=0,
        le=1_000_000,
        allow_inf_nan=False,
        description="Most that all turns of the session may cost, in US dollars. A turn that "
        "reaches it is stopped, and no further one is begun.",
        examples=[2.5],
    ),
]
OutputSchema: TypeAlias = Annotated[
    Mapping[str, JsonValue] | None,
    Field(
        description="JSON Schema (draft 7) of an object that the answer has to be; it is then in "
        "`structured_output`. References within itself only.",
        examples=[
            {
                "type": "object",
                "properties": {"answer": {"type": "integer"}},
                "required": ["answer"],
            }
        ],
    ),
]
McpServers: TypeAlias = Annotated[
    Annotated[
        tuple[Annotated[PlainText, Field(min_length=1, max_length=128)], ...],
        Field(max_length=32, fail_fast=True),
    ]
    | None,
    Field(
        description="Names of the MCP servers whose tools the session has, from those that the "
        "operator has set up.",
    ),
]
Thinking: TypeAlias = Annotated[
    bool | None,
    Field(
        description="Whether the model thinks, and the stream tells of it; as Claude Code does by "
        "itself if omitted."
    ),
]
Title: TypeAlias = Annotated[
    Annotated[PlainText, Field(max_length=200)] | None,
    Field(description="What its owner calls it.", examples=["Migration to Docker"]),
]
Metadata: TypeAlias = Annotated[
    Annotated[
        Mapping[
            Annotated[PlainText, Field(min_length=1, max_length=64)],
            Annotated[PlainText, Field(max_length=1024)],
        ],
        # A pattern says what a name may hold; without this, a name of another kind fits as well.
        Field(max_length=32, json_schema_extra={"additionalProperties": False}),
    ]
    | None,
    Field(
        description="What its owner notes about it: up to 32 names with a text each.",
        examples=[{"ticket": "OPS-7"}],
    ),
]
Policy: TypeAlias = Annotated[
    OnPermission | None,
    Field(
        description="What happens to a tool call that needs a permission, and to a question: "
        "`ask` waits for somebody to answer under `/permissions` or `/questions`, `deny` goes on "
        "without."
    ),
]
PermissionTimeoutS: TypeAlias = Annotated[
    float | None,
    Field(
        gt=0,
        le=30 * 86_400,
        allow_inf_nan=False,
        description="Seconds that somebody has to answer; then it is denied. Without it the "
        "operator's limit holds.",
    ),
]
Busy: TypeAlias = Annotated[
    OnBusy | None,
    Field(
        description="Where another turn runs or waits: `queue` waits behind it, `reject` is a 409, "
        "`interrupt` stops the running one and comes next. `queue` if omitted."
    ),
]


class AttachmentRequest(BaseModel):
    """An image or a document that goes with a prompt."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)

    data: str = Field(
        min_length=1,
        description="Its bytes, in base64 with padding and without line breaks: a PNG, JPEG, GIF "
        "or WebP image or a PDF.",
        examples=[PIXEL_EXAMPLE],
        json_schema_extra={"contentEncoding": "base64"},
    )
    media_type: str | None = Field(
        default=None,
        description="What it is. It is found out from the bytes: another one is a 400.",
        examples=["image/png"],
    )
    name: Annotated[PlainText, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="What its owner calls it.", examples=["pixel.png"]
    )


Attachments: TypeAlias = Annotated[
    Annotated[tuple[AttachmentRequest, ...], Field(max_length=1000, fail_fast=True)] | None,
    Field(description="Images and documents that go with the prompt."),
]
RestS: TypeAlias = Annotated[float | None, Field(gt=0, le=366 * 86_400, allow_inf_nan=False)]
"""How long something may rest, in seconds."""


# Requests


class Request(BaseModel):
    """What requests have in common.

    Attributes:
        elsewhere: What to do instead of giving a field that does not belong here, by its name.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)
    elsewhere: ClassVar[Mapping[str, str]] = MappingProxyType({})


FIXED: tuple[str, ...] = (
    "allowed_tools",
    "cwd",
    "expiry_s",
    "idle_timeout_s",
    "max_budget_usd",
    "max_turns",
    "mcp_servers",
    "output_schema",
    "system_prompt",
    "thinking",
)
"""What is decided once, when a session starts."""

CHANGEABLE: tuple[str, ...] = ("model", "permission_mode", "title", "metadata")
"""What a PATCH changes."""

WITH_EACH_QUERY: tuple[str, ...] = (
    "on_busy",
    "on_permission",
    "permission_timeout_s",
    "timeout_s",
)
"""What is said anew with each query."""

OURS: tuple[str, ...] = ("session_id", "owner", "state", "created_at", "total_cost_usd")
"""What callers only read."""


class QueryRequest(Request):
    """A question without a conversation."""

    prompt: Prompt = Field(
        description="The question or instruction.", examples=["What is Python?"], min_length=1
    )
    model: Model = None
    allowed_tools: AllowedTools = None
    permission_mode: Mode = None
    cwd: Cwd = None
    system_prompt: SystemPrompt = None
    max_turns: MaxTurns = None
    max_budget_usd: MaxBudgetUsd = None
    output_schema: OutputSchema = None
    mcp_servers: McpServers = None
    thinking: Thinking = None
    title: Title = None
    metadata: Metadata = None
    attachments: Attachments = None
    on_permission: Policy = None
    permission_timeout_s: PermissionTimeoutS = None
    stream: Stream = None
    timeout_s: TimeoutS = None


class StartRequest(Request):
    """A new conversation."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"attachments": {"anyOf": [{"type": "null"}, {"maxItems": 0}]}}},
                {
                    "required": ["initial_prompt"],
                    "properties": {"initial_prompt": {"type": "string"}},
                },
            ]
        }
    )

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
    system_prompt: SystemPrompt = None
    max_turns: MaxTurns = None
    max_budget_usd: MaxBudgetUsd = None
    output_schema: OutputSchema = None
    mcp_servers: McpServers = None
    thinking: Thinking = None
    title: Title = None
    metadata: Metadata = None
    attachments: Attachments = None
    on_permission: Policy = None
    permission_timeout_s: PermissionTimeoutS = None
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

    elsewhere: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(FIXED, "is fixed when the session starts; give it to /session/start"),
        **dict.fromkeys(
            CHANGEABLE,
            "belongs to the whole session; give it to /session/start, or PATCH the session",
        ),
    }

    prompt: Prompt = Field(
        description="Follow-up question or instruction.",
        examples=["How do I install it?"],
        min_length=1,
    )
    attachments: Attachments = None
    on_busy: Busy = None
    on_permission: Policy = None
    permission_timeout_s: PermissionTimeoutS = None
    stream: Stream = None
    timeout_s: TimeoutS = None


class PatchRequest(Request):
    """What to change in a session; what is left out stays."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            FIXED, "cannot be changed: it is fixed when the session starts. Start another one"
        ),
        **dict.fromkeys(
            WITH_EACH_QUERY, "cannot be changed for the whole session; give it with each query"
        ),
        **dict.fromkeys(OURS, "is the server's, and cannot be changed"),
    }

    model: Model = None
    permission_mode: Mode = None
    title: Title = Field(default=None, description="What its owner calls it; empty: nothing.")
    metadata: Metadata = Field(
        default=None,
        description="What its owner notes about it, in place of all that was noted.",
    )


class ForkRequest(Request):
    """What the new session is to have; the body may be left out."""

    turn_id: str | None = Field(
        default=None,
        description="The last turn whose context it has; without it, all of them.",
        examples=[TURN_EXAMPLE],
    )
    title: Title = None
    metadata: Metadata = None
    copy_workspace: bool | None = Field(
        default=None,
        description="Whether it gets a copy of the files in the private directory. Without it, it "
        "begins with an empty one.",
    )


class CompactRequest(Request):
    """How to sum up; the body may be left out."""

    instructions: Annotated[PlainText, Field(min_length=1, max_length=10_000)] | None = Field(
        default=None,
        description="What the summary should keep.",
        examples=["Keep the names of all files."],
    )
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


class FilesParameters(Parameters):
    """Which files are listed."""

    path: Annotated[str, Field(max_length=4096)] = Field(
        default="", description="Directory to list, from the session's own; left out, that one."
    )
    limit: int = Field(default=1000, ge=1, le=10_000, description="Most files and directories.")


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
    http_status: ClassVar[int] = 200


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
    structured_output: StructuredOutput = None


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
    structured_output: StructuredOutput = None


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
    structured_output: StructuredOutput = None


class AcceptedReply(Reply):
    """The turn was accepted; nobody waits for its answer."""

    http_status: ClassVar[int] = 202

    status: Literal["accepted"] = "accepted"
    session_id: SessionId
    turn_id: TurnId
    position: int | None = Field(
        description="Turns in front of it, the running one included; null where an earlier request "
        "with the same key had begun it.",
        examples=[0],
    )


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
    permission_mode: PermissionMode = Field(
        description="What happens to tools that are not allowed outright."
    )
    title: str | None = Field(
        description="What its owner calls it; null for others.", examples=["Migration to Docker"]
    )
    metadata: Mapping[str, str] = Field(
        description="What its owner notes about it; empty for others.",
        examples=[{"ticket": "OPS-7"}],
    )
    total_cost_usd: float = Field(
        description="What its turns have cost so far, in US dollars.", examples=[0.012]
    )
    pending: int = Field(
        description="Permission requests and questions that wait for somebody.", examples=[0]
    )


class ForkReply(Reply):
    """There is another session with the same context."""

    session_id: str = Field(description="The new session.", examples=[UUID_EXAMPLE])
    status: Literal["forked"] = "forked"
    created_at: Time = Field(description="When it was made.", examples=[TIME_EXAMPLE])
    forked_from: str = Field(
        description="The session whose context it has; it is as it was.", examples=[UUID_EXAMPLE]
    )
    forked_after: str | None = Field(
        description="The last turn whose context it has; null: all.", examples=[TURN_EXAMPLE]
    )


class CompactReply(Reply):
    """The conversation takes less room in the model's context."""

    session_id: SessionId
    turn_id: str = Field(description="The turn in which it was summed up.", examples=[TURN_EXAMPLE])
    outcome: AnswerOutcome
    duration_ms: DurationMs
    total_cost_usd: CostUsd


class WithdrawReply(Reply):
    """The turn was taken out, and never ran."""

    status: Literal["withdrawn"] = "withdrawn"
    session_id: SessionId
    turn_id: TurnId


class EventReply(Reply):
    """One event, whole."""

    session_id: SessionId
    id: int = Field(description="Its id.", examples=[17])
    at: Time = Field(description="When it was said.", examples=[TIME_EXAMPLE])
    event: Mapping[str, JsonValue] = Field(
        description="As the stream says it, with nothing cut off."
    )


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


class ContextReply(Reply):
    """How full the model's context is."""

    tokens: int = Field(description="What the conversation takes.", examples=[12_000])
    max_tokens: int = Field(description="What there is room for.", examples=[200_000])


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
    pending: tuple[str, ...] = Field(
        description="Permission requests and questions that wait for somebody."
    )
    context: ContextReply | None = Field(
        description="How full the model's context is; null where nobody knows."
    )


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


class PoolReply(Reply):
    """Processes that stand ready for sessions, and what became of others since the start."""

    ready: int = Field(description="Processes that stand ready.")
    starting: int = Field(description="Processes that come up to do so.")
    hits: int = Field(description="Sessions and one-off queries that found a process.")
    misses: int = Field(
        description="Those that had to start one, though another could have stood ready."
    )
    started: int = Field(description="Processes that came up before anybody needed them.")
    recycled: int = Field(description="How often a process came back from a one-off query.")
    retired: dict[str, int] = Field(
        description="How often a process was stopped instead of being used, by why."
    )

    @classmethod
    def of(cls, pool: PoolSnapshot) -> PoolReply:
        """Return it as it is answered."""
        return cls(
            ready=pool.ready,
            starting=pool.starting,
            hits=pool.hits,
            misses=pool.misses,
            started=pool.started,
            recycled=pool.recycled,
            retired=dict(pool.retired),
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
    pool: PoolReply | None = Field(description="Null where there is none.")
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


class AttachmentReply(Reply):
    """What went with a prompt."""

    media_type: str = Field(description="What it is.", examples=["image/png"])
    name: str | None = Field(description="What its owner calls it.")


class TurnReply(TurnSummary):
    """A turn."""

    prompt: str = Field(description="What was asked; empty if the agent began the turn.")
    response: str = Field(description="The text; all so far while the turn runs.")
    num_turns: int | None
    total_cost_usd: float | None
    usage: Mapping[str, JsonValue] | None = Field(description="Tokens, as the upstream counts.")
    stop_reason: str | None
    permission_denials: Denials
    structured_output: StructuredOutput
    attachments: tuple[AttachmentReply, ...] = Field(description="What went with the prompt.")
    on_permission: OnPermission = Field(
        description="What happens to tool calls that need a permission."
    )


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


class SessionFile(Reply):
    """Something in a session's directory."""

    path: str = Field(
        description="Where, from that directory; to download it by.", examples=["out/report.md"]
    )
    kind: FileKind = Field(description="What it is; only a `file` can be downloaded.")
    size: int | None = Field(description="Bytes of a file.", examples=[1234])
    modified_at: Time | None = Field(
        description="When it last changed; null if it says what is no time.",
        examples=[TIME_EXAMPLE],
    )


class FilesReply(Reply):
    """What is in a session's private directory."""

    session_id: SessionId
    files: tuple[SessionFile, ...]
    count: int
    truncated: bool = Field(
        description="Whether there is more. A directory is listed alone with `path`."
    )


class MessagesReply(Reply):
    """The transcript of a session, oldest first."""

    session_id: SessionId
    messages: tuple[Message, ...]
    has_more: bool = Field(description="Whether there are more after the last of these.")


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
        structured_output=None if spent is None else spent.structured_output,
        attachments=tuple(
            AttachmentReply(media_type=one.media_type, name=one.name) for one in record.attachments
        ),
        on_permission=record.on_permission,
    )


def answer_outcome(result: TurnResult) -> Literal["completed", "interrupted"]:
    """Return how a turn ended that has an answer."""
    return "interrupted" if result.outcome is Outcome.INTERRUPTED else "completed"
