from __future__ import annotations

import pytest

from session_http.offline.directives import (
    And,
    Big,
    Cut,
    DirectiveError,
    Fail,
    Hang,
    Header,
    Result,
    Say,
    Slow,
    Stop,
    Think,
    Tool,
    Usage,
    parse_directives,
)


def test_every_directive_is_read_in_its_order() -> None:
    prompt = (
        "Please [[say exactly  this ]] and [[think a\nb]] then"
        '[[tool Bash {"command": "echo [[1]] ]]"}]] [[and Read {"file_path": "/x"}]][[result]]'
        "[[slow tokens=20 delay_ms=5]] [[big bytes=10]] [[stop reason=max_tokens after=2 times=1]]"
        "[[usage input=1 output=2 cache_read=3 cache_write=4]] [[header a-b=c]]"
        '[[fail status=429 times=2 retry_after=0.5 message="try later"]]'
        "[[hang before ms=10]] [[hang mid after=3 ping_ms=4 times=1]] [[cut block=2 after=3]]"
    )
    assert parse_directives(prompt) == (
        Say(text="exactly  this "),
        Think(text="a\nb"),
        Tool(name="Bash", input={"command": "echo [[1]] ]]"}),
        And(name="Read", input={"file_path": "/x"}),
        Result(),
        Slow(tokens=20, delay_ms=5),
        Big(bytes=10),
        Stop(reason="max_tokens", after=2, times=1),
        Usage(input=1, output=2, cache_read=3, cache_write=4),
        Header(headers={"a-b": "c"}),
        Fail(status=429, times=2, retry_after=0.5, message="try later"),
        Hang(where="before", ms=10),
        Hang(where="mid", after=3, ping_ms=4, times=1),
        Cut(block=2, after=3),
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "if [[ -f x ]]; then echo [[yes]]; fi",
        "a [wiki]] and [[failure]] and [[sayings of old]]",
        "[ [say no]]",
    ],
)
def test_other_double_brackets_are_ordinary_text(prompt: str) -> None:
    assert parse_directives(prompt) == ()


def test_a_tool_without_input_gets_an_empty_object() -> None:
    assert parse_directives("[[tool mcp__x__y-z]]") == (Tool(name="mcp__x__y-z", input={}),)


def test_a_directive_inside_the_input_of_a_tool_is_part_of_that_input() -> None:
    (tool,) = parse_directives('[[tool Agent {"prompt": "[[say sub]]"}]]')
    assert tool == Tool(name="Agent", input={"prompt": "[[say sub]]"})


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("[[say never closed", "no closing"),
        ("[[slow tokens=many]]", "tokens"),
        ("[[slow bogus=1]]", "bogus"),
        ("[[fail 529]]", "name=value"),
        ("[[fail status=200]]", "status"),
        ("[[hang]]", "where"),
        ("[[cut times=0]]", "times"),
        ('[[fail message="open]]', "quotation"),
        ("[[tool]]", "needs the name"),
        ('[[tool Bash {"command": }]]', "bad JSON"),
        ('[[tool Bash {"a": 1} more]]', "]] expected"),
        ("[[stop]]", "reason"),
    ],
)
def test_a_wrong_directive_is_refused_with_its_reason(prompt: str, reason: str) -> None:
    with pytest.raises(DirectiveError, match="\\[\\[") as caught:
        parse_directives(prompt)
    assert reason in str(caught.value)


def test_faults_have_a_name_for_records() -> None:
    faults = [Fail(status=401), Hang(where="before"), Hang(where="mid"), Cut()]
    assert [fault.label for fault in faults] == ["fail 401", "hang before", "hang mid", "cut"]
