"""What a run of `bench.chaos` has seen: faults, violations, and what each id was said to mean.

Clients are free to be told the same thing in different pieces: adjacent text that waits for a slow
reader comes as one event. So for text an id does not mean its piece but all of the turn's text up
to there, which no way of cutting it changes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.chaos_client import Heard

TERMINAL = ("done", "error")


@dataclass(slots=True, kw_only=True)
class Injected:
    """One fault.

    Attributes:
        kind: Which.
        at: When, monotonic seconds.
        session_id: Whom it met; None: everybody.
        went_on_s: Seconds until a turn that was asked for later had completed there.
        over: Whether the session ended before that.
    """

    kind: str
    at: float
    session_id: str | None
    went_on_s: float | None = None
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Something that was promised and not kept.

    Attributes:
        promise: Which promise, in a word or two.
        what: What was seen instead.
        at: Seconds since the run began.
    """

    promise: str
    what: str
    at: float


class Record:
    """The whole run."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.injected: list[Injected] = []
        self.violations: list[Violation] = []
        self.statuses: dict[int, int] = {}
        self.outcomes: dict[str, int] = {}
        self.gaps = 0
        self.resumed = 0
        self.oneoffs = 0
        """Those that were answered."""
        self.unanswered_starts = 0
        """Sessions that may have been started without anybody's knowing their ids."""
        self.full_at = -math.inf
        """When the disk was last full, by the monotonic clock; infinite: it is."""

    @property
    def age_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    def inject(self, kind: str, session_id: str | None = None) -> None:
        """Note a fault that happens now."""
        self.injected.append(Injected(kind=kind, at=time.monotonic(), session_id=session_id))

    def violate(self, promise: str, what: str) -> None:
        """Note that a promise was not kept."""
        at = round(self.age_s, 2)
        self.violations.append(Violation(promise=promise, what=what, at=at))

    def completed(self, session_id: str, asked_at: float) -> None:
        """Note that a turn completed: what happened before it was asked for is survived."""
        now = time.monotonic()
        for one in self.injected:
            concerned = one.session_id in (None, session_id)
            if one.went_on_s is None and not one.over and concerned and one.at < asked_at:
                one.went_on_s = now - one.at

    def ended(self, session_id: str) -> None:
        """Note that a session is over: what met it cannot be survived by it any more."""
        for one in self.injected:
            if one.session_id == session_id and one.went_on_s is None:
                one.over = True

    def answered(self, status: int, body: Mapping[str, Any], to: str) -> None:
        """Note the status of an answer; a 500 is nothing that anybody may see."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 500:
            self.violate("nothing is answered 500", f"{to}: {body.get('detail')}")


@dataclass(slots=True)
class Witness:
    """All that was ever said of one session, by whichever stream.

    Attributes:
        record: Where contradictions are noted.
        session_id: The session.
    """

    record: Record
    session_id: str
    _meaning: dict[int, str] = field(default_factory=dict[int, str])

    def hear(self, number: int, meaning: str) -> None:
        """Compare what an id means now with what it has meant before."""
        before = self._meaning.setdefault(number, meaning)
        if before != meaning:
            self.record.violate(
                "no id means two things",
                f"session {self.session_id}, id {number}: {_ends(before)} and {_ends(meaning)}",
            )


@dataclass(slots=True)
class Reading:
    """What one client has read of one turn, over as many connections as it took.

    Attributes:
        witness: Of the session.
        turn_id: Which turn; empty until it is known.
        last_id: Where to come back.
        end: The terminal event.
        gap: Whether the stream said that something is missing.
        ids: All that came with the turn's events.
    """

    witness: Witness
    turn_id: str = ""
    last_id: int = 0
    end: Mapping[str, Any] | None = None
    gap: bool = False
    ids: list[int] = field(default_factory=list[int])
    _raw: str = ""
    _kept: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    _raws: dict[int, str] = field(default_factory=dict[int, str])

    def take(self, heard: Heard) -> None:
        """Take one event, of this turn or not."""
        kind, number = heard.type, heard.id
        if kind == "gap":
            self.gap = True
            self.last_id = max(self.last_id, number or 0)
            return
        if number is None:  # `bye`, or the end of the stream alone
            return
        if number <= self.last_id:
            self.witness.record.violate(
                "ids increase", f"session {self.witness.session_id}: {number} after {self.last_id}"
            )
        self.last_id = number
        if kind == "turn" and not self.turn_id:
            self.turn_id = str(heard.data["turn_id"])
        if heard.data.get("turn_id") != self.turn_id:
            if kind != "text":  # of which only whoever reads its whole turn knows what it means
                self.witness.hear(number, json.dumps(dict(heard.data), sort_keys=True))
            return
        self.ids.append(number)
        if kind == "text":
            content = str(heard.data["content"])
            self._raw += content
            self._kept.append((number, content))
            if not self.gap:
                self.witness.hear(number, f"text of {self.turn_id}: {self._raw}")
        else:
            if kind == "discard":
                after = int(heard.data["after"])
                self._kept = [piece for piece in self._kept if piece[0] <= after]
            self.witness.hear(number, json.dumps(dict(heard.data), sort_keys=True))
        self._raws[number] = self._raw
        if kind in TERMINAL:
            self.end = heard.data

    def onward(self) -> Reading:
        """Return a reading that goes on where this one is, and leaves this one as it is."""
        onward = Reading(self.witness, self.turn_id, last_id=self.last_id, gap=self.gap)
        onward.ids = list(self.ids)
        onward._raw = self._raw
        onward._kept = list(self._kept)
        onward._raws = dict(self._raws)
        return onward

    def again_from(self, number: int) -> Reading:
        """Return a reading that has had everything up to one of the ids, and nothing since."""
        again = Reading(self.witness, self.turn_id, last_id=number)
        again._raw = self._raws[number]
        again._kept = []
        return again

    @property
    def text(self) -> str:
        """What the client holds: all text less what was discarded."""
        return "".join(content for _, content in self._kept)

    @property
    def raw(self) -> str:
        """All text, discarded or not."""
        return self._raw


def _ends(text: str) -> str:
    return repr(text if len(text) <= 160 else f"{text[:60]} ... {text[-90:]}")
