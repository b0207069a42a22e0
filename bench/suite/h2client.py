"""An HTTP/2 client that sends bodies as the windows let it, several at once on a connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from bench.suite.wire import Failed

MOST_READ = 64 * 1024


class Http2Client:
    """One connection.

    Args:
        reader: Of a connection on which nothing was said yet.
        writer: Of the same.
        authority: The server's name, as requests have it.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, authority: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._authority = authority
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self._status: dict[int, int] = {}
        self._answers: dict[int, asyncio.Future[int]] = {}
        self._opened = asyncio.Event()  # a window, or all there is
        self._h2.initiate_connection()
        self._flush()

    async def post(self, path: str, body: Mapping[str, object]) -> int:
        """Send a body; return the status of the answer, which is not read.

        Raises:
            Failed: There is none.
        """
        content = memoryview(json.dumps(body).encode())
        stream = self._h2.get_next_available_stream_id()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers[stream] = answer
        head = [(":method", "POST"), (":scheme", "http"), (":authority", self._authority)]
        head += [(":path", path), ("content-type", "application/json")]
        try:
            self._h2.send_headers(stream, head)
            while content and not answer.done():
                size = min(
                    self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size
                )
                if size <= 0:
                    self._opened.clear()
                    await self._opened.wait()
                    continue
                self._h2.send_data(stream, bytes(content[:size]))
                content = content[size:]
                self._flush()
                await self._writer.drain()
            if not answer.done():
                self._h2.end_stream(stream)
                self._flush()
        except (h2.exceptions.ProtocolError, OSError):
            raise Failed("connection lost") from None
        return await answer

    async def read(self) -> None:
        """Take what the server sends, until it hangs up."""
        while data := await self._reader.read(MOST_READ):
            for event in self._h2.receive_data(data):
                self._understand(event)
            self._flush()
        self._opened.set()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Failed("connection lost"))

    def _understand(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived(stream_id=int(stream), headers=headers):
                self._status[stream] = next(int(v) for name, v in headers if name == b":status")
            case h2.events.DataReceived(stream_id=int(stream)):
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._opened.set()
            case h2.events.StreamEnded() | h2.events.StreamReset():
                self._opened.set()
                answer = self._answers.pop(event.stream_id or 0, None)
                if answer is not None and not answer.done():
                    answer.set_result(self._status.pop(event.stream_id or 0, 0))
            case _:
                pass

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())


@asynccontextmanager
async def connected(host: str, port: int) -> AsyncGenerator[Http2Client]:
    """Speak HTTP/2 with a server from the first byte, until the context ends."""
    reader, writer = await asyncio.open_connection(host, port)
    client = Http2Client(reader, writer, f"{host}:{port}")
    reading = asyncio.create_task(client.read())
    try:
        yield client
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await reading
        writer.transport.abort()
