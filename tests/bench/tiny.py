"""A tiny server: it answers with what a test says, byte for byte and piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from bench.suite.wire import Client

Respond = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Tiny:
    """The server.

    Attributes:
        url: Where it is.
        connections: That were made to it.
        asked: What came, in order.
    """

    url: str = ""
    connections: int = 0
    asked: list[Asked] = field(default_factory=list[Asked])

    def client(self, *, timeout_s: float = 60.0) -> Client:
        return Client(self.url, timeout_s=timeout_s)


@asynccontextmanager
async def tiny(respond: Respond) -> AsyncGenerator[Tiny]:
    """Serve, until the context ends."""
    it = Tiny()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        it.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked = await _read(reader)
                it.asked.append(asked)
                await respond(asked, writer)
                if writer.is_closing():
                    break
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        it.url = f"http://{host}:{port}"
        yield it
    finally:
        server.close()
        # A client that hung up is noticed in the next turn of the loop.
        await asyncio.sleep(0.05)


def saying(*pieces: bytes, close: bool = False) -> Respond:
    """Answer everything with these pieces, each in a segment of its own."""

    async def respond(_asked: Asked, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005)
        if close:
            writer.close()

    return respond


def json_answer(body: bytes, status: str = "200 OK") -> bytes:
    """Return an answer with a length."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def chunk(data: bytes) -> bytes:
    """Return a chunk of the chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream_answer(events: Sequence[bytes]) -> bytes:
    """Return a stream of events, a chunk each."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    chunks = b"".join(chunk(b"data: %s\n\n" % event) for event in events)
    return head + b"\r\n" + chunks + b"0\r\n\r\n"


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, path, headers, body)
