"""Accepts connections, never more than it may, and turns away the others with an answer.

asyncio's own servers take whatever comes. Out of file descriptors, they try again as fast as they
can and say so each time; and a client in the middle of a TLS handshake is in nobody's books.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from session_http.connection import Connection
from session_http.encoding import dump
from session_http.inbox import Application
from session_http.problems import Problem
from session_http.tls import Tls
from session_http.wire import ConnectionLimits

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 10_000

TURNED_AWAY = 64
"""Connections at a time that are turned away with time to read why; any others are told and cut."""

AT_ONCE = 16
"""Connections that are accepted in one step of the event loop."""

ANSWER_S = 1.0
"""Seconds for a client that is turned away to read why."""

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def connections_for(files: int | None) -> int:
    """Return how many connections to allow a process that may have so many open files.

    The rest is for the sessions' processes, which take several each.
    """
    if files is None:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, files - min(files // 2, max(256, files // 4)))


class Acceptor:
    """The connections of a server.

    Args:
        app: Called for every request.
        config: Hypercorn's settings.
        limits: How long things may take on a connection.
        most: Connections at the same time.
        tls: The certificate; None: nothing is encrypted.
        http2: Whether they may be HTTP/2.
    """

    def __init__(
        self,
        app: Application,
        config: Config,
        limits: ConnectionLimits,
        *,
        most: int,
        tls: Tls | None,
        http2: bool,
    ) -> None:
        self._app = app
        self._config = config
        self._limits = limits
        self._most = most
        self._tls = tls
        self._http2 = http2
        self._context = WorkerContext(None)
        self._open: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._turned_away = 0
        self._spare = _Spare()
        if tls is not None:
            tls.offer(["h2", "http/1.1"] if http2 else ["http/1.1"])

    async def accept(self, listener: socket.socket, group: asyncio.TaskGroup) -> None:
        """Accept connections until cancelled.

        Args:
            listener: Where they come in.
            group: Owns them.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _OUT_OF_FILES:
                    await self._do_without_files(listener, group, error)
                else:  # it was gone before we came to it
                    logger.debug("a connection was not accepted: %r", error)
                continue
            self._let_in(client, group)
            # With those inside busy it may be long until the next step of the event loop: nobody
            # must wait outside for so many of them as there are in front of him.
            with contextlib.suppress(OSError):  # which the next call meets again
                for _ in range(AT_ONCE - 1):
                    client, _ = listener.accept()
                    self._let_in(client, group)
            # A crowd at the door must not keep those inside from being served.
            await asyncio.sleep(0)

    def _let_in(self, client: socket.socket, group: asyncio.TaskGroup) -> None:
        """Serve a client, or tell it that there is no room."""
        if len(self._open) < self._most:
            task = group.create_task(self._serve(client))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        elif self._turned_away < TURNED_AWAY:
            group.create_task(self._turn_away(client))
        else:
            self._dismiss(client)

    async def close(self, within_s: float) -> None:
        """End every connection, those that are busy once they have their answer.

        Args:
            within_s: Seconds for that, before they are cut.
        """
        await self._context.terminated.set()
        for connection in tuple(self._connections):
            connection.finish()
        if self._open:
            await asyncio.wait(self._open, timeout=within_s)
        for connection in self._connections:
            connection.abort()
        for task in self._open:
            task.cancel()
        self._spare.close()

    async def _serve(self, client: socket.socket) -> None:
        connection: Connection | None = None
        try:
            connection = await self._connect(client)
            self._connections.add(connection)
            await connection.run()
        except* OSError as group:  # the client is gone, or its handshake came to nothing
            logger.debug("a connection ended: %r", group)
        except* Exception:  # of a protocol's library: one connection's is not the others'
            logger.exception("a connection failed")
        finally:
            if connection is not None:
                self._connections.discard(connection)

    async def _connect(self, client: socket.socket) -> Connection:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, client)
            else:
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol,
                    client,
                    ssl=self._tls.context,
                    ssl_handshake_timeout=self._limits.handshake_s,
                    ssl_shutdown_timeout=self._limits.linger_s,
                )
        except BaseException:
            client.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return Connection(
            self._app,
            self._config,
            self._context,
            self._limits,
            reader,
            writer,
            http2=self._http2,
        )

    async def _turn_away(self, client: socket.socket) -> None:
        """Say that there is no room, as far as the client can be told."""
        loop = asyncio.get_running_loop()
        self._turned_away += 1
        try:
            # Encrypting it would cost as much as serving.
            if self._tls is None:
                client.setblocking(False)
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(ANSWER_S):
                        await loop.sock_sendall(client, _no_room())
                        client.shutdown(socket.SHUT_WR)
                        while await loop.sock_recv(client, 65_536):
                            pass
        finally:
            self._turned_away -= 1
            client.close()
            self._spare.take()  # at once, or a connection would have what it was lent

    def _dismiss(self, client: socket.socket) -> None:
        """Say so without waiting; whoever has not asked yet may only see that it is cut off."""
        with client, contextlib.suppress(OSError):
            if self._tls is None:
                client.setblocking(False)
                client.send(_no_room())
                client.shutdown(socket.SHUT_WR)
                # What is left unread would have the kernel take the answer back.
                client.recv(65_536)

    async def _do_without_files(
        self, listener: socket.socket, group: asyncio.TaskGroup, error: OSError
    ) -> None:
        """Out of file descriptors: turn one client away by means of a spare one."""
        self._spare.complain(error)
        client: socket.socket | None = None
        if self._spare.give_up():
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
        if client is not None and self._spare.is_left:
            group.create_task(self._turn_away(client))
            return
        if client is not None:  # the last one is for those whom nobody waits for
            self._dismiss(client)
        self._spare.take()
        # The error says nothing of whether anybody is at the door.
        await asyncio.sleep(0.01)


class _Spare:
    """File descriptors that are kept for when there are no others, and how it is spoken of.

    Several, because a client takes its time to read why it is turned away.
    """

    MOST = 4
    EVERY_S = 10.0

    def __init__(self) -> None:
        self._files: list[int] = []
        self._most = self.MOST
        self._complained = float("-inf")
        self.take()

    @property
    def is_left(self) -> bool:
        """Whether there is one."""
        return bool(self._files)

    def take(self) -> None:
        """Have all of them again, as far as there are any."""
        with contextlib.suppress(OSError):
            while len(self._files) < self._most:
                self._files.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def give_up(self) -> bool:
        """Free one for a moment; return whether there was one."""
        if not self._files:
            return False
        os.close(self._files.pop())
        return True

    def close(self) -> None:
        """Free them, for good."""
        self._most = 0
        while self.give_up():
            pass

    def complain(self, error: OSError) -> None:
        """Log it, though not each time."""
        now = asyncio.get_running_loop().time()
        if now - self._complained >= self.EVERY_S:
            self._complained = now
            logger.warning(
                "clients are turned away: %s. Raise the limit of open files (ulimit -n).",
                error.strerror,
            )


def _no_room() -> bytes:
    problem = Problem(
        code="too_many_connections",
        detail="The server has as many connections as it may have. Try again later.",
        retry_after=5.0,
    )
    body = dump(problem.body())
    return (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nRetry-After: 5\r\nConnection: close\r\n\r\n" % len(body)
    ) + body
