"""What a protocol is told of its connection, and what its connection may ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from hypercorn.config import Config
from hypercorn.events import Event
from hypercorn.typing import ConnectionState, WorkerContext

from session_http.extensions import WriteNow
from session_http.inbox import Application


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may take, in seconds.

    Attributes:
        handshake_s: For the TLS handshake.
        head_s: For the head of a request, from its first byte, and for the first byte of all.
        idle_s: Without any request before the server closes. Longer than the usual 60 s of
            proxies: who closes first must not be us.
        unread_s: That a client may leave unread what was sent.
        linger_s: From our end of a connection until it is closed, for the client to have read
            what was sent last.
    """

    handshake_s: float = 10.0
    head_s: float = 30.0
    idle_s: float = 75.0
    unread_s: float = 60.0
    linger_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One connection, as its protocol sees it.

    Attributes:
        app: Called for every request.
        config: Hypercorn's settings.
        context: Says whether the server ends.
        group: Owns what runs for the connection.
        state: The server's state, copied into every request's scope.
        ssl: Whether it is encrypted.
        client: Its address.
        server: Ours.
        http2: Whether it may become HTTP/2.
        limits: What it may take.
        send: Takes bytes for the client, the end, and news of being idle.
        write_now: Takes bytes for the client if that has read all before, and says whether it did.
    """

    app: Application
    config: Config
    context: WorkerContext
    group: asyncio.TaskGroup
    state: ConnectionState
    ssl: bool
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    http2: bool
    limits: ConnectionLimits
    send: Callable[[Event], Awaitable[None]]
    write_now: WriteNow


def hypercorn_settings() -> Config:
    """Return what Hypercorn's part of every connection is set to."""
    config = Config()
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    # The 1,000th request of a connection would close it, whatever else happens on it.
    config.keep_alive_max_requests = 1 << 31
    return config


class WireProtocol(Protocol):
    """HTTP in one of its versions."""

    async def handle(self, event: Event) -> None:
        """Take what the client sent, or that it is gone."""
        ...

    async def expire(self, *, partial: bool) -> None:
        """End the connection, on which nothing is being answered."""
        ...
