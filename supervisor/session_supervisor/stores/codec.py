"""Records as JSON, and runs of events as one row.

A model writes its answer in thousands of pieces, each an event with a number. They are kept as one
text with the length of each piece: a row for many events, out of which every one of them, and so
every place in the middle of an answer, can be had again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, TypeAdapter

from session_supervisor.asks import Request
from session_supervisor.errors import Spoiled
from session_supervisor.events import Body, Event, Text, Thinking, weight
from session_supervisor.results import TurnRecord
from session_supervisor.stores.records import Claim, SessionRecord

T = TypeVar("T")

LONGEST_RUN = 16 * 2**10
"""Characters of text in one row at most (a single piece may be longer)."""

GROWS_TO = 512
SPILLS_FROM, SPILLED_GROWS_TO = 960, 3 * 2**10
"""Bytes of a row that grows by what comes later.

To grow, it is read and written anew. So what a piece costs does not depend on how long the text is
already, and yet a text that comes in small pieces does not become as many rows. A row of almost a
kibibyte takes a page of 4 KiB to itself, which it may fill.
"""

_bodies: TypeAdapter[Body] = TypeAdapter(Annotated[Body, Discriminator("type")])
_sessions = TypeAdapter(SessionRecord)
_turns = TypeAdapter(TurnRecord)
_claims = TypeAdapter(Claim)
_requests = TypeAdapter(Request)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def encode_session(record: SessionRecord) -> bytes:
    """Return a session as JSON."""
    return _dumped(_sessions.dump_python(record, mode="json"))


def decode_session(raw: bytes) -> SessionRecord:
    """Return the session that was encoded.

    Raises:
        Spoiled: Nothing like it was.
    """
    return _decoded(raw, "A session", lambda fields: _sessions.validate_python(fields))


def encode_turn(record: TurnRecord) -> bytes:
    """Return a turn as JSON; the text of one that has ended once, not twice."""
    fields = _turns.dump_python(record, mode="json")
    if record.result is not None and record.result.text == record.text:
        fields["text"] = ""
    return _dumped(fields)


def decode_turn(raw: bytes) -> TurnRecord:
    """Return the turn that was encoded.

    Raises:
        Spoiled: Nothing like it was.
    """
    record = _decoded(raw, "A turn", lambda fields: _turns.validate_python(fields))
    return record if record.result is None else replace(record, text=record.result.text)


def encode_claim(record: Claim) -> bytes:
    """Return a claim as JSON."""
    return _dumped(_claims.dump_python(record, mode="json"))


def decode_claim(raw: bytes) -> Claim:
    """Return the claim that was encoded.

    Raises:
        Spoiled: Nothing like it was.
    """
    return _decoded(raw, "A key for work", lambda fields: _claims.validate_python(fields))


def encode_request(record: Request) -> bytes:
    """Return a request as JSON."""
    return _dumped(_requests.dump_python(record, mode="json"))


def decode_request(raw: bytes) -> Request:
    """Return the request that was encoded.

    Raises:
        Spoiled: Nothing like it was.
    """
    return _decoded(raw, "A request", lambda fields: _requests.validate_python(fields))


@dataclass(frozen=True, slots=True)
class Run:
    """Events without holes that make one row.

    Attributes:
        first_seq: Number of the first.
        last_seq: Number of the last.
        weight: What they weigh against a retention, as `events.weight` counts.
        record: They themselves.
        at: When the last of them happened, as `stamp` counts.
    """

    first_seq: int
    last_seq: int
    weight: int
    record: bytes
    at: int


@dataclass(slots=True)
class _Pieces:
    """A row that grows: the pieces of one text.

    Attributes:
        type: `text` or `thinking`.
        turn: The turn that they belong to.
        texts: The pieces, or many of them as one.
        ends: Of each piece, its length and its time, alternating.
        size: Their length, characters.
    """

    type: str
    turn: str | None
    texts: list[str]
    ends: list[int]
    size: int

    def takes(self, event: Event) -> bool:
        """Whether an event belongs to this text, and fits into the row."""
        body = event.body
        return (
            isinstance(body, (Text, Thinking))
            and body.type == self.type
            and event.turn_id == self.turn
            and self.size + len(body.content) <= LONGEST_RUN
        )

    def take(self, event: Event) -> None:
        """Add an event that belongs here."""
        assert isinstance(event.body, (Text, Thinking))
        content = event.body.content
        self.texts.append(content)
        self.ends += (len(content), stamp(event.at))
        self.size += len(content)

    def dumped(self) -> bytes:
        """Return it as a row."""
        record = {
            "type": self.type,
            "turn": self.turn,
            "text": "".join(self.texts),
            "pieces": self.ends,
        }
        return _dumped(record)


def runs_of(events: Sequence[Event], *, last: Run | None = None) -> Iterator[Run]:
    """Yield events as rows, the pieces of a text together.

    Args:
        events: In order, without holes.
        last: The row before them, if there is one. If the first of them belong to the same text,
            and it is short, the first row that is yielded takes its place, and begins with its
            `first_seq`.
    """
    at = 0
    if last is not None and events and (pieces := _reopened(last.record)) is not None:
        start, weighed = last.first_seq, last.weight
        while at < len(events) and pieces.takes(events[at]):
            pieces.take(events[at])
            weighed += weight(events[at])
            at += 1
        if at:
            yield Run(start, events[at - 1].seq, weighed, pieces.dumped(), pieces.ends[-1])
    while at < len(events):
        first = events[at]
        at += 1
        body = first.body
        if not isinstance(body, (Text, Thinking)):
            yield Run(first.seq, first.seq, weight(first), _single(first), stamp(first.at))
            continue
        pieces, weighed = _Pieces(body.type, first.turn_id, [], [], 0), weight(first)
        pieces.take(first)
        while at < len(events) and pieces.takes(events[at]):
            pieces.take(events[at])
            weighed += weight(events[at])
            at += 1
        yield Run(first.seq, events[at - 1].seq, weighed, pieces.dumped(), pieces.ends[-1])


def events_of(first_seq: int, record: bytes) -> list[Event]:
    """Return the events of a row.

    Args:
        first_seq: Number of the first.
        record: The row.

    Raises:
        Spoiled: It is no such row.
    """
    return _decoded(record, f"Event {first_seq}", lambda raw: _events_of(first_seq, raw))


def _events_of(first_seq: int, raw: Any) -> list[Event]:
    turn_id = raw["turn"]
    if "pieces" not in raw:
        return [Event(first_seq, turn_id, _time(raw["at"]), _bodies.validate_python(raw["body"]))]
    make = Text if raw["type"] == "text" else Thinking
    text: str = raw["text"]
    pieces = iter(raw["pieces"])
    found, start = list[Event](), 0
    for seq, (length, at) in enumerate(zip(pieces, pieces, strict=True), start=first_seq):
        stop = start + length
        found.append(Event(seq, turn_id, _time(at), make(content=text[start:stop])))
        start = stop
    return found


def stamp(at: datetime) -> int:
    """Return a time as whole microseconds since 1970: exact, unlike seconds in a float."""
    return (at - _EPOCH) // _MICROSECOND


def _reopened(record: bytes) -> _Pieces | None:
    """Return a row that grows on, or None if it is long or holds no text."""
    size = len(record)
    short = size < GROWS_TO or SPILLS_FROM <= size < SPILLED_GROWS_TO
    if not short or not record.startswith(b'{"type":'):
        return None
    try:
        return _decoded(record, "The last event", _pieces_of)
    except Spoiled:  # what comes has a row of its own, and can be read
        return None


def _pieces_of(raw: Any) -> _Pieces:
    return _Pieces(raw["type"], raw["turn"], [raw["text"]], raw["pieces"], len(raw["text"]))


def _single(event: Event) -> bytes:
    body = _bodies.dump_python(event.body, mode="json")
    return _dumped({"turn": event.turn_id, "at": stamp(event.at), "body": body})


def _time(at: int) -> datetime:
    return _EPOCH + at * _MICROSECOND


def _decoded(raw: bytes, what: str, make: Callable[[Any], T]) -> T:
    try:
        return make(json.loads(raw))
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # Its words, which would be logged, could quote what somebody said.
        raise Spoiled(what, type(error).__name__) from None


def _dumped(value: object) -> bytes:
    # In ASCII, since half a surrogate pair, which models do write, is no UTF-8.
    return json.dumps(value, separators=(",", ":")).encode("ascii")
