"""Whether a live process is as it was when it came up: it is watched, and its reset proven.

`/clear` gives the CLI an empty conversation, and no more: it keeps mode, model and remembered
rules, and what was started in the background runs on. So a process is used again only if all of
this holds:

* It used no tool but those in `HARMLESS`. Whoever had a shell may have changed whatever the
  server's user can: the CLI's own memory, and the files that it reads again. A subagent, an MCP
  server and a tool that we do not know keep things of their own.
* It was not interrupted, nothing of it runs in the background, and no rule was remembered.
* No prompt of it was a command, and it was not told to enter or to leave plan mode: that the CLI
  tells the model once more after `/clear`.
* The CLI says that it has reset the conversation, for our command; that the new one has an id which
  it never had, and has cost nothing; and, when a process is renewed for the first time, that no
  message of a model or a tool is in its context.
* It was told its first model and mode again, and agreed.

What it has left on disk is another matter: see `ClaudeAgent`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pydantic import JsonValue

from session_supervisor.agents.claude.tools import documented_name
from session_supervisor.spec import JsonObject, PermissionMode

HARMLESS = frozenset(
    {"Read", "Glob", "Grep", "Write", "Edit", "WebFetch", "WebSearch", "StructuredOutput"}
)
"""Tools that leave nothing in the process but what `/clear` takes away, and files."""

_WRITES = frozenset({"Write", "Edit"})

_NAMED = frozenset({"Bash", "Task", "NotebookEdit", "TodoWrite", "Skill"})
"""Tools that are named where they are counted; of others there is no end."""

_WATCHED = frozenset({"assistant", "system", "conversation_reset", "result"})

_EMPTY = ("toolCallTokens", "toolResultTokens", "attachmentTokens", "assistantMessageTokens")
"""Parts of the context that a new conversation does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How a process was started, to bring it back there.

    Attributes:
        model: The name that the CLI was given.
        permission_mode: Its mode.
        confined: Whether its file tools reach only what is the session's.
        verbatim: Whether prompts are mere text. Commands in them change what `/clear` leaves alone.
    """

    model: str
    permission_mode: PermissionMode
    confined: bool
    verbatim: bool


class Witness:
    """Watches the frames of one process."""

    def __init__(self, origin: Origin) -> None:
        """Begin before the first frame."""
        self._origin = origin
        self._known: set[str] = set()
        self._reset: _Reset | None = None
        self.conversation: str | None = None
        """Id of the conversation, as soon as there is one."""
        self.stain: str | None = None
        """Why the process cannot be used again; None as far as is known."""

    def feed(self, frame: JsonObject) -> None:
        """Take note of a frame."""
        if frame.get("type") not in _WATCHED:
            return
        if frame.get("parent_tool_use_id") is not None:
            self.mark("used Task")
        match frame:
            case {"type": "assistant", "message": {"content": list(content)}}:
                self._called(content)
            case {"type": "system", "subtype": "background_tasks_changed", "tasks": [_, *_]}:
                self.mark("background")
            case {"type": "system", "subtype": "init", "session_id": str(conversation)}:
                self._begun(frame, conversation)
            case {"type": "conversation_reset"} if self._reset is None:
                self.mark("was reset")
            case _:
                pass
        if self._reset is not None:
            self._reset.feed(frame)

    def told_mode(self, mode: PermissionMode) -> None:
        """Note that the process is told of a mode."""
        first = self._origin.permission_mode
        if mode != first and "plan" in (mode, first):
            self.mark("changed plan mode")

    def prompted(self) -> None:
        """Note that the process gets a prompt of somebody's."""
        if not self._origin.verbatim:
            self.mark("may have run commands")

    def mark(self, reason: str) -> None:
        """Note that the process cannot be used again."""
        self.stain = self.stain or reason

    def expect_reset(self, command_id: str) -> asyncio.Future[str | None]:
        """Return what becomes None once the reset is proven, and else why it is not.

        Args:
            command_id: Of the command that is about to be sent.
        """
        self._reset = _Reset(command_id, known=frozenset(self._known))
        return self._reset.proven

    def settle(self) -> None:
        """Note that the reset is over."""
        self._reset = None

    def _begun(self, frame: JsonObject, conversation: str) -> None:
        self.conversation = conversation
        self._known.add(conversation)
        if frame.get("mcp_servers"):
            self.mark("has MCP servers")

    def _called(self, content: list[JsonValue]) -> None:
        for block in content:
            match block:
                case {"type": "tool_use" | "server_tool_use", "name": str(name)}:
                    tool = documented_name(name)
                    if tool not in HARMLESS:
                        self.mark(f"used {tool}" if tool in _NAMED else "used a tool")
                    elif tool in _WRITES and not self._origin.confined:
                        self.mark("wrote anywhere")
                case _:
                    pass


class _Reset:
    """The frames that follow a `/clear`."""

    def __init__(self, command_id: str, *, known: frozenset[str]) -> None:
        self._command_id = command_id
        self._known = known
        self._was_reset = False
        self._conversation: str | None = None
        self.proven: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def feed(self, frame: JsonObject) -> None:
        match frame:
            case {"type": "conversation_reset", "user_message_uuid": self._command_id}:
                self._was_reset = True
            case {"type": "conversation_reset"} | {"type": "assistant"}:
                self._end("not reset")
            case {"type": "system", "subtype": "init", "session_id": str(conversation)}:
                self._conversation = conversation
            case {"type": "result"}:
                new = self._conversation is not None and self._conversation not in self._known
                whole = (
                    self._was_reset
                    and new
                    and frame.get("session_id") == self._conversation
                    and frame.get("is_error") is False
                    and frame.get("num_turns") == 0
                    and frame.get("total_cost_usd") == 0
                )
                self._end(None if whole else "not reset")
            case _:
                pass

    def _end(self, reason: str | None) -> None:
        if not self.proven.done():
            self.proven.set_result(reason)


def is_empty(usage: JsonObject) -> bool:
    """Whether the CLI's account of its context has nothing in it of a model or a tool."""
    parts = usage.get("messageBreakdown")
    return isinstance(parts, dict) and all(parts.get(part) == 0 for part in _EMPTY)
