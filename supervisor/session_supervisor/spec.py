"""What one may ask of a session: frozen values without behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import JsonValue

PermissionMode: TypeAlias = Literal["default", "acceptEdits", "plan", "bypassPermissions"]
"""How an agent treats tools that would need a human's permission."""

JsonObject: TypeAlias = dict[str, JsonValue]
"""A JSON object, such as the input of a tool."""

LOCAL_OWNER = "local"
"""The owner of every session where nobody tells callers apart."""


class SessionKind(StrEnum):
    """What a session is for."""

    CONVERSATION = "conversation"
    """Takes any number of queries until it is closed."""

    ONEOFF = "oneoff"
    """Runs one turn and ends; neither listed nor counted as a session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """Everything about a session that its caller chooses when it starts.

    Attributes:
        model: Name or alias of the model; None takes the agent's default.
        cwd: Absolute path of the directory that the agent works in, with no symbolic link in it;
            None allots a private one below the supervisor's workspace, which lives as long as the
            session.
        allowed_tools: The only tools that exist in the session, which then run without
            asking. None or empty: every tool of the agent's default set.
        permission_mode: What happens to tools that are not allowed outright.
        system_prompt: Replaces the agent's own system prompt; None keeps it.
        max_turns: Most model round trips in one turn; None sets no limit.
        idle_timeout_s: Seconds without work after which the session gives up its process; None as
            the supervisor's configuration says.
        expiry_s: Seconds without work after which it is closed; None as that says.
    """

    model: str | None = None
    cwd: str | None = None
    allowed_tools: tuple[str, ...] | None = None
    permission_mode: PermissionMode = "default"
    system_prompt: str | None = None
    max_turns: int | None = None
    idle_timeout_s: float | None = None
    expiry_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One thing asked of an agent.

    Attributes:
        prompt_id: UUID under which the agent reports what became of it. It is also the id
            of the turn, and must never be used twice in one process: an agent may skip
            a prompt whose id it has seen.
        text: What is asked.
    """

    prompt_id: str
    text: str
