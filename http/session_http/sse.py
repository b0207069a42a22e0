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
from contextlib import suppress
from dataclasses import dataclass

import anyio
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from session_http.frames import CHUNK, PING, Cut, StreamFailed, chunks, frame
from session_http.keys import Validity
from session_http.problems import refuse
from session_http.reading import ClientGone
from session_supervisor import CloseReason, Cursor, Event, Session, State, TurnHandle, events
from session_supervisor.errors import Spoiled

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
        self._cut: Cut | None = None
        self._stream = stream
        self._settings = settings or StreamSettings()
        self._validity = validity
        self._revoked = False
        self._over = False
        self._scope: anyio.CancelScope | None = None
        self._session_id = stream.session.session_id
        self._sending = asyncio.Lock()
        self._send_began: float | None = None
        self._quiet_since = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it to its end, or until the client is gone."""
        self._root_path = scope.get("root_path", "")
        most = self._settings.max_tool_output_bytes
        self._cut = None if most is None else Cut(most=most, root_path=self._root_path)
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
            if self._validity is not None:
                self._validity.watch(self._revoke)
                self._revoked = not self._validity.holds
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(self._listen, receive, tasks.cancel_scope)
                tasks.start_soon(self._keep, send, tasks.cancel_scope)
                if not self._revoked:
                    await self._pump(send)
                tasks.cancel_scope.cancel()
            if self._revoked and not self._over:
                await self._dismiss(send)
        finally:
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
        while batch := await cursor.read():
            wanted, ended = (batch, False) if turn is None else turn.select(batch)
            await self._send_batch(send, wanted)
            if ended:
                return b""
            del batch, wanted  # or they would be kept for as long as there is nothing new
        return await self._farewell()

    async def _send_batch(self, send: Send, batch: Sequence[Event]) -> None:
        for piece in chunks(batch, session_id=self._session_id, cut=self._cut):
            await self._send(send, piece)

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
        if self._scope is not None and not self._sending.locked():
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
        logger.info(
            "a client of session %s reads nothing and was dropped",
            self._session_id,
            extra={"session_id": self._session_id},
        )
        self._over = True
        scope.cancel()


async def is_over(session: Session, after: int) -> bool:
    """Whether a session has ended for good and a reader with this cursor has had all of it.

    One that was drained may go on under the next server, and readers are to come back.
    """
    if session.state is not State.CLOSED or after < session.snapshot().last_seq:
        return False
    return (await session.ended()).reason is not CloseReason.DRAINED
