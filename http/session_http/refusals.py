"""The body of every answer that is an error."""

from __future__ import annotations

from pydantic import Field

from session_http.asked import PermissionReply, QuestionReply
from session_http.schemas import Reply


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
    request: PermissionReply | QuestionReply | None = Field(
        default=None, description="What was answered before, or is over, with its end."
    )
