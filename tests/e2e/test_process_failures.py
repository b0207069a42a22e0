"""Processes die, freeze and babble: callers are told, siblings go on, the session comes back."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from session_supervisor.agents.claude.launch import find_cli
from tests.e2e.offline import offline_model
from tests.e2e.server import OFFLINE, eventually, read_proc, running_server
from tests.e2e.sse import Client, Event, Streamed, answer, streamed
from tests.e2e.world import PROCESS_HANGS, QUICK, World, running_world

pytestmark = pytest.mark.e2e

BOUND_S = 60.0
SLOW = "[[slow tokens=4000 delay_ms=50]]"
MARK = uuid.uuid4().hex
SLEEP = "[[tool Bash {}]]".format(
    json.dumps(
        {
            "command": f"python3 -c 'import time; time.sleep(60)' {MARK}",
            "description": "sleeps",
        }
    )
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("world"), watchdogs=PROCESS_HANGS) as world:
        yield world


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with world.client() as client:
        yield client


@contextmanager
def remembering(
    client: Client, world: World, *, restarts: int = 1, **fields: object
) -> Generator[str]:
    """Have a session that loses its process in between, and comes back with all that it knew."""
    word = uuid.uuid4().hex
    with client.session(initial_prompt=f"Remember {word}.", **fields) as path:
        before, began = world.pid(path), time.monotonic()
        yield path
        assert time.monotonic() - began < BOUND_S
        assert client.get(path)["active"] is True
        assert word in client.ask(path, "What did I say?"), "the next query has the context"
        assert time.monotonic() - began < 2 * BOUND_S
        assert world.inspect(path).restarts == restarts
        assert world.pid(path) != before
        assert not read_proc(before, "stat"), "the old process is gone"


@contextmanager
def unhurt(client: Client, world: World) -> Generator[None]:
    """Have a sibling in the middle of a turn meanwhile, which must not notice anything."""
    with client.session(initial_prompt="Hello.") as path:
        pid = world.pid(path)
        with client.open(path, "[[slow tokens=25 delay_ms=40]]") as events:
            first_text(events)
            yield
            end = list(events)[-1].data
        assert (end["type"], end["outcome"]) == ("done", "completed")
        assert end["response"].startswith("w0 w1 ")
        assert end["response"].endswith(" w23 w24")
        assert (world.pid(path), world.inspect(path).restarts) == (pid, 0)


def first_text(events: Iterator[Event]) -> Event:
    return next(event for event in events if event.type == "text")


def children() -> set[int]:
    """Return the processes of the tool that sleeps."""
    return {
        int(name)
        for name in os.listdir("/proc")
        if name.isdigit()
        and MARK.encode() in read_proc(int(name), "cmdline")
        and b"stream-json" not in read_proc(int(name), "cmdline")
    }


def ended_with_a_crash(got: Streamed) -> None:
    assert (got.end["type"], got.end["outcome"], got.end["code"]) == ("error", "lost", "crashed")
    assert got.end["retryable"] is True
    assert got.text == got.end["response"]


# -- killed and stopped ------------------------------------------------------------------------


def test_a_session_whose_process_is_killed_when_idle_comes_back(
    world: World, client: Client
) -> None:
    with remembering(client, world) as path, client.http.stream("GET", f"{path}/events") as log:
        os.kill(world.pid(path), signal.SIGKILL)
        states = (event.data["state"] for event in streamed(log) if event.type == "status")
        assert list(islice(states, 4)) == ["idle", "restarting", "starting", "idle"]
        assert client.get(path)["active"] is True


def test_a_turn_whose_process_is_killed_is_lost_and_the_one_behind_it_runs(
    world: World, client: Client
) -> None:
    with (
        remembering(client, world) as path,
        unhurt(client, world),
        client.open(path, SLOW) as events,
        client.open(path, "[[say Mine ran.]]") as behind,
    ):
        began = [first_text(events)]
        assert next(behind).data["position"] == 1
        os.kill(world.pid(path), signal.SIGKILL)
        got = Streamed(events=(*began, *events))
        ended_with_a_crash(got)
        assert got.text.startswith("w0")
        turn = client.turn(got.end)
        assert (turn["outcome"], turn["response"]) == ("lost", got.text)
        assert list(behind)[-1].data["response"] == "Mine ran."


def test_a_process_that_is_killed_in_a_tool_takes_the_tool_along(
    world: World, client: Client
) -> None:
    with (
        remembering(client, world, allowed_tools=["Bash"]) as path,
        ThreadPoolExecutor(1) as pool,
        client.http.stream("GET", f"{path}/events") as log,
    ):
        reply = pool.submit(client.http.post, f"{path}/query", json={"prompt": SLEEP})
        next(event for event in streamed(log) if event.type == "tool_use")
        eventually(children, "the tool runs")
        os.kill(world.pid(path), signal.SIGKILL)
        body = answer(reply.result(), 502)
        assert body["code"] == "crashed"
        assert client.turn(body)["outcome"] == "lost"
        eventually(lambda: not children(), "the tool's process is gone")


def test_a_one_off_whose_process_is_killed_ends_in_an_error(world: World, client: Client) -> None:
    with client.open("", SLOW) as events:
        began = next(events)
        first_text(events)
        os.kill(world.pid(began.data["session_id"]), signal.SIGKILL)
        end = list(events)[-1].data
    assert (end["type"], end["code"]) == ("error", "crashed")
    assert client.turn(end)["outcome"] == "lost"


def test_a_process_that_was_stopped_when_idle_fails_its_next_turn_and_is_replaced(
    world: World, client: Client
) -> None:
    with remembering(client, world) as path:
        os.kill(world.pid(path), signal.SIGSTOP)
        assert client.post(f"{path}/query", prompt="Hello?", expect=502)["code"] == "crashed"


def test_a_process_that_is_stopped_in_a_turn_is_noticed_and_replaced(
    world: World, client: Client
) -> None:
    with (
        remembering(client, world) as path,
        unhurt(client, world),
        client.open(path, SLOW) as events,
    ):
        began = [first_text(events)]
        os.kill(world.pid(path), signal.SIGSTOP)
        ended_with_a_crash(Streamed(events=(*began, *events)))


def test_a_session_whose_process_dies_too_often_fails_and_only_that_one(tmp_path: Path) -> None:
    restarts = replace(QUICK, max_restarts=1)
    with (
        running_world(tmp_path, watchdogs=PROCESS_HANGS, restarts=restarts) as world,
        world.client() as client,
        unhurt(client, world),
        client.session(initial_prompt="Hello.") as path,
        client.http.stream("GET", f"{path}/events") as log,
    ):
        states = (event.data["state"] for event in streamed(log) if event.type == "status")
        os.kill(world.pid(path), signal.SIGKILL)
        assert list(islice(states, 3)) == ["idle", "restarting", "starting"]
        while (pid := world.inspect(path).pid) is None:
            continue
        os.kill(pid, signal.SIGKILL)
        assert list(islice(states, 2)) == ["idle", "failed"]
        assert client.get(path)["active"] is False
        assert path[9:] not in client.get("/sessions")["active_sessions"]
        body = client.post(f"{path}/query", prompt="Hello?", expect=409)
        assert body["code"] == "session_failed"


# -- other programs ------------------------------------------------------------------------------


def program(folder: Path, script: str) -> Path:
    """Write a program in Python."""
    path = folder / "cli"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param("raise SystemExit('out of luck')", "out of luck", id="exits"),
        pytest.param("print('{garbage', flush=True); input()", "not JSON", id="garbage"),
        pytest.param("import time; time.sleep(60)", "1 s", id="silent"),
        pytest.param(None, "not where this server was told to find it", id="missing"),
    ],
)
def test_a_cli_that_does_not_start_is_a_typed_error_and_a_failed_session(
    tmp_path: Path, script: str | None, words: str
) -> None:
    cli = tmp_path / "nowhere" if script is None else program(tmp_path, script)
    watchdogs = replace(PROCESS_HANGS, start_s=1.0) if words == "1 s" else PROCESS_HANGS
    restarts = replace(QUICK, max_restarts=0)
    began = time.monotonic()
    with (
        running_world(tmp_path, watchdogs=watchdogs, restarts=restarts, cli_path=cli) as world,
        world.client() as client,
    ):
        body = client.post("/query", prompt="Hello?", expect=502)
        assert body["code"] == "start_failed"
        assert words in body["detail"]
        with client.session() as path:
            with client.http.stream("GET", f"{path}/events") as log:
                next(e for e in streamed(log) if e.data.get("state") == "failed")
            body = client.post(f"{path}/query", prompt="Hello?", expect=409)
            assert body["code"] == "session_failed"
            assert words in body["detail"]
            assert client.get(path)["active"] is False
    assert time.monotonic() - began < BOUND_S


BABBLER = """
import os, signal, subprocess, sys
cli = subprocess.Popen([{cli!r}, *sys.argv[1:]])
signal.signal(signal.SIGTERM, lambda *_: cli.terminate())
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"{{garbage\\n"))
signal.signal(signal.SIGUSR2, lambda *_: os.write(1, b"(diagnostics, as some builds print)\\n"))
sys.exit(cli.wait())
"""


def test_a_process_that_prints_garbage_is_replaced_and_one_that_prints_diagnostics_is_not(
    tmp_path: Path,
) -> None:
    babbler = program(tmp_path, BABBLER.format(cli=find_cli()))
    with (
        running_world(tmp_path, watchdogs=PROCESS_HANGS, cli_path=babbler) as world,
        world.client() as client,
        remembering(client, world) as path,
    ):
        os.kill(world.pid(path), signal.SIGUSR2)
        assert client.ask(path, "[[say I do not mind.]]") == "I do not mind."
        assert world.inspect(path).restarts == 0
        with client.open(path, SLOW) as events:
            began = [first_text(events)]
            os.kill(world.pid(path), signal.SIGUSR1)
            ended_with_a_crash(Streamed(events=(*began, *events)))


# -- the server ----------------------------------------------------------------------------------


def test_a_killed_server_takes_every_process_along(tmp_path: Path) -> None:
    """Idle, writing, with a running tool, and those that stand ready or come up.

    The upstream lives on, so nobody else ends them.
    """
    with (
        offline_model() as env,
        running_server(tmp_path / "server", "--port=0", env=env) as server,
        server.client() as client,
    ):
        assert client.get("/health")["authenticated"] is True
        assert client.get("/health")["offline"] is False
        client.post("/session/start", initial_prompt="Hello.")
        busy = f"/session/{client.post('/session/start')['session_id']}"
        tool = f"/session/{client.post('/session/start', allowed_tools=['Bash'])['session_id']}"
        with client.open(busy, SLOW) as writing, client.open(tool, SLEEP) as running:
            first_text(writing)
            next(event for event in running if event.type == "tool_use")
            eventually(children, "the tool runs")
            assert len(server.clis()) >= 3
            server.process.kill()
            server.process.wait()
            eventually(lambda: not server.marked(), "all of them are gone")
            assert not children()


def test_a_server_that_is_told_to_stop_answers_everybody_and_ends_well(tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "server", *OFFLINE, "--drain-timeout=6") as server,
        server.client() as client,
        ThreadPoolExecutor(2) as pool,
    ):
        started = [client.post("/session/start", initial_prompt="Hello.") for _ in range(3)]
        waiting, endless, quick = (f"/session/{one['session_id']}" for one in started)
        with (
            client.http.stream("GET", f"{waiting}/events?after=1") as log,
            client.open(endless, SLOW) as writing,
            client.open(quick, "[[slow tokens=8 delay_ms=50]]") as finishing,
        ):
            everything = streamed(log)
            running = pool.submit(client.http.post, f"{waiting}/query", json={"prompt": SLOW})
            next(e for e in everything if e.data.get("content", "").startswith("w0"))
            queued = pool.submit(client.http.post, f"{waiting}/query", json={"prompt": "And me?"})
            next(e for e in everything if e.data.get("position") == 1)
            first_text(writing)
            first_text(finishing)
            asked = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            # Who waits is answered at once (the next server runs the turn); nothing more is taken.
            assert answer(queued.result(), 503)["code"] == "draining"
            refused = client.http.post("/query", json={"prompt": "Me too?"})
            assert answer(refused, 503)["code"] == "draining"
            assert "retry-after" in refused.headers
            assert client.get("/ready", expect=503)["code"] == "draining"
            # What runs may end, and is interrupted if it does not.
            end = list(finishing)[-1].data
            assert (end["outcome"], end["response"]) == ("completed", "w0 w1 w2 w3 w4 w5 w6 w7")
            end = list(writing)[-1].data
            assert (end["type"], end["outcome"]) == ("done", "interrupted")
            assert end["response"].startswith("w0")
            reply = answer(running.result(), 200)
            assert reply["outcome"] == "interrupted"
            assert reply["response"].startswith("w0")
            assert list(everything)[-1].type == "bye"
        server.ends_well()
        assert time.monotonic() - asked < BOUND_S
