"""What is taken for a proof that a process is as it was, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from session_supervisor.agents.claude.renewal import HARMLESS, Origin, Witness, is_empty
from session_supervisor.spec import JsonObject, PermissionMode

pytestmark = pytest.mark.anyio

ORIGIN = Origin(model="m", permission_mode="default", confined=True, verbatim=True)
COMMAND = "00000000-0000-4000-8000-000000000000"
EMPTY: JsonObject = dict.fromkeys(
    ("toolCallTokens", "toolResultTokens", "attachmentTokens", "assistantMessageTokens"), 0
)


def init(conversation: str, **more: Any) -> JsonObject:
    return {"type": "system", "subtype": "init", "session_id": conversation, **more}


def called(name: str, **more: Any) -> JsonObject:
    block: JsonObject = {"type": "tool_use", "id": "t", "name": name, "input": {}}
    return {"type": "assistant", "message": {"content": [block]}, **more}


def reset(command: str = COMMAND) -> JsonObject:
    return {"type": "conversation_reset", "user_message_uuid": command}


def result(conversation: str, **more: Any) -> JsonObject:
    told = {"is_error": False, "num_turns": 0, "total_cost_usd": 0, **more}
    return {"type": "result", "session_id": conversation, **told}


def witness_of(*frames: JsonObject, origin: Origin = ORIGIN) -> Witness:
    witness = Witness(origin)
    for frame in frames:
        witness.feed(frame)
    return witness


@pytest.mark.parametrize(
    ("frame", "stain"),
    [
        (init("a"), None),
        (init("a", mcp_servers=[{"name": "words"}]), "has MCP servers"),
        *((called(name), None) for name in sorted(HARMLESS)),
        (called("Bash"), "used Bash"),
        (called("Agent"), "used Task"),
        (called("mcp__words__word"), "used a tool"),
        (called("Read", parent_tool_use_id="t"), "used Task"),
        (
            {"type": "system", "subtype": "background_tasks_changed", "tasks": [{"id": "1"}]},
            "background",
        ),
        ({"type": "system", "subtype": "background_tasks_changed", "tasks": []}, None),
        (reset(), "was reset"),
    ],
)
def test_what_leaves_a_stain(frame: JsonObject, stain: str | None) -> None:
    assert witness_of(frame).stain == stain


def test_who_may_write_anywhere_and_wrote_leaves_a_stain() -> None:
    anywhere = Origin(model="m", permission_mode="default", confined=False, verbatim=True)
    assert witness_of(called("Read"), origin=anywhere).stain is None
    assert witness_of(called("Write"), origin=anywhere).stain == "wrote anywhere"


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ((reset(), init("b"), result("b")), None),
        ((init("b"), result("b")), "not reset"),
        ((reset("another"), init("b"), result("b")), "not reset"),
        ((reset(), result("a")), "not reset"),
        ((reset(), init("a"), result("a")), "not reset"),
        ((reset(), init("b"), result("a")), "not reset"),
        ((reset(), init("b"), result("b", is_error=True)), "not reset"),
        ((reset(), init("b"), result("b", num_turns=1)), "not reset"),
        ((reset(), init("b"), result("b", total_cost_usd=0.1)), "not reset"),
        ((reset(), called("Read"), init("b"), result("b")), "not reset"),
    ],
)
async def test_what_proves_a_reset(frames: tuple[JsonObject, ...], reason: str | None) -> None:
    witness = witness_of(init("a"))
    proven = witness.expect_reset(COMMAND)
    for frame in frames:
        witness.feed(frame)
    assert proven.done()
    assert proven.result() == reason


def test_a_context_is_empty_only_if_the_cli_says_so_of_every_part() -> None:
    assert is_empty({"messageBreakdown": {**EMPTY, "userMessageTokens": 87}})
    for part in EMPTY:
        assert not is_empty({"messageBreakdown": {**EMPTY, part: 1}})
        assert not is_empty({"messageBreakdown": {name: 0 for name in EMPTY if name != part}})
    assert not is_empty({})


@pytest.mark.parametrize(
    ("first", "told", "stain"),
    [
        ("default", "acceptEdits", None),
        ("default", "plan", "changed plan mode"),
        ("plan", "default", "changed plan mode"),
        ("plan", "plan", None),
    ],
)
async def test_the_end_of_plan_mode_is_told_the_model_after_a_reset_too(
    first: PermissionMode, told: PermissionMode, stain: str | None
) -> None:
    witness = witness_of(origin=replace(ORIGIN, permission_mode=first))
    witness.told_mode(told)
    witness.told_mode(first)
    assert witness.stain == stain


@pytest.mark.parametrize("verbatim", [True, False])
async def test_a_prompt_that_may_be_a_command_is_a_stain(verbatim: bool) -> None:
    witness = witness_of(origin=replace(ORIGIN, verbatim=verbatim))
    assert witness.stain is None
    witness.prompted()
    assert witness.stain == (None if verbatim else "may have run commands")
