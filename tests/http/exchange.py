"""One request to an ASGI application, with the test in the place of the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Message

from session_http.extensions import WRITE_NOW
from tests.http.contract import Said, parse_stream


class Exchange:
    """What was sent so far; the test decides when the client goes away or stops reading."""

    def __init__(
        self, method: str, path: str, body: object = None, *, writes_now: bool = False
    ) -> None:
        path, _, query = path.partition("?")
        raw = b"" if body is None else json.dumps(body).encode()
        headers = {"host": "test", "content-length": str(len(raw))}
        if raw:
            headers["content-type"] = "application/json"
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "extensions": {WRITE_NOW: self.write_now} if writes_now else {},
        }
        self.written: list[bytes] = []
        self.sent: list[tuple[float, Message]] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.fails: Exception | None = None
        self._incoming: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": raw, "more_body": False})
        self._changed = asyncio.Event()

    async def receive(self) -> Message:
        message = await self._incoming.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        if self.fails is not None:
            raise self.fails
        self.sent.append((asyncio.get_running_loop().time(), message))
        self._changed.set()

    def write_now(self, data: bytes) -> bool:
        """Take a piece as our own server does: only while the client reads."""
        if not self.reads.is_set() or self.fails is not None:
            return False
        self.written.append(data)
        message = {"type": "http.response.body", "body": data, "more_body": True}
        self.sent.append((asyncio.get_running_loop().time(), message))
        self._changed.set()
        return True

    def disconnect(self, error: Exception | None = None) -> None:
        """Let the client go away; some servers then raise instead of saying so."""
        self._incoming.put_nowait(error or {"type": "http.disconnect"})

    @property
    def raw(self) -> bytes:
        return b"".join(message.get("body", b"") for _, message in self.sent)

    @property
    def said(self) -> list[Said]:
        return parse_stream(self.raw)

    @property
    def complete(self) -> bool:
        last: Message = self.sent[-1][1] if self.sent else {"type": "nothing"}
        return last["type"] == "http.response.body" and not last.get("more_body", False)

    async def until(self, kind: str) -> Said:
        """Wait for the first event of a kind."""
        while True:
            found = next((said for said in self.said if said.type == kind), None)
            if found is not None:
                return found
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def exchanging(
    app: ASGIApp, method: str, path: str, body: object = None, *, writes_now: bool = False
) -> AsyncGenerator[Exchange]:
    """Send a request, and see to it that the application ends."""
    exchange = Exchange(method, path, body, writes_now=writes_now)

    async def serve() -> None:
        await app(exchange.scope, exchange.receive, exchange.send)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(serve())
        try:
            yield exchange
        finally:
            exchange.reads.set()
            exchange.disconnect()
    assert task.done()
