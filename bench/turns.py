"""The same turn taken on different ways, each timed from the same two moments.

A turn begins when its caller asks. Its first text is there when the caller holds the first delta;
it has ended when the caller holds the result.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.processes import Server
from bench.sse_client import SseClient
from bench.suite.stamps import asked_ns
from session_supervisor import Session, SessionSpec, Supervisor, events

# The SDK takes a second to import, and one way of several needs it.
MODEL = "sonnet"

BUFFER = 64 * 2**20
"""Longest message, as `ClaudeAgent` has it: a bare client must not be cheaper for its limit."""


class NoAnswer(Exception):
    """A turn ended without text or with an error, so its times mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One turn, in seconds from the moment at which it was asked for.

    Attributes:
        first_text: Until the first delta.
        model_asked: Until the model was asked, if the first delta tells that; else None.
        total: Until the result.
        input_tokens: What the model says it was sent: equal requests give equal numbers.
    """

    first_text: float
    total: float
    input_tokens: int
    model_asked: float | None = None


class Way(Protocol):
    """A session that takes turns."""

    async def turn(self, prompt: str) -> Timing:
        """Ask, and read the answer to its end.

        Raises:
            NoAnswer: There was none.
        """
        ...


class Stopwatch:
    """Notes when a turn's first text and its end came."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first_text: float | None = None
        self._asked: float | None = None

    def text(self, content: str = "") -> None:
        """A delta is there."""
        if self._first_text is None:
            self._first_text = time.monotonic() - self._began
            asked = asked_ns(content)
            self._asked = None if asked is None else asked / 1e9 - self._began

    def end(self, *, failed: bool, usage: Mapping[str, Any]) -> Timing:
        """Return the times of the turn, which has ended.

        Raises:
            NoAnswer: It failed, or had no text.
        """
        total = time.monotonic() - self._began
        if failed or self._first_text is None:
            raise NoAnswer("A turn failed, so there is nothing to compare.")
        tokens = usage.get("input_tokens", 0)
        return Timing(
            first_text=self._first_text,
            total=total,
            input_tokens=int(tokens),
            model_asked=self._asked,
        )


# -- a bare client of the SDK ----------------------------------------------------------------


@asynccontextmanager
async def bare_sdk(
    cwd: Path,
    tools: Sequence[str],
    env: Mapping[str, str],
    *,
    session_id: str | None = None,
    resume: str | None = None,
) -> AsyncGenerator[Way]:
    """Connect a `ClaudeSDKClient`, with the options that `ClaudeAgent` starts the CLI with.

    Args:
        cwd: Where it works.
        tools: All that it has.
        env: Further environment.
        session_id: Id of the conversation that it begins; None: any.
        resume: Id of the one that it goes on with; None: none.
    """
    from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient

    options = ClaudeAgentOptions(
        tools=list(tools),
        allowed_tools=list(tools),
        permission_mode="default",
        include_partial_messages=True,
        model=MODEL,
        cwd=cwd,
        env=dict(env),
        setting_sources=[],
        strict_mcp_config=True,
        system_prompt={"type": "preset", "preset": "claude_code"},
        verbatim_prompts=True,
        max_buffer_size=BUFFER,
        stderr=lambda _line: None,
        session_id=session_id,
        resume=resume,
    )
    async with ClaudeSDKClient(options) as client:
        yield _BareSdk(client)


class _BareSdk:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def turn(self, prompt: str) -> Timing:
        from claude_agent_sdk import ResultMessage, StreamEvent

        watch = Stopwatch()
        await self._client.query(prompt)
        async for message in self._client.receive_response():
            if isinstance(message, StreamEvent):
                delta = message.event.get("delta", {})
                if delta.get("type") == "text_delta":
                    watch.text(str(delta.get("text", "")))
            elif isinstance(message, ResultMessage):
                return watch.end(failed=message.is_error, usage=message.usage or {})
        raise NoAnswer("The stream of a turn ended without a result.")


# -- the library, in this process --------------------------------------------------------------


@asynccontextmanager
async def embedded(supervisor: Supervisor, spec: SessionSpec) -> AsyncGenerator[Way]:
    """Start a session of a supervisor in this process, without HTTP."""
    session = await supervisor.start(spec)
    try:
        yield _Embedded(session)
    finally:
        await supervisor.close(session.session_id)


class _Embedded:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def turn(self, prompt: str) -> Timing:
        return await embedded_turn(self._session, prompt)


async def embedded_turn(session: Session, prompt: str) -> Timing:
    """Ask a session in this process, and read the answer to its end.

    Raises:
        NoAnswer: There was none.
    """
    usage: Mapping[str, Any] = {}
    watch = Stopwatch()
    async for event in await session.query(prompt):
        match event.body:
            case events.Text():
                watch.text()
            case events.Result():
                usage = event.body.usage
            case events.Done():
                return watch.end(failed=False, usage=usage)
            case events.Error():
                return watch.end(failed=True, usage=usage)
            case _:
                pass
    raise NoAnswer("The events of a turn ended without its end.")


# -- HTTP --------------------------------------------------------------------------------------


@asynccontextmanager
async def over_http(server: Server, start: Mapping[str, object]) -> AsyncGenerator[Way]:
    """Start a session of a server, on a connection of its own.

    Args:
        server: Where.
        start: Body of the request that starts it.
    """
    async with SseClient(*server.address) as client:
        session_id = (await client.post("/session/start", dict(start)))["session_id"]
        try:
            yield _OverHttp(client, f"/session/{session_id}")
        finally:
            await client.delete(f"/session/{session_id}")


class _OverHttp:
    def __init__(self, client: SseClient, path: str) -> None:
        self._client = client
        self._path = path

    async def turn(self, prompt: str) -> Timing:
        timing: Timing | None = None
        usage: Mapping[str, Any] = {}
        watch = Stopwatch()
        stream = self._client.stream(f"{self._path}/query", {"prompt": prompt, "stream": True})
        async for event in stream:  # to its end, or the connection could not be used again
            match event["type"]:
                case "text":
                    watch.text()
                case "result":
                    usage = event["usage"]
                case "done" | "error" as kind:
                    timing = watch.end(failed=kind == "error", usage=usage)
                case _:
                    pass
        if timing is None:
            raise NoAnswer("The stream of a turn ended without its end.")
        return timing


Opening = AbstractAsyncContextManager[Way]
"""A way that is being opened."""
