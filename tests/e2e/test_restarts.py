"""Servers that come after another, on the state that it left: the real CLI on the offline model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import OFFLINE, Server, eventually, running_server
from tests.e2e.sse import Client, Event, parse, text_of

WORD = "My word is Bluebird."
SLOW = "[[slow tokens=1000 delay_ms=20]]"


@contextmanager
def serving(folder: Path, *arguments: str) -> Generator[tuple[Server, Client]]:
    with running_server(folder, *OFFLINE, *arguments) as server, server.client() as client:
        yield server, client


def kill(server: Server) -> None:
    """Kill a server, and see that whatever it had started goes with it."""
    server.process.kill()
    server.process.wait()
    eventually(lambda: not server.marked(), "all processes are gone")


def read_until_cut(events: Iterator[Event]) -> list[Event]:
    """Read on until the connection breaks."""
    seen: list[Event] = []
    with suppress(httpx.TransportError):
        while (event := next(events, None)) is not None:
            seen.append(event)
    return seen


def read_until(client: Client, path: str, after: int, kind: str) -> list[Event]:
    """Read a session's log until an event of a kind."""
    seen: list[Event] = []
    with client.http.stream("GET", f"{path}/events?after={after}") as response:
        assert response.status_code == 200, response.read()
        for event in parse(response.iter_lines()):
            seen.append(event)
            if event.type == kind:
                return seen
    raise AssertionError(f"no {kind}: {seen}")


def private_directory(server: Server, path: str) -> Path:
    return server.folder / "state/offline/workspaces" / path.rpartition("/")[2]


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_a_conversation_goes_on_with_the_next_server(tmp_path: Path, killed: bool) -> None:
    with serving(tmp_path) as (server, client):
        path = f"/session/{client.post('/session/start', initial_prompt=WORD)['session_id']}"
        directory = private_directory(server, path)
        (directory / "kept").write_text("by the session")
        before = client.get(path)
        turns = client.get(f"{path}/turns")["turns"]
        once = client.post("/query", prompt="[[say Once.]]")
        if killed:
            kill(server)
    with serving(tmp_path) as (server, client):
        assert client.get(path) == {**before, "state": "hibernated"}
        assert client.get("/sessions")["count"] == 1
        assert not server.clis(), "it wakes when it is needed"
        assert client.get(f"{path}/turns")["turns"] == turns
        assert client.turn(once)["response"] == "Once."
        asked = time.monotonic()
        assert "Bluebird" in client.ask(path, "What is my word?")
        assert time.monotonic() - asked < 60
        assert (directory / "kept").read_text() == "by the session"
        client.delete(path)
        assert not directory.exists()
    with serving(tmp_path) as (_, client):
        client.get(path, expect=404)
        assert client.get("/sessions")["count"] == 0


def test_a_turn_that_a_killed_server_was_in_is_lost_with_its_text_and_nothing_else(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as (server, client), server.client() as other:
        path = f"/session/{client.post('/session/start', initial_prompt=WORD)['session_id']}"
        began = client.get(f"{path}/turns")["turns"][0]
        with other.open(path, SLOW) as running:
            seen = [next(running)]
            while "w160" not in seen[-1].data.get("content", ""):
                seen.append(next(running))
            kill(server)
            seen += read_until_cut(running)
    turn_id = seen[0].data["turn_id"]
    had = text_of(seen)
    last = max(one.id for one in seen if one.id is not None)
    with serving(tmp_path) as (_, client):
        turn = client.get(f"{path}/turns/{turn_id}")
        assert (turn["outcome"], turn["error"]["code"]) == ("lost", "crashed")
        # What is stored is behind by 250 ms at most, or a little more on a busy machine, and never
        # ahead of what was said.
        assert turn["response"].split()[:45] == [f"w{n}" for n in range(45)]
        assert had.startswith(turn["response"]) or turn["response"].startswith(had)
        first = client.get(f"{path}/turns")["turns"][0]
        assert first == began
        # A reader that comes back sees the end, and is told of what it cannot have any more.
        rest = read_until(client, path, last, "error")
        ids = [one.id for one in rest if one.type != "gap"]
        assert all(number is not None and number > last for number in ids), "no id means two things"
        assert rest[-1].data["turn_id"] == turn_id
        # One that lost its connection earlier gets what it missed, as it was.
        middle = next(one.id for one in seen if "w20" in one.data.get("content", "").split())
        assert middle is not None
        again = read_until(client, path, middle, "error")
        until_then = [one for one in seen if (one.id or 0) <= middle]
        assert text_of([*until_then, *again]) == turn["response"]
        # The conversation is whole but for the answer that was cut off.
        answer = client.ask(path, "What is my word?")
        assert "Bluebird" in answer
        assert SLOW in answer


def test_a_reader_is_sent_off_with_a_place_to_come_back_to(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, client), ThreadPoolExecutor(1) as pool:
        path = f"/session/{client.post('/session/start', initial_prompt=WORD)['session_id']}"
        with client.http.stream("GET", f"{path}/events?after=0") as response:
            watching = pool.submit(read_until_cut, parse(response.iter_lines()))
            with server.client() as other:
                other.ask(path, "[[say One.]]")
            server.stop()
            seen = watching.result(60)
    bye = seen[-1]
    assert bye.type == "bye"
    after = bye.data["after"]
    assert after == max(one.id for one in seen if one.id is not None and one.type != "bye")
    with serving(tmp_path) as (_, client):
        client.ask(path, "[[say Two.]]")
        rest = read_until(client, path, after, "done")
        assert "gap" not in {one.type for one in rest}
        assert text_of(rest) == "Two."


def test_a_deploy_hands_over(tmp_path: Path) -> None:
    """The second server waits for the first one's state, and then has its port as well."""
    with serving(tmp_path) as (server, client):
        path = f"/session/{client.post('/session/start', initial_prompt=WORD)['session_id']}"
        port = server.url.rpartition(":")[2]
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(_hand_over, tmp_path, port, path)
            eventually(
                lambda: "has the state directory" in _log(tmp_path / "next"),
                "the second one waits",
            )
            assert client.get(path)["active"] is True
            server.process.terminate()
            assert server.process.wait(60) == 0
            assert "Bluebird" in starting.result(90)


def _log(folder: Path) -> str:
    file = folder / "stderr"
    return file.read_text() if file.exists() else ""


def _hand_over(folder: Path, port: str, path: str) -> str:
    state = f"--state-dir={folder / 'state'}"
    with (
        running_server(folder / "next", "--offline", f"--port={port}", state) as server,
        server.client() as client,
    ):
        assert server.url.endswith(port)
        return client.ask(path, "What is my word?")


def test_a_stopped_process_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain-timeout=1") as (server, client):
        path = f"/session/{client.post('/session/start', initial_prompt=WORD)['session_id']}"
        with client.open(path, SLOW) as running:
            next(event for event in running if event.type == "text")
            for pid in server.clis():
                os.kill(pid, signal.SIGSTOP)
            asked = time.monotonic()
            server.stop()
            took = time.monotonic() - asked
            assert [event.type for event in running][-1] in ("done", "error", "bye")
        assert took < 60, took
    with serving(tmp_path) as (_, client):
        assert "Bluebird" in client.ask(path, "What is my word?")
