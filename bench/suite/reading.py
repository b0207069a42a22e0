"""What a stream of the reference's events said, and when.

Only what the reference has is needed: `text` events with `content`, and `done` at the end. Of the
further events that a server may have, `discard` withdraws text and `error` ends the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.suite.stamps import asked_ns, words
from bench.suite.wire import Exchange, Failed, events


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A stream that was read to its end.

    Attributes:
        text: What the text events add up to.
        first_text_ns: When the first of them came; None: there was none.
        asked_ns: When the model was asked; None: the text does not tell.
        ended_ns: When the last event came.
        events: How many there were, of all kinds.
        lags_ns: For each word that tells when it was said, how much later it came.
        arrived_ns: For each word, when it came.
        deltas: Words, or text events where there are no words.
    """

    text: str
    first_text_ns: int | None
    asked_ns: int | None
    ended_ns: int
    events: int
    lags_ns: Sequence[int]
    arrived_ns: Sequence[int]
    deltas: int


def read(exchange: Exchange, *, ends: bool = True) -> Said:
    """Read a stream.

    Args:
        exchange: Its request and all that answered.
        ends: Whether it must end with `done`; that of a whole session does not.

    Raises:
        Failed: It is no stream, or it ended with an error, or without its end.
    """
    exchange.must_be_good()
    if not exchange.headers.get("content-type", "").startswith("text/event-stream"):
        raise Failed("not a stream")
    texts: list[tuple[int, str, int]] = []
    number = 0
    last = ""
    for at, event in events(exchange):
        number += 1
        last = str(event.get("type"))
        match last:
            case "text":
                texts.append((number, str(event.get("content", "")), at))
            case "discard":
                # Ids are not read: nothing in a benchmark withdraws, but if it does it must show.
                raise Failed("text withdrawn")
            case "error":
                raise Failed(f"error {event.get('code') or 'without a code'}")
            case _:
                pass
    if ends and last != "done":
        raise Failed("stream without end")
    lags: list[int] = []
    arrived: list[int] = []
    count = 0
    for _, content, at in texts:
        said = words(content)
        count += len(said)
        told = [one.said_ns for one in said if one.said_ns is not None]
        lags += [at - ns for ns in told]
        arrived += [at] * len(said)
    text = "".join(content for _, content, _ in texts)
    return Said(
        text=text,
        first_text_ns=texts[0][2] if texts else None,
        asked_ns=asked_ns(text),
        ended_ns=exchange.ended_ns,
        events=number,
        lags_ns=lags,
        arrived_ns=arrived,
        deltas=count or len(texts),
    )
