"""What an agent asks a human, and what a human may answer: frozen values without behaviour.

Two kinds of thing need a human: a tool call that nobody has allowed, and a question of the agent.
Each is a `Request` with one resolution. It belongs to the turn in which it was made, and to the
process that made it: it ends with either, and is never carried out by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias

from session_supervisor.spec import JsonObject


class RequestKind(StrEnum):
    """What is asked."""

    PERMISSION = "permission"
    """Whether a tool call may run."""

    QUESTION = "question"
    """Something that the agent wants to know."""


class Resolution(StrEnum):
    """What became of a request."""

    ALLOWED = "allowed"
    """The call runs, perhaps with another input."""

    DENIED = "denied"
    """The call does not run."""

    ANSWERED = "answered"
    """The agent has its answer."""

    EXPIRED = "expired"
    """Nobody answered in time: the call does not run."""

    CANCELLED = "cancelled"
    """Its turn was interrupted or given up, or the session closed: the call does not run."""

    LOST = "lost"
    """The process, or the server, went away: the call did not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Calls that need no further permission in a session.

    Attributes:
        tool: The tool.
        content: Which calls of it, in the agent's own language (for Claude Code's Bash a command
            such as `npm test` or a prefix such as `npm run:*`); None: all of them.
    """

    tool: str
    content: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One answer that a question offers.

    Attributes:
        label: The answer.
        description: What it means.
    """

    label: str
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing that the agent wants to know.

    Attributes:
        question: The question; no other of its request has the same text.
        header: A word or two for it.
        options: The answers offered; any other text is an answer, too.
        multi_select: Whether several may be chosen.
    """

    question: str
    header: str = ""
    options: tuple[Choice, ...] = ()
    multi_select: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """Let a tool call run.

    Attributes:
        updated_input: Its arguments, in place of what the model gave; None: as they are.
        remember: Calls that need no permission from now on, in this session.
    """

    updated_input: JsonObject | None = None
    remember: tuple[Rule, ...] = ()
    type: Literal["allow"] = "allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """Do not let a tool call run, or leave a question without an answer.

    Attributes:
        message: What the model is told; None: that it was not allowed.
        end_turn: Whether the turn ends with it, as by an interrupt.
    """

    message: str | None = None
    end_turn: bool = False
    type: Literal["deny"] = "deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answer questions.

    Attributes:
        answers: By the text of the question: a label, several of them, or any other text. Every
            question of the request has one.
    """

    answers: Mapping[str, tuple[str, ...]]
    type: Literal["answers"] = "answers"


Decision: TypeAlias = Allow | Deny | Answers
"""What a human may answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Something that needs a human.

    Attributes:
        request_id: Its id, a UUID.
        session_id: In which session.
        turn_id: In which turn; None for work in the background.
        kind: What is asked.
        tool: The tool that the model called.
        tool_use_id: The call.
        input: Its arguments.
        suggestions: What a human may want to have remembered, as the agent says.
        questions: What the agent wants to know, in a request of that kind.
        asked_at: When, UTC.
        expires_at: When it will be denied if nobody answers; None: never.
        resolution: What became of it; None while it waits.
        decision: The answer, if it had one.
        resolved_at: When, UTC.
    """

    request_id: str
    session_id: str
    turn_id: str | None
    kind: RequestKind
    tool: str
    tool_use_id: str
    asked_at: datetime
    input: JsonObject = field(default_factory=JsonObject)
    suggestions: tuple[Rule, ...] = ()
    questions: tuple[Question, ...] = ()
    expires_at: datetime | None = None
    resolution: Resolution | None = None
    decision: Decision | None = None
    resolved_at: datetime | None = None


def weight(request: Request) -> int:
    """Return about how many characters a request takes, for what is kept of the past."""
    said = (request.input, request.suggestions, request.questions, request.decision)
    return sum(len(repr(one)) for one in said)
