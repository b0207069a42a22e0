"""The pool of a server, as its operator sees it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.e2e.server import OFFLINE, eventually, running_server
from tests.e2e.sse import Client

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


def pool_of(client: Client) -> dict[str, object]:
    pool: dict[str, object] = client.get("/supervisor")["pool"]
    return pool


def test_one_offs_share_a_process_which_ends_with_the_server(tmp_path: Path) -> None:
    with running_server(tmp_path, *OFFLINE) as server, server.client() as client:
        for number in range(3):
            answer = client.post("/query", prompt=f"Is it {number}?")["response"]
            assert "the first thing you said" in answer
            eventually(lambda: pool_of(client)["ready"] == 1, "its process came back")
        pool = pool_of(client)
        assert (pool["hits"], pool["misses"], pool["recycled"]) == (2, 1, 3)
        assert len(server.clis()) == 1
        assert client.get("/supervisor")["live"] == 1


def test_a_successor_ends_what_stood_ready_and_could_not_hear_of_it(tmp_path: Path) -> None:
    with running_server(tmp_path, *OFFLINE) as server, server.client() as client:
        client.post("/query", prompt="Is it so?")
        eventually(lambda: pool_of(client)["ready"] == 1, "its process came back")
        left = server.clis()
        for pid in left:
            os.kill(pid, signal.SIGSTOP)
        server.process.kill()
        server.process.wait()
        assert server.clis() == left, "a stopped process takes no signal but the last"
    with running_server(tmp_path, *OFFLINE) as server, server.client() as client:
        assert not server.clis() & left
        assert "the first thing you said" in client.post("/query", prompt="And now?")["response"]


def test_a_server_stops_in_time_with_a_process_that_hangs_in_its_pool(tmp_path: Path) -> None:
    with running_server(tmp_path, *OFFLINE) as server, server.client() as client:
        client.post("/query", prompt="Is it so?")
        eventually(lambda: pool_of(client)["ready"] == 1, "its process came back")
        for pid in server.clis():
            os.kill(pid, signal.SIGSTOP)
        server.stop()


def test_the_answer_comes_before_its_process_does(tmp_path: Path) -> None:
    with running_server(tmp_path, *OFFLINE) as server, server.client() as client:
        for _ in range(20):
            before = pool_of(client)["recycled"]
            client.post("/query", prompt="Is it so?")
            # What proves the process clean takes tens of milliseconds, and nobody waits for it; nor
            # does anybody always look in time, on a busy machine.
            found = pool_of(client)["recycled"]
            eventually(lambda: pool_of(client)["ready"] == 1, "it came back")
            if found == before != pool_of(client)["recycled"]:
                return
    pytest.fail("each answer came after its process")


def test_without_a_pool_there_is_nothing_to_tell(tmp_path: Path) -> None:
    with running_server(tmp_path, *OFFLINE, "--no-pool") as server, server.client() as client:
        assert client.get("/supervisor")["pool"] is None
