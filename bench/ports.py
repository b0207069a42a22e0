"""A port for a program that cannot be told to take any that is free, nor tells that it has it."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import closing

PORTS = range(10_000, 32_000)
"""Below those that the kernel gives to whoever asks for any, and to every outgoing connection: of
them, one that is free now may be taken before the program comes to take it."""


def unused_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nobody listens, and which hardly anything else will take."""
    for port in random.sample(PORTS, 100):
        with closing(socket.socket()) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, port))
            except OSError:
                continue
            return port
    raise AssertionError("a hundred ports are taken")


async def listens(port: int) -> None:
    """Return once somebody listens on a port of this machine."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            await writer.wait_closed()
            return
