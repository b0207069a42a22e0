"""One accepted connection: bytes between a socket and HTTP, and how long each may take.

It is what Hypercorn's `TCPServer` is, which waits for ever for clients that do not read, starts a
task for each time that a connection is idle, and takes the first byte of a request for the whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, cast

from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.typing import ConnectionState, WorkerContext

from session_http.http1 import Http1
from session_http.http2 import Http2
from session_http.inbox import Application
from session_http.wire import ConnectionLimits, Wire

logger = logging.getLogger(__name__)

MOST_READ = 64 * 1024
"""Bytes of a client at once. More would be quicker with long bodies, but h11 looks at how long a
head, a trailer or a chunk's line is only between two reads: what comes in one is let through."""


class Connection:
    """A connection, from when it is made until it is closed.

    Args:
        app: Called for every request.
        config: Hypercorn's settings.
        context: Says whether the server ends.
        limits: How long things may take.
        reader: What the client sends.
        writer: What it is sent.
        http2: Whether it may be HTTP/2.
    """

    def __init__(
        self,
        app: Application,
        config: Config,
        context: WorkerContext,
        limits: ConnectionLimits,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        http2: bool,
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._limits = limits
        self._reader = reader
        self._writer = writer
        self._transport: asyncio.WriteTransport = writer.transport
        self._http2 = http2
        self._loop = asyncio.get_running_loop()
        self._protocol: Http1 | Http2
        self._reading: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None
        self._ending = False
        self._idle = True
        self._partial = False
        self._due = self._loop.time() + limits.head_s
        self._timer = self._loop.call_at(self._due, self._look)

    async def run(self) -> None:
        """Serve the client until it or we have had enough."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                wire = self._wire(group)
                tls = cast("ssl.SSLObject | None", self._writer.get_extra_info("ssl_object"))
                if tls is not None and tls.selected_alpn_protocol() == "h2":
                    self._protocol = Http2(wire)
                    await self._protocol.initiate()
                else:
                    self._protocol = Http1(wire)
                self._reading = group.create_task(self._read())
        finally:
            self._timer.cancel()
            self._writer.close()
            # What the client does not read in this time is dropped with its connection.
            try:
                async with asyncio.timeout(self._limits.linger_s):
                    await self._writer.wait_closed()
            except OSError as error:
                # The stream keeps it, and what it went through keeps the stream.
                error.__traceback__ = None
            # Over TLS, asyncio's own transport cannot be aborted any more once it is closed.
            with contextlib.suppress(AttributeError):
                self._transport.abort()
            self._let_go()

    def finish(self) -> None:
        """Begin to end it, unless something is being answered; the server ends."""
        self._in_a_task(self._end_idle)

    def abort(self) -> None:
        """End it at once."""
        self._ending = True
        self._transport.abort()

    def _wire(self, group: asyncio.TaskGroup) -> Wire:
        peer = cast(socket.socket, self._writer.get_extra_info("socket"))
        return Wire(
            app=self._app,
            config=self._config,
            context=self._context,
            group=group,
            state=ConnectionState({}),
            ssl=self._writer.get_extra_info("ssl_object") is not None,
            client=_address(peer.family, peer.getpeername()),
            server=_address(peer.family, peer.getsockname()),
            http2=self._http2,
            limits=self._limits,
            send=self._send,
            write_now=self._write_now,
        )

    def _let_go(self) -> None:
        """Let go of all that it was made of, which refers to it and to each other.

        It is freed at once that way, and not when the collector comes to look for such circles: on
        a server with little to do that can be minutes, and some hundred connections, later.
        """
        if hasattr(self, "_protocol"):
            vars(self._protocol).clear()
        vars(self).clear()

    # -- what comes -------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read until the client has ended, also what nobody wants any more.

        Closed with something unread, the kernel would drop what the client has not had yet.
        """
        try:
            while data := await self._reader.read(MOST_READ):
                if not self._ending:
                    if self._idle and not self._partial and isinstance(self._protocol, Http1):
                        self._partial = True
                        self._look_at(self._loop.time() + self._limits.head_s)
                    await self._take(data)
        except OSError as error:
            logger.debug("a connection broke: %r", error)
        finally:
            await self._protocol.handle(Closed())

    async def _take(self, data: bytes) -> None:
        try:
            await self._protocol.handle(RawData(data=data))
        except H2ProtocolAssumedError as error:
            assert self._group is not None
            vars(self._protocol).clear()  # as in the end
            self._protocol = Http2(self._wire(self._group))
            await self._protocol.initiate()
            await self._protocol.handle(RawData(data=error.data))

    # -- what goes --------------------------------------------------------------------------

    async def _send(self, event: Event) -> None:
        """Do what the protocol says."""
        match event:
            case RawData():
                await self._write(event.data)
            case Updated():
                self._idle = event.idle
                self._partial = False
                if event.idle:
                    self._look_at(self._loop.time() + self._limits.idle_s)
            case _:
                self._end()

    def _write_now(self, data: bytes) -> bool:
        """Write, unless there is something that the client has not read yet; return whether."""
        transport = self._transport
        if self._ending or transport.is_closing() or transport.get_write_buffer_size():
            return False
        transport.write(data)
        return True

    async def _write(self, data: bytes) -> None:
        """Write, and wait while the client reads too little.

        The bytes are the transport's before anything is waited for: whoever gives up waiting must
        not leave a hole in them.
        """
        if self._ending or self._transport.is_closing():
            self._lose()
            return
        self._writer.write(data)
        if not self._transport.get_write_buffer_size():
            return
        try:
            async with asyncio.timeout(self._limits.unread_s):
                await self._writer.drain()
        except OSError as error:
            logger.debug("a client does not read, or is gone: %r", error)
            self.abort()
            self._lose()

    def _lose(self) -> None:
        # The reader may be waiting for an answer that can no longer be sent.
        if not self._ending and self._reading is not None:
            self._reading.cancel()

    # -- the end ----------------------------------------------------------------------------

    def _look_at(self, due: float) -> None:
        self._due = due
        if not self._ending and due < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """Whether an idle connection has been so for too long."""
        now = self._loop.time()
        if not self._idle:
            self._timer = self._loop.call_at(now + self._limits.idle_s, self._look)
        elif now < self._due:
            self._timer = self._loop.call_at(self._due, self._look)
        else:
            self._in_a_task(self._end_overdue)

    def _in_a_task(self, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # A client that does not read can hold up what is still to be said.
        if self._group is not None and self._reading is not None and not self._reading.done():
            self._group.create_task(end())

    async def _end_overdue(self) -> None:
        if self._ending:
            return
        # Its time may have been up because nothing ran for a while: what the client said meanwhile
        # was read since, and it has to be looked at again.
        if self._idle and self._loop.time() >= self._due:
            await self._protocol.expire(partial=self._partial)
        else:
            self._look()

    async def _end_idle(self) -> None:
        if self._idle and not self._ending:  # a request may have come since
            await self._protocol.expire(partial=False)

    def _end(self) -> None:
        """Send no more, and close once the client has read what was sent."""
        if self._ending:
            return
        self._ending = True
        self._timer.cancel()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            with contextlib.suppress(OSError):  # the client is gone, and we are about to hear of it
                self._transport.write_eof()
        else:
            self._transport.close()
        self._timer = self._loop.call_later(
            self._limits.linger_s, self._close, self._loop.time() + self._limits.unread_s
        )

    def _close(self, latest: float) -> None:
        now = self._loop.time()
        if self._transport.get_write_buffer_size() and now < latest:
            self._timer = self._loop.call_at(now + self._limits.linger_s, self._close, latest)
        else:
            self._transport.abort()


def _address(family: int, name: tuple[str, int]) -> tuple[str, int] | None:
    return name[:2] if family in (socket.AF_INET, socket.AF_INET6) else None
