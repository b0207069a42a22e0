"""HTTP/2 on the `h2` library: Hypercorn's streams, with a sender and a reader of our own.

Hypercorn's own cannot be left alone with clients. One that grants no window grows its buffers by
hundreds of megabytes a second; one whose application fails in the middle of an answer is never
told; a request that is answered before its body has come ends every other on the connection; and
its tree of priorities, which HTTP/2 has since given up, raises when clients play with it.

Here nothing is buffered. A message of the application is sent at once if the client's windows
have room for it and nobody else waits. Otherwise the application waits with its message in its
hands, and the streams take turns, a slice each. So a client that reads nothing costs one message
for each stream, until its time is up. In the other direction the client's window is opened only
by as much as the application has taken.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from typing import Any, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import (
    Body,
    EndBody,
    InformationalResponse,
    Request,
    Response,
    StreamClosed,
    Trailers,
)
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.utils import filter_pseudo_headers

from session_http.inbox import Calls, Inbox
from session_http.wire import Wire

logger = logging.getLogger(__name__)

MOST_STREAMS = 1_000
"""Requests of one connection at the same time."""

MOST_CALLS = 2 * MOST_STREAMS
"""Calls of the application for one connection, also those whose client no longer waits."""

CONNECTION_WINDOW = 2**20
"""Bytes of bodies of one connection that may be on their way to the application; 64 KiB of one."""

SLICE = 64 * 1024
"""Bytes that a stream sends before it is the next one's turn."""

READ = 8 * 1024
"""Bytes that are understood at once: a few hundred requests, before others get to run."""

_TARGET = re.compile(rb"[\x21-\x7e]+")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,50}")
_OF_THE_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)

Headers = list[tuple[bytes, bytes]]


class Http2:
    """One connection's HTTP/2.

    Args:
        wire: The connection.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._h2 = h2.connection.H2Connection(
            config=h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MOST_STREAMS,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: wire.config.h2_max_header_list_size,
            },
        )
        self._streams: dict[int, _Stream] = {}
        self._calls = 0
        self._lengths = _Lengths()
        self._patience = Patience()
        self._writing = 0
        self._queue: deque[_Stream] = deque()
        self._turn = asyncio.Event()
        self._over = False

    async def initiate(self) -> None:
        """Begin."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(
            CONNECTION_WINDOW - self._h2.inbound_flow_control_window
        )
        self._wire.group.create_task(self._take_turns())
        await self._wire.send(Updated(idle=True))
        await self._flush()

    async def expire(self, *, partial: bool) -> None:
        """End the connection, on which nothing is being answered."""
        await self._end(h2.errors.ErrorCodes.NO_ERROR)

    # -- what comes -------------------------------------------------------------------------

    async def handle(self, event: Event) -> None:
        """Take what the client sent, or that it is gone."""
        if isinstance(event, RawData):
            for begin in range(0, len(event.data), READ):
                if begin:
                    await asyncio.sleep(0)
                if self._over:
                    return
                await self._receive(event.data[begin : begin + READ])
        elif isinstance(event, Closed):
            self._over = True
            for stream in tuple(self._streams.values()):
                await self._drop(stream)
            self._turn.set()

    async def _receive(self, data: bytes) -> None:
        if not self._lengths.bearable(data):
            await self._end(h2.errors.ErrorCodes.FRAME_SIZE_ERROR)
            return
        try:
            for event in self._h2.receive_data(data):
                await self._understand(event)
        except h2.exceptions.ProtocolError as error:
            logger.debug("a client broke HTTP/2: %r", error)
            await self._flush()  # what it did wrong
            await self._close()
        else:
            await self._flush()

    async def _understand(self, event: h2.events.Event) -> None:
        if self._over:
            return
        match event:
            case h2.events.RequestReceived(stream_id=int(number), headers=headers):
                await self._begin(number, headers)
            case h2.events.DataReceived(stream_id=int(number)):
                await self._body_came(number, event)
            case h2.events.StreamEnded(stream_id=int(number)):
                await self._body_ended(number)
            case h2.events.WindowUpdated(stream_id=number):
                # The sender serves who waits: one for each update, however many there are.
                if number and (stream := self._streams.get(number)) is not None:
                    self._enqueue(stream)
                self._turn.set()
            case h2.events.StreamReset(stream_id=int(number)):
                if (stream := self._streams.get(number)) is not None:
                    await self._drop(stream)
                await self._bear()
            case h2.events.RemoteSettingsChanged():
                for stream in self._streams.values():
                    self._enqueue(stream)
                await self._bear()
            case (
                h2.events.PingReceived()
                | h2.events.PriorityUpdated()
                | h2.events.UnknownFrameReceived()
            ):
                await self._bear()
            case h2.events.ConnectionTerminated():
                await self._close()
            case _:
                pass

    async def _begin(self, number: int, headers: Headers) -> None:
        """Call the application for a request."""
        pseudo = {name: value for name, value in headers if name.startswith(b":")}
        method = pseudo.get(b":method", b"")
        # One to CONNECT has none; the application says that there is no such method.
        target = pseudo.get(b":path", b"/")
        if self._wire.context.terminated.is_set() or self._calls >= MOST_CALLS:
            self._h2.reset_stream(number, h2.errors.ErrorCodes.REFUSED_STREAM)
        elif not (_TARGET.fullmatch(target) and _METHOD.fullmatch(method)):
            self._h2.reset_stream(number, h2.errors.ErrorCodes.PROTOCOL_ERROR)
        else:
            stream = _Stream(number, self)
            self._streams[number] = stream
            await self._wire.send(Updated(idle=False))
            await stream.http.handle(
                Request(
                    stream_id=number,
                    headers=filter_pseudo_headers(headers),
                    http_version="2",
                    method=method.decode("ascii").upper(),
                    raw_path=target,
                    state=self._wire.state,
                )
            )

    async def _body_came(self, number: int, event: h2.events.DataReceived) -> None:
        data = event.data or b""
        stream = self._streams.get(number)
        padding = (event.flow_controlled_length or 0) - (len(data) if stream else 0)
        if padding:
            self._h2.acknowledge_received_data(padding, number)
        if data and stream is not None:
            await stream.http.handle(Body(stream_id=number, data=data))
        elif not data and event.stream_ended is None:
            await self._bear()

    async def _body_ended(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            stream.received = True
            await stream.http.handle(EndBody(stream_id=number))

    async def body_taken(self, number: int, size: int) -> None:
        """Let the client send as much again; for `_Stream`."""
        if not self._over:
            self._h2.acknowledge_received_data(size, number)
            await self._flush()

    async def _bear(self) -> None:
        """Put up with something that costs the client nothing, within reason."""
        if not self._patience.lasts(asyncio.get_running_loop().time()):
            logger.info("a client made much ado about nothing, and its connection was ended")
            await self._end(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)

    # -- what the application says ----------------------------------------------------------

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what the application says, or its end."""
        stream = self._streams.get(event.stream_id)
        if stream is None:  # the client did not wait for it
            return
        try:
            match event:
                case Response() | InformationalResponse():
                    self._h2.send_headers(stream.number, self._head(event))
                    # A response's head goes out with what follows it.
                    if isinstance(event, InformationalResponse):
                        await self._flush()
                case Body():
                    await self._send(stream, event.data)
                case Trailers():
                    stream.ended = True
                    self._h2.send_headers(stream.number, event.headers, end_stream=True)
                    await self._flush()
                case EndBody():
                    await self._end_answer(stream)
                case StreamClosed():
                    await self._application_ended(stream)
                case _:  # a push, which no client wants any more
                    pass
        except h2.exceptions.ProtocolError as error:
            # The client ended the stream or the connection ahead of what we know.
            logger.debug("stream %d cannot be sent on: %r", stream.number, error)

    def _head(self, event: Response | InformationalResponse) -> Headers:
        own = self._wire.config.response_headers("h2")
        return [
            (b":status", b"%d" % event.status_code),
            *(one for one in event.headers if one[0].lower() not in _OF_THE_CONNECTION),
            *own,
        ]

    async def _end_answer(self, stream: _Stream) -> None:
        if stream.ended:
            return
        stream.ended = True
        self._h2.end_stream(stream.number)
        if not stream.received:  # and nobody wants the rest of it
            self._h2.reset_stream(stream.number, h2.errors.ErrorCodes.NO_ERROR)
        await self._flush()

    async def _application_ended(self, stream: _Stream) -> None:
        if not stream.ended:  # in the middle of its answer: the client must not take it for whole
            stream.ended = True
            self._h2.reset_stream(stream.number, h2.errors.ErrorCodes.INTERNAL_ERROR)
        await self._drop(stream)
        await self._flush()
        if not self._streams and self._wire.context.terminated.is_set():
            await self._end(h2.errors.ErrorCodes.NO_ERROR)

    async def _drop(self, stream: _Stream) -> None:
        """Forget a stream, and let nobody wait for it; again does no harm."""
        if self._streams.pop(stream.number, None) is None:
            return
        stream.done()
        await stream.http.handle(StreamClosed(stream_id=stream.number))
        if stream.inbox.untaken and not self._over:
            self._h2.acknowledge_received_data(stream.inbox.untaken, stream.number)
        if not self._streams:
            await self._wire.send(Updated(idle=True))

    async def _call(self, scope: Any, receive: Any, send: Any) -> None:
        """Call the application, and count it until it has ended, whoever still waits for it."""
        self._calls += 1
        try:
            await self._wire.app(scope, receive, send)
        finally:
            self._calls -= 1

    # -- sending ----------------------------------------------------------------------------

    async def _send(self, stream: _Stream, data: bytes) -> None:
        """Send a message, and return when all of it is on its way or the stream is over."""
        room = min(self._room(stream), SLICE)
        if not self._queue and not self._writing and len(data) <= room:
            self._write(stream, data)
            await self._flush()
            return
        stream.rest = memoryview(data)
        stream.sent = asyncio.get_running_loop().create_future()
        self._enqueue(stream)
        try:
            await self._flush()  # the head of the answer may still be here
            async with asyncio.timeout(self._wire.limits.unread_s) as stream.deadline:
                await stream.sent
        except TimeoutError:
            logger.info("a client reads nothing of a stream, which was reset")
            stream.ended = True
            self._h2.reset_stream(stream.number, h2.errors.ErrorCodes.CANCEL)
            await self._drop(stream)
            await self._flush()
        finally:
            stream.rest = None  # also where the application gave up: nothing may follow

    async def _take_turns(self) -> None:
        """Send for those who wait, a slice each, whenever the client's window has room."""
        while True:
            await self._turn.wait()
            if self._over:
                return
            self._turn.clear()
            while self._queue and self._h2.outbound_flow_control_window > 0:
                stream = self._queue.popleft()
                stream.queued = False
                try:
                    self._send_slice(stream)
                except h2.exceptions.ProtocolError:
                    stream.done()
                await self._flush()
                await asyncio.sleep(0)  # or a client that reads fast is the only one served

    def _send_slice(self, stream: _Stream) -> None:
        if stream.rest is None:
            return
        size = min(self._room(stream), len(stream.rest), SLICE)
        if size <= 0:  # an update of its own window puts it back into the queue
            return
        self._write(stream, bytes(stream.rest[:size]))
        stream.rest = stream.rest[size:]
        if not stream.rest:
            stream.done()
            return
        stream.unread += size
        if stream.unread >= SLICE:
            stream.unread -= SLICE
            stream.granted(self._wire.limits.unread_s)
        self._enqueue(stream)

    def _enqueue(self, stream: _Stream) -> None:
        if stream.rest is not None and not stream.queued:
            stream.queued = True
            self._queue.append(stream)
            self._turn.set()

    def _room(self, stream: _Stream) -> int:
        return self._h2.local_flow_control_window(stream.number)

    def _write(self, stream: _Stream, data: bytes) -> None:
        most = self._h2.max_outbound_frame_size
        for begin in range(0, len(data), most):
            self._h2.send_data(stream.number, data[begin : begin + most])

    async def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._writing += 1
            try:
                await self._wire.send(RawData(data=data))
            finally:
                self._writing -= 1

    async def _end(self, code: h2.errors.ErrorCodes) -> None:
        """Say that this is the end of the connection, and end it."""
        if not self._over:
            self._h2.close_connection(code)
            await self._flush()
            await self._close()

    async def _close(self) -> None:
        self._over = True
        self._turn.set()
        await self._wire.send(Closed())

    def new_stream(self, stream: _Stream) -> HTTPStream:
        """Return Hypercorn's part of a stream; for `_Stream`."""
        wire, inbox = self._wire, stream.inbox  # through which it does not refer to itself
        return HTTPStream(
            cast(Any, self._call),
            wire.config,
            wire.context,
            cast(Any, Calls(wire.group, lambda: inbox)),
            wire.ssl,
            wire.client,
            wire.server,
            self.stream_send,
            stream.number,
        )


class _Stream:
    """One request and its answer.

    Attributes:
        received: Whether the request is whole.
        ended: Whether the answer is, or was given up.
        rest: What is left of the message that is being sent.
        queued: Whether it waits for its turn.
    """

    __slots__ = (
        "deadline",
        "ended",
        "http",
        "inbox",
        "number",
        "queued",
        "received",
        "rest",
        "sent",
        "unread",
    )

    def __init__(self, number: int, connection: Http2) -> None:
        self.number = number
        self.inbox = Inbox(taken=lambda size: connection.body_taken(number, size))
        self.http = connection.new_stream(self)
        self.received = self.ended = self.queued = False
        self.rest: memoryview | None = None
        self.sent: asyncio.Future[None] | None = None
        self.deadline: asyncio.Timeout | None = None
        self.unread = 0

    def granted(self, seconds: float) -> None:
        """Give the client time again: it has read a slice."""
        if self.deadline is not None and not self.deadline.expired():
            self.deadline.reschedule(asyncio.get_running_loop().time() + seconds)

    def done(self) -> None:
        """Let the application go on."""
        self.rest = None
        if self.sent is not None and not self.sent.done():
            self.sent.set_result(None)


class _Lengths:
    """Looks at how long each frame says it is: `h2` keeps up to 16 MB of one before it does."""

    PREFACE = 24
    HEAD = 9
    LONGEST = 2**14

    def __init__(self) -> None:
        self._skip = self.PREFACE
        self._head = b""

    def bearable(self, data: bytes) -> bool:
        """Return whether no frame that begins in these bytes is too long."""
        at = self._skip
        while at < len(data):
            begin = at
            at += self.HEAD - len(self._head)
            self._head += data[begin:at]
            if at > len(data):
                self._skip = 0
                return True
            length = int.from_bytes(self._head[:3], "big")
            if length > self.LONGEST:
                return False
            self._head = b""
            at += length
        self._skip = at - len(data)
        return True


class Patience:
    """How much a client may make us do for nothing: so much at once, and so much in a second.

    Requests that it takes back, pings, settings, priorities and empty frames cost it a few bytes
    and us a hundred times the work (CVE-2023-44487 and CVE-2019-9512 to 9518).

    Args:
        most: At once; a client may well take back as many requests as it may make.
        each_second: Restored in a second.
    """

    def __init__(self, *, most: float = 2.0 * MOST_STREAMS, each_second: float = 200.0) -> None:
        self._most = most
        self._each_second = each_second
        self._left = most
        self._seen = 0.0

    def lasts(self, now: float) -> bool:
        """Count one more; return whether that is still bearable.

        Args:
            now: Seconds on any clock.
        """
        restored = (now - self._seen) * self._each_second
        self._left = min(self._most, self._left + restored) - 1
        self._seen = now
        return self._left >= 0
