"""The SDK's end of the line to the CLI.

The SDK speaks the control protocol (initialize, interrupt, hooks) and gets only that, and not what
is asked of humans: that waits for hours, and is in order with the messages of the port. What the
session says goes past it too, for four reasons, all measured: the SDK queues control answers behind
a hundred messages that nobody may have read yet, drops kinds of messages that it does not know,
ends its stream at one that it cannot parse, and takes ten seconds to close.

Importing this module imports the SDK, which takes a second: do it late.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    HookContext,
    HookInput,
    HookJSONOutput,
    HookMatcher,
    Transport,
)

from session_supervisor.agents.claude.confinement import TOOLS
from session_supervisor.agents.claude.permissions import Permissions
from session_supervisor.agents.claude.program import Program
from session_supervisor.spec import JsonObject


class ControlTransport(Transport):
    """Connects a `ClaudeSDKClient` with a program that already runs."""

    def __init__(self, program: Program) -> None:
        """Prepare it; `accept` must get the program's control frames."""
        self._program = program
        self._frames: asyncio.Queue[JsonObject | None] = asyncio.Queue()

    def accept(self, frame: JsonObject | None) -> None:
        """Take a frame for the SDK; None ends them."""
        self._frames.put_nowait(frame)

    async def connect(self) -> None:
        """Do nothing: the program runs."""

    async def write(self, data: str) -> None:
        """Write to the program."""
        await self._program.write(data.encode())

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what is for the SDK."""
        while (frame := await self._frames.get()) is not None:
            yield frame

    async def close(self) -> None:
        """Make an end of the program: whoever wanted it gently has asked before."""
        await self._program.kill()

    def is_ready(self) -> bool:
        """Whether the program runs."""
        return self._program.returncode is None

    async def end_input(self) -> None:
        """End the program's standard input."""
        self._program.close_input()


def client_for(
    transport: ControlTransport, *, verbatim_prompts: bool, guard: Permissions | None
) -> ClaudeSDKClient:
    """Return an SDK client on a transport, not connected yet.

    Args:
        transport: Its end of the line.
        verbatim_prompts: Whether prompts are mere text, so that `/clear` does nothing and
            `@/etc/passwd` reads nothing.
        guard: Says which files the session's file tools may touch; None: all.
    """
    options = ClaudeAgentOptions(verbatim_prompts=verbatim_prompts)
    if guard is not None:
        options.hooks = {"PreToolUse": [_matcher(guard)]}
    return ClaudeSDKClient(options, transport=transport)


def _matcher(guard: Permissions) -> HookMatcher:
    async def decide(
        call: HookInput, tool_use_id: str | None, _context: HookContext
    ) -> HookJSONOutput:
        given = cast("JsonObject", call)
        guard.note(given, tool_use_id)
        # In a thread: a file system that does not answer holds this session up, and no other.
        return cast("HookJSONOutput", await asyncio.to_thread(guard.judge, given))

    # Where the hook fails, or the CLI is too old to heed it, the answer is no.
    return HookMatcher(matcher="|".join(TOOLS), hooks=[decide], on_failure="block")
