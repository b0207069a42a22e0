"""What a connection took is freed as it ends: nothing of it waits for the collector of cycles."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from session_http.accept import Acceptor
from tests.http.h2_client import http2
from tests.http.servers import BOTH_LOOPS, Address, eventually, on_hypercorn, world
from tests.http.test_serve import connected, post, script
from tests.support.freed import uncollected

pytestmark = pytest.mark.anyio

Visit: TypeAlias = Callable[[Address], Awaitable[None]]

VISITS = 3

QUESTION = b'{"prompt": "hello", "stream": true}'


@pytest.fixture(params=BOTH_LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Both loops: they end connections in their own ways."""
    return request.param


async def look(address: Address) -> None:
    async with connected(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") as client:
        await client.reader.readuntil(b"\r\n\r\n")


async def be_closed_upon(address: Address) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with connected(address, request) as client:
        await client.reader.read()


async def ask(address: Address) -> None:
    async with connected(address, post("/query", QUESTION)) as client:
        await client.reader.readuntil(b"\r\n0\r\n\r\n")


async def cut(address: Address) -> None:
    async with connected(address, post("/query", QUESTION)) as client:
        await client.reader.readuntil(b"\r\n\r\n")
        end = client.writer.get_extra_info("socket")
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def ask_by_http2(address: Address) -> None:
    async with http2(address) as client:
        assert (await client.get("/health")).status == 200
        assert (await client.answer(client.post("/query", QUESTION))).status == 200


VISITORS = (look, be_closed_upon, ask, cut, ask_by_http2)


@pytest.mark.parametrize("visit", VISITORS, ids=lambda one: one.__name__)
async def test_nothing_of_a_connection_is_left_in_cycles(visit: Visit) -> None:
    async with world(script) as one, on_hypercorn(one) as address:
        await visits(address, visit)
        with uncollected() as found:
            await visits(address, visit)
    assert not found


async def visits(address: Address, visit: Visit) -> None:
    """Make some, and wait until the server has done with them."""
    for _ in range(VISITS):
        await visit(address)
    serving = Acceptor._serve.__qualname__  # pyright: ignore[reportPrivateUsage]
    await eventually(lambda: not any(serving in repr(task) for task in asyncio.all_tasks()))
