from __future__ import annotations

import json
from typing import Any

import pytest

from session_http.offline.directives import Cut, Fail, Hang
from session_http.offline.reply import Reply, Text, Thinking, ToolUse
from session_http.offline.wire import Body, Drop, Head, Pause, Step, steps

HELLO = Text(pieces=("hello", " there", " you"))


def run(reply: Reply, *, stream: bool = True) -> list[Step]:
    return list(
        steps(reply, model="claude-test", stream=stream, message_id="msg_1", request_id="req_1")
    )


def events(done: list[Step]) -> list[tuple[str, dict[str, Any]]]:
    raw = b"".join(step.data for step in done if isinstance(step, Body)).decode()
    found: list[tuple[str, dict[str, Any]]] = []
    for record in raw.split("\n\n")[:-1]:
        name, data = record.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def names(done: list[Step]) -> list[str]:
    return [name for name, _ in events(done)]


def document(done: list[Step]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        b"".join(step.data for step in done if isinstance(step, Body))
    )
    return found


def deltas(done: list[Step]) -> int:
    return sum(name == "content_block_delta" for name in names(done))


def test_a_stream_has_the_events_of_the_api() -> None:
    blocks = (Thinking(pieces=("hm",)), HELLO, ToolUse(name="Bash", input={"command": "ls"}))
    reply = Reply(
        blocks=blocks,
        stop_reason="tool_use",
        input_tokens=7,
        output_tokens=9,
        cache_read=3,
        cache_write=4,
        headers=(("x", "y"),),
    )
    done = run(reply)
    assert done[0] == Head(
        status=200,
        headers=(("content-type", "text/event-stream"), ("request-id", "req_1"), ("x", "y")),
    )
    found = events(done)
    assert all(data["type"] == name for name, data in found)
    start = found[0][1]["message"]
    assert (start["id"], start["model"], start["role"]) == ("msg_1", "claude-test", "assistant")
    assert start["usage"]["input_tokens"] == 7
    assert start["usage"]["cache_read_input_tokens"] == 3
    assert start["usage"]["cache_creation_input_tokens"] == 4
    assert [
        (data["index"], data["content_block"]["type"])
        for name, data in found
        if name == "content_block_start"
    ] == [(0, "thinking"), (1, "text"), (2, "tool_use")]
    got = [(data["index"], data["delta"]) for name, data in found if name == "content_block_delta"]
    assert got[:2] == [
        (0, {"type": "thinking_delta", "thinking": "hm"}),
        (0, {"type": "signature_delta", "signature": "msg_1"}),
    ]
    assert "".join(delta["text"] for index, delta in got if index == 1) == "hello there you"
    partial = "".join(delta["partial_json"] for index, delta in got if index == 2)
    assert json.loads(partial) == {"command": "ls"}
    assert found[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2][1]["usage"]["output_tokens"] == 9
    assert found[-1][0] == "message_stop"


def test_a_document_says_the_same_as_the_stream() -> None:
    blocks = (Thinking(pieces=("hm",)), HELLO, ToolUse(name="Bash", input={"command": "ls"}))
    done = run(Reply(blocks=blocks, stop_reason="tool_use", output_tokens=9), stream=False)
    found = document(done)
    assert [block["type"] for block in found["content"]] == ["thinking", "text", "tool_use"]
    assert found["content"][1]["text"] == "hello there you"
    assert found["content"][2]["input"] == {"command": "ls"}
    assert (found["stop_reason"], found["usage"]["output_tokens"]) == ("tool_use", 9)
    head = next(step for step in done if isinstance(step, Head))
    assert dict(head.headers)["content-length"] == str(
        len(json.dumps(found, separators=(",", ":")))
    )


def test_deltas_are_paced_but_the_first_comes_at_once() -> None:
    done = run(Reply(blocks=(HELLO,), delay_s=0.5))
    assert [step.seconds for step in done if isinstance(step, Pause)] == [0.5, 0.5]
    total = [
        step.seconds
        for step in run(Reply(blocks=(HELLO,), delay_s=0.5), stream=False)
        if isinstance(step, Pause)
    ]
    assert total == [1.5]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (418, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "api_error"),
        (529, "overloaded_error"),
    ],
)
def test_failures_have_the_shape_of_the_api(status: int, kind: str, stream: bool) -> None:
    done = run(Reply(fault=Fail(status=status, message="because")), stream=stream)
    head = next(step for step in done if isinstance(step, Head))
    assert head.status == status
    assert document(done) == {
        "type": "error",
        "error": {"type": kind, "message": "because"},
        "request_id": "req_1",
    }
    assert ("retry-after" in dict(head.headers)) is (status == 429)


def test_retry_after_is_in_seconds() -> None:
    (head, _) = run(Reply(fault=Fail(status=529, retry_after=2.5)))
    assert isinstance(head, Head)
    assert dict(head.headers)["retry-after"] == "2.5"


def test_a_cut_drops_the_connection_after_its_deltas() -> None:
    done = run(Reply(blocks=(HELLO,), fault=Cut(after=2)))
    assert isinstance(done[-1], Drop)
    assert deltas(done) == 2
    assert "content_block_stop" not in names(done)


def test_a_cut_in_a_block_leaves_the_blocks_before_it_whole() -> None:
    done = run(Reply(blocks=(HELLO, HELLO), fault=Cut(block=2, after=1)))
    assert deltas(done) == 4
    assert names(done).count("content_block_stop") == 1
    assert isinstance(done[-1], Drop)


@pytest.mark.parametrize(
    ("fault", "last"),
    [
        (Cut(after=0), "ping"),
        (Cut(block=2, after=0), "content_block_start"),
        (Cut(after=99), "content_block_stop"),
        (Cut(block=9, after=1), "content_block_stop"),
    ],
)
def test_the_edges_of_a_fault_in_mid_stream(fault: Cut, last: str) -> None:
    done = run(Reply(blocks=(HELLO, HELLO), fault=fault))
    assert names(done)[-1] == last
    assert isinstance(done[-1], Drop)


def test_a_cut_document_is_half_sent() -> None:
    done = run(Reply(blocks=(HELLO,), fault=Cut()), stream=False)
    head = next(step for step in done if isinstance(step, Head))
    sent = sum(len(step.data) for step in done if isinstance(step, Body))
    assert 0 < sent < int(dict(head.headers)["content-length"])
    assert isinstance(done[-1], Drop)


def test_a_hang_before_sends_nothing_first() -> None:
    done = run(Reply(blocks=(HELLO,), fault=Hang(where="before")))
    assert done[0] == Pause(seconds=None)
    done = run(Reply(blocks=(HELLO,), fault=Hang(where="before", ms=500)))
    assert done[0] == Pause(seconds=0.5)
    assert names(done)[-1] == "message_stop"


@pytest.mark.parametrize("stream", [True, False])
def test_a_hang_in_mid_stream_goes_on_after_its_time(stream: bool) -> None:
    done = run(Reply(blocks=(HELLO,), fault=Hang(where="mid", after=2, ms=500)), stream=stream)
    assert Pause(seconds=0.5) in done
    if stream:
        assert deltas(done[: done.index(Pause(seconds=0.5))]) == 2
        assert names(done)[-1] == "message_stop"
    else:
        assert document(done)["stop_reason"] == "end_turn"


def test_a_hang_can_ping() -> None:
    fault = Hang(where="mid", after=1, ms=500, ping_ms=200)
    done = run(Reply(blocks=(HELLO,), fault=fault))
    assert names(done).count("ping") == 3
    pauses = [step.seconds or 0 for step in done if isinstance(step, Pause)]
    assert sum(pauses) == pytest.approx(0.5)


def test_a_hang_that_pings_for_ever_does_so() -> None:
    fault = Hang(where="mid", after=1, ping_ms=200)
    reply = Reply(blocks=(HELLO,), fault=fault)
    endless = steps(reply, model="m", stream=True, message_id="msg_1", request_id="req_1")
    done = [next(endless) for _ in range(100)]
    assert names(done).count("ping") > 40


def test_a_failure_in_mid_stream_is_an_error_event() -> None:
    done = run(Reply(blocks=(HELLO,), fault=Fail(status=529, after=2)))
    name, data = events(done)[-1]
    assert (name, data["error"]["type"]) == ("error", "overloaded_error")
    assert deltas(done) == 2
    assert done[0] != Drop()
    done = run(Reply(blocks=(HELLO, HELLO), fault=Fail(status=500, block=2)))
    assert deltas(done) == 4


def test_a_failure_in_mid_stream_is_a_plain_failure_of_a_document() -> None:
    done = run(Reply(blocks=(HELLO,), fault=Fail(status=529, after=2)), stream=False)
    head = next(step for step in done if isinstance(step, Head))
    assert head.status == 529
