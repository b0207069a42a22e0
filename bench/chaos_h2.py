"""HTTP/2 for the clients of `bench.chaos`: one request on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

import h2.config
import h2.connection
import h2.events
import h2.exceptions

MOST_BYTES = 65536

_GIVEN_UP = (h2.events.StreamReset, h2.events.ConnectionTerminated)


class Reset(ConnectionError):
    """The server gave up the stream, or the connection."""


class Exchange:
    """A request, and its answer as it comes.

    Args:
        reader: Of a connection on which nothing was said yet.
        writer: Of the same.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._stream = 0
        self._pending: list[h2.events.Event] = []
        self._ended = False

    def send(self, fields: Sequence[tuple[str, str]], content: bytes) -> None:
        """Send the request."""
        self._h2.initiate_connection()
        self._stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(self._stream, list(fields), end_stream=not content)
        for begin in range(0, len(content), self._h2.max_outbound_frame_size):
            piece = content[begin : begin + self._h2.max_outbound_frame_size]
            self._h2.send_data(self._stream, piece)
        if content:
            self._h2.end_stream(self._stream)
        self._flush()

    async def head(self) -> dict[str, str]:
        """Return the answer's header fields, `:status` among them.

        Raises:
            Reset: There is no answer.
            EOFError: The connection was closed.
        """
        while True:
            event = await self._next()
            if isinstance(event, h2.events.ResponseReceived):
                return {str(name): str(value) for name, value in event.headers}

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the answer's body, to its proper end.

        Raises:
            Reset: The server broke it off.
            EOFError: The connection was closed.
        """
        while not self._ended:
            event = await self._next()
            if isinstance(event, h2.events.DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, self._stream)
                self._flush()
                yield event.data

    def leave(self) -> None:
        """Tell the server that nobody reads on."""
        if self._stream and not self._writer.is_closing():
            with contextlib.suppress(h2.exceptions.ProtocolError):  # it has ended meanwhile
                self._h2.reset_stream(self._stream)
                self._flush()

    async def _next(self) -> h2.events.Event:
        while not self._pending:
            data = await self._reader.read(MOST_BYTES)
            if not data:
                raise EOFError("the server closed the connection")
            self._pending = self._h2.receive_data(data)
            self._flush()
        event = self._pending.pop(0)
        if isinstance(event, h2.events.StreamEnded):
            self._ended = True
        elif isinstance(event, _GIVEN_UP) and not self._ended:
            raise Reset(type(event).__name__)
        return event

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
