"""`DELETE` answers when nothing of a session is left, however far it ran, and says how it ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import OFFLINE, SHARED, Server, eventually, pids, read_proc, running_server
from tests.e2e.sse import Client

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

BOUND_S = 60.0
"""Seconds in which any of them must be gone, on a busy machine; they would stay for far longer."""

DOUBLE_FORK = (
    "import os, sys\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        os.chdir('/')\n"
    "        os.closerange(0, 3)\n"
    "        os.execlp('sleep', *sys.argv[1:])\n"
    "    os._exit(0)\n"
    "os.wait()\n"
)
LIMITED = resource.getrlimit(resource.RLIMIT_RTTIME)[1] != resource.RLIM_INFINITY

needs_the_limit = pytest.mark.skipif(LIMITED, reason="this process has the limit already")

WAYS = [
    pytest.param("setsid nohup {} > /dev/null 2>&1 & disown", id="disowned"),
    pytest.param("({} &)", id="subshell"),
    pytest.param(f'python3 -c "{DOUBLE_FORK}" {{}}', id="double fork"),
    pytest.param("trap '' TERM HUP INT; (setsid {} &)", id="deaf"),
    pytest.param("(env -i setsid {} &)", id="cleared environment", marks=needs_the_limit),
    pytest.param(
        f'env -i /usr/bin/env python3 -c "{DOUBLE_FORK}" {{}}',
        id="cleared environment, double fork",
        marks=needs_the_limit,
    ),
    pytest.param(
        "(env SESSION_SUPERVISOR_MARKER=none setsid {} &)",
        id="another marker",
        marks=needs_the_limit,
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), *SHARED) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


class Sleeper:
    """A command that sleeps, and can be told from all others."""

    def __init__(self) -> None:
        self._name = f"0.{uuid.uuid4().int}"
        self.command = f"sleep 1000 {self._name}"

    def run(self, way: str) -> str:
        """Return a prompt that starts it some way, as a tool of the CLI's."""
        command = f"{way.format(self.command)}; echo started"
        return f"[[tool Bash {json.dumps({'command': command, 'description': 'd'})}]] [[result]]"

    def live(self) -> list[int]:
        """Return the processes that are it."""
        return [pid for pid in pids() if self._is(pid)]

    def _is(self, pid: int) -> bool:
        arguments = read_proc(pid, "cmdline").split(b"\0")
        return arguments[:2] == [b"sleep", b"1000"] and self._name.encode() in arguments

    def started(self) -> int:
        """Return its id once it runs."""
        eventually(self.live, "it runs", within_s=BOUND_S)
        (pid,) = self.live()
        return pid


def closed(client: Client, path: str) -> dict[str, Any]:
    """Delete a session in time, and return how its process ended."""
    began = time.monotonic()
    exit_: dict[str, Any] = client.delete(path)["exit"]
    assert time.monotonic() - began < BOUND_S
    return exit_


def pid_of(client: Client, path: str) -> int:
    pid: int = client.get(f"{path}/inspect")["pid"]
    return pid


def start(client: Client, **fields: Any) -> str:
    started = client.post("/session/start", allowed_tools=["Bash"], **fields)
    return f"/session/{started['session_id']}"


@pytest.mark.parametrize("way", WAYS)
def test_nothing_that_a_session_started_outlives_its_delete(client: Client, way: str) -> None:
    path, sleeper = start(client), Sleeper()
    assert "started" in client.ask(path, sleeper.run(way))
    pid = sleeper.started()
    found = client.get(f"{path}/inspect")
    members = {one["pid"]: one for one in found["processes"]}
    assert (members[pid]["name"], members[pid]["parent"] in members) == ("sleep", False)
    assert members[found["pid"]]["pss_bytes"] > 10e6
    assert found["pss_bytes"] == sum(one["pss_bytes"] for one in found["processes"])
    ended = closed(client, path)
    assert sleeper.live() == [], "right after the answer"
    assert ended == {"code": 0, "signal": None, "cause": "It was stopped."}


@needs_the_limit
def test_what_a_killed_process_had_disowned_is_gone_before_the_next_one_starts(
    client: Client,
) -> None:
    path, sleeper = start(client), Sleeper()
    client.ask(path, sleeper.run("(env -i setsid {} &)"))
    before = sleeper.started(), pid_of(client, path)
    os.kill(before[1], signal.SIGKILL)
    eventually(lambda: pid_of(client, path) not in (None, before[1]), "restart", within_s=BOUND_S)
    assert sleeper.live() == []
    closed(client, path)


def test_a_stopped_process_is_killed(client: Client) -> None:
    path, sleeper = start(client), Sleeper()
    client.ask(path, sleeper.run("(setsid {} &)"))
    stopped = pid_of(client, path)
    for pid in (sleeper.started(), stopped):
        os.kill(pid, signal.SIGSTOP)
    ended = closed(client, path)
    assert (ended["code"], ended["signal"]) == (None, "SIGKILL")
    assert not read_proc(stopped, "stat")
    assert sleeper.live() == []


def test_a_process_that_stops_in_the_middle_of_a_turn_is_killed(client: Client) -> None:
    path, sleeper = start(client), Sleeper()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.http.post, f"{path}/query", json={"prompt": sleeper.run("{}")})
        sleeper.started()
        stopped = pid_of(client, path)
        os.kill(stopped, signal.SIGSTOP)
        ended = closed(client, path)
        assert ended["signal"] == "SIGKILL"
        assert sleeper.live() == []
        assert asking.result().json()["code"] == "closed"
    assert not read_proc(stopped, "stat")


def test_a_process_that_was_just_killed_ended_by_that(client: Client) -> None:
    path = start(client)
    client.ask(path, "Hello.")
    os.kill(pid_of(client, path), signal.SIGKILL)
    ended = closed(client, path)
    assert (ended["code"], ended["signal"]) == (None, "SIGKILL")
    assert "killed by signal 9" in ended["cause"]


def test_a_session_that_wakes_leaves_nothing(server: Server, client: Client) -> None:
    path = start(client, initial_prompt="Hello.")
    others = server.clis() - {pid_of(client, path)}
    client.post(f"{path}/hibernate")
    eventually(lambda: client.get(f"{path}/inspect")["state"] == "hibernated", "", within_s=BOUND_S)
    assert client.get(f"{path}/inspect")["processes"] == []
    client.post(f"{path}/wake")
    ended = closed(client, path)
    assert server.clis() <= others
    assert (ended["code"], ended["signal"]) == (None, None)
    assert ended["cause"] == "given up before it was up"


def test_a_hibernated_session_had_no_process(client: Client) -> None:
    path = start(client, initial_prompt="Hello.")
    client.post(f"{path}/hibernate")
    eventually(lambda: client.get(f"{path}/inspect")["state"] == "hibernated", "", within_s=BOUND_S)
    assert closed(client, path) is None


def test_the_whole_tree_has_every_process_of_every_session(client: Client) -> None:
    paths = [start(client) for _ in range(2)]
    sleepers = [Sleeper() for _ in paths]
    for path, sleeper in zip(paths, sleepers, strict=True):
        client.ask(path, sleeper.run("(setsid {} &)"))
    inside = {
        f"/session/{one['session_id']}": one["inside"]
        for one in client.get("/supervisor")["sessions"]
    }
    for path, sleeper in zip(paths, sleepers, strict=True):
        assert sleeper.started() in {one["pid"] for one in inside[path]["processes"]}
        assert inside[path]["processes"][0]["pid"] == inside[path]["pid"]
        assert inside[path]["lanes"] == {"control": 0, "work": 0}
        closed(client, path)


def test_a_server_that_is_told_to_stop_leaves_nothing_of_stopped_processes(tmp_path: Path) -> None:
    with running_server(tmp_path, *OFFLINE) as server, server.client() as client:
        paths = [start(client) for _ in range(2)]
        sleepers = [Sleeper() for _ in paths]
        for path, sleeper in zip(paths, sleepers, strict=True):
            client.ask(path, sleeper.run("({} &)"))
            sleeper.started()
            os.kill(pid_of(client, path), signal.SIGSTOP)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < BOUND_S
        assert not [pid for sleeper in sleepers for pid in sleeper.live()]


@needs_the_limit
def test_what_a_killed_server_leaves_with_a_cleared_environment_is_ended_by_the_next(
    tmp_path: Path,
) -> None:
    sleeper = Sleeper()
    with running_server(tmp_path, *OFFLINE) as server, server.client() as client:
        client.ask(start(client), sleeper.run("(env -i setsid {} &)"))
        pid = sleeper.started()
        server.process.kill()
        server.process.wait()
    assert sleeper.live() == [pid]
    with running_server(tmp_path, *OFFLINE):
        assert sleeper.live() == []
