"""Tools that the operator forbids: no session of the real CLI has them, by whatever route.

What exists is what the upstream is offered, so that is looked at, for subagents as well. And what a
model calls all the same, as one does that has been talked into it, is not carried out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from session_http.offline import OfflineModel
from session_supervisor.agents.claude import tools
from session_supervisor.agents.port import ToolFinished
from tests.e2e.test_claude_agent import World, bash, talking
from tests.e2e.test_confinement import results, tool
from tests.supervisor.agents.conformance import HeardTurn

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

GONE = "No such tool available"
CALLS = {
    "Bash": {"command": "touch made", "description": "d"},
    "Write": {"file_path": "made", "content": "x"},
}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with OfflineModel() as model:
        yield World(model, tmp_path)


def offered(world: World, since: int = 0) -> set[str]:
    """The tools that the upstream was offered, in any request."""
    return {name for request in world.model.requests[since:] for name in request.tools}


def task(kind: str, prompt: str) -> str:
    return tool("Task", description="d", subagent_type=kind, prompt=prompt, run_in_background=False)


def inner(turn: HeardTurn) -> list[ToolFinished]:
    """What tools of a subagent said."""
    return [one for one in turn.of(ToolFinished) if one.parent_tool_use_id]


@pytest.mark.parametrize("named", [(), ("Read", "Task", "ToolSearch", "Skill")])
async def test_neither_a_session_nor_its_subagents_have_them(
    world: World, named: tuple[str, ...]
) -> None:
    agent = world.agent(forbidden_tools=list(CALLS))
    async with talking(agent, world.fingerprint(*named)) as talk:
        for name, given in CALLS.items():
            call = tool(name, **given)
            ((failed, said),) = results(await talk.ask(call))
            assert failed
            assert GONE in said
            for kind in ("general-purpose", "Explore"):
                (one,) = inner(await talk.ask(task(kind, call)))
                assert one.is_error
                assert GONE in str(one.content)
        await talk.ask(tool("ToolSearch", query="select:Bash,Write"))
    assert not offered(world) & set(CALLS)
    assert "Read" in offered(world)
    assert not (world.cwd / "made").exists()


@pytest.mark.parametrize("name", ["Task", "Agent"])
async def test_subagents_can_be_forbidden_by_either_name(world: World, name: str) -> None:
    async with talking(world.agent(forbidden_tools=[name]), world.fingerprint()) as talk:
        for call in ("Task", "Agent"):
            given: dict[str, JsonValue] = {
                "description": "d",
                "subagent_type": "general-purpose",
                "prompt": "x",
            }
            assert GONE in results(await talk.ask(tool(call, **given)))[0][1]
    assert not offered(world) & {"Task", "Agent"}
    assert "Bash" in offered(world)


async def test_everything_can_be_forbidden(world: World) -> None:
    agent = world.agent(forbidden_tools=list(tools.known()))
    async with talking(agent, world.fingerprint()) as talk:
        assert (await talk.ask("[[say All the same.]]")).blocks == ["All the same."]
    assert offered(world) == set()


async def test_what_a_directory_brings_along_gives_them_back_to_nobody(world: World) -> None:
    """Not even where the operator lets a project's own settings count."""
    project = world.cwd / ".claude"
    for folder in ("agents", "skills/own", "commands"):
        (project / folder).mkdir(parents=True)
    front = "---\nname: own\ndescription: d\n{}: Read, Bash, Write\n---\n"
    (project / "agents/own.md").write_text(front.format("tools") + "Do it.\n")
    skill = front.format("allowed-tools") + "Now !`touch made` it.\n"
    (project / "skills/own/SKILL.md").write_text(skill)
    (project / "settings.json").write_text(
        json.dumps({"permissions": {"allow": ["Bash", "Write"]}})
    )
    (world.cwd / ".mcp.json").write_text(
        json.dumps({"mcpServers": {"own": {"command": "touch", "args": ["made-by-a-server"]}}})
    )
    for sources in ([], ["project"]):
        agent = world.agent(forbidden_tools=list(CALLS), setting_sources=sources)
        async with talking(agent, world.fingerprint("Read", "Task", "Skill")) as talk:
            call = bash("touch made")
            assert GONE in results(await talk.ask(call))[0][1]
            turn = await talk.ask(task("own", call))
            for one in inner(turn):
                assert GONE in str(one.content)
            assert bool(inner(turn)) == bool(sources)  # the project's subagent exists only then
            await talk.ask(tool("Skill", skill="own"))
            await talk.ask(call)
        assert not offered(world) & set(CALLS)
        assert not (world.cwd / "made").exists()
