"""A client of HTTP/2 without manners of its own: it grants, sends and reads what a test says."""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings

from tests.http.servers import PATIENCE_S, Address

Fields = list[tuple[str, str]]


@dataclass(kw_only=True)
class Exchange:
    """What came on one stream."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict[str, str])
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self.ended or self.reset is not None


class H2Client:
    """One connection.

    Args:
        grants: Whether it lets the server send on as it reads.
        window: Bytes of each stream that it lets the server send to begin with.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        grants: bool,
        window: int,
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.streams: defaultdict[int, Exchange] = defaultdict(Exchange)
        self.goaway: int | None = None
        self.closed = False
        self.h2 = h2.connection.H2Connection(
            config=h2.config.H2Configuration(
                header_encoding="utf-8",
                # A test may send what no client should.
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._grants = grants
        codes = h2.settings.SettingCodes
        self.h2.local_settings = h2.settings.Settings(
            client=True, initial_values={codes.INITIAL_WINDOW_SIZE: window, codes.ENABLE_PUSH: 0}
        )
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Send what there is."""
        self.writer.write(self.h2.data_to_send())

    def raw(self, data: bytes) -> None:
        """Send bytes that `h2` would not."""
        self.writer.write(data)

    def request(
        self, path: str, *, method: str = "GET", headers: Fields | None = None, end: bool = True
    ) -> int:
        """Begin a request; return its stream."""
        number = self.h2.get_next_available_stream_id()
        fields = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path),
            *(headers or []),
        ]
        self.h2.send_headers(number, fields, end_stream=end)
        self.flush()
        return number

    def post(self, path: str, body: bytes, *, headers: Fields | None = None) -> int:
        """Send a whole request with a JSON body that says nothing of its length."""
        fields = headers or [("content-type", "application/json")]
        number = self.request(path, method="POST", headers=fields, end=False)
        self.h2.send_data(number, body, end_stream=True)
        self.flush()
        return number

    async def upload(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Send a body as fast as the server lets us."""
        while data:
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            if room:
                self.h2.send_data(number, data[:room])
                data = data[room:]
                self.flush()
            else:
                await self.read()
        if end:
            self.h2.end_stream(number)
            self.flush()

    def reset(self, number: int, code: int = 8) -> None:
        """Take a request back."""
        self.h2.reset_stream(number, code)
        self.flush()

    async def read(self) -> None:
        """Understand what comes next."""
        try:
            data = await self.reader.read(65_536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(data):
            self._understand(event)
        self.flush()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until something holds.

        Raises:
            ConnectionError: The server closed the connection before.
        """
        while not condition():
            if self.closed:
                raise ConnectionError(f"closed, with {self.goaway=}")
            await self.read()

    async def answer(self, number: int) -> Exchange:
        """Read until a stream is over."""
        await self.until(lambda: self.streams[number].over)
        return self.streams[number]

    async def get(self, path: str) -> Exchange:
        """Return the answer to a request."""
        return await self.answer(self.request(path))

    async def end(self) -> int | None:
        """Read until the server closes; return what its farewell says, if there is one."""
        while not self.closed:
            await self.read()
        return self.goaway

    def _understand(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived(stream_id=int(number), headers=list(headers)):
                exchange = self.streams[number]
                exchange.headers = {str(name): str(value) for name, value in headers}
                exchange.status = int(exchange.headers.pop(":status"))
            case h2.events.DataReceived(stream_id=int(number)):
                self.streams[number].body += event.data or b""
                if self._grants:
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, number)
            case h2.events.TrailersReceived(stream_id=int(number), headers=list(headers)):
                self.streams[number].trailers = {str(name): str(value) for name, value in headers}
            case h2.events.StreamEnded(stream_id=int(number)):
                self.streams[number].ended = True
            case h2.events.StreamReset(stream_id=int(number)):
                self.streams[number].reset = int(event.error_code or 0)
            case h2.events.ConnectionTerminated():
                self.goaway = int(event.error_code or 0)
            case _:
                pass


@asynccontextmanager
async def http2(
    address: Address,
    *,
    grants: bool = True,
    window: int = 65_535,
    tls: ssl.SSLContext | None = None,
    within_s: float = PATIENCE_S,
) -> AsyncGenerator[H2Client]:
    """Connect, and say nothing of HTTP/1.1 before."""
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=tls)
    try:
        async with asyncio.timeout(within_s):
            yield H2Client(reader, writer, grants=grants, window=window)
    finally:
        writer.transport.abort()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame's bytes, whatever they mean."""
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )
