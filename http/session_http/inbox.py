"""What a client sends for one request, until the application takes it.

Hypercorn puts each piece of a body into a queue of ten. One that nobody reads fills it, and then
the reader of the whole connection waits: over HTTP/2 for every other request too, and for ever
once the application has ended. Here pieces are joined, so that what waits is a number of bytes and
nothing else, and an application that has ended holds nobody up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from hypercorn.config import Config
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent, Scope

from session_http.extensions import WRITE_NOW, WriteNow

logger = logging.getLogger(__name__)

Application = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application."""

Put = Callable[[ASGIReceiveEvent], Awaitable[None]]
AppSend = Callable[["ASGISendEvent | None"], Awaitable[None]]


async def _nothing() -> None: ...


async def _nothing_of(_size: int) -> None: ...


class Inbox:
    """The messages to one call of the application.

    Args:
        most: Bytes of a body that may wait before `put` does; None where the sender of `put` sees
            to it.
        asked: Awaited whenever the application wants something that is not there yet.
        taken: Awaited with the number of bytes that the application has taken.
    """

    def __init__(
        self,
        *,
        most: int | None = None,
        asked: Callable[[], Awaitable[None]] = _nothing,
        taken: Callable[[int], Awaitable[None]] = _nothing_of,
    ) -> None:
        self._most = most
        self._asked = asked
        self._taken = taken
        self._body = bytearray()
        self._ended = False
        self._end_told = False
        self._gone = False
        self._closed = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def untaken(self) -> int:
        """Bytes that the application has not taken."""
        return len(self._body)

    async def put(self, message: ASGIReceiveEvent) -> None:
        """Add a message; wait if there is more than there should be."""
        if message["type"] == "http.disconnect":
            self._gone = True
        elif message["type"] == "http.request":
            self._body += message["body"]
            self._ended = not message["more_body"]
        self._news.set()
        self._room.set()
        if self._most is None:
            return
        while len(self._body) >= self._most and not (self._gone or self._closed):
            self._room.clear()
            await self._room.wait()

    async def get(self) -> ASGIReceiveEvent:
        """Return the next message; an ASGI `receive`."""
        while True:
            if self._body or (self._ended and not self._end_told):
                body = bytes(self._body)
                self._body.clear()
                self._end_told = self._ended
                self._room.set()
                if body:
                    await self._taken(len(body))
                return {"type": "http.request", "body": body, "more_body": not self._ended}
            if self._gone:
                return {"type": "http.disconnect"}
            await self._asked()
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """Let nobody wait any more: the application has ended."""
        self._closed = True
        self._room.set()


class Calls:
    """Calls the application, for the streams of a connection; what Hypercorn calls a task group.

    Args:
        group: Owns the calls.
        new_inbox: Makes what a call receives from.
        write_now: Given to the application as `WRITE_NOW`.
    """

    def __init__(
        self,
        group: asyncio.TaskGroup,
        new_inbox: Callable[[], Inbox],
        write_now: WriteNow | None = None,
    ) -> None:
        self._group = group
        self._new_inbox = new_inbox
        self._write_now = write_now

    def spawn(self, func: Callable[..., Any], *args: Any) -> None:
        """Run something until the connection ends."""
        self._group.create_task(func(*args))

    async def spawn_app(self, app: Any, _config: Config, scope: Scope, send: AppSend) -> Put:
        """Call the application for one request; return where its messages go."""
        inbox = self._new_inbox()
        if self._write_now is not None:
            cast(Any, scope)["extensions"][WRITE_NOW] = self._write_now
        self._group.create_task(_call(cast(Application, app), scope, inbox, send))
        return inbox.put


async def _call(app: Application, scope: Scope, inbox: Inbox, send: AppSend) -> None:
    try:
        await app(scope, inbox.get, send)
    except Exception:  # of the application: one request's failure is not the connection's
        logger.exception("the application failed")
    finally:
        inbox.close()
        await send(None)
