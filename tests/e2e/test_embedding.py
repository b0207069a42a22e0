"""The library inside another program, as the README shows it, with the real CLI."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from session_supervisor import Retention, SessionSpec, State, Supervisor, SupervisorConfig
from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.stores.sqlite import SqliteStore
from tests.conftest import MARKER as RUN
from tests.e2e.offline import offline_model
from tests.e2e.server import ROOT, eventually, pids
from tests.e2e.sse import Event, streamed
from tests.support.freed import uncollected

ADA = {"Authorization": "Bearer token-of-ada"}
BOB = {"Authorization": "Bearer token-of-bob"}

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture(scope="module")
def upstream() -> Iterator[dict[str, str]]:
    with offline_model() as environment:
        yield environment


async def test_the_embedding_example_works_as_it_stands(
    upstream: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`ClaudeAgent()` takes what the environment says, as in any program."""
    for name, value in {**upstream, "CLAUDE_CONFIG_DIR": str(tmp_path / "config")}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "work").mkdir()

    async with Supervisor(ClaudeAgent()) as supervisor:
        session = await supervisor.start(SessionSpec(model="sonnet", cwd=str(tmp_path / "work")))
        turn = await session.query("What is Docker?")
        async for event in turn:
            print(event)  # noqa: T201
        print((await turn.result()).text)  # noqa: T201

    printed = capsys.readouterr().out
    assert printed.count("Done(") == 1
    assert 'You said: "What is Docker?"' in printed.splitlines()[-3]
    assert session.state is State.CLOSED


async def test_leaving_the_supervisor_ends_what_still_runs(
    upstream: dict[str, str], tmp_path: Path
) -> None:
    agent = ClaudeAgent(env=upstream, config_dir=tmp_path / "config")
    async with Supervisor(agent) as supervisor:
        session = await supervisor.start()
        running = await session.query("[[slow tokens=400 delay_ms=50]]")
        waiting = await session.query("And me?")
        async for event in running:
            if event.body.type == "text":
                break
        pid = (await session.inspect()).pid
        assert pid is not None
    # Nobody is left to wait for an answer, and no process, which the suite checks as well.
    assert (await running.wait()).outcome == "interrupted"
    assert (await waiting.wait()).outcome == "failed"
    assert pid not in pids()


async def test_nothing_of_sessions_and_their_processes_waits_for_the_collector(
    upstream: dict[str, str], tmp_path: Path
) -> None:
    store = SqliteStore(tmp_path / "sessions.db", Retention(ended_sessions=0))
    agent = ClaudeAgent(env=upstream, config_dir=tmp_path / "config", transcripts=store.transcripts)

    async def visit() -> None:
        await (await supervisor.query("What is Docker?")).result()
        session = await supervisor.start()
        async for _ in await session.query("And an actor?"):
            pass
        await session.hibernate()
        await (await session.query("Once more.")).result()
        await supervisor.close(session.session_id)
        await asyncio.sleep(1)  # what is left in pipes is waited for

    async with Supervisor(
        agent, store=store, config=SupervisorConfig(workspace=tmp_path / "work")
    ) as supervisor:
        await visit()
        with uncollected() as found:
            await visit()
    assert not found


# -- the examples, as programs -----------------------------------------------------------------


@contextmanager
def program(
    folder: Path, upstream: Mapping[str, str], command: Sequence[str]
) -> Generator[subprocess.Popen[str]]:
    """Run a program for a while: clean environment, own home, own temporary files."""
    (folder / "home").mkdir()
    (folder / "tmp").mkdir()
    environment = {
        **upstream,
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("http", "supervisor", "")),
        "PYTHONUNBUFFERED": "1",
        RUN: os.environ[RUN],
    }
    with (
        (folder / "stderr").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def stopped(process: subprocess.Popen[str], folder: Path, *, within_s: float = 60.0) -> str:
    """Wait for a program's end, which must be a good one; return what it logged."""
    code = process.wait(within_s)
    logged = (folder / "stderr").read_text()
    assert code in (0, -signal.SIGTERM), logged[-3000:]
    assert "Traceback" not in logged, logged[-3000:]
    assert not list((folder / "tmp").glob("session-supervisor-*")), "directories are left"
    return logged


@contextmanager
def served(
    folder: Path, upstream: Mapping[str, str], factory: str
) -> Generator[tuple[subprocess.Popen[str], httpx.Client]]:
    command = ["-m", "uvicorn", "--factory", factory, "--port", "0"]
    with program(folder, upstream, [*command, "--timeout-graceful-shutdown", "5"]) as process:

        def address() -> str | None:
            assert process.poll() is None, (folder / "stderr").read_text()[-3000:]
            found = re.search(r"running on (http://\S+)", (folder / "stderr").read_text())
            return found and found[1]

        eventually(address, "the server listens")
        with httpx.Client(base_url=address() or "", headers=ADA, timeout=60) as client:
            yield process, client


def told(response: httpx.Response) -> list[Event]:
    return list(streamed(response))


def test_the_starlette_example_serves_claude_and_ends_well(
    upstream: dict[str, str], tmp_path: Path
) -> None:
    with served(tmp_path, upstream, "examples.starlette_app:create") as (process, client):
        assert client.get("/agents/sessions", headers={"Authorization": "x"}).status_code == 401
        started = client.post("/agents/session/start", json={"initial_prompt": "[[say Ready.]]"})
        assert started.json()["initial_response"] == "Ready."
        path = f"/agents/session/{started.json()['session_id']}"
        assert client.get(path, headers=BOB).status_code == 404
        assert client.get("/usage").json()["sessions"] == 1
        slow = {"prompt": "[[slow tokens=60 delay_ms=50]]", "stream": True}
        with client.stream("POST", f"{path}/query", json=slow) as response:
            events = streamed(response)
            while next(events).type != "text":
                pass
            process.send_signal(signal.SIGTERM)
            # uvicorn waits for the stream, and the stream for its turn.
            assert list(events)[-1].type == "done"
        stopped(process, tmp_path)


def test_the_fastapi_example_serves_claude_and_ends_well(
    upstream: dict[str, str], tmp_path: Path
) -> None:
    with served(tmp_path, upstream, "examples.fastapi_app:create") as (process, client):
        chat = client.post("/chats").json()["chat_id"]
        with client.stream(
            "POST", f"/chats/{chat}/messages", json={"text": "[[say Hello.]]"}
        ) as response:
            said = told(response)
        assert said[-1].data["response"] == "Hello."
        after = {"Last-Event-ID": str(said[-2].id)}
        with client.stream("GET", f"/chats/{chat}/events", headers=after) as response:
            assert next(streamed(response)).id == said[-1].id
        assert client.get(f"/agents/session/{chat}", headers=BOB).status_code == 404
        assert client.post("/reports", json={"text": "[[say It is fine.]]"}).status_code == 202
        process.send_signal(signal.SIGTERM)
        stopped(process, tmp_path)
        assert process.stdout is not None
        assert "report for ada: completed: It is fine." in process.stdout.read()


def test_the_worker_example_works_a_queue_off(upstream: dict[str, str], tmp_path: Path) -> None:
    jobs = [
        {"id": "a", "prompt": "[[say Fine.]]"},
        {"id": "b", "prompt": "[[say Good.]]", "repeatable": True},
        {"id": "c", "prompt": "[[fail status=400]]"},
    ]
    with program(tmp_path, upstream, [str(ROOT / "examples/worker.py")]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(job) + "\n" for job in jobs))
        process.stdin.close()
        lines = [json.loads(line) for line in process.stdout]
        stopped(process, tmp_path)
    found = {line.pop("id"): line for line in lines}
    assert (found["a"], found["b"]) == ({"done": "Fine."}, {"done": "Good."})
    assert found["c"]["failed"].startswith("failed: ")


def test_the_worker_example_stops_when_it_is_told_to(
    upstream: dict[str, str], tmp_path: Path
) -> None:
    jobs = [
        {"id": "a", "prompt": "[[slow tokens=80 delay_ms=50]]"},
        {"id": "b", "prompt": "[[slow tokens=80 delay_ms=50]]"},
        {"id": "c", "prompt": "[[say never]]"},
    ]
    with program(tmp_path, upstream, [str(ROOT / "examples/worker.py")]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(job) + "\n" for job in jobs))
        process.stdin.flush()  # and left open: it waits for more

        def run() -> int:
            # Not `rglob`, which fails where Claude Code removes a lock at the same time.
            transcripts = (
                Path(folder, name)
                for folder, _, names in os.walk(tmp_path / "home")
                for name in names
                if name.endswith(".jsonl")
            )
            return sum("slow tokens" in transcript.read_text() for transcript in transcripts)

        eventually(lambda: run() == 2, "two jobs are with Claude Code")
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.stdout]
        stopped(process, tmp_path)
    found = {line.pop("id"): line for line in lines}
    assert set(found) == {"a", "b"}, "no job was taken after the signal"
    assert all("done" in end for end in found.values())
