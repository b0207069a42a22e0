"""An HTTP/1.1 client that is not the bottleneck: one `asyncio.Protocol` for each connection.

While an answer arrives, it is only kept, each read with its time; it is taken apart when it is
whole. So an event costs the client one callback, and the time of its arrival is not the time at
which somebody came to look at it. Meant for uvloop.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

HEAD_END = b"\r\n\r\n"

TEXT = re.compile(rb'"type":\s*"text"')
"""What the first text event of a stream shows itself by, while it arrives."""


class Failed(Exception):
    """A request has no answer, or not the one that it should have.

    Args:
        code: By which failures of one kind are counted together.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class NotHttp(Exception):
    """The server answered with something that is not HTTP/1.1."""


class Chunks:
    """Takes the chunked transfer coding off (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        self.over = False
        self._rest = bytearray()
        self._left = 0  # of the chunk, with the line break behind it

    def feed(self, data: bytes) -> bytes:
        """Return the content that these bytes complete.

        Raises:
            NotHttp: A size is none.
        """
        self._rest += data
        found: list[bytes] = []
        while not self.over:
            if self._left:
                taken = min(len(self._rest), self._left)
                # The last two bytes of what is left are the line break behind the chunk.
                found.append(bytes(self._rest[: min(taken, max(self._left - 2, 0))]))
                del self._rest[:taken]
                self._left -= taken
                if self._left:
                    break
            end = self._rest.find(b"\r\n")
            if end < 0:
                break
            size = _size(bytes(self._rest[:end]))
            if size:
                del self._rest[: end + 2]
                self._left = size + 2
            elif HEAD_END in self._rest[end:]:
                self.over = True
            else:
                break
        return b"".join(found)


def _size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise NotHttp(f"{line[:40]!r} is not the size of a chunk.") from None


@dataclass(slots=True)
class Exchange:
    """A request and its answer.

    Attributes:
        sent_ns: When it was sent, on the monotonic clock; so are all times here.
        status: Of the answer.
        headers: Of the answer, names in lower case.
        pieces: Its content as it came, each piece with the time of its arrival.
    """

    sent_ns: int = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    pieces: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])

    @property
    def body(self) -> bytes:
        """All content."""
        return b"".join(data for _, data in self.pieces)

    @property
    def ended_ns(self) -> int:
        """When the last content came, or the request was sent if none came."""
        return self.pieces[-1][0] if self.pieces else self.sent_ns

    def json(self) -> dict[str, Any]:
        """Return the object that answers.

        Raises:
            Failed: It is an error, or no object.
        """
        self.must_be_good()
        try:
            answer = json.loads(self.body)
        except ValueError:
            raise Failed("not JSON") from None
        if not isinstance(answer, dict):
            raise Failed("not a JSON object")
        return cast("dict[str, Any]", answer)

    def must_be_good(self) -> None:
        """Check the status.

        Raises:
            Failed: It is no 2xx; the code is the status and what the body calls it.
        """
        if 200 <= self.status < 300:
            return
        try:
            code = json.loads(self.body).get("code", "")
        except (ValueError, AttributeError):
            code = ""
        raise Failed(f"{self.status} {code}".strip())


class Connection(asyncio.Protocol):
    """One connection, which takes one request at a time."""

    def __init__(self) -> None:
        self.alive = True
        self._transport: asyncio.Transport
        self._exchange: Exchange | None = None
        self._answer: asyncio.Future[Exchange] | None = None
        self._text: asyncio.Future[None] | None = None
        self._head = b""
        self._in_head = True
        self._keeps = True
        self._length: int | None = None
        self._chunks: Chunks | None = None
        self._seen = 0  # pieces whose chunks have been taken apart
        self._raw: list[tuple[int, bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it

    def send(
        self, request: bytes, *, text: asyncio.Future[None] | None = None
    ) -> asyncio.Future[Exchange]:
        """Send a request.

        Args:
            request: All of it.
            text: Is told when the first text event arrives.

        Returns:
            Its answer, once it is whole.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._exchange = Exchange(sent_ns=time.monotonic_ns())
        self._head, self._in_head, self._seen, self._raw = b"", True, 0, []
        self._length, self._chunks, self._text = None, None, text
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._exchange is None:
            self.close()  # nobody asked: whatever it means, the connection is not to be trusted
            return
        try:
            self._take(now, data)
        except NotHttp:
            self._fail("not HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        if self._exchange is not None:
            if not self._in_head and self._length is None and self._chunks is None:
                self._exchange.pieces = self._raw  # such an answer ends with the connection
                self._finish()
            else:
                self._fail("connection lost")

    @property
    def idle(self) -> bool:
        """Whether it waits for no answer."""
        return self._exchange is None

    def close(self) -> None:
        """Hang up."""
        self.alive = False
        self._transport.abort()

    def _take(self, now: int, data: bytes) -> None:
        if self._in_head:
            self._head += data
            head, found, rest = self._head.partition(HEAD_END)
            if not found:
                return
            self._understand(head)
            self._in_head, data = False, rest
        if data:
            self._raw.append((now, data))
            if self._text is not None and TEXT.search(data):
                text, self._text = self._text, None
                if not text.done():
                    text.set_result(None)
        if self._length is not None:
            self._length -= len(data)
            if self._length <= 0:
                assert self._exchange is not None
                self._exchange.pieces = self._raw
                self._finish()
        elif self._chunks is not None and (data.endswith(HEAD_END) or len(data) < len(HEAD_END)):
            self._unchunk()

    def _unchunk(self) -> None:
        """Take apart what came since; an answer's last bytes are those that bring us here."""
        assert self._chunks is not None
        assert self._exchange is not None
        for at, data in self._raw[self._seen :]:
            content = self._chunks.feed(data)
            if content:
                self._exchange.pieces.append((at, content))
        self._seen = len(self._raw)
        if self._chunks.over:
            self._finish()

    def _understand(self, head: bytes) -> None:
        assert self._exchange is not None
        status, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = status.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise NotHttp(f"{status[:40]!r} is not a status line.")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        self._exchange.status, self._exchange.headers = int(rest[:3]), headers
        self._keeps = headers.get("connection", "").lower() != "close"
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._chunks = Chunks()
        elif self._exchange.status in (204, 304):
            self._length = 0
        elif "content-length" in headers:
            self._length = int(headers["content-length"])

    def _finish(self) -> None:
        exchange, answer = self._exchange, self._answer
        self._exchange = self._answer = None
        if not self._keeps:
            self.close()
        if answer is not None and exchange is not None and not answer.done():
            answer.set_result(exchange)

    def _fail(self, code: str) -> None:
        answer = self._answer
        self._exchange = self._answer = None
        self.close()
        if answer is not None and not answer.done():
            answer.set_exception(Failed(code))


class Client:
    """A server's address, and the connections to it that are free.

    Args:
        url: `http://` or `https://`, host, port and perhaps a path that the API is under.
        headers: Sent with every request.
        timeout_s: Seconds that an answer may take to be whole.
    """

    def __init__(
        self, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not the URL of a server, such as http://localhost:3000")
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self._fixed = f"host: {parts.netloc.rpartition('@')[2]}\r\n{more}"
        self._timeout_s = timeout_s
        self._free: list[Connection] = []
        self._busy: set[Connection] = set()

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        text: asyncio.Future[None] | None = None,
    ) -> Exchange:
        """Send a request, and return when its answer is whole.

        Args:
            method: Of HTTP.
            path: Below the URL.
            body: Sent as JSON.
            text: Is told when the first text event arrives.

        Raises:
            Failed: There is none, or not in time.
        """
        request = self.request(method, path, body)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connection()
                self._busy.add(connection)
                return await connection.send(request, text=text)
        except TimeoutError:
            raise Failed("no answer in time") from None
        except ssl.SSLError as error:
            raise Failed(f"TLS: {error.reason}") from None
        except OSError as error:
            raise Failed(f"no connection: {error.strerror or type(error).__name__}") from None
        finally:
            if connection is not None:
                self._release(connection)

    def request(self, method: str, path: str, body: Mapping[str, object] | None) -> bytes:
        """Return a request as it is sent."""
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._fixed}"
        if body is not None:
            head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n"
        return f"{head}\r\n".encode("latin-1") + content

    def close(self) -> None:
        """Hang up on all connections."""
        for connection in (*self._free, *self._busy):
            connection.close()
        self._free.clear()

    async def open(self, number: int, *, at_once: int = 64) -> None:
        """Make connections before they are needed."""
        for first in range(0, number, at_once):
            made = await asyncio.gather(
                *(self._connect() for _ in range(first, min(first + at_once, number)))
            )
            self._free.extend(made)

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.alive:
                return connection
        return await self._connect()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            Connection, self._host, self._port, ssl=self._tls
        )
        return connection

    def _release(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection.alive and connection.idle:
            self._free.append(connection)
        else:
            connection.close()


def events(exchange: Exchange) -> Sequence[tuple[int, dict[str, Any]]]:
    """Return the events of a stream, each with the time at which it was whole.

    Raises:
        Failed: Its data is not JSON.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    rest = b""
    for at, data in exchange.pieces:
        *whole, rest = (rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in whole:
            for line in block.split(b"\n"):
                if line.startswith(b"data:"):
                    try:
                        found.append((at, json.loads(line[5:])))
                    except ValueError:
                        raise Failed("broken event") from None
    return found
