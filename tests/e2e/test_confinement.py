"""What a session of the real CLI can reach: not our environment, and no file outside its own."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from pydantic import JsonValue

from session_http.offline import OfflineModel
from session_supervisor.agents.claude import sandbox
from session_supervisor.agents.claude.confinement import Confinement
from session_supervisor.agents.port import ToolFinished, ToolStarted
from session_supervisor.errors import AgentMissing
from session_supervisor.spec import PermissionMode
from tests.e2e.test_claude_agent import SLEEP, World, bash, talking
from tests.supervisor.agents.conformance import HeardTurn
from tests.support.trees import below

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

OUTSIDE = "is outside of the session's directory"
BLOCKED = "This path is outside the working directories"
"""What the CLI says by itself, before it asks us."""
MODES: tuple[PermissionMode, ...] = ("default", "acceptEdits", "bypassPermissions")
FILE_TOOLS = ("Read", "Write", "Edit", "NotebookEdit", "Glob", "Grep")
NOTEBOOK: dict[str, JsonValue] = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def tool(name: str, **given: JsonValue) -> str:
    return f"[[tool {name} {json.dumps(given)}]]"


def also(name: str, **given: JsonValue) -> str:
    return f"[[and {name} {json.dumps(given)}]]"


def results(turn: HeardTurn) -> list[tuple[bool, str]]:
    return [(one.is_error, str(one.content)) for one in turn.of(ToolFinished)]


def denied(turn: HeardTurn) -> list[JsonValue]:
    return [one["tool_name"] for one in turn.end.permission_denials if isinstance(one, dict)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with OfflineModel() as model:
        yield World(model, tmp_path)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of somebody else's."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("marzipan\n")
    (folder / "book.ipynb").write_text(json.dumps(NOTEBOOK))
    return folder


async def test_a_session_s_shell_sees_nothing_of_our_environment_but_what_it_needs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "SESSION_SUPERVISOR_KEYS", "AWS_SECRET_ACCESS_KEY", "GIT_AUTHOR"):
        monkeypatch.setenv(name, f"canary-{name}")
    monkeypatch.setenv("LC_TIME", "C")
    agent = world.agent(env_passthrough=["GIT_*"])
    async with talking(agent, world.fingerprint("Bash")) as talk:
        turn = await talk.ask(bash("env; cat /proc/$PPID/environ"))
        ((failed, printed),) = results(turn)
    assert not failed
    assert printed.count("canary") == printed.count("GIT_AUTHOR=canary-GIT_AUTHOR") == 2
    assert "LC_TIME=C" in printed


def calls(folder: Path) -> list[str]:
    """Every file tool, on what is in a folder."""
    file, book = str(folder / "file"), str(folder / "book.ipynb")
    cell: dict[str, JsonValue] = {"new_source": "1", "edit_mode": "insert", "cell_type": "code"}
    return [
        tool("Read", file_path=file),
        tool("Edit", file_path=file, old_string="marzipan", new_string="nougat"),
        tool("Write", file_path=str(folder / "new"), content="x"),
        tool("Read", file_path=book),
        tool("NotebookEdit", notebook_path=book, **cell),
        tool("Glob", pattern="*", path=str(folder)),
        tool("Glob", pattern=f"{folder}/*"),
        tool("Grep", pattern="marzipan|nougat", path=str(folder), output_mode="content"),
    ]


@pytest.mark.parametrize("mode", MODES)
async def test_no_file_tool_leaves_the_session_s_directory_in_any_permission_mode(
    world: World, outside: Path, mode: PermissionMode
) -> None:
    (world.cwd / "link").symlink_to(outside)
    fingerprint = replace(world.fingerprint(*FILE_TOOLS), permission_mode=mode)
    agent = world.agent({"IS_SANDBOX": "1"}, allow_bypass_permissions=True)
    async with talking(agent, fingerprint) as talk:
        for folder in (outside, world.cwd / "link"):
            for call in calls(folder):
                turn = await talk.ask(f"{call} [[say Well.]]")
                ((failed, text),) = results(turn)
                assert failed
                # Nothing of what is there is told, whoever says no.
                assert BLOCKED in text or OUTSIDE in text
                assert denied(turn) == [turn.of(ToolStarted)[0].name]
                assert turn.blocks == ["Well."]
                assert turn.end.failure is None
        for path in ("../outside/file", "~/.bashrc", "/etc/passwd", "/proc/version"):
            ((failed, text),) = results(await talk.ask(tool("Read", file_path=path)))
            assert failed
            assert OUTSIDE in text
    assert (outside / "file").read_text() == "marzipan\n"
    assert json.loads((outside / "book.ipynb").read_text()) == NOTEBOOK
    assert not (outside / "new").exists()


@pytest.mark.parametrize("how", ["inside", "extra_dirs", "trusting"])
async def test_file_tools_work_inside_and_where_the_operator_says(
    world: World, outside: Path, how: str
) -> None:
    if how == "inside":
        folder, agent = outside.rename(world.cwd / "inside"), world.agent()  # noqa: ASYNC240
    elif how == "extra_dirs":
        folder, agent = outside, world.agent(extra_dirs=[outside])
    else:
        folder, agent = outside, world.agent(confine_files=False)
    async with talking(agent, world.fingerprint(*FILE_TOOLS)) as talk:
        for call in calls(folder):
            turn = await talk.ask(call)
            assert not any(failed for failed, _ in results(turn)), (call, results(turn))
    assert (folder / "file").read_text() == "nougat\n"
    assert (folder / "new").read_text() == "x"


async def test_a_search_does_not_follow_links_that_it_comes_across(
    world: World, outside: Path
) -> None:
    (world.cwd / "link").symlink_to(outside)
    (world.cwd / "leak").symlink_to(outside / "file")
    (world.cwd / "own").write_text("marzipan\n")
    async with talking(world.agent(), world.fingerprint("Grep", "Glob")) as talk:
        turn = await talk.ask(tool("Grep", pattern="marzipan") + tool("Glob", pattern="**/*"))
        assert [text for _, text in results(turn)] == ["Found 1 file\nown", "own"]


async def test_long_output_can_be_read_by_the_session_that_made_it_alone(
    world: World, outside: Path
) -> None:
    agent, fingerprint = world.agent(), world.fingerprint("Bash", "Read", "Write")
    async with talking(agent, fingerprint) as talk, talking(agent, fingerprint) as other:
        turn = await talk.ask(bash("seq 1 60000"))
        assert "<persisted-output>" in results(turn)[0][1]
        (saved,) = below(world.folder / "config", "tool-results/*")
        (transcript,) = below(world.folder / "config", "*.jsonl")
        background = await talk.ask(bash("echo marzipan", run_in_background=True))
        output = results(background)[0][1].split("written to: ")[1].split(". You")[0]
        for path in (str(saved), output):
            mine = await talk.ask(tool("Read", file_path=path, limit=5))
            theirs = await other.ask(tool("Read", file_path=path, limit=5))
            assert not results(mine)[0][0]
            assert OUTSIDE in results(theirs)[0][1]
        for call in (
            tool("Write", file_path=str(saved), content="x"),
            tool("Read", file_path=str(transcript)),
            tool("Read", file_path=str(world.folder / "config/.claude.json")),
            tool("Write", file_path=str(saved.parents[2] / "memory/MEMORY.md"), content="x"),
        ):
            assert OUTSIDE in results(await talk.ask(call))[0][1]


async def test_a_subagent_is_confined_as_well(world: World, outside: Path) -> None:
    asked: list[JsonValue] = []
    decide = Confinement.refusal

    def noting(self: Confinement, call: Mapping[str, JsonValue]) -> str | None:
        asked.append(call.get("agent_type"))
        return decide(self, call)

    given: dict[str, JsonValue] = {
        "description": "d",
        "subagent_type": "general-purpose",
        "run_in_background": False,
    }
    inner = tool("Read", file_path=str(outside / "file"))
    with patch.object(Confinement, "refusal", noting):
        async with talking(world.agent(), world.fingerprint("Agent", "Read")) as talk:
            turn = await talk.ask(tool("Agent", **given, prompt=inner))
    assert asked == ["general-purpose"]
    inner_result = next(one for one in turn.of(ToolFinished) if one.parent_tool_use_id)
    assert inner_result.is_error
    assert OUTSIDE in str(inner_result.content)


async def test_calls_at_the_same_time_are_decided_each_for_itself(
    world: World, outside: Path
) -> None:
    (world.cwd / "own").write_text("marzipan\n")
    first, *more = [str(world.cwd / "own"), str(outside / "file")] * 5
    prompt = tool("Read", file_path=first) + "".join(also("Read", file_path=one) for one in more)
    async with talking(world.agent(), world.fingerprint("Read")) as talk:
        turn = await talk.ask(prompt)
        failed = {one.tool_use_id: one.is_error for one in turn.of(ToolFinished)}
        assert [failed[one.tool_use_id] for one in turn.of(ToolStarted)] == [False, True] * 5
        assert denied(turn) == ["Read"] * 5


async def test_the_limits_hold_after_an_interrupt_and_after_a_resume(
    world: World, outside: Path
) -> None:
    agent, fingerprint = world.agent(), world.fingerprint("Bash", "Read")
    read = tool("Read", file_path=str(outside / "file"))
    async with talking(agent, fingerprint) as talk:
        prompt_id = await talk.send(bash(SLEEP))
        await talk.heard_one(ToolStarted)
        await talk.process.interrupt()
        assert (await talk.answer_to(prompt_id)).end.interrupted
        assert OUTSIDE in results(await talk.ask(read))[0][1]
        (transcript,) = below(world.folder / "config", "*.jsonl")
    async with talking(agent, fingerprint, resume=transcript.stem) as again:
        assert OUTSIDE in results(await again.ask(read))[0][1]


def broken(_self: Confinement, _call: object) -> str | None:
    raise ZeroDivisionError


async def test_a_decision_that_fails_is_a_refusal(world: World) -> None:
    (world.cwd / "own").write_text("marzipan\n")
    with patch.object(Confinement, "refusal", broken):
        async with talking(world.agent(), world.fingerprint("Read")) as talk:
            turn = await talk.ask(tool("Read", file_path=str(world.cwd / "own")) + "[[say on]]")
    ((failed, text),) = results(turn)
    assert failed
    assert "marzipan" not in text
    assert turn.blocks == ["on"]


async def test_an_interrupt_ends_a_turn_whose_call_is_not_decided_yet(world: World) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(_self: Confinement, _call: object) -> str | None:
        loop.call_soon_threadsafe(asked.set)
        asyncio.run_coroutine_threadsafe(answer.wait(), loop).result()
        return None

    waits: Callable[..., str | None] = slow
    with patch.object(Confinement, "refusal", waits):
        async with talking(world.agent(), world.fingerprint("Read")) as talk:
            prompt_id = await talk.send(tool("Read", file_path=str(world.cwd / "own")))
            async with asyncio.timeout(60):
                await asked.wait()
            await talk.process.probe()
            await talk.process.interrupt()
            assert (await talk.answer_to(prompt_id)).end.interrupted
            answer.set()
            assert (await talk.ask("[[say clean]]")).blocks == ["clean"]


SANDBOX = pytest.mark.skipif(
    any(shutil.which(name) is None for name in sandbox.NEEDED),
    reason="SANDBOX NOT TESTED: bubblewrap or socat is not installed",
)


@SANDBOX
async def test_in_the_sandbox_bash_reaches_neither_others_files_nor_secrets_nor_the_network(
    world: World, outside: Path
) -> None:
    agent = world.agent(sandbox=True, hidden_dirs=[world.folder])
    (world.cwd / "own").write_text("own\n")
    port = world.model.environment()["ANTHROPIC_BASE_URL"].rpartition(":")[2].split("/")[0]
    connect = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
    async with talking(agent, world.fingerprint("Bash", "Read")) as talk:
        for command, expected in {
            "cat own; echo x > made; cat made": "own\nx",
            f"cat {outside}/file || echo none": "none",
            f"ls -A {world.folder}": "cwd",
            f"echo x > {outside}/new || echo none": "none",
            "echo x > /var/tmp/new || echo none": "none",
            "env | grep -c ANTHROPIC_API_KEY || echo none": "none",
            "cat /proc/*/environ | grep -zc ANTHROPIC_API_KEY || echo none": "none",
            f'python3 -c "{connect}" || echo none': "none",
        }.items():
            ((_, text),) = results(await talk.ask(bash(f"({command}) 2>/dev/null")))
            assert text.removeprefix("0\n") == expected, command
        await talk.ask(bash("(sleep 300 & disown); setsid sleep 301 & echo"))
        await talk.ask(bash("sleep 302", run_in_background=True))
        await talk.process.stop()
    assert world.left() == []
    assert not (outside / "new").exists()


@SANDBOX
async def test_the_sandbox_is_no_permission_and_cannot_be_left(world: World) -> None:
    async with talking(world.agent(sandbox=True), world.fingerprint()) as talk:
        assert denied(await talk.ask(bash("touch made"))) == ["Bash"]
    async with talking(world.agent(sandbox=True), world.fingerprint("Bash")) as talk:
        command = f"touch {world.folder}/made"
        turn = await talk.ask(bash(command, dangerouslyDisableSandbox=True))
        assert results(turn)[0][0]
    assert not (world.cwd / "made").exists()
    assert not (world.folder / "made").exists()


async def test_without_bubblewrap_there_is_no_session_rather_than_one_without_a_sandbox(
    world: World, tmp_path: Path
) -> None:
    agent = world.agent({"PATH": str(tmp_path)}, sandbox=True)
    with pytest.raises(AgentMissing, match="bwrap and socat"):
        await agent.spawn(world.fingerprint("Bash"))
