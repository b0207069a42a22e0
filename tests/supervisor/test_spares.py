"""What has to agree for two sessions to have one process: all that is fixed when it starts."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.agents.port import Fingerprint
from session_supervisor.asks import Rule
from session_supervisor.spares import LONGEST, STARTED_IN, kind_of
from session_supervisor.spec import PermissionMode, SessionKind, SessionSpec

CHANGEABLE = {"model", "permission_mode", "cwd"}
"""What a process can be told, and the directory, which is its own."""

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "owner": st.sampled_from(["ann", "ben", ""]),
    "cwd": st.sampled_from(["/a", "/b"]),
    "model": st.none() | st.sampled_from(["opus", "haiku", ""]),
    "allowed_tools": st.none() | st.lists(st.sampled_from(["Read", "Bash"])).map(tuple),
    "permission_mode": st.sampled_from(get_args(PermissionMode)),
    "system_prompt": st.none() | st.sampled_from(["", "Be brief.", "null"]),
    "max_turns": st.none() | st.integers(1, 3),
    "background": st.booleans(),
    "asks": st.booleans(),
    "rules": st.lists(st.builds(Rule, tool=st.just("Edit"), content=st.none() | st.just("a"))).map(
        tuple
    ),
    "max_budget_usd": st.none() | st.sampled_from([0.5, 1.0]),
    "output_schema": st.none() | st.sampled_from([{}, {"type": "object"}, {"type": "null"}]),
    "mcp_servers": st.lists(st.sampled_from(["words", "more"])).map(tuple),
    "thinking": st.none() | st.booleans(),
}
FINGERPRINTS = st.builds(Fingerprint, **VALUES)


def fixed(fingerprint: Fingerprint) -> tuple[object, ...]:
    mode = fingerprint.permission_mode
    rest = [getattr(fingerprint, one.name) for one in fields(Fingerprint)]
    named = zip([one.name for one in fields(Fingerprint)], rest, strict=True)
    return mode if mode in STARTED_IN else None, *[
        value for name, value in named if name not in CHANGEABLE
    ]


def test_every_field_is_tried() -> None:
    assert set(VALUES) == {one.name for one in fields(Fingerprint)}


@given(FINGERPRINTS, FINGERPRINTS)
def test_two_have_one_kind_only_if_all_agrees_that_is_fixed(
    one: Fingerprint, other: Fingerprint
) -> None:
    assert (kind_of(one) == kind_of(other)) == (fixed(one) == fixed(other))


@given(FINGERPRINTS, st.data())
def test_a_change_of_one_field_alone_is_a_change_of_kind_unless_it_can_be_told(
    one: Fingerprint, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(VALUES)))
    other = replace(one, **{name: data.draw(VALUES[name])})
    assume(getattr(other, name) != getattr(one, name))
    told = name in CHANGEABLE
    if name == "permission_mode":
        told = STARTED_IN.isdisjoint({one.permission_mode, other.permission_mode})
    assert (kind_of(one) == kind_of(other)) == told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_tools", ("Read",)),
        ("system_prompt", "s"),
        ("max_turns", 3),
        ("max_budget_usd", 1.0),
        ("output_schema", {"type": "object"}),
        ("mcp_servers", ("words",)),
        ("thinking", True),
        ("model", "opus"),
        ("permission_mode", "acceptEdits"),
        ("idle_timeout_s", 1.0),
        ("expiry_s", 1.0),
        ("permission_timeout_s", 1.0),
        ("title", "t"),
        ("metadata", {"a": "b"}),
        ("cwd", "/elsewhere"),
    ],
)
def test_what_a_caller_chooses_is_in_the_kind_or_never_reaches_a_process(
    name: str, value: Any
) -> None:
    def kind(spec: SessionSpec) -> str | None:
        return kind_of(Fingerprint.of(spec, owner="o", cwd="/w", kind=SessionKind.CONVERSATION))

    same = kind(SessionSpec()) == kind(replace(SessionSpec(), **{name: value}))
    fixed_at_start = name in {one.name for one in fields(Fingerprint)} - CHANGEABLE
    assert same == (not fixed_at_start)


@pytest.mark.parametrize("permission_mode", sorted(STARTED_IN))
def test_a_mode_that_cannot_be_left_without_a_trace_is_a_kind_of_its_own(
    permission_mode: PermissionMode,
) -> None:
    kinds = {
        kind_of(Fingerprint(owner="o", cwd="/w", permission_mode=mode))
        for mode in ("default", "acceptEdits", permission_mode)
    }
    assert len(kinds) == 2


@pytest.mark.parametrize(
    "given", [{"system_prompt": "x" * LONGEST}, {"output_schema": {"title": "x" * LONGEST}}]
)
def test_what_is_too_long_to_be_remembered_is_of_no_kind(given: dict[str, Any]) -> None:
    assert kind_of(Fingerprint(owner="o", cwd="/w", **given)) is None


def test_who_names_no_model_can_have_the_process_of_who_does() -> None:
    agent = ClaudeAgent(model="sonnet")
    unnamed = Fingerprint(owner="o", cwd="/w")
    assert agent.spelled_out(unnamed) == replace(unnamed, model="sonnet")
    named = replace(unnamed, model="haiku")
    assert agent.spelled_out(named) == named


@pytest.mark.parametrize(
    ("model", "can"), [("haiku", True), ("claude-3-opus-20240229", True), ("claude-none", False)]
)
def test_only_of_a_model_that_the_cli_knows_a_process_is_told(model: str, can: bool) -> None:
    assert ClaudeAgent().can_be_told(model) == can
    one = Fingerprint(owner="o", cwd="/w", model=model)
    other = replace(one, model="sonnet")
    assert (kind_of(one, told_model=can) == kind_of(other)) == can
