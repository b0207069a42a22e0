"""What one process asks a human, apart from the CLI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import JsonValue

from session_supervisor.agents.claude.confinement import Confinement
from session_supervisor.agents.claude.permissions import (
    Permissions,
    below,
    fitting,
    spelled,
    usable,
)
from session_supervisor.agents.port import AskWithdrawn, PermissionAsked, QuestionAsked
from session_supervisor.asks import Allow, Answers, Deny, Rule
from session_supervisor.spec import JsonObject

pytestmark = pytest.mark.anyio


def request(
    tool: str, *, cli_id: str = "r", more: JsonObject | None = None, **given: JsonValue
) -> JsonObject:
    asked: JsonObject = {
        "subtype": "can_use_tool",
        "tool_name": tool,
        "input": given,
        "tool_use_id": "call",
        **(more or {}),
    }
    return {"type": "control_request", "request_id": cli_id, "request": asked}


def permission(permissions: Permissions, frame: JsonObject) -> PermissionAsked:
    asked = permissions.asked(frame)
    assert isinstance(asked, PermissionAsked)
    return asked


def told(frame: JsonObject | None) -> JsonObject:
    assert frame is not None
    response = frame["response"]
    assert isinstance(response, dict)
    assert response["subtype"] == "success"
    assert response["request_id"] == "r"
    answer = response["response"]
    assert isinstance(answer, dict)
    return answer


async def test_a_request_is_told_with_the_rules_that_the_cli_proposes() -> None:
    proposed: JsonValue = [
        {
            "type": "addRules",
            "behavior": "allow",
            "rules": [{"toolName": "Bash", "ruleContent": "ls *"}, {"toolName": "Bash"}],
            "destination": "localSettings",
        },
        {"type": "addRules", "behavior": "deny", "rules": [{"toolName": "Read"}]},
        {"type": "setMode", "mode": "acceptEdits", "destination": "session"},
        "nonsense",
    ]
    permissions = Permissions(asks=True)
    asked = permission(
        permissions, request("Bash", command="ls", more={"permission_suggestions": proposed})
    )
    assert (asked.tool, asked.tool_use_id, asked.input) == ("Bash", "call", {"command": "ls"})
    assert asked.suggestions == (Rule(tool="Bash", content="ls *"), Rule(tool="Bash"))
    allow = Allow(remember=asked.suggestions)
    assert told(await permissions.answer(asked.request_id, allow)) == {
        "behavior": "allow",
        "updatedInput": {"command": "ls"},
        "updatedPermissions": [
            {
                "type": "addRules",
                "rules": [{"toolName": "Bash", "ruleContent": "ls *"}, {"toolName": "Bash"}],
                "behavior": "allow",
                "destination": "session",
            }
        ],
    }


@pytest.mark.parametrize(
    ("tool", "given", "rule"),
    [
        ("Read", {"file_path": "/a b/[c]/d"}, Rule(tool="Read", content=r"//a\ b/\[c\]/**")),
        ("Glob", {"pattern": "*", "path": "/a/b"}, Rule(tool="Read", content="//a/b/**")),
        ("Write", {"file_path": "/a/b"}, Rule(tool="Edit", content="//a/**")),
        ("Agent", {"prompt": "go"}, Rule(tool="Task")),
        ("mcp__server__tool", {}, Rule(tool="mcp__server__tool")),
        ("Bash", {"command": "rm -r /"}, None),
        ("Grep", {"pattern": "x"}, None),
    ],
)
def test_where_the_cli_proposes_no_rule_there_is_one_of_ours(
    tool: str, given: JsonObject, rule: Rule | None
) -> None:
    asked = permission(Permissions(asks=True), request(tool, more={"input": given}))
    assert asked.suggestions == (() if rule is None else (rule,))


def test_where_nobody_is_asked_there_is_no_request() -> None:
    assert Permissions(asks=False).asked(request("Bash", command="ls")) is None


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "control_request", "request_id": "r", "request": {"subtype": "hook_callback"}},
        {"type": "control_request", "request_id": "r", "request": "can_use_tool"},
        {"type": "control_request", "request": {"subtype": "can_use_tool"}},
        request("Bash", more={"input": "ls"}),
        request("Bash", more={"tool_name": 7}),
    ],
)
def test_what_is_no_request_is_left_to_others(frame: JsonObject) -> None:
    assert Permissions(asks=True).asked(frame) is None


async def test_a_denial_has_words_and_may_end_the_turn() -> None:
    permissions = Permissions(asks=True)
    for decision, answer in {
        Deny(): {"behavior": "deny", "message": "This was not allowed."},
        Deny(message="No."): {"behavior": "deny", "message": "No."},
        Deny(message="No.", end_turn=True): {
            "behavior": "deny",
            "message": "No.",
            "interrupt": True,
        },
    }.items():
        asked = permission(permissions, request("Bash", command="ls"))
        assert told(await permissions.answer(asked.request_id, decision)) == answer


async def test_questions_are_told_and_their_answers_joined_as_the_cli_has_them() -> None:
    given: JsonObject = {
        "questions": [
            {
                "question": "Which?",
                "header": "h",
                "options": [{"label": "a", "description": "A"}, {"label": "b"}, "nonsense"],
                "multiSelect": True,
            },
            {"question": "Why?"},
            {"header": "no question"},
        ]
    }
    permissions = Permissions(asks=True)
    asked = permissions.asked(request("AskUserQuestion", more={"input": given}))
    assert isinstance(asked, QuestionAsked)
    one, other = asked.questions
    assert (one.question, one.header, one.multi_select) == ("Which?", "h", True)
    assert [(each.label, each.description) for each in one.options] == [("a", "A"), ("b", "")]
    assert (other.question, other.options, other.multi_select) == ("Why?", (), False)
    for wrong in (Allow(),):
        with pytest.raises(ValueError, match="AskUserQuestion"):
            await permissions.answer(asked.request_id, wrong)
    answers = Answers(answers={"Which?": ("a", "b, c"), "Why?": ('"So"',), "Else?": ("x",)})
    assert told(await permissions.answer(asked.request_id, answers)) == {
        "behavior": "allow",
        "updatedInput": {**given, "answers": {"Which?": "a, b, c", "Why?": '"So"'}},
    }


async def test_a_permission_is_not_answered_like_a_question() -> None:
    permissions = Permissions(asks=True)
    asked = permission(permissions, request("Bash", command="ls"))
    with pytest.raises(ValueError, match="Bash"):
        await permissions.answer(asked.request_id, Answers(answers={}))
    assert await permissions.answer(asked.request_id, Allow()) is not None


async def test_a_request_that_is_withdrawn_or_answered_is_over() -> None:
    permissions = Permissions(asks=True)
    first = permission(permissions, request("Bash", cli_id="r", command="ls"))
    second = permission(permissions, request("Bash", cli_id="s", command="ls"))
    assert permissions.withdrawn({"request_id": "r"}) == AskWithdrawn(first.request_id)
    assert permissions.withdrawn({"request_id": "r"}) is None
    assert permissions.withdrawn({"request_id": "a hook"}) is None
    assert await permissions.answer(first.request_id, Allow()) is None
    assert await permissions.answer(second.request_id, Deny()) is not None
    assert await permissions.answer(second.request_id, Allow()) is None
    assert permissions.withdrawn({"request_id": "s"}) is None


def test_rules_that_the_cli_would_not_understand_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = (Rule(tool="Bash"), Rule(tool="Bash", content="a\nb"), Rule(tool="mcp__a__*"))
    bad = (Rule(tool="Bash(x)"), Rule(tool="*"), Rule(tool="Bash", content=" "), Rule(tool=""))
    assert usable((*good, *bad)) == good
    assert "would not understand" in caplog.text
    caplog.clear()
    assert usable(good) == good
    assert not caplog.records


def test_of_too_many_rules_the_oldest_are_left_out() -> None:
    rules = tuple(Rule(tool="Bash", content=f"{n} " + "ü" * 1_000) for n in range(200))
    kept = fitting(rules)
    assert 0 < len(kept) < 200
    assert kept == rules[-len(kept) :]
    assert len(json.dumps([spelled(rule) for rule in kept]).encode()) < 100_000
    assert fitting(rules[:3]) == rules[:3]


def test_rules_are_spelled_so_that_the_cli_reads_what_was_meant() -> None:
    assert spelled(Rule(tool="Bash")) == "Bash"
    assert spelled(Rule(tool="Bash", content=r"echo (a) \n")) == r"Bash(echo \(a\) \\n)"
    assert below("/a/b") == "//a/b/**"
    assert below("/") == "//**"


class TestHook:
    """What the hook says to calls of file tools."""

    @pytest.fixture
    def limits(self, tmp_path: Path) -> Confinement:
        (tmp_path / "cwd").mkdir()
        (tmp_path / "hidden").mkdir()
        return Confinement.of(
            {"HOME": str(tmp_path)},
            cwd=str(tmp_path / "cwd"),
            scratch=str(tmp_path / "scratch"),
            hidden_dirs=[str(tmp_path / "hidden")],
            shared_dirs=[str(tmp_path / "everybodys")],
            asks=True,
        )

    @staticmethod
    def said(
        permissions: Permissions, limits: Confinement, path: str, mode: str = "default"
    ) -> str | None:
        cwd = limits.roots[0]
        call: JsonObject = {
            "tool_name": "Read",
            "tool_input": {"file_path": f"{cwd}/{path}"},
            "cwd": cwd,
            "permission_mode": mode,
        }
        verdict = permissions.judge(call)
        if not verdict:
            return None
        output = verdict["hookSpecificOutput"]
        assert isinstance(output, dict)
        assert "outside of the session's directory" in str(output["permissionDecisionReason"])
        return str(output["permissionDecision"])

    def test_it_asks_about_what_is_outside_and_denies_what_is_hidden(
        self, limits: Confinement
    ) -> None:
        permissions = Permissions(asks=True, confinement=limits)
        for path, verdict in {
            "own": None,
            "../file": "ask",
            "../hidden/file": "deny",
            "../everybodys/file": "deny",
            "../.claude.json": "deny",
            f"{'../' * 20}proc/version": "deny",
        }.items():
            assert self.said(permissions, limits, path) == verdict, path

    def test_it_denies_where_nobody_is_asked(self, limits: Confinement) -> None:
        asking = Permissions(asks=True, confinement=limits)
        assert self.said(asking, limits, "../file", "bypassPermissions") == "deny"
        silent = Permissions(asks=False, confinement=limits)
        assert self.said(silent, limits, "../file") == "deny"

    async def test_with_a_rule_the_cli_decides_about_what_is_outside_and_not_hidden(
        self, limits: Confinement
    ) -> None:
        for rule, verdict in {
            Rule(tool="Read", content="//a/**"): None,
            Rule(tool="Glob"): None,
            Rule(tool="Edit"): "ask",
            Rule(tool="Bash"): "ask",
        }.items():
            told_before = Permissions(asks=True, rules=[rule], confinement=limits)
            told_now = Permissions(asks=True, confinement=limits)
            asked = permission(told_now, request("Bash", command="ls"))
            await told_now.answer(asked.request_id, Allow(remember=(rule,)))
            for permissions in (told_before, told_now):
                assert self.said(permissions, limits, "../file") == verdict
                assert self.said(permissions, limits, "../hidden/file") == "deny"

    async def test_what_is_allowed_is_judged_by_where_the_call_was_made(
        self, limits: Confinement
    ) -> None:
        permissions = Permissions(asks=True, confinement=limits)
        for known, relative, behavior in (
            (True, "own", "allow"),
            (True, "../hidden/file", "deny"),
            (False, "own", "deny"),
        ):
            if known:
                permissions.note({"cwd": limits.roots[0], "tool_input": {}}, "call")
            asked = permission(permissions, request("Read", file_path="/a"))
            allow = Allow(updated_input={"file_path": relative})
            assert told(await permissions.answer(asked.request_id, allow))["behavior"] == behavior

    async def test_calls_that_never_asked_are_forgotten(self, limits: Confinement) -> None:
        permissions = Permissions(asks=True, confinement=limits)
        permissions.note({"cwd": limits.roots[0]}, "call")
        for number in range(1000):
            permissions.note({"cwd": limits.roots[0]}, str(number))
        asked = permission(permissions, request("Read", file_path="own"))
        assert told(await permissions.answer(asked.request_id, Allow()))["behavior"] == "deny"
