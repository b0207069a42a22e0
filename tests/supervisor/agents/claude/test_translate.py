"""The CLI's frames become the port's messages: on recordings of the real CLI, and on oddities."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from session_supervisor.agents.claude.translate import Translator
from session_supervisor.agents.port import (
    AgentMessage,
    Alive,
    BackgroundWork,
    Initialized,
    TextBlock,
    TextDelta,
    TextWithdrawn,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
    TurnBegan,
    TurnEnded,
    UpstreamLimit,
    UpstreamRetry,
)
from session_supervisor.errors import FailureCode
from session_supervisor.spec import JsonObject
from tests.supervisor.agents.conformance import heard_turns

RECORDED = sorted(Path(__file__).with_name("recorded").glob("*.jsonl"))
A = "00000000-0000-4000-8000-00000000000a"
B = "00000000-0000-4000-8000-00000000000b"
NOW = 1_800_000_000.0


def recorded(name: str) -> list[JsonObject]:
    path = Path(__file__).with_name("recorded") / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def translated(frames: Iterable[JsonObject]) -> list[AgentMessage]:
    """Everything but signs of life."""
    translator = Translator(now=lambda: NOW)
    messages = [message for frame in frames for message in translator.feed(frame)]
    return [message for message in messages if not isinstance(message, Alive)]


def story(name: str) -> list[object]:
    """A recording in short: what tells turns, texts and tools apart."""
    told: list[object] = []
    for message in translated(recorded(name)):
        match message:
            case TurnBegan(prompt_ids=ids):
                told.append(("began", *ids))
            case TurnEnded(prompt_ids=ids):
                how = "interrupted" if message.interrupted else message.failure and "failed"
                told.append((how or "ended", *ids))
            case TextDelta(text) | TextBlock(text) | ThinkingDelta(text):
                told.append((type(message).__name__, text))
            case ToolStarted() | ToolFinished():
                told.append((type(message).__name__, message.parent_tool_use_id is not None))
            case Initialized():
                pass
            case _:
                told.append(message)
    return told


def end_of(name: str) -> TurnEnded:
    ends = [one for one in translated(recorded(name)) if isinstance(one, TurnEnded)]
    return ends[-1]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_recording_follows_the_grammar_of_the_port(path: Path) -> None:
    assert heard_turns(translated(recorded(path.stem)))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_every_frame_says_at_least_that_the_process_lives(path: Path) -> None:
    translator = Translator(now=lambda: NOW)
    assert all(translator.feed(frame) for frame in recorded(path.stem))


def test_a_plain_turn() -> None:
    assert story("plain") == [
        ("began", A),
        ("TextDelta", "one"),
        ("TextBlock", "one"),
        ("TextDelta", "two"),
        ("TextBlock", "two"),
        ("ended", A),
    ]
    end = end_of("plain")
    assert (end.num_turns, end.stop_reason, end.permission_denials) == (1, "end_turn", ())
    assert end.cost_usd > 0


def test_the_process_says_who_it_is() -> None:
    said = next(one for one in translated(recorded("tool")) if isinstance(one, Initialized))
    assert said.agent_session_id
    assert said.model.startswith("claude-")
    assert "Bash" in said.tools
    assert said.version


def test_thinking_is_not_text() -> None:
    assert story("thinking") == [
        ("began", A),
        ("ThinkingDelta", "hm"),
        ("TextDelta", "so"),
        ("TextBlock", "so"),
        ("ended", A),
    ]


def test_a_tool_runs_between_two_texts() -> None:
    assert story("tool") == [
        ("began", A),
        ("TextDelta", "before"),
        ("TextBlock", "before"),
        ("ToolStarted", False),
        ("ToolFinished", False),
        ("TextDelta", "after"),
        ("TextBlock", "after"),
        ("ended", A),
    ]
    tool = [one for one in translated(recorded("tool")) if isinstance(one, ToolFinished)]
    assert [(one.content, one.is_error) for one in tool] == [("hi", False)]


def test_a_denied_tool_finishes_with_an_error_and_is_listed() -> None:
    finished = [one for one in translated(recorded("tool_denied")) if isinstance(one, ToolFinished)]
    assert [one.is_error for one in finished] == [True]
    (denial,) = end_of("tool_denied").permission_denials
    assert isinstance(denial, dict)
    assert denial["tool_name"] == "Bash"


def test_a_block_that_the_upstream_cut_is_withdrawn_and_comes_again() -> None:
    began, *texts, withdrawn, retry, w0, w1, w2, w3, block, ended = story("cut_in_first_block")
    assert (began, ended) == (("began", A), ("ended", A))
    assert texts == [("TextDelta", "w0"), ("TextDelta", " w1")]
    assert withdrawn == TextWithdrawn()
    assert isinstance(retry, UpstreamRetry)
    assert (retry.attempt, retry.max_attempts, retry.status) == (1, 1, None)
    assert retry.delay_s == pytest.approx(0.5, abs=0.5)
    assert [w0, w1, w2, w3, block] == [
        ("TextDelta", "w0"),
        ("TextDelta", " w1"),
        ("TextDelta", " w2"),
        ("TextDelta", " w3"),
        ("TextBlock", "w0 w1 w2 w3"),
    ]


def test_a_cut_takes_back_nothing_of_the_blocks_before_it() -> None:
    assert story("cut_in_second_block") == [
        ("began", A),
        ("TextDelta", "one"),
        ("TextBlock", "one"),
        ("TextDelta", "two"),
        TextWithdrawn(),
        ("TextDelta", "two"),
        ("TextBlock", "two"),
        ("ended", A),
    ]


def test_an_error_of_the_upstream_that_the_turn_survives_is_neither_text_nor_failure() -> None:
    assert "synthetic" in json.dumps(recorded("cut_after_tool_call"))
    assert story("cut_after_tool_call") == [
        ("began", A),
        ("ToolStarted", False),
        ("ToolFinished", False),
        ("TextDelta", "after"),
        ("TextBlock", "after"),
        ("ended", A),
    ]


def test_an_answer_that_comes_whole_after_a_broken_stream_replaces_what_was_streamed() -> None:
    assert story("failed_mid_stream") == [
        ("began", A),
        ("TextDelta", "w0"),
        ("TextDelta", " w1"),
        TextWithdrawn(),
        ("TextBlock", "w0 w1 w2 w3"),
        ("ended", A),
    ]


def test_an_interrupted_text_stays() -> None:
    messages = translated(recorded("interrupted_text"))
    streamed = "".join(one.text for one in messages if isinstance(one, TextDelta))
    assert streamed
    assert messages[-2] == TextBlock(streamed)
    end = messages[-1]
    assert isinstance(end, TurnEnded)
    assert (end.prompt_ids, end.interrupted, end.failure) == ((A,), True, None)


def test_an_interrupted_tool_has_a_result() -> None:
    assert story("interrupted_tool") == [
        ("began", A),
        ("ToolStarted", False),
        ("ToolFinished", False),
        ("interrupted", A),
    ]


def test_a_turn_of_the_agent_s_own_answers_no_prompt() -> None:
    told = [one for one in story("background") if not str(one).startswith("('TextDelta")]
    assert told == [
        ("began", A),
        ("ToolStarted", False),
        BackgroundWork(pending=1),
        ("ToolFinished", False),
        ("TextBlock", "started"),
        ("ended", A),
        BackgroundWork(pending=0),
        ("began",),
        ("TextBlock", 'I was told: "Background command "d" completed (exit code 0)"'),
        ("ended",),
    ]


def test_a_prompt_that_the_agent_takes_into_a_turn_of_its_own_gets_a_turn_from_there_on() -> None:
    told = [one for one in story("taken_in") if not str(one).startswith("('TextDelta")]
    assert told[told.index(BackgroundWork(pending=0)) + 1 :] == [
        ("began",),
        ("ToolStarted", False),
        ("ToolFinished", False),
        ("ended",),
        ("began", B),
        ("TextBlock", "yours"),
        ("ended", B),
    ]
    own, yours = [one for one in translated(recorded("taken_in")) if isinstance(one, TurnEnded)][1:]
    assert (own.num_turns, yours.num_turns) == (1, 1)


def test_a_subagent_s_tools_name_their_parent_and_its_text_is_not_part_of_the_answer() -> None:
    assert story("subagent") == [
        ("began", A),
        ("ToolStarted", False),
        ("ToolStarted", True),
        ("ToolFinished", True),
        ("ToolFinished", False),
        ("TextDelta", "after"),
        ("TextBlock", "after"),
        ("ended", A),
    ]
    names = [one.name for one in translated(recorded("subagent")) if isinstance(one, ToolStarted)]
    assert names == ["Task", "Bash"]


@pytest.mark.parametrize(
    ("name", "code", "retryable", "cause"),
    [
        ("error_400", FailureCode.UPSTREAM_REFUSED, False, "http_400"),
        ("error_401", FailureCode.AUTHENTICATION_FAILED, False, "http_401"),
        ("error_404", FailureCode.MODEL_NOT_FOUND, False, "http_404"),
        ("error_429", FailureCode.RATE_LIMITED, True, "http_429"),
        ("error_500", FailureCode.UPSTREAM_ERROR, True, "http_500"),
        ("error_529", FailureCode.OVERLOADED, True, "http_529"),
        ("refusal", FailureCode.REFUSED, False, "refusal"),
        ("max_tokens", FailureCode.UPSTREAM_ERROR, False, "max_output_tokens"),
        ("max_turns", FailureCode.MAX_TURNS, False, "max_turns"),
    ],
)
def test_a_failed_turn_has_a_failure_and_its_prose_is_no_text(
    name: str, code: FailureCode, retryable: bool, cause: str
) -> None:
    failure = end_of(name).failure
    assert failure is not None
    assert (failure.code, failure.retryable, failure.cause) == (code, retryable, cause)
    prose = recorded(name)[-1].get("result") or "max_turns"
    texts = [one.text for one in translated(recorded(name)) if isinstance(one, TextBlock)]
    assert prose not in texts
    assert len(failure.message) < 1000


def init(*prompt_ids: str) -> JsonObject:
    ids: dict[str, JsonValue] = {"user_message_uuids": list(prompt_ids)} if prompt_ids else {}
    return {"type": "system", "subtype": "init", "session_id": "s", "model": "m", **ids}


def event(**event: JsonValue) -> JsonObject:
    return {"type": "stream_event", "parent_tool_use_id": None, "event": event}


def delta(text: str) -> JsonObject:
    return event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def assistant(*content: JsonValue, **more: JsonValue) -> JsonObject:
    message: JsonObject = {"model": "m", "content": list(content)}
    return {"type": "assistant", "parent_tool_use_id": None, "message": message, **more}


def result(*prompt_ids: str, **more: JsonValue) -> JsonObject:
    return {"type": "result", "is_error": False, "user_message_uuids": list(prompt_ids), **more}


def test_a_retry_without_any_end_of_the_broken_message_withdraws_its_text_too() -> None:
    frames = [init(A), delta("w0"), event(type="message_start"), delta("new"), result(A)]
    assert translated(frames)[2:5] == [TextDelta("w0"), TextWithdrawn(), TextDelta("new")]


def test_text_that_nothing_confirms_is_withdrawn_at_the_end_of_the_turn() -> None:
    assert translated([init(A), delta("w0"), result(A)])[2:4] == [TextDelta("w0"), TextWithdrawn()]


def test_content_without_an_init_begins_a_turn() -> None:
    messages = translated([assistant({"type": "text", "text": "hi"}, user_message_uuids=[A])])
    assert messages == [TurnBegan(prompt_ids=(A,)), TextBlock("hi")]


def test_a_result_without_anything_before_it_is_a_turn_of_its_prompts() -> None:
    began, ended = translated([result(A)])
    assert began == TurnBegan(prompt_ids=(A,))
    assert isinstance(ended, TurnEnded)


def test_a_result_of_no_turn_and_no_prompt_is_a_complaint() -> None:
    translator = Translator(now=lambda: NOW)
    frame: JsonObject = {"type": "result", "is_error": True, "errors": ["No such thing."]}
    assert translator.feed(frame) == [Alive()]
    assert translator.complaint == "No such thing."


def test_an_agent_s_turn_whose_result_names_prompts_answers_them_in_a_turn_of_their_own() -> None:
    own, first, second = [
        one for one in translated([init(), result(A, B)]) if isinstance(one, TurnEnded | TurnBegan)
    ][1:]
    assert isinstance(own, TurnEnded)
    assert own.prompt_ids == ()
    assert first == TurnBegan(prompt_ids=(A, B))
    assert isinstance(second, TurnEnded)
    assert second.prompt_ids == (A, B)


def test_a_prompt_that_is_merged_into_another_one_s_turn_is_answered_with_it() -> None:
    began, ended = translated([init(A), result(A, B)])[1:]
    assert began == TurnBegan(prompt_ids=(A,))
    assert isinstance(ended, TurnEnded)
    assert ended.prompt_ids == (A, B)


def test_a_prompt_that_was_answered_is_not_answered_again_by_a_turn_that_names_it() -> None:
    stray: JsonObject = {"type": "system", "subtype": "status", "user_message_uuids": [A]}
    messages = translated([init(A), result(A), result(A), init(B), stray, result(A, B)])
    ends = [one.prompt_ids for one in messages if isinstance(one, TurnEnded)]
    assert ends == [(A,), (B,)]


def test_a_retry_between_turns_is_a_sign_of_life() -> None:
    retry: JsonObject = {"type": "system", "subtype": "api_retry", "attempt": 1}
    assert (
        translated([retry, init(A), result(A), retry])[-1] == translated([init(A), result(A)])[-1]
    )


def test_tools_of_a_subagent_that_outlives_its_turn_belong_to_no_turn() -> None:
    call: JsonObject = {"type": "tool_use", "id": "t", "name": "Agent", "input": {}}
    below: JsonObject = {"type": "tool_use", "id": "b", "name": "Bash", "input": {}}
    answer: JsonObject = {
        "type": "user",
        "parent_tool_use_id": "t",
        "message": {"content": [{"type": "tool_result", "tool_use_id": "b", "content": "x"}]},
    }
    late = assistant(below, parent_tool_use_id="t")
    frames = [init(A), assistant(call), result(A), late, answer, init(B), late, answer, result(B)]
    tools = [one for one in translated(frames) if isinstance(one, ToolStarted | ToolFinished)]
    assert [one.tool_use_id for one in tools] == ["t"]


def test_a_rate_limit_says_when_it_is_lifted() -> None:
    limit: JsonObject = {
        "type": "rate_limit_event",
        "rate_limit_info": {"status": "rejected", "resetsAt": NOW + 90},
    }
    failed = result(A, is_error=True, terminal_reason="api_error", api_error_status=429)
    end = translated([init(A), limit, failed])[-1]
    assert isinstance(end, TurnEnded)
    assert end.failure is not None
    assert end.failure.retry_after == 90.0


@pytest.mark.parametrize(
    ("info", "limit"),
    [
        (
            {"status": "allowed_warning", "resetsAt": NOW, "utilization": 0.9},
            UpstreamLimit(
                rejected=False, resets_at=datetime.fromtimestamp(NOW, UTC), utilization=0.9
            ),
        ),
        (
            {"status": "rejected", "rateLimitType": "five_hour"},
            UpstreamLimit(rejected=True, kind="five_hour"),
        ),
        ({"status": "rejected", "isUsingOverage": True}, UpstreamLimit(rejected=False)),
        ({"status": "rejected", "overageStatus": "allowed"}, UpstreamLimit(rejected=False)),
        ({"status": "rejected", "overageStatus": "rejected"}, UpstreamLimit(rejected=True)),
        ({"resetsAt": "soon", "utilization": None}, UpstreamLimit(rejected=False)),
        ({"resetsAt": NOW * 1_000}, UpstreamLimit(rejected=False)),
        ({"resetsAt": float("nan")}, UpstreamLimit(rejected=False)),
        (
            {"status": "rejected", "rateLimitType": "seven_day_opus"},
            UpstreamLimit(rejected=True, kind="seven_day_opus", of_one_model=True),
        ),
    ],
)
def test_a_limit_of_the_upstream_is_told_also_outside_of_a_turn(
    info: JsonObject, limit: UpstreamLimit
) -> None:
    frame: JsonObject = {"type": "rate_limit_event", "rate_limit_info": info}
    assert translated([frame]) == [limit]
    assert limit in translated([init(A), frame, result(A)])


def test_a_turn_says_by_which_message_it_can_be_found_again() -> None:
    def said(uuid: str, frame: JsonObject) -> JsonObject:
        return {**frame, "uuid": uuid}

    text: JsonObject = {"type": "text", "text": "t"}
    answer: JsonObject = {"type": "user", "message": {"content": []}, "parent_tool_use_id": None}
    end = translated(
        [
            said("status", init(A)),
            said("a", assistant(text)),
            said("b", answer),
            said("subagent", {**assistant(text), "parent_tool_use_id": "t"}),
            said("replayed", {**answer, "isReplay": True}),
            said("result", result(A)),
        ]
    )[-1]
    assert isinstance(end, TurnEnded)
    assert end.anchor == "b"
    empty = translated([init(A), said("result", result(A))])[-1]
    assert isinstance(empty, TurnEnded)
    assert empty.anchor is None


def test_an_answer_without_the_form_is_a_failure_but_not_of_commands_and_turns_by_itself() -> None:
    translator = Translator(now=lambda: NOW, structured=True)
    translator.expect_command(B)

    def ended(*frames: JsonObject) -> TurnEnded:
        end = [message for frame in frames for message in translator.feed(frame)][-1]
        assert isinstance(end, TurnEnded)
        return end

    missing = ended(init(A), result(A)).failure
    assert missing is not None
    assert missing.code is FailureCode.NO_STRUCTURED_OUTPUT
    assert ended(init(B), result(B)).failure is None
    assert ended(init(), result()).failure is None
    interrupted = ended(init("c"), result("c", terminal_reason="aborted_streaming"))
    assert interrupted.failure is None
    met = ended(init("d"), result("d", structured_output={"a": 1}))
    assert (met.failure, met.structured_output) == (None, {"a": 1})


def test_a_servers_tool_starts_and_finishes_within_one_message() -> None:
    call: JsonObject = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    answer: JsonObject = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    messages = translated([init(A), assistant(call), assistant(answer), result(A)])
    assert [type(one) for one in messages[2:4]] == [ToolStarted, ToolFinished]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_no_frame_whatever_is_in_it_breaks_the_translation(data: st.DataObject) -> None:
    """A real recording in which any value of any frame may be anything."""

    def mangled(value: JsonValue) -> JsonValue:
        if data.draw(st.integers(0, 30)) == 0:
            anything: JsonValue = data.draw(JSON)
            return anything
        if isinstance(value, dict):
            return {key: mangled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [mangled(inner) for inner in value]
        return value

    name = data.draw(st.sampled_from(["plain", "tool", "cut_in_first_block", "taken_in"]))
    translator = Translator(now=lambda: NOW)
    open_turns = 0
    for frame in recorded(name):
        for message in translator.feed({key: mangled(value) for key, value in frame.items()}):
            open_turns += isinstance(message, TurnBegan) - isinstance(message, TurnEnded)
            assert open_turns in (0, 1)
