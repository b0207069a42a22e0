"""What a tool said is cut where it is long, and is as it was where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from session_http.cutting import cut
from session_http.encoding import dump
from session_http.frames import Cut, Frames
from session_supervisor import Event, events
from session_supervisor.asks import Choice, Question, Resolution, Rule
from tests.http.contract import Said, parse_stream, the_contract

NOW = datetime(2025, 10, 14, 10, 30, tzinfo=UTC)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=10), inner),
)


def begins(part: JsonValue, whole: JsonValue) -> bool:
    """Whether a value is the beginning of another, in shape and text."""
    match part, whole:
        case str(), str():
            return whole.startswith(part)
        case Mapping(), Mapping():
            names = list(whole)[: len(part)]
            return list(part) == names and all(begins(part[name], whole[name]) for name in names)
        case list(), list():
            return len(part) <= len(whole) and all(map(begins, part, whole))
        case _:
            return part == whole


@given(VALUES, st.integers(0, 200))
def test_what_is_left_is_the_beginning_and_short(value: JsonValue, most: int) -> None:
    found, truncated = cut(value, most)
    assert begins(found, value)
    assert truncated is (found != value)
    if truncated:
        # Every byte of text and every part has been counted.
        assert len(dump(found)) <= 12 * most + 40


@given(VALUES)
def test_what_is_short_stays(value: JsonValue) -> None:
    assert cut(value, 1_000_000) == (value, False)


def test_no_character_is_cut_in_two() -> None:
    assert cut("añb", 2) == ("a", True)
    assert cut("añb", 3) == ("añ", True)
    assert cut("añb", 4) == ("añb", False)


def test_half_of_a_pair_is_no_harm() -> None:
    assert cut("\ud800" * 10, 4) == ("", True)
    assert cut("\ud800", 9) == ("\ud800", False)


def said(body: events.Body, cutting: Cut | None) -> Said:
    (found,) = parse_stream(b"".join(Frames("s", cutting).chunks([Event(7, "t", NOW, body)])))
    the_contract().check_value(found.data, "SessionEvent")
    return found


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (events.ToolResult(tool_use_id="u", content="x" * 999, is_error=False), "content"),
        (
            events.ToolResult(
                tool_use_id="u", content=[{"type": "text", "text": "x" * 999}], is_error=False
            ),
            "content",
        ),
        (events.ToolUse(tool_use_id="u", name="Write", input={"content": "x" * 999}), "input"),
        (
            events.PermissionRequest(
                request_id="r", tool="Write", tool_use_id="u", input={"content": "x" * 999}
            ),
            "input",
        ),
    ],
)
def test_a_long_event_says_where_it_is_whole(body: Any, name: str) -> None:
    short = said(body, Cut(most=200, root_path="/api")).data
    assert short["truncated"] is True
    assert short["full"] == "/api/session/s/events/7"
    assert type(short[name]) is type(getattr(body, name))
    assert str(short[name]).count("x") <= 200
    for cutting in (None, Cut(most=2000)):
        whole = said(body, cutting).data
        assert whole[name] == getattr(body, name)
        assert not {"truncated", "full"} & set(whole)


def test_two_ways_to_cut_are_not_mixed_up() -> None:
    """Long events are encoded once for all readers of one kind."""
    event = Event(
        1, "t", NOW, events.ToolResult(tool_use_id="u", content="x" * 300_000, is_error=False)
    )
    readers = [
        Frames.of("s", cutting).chunks([event])
        for cutting in (
            None,
            Cut(most=100_000),
            Cut(most=200_000),
            Cut(most=200_000, root_path="/a"),
        )
    ]
    firsts = [next(reader) for reader in readers]
    lengths = [first.count(b"x") for first in firsts]
    assert lengths == [300_000, 100_000, 200_000, 200_000]
    assert b'"/a/session/s/events/1"' in firsts[3]


def test_what_a_human_is_asked_can_be_sent() -> None:
    expires = NOW + timedelta(seconds=600)
    permission = said(
        events.PermissionRequest(
            request_id="r",
            tool="Bash",
            tool_use_id="u",
            input={"command": "ls"},
            suggestions=(Rule(tool="Bash", content="ls"),),
            expires_at=expires,
        ),
        Cut(most=100),
    )
    assert permission.data["suggestions"] == [{"tool": "Bash", "content": "ls"}]
    assert permission.data["expires_at"] == "2025-10-14T10:40:00.000Z"
    asked = Question(question="Which?", options=(Choice(label="a", description="A"),))
    question = said(
        events.Question(request_id="r", tool_use_id="u", questions=(asked,)), Cut(most=100)
    )
    assert question.data["questions"] == [
        {
            "question": "Which?",
            "header": "",
            "options": [{"label": "a", "description": "A"}],
            "multi_select": False,
        }
    ]
    resolved = said(events.Resolved(request_id="r", resolution=Resolution.LOST), None)
    assert resolved.data["resolution"] == "lost"
    limit = said(events.RateLimit(rejected=True, resets_at=expires), None)
    assert limit.data["resets_at"] == "2025-10-14T10:40:00.000Z"
