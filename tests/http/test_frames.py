"""Events as bytes: the reference's format, and merging that loses and doubles nothing."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_http.encoding import dump
from session_http.frames import CHUNK, chunks, frame, merged
from session_supervisor import Event, Outcome, events
from session_supervisor.answer import Answer, Correction
from session_supervisor.results import Origin
from tests.http.contract import parse_stream, the_contract

NOW = datetime(2025, 10, 14, 10, 30, tzinfo=UTC)


def text(seq: int, content: str, turn_id: str = "t") -> Event:
    return Event(seq, turn_id, NOW, events.Text(content=content))


def thought(seq: int, length: int) -> Event:
    return Event(seq, "t", NOW, events.Thinking(content="x" * length))


def sent(batch: list[Event]) -> list[tuple[int | None, object]]:
    said = parse_stream(b"".join(chunks(batch, session_id="s")))
    return [(one.id, one.data.get("content", one.type)) for one in said]


def test_a_text_event_is_what_the_reference_shows_and_its_ids() -> None:
    raw = frame(events.Text(content="Python "), session_id="s", turn_id="t", seq=3)
    assert raw == b'id: 3\ndata: {"type": "text", "content": "Python ", "turn_id": "t"}\n\n'


def test_a_terminal_event_names_session_and_turn() -> None:
    done = events.Done(
        outcome=Outcome.COMPLETED, response="hi", duration_ms=1, num_turns=1, total_cost_usd=0.1
    )
    (said,) = parse_stream(frame(done, session_id="s", turn_id="t", seq=9))
    assert said.id == 9
    assert list(said.data.items()) == [
        ("type", "done"),
        ("outcome", "completed"),
        ("response", "hi"),
        ("duration_ms", 1),
        ("num_turns", 1),
        ("total_cost_usd", 0.1),
        ("structured_output", None),
        ("session_id", "s"),
        ("turn_id", "t"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        events.Turn(phase="accepted", origin=Origin.USER),
        events.Discard(after=1),
        events.Thinking(content="hm"),
        events.ToolUse(tool_use_id="1", name="Bash", input={"command": "ls", "n": [1, None]}),
        events.ToolResult(tool_use_id="1", content=[{"type": "text", "text": "a"}]),
        events.Retrying(attempt=1, max_attempts=10, delay_ms=500, status=529),
        events.Status(state="restarting", reason="It died."),
        events.Result(
            num_turns=1,
            total_cost_usd=0.0,
            usage=MappingProxyType({"input_tokens": 3, "deep": {"a": 1}}),
            permission_denials=({"tool": "Bash"},),
        ),
        events.Error(outcome=Outcome.FAILED, code="timeout", message="Too long.", retryable=True),
        events.Gap(after=1, before=5),
        events.Bye(after=7),
    ],
    ids=lambda body: body.type,
)
def test_every_event_fits_its_description(body: events.Body) -> None:
    (said,) = parse_stream(frame(body, session_id="s", turn_id="t", seq=1))
    the_contract().check_value(said.data, "SessionEvent")
    assert next(iter(said.data)) == "type"


def test_adjacent_text_of_a_turn_becomes_one_event_with_the_last_id() -> None:
    batch = [text(1, "a"), text(2, "b"), text(3, "c")]
    assert sent(batch) == [(3, "abc")]


def test_text_of_two_turns_is_not_merged() -> None:
    assert sent([text(1, "a", "t"), text(2, "b", "u")]) == [(1, "a"), (2, "b")]


def test_text_is_not_merged_across_another_event() -> None:
    thinking = Event(2, "t", NOW, events.Thinking(content="hm"))
    assert sent([text(1, "a"), thinking, text(3, "b")]) == [(1, "a"), (2, "hm"), (3, "b")]


def test_text_is_not_merged_across_the_beginning_of_a_block() -> None:
    # A discard could withdraw the second block alone, from the id before it on.
    assert sent([text(1, "a"), text(2, "\n\nb"), text(3, "c")]) == [(1, "a"), (3, "\n\nbc")]


def test_merging_stops_before_an_event_becomes_long() -> None:
    batch = [text(n, f"{n:04}" + "ü" * 1000) for n in range(1, 257)]
    some = list(merged(batch))
    contents = [event.body.content for event in some if isinstance(event.body, events.Text)]
    assert "".join(contents) == "".join(f"{n:04}" + "ü" * 1000 for n in range(1, 257))
    assert all(CHUNK - 2004 < len(content.encode()) <= CHUNK for content in contents[:-1])
    assert len(contents) == 8
    assert [int(content[-1004:-1000]) for content in contents] == [event.seq for event in some]


def test_what_is_no_text_is_merged_all_the_same() -> None:
    assert sent([text(1, "a"), text(2, "\ud83d"), text(3, "b")]) == [(3, "a\ud83db")]


def test_a_long_batch_goes_out_in_pieces() -> None:
    batch = [thought(n, 20_000) for n in range(1, 21)]
    pieces = list(chunks(batch, session_id="s"))
    assert len(pieces) == 7
    assert all(len(piece) <= CHUNK for piece in pieces)
    assert [said.id for said in parse_stream(b"".join(pieces))] == list(range(1, 21))


def test_a_long_event_goes_out_by_itself_and_in_order() -> None:
    batch = [thought(1, 10), thought(2, 2 * CHUNK), thought(3, 10), thought(4, 10)]
    said = [parse_stream(piece) for piece in chunks(batch, session_id="s")]
    assert [[one.id for one in some] for some in said] == [[1], [2], [3, 4]]


def test_a_batch_is_encoded_only_as_far_as_it_is_sent() -> None:
    taken: list[int] = []

    def batch() -> Iterator[Event]:
        for n in range(1, 101):
            taken.append(n)
            yield thought(n, 20_000)

    pieces = chunks(batch(), session_id="s")
    next(pieces)
    assert len(taken) == 4
    next(pieces)
    assert len(taken) == 7


def test_readers_of_a_long_event_share_its_bytes_until_the_last_is_through() -> None:
    tracemalloc.start()
    try:
        event = thought(1, 8_000_000)
        before, _ = tracemalloc.get_traced_memory()
        readers = [chunks([event], session_id="s") for _ in range(10)]
        sending = [next(reader) for reader in readers]
        assert all(piece is sending[0] for piece in sending)
        (other,) = chunks([event], session_id="u")
        assert other is not sending[0]
        del other
        del readers, sending
        after, _ = tracemalloc.get_traced_memory()
        assert after - before < 1_000_000
    finally:
        tracemalloc.stop()


# What a model may do to its text, step by step.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("delta"), st.text("ab\n", min_size=1, max_size=3)),
        st.tuples(st.just("confirm"), st.none() | st.text("ab\n", max_size=4)),
        st.tuples(st.just("withdraw"), st.integers(0, 2)),
        st.tuples(st.just("other"), st.none()),
    ),
    max_size=30,
)


@given(steps=STEPS, cuts=st.sets(st.integers(0, 60)), resumes=st.sets(st.integers(0, 60)))
def test_text_less_what_was_discarded_is_the_answer_however_it_was_merged(
    steps: list[tuple[str, object]], cuts: set[int], resumes: set[int]
) -> None:
    """The real bookkeeping of a turn's text, read in batches that end anywhere."""
    answer, log = Answer(), list[Event]()

    def publish(correction: Correction) -> None:
        for body in (
            None
            if correction.discard_after is None
            else events.Discard(after=correction.discard_after),
            events.Text(content=correction.content) if correction.content else None,
        ):
            if body is not None:
                log.append(Event(len(log) + 1, "t", NOW, body))

    partial = ""
    for step, value in steps:
        if step == "delta":
            partial += str(value)
            publish(Correction(content=answer.delta(str(value), last_seq=len(log))))
        elif step == "confirm":
            publish(answer.confirm(partial if value is None else str(value), last_seq=len(log)))
            partial = ""
        elif step == "withdraw":
            assert isinstance(value, int)
            publish(answer.withdraw(value))
            partial = ""
        else:
            log.append(Event(len(log) + 1, None, NOW, events.Status(state="running")))
    had: list[tuple[int, str]] = []
    begin = 0
    for end in [*sorted(cut for cut in cuts if cut < len(log)), len(log)]:
        for event in merged(log[begin:end]):
            body = event.body
            if isinstance(body, events.Text):
                had.append((event.seq, body.content))
            elif isinstance(body, events.Discard):
                had = [(seq, content) for seq, content in had if seq <= body.after]
        begin = end
    assert "".join(content for _, content in had) == answer.text


@given(st.text(st.characters(codec=None)))
def test_any_text_is_one_line_of_utf_8_that_reads_back(content: str) -> None:
    raw = dump({"content": content})
    assert len(raw.decode().splitlines()) == 1
    assert json.loads(raw) == {"content": content}


def test_text_stays_readable() -> None:
    assert dump({"content": "Grüße 👋"}) == '{"content": "Grüße 👋"}'.encode()


def test_what_is_no_json_is_not_sent() -> None:
    with pytest.raises(TypeError, match="object cannot be sent"):
        dump({"content": object()})
