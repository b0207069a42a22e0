"""A client that costs little: HTTP/1.1 over one connection, for JSON and Server-Sent Events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self


class Refused(Exception):
    """The server answered with an error."""


class SseClient:
    """One connection to a server, kept open from request to request."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    async def post(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        """Return the JSON that answers.

        Raises:
            Refused: It is an error.
        """
        return await self._json("POST", path, body)

    async def delete(self, path: str) -> dict[str, Any]:
        """Return the JSON that answers.

        Raises:
            Refused: It is an error.
        """
        return await self._json("DELETE", path)

    async def stream(self, path: str, body: dict[str, object]) -> AsyncIterator[dict[str, Any]]:
        """Yield the events that answer, to their end.

        Raises:
            Refused: The answer is an error.
        """
        self._send("POST", path, body)
        headers = await self._headers()
        if headers.get("transfer-encoding") != "chunked":
            raise Refused(await self._reader.readexactly(int(headers.get("content-length", "0"))))
        rest = b""
        while chunk := await self._chunk():
            *whole, rest = (rest + chunk).split(b"\n\n")
            for block in whole:
                for line in block.split(b"\n"):
                    if line.startswith(b"data:"):
                        yield json.loads(line[5:])

    async def _json(
        self, method: str, path: str, body: dict[str, object] | None = None
    ) -> dict[str, Any]:
        self._send(method, path, body)
        headers = await self._headers()
        content = await self._reader.readexactly(int(headers["content-length"]))
        if headers["status"][0] != "2":
            raise Refused(content)
        answer: dict[str, Any] = json.loads(content)
        return answer

    def _send(self, method: str, path: str, body: dict[str, object] | None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
        if content:
            head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n"
        self._writer.write(f"{head}\r\n".encode() + content)

    async def _headers(self) -> dict[str, str]:
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {"status": status.split(" ")[1]}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return headers

    async def _chunk(self) -> bytes:
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:-2]
