"""A cursor becomes a response of Server-Sent Events.

The stream has no queue of its own. It reads what is there, sends it, and reads on; a client
that is slow makes the send wait, also in the middle of a long event, and meanwhile the stream is
little but a number, its place in the log. So any number of slow clients costs the session nothing
and the server little, and a client that goes away ends only its own stream, never the turn.

Starlette has no such response, and `StreamingResponse` does not close its generator when it is
cancelled within a send; there is no generator here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio
from starlette.types import Receive, Scope, Send

from session_http.frames import CHUNK, PING, StreamFailed, chunks, frame
from session_http.problems import refuse
from session_http.reading import ClientGone
from session_supervisor import CloseReason, Cursor, Event, Session, State, TurnHandle, events

logger = logging.getLogger(__name__)

HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # or nginx holds events back until it has a bufferful
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How streams behave.

    Attributes:
        max_streams: Most open streams.
        heartbeat_s: Seconds of silence after which a comment shows that the stream lives.
        send_timeout_s: Seconds that a client may read nothing of what was sent, before it is
            dropped.
        retry_ms: Milliseconds after which a browser comes back to a stream that broke.
    """

    max_streams: int = 4096
    heartbeat_s: float = 15.0
    send_timeout_s: float = 60.0
    retry_ms: int = 2000


class Streams:
    """The open streams, counted.

    Args:
        settings: How streams behave.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self._open = 0

    @property
    def open(self) -> int:
        """How many there are."""
        return self._open

    def reserve(self) -> Slot:
        """Make room for one more, before the turn that it shows is started.

        Raises:
            ProblemError: There are as many as there may be.
        """
        if self._open >= self.settings.max_streams:
            raise refuse(
                "too_many_streams",
                f"All {self.settings.max_streams} streams are in use. Close one, try again later, "
                "or ask without `stream`.",
                retry_after=5.0,
            )
        self._open += 1
        return Slot(self)

    def release(self) -> None:
        """Count one less; for `Slot`."""
        self._open -= 1


class Slot:
    """The right to one open stream, until it is released."""

    def __init__(self, streams: Streams) -> None:
        self._streams: Streams | None = streams

    def release(self) -> None:
        """Give it back; again does no harm."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class EventStream:
    """What a handler answers with: which events are to be sent.

    Attributes:
        session: Whose events.
        cursor: Where to begin.
        slot: Released when the stream ends.
        turn: Only this turn's, until its end; None: all, until the session's.
    """

    session: Session
    cursor: Cursor
    slot: Slot
    turn: TurnHandle | None = None


class EventStreamResponse:
    """Sends an `EventStream`; an ASGI application for one request.

    Args:
        stream: What to send.
        settings: How it behaves.
    """

    def __init__(self, stream: EventStream, settings: StreamSettings) -> None:
        self._stream = stream
        self._settings = settings
        self._session_id = stream.session.session_id
        self._sending = asyncio.Lock()
        self._send_began: float | None = None
        self._quiet_since = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it to its end, or until the client is gone."""
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(k.encode(), v.encode()) for k, v in HEADERS.items()],
                }
            )
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
                return
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen, receive, tasks.cancel_scope)
                tasks.start_soon(self._keep, send, tasks.cancel_scope)
                await self._pump(send)
                tasks.cancel_scope.cancel()
        finally:
            self._stream.slot.release()

    # -- what is sent ----------------------------------------------------------------------

    async def _pump(self, send: Send) -> None:
        """Send every event from the cursor on, and then the end."""
        try:
            await self._send(send, b"retry: %d\n\n" % self._settings.retry_ms)
            try:
                last = await self._send_events(send)
            except ClientGone:
                raise
            except Exception:  # a mistake of ours: the client must hear of it in the stream
                logger.exception("the stream of session %s broke", self._session_id)
                last = self._failed()
            await self._send(send, last, more=False)
        except ClientGone:
            return

    async def _send_events(self, send: Send) -> bytes:
        """Send events while there are any; return what to end with."""
        cursor, turn = self._stream.cursor, self._stream.turn
        while batch := await cursor.read():
            wanted, ended = (batch, False) if turn is None else turn.select(batch)
            await self._send_batch(send, wanted)
            if ended:
                return b""
            del batch, wanted  # or they would be kept for as long as there is nothing new
        return await self._farewell()

    async def _send_batch(self, send: Send, batch: Sequence[Event]) -> None:
        for piece in chunks(batch, session_id=self._session_id):
            await self._send(send, piece)

    async def _farewell(self) -> bytes:
        """Return what to say at the end of a closed log."""
        stream = self._stream
        closed = await stream.session.ended()
        if stream.turn is None and closed.reason is not CloseReason.DRAINED:
            return b""
        after = stream.cursor.after
        return frame(
            events.Bye(after=after),
            session_id=self._session_id,
            turn_id=None if stream.turn is None else stream.turn.turn_id,
            seq=after,
        )

    def _failed(self) -> bytes:
        turn = self._stream.turn
        where = "/turns" if turn is None else f"/turns/{turn.turn_id}"
        return frame(
            StreamFailed(
                message="The server made a mistake in this stream. The turn goes on; look it up at "
                f"/session/{self._session_id}{where}."
            ),
            session_id=self._session_id,
            turn_id=None if turn is None else turn.turn_id,
            seq=None,
        )

    # -- sending, and watching over it -------------------------------------------------------

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        """Send bytes that no heartbeat may come between.

        The server takes whatever it is given and waits only then, so it gets a slice at a time.
        Each has its own deadline: who reads slowly is not dropped, who reads nothing is.
        """
        loop = asyncio.get_running_loop()
        async with self._sending:
            for begin in range(0, len(data) or 1, CHUNK):
                end = begin + CHUNK
                self._send_began = loop.time()
                await send(
                    {
                        "type": "http.response.body",
                        "body": data[begin:end],
                        "more_body": more or end < len(data),
                    }
                )
            self._send_began = None
            self._quiet_since = loop.time()

    async def _listen(self, receive: Receive, scope: anyio.CancelScope) -> None:
        """End the stream as soon as the client is gone."""
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception:  # some servers raise instead; either way nobody listens any more
            logger.debug("receiving ended", exc_info=True)
        scope.cancel()

    async def _keep(self, send: Send, scope: anyio.CancelScope) -> None:
        """Send heartbeats, and drop a client that reads nothing.

        One timer for both: it looks when the earliest of them could be due, so that an event
        costs no timer of its own.
        """
        settings = self._settings
        loop = asyncio.get_running_loop()
        self._quiet_since = loop.time()
        while True:
            began = self._send_began
            if began is not None:
                due = began + settings.send_timeout_s
                if loop.time() >= due:
                    break
            else:
                due = self._quiet_since + settings.heartbeat_s
                if loop.time() >= due:
                    try:
                        async with asyncio.timeout(settings.send_timeout_s):
                            await self._send(send, PING)
                    except TimeoutError:
                        break
                    except ClientGone:
                        scope.cancel()
                        return
                    continue
            await asyncio.sleep(min(due - loop.time(), settings.send_timeout_s))
        logger.info("a client of session %s reads nothing and was dropped", self._session_id)
        scope.cancel()


def is_over(session: Session, after: int) -> bool:
    """Whether a session has ended and a reader with this cursor has had all of it."""
    return session.state is State.CLOSED and after >= session.snapshot().last_seq
