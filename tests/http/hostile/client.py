"""A client without manners: it says bytes, in any order, and stops wherever it likes.

HTTP libraries refuse to send most of what is sent here, so this one knows no rules. It only reads
answers, and strictly: what a server sends must be HTTP, whatever it was asked.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from tests.http.servers import PATIENCE_S, Address

Fields = Sequence[tuple[bytes, bytes]]

HOST = (b"Host", b"localhost")
JSON = (b"Content-Type", b"application/json")


def head(method: bytes, target: bytes, *fields: tuple[bytes, bytes]) -> bytes:
    """Return a request's head, as it is given: nothing is added, checked or escaped."""
    lines = [b"%s %s HTTP/1.1" % (method, target), *(b"%s: %s" % field for field in fields)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def get(path: bytes, *fields: tuple[bytes, bytes]) -> bytes:
    """Return a request that is in order, unless its fields are not."""
    return head(b"GET", path, HOST, *fields)


def post(
    path: bytes, body: bytes, *fields: tuple[bytes, bytes], length: int | None = None
) -> bytes:
    """Return a request with a body, which may be longer or shorter than it says."""
    declared = b"%d" % (len(body) if length is None else length)
    return head(b"POST", path, HOST, JSON, (b"Content-Length", declared), *fields) + body


def chunked(path: bytes, *chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a request whose body comes in chunks."""
    start = head(b"POST", path, HOST, JSON, (b"Transfer-Encoding", b"chunked"))
    return start + b"".join(chunk(one) for one in chunks) + end


def chunk(data: bytes) -> bytes:
    """Return a chunk of a body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


HEALTH = get(b"/health")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server answered."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: Any = json.loads(self.body)
        assert isinstance(found, dict)
        return cast("dict[str, Any]", found)


class Connection:
    """One connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, data: bytes) -> None:
        """Send bytes, without waiting for anything."""
        self._writer.write(data)

    async def pour(self, data: bytes) -> None:
        """Send many bytes, as fast as they are taken; a server that refuses them may stop it."""
        try:
            for begin in range(0, len(data), 2**16):
                self._writer.write(data[begin : begin + 2**16])
                await self._writer.drain()
        except ConnectionError:
            return

    async def drip(self, data: bytes, *, every_s: float) -> None:
        """Send bytes one by one, for as long as they are taken."""
        try:
            for one in data:
                self._writer.write(bytes([one]))
                await self._writer.drain()
                await asyncio.sleep(every_s)
        except ConnectionError:
            return

    def say_no_more(self) -> None:
        """Close our half, and go on listening."""
        self._writer.write_eof()

    def close(self) -> None:
        """Close the connection in order."""
        self._writer.close()

    def reset(self) -> None:
        """Vanish as a crash does: the server gets an RST."""
        own: socket.socket | None = self._writer.get_extra_info("socket")
        if own is not None:  # as it is, from Python 3.13 on, where the server has closed already
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def listen_no_more(self) -> None:
        """Read nothing of what comes."""
        cast("asyncio.Transport", self._writer.transport).pause_reading()

    async def hear(self, sign: bytes) -> bytes:
        """Read until something is said."""
        return await self._reader.readuntil(sign)

    async def answer(self, *, to_head: bool = False) -> Answer:
        """Read one final answer."""
        while True:
            status, fields = await self._head()
            if status >= 200:
                break
        if to_head or status in (204, 304):
            return Answer(status=status, fields=fields, body=b"")
        return Answer(status=status, fields=fields, body=await self._body(fields))

    async def rest(self) -> bytes:
        """Read what is said until the server closes the connection, or the kernel does."""
        said = b""
        try:
            while piece := await self._reader.read(2**16):
                said += piece
        except ConnectionError:
            pass
        return said

    async def ended(self) -> bool:
        """Whether the server closes the connection, and says nothing more before."""
        return await self.rest() == b""

    async def _head(self) -> tuple[int, dict[str, str]]:
        raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("ascii").removesuffix("\r\n\r\n").split("\r\n")
        protocol, status, _ = first.split(" ", 2)
        assert protocol == "HTTP/1.1", first
        fields: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(": ")
            assert colon, line
            assert name.lower() not in fields or name.lower() == "server-timing", line
            fields[name.lower()] = value
        return int(status), fields

    async def _body(self, fields: dict[str, str]) -> bytes:
        if fields.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(fields["content-length"]))
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += await self._reader.readexactly(size)
            assert await self._reader.readexactly(2) == b"\r\n"
        assert await self._reader.readexactly(2) == b"\r\n"
        return body


@asynccontextmanager
async def connected(
    address: Address, data: bytes = b"", *, at_once: bool = False
) -> AsyncGenerator[Connection]:
    """Open a connection; it is gone in the end, and nothing in between may take long.

    Args:
        address: Where a server listens.
        data: What to say first.
        at_once: Say it before the server, in the same loop, can come to know of the connection.
    """
    async with asyncio.timeout(PATIENCE_S):
        if at_once:
            own = socket.create_connection((address.host, address.port))
            own.sendall(data)
            reader, writer = await asyncio.open_connection(sock=own, limit=2**20)
        else:
            reader, writer = await asyncio.open_connection(address.host, address.port, limit=2**20)
            writer.write(data)
        try:
            yield Connection(reader, writer)
        finally:
            writer.transport.abort()


async def ask(address: Address, data: bytes) -> Answer:
    """Send a request and return the answer, on a connection of its own."""
    async with connected(address, data) as line:
        return await line.answer()
