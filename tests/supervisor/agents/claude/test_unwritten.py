"""What the CLI did not get into its transcript is found, and made up."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from session_supervisor.agents.claude.chains import BEFORE
from session_supervisor.agents.claude.unwritten import Missing, Said, made_up
from session_supervisor.spec import JsonObject

TOOL_RESULT: JsonObject = {"type": "tool_result", "tool_use_id": "t", "content": "done"}


def spoken(uuid: str, *prompts: str, **more: Any) -> JsonObject:
    """What the CLI prints of an answer."""
    return {
        "type": "assistant",
        "uuid": uuid,
        "message": {"model": "m", "content": [{"type": "text", "text": uuid}]},
        "user_message_uuids": [*prompts],
        "parent_tool_use_id": None,
        **more,
    }


def answered(uuid: str, *blocks: JsonObject) -> JsonObject:
    """What the CLI prints of a tool's result."""
    return {"type": "user", "uuid": uuid, "message": {"role": "user", "content": [*blocks]}}


def found(said: Said) -> list[tuple[str, str | None]]:
    return [(one.uuid, one.before) for one in said.over()]


@pytest.mark.parametrize(
    ("written", "missing"),
    [
        ("p a r b", []),
        ("a r b", [("p", "a")]),
        ("p r b", [("a", "r")]),
        ("b", [("p", "b"), ("a", "b"), ("r", "b")]),
        ("p b", [("a", "b"), ("r", "b")]),
        ("p a", [("r", None), ("b", None)]),
        ("a", [("p", "a"), ("r", None), ("b", None)]),
        ("", [("p", None), ("a", None), ("r", None), ("b", None)]),
    ],
)
def test_what_was_not_written_is_found_and_where_it_belongs(
    written: str, missing: list[tuple[str, str | None]]
) -> None:
    said = Said()
    said.handed("p", {"role": "user", "content": "Hello"})
    frames: list[JsonObject] = [
        {"type": "system", "subtype": "init", "user_message_uuids": ["p"], "uuid": "i"},
        spoken("a", "p"),
        answered("r", TOOL_RESULT),
        spoken("b"),
        {"type": "result", "user_message_uuids": ["p"], "uuid": "x"},
    ]
    for frame in frames:
        said.hear(frame)
    for uuid in written.split():
        said.written(uuid)
    said.written("another")
    assert found(said) == missing
    assert found(said) == [], "the next turn has begun"


def test_a_prompt_that_is_written_before_the_cli_says_that_it_takes_it_up_is_not_missing() -> None:
    said = Said()
    said.handed("p", "Hello")
    said.written("p")
    said.hear(spoken("a", "p"))
    said.written("a")
    assert found(said) == []


def test_a_prompt_that_waits_is_not_missing_before_its_turn() -> None:
    said = Said()
    said.handed("p", "Hello")
    said.hear(spoken("a", "another"))
    said.written("a")
    assert found(said) == []
    said.hear(spoken("b", "p"))
    said.written("b")
    assert found(said) == [("p", "b")]


@pytest.mark.parametrize(
    "frame",
    [
        spoken("a", parent_tool_use_id="t"),
        spoken("a", message={"model": "<synthetic>", "content": []}),
        answered("a", {"type": "text", "text": "[Request interrupted by user]"}),
        {"type": "user", "uuid": "a", "message": {"content": "<local-command-stdout>"}},
        {"type": "stream_event", "uuid": "a", "event": {}},
        {"type": "assistant", "message": {"model": "m", "content": []}},
    ],
)
def test_what_need_not_be_in_the_transcript_is_not_missing(frame: JsonObject) -> None:
    said = Said()
    said.hear(frame)
    assert found(said) == []


def test_a_line_that_is_made_up_looks_like_those_around_it() -> None:
    like: JsonObject = {"cwd": "/work", "version": "2.1", "uuid": "z", "promptId": "q"}
    message: JsonObject = {"type": "user", "uuid": "p", "message": "p"}
    missing = Missing(uuid="p", line=message, before="q")
    at = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)
    (only,) = made_up([missing], conversation="c", like=like, at=at)
    assert only == {
        "type": "user",
        "uuid": "p",
        "message": "p",
        "isSidechain": False,
        "sessionId": "c",
        "timestamp": "2026-01-02T03:04:05.678Z",
        "cwd": "/work",
        "version": "2.1",
        BEFORE: "q",
    }
