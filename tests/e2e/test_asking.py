"""What a session of the real CLI asks a human, and what a human may allow it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import JsonValue

from session_http.offline import OfflineModel
from session_supervisor.agents.port import (
    Fingerprint,
    PermissionAsked,
    ToolFinished,
)
from session_supervisor.asks import Allow, Decision, Deny, Rule
from session_supervisor.errors import CannotChange
from session_supervisor.spec import JsonObject
from tests.e2e.test_claude_agent import Talk, World, bash, talking
from tests.supervisor.agents.conformance import HeardTurn

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

OUTSIDE = "is outside of the session's directory"
FILE_TOOLS = ("Read", "Write", "Edit", "NotebookEdit", "Glob", "Grep")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with OfflineModel() as model:
        yield World(model, tmp_path)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("marzipan\n")
    return folder


def tool(name: str, **given: JsonValue) -> str:
    return f"[[tool {name} {json.dumps(given)}]]"


def asking(world: World, *allowed: str) -> Fingerprint:
    return replace(world.fingerprint(*allowed), asks=True)


def requests(talk: Talk) -> list[PermissionAsked]:
    return [one for one in talk.heard if isinstance(one, PermissionAsked)]


async def decided(
    talk: Talk, prompt: str, decision: Decision, *, after_s: float = 0.0
) -> tuple[PermissionAsked, HeardTurn]:
    """Send a prompt that asks once, and decide."""
    before = len(requests(talk))
    prompt_id = await talk.send(prompt)
    await talk.until(lambda: len(requests(talk)) > before)
    await asyncio.sleep(after_s)
    request = requests(talk)[-1]
    await talk.process.answer(request.request_id, decision)
    turn = await talk.answer_to(prompt_id)
    assert len(requests(talk)) == before + 1
    return request, turn


def result(turn: HeardTurn) -> tuple[bool, str]:
    (one,) = turn.of(ToolFinished)
    return one.is_error, str(one.content)


async def unasked(talk: Talk, prompt: str) -> tuple[bool, str]:
    """Send a prompt that asks nothing, and return the result of its call."""
    before = len(requests(talk))
    turn = await talk.ask(prompt)
    assert len(requests(talk)) == before
    return result(turn)


def calls(world: World, outside: Path) -> dict[str, tuple[str, JsonObject, Path]]:
    """A call that needs a permission, what a human makes of it, and what shows that it ran."""
    made, edited = world.cwd / "made", world.cwd / "edited"
    command, other = f"echo x > {made}; cat {made}", f"echo y > {edited}; cat {edited}"
    return {
        "Bash": (bash(command), {"command": other}, edited),
        "Write": (
            tool("Write", file_path=str(made), content="x"),
            {"file_path": str(edited), "content": "y"},
            edited,
        ),
        "Read": (
            tool("Read", file_path=str(outside / "file")),
            {"file_path": str(outside / "other")},
            outside / "other",
        ),
    }


@pytest.mark.parametrize("name", ["Bash", "Write", "Read"])
async def test_bash_write_and_read_outside_are_asked_denied_allowed_and_edited(
    world: World, outside: Path, name: str
) -> None:
    (outside / "other").write_text("nougat\n")
    call, given, shown = calls(world, outside)[name]
    async with talking(world.agent(), asking(world)) as talk:
        request, turn = await decided(talk, call, Deny(message="Not now."))
        assert request.tool == name
        failed, text = result(turn)
        assert failed
        assert "Not now." in text
        assert "marzipan" not in text
        assert not (world.cwd / "made").exists()
        _, turn = await decided(talk, call, Allow())
        assert not result(turn)[0]
        assert ("marzipan" in result(turn)[1]) is (name == "Read")
        assert (world.cwd / "made").exists() is (name != "Read")
        _, turn = await decided(talk, call, Allow(updated_input=given))
        assert not result(turn)[0]
        assert shown.read_text().strip() in ("y", "nougat")
        assert ("nougat" in result(turn)[1]) is (name == "Read")


@pytest.mark.parametrize("name", ["Bash", "Write", "Read"])
async def test_a_call_that_is_held_for_long_runs_when_it_is_allowed(
    world: World, outside: Path, name: str, pytestconfig: pytest.Config
) -> None:
    is_long = pytestconfig.getoption("--hypothesis-profile") == "long"
    call, _, _ = calls(world, outside)[name]
    async with talking(world.agent(), asking(world)) as talk:
        _, turn = await decided(talk, call, Allow(), after_s=90.0 if is_long else 5.0)
        assert not result(turn)[0]
        assert turn.end.failure is None


async def test_what_is_proposed_to_be_remembered_is_enough_to_be_asked_no_more(
    world: World, outside: Path
) -> None:
    (world.cwd / "sub").mkdir()
    prompts = {
        bash("touch made"): "Bash",
        tool("Read", file_path=str(outside / "file")): "Read",
        tool("Glob", pattern="*", path=str(outside)): "Read",
        tool("Write", file_path=str(outside / "new"), content="x"): "Edit",
        tool("Write", file_path=str(world.cwd / "sub/new"), content="x"): "Edit",
    }
    agent = world.agent()
    for prompt, kind in prompts.items():
        async with talking(agent, asking(world)) as talk:
            request, _ = await decided(talk, prompt, Deny())
            assert request.suggestions, prompt
            assert {rule.tool for rule in request.suggestions} == {kind}
            await decided(talk, prompt, Allow(remember=request.suggestions))
            assert not (await unasked(talk, prompt))[0] or kind == "Edit", prompt
        rules = replace(asking(world), rules=request.suggestions)
        async with talking(agent, rules) as talk:
            await unasked(talk, prompt)


async def test_rules_say_no_more_than_they_say(world: World, outside: Path) -> None:
    rules = (
        Rule(tool="Bash", content="echo (1), and 2"),
        Rule(tool="Read", content=f"/{outside}/**"),
        Rule(tool="Bash),Write(", content="*"),
        Rule(tool="Write", content=""),
    )
    other = world.folder / "other"
    other.write_text("nougat")
    async with talking(world.agent(), replace(asking(world), rules=rules)) as talk:
        assert not (await unasked(talk, tool("Read", file_path=str(outside / "file"))))[0]
        for call in (
            tool("Read", file_path=str(other)),
            tool("Write", file_path=str(outside / "new"), content="x"),
            tool("Write", file_path=str(world.cwd / "new"), content="x"),
            bash("touch made"),
        ):
            _, turn = await decided(talk, call, Deny())
            assert result(turn)[0]


@pytest.mark.parametrize("named", [True, False])
async def test_tools_that_are_allowed_by_name_are_allowed_inside_only(
    world: World, outside: Path, named: bool
) -> None:
    extra = world.folder / "extra [1] (2), 3"
    extra.mkdir()
    (world.cwd / "own").write_text("own\n")
    fingerprint = (
        asking(world, *FILE_TOOLS)
        if named
        else replace(asking(world), permission_mode="acceptEdits")
    )
    async with talking(world.agent(extra_dirs=[extra]), fingerprint) as talk:
        for folder in (world.cwd, extra):
            made = str(folder / "made")
            assert not (await unasked(talk, tool("Write", file_path=made, content="x")))[0]
            assert not (await unasked(talk, tool("Read", file_path=made)))[0]
            edit = tool("Edit", file_path=made, old_string="x", new_string="y")
            assert not (await unasked(talk, edit))[0]
            assert not (await unasked(talk, tool("Grep", pattern="y", path=str(folder))))[0]
        for call in (
            tool("Read", file_path=str(outside / "file")),
            tool("Write", file_path=str(outside / "new"), content="x"),
            tool("Glob", pattern=f"{outside}/*"),
            tool("Grep", pattern="x", path=str(outside)),
        ):
            _, turn = await decided(talk, call, Deny())
            assert result(turn)[0]
    assert not (outside / "new").exists()


async def test_no_human_can_allow_what_is_hidden_or_another_owner_s(
    world: World, outside: Path
) -> None:
    hidden, shared = world.folder / "hidden", world.folder / "shared"
    for folder in (hidden, shared / "other"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("nougat\n")
    (world.cwd / "link").symlink_to(hidden)
    (outside / "link").symlink_to(shared)
    every = tuple(Rule(tool=name) for name in (*FILE_TOOLS, "Bash"))
    agent = world.agent(hidden_dirs=[hidden], shared_dirs=[shared])
    refused = [
        tool("Read", file_path=str(path))
        for path in (
            hidden / "file",
            world.cwd / "link/file",
            shared / "other/file",
            outside / "link/other/file",
            world.folder / "config/.claude.json",
            "/proc/self/environ",
            "/dev/stdin",
        )
    ]
    refused += [
        tool("Grep", pattern="nougat", path=str(world.folder)),
        tool("Glob", pattern="*", path=str(shared)),
        tool("Write", file_path=str(hidden / "new"), content="x"),
    ]
    for rules in ((), every):
        async with talking(agent, replace(asking(world), rules=rules)) as talk:
            for call in refused:
                failed, text = await unasked(talk, call)
                assert failed, call
                assert "nougat" not in text
    # Nor by changing what was asked, nor by a rule that is remembered on the way.
    async with talking(agent, asking(world)) as talk:
        read = tool("Read", file_path=str(outside / "file"))
        for path in (str(hidden / "file"), "../hidden/file", str(world.cwd / "link/file")):
            allow = Allow(updated_input={"file_path": path})
            _, turn = await decided(talk, read, allow)
            failed, text = result(turn)
            assert failed
            assert OUTSIDE in text
            assert len(turn.end.permission_denials) == 1
        await decided(talk, read, Allow(remember=every))
        for call in refused:
            failed, text = await unasked(talk, call)
            assert failed
            assert "nougat" not in text
    assert not (hidden / "new").exists()


async def test_what_has_become_a_link_while_a_human_thought_is_judged_again(
    world: World, outside: Path
) -> None:
    hidden = world.folder / "hidden"
    hidden.mkdir()
    (hidden / "file").write_text("nougat\n")
    agent = world.agent(hidden_dirs=[hidden])
    async with talking(agent, asking(world)) as talk:
        prompt_id = await talk.send(tool("Read", file_path=str(outside / "file")))
        await talk.until(lambda: bool(requests(talk)))
        outside.rename(world.folder / "away")  # noqa: ASYNC240
        outside.symlink_to(hidden)  # noqa: ASYNC240
        await talk.process.answer(requests(talk)[0].request_id, Allow())
        failed, text = result(await talk.answer_to(prompt_id))
        assert failed
        assert OUTSIDE in text


@pytest.mark.parametrize("how", ["no shell", "bypass", "nobody asked"])
async def test_the_limits_are_a_wall_where_no_human_is_asked_or_could_allow_a_shell(
    world: World, outside: Path, how: str
) -> None:
    fingerprint = asking(world, *FILE_TOOLS)
    forbidden: tuple[str, ...] = ()
    if how == "no shell":
        forbidden = ("Bash",)
    elif how == "bypass":
        fingerprint = replace(fingerprint, permission_mode="bypassPermissions")
    else:
        fingerprint = replace(fingerprint, asks=False)
    rules = (Rule(tool="Read"), Rule(tool="Edit"), Rule(tool="Write"))
    agent = world.agent(
        {"IS_SANDBOX": "1"}, forbidden_tools=forbidden, allow_bypass_permissions=True
    )
    for one in (fingerprint, replace(fingerprint, rules=rules)):
        async with talking(agent, one) as talk:
            for call in (
                tool("Read", file_path=str(outside / "file")),
                tool("Write", file_path=str(outside / "new"), content="x"),
                tool("Glob", pattern="*", path=str(outside)),
            ):
                failed, text = await unasked(talk, call)
                assert failed
                assert "file" not in text.replace(str(outside / "file"), "").replace("files", "")


async def test_who_is_told_to_bypass_permissions_while_it_lives_keeps_to_the_limits(
    world: World, outside: Path
) -> None:
    agent = world.agent({"IS_SANDBOX": "1"}, allow_bypass_permissions=True)
    async with talking(agent, asking(world)) as talk:
        await talk.process.configure(permission_mode="bypassPermissions")
        assert not (await unasked(talk, bash("echo x > made")))[0]
        failed, text = await unasked(talk, tool("Read", file_path=str(outside / "file")))
        assert failed
        assert OUTSIDE in text


async def test_permissions_cannot_be_bypassed_in_a_process_that_was_not_started_for_it(
    world: World,
) -> None:
    async with talking(world.agent({"IS_SANDBOX": "1"}), asking(world)) as talk:
        with pytest.raises(CannotChange):
            await talk.process.configure(model="haiku", permission_mode="bypassPermissions")
        await decided(talk, bash("echo x > made"), Allow())


async def test_a_subagent_asks_as_well(world: World, outside: Path) -> None:
    given: dict[str, JsonValue] = {
        "description": "d",
        "subagent_type": "general-purpose",
        "run_in_background": False,
    }
    inner = tool("Read", file_path=str(outside / "file"))
    async with talking(world.agent(), asking(world)) as talk:
        _, turn = await decided(talk, tool("Agent", **given, prompt=inner), Allow())
    assert "marzipan" in "".join(str(one.content) for one in turn.of(ToolFinished))


async def test_calls_at_the_same_time_ask_each_for_itself(world: World) -> None:
    also = f"[[and Bash {json.dumps({'command': 'touch b', 'description': 'd'})}]]"
    async with talking(world.agent(), asking(world)) as talk:
        prompt_id = await talk.send(bash("touch a") + also)
        decisions: tuple[Decision, ...] = (Deny(message="No."), Allow())
        for number, decision in enumerate(decisions):
            await talk.heard_one(PermissionAsked, number + 1)
            await talk.process.answer(requests(talk)[number].request_id, decision)
        turn = await talk.answer_to(prompt_id)
    assert [one.is_error for one in turn.of(ToolFinished)] == [True, False]
    assert not (world.cwd / "a").exists()
    assert (world.cwd / "b").exists()
