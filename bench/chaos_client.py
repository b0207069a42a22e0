"""A client for `bench.chaos`: one connection for each request, which may break at any moment."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from bench.chaos_h2 import Exchange

PATIENCE_S = 40.0
"""Seconds without a byte after which the server counts as silent."""


class Broken(Exception):
    """The connection broke: what became of the request is not known."""


class Silent(Exception):
    """The server said nothing for as long as anybody waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request was answered with.

    Attributes:
        status: HTTP status.
        body: The JSON object; empty where there is none.
    """

    status: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One event of a stream.

    Attributes:
        id: Its id; None if it has none.
        data: The JSON object.
    """

    id: int | None
    data: Mapping[str, Any]

    @property
    def type(self) -> str:
        """What kind of event it is."""
        return str(self.data["type"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An answer that has begun: a stream, or something shorter.

    Attributes:
        answer: Status, and the body if it is no stream.
        events: The events, to the end of the stream; none if it is none.
    """

    answer: Answer
    events: AsyncIterator[Heard]


class Api:
    """The server, at an address that outlives its processes, for one who may call it.

    Args:
        host: Where.
        port: Where.
        key: Shows who calls.
        chance: Decides which requests go over HTTP/2; None: none.
    """

    def __init__(self, host: str, port: int, key: str, chance: random.Random | None = None) -> None:
        self.over_http2 = 0
        """How many requests went over HTTP/2."""
        self._host = host
        self._port = port
        self._key = key
        self._chance = chance

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer to a request.

        Raises:
            Broken: There is none, or half of one.
            Silent: The server does not answer.
        """
        async with self.open(method, path, body, headers=headers) as opened:
            return opened.answer

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        narrow: bool = False,
    ) -> AsyncGenerator[Opened]:
        """Send a request, and read its answer as it comes; leaving hangs up.

        Args:
            method: HTTP method.
            path: Path and query.
            body: To be sent as JSON.
            headers: Further ones.
            narrow: Whether to leave the server as little room for what is not read as can be.

        Raises:
            Broken: The connection broke.
            Silent: The server says nothing.
        """
        content = b"" if body is None else json.dumps(body).encode()
        fields = {"authorization": f"Bearer {self._key}", **(headers or {})}
        if content:
            fields |= {"content-type": "application/json", "content-length": str(len(content))}
        over_http2 = not narrow and self._chance is not None and self._chance.random() < 0.3
        with _broken():
            reader, writer = await self._connect(narrow)
        try:
            if over_http2:
                self.over_http2 += 1
                exchange = Exchange(reader, writer)
                try:
                    yield await self._on_http2(exchange, method, path, fields, content)
                finally:
                    exchange.leave()
            else:
                yield await self._on_http1(reader, writer, method, path, fields, content)
        finally:
            if over_http2:
                writer.close()  # what was written last, that nobody reads on, still goes
            else:
                writer.transport.abort()

    async def _on_http1(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        fields: Mapping[str, str],
        content: bytes,
    ) -> Opened:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}:{self._port}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        with _broken():
            writer.write("\r\n".join([*lines, "", ""]).encode() + content)
            status, found = await _patiently(_head(reader))
            if found.get("transfer-encoding") == "chunked":
                return Opened(
                    answer=Answer(status=status, body={}), events=_events(_chunks(reader))
                )
            size = int(found.get("content-length", "0"))
            body = await _patiently(reader.readexactly(size))
        return Opened(answer=Answer(status=status, body=_json(body)), events=_none())

    async def _on_http2(
        self,
        exchange: Exchange,
        method: str,
        path: str,
        fields: Mapping[str, str],
        content: bytes,
    ) -> Opened:
        begin = {":method": method, ":scheme": "http", ":authority": f"{self._host}:{self._port}"}
        with _broken():
            exchange.send([*begin.items(), (":path", path), *fields.items()], content)
            found = await _patiently(exchange.head())
            status = int(found[":status"])
            if found.get("content-type", "").startswith("text/event-stream"):
                return Opened(
                    answer=Answer(status=status, body={}), events=_events(exchange.pieces())
                )
            body = b"".join([piece async for piece in _each(exchange.pieces())])
        return Opened(answer=Answer(status=status, body=_json(body)), events=_none())

    async def _connect(self, narrow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not narrow:
            return await asyncio.open_connection(self._host, self._port)
        one = socket.socket()
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            one.setblocking(False)
            await asyncio.get_running_loop().sock_connect(one, (self._host, self._port))
            return await asyncio.open_connection(sock=one, limit=512)
        except BaseException:
            one.close()
            raise


@contextmanager
def _broken() -> Generator[None]:
    """Turn every way in which a connection can break into one."""
    try:
        yield
    except TimeoutError as error:
        raise Silent(f"nothing came for {PATIENCE_S:g} s") from error
    except (OSError, EOFError, asyncio.IncompleteReadError) as error:
        raise Broken(str(error) or type(error).__name__) from error


async def _patiently(reading: Any) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        return await reading


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first = await _line(reader)
    headers: dict[str, str] = {}
    while line := await _line(reader):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(first.split(" ")[1]), headers


async def _line(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\r\n"))[:-2].decode("latin-1")


async def _chunks(reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
    """Yield a body in chunks, to its proper end."""
    while True:
        size = int(await _line(reader), 16)
        chunk = (await reader.readexactly(size + 2))[:-2]
        if not size:
            return
        yield chunk


async def _each(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield pieces for as long as they come within the time that anybody waits."""
    while True:
        try:
            piece = await _patiently(anext(pieces))
        except StopAsyncIteration:
            return
        yield piece


async def _events(pieces: AsyncGenerator[bytes]) -> AsyncIterator[Heard]:
    """Yield events to the proper end of the stream."""
    rest = b""
    while True:
        with _broken():
            try:
                piece = await _patiently(anext(pieces))
            except StopAsyncIteration:
                return
        *whole, rest = (rest + piece).split(b"\n\n")
        for block in whole:
            heard = _event(block)
            if heard is not None:
                yield heard


def _event(block: bytes) -> Heard | None:
    number: int | None = None
    data: Mapping[str, Any] | None = None
    for line in block.split(b"\n"):
        field, _, value = line.partition(b": ")
        if field == b"id":
            number = int(value)
        elif field == b"data":
            data = json.loads(value)
    return None if data is None else Heard(id=number, data=data)


async def _none() -> AsyncIterator[Heard]:
    for heard in tuple[Heard, ...]():
        yield heard


def _json(content: bytes) -> Mapping[str, Any]:
    if not content:
        return {}
    found: Mapping[str, Any] = json.loads(content)
    return found
