"""The straightforward server: FastAPI on uvicorn, one `ClaudeSDKClient` per session in a dict.

What one writes in an afternoon from the reference's pages, and writes well: `query()` for a one-off
query, so a new process each time; a client that stays connected for a session; real deltas in
streams; errors as the reference has them. It has no supervisor, no pool, no hibernation, no
limits, and forgets everything when it ends. Every report of `python -m bench` compares with it.

It prints its URL and serves on loopback until SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import uvicorn
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    Message,
    ResultMessage,
    StreamEvent,
    TextBlock,
    query,
)
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr
from starlette.exceptions import HTTPException as StarletteHTTPException

Tool = Literal["Read", "Write", "Edit", "Bash", "Glob", "Grep", "WebFetch", "WebSearch", "Task"]
Mode = Literal["default", "acceptEdits", "plan", "bypassPermissions"]
TOOLS: tuple[Tool, ...] = (
    *("Read", "Write", "Edit", "Bash", "Glob", "Grep", "WebFetch", "WebSearch", "Task"),
)
MODELS = {
    "claude-3-5-sonnet-20241022": "sonnet",
    "claude-3-5-haiku-20241022": "haiku",
    "claude-3-opus-20240229": "opus",
}
"""The reference's names, of October 2025, and what their models are called today."""

DEFAULT_MODEL = "sonnet"
BLANK_LINE = "\n\n"
BUFFER = 64 * 2**20


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class QueryBody(_Body):
    prompt: Annotated[StrictStr, Field(min_length=1)]
    model: StrictStr = DEFAULT_MODEL
    allowed_tools: list[Tool] | None = None
    permission_mode: Mode = "default"
    stream: StrictBool = False


class StartBody(_Body):
    initial_prompt: Annotated[StrictStr, Field(min_length=1)] | None = None
    model: StrictStr = DEFAULT_MODEL
    allowed_tools: list[Tool] | None = None
    permission_mode: Mode = "default"


class FollowUpBody(_Body):
    prompt: Annotated[StrictStr, Field(min_length=1)]
    stream: StrictBool = False


@dataclass
class Session:
    client: ClaudeSDKClient
    model: str
    created_at: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


sessions: dict[str, Session] = {}


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
    yield
    for session in list(sessions.values()):
        with suppress(Exception):  # a client that cannot be stopped must not keep the others
            await session.client.disconnect()
    sessions.clear()


app = FastAPI(title="Claude Code SDK Server", version="1.0.0", lifespan=lifespan)


@app.exception_handler(RequestValidationError)
async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "body"
    return JSONResponse({"detail": f"{where}: {first['msg']}"}, status_code=400)


@app.exception_handler(StarletteHTTPException)
async def refused(_request: Request, error: StarletteHTTPException) -> JSONResponse:
    return JSONResponse({"detail": str(error.detail)}, status_code=error.status_code)


@app.exception_handler(Exception)
async def broken(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=500)


# -- asking Claude ----------------------------------------------------------------------------


def options(body: QueryBody | StartBody, cwd: str) -> ClaudeAgentOptions:
    if body.permission_mode == "bypassPermissions":
        raise HTTPException(403, "bypassPermissions is not allowed here.")
    tools: list[str] = list(body.allowed_tools or TOOLS)
    return ClaudeAgentOptions(
        model=MODELS.get(body.model, body.model),
        tools=tools,
        allowed_tools=tools,
        permission_mode=body.permission_mode,
        include_partial_messages=True,
        setting_sources=[],
        strict_mcp_config=True,
        system_prompt={"type": "preset", "preset": "claude_code"},
        max_buffer_size=BUFFER,
        cwd=cwd,
        stderr=lambda _line: None,
    )


@dataclass
class Answer:
    """What the messages of one turn add up to."""

    blocks: list[str] = field(default_factory=list[str])
    result: ResultMessage | None = None
    started: int = 0

    def take(self, message: Message) -> str | None:
        """Take a message in; return the text to stream, if it has any."""
        if isinstance(message, StreamEvent) and message.parent_tool_use_id is None:
            delta = message.event.get("delta", {})
            if message.event.get("type") == "content_block_start":
                if message.event.get("content_block", {}).get("type") == "text":
                    self.started += 1
                    return BLANK_LINE if self.started > 1 else None
            elif delta.get("type") == "text_delta":
                return str(delta["text"])
        elif isinstance(message, AssistantMessage) and message.parent_tool_use_id is None:
            self.blocks += [one.text for one in message.content if isinstance(one, TextBlock)]
        elif isinstance(message, ResultMessage):
            self.result = message
        return None

    @property
    def text(self) -> str:
        return BLANK_LINE.join(self.blocks)

    def failure(self) -> str | None:
        result = self.result
        if result is None:
            return "Claude Code ended without a result."
        interrupted = (result.terminal_reason or "").startswith("aborted")
        if result.is_error and not interrupted:
            return result.result or "Claude Code failed."
        return None


async def whole(messages: AsyncIterator[Message]) -> Answer:
    answer = Answer()
    async for message in messages:
        answer.take(message)
    if (failure := answer.failure()) is not None:
        raise HTTPException(502, failure)
    return answer


def line(**event: object) -> str:
    return f"data: {json.dumps(event)}\n\n"


async def streamed(messages: AsyncIterator[Message]) -> AsyncIterator[str]:
    answer = Answer()
    try:
        async for message in messages:
            text = answer.take(message)
            if text is not None:
                yield line(type="text", content=text)
        failure = answer.failure()
    except Exception as error:  # the client must hear of it in the stream, whatever it was
        failure = str(error)
    yield line(type="done") if failure is None else line(type="error", error=failure)


def event_stream(messages: AsyncIterator[Message]) -> StreamingResponse:
    return StreamingResponse(streamed(messages), media_type="text/event-stream")


async def asked(session: Session, prompt: str) -> AsyncIterator[Message]:
    async with session.lock:
        await session.client.query(prompt)
        async for message in session.client.receive_response():
            yield message


async def one_off(body: QueryBody, settings: ClaudeAgentOptions) -> AsyncIterator[Message]:
    async for message in query(prompt=body.prompt, options=settings):
        yield message


# -- the reference's operations ---------------------------------------------------------------


def existing(session_id: str) -> Session:
    if session_id not in sessions:
        raise HTTPException(404, "Session not found")
    return sessions[session_id]


@app.get("/health")
async def health() -> dict[str, Any]:
    return {
        "status": "healthy",
        "authenticated": bool(
            os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("CLAUDE_CODE_OAUTH_TOKEN")
        ),
        "active_sessions": len(sessions),
        "timestamp": now(),
    }


@app.get("/")
async def root() -> dict[str, Any]:
    paths = app.openapi()["paths"]
    return {"name": app.title, "version": app.version, "endpoints": list(paths)}


@app.post("/query", response_model=None)
async def one_query(body: QueryBody) -> StreamingResponse | dict[str, Any]:
    settings = options(body, workspace())
    messages = one_off(body, settings)
    if body.stream:
        return event_stream(messages)
    began = time.monotonic()
    answer = await whole(messages)
    assert answer.result is not None
    return {
        "response": answer.text,
        "duration_ms": round((time.monotonic() - began) * 1000),
        "num_turns": answer.result.num_turns,
        "total_cost_usd": answer.result.total_cost_usd or 0.0,
    }


@app.post("/session/start")
async def start(body: StartBody) -> dict[str, Any]:
    client = ClaudeSDKClient(options(body, workspace()))
    await client.connect()
    session_id = str(uuid.uuid4())
    session = sessions[session_id] = Session(client=client, model=body.model, created_at=now())
    response = None
    if body.initial_prompt is not None:
        response = (await whole(asked(session, body.initial_prompt))).text
    return {
        "session_id": session_id,
        "status": "started",
        "initial_response": response,
        "created_at": session.created_at,
    }


@app.post("/session/{session_id}/query", response_model=None)
async def follow_up(session_id: str, body: FollowUpBody) -> StreamingResponse | dict[str, Any]:
    session = existing(session_id)
    messages = asked(session, body.prompt)
    if body.stream:
        return event_stream(messages)
    began = time.monotonic()
    answer = await whole(messages)
    return {
        "session_id": session_id,
        "response": answer.text,
        "duration_ms": round((time.monotonic() - began) * 1000),
    }


@app.post("/session/{session_id}/interrupt")
async def interrupt(session_id: str) -> dict[str, Any]:
    await existing(session_id).client.interrupt()
    return {"status": "interrupted", "session_id": session_id}


@app.get("/session/{session_id}")
async def information(session_id: str) -> dict[str, Any]:
    session = existing(session_id)
    return {
        "session_id": session_id,
        "created_at": session.created_at,
        "active": True,
        "model": session.model,
    }


@app.get("/sessions")
async def listed() -> dict[str, Any]:
    return {"active_sessions": list(sessions), "count": len(sessions)}


@app.delete("/session/{session_id}")
async def close(session_id: str) -> dict[str, Any]:
    session = existing(session_id)
    del sessions[session_id]
    await session.client.disconnect()
    return {"status": "closed", "session_id": session_id}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


_workspaces: list[tempfile.TemporaryDirectory[str]] = []


def workspace() -> str:
    """Return the directory in which everything works; sessions are not isolated here."""
    if not _workspaces:
        _workspaces.append(tempfile.TemporaryDirectory(prefix="baseline-"))
    return _workspaces[0].name


class Announced(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for one in server.sockets:
                host, port = one.getsockname()[:2]
                sys.stdout.write(f"http://{host}:{port}\n")
        sys.stdout.flush()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m bench.baselines.fastapi_server")
    parser.add_argument("--port", type=int, default=3000, help="0 takes a free one (3000)")
    port = parser.parse_args().port
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2
    )
    Announced(config).run()


if __name__ == "__main__":
    main()
