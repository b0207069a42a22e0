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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args
from weakref import WeakValueDictionary

from session_http import cutting
from session_http.encoding import dump, line, quote
from session_supervisor import events
from session_supervisor.answer import BLOCK_SEPARATOR
from session_supervisor.events import Event

CHUNK = 64 * 1024
"""Most bytes of text merged, of events joined and of one send: what a slow reader holds."""

RECENT = 32
SHORT = 4096
"""Frames of a session that are kept for its other readers, and most bytes of one."""

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


def runs(batch: Iterable[Event]) -> Iterator[Sequence[Event]]:
    """Yield events, those together that go out as one: adjacent text of one block of a turn.

    Args:
        batch: Events in order.
    """
    run: list[Event] = []
    size = 0
    for event in batch:
        body = event.body
        if isinstance(body, events.Text):
            length = _size(body.content)
            if run and not (
                event.turn_id == run[0].turn_id
                and not body.content.startswith(BLOCK_SEPARATOR)
                and size + length <= CHUNK
            ):
                yield run
                run, size = [], 0
            run.append(event)
            size += length
        else:
            if run:
                yield run
                run, size = [], 0
            yield (event,)
    if run:
        yield run


def merged(run: Sequence[Event]) -> Event:
    """Return a run as one event, with the last one's number."""
    if len(run) == 1:
        return run[0]
    content = "".join(event.body.content for event in run if isinstance(event.body, events.Text))
    return replace(run[0], seq=run[-1].seq, body=events.Text(content=content))


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


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


def _text_frame(event: Event, content: str) -> bytes:
    """Return what `frame` returns of a piece of a turn's text, which is what most events are."""
    assert event.turn_id is not None
    return line(
        f'id: {event.seq}\ndata: {{"type": "text", "content": {quote(content)}, '
        f'"turn_id": {quote(event.turn_id)}}}\n\n'
    )


class _Long:
    """A long event and its bytes, for as long as a reader is sending them."""

    def __init__(self, event: Event, data: bytes) -> None:
        self.event = event  # kept, so that no other event gets its `id()`
        self.data = data


class Frames:
    """What the readers of one session are sent: encoded once, for all who are at the same place.

    Those who keep up are all at the same place, and read within the same moment. So little has to
    be kept for them: the frames that were made last, and the long ones for as long as somebody
    sends them.

    Args:
        session_id: Whose events.
        cut: How much of what tools were given and gave back; None: all.
    """

    def __init__(self, session_id: str, cut: Cut | None = None) -> None:
        self._session_id = session_id
        self._cut = cut
        self._recent: dict[tuple[int, int, int], tuple[Event, Event, bytes]] = {}
        self._long: WeakValueDictionary[int, _Long] | None = None  # most sessions have none

    @classmethod
    def of(cls, session_id: str, cut: Cut | None = None) -> Frames:
        """Return those that the session's other readers have, for as long as there are any."""
        frames = _frames.get((session_id, cut))
        if frames is None:
            frames = _frames[session_id, cut] = cls(session_id, cut)
        return frames

    def at_once(self, batch: Sequence[Event]) -> bytes | None:
        """Return a batch as one piece; None if it is too long for that, or has nothing.

        Args:
            batch: Events in order.
        """
        if not batch:
            return None
        if len(batch) == 1:
            piece = self._encoded(batch)
            return piece if isinstance(piece, bytes) else None
        known = self._known(batch)
        if known is not None:
            return known
        pieces: list[bytes] = []
        size = 0
        for run in runs(batch):
            piece = self._encoded(run)
            if isinstance(piece, _Long) or size + len(piece) > CHUNK:
                return None
            pieces.append(piece)
            size += len(piece)
        whole = b"".join(pieces)
        self._keep(batch, whole)
        return whole

    def chunks(self, batch: Iterable[Event]) -> Iterator[bytes]:
        """Yield a batch as pieces to send: small events joined, a long one by itself.

        Each event is encoded only when what was before it has been sent.

        Args:
            batch: Events in order.
        """
        pieces: list[bytes] = []
        size = 0
        for run in runs(batch):
            piece = self._encoded(run)
            length = len(piece.data if isinstance(piece, _Long) else piece)
            if pieces and size + length > CHUNK:
                yield b"".join(pieces)
                pieces, size = [], 0
            if isinstance(piece, _Long):
                yield piece.data  # `piece` lives until it is sent, and so other readers find it
            else:
                pieces.append(piece)
                size += length
        if pieces:
            yield b"".join(pieces)

    def _encoded(self, run: Sequence[Event]) -> bytes | _Long:
        """Return the bytes of a run; those of a long one are to be held while they are sent."""
        known = self._known(run)
        if known is not None:
            return known
        first = run[0]
        if self._long is not None and (long := self._long.get(id(first))) is not None:
            return long
        data = self.encode(merged(run))
        if len(data) > CHUNK:
            long = _Long(first, data)
            if len(run) == 1:
                if self._long is None:
                    self._long = WeakValueDictionary()
                self._long[id(first)] = long
            return long
        self._keep(run, data)
        return data

    def _known(self, batch: Sequence[Event]) -> bytes | None:
        """Return the bytes of a batch that another reader had just now."""
        first, last = batch[0], batch[-1]
        known = self._recent.get((first.seq, last.seq, len(batch)))
        # A gap has the number of an event that is gone, so numbers do not say enough.
        if known is None or known[0] is not first or known[1] is not last:
            return None
        return known[2]

    def _keep(self, batch: Sequence[Event], data: bytes) -> None:
        """Keep the bytes of a batch for the next reader, if they are few."""
        if len(data) <= SHORT:
            first, last = batch[0], batch[-1]
            # By the number of events, too: whoever reads one turn has fewer between the same two.
            self._recent[first.seq, last.seq, len(batch)] = first, last, data
            if len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]

    def encode(self, event: Event) -> bytes:
        """Make the bytes of an event."""
        body = event.body
        if isinstance(body, events.Text) and event.turn_id is not None:
            with suppress(UnicodeEncodeError):
                return _text_frame(event, body.content)
        return frame(
            body,
            session_id=self._session_id,
            turn_id=event.turn_id,
            seq=event.seq,
            cut=self._cut,
        )


_frames: WeakValueDictionary[tuple[str, Cut | None], Frames] = WeakValueDictionary()
