"""Events as the bytes of Server-Sent Events: merged, then encoded when it is their turn.

A reader that keeps up gets each delta by itself. One that does not finds several waiting, and gets
adjacent text of one turn as one event with the last one's id, so what it has to catch up with
shrinks. Merging must not break what ids are for: a `discard` withdraws text behind an id,
always from where a block begins. So text is never merged across the beginning of a block, which
shows by its blank line.

Nor is it merged without end: what a reader does not read is held for it, so there must not be
much. A long event cannot be cut, but all who are sending it share its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args
from weakref import WeakValueDictionary

from session_http import cutting
from session_http.encoding import dump
from session_supervisor import events
from session_supervisor.answer import BLOCK_SEPARATOR
from session_supervisor.events import Event

CHUNK = 64 * 1024
"""Most bytes of text merged, of events joined and of one send: what a slow reader holds."""

PING = b": ping\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFailed:
    """The stream ends and the turn itself goes on: by a mistake of ours, or a revoked key.

    Attributes:
        code: `internal`, or `unauthorized` where the reader's key was revoked.
        message: What happened, and where the answer can be looked up.
        retryable: Whether reading again may help.
    """

    message: str
    code: Literal["internal", "unauthorized"] = "internal"
    retryable: bool = True
    type: Literal["error"] = "error"


Said: TypeAlias = events.Body | StreamFailed

BODIES: tuple[type[Any], ...] = get_args(Said)
"""Everything that a stream can carry."""

WITH_SESSION: tuple[type, ...] = (events.Turn, events.Done, events.Error, StreamFailed)
"""Those that also name the session, so that a client which knows only them can go on."""

LONG = (events.ToolUse, events.ToolResult, events.PermissionRequest)
"""Those that hold what a tool was given, or gave back, and so may be cut."""

_FIELDS: Mapping[type, tuple[str, ...]] = MappingProxyType(
    {body: tuple(field.name for field in fields(body) if field.name != "type") for body in BODIES}
)


def merged(batch: Iterable[Event]) -> Iterator[Event]:
    """Yield events, adjacent text of one block as one event with the last one's number.

    Args:
        batch: Events in order.
    """
    first: Event | None = None
    pieces: list[str] = []
    last = size = 0
    for event in batch:
        body = event.body
        text = body.content if isinstance(body, events.Text) else None
        length = 0 if text is None else _size(text)
        if (
            first is not None
            and text is not None
            and event.turn_id == first.turn_id
            and not text.startswith(BLOCK_SEPARATOR)
            and size + length <= CHUNK
        ):
            pieces.append(text)
            last = event.seq
            size += length
            continue
        if first is not None:
            yield _joined(first, pieces, last)
            first = None
        if text is None:
            yield event
        else:
            first, pieces, last, size = event, [text], event.seq, length
    if first is not None:
        yield _joined(first, pieces, last)


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _joined(first: Event, pieces: list[str], last: int) -> Event:
    if len(pieces) == 1:
        return first
    return replace(first, seq=last, body=events.Text(content="".join(pieces)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How much of what a tool was given and gave back an event holds.

    Attributes:
        most: Bytes.
        root_path: Where the API is mounted, which has all of it.
    """

    most: int
    root_path: str = ""


def told(
    body: Said,
    *,
    session_id: str,
    turn_id: str | None,
    seq: int | None = None,
    cut: Cut | None = None,
) -> dict[str, object]:
    """Return what is said in one event.

    Args:
        body: The event.
        session_id: Whose.
        turn_id: The turn that it belongs to, if any.
        seq: Its id.
        cut: How much of it; None: all.
    """
    message: dict[str, object] = {"type": body.type}
    for name in _FIELDS[type(body)]:
        message[name] = getattr(body, name)
    if isinstance(body, WITH_SESSION):
        message["session_id"] = session_id
    if turn_id is not None:
        message["turn_id"] = turn_id
    if cut is not None and isinstance(body, LONG):
        name = "content" if isinstance(body, events.ToolResult) else "input"
        message[name], truncated = cutting.cut(getattr(body, name), cut.most)
        if truncated:
            message["truncated"] = True
            message["full"] = f"{cut.root_path}/session/{session_id}/events/{seq}"
    return message


def frame(
    body: Said, *, session_id: str, turn_id: str | None, seq: int | None, cut: Cut | None = None
) -> bytes:
    """Return one event as it is sent; the arguments are those of `told`.

    Without `seq` it is one that cannot be resumed from.
    """
    message = told(body, session_id=session_id, turn_id=turn_id, seq=seq, cut=cut)
    data = b"data: " + dump(message) + b"\n\n"
    return data if seq is None else b"id: %d\n" % seq + data


class _Long:
    """A long event and its bytes, for as long as a reader is sending them."""

    def __init__(self, event: Event, data: bytes) -> None:
        self.event = event  # kept, so that no other event gets its `id()`
        self.data = data


_long: WeakValueDictionary[tuple[str, int, Cut | None], _Long] = WeakValueDictionary()


def _encoded(event: Event, session_id: str, cut: Cut | None) -> bytes | _Long:
    """Return an event's bytes; those of a long one are the same for every reader."""
    key = session_id, id(event), cut
    long = _long.get(key)
    if long is not None:
        return long
    data = frame(event.body, session_id=session_id, turn_id=event.turn_id, seq=event.seq, cut=cut)
    if len(data) <= CHUNK:
        return data
    long = _long[key] = _Long(event, data)
    return long


def chunks(batch: Iterable[Event], *, session_id: str, cut: Cut | None = None) -> Iterator[bytes]:
    """Yield a batch as bytes to send: small events joined, a long one by itself.

    Each event is encoded only when what was before it has been sent.

    Args:
        batch: Events in order.
        session_id: Whose.
        cut: How much of what tools were given and gave back; None: all.
    """
    pieces: list[bytes] = []
    size = 0
    for event in merged(batch):
        piece = _encoded(event, session_id, cut)
        length = len(piece.data if isinstance(piece, _Long) else piece)
        if pieces and size + length > CHUNK:
            yield b"".join(pieces)
            pieces, size = [], 0
        if isinstance(piece, _Long):
            yield piece.data  # `piece` lives until the reader has sent it, and so others find it
        else:
            pieces.append(piece)
            size += length
    if pieces:
        yield b"".join(pieces)
