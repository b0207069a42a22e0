"""What a killed server leaves running is ended by its successor, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from session_http.offline import OfflineModel
from session_supervisor.agents.claude import proc
from session_supervisor.agents.port import ToolFinished
from tests.e2e.test_claude_agent import SLEEP, TAG, World, bash, talking

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

DISOWNED = f"{SLEEP} & disown; (setsid {SLEEP} &); echo done"
UNMARKED = f"env -i setsid {SLEEP}; echo done"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with OfflineModel() as model:
        yield World(model, tmp_path)


async def a_killed_predecessor(world: World, *, wrapped: bool) -> None:
    """Return when there was one, killed while its CLI was busy."""
    env = {
        **os.environ,
        TAG: world.tag,
        "TMPDIR": str(world.folder),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    if not wrapped:  # no setpriv, so that nobody tells the CLI that its parent has died
        env["PATH"] = str(world.folder / "bin")
        (world.folder / "bin").mkdir()
        for name in ("bash", "sh", "python3", "setsid", "cat"):
            (world.folder / "bin" / name).symlink_to(shutil.which(name) or name)
    script = Path(__file__).with_name("left_behind.py")
    url = world.model.environment()["ANTHROPIC_BASE_URL"]
    folders = [str(world.folder / "config"), str(world.cwd), str(world.folder / "processes")]
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        url,
        *folders,
        DISOWNED,
        env=env,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert int(await parent.stdout.readline()) in world.left()
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        await parent.wait()


@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_successor_ends_what_a_killed_server_left(world: World, wrapped: bool) -> None:
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    await a_killed_predecessor(world, wrapped=wrapped)
    assert len(world.left()) >= (2 if wrapped else 3)
    agent = world.agent(manifest=world.folder / "processes")
    async with asyncio.timeout(60):
        assert await agent.recover() >= 2
    assert world.left() == []
    assert not os.listdir(world.folder / "processes")
    assert not list(world.folder.glob("claude-*"))
    assert bystander.returncode is None
    assert await agent.recover() == 0
    async with talking(agent, world.fingerprint()) as talk:
        assert "marzipan" in (await talk.ask("Remember marzipan.")).blocks[0]
    bystander.kill()
    await bystander.wait()


async def test_a_process_is_listed_for_as_long_as_anything_of_it_lives(world: World) -> None:
    agent = world.agent(manifest=world.folder / "processes")
    async with talking(agent, world.fingerprint("Bash")) as talk:
        await talk.ask("hello")
        (listed,) = (world.folder / "processes").iterdir()
        entry = json.loads(listed.read_text())
        assert entry["pid"] == talk.process.pid
        assert entry["marker"] == listed.stem
        assert listed.stat().st_mode & 0o777 == 0o600
        os.kill(talk.process.pid, signal.SIGKILL)
    assert not os.listdir(world.folder / "processes")


async def test_a_tree_has_all_that_a_process_started_and_a_stop_ends_it(world: World) -> None:
    async with talking(world.agent(), world.fingerprint("Bash")) as talk:
        before = await talk.process.tree()
        assert before.pids == (talk.process.pid,)
        assert 20e6 < before.pss_bytes < 500e6
        turn = await talk.ask(bash(DISOWNED) + bash(UNMARKED, run_in_background=True))
        assert not [one.content for one in turn.of(ToolFinished) if one.is_error]
        async with asyncio.timeout(60):
            while len((tree := await talk.process.tree()).pids) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        unmarked = [pid for pid in tree.pids if not world.has(pid)]
        assert len(unmarked) == 1
        assert tree.pids[0] == talk.process.pid
        assert {*world.left(), *unmarked} == {*tree.pids}
        assert tree.pss_bytes > before.pss_bytes / 2
        ended = await talk.process.stop()
        assert not [pid for pid in tree.pids if proc.look(pid) is not None]
        assert ended.returncode is not None
        assert (await talk.process.tree()).pids == ()
