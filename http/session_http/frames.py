"""Events as the bytes of Server-Sent Events: merged, then encoded once.

A reader that keeps up gets each delta by itself. One that does not finds several waiting, and gets
adjacent text of one turn as one event with the last one's id, so what it has to catch up with
shrinks. Merging must not break what ids are for: a `discard` withdraws text behind an id,
always from where a block begins. So text is never merged across the beginning of a block, which
shows by its blank line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from session_http.encoding import dump
from session_supervisor import events
from session_supervisor.answer import BLOCK_SEPARATOR
from session_supervisor.events import Event

CHUNK = 256 * 1024
"""Bytes after which a batch goes out in pieces, so that a slow reader holds no more at once."""

PING = b": ping\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFailed:
    """The stream broke by a mistake of ours; the turn itself goes on.

    Attributes:
        code: `internal`.
        message: Where the answer can be looked up.
        retryable: Whether reading again may help.
    """

    message: str
    code: Literal["internal"] = "internal"
    retryable: bool = True
    type: Literal["error"] = "error"


Said: TypeAlias = events.Body | StreamFailed

BODIES: tuple[type[Any], ...] = get_args(Said)
"""Everything that a stream can carry."""

WITH_SESSION: tuple[type, ...] = (events.Turn, events.Done, events.Error, StreamFailed)
"""Those that also name the session, so that a client which knows only them can go on."""

_FIELDS: Mapping[type, tuple[str, ...]] = MappingProxyType(
    {body: tuple(field.name for field in fields(body) if field.name != "type") for body in BODIES}
)


def merged(batch: Iterable[Event]) -> Iterator[Event]:
    """Yield events, adjacent text of one block as one event with the last one's number."""
    first: Event | None = None
    pieces: list[str] = []
    last = 0
    for event in batch:
        body = event.body
        text = body.content if isinstance(body, events.Text) else None
        if (
            first is not None
            and text is not None
            and event.turn_id == first.turn_id
            and not text.startswith(BLOCK_SEPARATOR)
        ):
            pieces.append(text)
            last = event.seq
            continue
        if first is not None:
            yield _joined(first, pieces, last)
            first = None
        if text is None:
            yield event
        else:
            first, pieces, last = event, [text], event.seq
    if first is not None:
        yield _joined(first, pieces, last)


def _joined(first: Event, pieces: list[str], last: int) -> Event:
    if len(pieces) == 1:
        return first
    return replace(first, seq=last, body=events.Text(content="".join(pieces)))


def frame(body: Said, *, session_id: str, turn_id: str | None, seq: int | None) -> bytes:
    """Return one event as it is sent.

    Args:
        body: What is said.
        session_id: Whose.
        turn_id: The turn that it belongs to, if any.
        seq: Its id; None for an event that cannot be resumed from.
    """
    message: dict[str, object] = {"type": body.type}
    for name in _FIELDS[type(body)]:
        message[name] = getattr(body, name)
    if isinstance(body, WITH_SESSION):
        message["session_id"] = session_id
    if turn_id is not None:
        message["turn_id"] = turn_id
    data = b"data: " + dump(message) + b"\n\n"
    return data if seq is None else b"id: %d\n" % seq + data


def chunks(batch: Iterable[Event], *, session_id: str) -> Iterator[bytes]:
    """Yield a batch as bytes to send, in one piece unless it is long.

    Args:
        batch: Events in order.
        session_id: Whose.
    """
    pieces: list[bytes] = []
    size = 0
    for event in merged(batch):
        piece = frame(event.body, session_id=session_id, turn_id=event.turn_id, seq=event.seq)
        pieces.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(pieces)
            pieces, size = [], 0
    if pieces:
        yield b"".join(pieces)
