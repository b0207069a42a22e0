"""The real server, with the real CLI, when there are hardly any file descriptors."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.server import OFFLINE, Server, running_server
from tests.http.hostile.client import HEALTH, Answer, Connection, ask, connected, post
from tests.http.servers import Address, eventually

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see descriptors"),
]

FEW = 64
POOLED = 6
"""Descriptors that a process of the pool takes, a little more than it does."""

RESTARTS_S = 30.0
"""Seconds in which a session has tried often enough to start its process."""

QUERY = post(b"/query", b'{"prompt": "[[say Hello.]]"}')


@pytest.fixture(params=[(), ("--no-pool",)], ids=["pool", "no pool"])
async def server(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncGenerator[Server]:
    with running_server(tmp_path, *OFFLINE, *request.param, files=FEW) as server:
        yield server


def address_of(server: Server) -> Address:
    parts = urlsplit(server.url)
    assert parts.port is not None
    return Address(host="127.0.0.1", port=parts.port)


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def seconds_of_cpu(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def settled(server: Server) -> None:
    """Wait until no process comes or goes any more: one that ends makes room for connections."""
    assert isinstance(server.process.args, list)
    if "--no-pool" in server.process.args:
        await eventually(lambda: not server.clis())
    before, since = None, 0.0
    while (now := (server.clis(), descriptors(server))) != before or time.monotonic() < since + 1.0:
        if now != before:
            before, since = now, time.monotonic()
        await asyncio.sleep(0.1)


async def told(line: Connection, data: bytes) -> Answer:
    line.say(data)
    return await line.answer()


async def test_a_server_without_descriptors_says_so_and_recovers(server: Server) -> None:
    address = address_of(server)
    # Once, so that nothing is left to be loaded.
    assert (await ask(address, QUERY)).status == 200
    await settled(server)
    # A process of the pool may be there by then, or another one later.
    most = descriptors(server) + POOLED
    async with AsyncExitStack() as stack:
        inside = await stack.enter_async_context(connected(address, HEALTH))
        assert (await inside.answer()).status == 200
        lines = [
            await stack.enter_async_context(connected(address, b"GET /hea")) for _ in range(2 * FEW)
        ]
        # Whoever was in before goes on being served.
        assert (await told(inside, HEALTH)).status == 200
        began = time.monotonic()
        refused = await told(inside, QUERY)
        assert time.monotonic() - began < RESTARTS_S
        assert (refused.status, refused.json["code"]) in (
            (502, "start_failed"),
            (503, "at_capacity"),
            (503, "no_workspace"),
        )
        # Whoever comes now is told to come back, or is not heard; either way at once.
        turned_away = await ask(address, HEALTH)
        assert (turned_away.status, turned_away.json["code"]) == (503, "too_many_connections")
        assert turned_away.fields["retry-after"]
        spent = seconds_of_cpu(server)
        await asyncio.sleep(1.0)
        assert seconds_of_cpu(server) - spent < 0.5, "it spins"
        for line in lines:
            line.reset()
    await eventually(lambda: descriptors(server) <= most)
    assert (await ask(address, HEALTH)).status == 200
    answer = await ask(address, QUERY)
    assert (answer.status, answer.json["response"]) == (200, "Hello.")
    await eventually(lambda: descriptors(server) <= most)
    assert len(server.log()) < 20_000, "it floods its log"
