"""The ledger: every prompt is a turn with an id, an origin and exactly one end."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime

from session_supervisor.answer import Answer
from session_supervisor.clock import Clock
from session_supervisor.config import Retention
from session_supervisor.errors import Failure, TurnNotFound
from session_supervisor.events import Event
from session_supervisor.latch import Latch
from session_supervisor.quotas import Place
from session_supervisor.results import (
    Accounting,
    Origin,
    Outcome,
    Phase,
    TurnRecord,
    TurnResult,
)


class SecondEnd(Exception):
    """A turn was ended twice: the actor has lost count."""


@dataclass(slots=True, kw_only=True, eq=False)
class Turn:
    """One turn, as the actor sees it. Only the ledger changes its phase."""

    session_id: str
    turn_id: str
    origin: Origin
    prompt: str
    accepted_at: datetime
    accepted_time: float
    first_seq: int
    place: Place | None = None
    phase: Phase = Phase.QUEUED
    answer: Answer = field(default_factory=Answer)
    started_at: datetime | None = None
    started_time: float | None = None
    spawn_s: float = 0.0
    first_text_time: float | None = None
    ended_at: datetime | None = None
    result: TurnResult | None = None
    end: Event | None = None
    announced: Latch = field(default_factory=Latch)

    def record(self) -> TurnRecord:
        """Return the turn as it is now. Its result shows once its end is announced."""
        ended = self.announced.is_set()
        return TurnRecord(
            session_id=self.session_id,
            turn_id=self.turn_id,
            origin=self.origin,
            prompt=self.prompt,
            phase=Phase.RUNNING if self.phase is Phase.ENDED and not ended else self.phase,
            text=self.answer.text,
            accepted_at=self.accepted_at,
            first_seq=self.first_seq,
            started_at=self.started_at,
            ended_at=self.ended_at if ended else None,
            result=self.result if ended else None,
        )


class Ledger:
    """The turns of one session.

    Args:
        session_id: Whose turns.
        clock: What time it is.
        retention: How many ended turns to keep.
    """

    def __init__(self, session_id: str, *, clock: Clock, retention: Retention) -> None:
        self._session_id = session_id
        self._clock = clock
        self._retention = retention
        self._turns: OrderedDict[str, Turn] = OrderedDict()
        self._ended: OrderedDict[str, int] = OrderedDict()
        self._ended_weight = 0
        self._cost_baseline = 0.0
        self.total_cost_usd = 0.0

    def accept(
        self,
        turn_id: str,
        *,
        origin: Origin,
        prompt: str,
        first_seq: int,
        place: Place | None = None,
    ) -> Turn:
        """Enter a turn.

        Args:
            turn_id: Its id, new to this session.
            origin: Who began it.
            prompt: What was asked.
            first_seq: Number that its first event will have.
            place: Given back when its end is announced.
        """
        turn = Turn(
            session_id=self._session_id,
            turn_id=turn_id,
            origin=origin,
            prompt=prompt,
            accepted_at=self._clock.now(),
            accepted_time=self._clock.monotonic(),
            first_seq=first_seq,
            place=place,
        )
        self._turns[turn_id] = turn
        return turn

    def start(self, turn: Turn, *, spawn_s: float = 0.0) -> None:
        """Note that the agent is being handed the turn: from here on it can be lost.

        Args:
            turn: Which.
            spawn_s: Seconds that it waited for a process to come up.
        """
        turn.spawn_s = spawn_s
        turn.phase = Phase.RUNNING
        turn.started_at = self._clock.now()
        turn.started_time = self._clock.monotonic()

    def put_back(self, turn: Turn) -> None:
        """Note that the agent has not taken the turn after all."""
        turn.phase = Phase.QUEUED
        turn.started_at = turn.started_time = None

    def end(
        self,
        turn: Turn,
        outcome: Outcome,
        *,
        failure: Failure | None = None,
        accounting: Accounting | None = None,
    ) -> TurnResult:
        """Give a turn its one end, which nobody sees until `announce`.

        Raises:
            SecondEnd: It has one.
        """
        if turn.phase is Phase.ENDED:
            raise SecondEnd(f"turn {turn.turn_id} has ended before")
        now = self._clock.monotonic()
        started = now if turn.started_time is None else turn.started_time
        first_text = turn.first_text_time
        turn.phase = Phase.ENDED
        turn.ended_at = self._clock.now()
        turn.result = TurnResult(
            session_id=self._session_id,
            turn_id=turn.turn_id,
            origin=turn.origin,
            outcome=outcome,
            text=turn.answer.text,
            failure=failure,
            accounting=accounting or Accounting(),
            duration_ms=_ms(now - turn.accepted_time),
            queued_ms=_ms(started - turn.accepted_time),
            spawn_ms=_ms(turn.spawn_s),
            first_text_ms=None if first_text is None else _ms(first_text - turn.accepted_time),
        )
        return turn.result

    def announce(self, turn: Turn, end: Event) -> None:
        """Let everyone see the turn's end, which is in the log by now.

        Args:
            turn: Which.
            end: Its terminal event.
        """
        turn.end = end
        if turn.place is not None:  # first, so that whoever sees the end may ask again
            turn.place.release()
        turn.announced.set()
        weight = len(turn.prompt) + len(turn.answer.text)
        self._ended[turn.turn_id] = weight
        self._ended_weight += weight
        while len(self._ended) > 1 and (
            len(self._ended) > self._retention.turns
            or self._ended_weight > self._retention.turn_bytes
        ):
            oldest, oldest_weight = self._ended.popitem(last=False)
            self._ended_weight -= oldest_weight
            del self._turns[oldest]

    def charge(self, conversation_cost_usd: float) -> float:
        """Return what the turn that just ended has cost.

        Args:
            conversation_cost_usd: What the agent says the conversation has cost so far.
        """
        cost = conversation_cost_usd - self._cost_baseline
        # A conversation that began anew counts from zero again.
        cost = conversation_cost_usd if cost < 0 else cost
        self._cost_baseline = conversation_cost_usd
        # A difference of floats has digits that mean nothing; a token costs more than this.
        cost = round(cost, 9)
        self.total_cost_usd = round(self.total_cost_usd + cost, 9)
        return cost

    def knows(self, turn_id: str) -> bool:
        """Return whether there is a turn with that id."""
        return turn_id in self._turns

    def get(self, turn_id: str) -> Turn:
        """Return a turn.

        Raises:
            TurnNotFound: There is none with that id, or retention has dropped it.
        """
        try:
            return self._turns[turn_id]
        except KeyError:
            raise TurnNotFound(turn_id) from None

    def records(self) -> tuple[TurnRecord, ...]:
        """Return every turn that is kept, oldest first."""
        return tuple(turn.record() for turn in self._turns.values())

    def unannounced(self) -> tuple[Turn, ...]:
        """Return every turn whose end nobody was told of, oldest first."""
        return tuple(turn for turn in self._turns.values() if not turn.announced.is_set())

    def open(self) -> tuple[Turn, ...]:
        """Return every turn that has not ended, oldest first."""
        return tuple(turn for turn in self._turns.values() if turn.phase is not Phase.ENDED)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
