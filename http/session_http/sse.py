"""A cursor becomes a response of Server-Sent Events.

The stream has no queue of its own. It reads what is there, sends it, and reads on; a client
that is slow makes the send wait, also in the middle of a long event, and meanwhile the stream is
little but a number, its place in the log. So any number of slow clients costs the session nothing
and the server little, and a client that goes away ends only its own stream, never the turn.

For a client that keeps up there is nothing to wait for, and so nobody need be woken to do it: where
the server can write at once, the stream's task sleeps on, and what is new is read, encoded, if no
other reader had it before, and written, in the step of the event loop in which the session said it.
The task does whatever may have to wait: the beginning, the end, a client that has not read, events
that the store must be asked for.

Starlette has no such response, and `StreamingResponse` does not close its generator when it is
cancelled within a send; there is no generator here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import anyio
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from session_http.extensions import WRITE_NOW, WriteNow
from session_http.frames import CHUNK, PING, Cut, Frames, StreamFailed, frame
from session_http.keys import Validity
from session_http.problems import refuse
from session_http.reading import ClientGone
from session_http.wheel import Wheel
from session_supervisor import CloseReason, Cursor, Session, State, TurnHandle, events
from session_supervisor.errors import Spoiled
from session_supervisor.timers import Wakeup, is_due

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
        max_tool_output_bytes: Longest input and result of a tool in an event. What is longer is
            cut, and the event says under which path of the API it is whole; None: nothing is cut.
    """

    max_streams: int = 4096
    heartbeat_s: float = 15.0
    send_timeout_s: float = 60.0
    retry_ms: int = 2000
    max_tool_output_bytes: int | None = None


class Streams:
    """The open streams, counted.

    Args:
        settings: How streams behave.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.wheel = Wheel()
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
        self.wheel = streams.wheel

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
        slot: Released when the stream ends; None where nobody counts streams.
        turn: Only this turn's, until its end; None: all, until the session's.
    """

    session: Session
    cursor: Cursor
    slot: Slot | None = None
    turn: TurnHandle | None = None


class EventStreamResponse(Response):
    """Sends an `EventStream`.

    It is a response like any other of Starlette's, so an embedder's own endpoints may return it,
    those of FastAPI too.

    Args:
        stream: What to send.
        settings: How it behaves; None for the defaults.
        validity: Whether the client may go on reading; None: always.
        status_code: HTTP status of the answer.
        background: To be run after it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: EventStream,
        settings: StreamSettings | None = None,
        validity: Validity | None = None,
        *,
        status_code: int = 200,
        background: BackgroundTask | None = None,
    ) -> None:
        # Not the base class's, which makes a body and its length; the same as `StreamingResponse`.
        self.status_code = status_code
        self.background = background
        self.init_headers(HEADERS)
        self._root_path = ""
        self._stream = stream
        self._settings = settings or StreamSettings()
        self._validity = validity
        self._revoked = False
        self._over = False
        self._scope: anyio.CancelScope | None = None
        self._session_id = stream.session.session_id
        self._frames = Frames(self._session_id)
        self._loop: asyncio.AbstractEventLoop
        self._write_now: WriteNow | None = None
        self._bell = Wakeup()
        self._resting = False
        self._beat_due = False
        self._send_began: float | None = None
        self._quiet_since = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it to its end, or until the client is gone."""
        self._root_path = scope.get("root_path", "")
        self._loop = asyncio.get_running_loop()
        most = self._settings.max_tool_output_bytes
        cut = None if most is None else Cut(most=most, root_path=self._root_path)
        self._frames = Frames.of(self._session_id, cut)
        wheel = Wheel() if self._stream.slot is None else self._stream.slot.wheel
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b""})
                return
            self._write_now = scope.get("extensions", {}).get(WRITE_NOW)
            if self._validity is not None:
                self._validity.watch(self._revoke)
                self._revoked = not self._validity.holds
            self._quiet_since = self._loop.time()
            wheel.add(self._look, self._quiet_since + self._shortest_s)
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(self._listen, receive, tasks.cancel_scope)
                if not self._revoked:
                    await self._pump(send)
                tasks.cancel_scope.cancel()
            if self._revoked and not self._over:
                await self._dismiss(send)
        finally:
            wheel.remove(self._look)
            if self._validity is not None:
                self._validity.unwatch(self._revoke)
            if self._stream.slot is not None:
                self._stream.slot.release()
        if self.background is not None:
            await self.background()

    # -- what is sent ----------------------------------------------------------------------

    async def _pump(self, send: Send) -> None:
        """Send every event from the cursor on, and then the end."""
        try:
            await self._send(send, b"retry: %d\n\n" % self._settings.retry_ms)
            try:
                last = await self._send_events(send)
            except ClientGone:
                raise
            except Spoiled as error:
                logger.error(
                    "the stream of session %s cannot go on: %s",
                    self._session_id,
                    error,
                    extra={"session_id": self._session_id},
                )
                last = self._error(StreamFailed(message=str(error), retryable=False))
            except Exception:  # a mistake of ours: the client must hear of it in the stream
                logger.exception(
                    "the stream of session %s broke",
                    self._session_id,
                    extra={"session_id": self._session_id},
                )
                last = self._failed()
            await self._send(send, last, more=False)
        except ClientGone:
            return

    async def _send_events(self, send: Send) -> bytes:
        """Send events while there are any; return what to end with."""
        cursor, turn = self._stream.cursor, self._stream.turn
        rest = partial(self._rest, send)
        while batch := await cursor.read(rest=rest):
            wanted, ended = (batch, False) if turn is None else turn.select(batch)
            for piece in self._frames.chunks(wanted):
                await self._send(send, piece)
            if ended:
                return b""
            del batch, wanted  # or they would be kept for as long as there is nothing new
        return await self._farewell()

    async def _rest(self, send: Send) -> None:
        """Sleep until there is something that cannot be sent at once, or a heartbeat is due."""
        cursor = self._stream.cursor
        self._resting = True
        cursor.notify(self._hear)
        try:
            await self._bell.wait(None)
        finally:
            self._resting = False
            cursor.leave(self._hear)
        if self._beat_due:
            self._beat_due = False
            await self._send(send, PING)

    def _hear(self) -> None:
        """Send what is new, if that needs no waiting; otherwise have the task do it.

        The session calls it once it has said all that it had to say for now.
        """
        cursor = self._stream.cursor
        try:
            sent = self._resting and self._send_at_once()
        except Exception:  # the task comes to the same place, and says what is wrong
            logger.debug("events could not be sent at once", exc_info=True)
            sent = False
        if sent:
            cursor.notify(self._hear)
        else:
            self._bell.ring()

    def _send_at_once(self) -> bool:
        """Send what is at hand; return whether it was, and more may come."""
        if self._write_now is None:
            return False
        cursor, turn = self._stream.cursor, self._stream.turn
        batch = cursor.at_hand()
        wanted, ended = (batch, False) if turn is None else turn.select(batch)
        if not batch or ended:
            return False
        if wanted:
            data = self._frames.at_once(wanted)
            if data is None or not self._write_now(data):
                return False
            self._quiet_since = self._loop.time()
        cursor.skip(batch)
        return True

    async def _farewell(self) -> bytes:
        """Return what to say where the log ends, for ever or for a while."""
        stream = self._stream
        bye = events.Bye(after=stream.cursor.after, reason="store_unavailable")
        if not stream.cursor.stalled:
            closed = await stream.session.ended()
            if stream.turn is None and closed.reason is not CloseReason.DRAINED:
                return b""
            bye = events.Bye(after=stream.cursor.after)
        return frame(
            bye,
            session_id=self._session_id,
            turn_id=None if stream.turn is None else stream.turn.turn_id,
            seq=None,  # it is no event of the log; browsers keep the id that they had
        )

    def _failed(self) -> bytes:
        turn = self._stream.turn
        where = "/turns" if turn is None else f"/turns/{turn.turn_id}"
        return self._error(
            StreamFailed(
                message="The server made a mistake in this stream. The turn goes on; look it up at "
                f"{self._root_path}/session/{self._session_id}{where}."
            )
        )

    def _error(self, error: StreamFailed) -> bytes:
        turn = self._stream.turn
        return frame(
            error,
            session_id=self._session_id,
            turn_id=None if turn is None else turn.turn_id,
            seq=None,
        )

    # -- a key that is revoked ---------------------------------------------------------------

    def _revoke(self) -> None:
        """Stop, between two events: what is being sent is sent to its end."""
        self._revoked = True
        if self._scope is not None and self._send_began is None:
            self._scope.cancel()

    async def _dismiss(self, send: Send) -> None:
        """Tell the client why there is no more."""
        last = self._error(
            StreamFailed(
                code="unauthorized",
                message="The key was revoked. What runs goes on; look it up with another key.",
                retryable=False,
            )
        )
        # A client that has gone, or reads nothing, is not waited for.
        with anyio.move_on_after(self._settings.send_timeout_s), suppress(ClientGone):
            await self._send(send, last, more=False)

    # -- sending, and watching over it -------------------------------------------------------

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        """Send bytes, and wait for the client as far as the server does.

        The server takes whatever it is given and waits only then, so it gets a slice at a time.
        Each has its own deadline: who reads slowly is not dropped, who reads nothing is.
        """
        time = self._loop.time
        for begin in range(0, len(data) or 1, CHUNK):
            end = begin + CHUNK
            self._send_began = time()
            await send(
                {
                    "type": "http.response.body",
                    "body": data[begin:end],
                    "more_body": more or end < len(data),
                }
            )
        self._send_began = None
        self._quiet_since = time()
        self._over = not more
        if self._revoked and more:
            raise ClientGone("The client's key was revoked.")

    async def _listen(self, receive: Receive, scope: anyio.CancelScope) -> None:
        """End the stream as soon as the client is gone."""
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception:  # some servers raise instead; either way nobody listens any more
            logger.debug("receiving ended", exc_info=True)
        self._over = True
        scope.cancel()

    @property
    def _shortest_s(self) -> float:
        return min(self._settings.heartbeat_s, self._settings.send_timeout_s)

    def _look(self, now: float) -> float:
        """Have a heartbeat sent, or drop a client that reads nothing; return when to look again."""
        settings, began = self._settings, self._send_began
        if began is None:
            due = self._quiet_since + settings.heartbeat_s
            if is_due(due, now):
                self._beat_due = True
                self._bell.ring()
                return now + self._shortest_s
            return due
        due = began + settings.send_timeout_s
        if is_due(due, now):
            logger.info(
                "a client of session %s reads nothing and was dropped",
                self._session_id,
                extra={"session_id": self._session_id},
            )
            self._over = True
            if self._scope is not None:
                self._scope.cancel()
            return now + settings.send_timeout_s
        return due


async def is_over(session: Session, after: int) -> bool:
    """Whether a session has ended for good and a reader with this cursor has had all of it.

    One that was drained may go on under the next server, and readers are to come back.
    """
    if session.state is not State.CLOSED or after < session.snapshot().last_seq:
        return False
    return (await session.ended()).reason is not CloseReason.DRAINED
