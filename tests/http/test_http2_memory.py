"""A client that reads nothing over HTTP/2 costs the server next to nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.http.h2_client import http2
from tests.http.servers import PATIENCE_S, Address

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see memory"),
]

STREAMS = 100
WATCHED_S = 2.0
"""Seconds in which what grows has grown."""
MiB = 2**20
ENOUGH = 64 * MiB


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Flood:
    """The flooding server."""

    def __init__(self, address: Address, pid: int) -> None:
        self.address = address
        self._pid = pid

    def memory(self) -> int:
        """Bytes that are its own: in memory, and not shared with a file."""
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")


@asynccontextmanager
async def flooding(*options: str) -> AsyncGenerator[Flood]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.http.flood_server", *options),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            port = int(await process.stdout.readline())
            address = Address(host="127.0.0.1", port=port)
            await listens(address)
        yield Flood(address, process.pid)
    finally:
        process.kill()
        await process.wait()


async def listens(address: Address) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(address.host, address.port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return


async def growth(server: Flood, *, streams: int, watched_s: float = WATCHED_S) -> int:
    """Return by how many bytes streams that nobody reads make the server grow, if not `ENOUGH`."""
    async with http2(server.address, grants=False) as client:
        before = server.memory()
        numbers = [client.request("/") for _ in range(streams)]
        await client.until(lambda: all(client.streams[one].status == 200 for one in numbers))
        grown = 0
        until = asyncio.get_running_loop().time() + watched_s
        while grown < ENOUGH and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
            grown = server.memory() - before
        return grown


async def test_memory_stays_flat_for_a_client_that_grants_no_window() -> None:
    async with flooding() as server:
        assert await growth(server, streams=1) < 4 * MiB
        # One message of 64 KiB for each stream, which is the application's.
        assert await growth(server, streams=STREAMS) < 24 * MiB
        # And it was given back: the next hundred find room where those were.
        assert await growth(server, streams=STREAMS) < 8 * MiB


async def test_it_would_not_without_the_guard() -> None:
    """If this fails, Hypercorn has mended its flow control."""
    async with flooding("--plain") as server:
        assert await growth(server, streams=1, watched_s=PATIENCE_S / 2) >= ENOUGH
