"""What one may ask of a session: frozen values without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import JsonValue

PermissionMode: TypeAlias = Literal["default", "acceptEdits", "plan", "bypassPermissions"]
"""How an agent treats tools that would need a human's permission."""

OnPermission: TypeAlias = Literal["ask", "deny"]
"""What happens to a tool call that needs a permission: a human is asked, or it is denied."""

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
        max_budget_usd: Most that all its turns may cost, in US dollars; None sets no limit.
        output_schema: JSON Schema that the answer of each turn has to meet; None: any text.
        mcp_servers: Names of the operator's MCP servers whose tools it has.
        thinking: Whether the model's thinking is told; None: as the agent does by itself.
        on_permission: What happens to tool calls that need a permission, and to questions; None
            as the supervisor's configuration says for its kind.
        permission_timeout_s: Seconds that a human has to answer; None as that says.
        title: What its owner calls it.
        metadata: What its owner notes about it.
    """

    model: str | None = None
    cwd: str | None = None
    allowed_tools: tuple[str, ...] | None = None
    permission_mode: PermissionMode = "default"
    system_prompt: str | None = None
    max_turns: int | None = None
    idle_timeout_s: float | None = None
    expiry_s: float | None = None
    max_budget_usd: float | None = None
    output_schema: JsonObject | None = None
    mcp_servers: tuple[str, ...] = ()
    thinking: bool | None = None
    on_permission: OnPermission | None = None
    permission_timeout_s: float | None = None
    title: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """An image or a document that goes with a prompt.

    Attributes:
        media_type: What it is: `image/png`, `image/jpeg`, `image/gif`, `image/webp`,
            `application/pdf`.
        data: Its bytes in base64.
        name: What its owner calls it.
    """

    media_type: str
    data: str
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One thing asked of an agent.

    Attributes:
        prompt_id: UUID under which the agent reports what became of it. It is also the id
            of the turn, and must never be used twice in one process: an agent may skip
            a prompt whose id it has seen.
        text: What is asked.
        attachments: What goes with it.
        command: Whether it is a command to the agent itself, such as `/compact`, and nothing that
            a person wrote. Else a text is never taken for one.
    """

    prompt_id: str
    text: str
    attachments: tuple[Attachment, ...] = ()
    command: bool = False
