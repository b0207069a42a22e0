"""What an agent asks a human, and what a human may answer, as it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field, JsonValue, model_validator

from session_http.schemas import (
    TIME_EXAMPLE,
    TURN_EXAMPLE,
    UUID_EXAMPLE,
    Parameters,
    PlainText,
    Reply,
    Request,
    SessionId,
    Time,
)
from session_supervisor import asks
from session_supervisor.asks import Resolution
from session_supervisor.spec import JsonObject

REQUEST_EXAMPLE = "7d3c2f6e-3a86-4c5b-9a55-1f1a0d1f4f10"

EndTurn: TypeAlias = Annotated[
    bool | None,
    Field(description="With `deny`: whether the turn ends, too, as by an interrupt."),
]
DenyMessage: TypeAlias = Annotated[
    Annotated[PlainText, Field(min_length=1, max_length=10_000)] | None,
    Field(
        description="With `deny`: what the model is told.",
        examples=["Not on a Friday."],
    ),
]


def _where(
    properties: JsonObject, *, required: str | None = None, without: tuple[str, ...]
) -> JsonObject:
    """Return what goes together in a request, for its schema."""
    absent: JsonObject = {name: {"type": "null"} for name in without}
    return {"properties": properties | absent, **({"required": [required]} if required else {})}


def _refuse(request: Request, *names: str, only: str) -> None:
    """Refuse what means nothing with the other decision.

    Raises:
        ValueError: It is given.
    """
    for name in names:
        if getattr(request, name) is not None:
            raise ValueError(f"{name} means something with `{only}` only")


class RuleRequest(Request):
    """Calls that need no permission any more in the session."""

    tool: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,255}$", description="The tool.", examples=["Bash"]
    )
    content: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,1000}$")] | None = Field(
        default=None,
        description="Which calls of it, in Claude Code's language: for Bash a command, or its "
        "first words with `:*` behind; all if omitted.",
        examples=["npm run test:*"],
    )


class DecisionRequest(Request):
    """The answer to a permission request."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        json_schema_extra={
            "oneOf": [
                _where({"decision": {"const": "allow"}}, without=("message", "end_turn")),
                _where({"decision": {"const": "deny"}}, without=("updated_input", "remember")),
            ]
        }
    )

    decision: Literal["allow", "deny"] = Field(description="Whether the call runs.")
    message: DenyMessage = None
    end_turn: EndTurn = None
    updated_input: Mapping[str, JsonValue] | None = Field(
        default=None,
        description="With `allow`: arguments for the call, in place of the model's.",
        examples=[{"command": "ls"}],
    )
    remember: (
        bool | Annotated[tuple[RuleRequest, ...], Field(max_length=32, fail_fast=True)] | None
    ) = Field(
        default=None,
        description="With `allow`: calls that need no permission from now on, in this session. "
        "`true`: the request's `suggestions`.",
    )

    @model_validator(mode="after")
    def _agrees(self) -> DecisionRequest:
        if self.decision == "allow":
            _refuse(self, "message", "end_turn", only="deny")
        else:
            _refuse(self, "updated_input", "remember", only="allow")
        return self


class AnswersRequest(Request):
    """The answer to questions."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        json_schema_extra={
            "oneOf": [
                _where(
                    {"decision": {"enum": ["answer", None]}, "answers": {"type": "object"}},
                    required="answers",
                    without=("message", "end_turn"),
                ),
                _where({"decision": {"const": "deny"}}, required="decision", without=("answers",)),
            ]
        }
    )

    decision: Literal["answer", "deny"] | None = Field(
        default=None,
        description="`deny` leaves them without an answer; `answer` if omitted.",
    )
    answers: (
        Annotated[
            Mapping[
                str,
                Annotated[str, Field(min_length=1, max_length=10_000)]
                | Annotated[
                    tuple[Annotated[str, Field(min_length=1, max_length=10_000)], ...],
                    Field(min_length=1, max_length=64),
                ],
            ],
            Field(min_length=1, max_length=64),
        ]
        | None
    ) = Field(
        default=None,
        description="One for each, by the text of the question: the label of an option or any "
        "other text, and several of them where several may be chosen.",
        examples=[{"Which database?": "PostgreSQL"}],
    )
    message: DenyMessage = None
    end_turn: EndTurn = None

    @model_validator(mode="after")
    def _agrees(self) -> AnswersRequest:
        if self.decision == "deny":
            _refuse(self, "answers", only="answer")
        else:
            _refuse(self, "message", "end_turn", only="deny")
            if self.answers is None:
                raise ValueError("answers is required, or `deny`")
        return self


class PendingParameters(Parameters):
    """Which requests are listed."""

    pending: bool = Field(
        default=True, description="Only those that wait; `false`: all that are kept."
    )


class _AskedReply(Reply):
    session_id: SessionId
    request_id: str = Field(description="To answer it by.", examples=[REQUEST_EXAMPLE])
    turn_id: str | None = Field(
        description="In which turn; null for work in the background.", examples=[TURN_EXAMPLE]
    )
    tool: str = Field(description="The tool that the model called.", examples=["Bash"])
    tool_use_id: str = Field(description="The call.")
    asked_at: Time = Field(description="When.", examples=[TIME_EXAMPLE])
    expires_at: Time | None = Field(
        description="When it is denied if nobody answers; null: never.", examples=[TIME_EXAMPLE]
    )
    resolution: Resolution | None = Field(description="What became of it; null while it waits.")
    resolved_at: Time | None = Field(description="When that was.")
    message: str | None = Field(description="What the model was told with a denial.")


class PermissionReply(_AskedReply):
    """A tool call that needs, or needed, a permission."""

    kind: Literal["permission"] = "permission"
    input: Mapping[str, JsonValue] = Field(
        description="Its arguments.", examples=[{"command": "rm -r build"}]
    )
    suggestions: tuple[asks.Rule, ...] = Field(
        description="What `remember` may remember, as Claude Code proposes."
    )
    updated_input: Mapping[str, JsonValue] | None = Field(
        description="The arguments that it was allowed with, in place of the model's."
    )
    remembered: tuple[asks.Rule, ...] = Field(
        description="What needs no permission any more since this was answered."
    )


class QuestionReply(_AskedReply):
    """Something that the agent wants, or wanted, to know."""

    kind: Literal["question"] = "question"
    questions: tuple[asks.Question, ...]
    answers: Mapping[str, tuple[str, ...]] | None = Field(
        description="The answers, by the text of the question.",
        examples=[{"Which database?": ["PostgreSQL"]}],
    )


class PermissionsReply(Reply):
    """Tool calls that need a permission, oldest first."""

    session_id: str = Field(description="The session.", examples=[UUID_EXAMPLE])
    permissions: tuple[PermissionReply, ...]
    count: int


class QuestionsReply(Reply):
    """What the agent wants to know, oldest first."""

    session_id: str = Field(description="The session.", examples=[UUID_EXAMPLE])
    questions: tuple[QuestionReply, ...]
    count: int


def permission_reply(request: asks.Request) -> PermissionReply:
    """Return a permission request as it is answered."""
    decision = request.decision
    allowed = decision if isinstance(decision, asks.Allow) else asks.Allow()
    return PermissionReply(
        session_id=request.session_id,
        request_id=request.request_id,
        turn_id=request.turn_id,
        tool=request.tool,
        tool_use_id=request.tool_use_id,
        asked_at=request.asked_at,
        expires_at=request.expires_at,
        resolution=request.resolution,
        resolved_at=request.resolved_at,
        message=decision.message if isinstance(decision, asks.Deny) else None,
        input=request.input,
        suggestions=request.suggestions,
        updated_input=allowed.updated_input,
        remembered=allowed.remember,
    )


def question_reply(request: asks.Request) -> QuestionReply:
    """Return questions as they are answered."""
    decision = request.decision
    return QuestionReply(
        session_id=request.session_id,
        request_id=request.request_id,
        turn_id=request.turn_id,
        tool=request.tool,
        tool_use_id=request.tool_use_id,
        asked_at=request.asked_at,
        expires_at=request.expires_at,
        resolution=request.resolution,
        resolved_at=request.resolved_at,
        message=decision.message if isinstance(decision, asks.Deny) else None,
        questions=request.questions,
        answers=(
            {name: tuple(given) for name, given in decision.answers.items()}
            if isinstance(decision, asks.Answers)
            else None
        ),
    )


def reply_of(request: asks.Request) -> PermissionReply | QuestionReply:
    """Return what was asked as it is answered."""
    if request.kind is asks.RequestKind.QUESTION:
        return question_reply(request)
    return permission_reply(request)
