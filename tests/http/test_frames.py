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
from session_http.frames import CHUNK, Frames, frame, merged, runs
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
    said = parse_stream(b"".join(Frames("s").chunks(batch)))
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


@given(content=st.text(st.characters(codec=None)), turn_id=st.text(min_size=1))
def test_a_piece_of_text_is_encoded_as_any_other_event(content: str, turn_id: str) -> None:
    event = text(7, content, turn_id)
    whole = frame(event.body, session_id="s", turn_id=turn_id, seq=7)
    assert Frames("s").at_once([event]) == whole


CONTENTS = st.lists(st.tuples(st.sampled_from("tu"), st.text(st.characters(codec=None))))


@given(said=CONTENTS)
def test_merged_text_is_what_was_said_to_the_byte(said: list[tuple[str, str]]) -> None:
    batch = [text(n, content, turn_id) for n, (turn_id, content) in enumerate(said, start=1)]
    at_once = Frames("s").at_once(batch)
    assert (at_once or b"") == b"".join(Frames("s").chunks(batch))
    told = parse_stream(at_once or b"")
    for turn in "tu":
        assert "".join(one.data["content"] for one in told if one.data["turn_id"] == turn) == (
            "".join(content for turn_id, content in said if turn_id == turn)
        )
    assert [one.id for one in told][-1:] == [len(batch)][: len(batch)]


def test_readers_at_one_place_share_bytes_and_others_do_not() -> None:
    frames = Frames("s")
    batch = [text(1, "a"), text(2, "b"), thought(3, 10)]
    assert frames.at_once(batch[:1]) is frames.at_once(batch[:1])
    assert frames.at_once(batch) is frames.at_once(batch)
    assert next(frames.chunks(batch[:2])) is frames.at_once(batch[:2])
    # Who reads only one turn has fewer events between the same two.
    assert frames.at_once([batch[0], batch[2]]) != frames.at_once(batch)
    # The number of an event that is gone: a gap has it, too.
    gap = Event(1, None, NOW, events.Gap(after=0, before=2))
    assert frames.at_once([gap]) != frames.at_once(batch[:1])


def test_what_is_too_long_for_one_piece_is_not_given_as_one() -> None:
    assert Frames("s").at_once([thought(1, 2 * CHUNK)]) is None
    assert Frames("s").at_once([thought(n, 20_000) for n in range(1, 9)]) is None
    assert Frames("s").at_once([]) is None


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
    some = [merged(run) for run in runs(batch)]
    contents = [event.body.content for event in some if isinstance(event.body, events.Text)]
    assert "".join(contents) == "".join(f"{n:04}" + "ü" * 1000 for n in range(1, 257))
    assert all(CHUNK - 2004 < len(content.encode()) <= CHUNK for content in contents[:-1])
    assert len(contents) == 8
    assert [int(content[-1004:-1000]) for content in contents] == [event.seq for event in some]


def test_what_is_no_text_is_merged_all_the_same() -> None:
    assert sent([text(1, "a"), text(2, "\ud83d"), text(3, "b")]) == [(3, "a\ud83db")]


def test_a_long_batch_goes_out_in_pieces() -> None:
    batch = [thought(n, 20_000) for n in range(1, 21)]
    pieces = list(Frames("s").chunks(batch))
    assert len(pieces) == 7
    assert all(len(piece) <= CHUNK for piece in pieces)
    assert [said.id for said in parse_stream(b"".join(pieces))] == list(range(1, 21))


def test_a_long_event_goes_out_by_itself_and_in_order() -> None:
    batch = [thought(1, 10), thought(2, 2 * CHUNK), thought(3, 10), thought(4, 10)]
    said = [parse_stream(piece) for piece in Frames("s").chunks(batch)]
    assert [[one.id for one in some] for some in said] == [[1], [2], [3, 4]]


def test_a_batch_is_encoded_only_as_far_as_it_is_sent() -> None:
    taken: list[int] = []

    def batch() -> Iterator[Event]:
        for n in range(1, 101):
            taken.append(n)
            yield thought(n, 20_000)

    pieces = Frames("s").chunks(batch())
    next(pieces)
    assert len(taken) == 4
    next(pieces)
    assert len(taken) == 7


def test_readers_of_a_long_event_share_its_bytes_until_the_last_is_through() -> None:
    tracemalloc.start()
    try:
        event = thought(1, 8_000_000)
        before, _ = tracemalloc.get_traced_memory()
        readers = [Frames.of("s").chunks([event]) for _ in range(10)]
        sending = [next(reader) for reader in readers]
        assert all(piece is sending[0] for piece in sending)
        (other,) = Frames.of("u").chunks([event])
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
        for event in map(merged, runs(log[begin:end])):
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
