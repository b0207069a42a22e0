"""Readers that are slower than what they read, on connections that keep little for them.

On loopback the kernel keeps megabytes of a connection whose client does not read, and the server
would not notice within minutes. Small segments and a small buffer of the client make it notice.
"""

from __future__ import annotations

import asyncio
import socket
import time

from bench.suite.wire import HEAD_END, Chunks, Exchange, Failed

BUFFER = 16 * 1024
"""Bytes that the kernel is to keep on the reader's side."""

SEGMENT = 1448
"""Bytes that the server's kernel sends at once: by them it reckons how much it keeps."""

PIECE = 8 * 1024
"""Bytes that are read at once."""


class SlowReader:
    """One connection, with one stream.

    Args:
        request: Sent at once; all of it.
        bytes_s: Read in a second, once it reads.
    """

    def __init__(self, request: bytes, *, bytes_s: float) -> None:
        self._request = request
        self._pause_s = PIECE / bytes_s
        self._raw: list[tuple[int, bytes]] = []

    async def run(self, address: tuple[str, int], *, begin_s: float, end_s: float) -> Exchange:
        """Ask, read nothing at first, then slowly, and in the end all that is left.

        Args:
            address: Of the server.
            begin_s: When it begins to read, on the monotonic clock.
            end_s: When it begins to read what is left.

        Raises:
            Failed: The answer ended before its end.
        """
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
            await loop.sock_connect(connection, address)
            await loop.sock_sendall(connection, self._request)
            chunks, exchange, head = Chunks(), Exchange(sent_ns=time.monotonic_ns()), b""
            due = begin_s
            while not chunks.over:
                now = time.monotonic()
                if now < end_s:
                    await asyncio.sleep(max(due - now, 0))
                    due += self._pause_s
                try:
                    data = await loop.sock_recv(connection, PIECE if now < end_s else 65_536)
                except OSError:
                    data = b""
                if not data:
                    raise Failed("connection lost")
                at = time.monotonic_ns()
                if not exchange.status:
                    head += data
                    told, found, data = head.partition(HEAD_END)
                    if not found:
                        continue
                    exchange.status = int(told.split(b" ", 2)[1])
                exchange.pieces.append((at, chunks.feed(data)))
        return exchange
