"""The library inside another program, as the README shows it, with the real CLI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from session_supervisor import SessionSpec, State, Supervisor
from session_supervisor.agents.claude import ClaudeAgent
from tests.e2e.offline import offline_model
from tests.e2e.server import pids

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
