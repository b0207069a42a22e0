"""The ledger: every prompt is a turn with an id, an origin and exactly one end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from session_supervisor.answer import Answer
from session_supervisor.clock import Clock
from session_supervisor.errors import Failure, Refused
from session_supervisor.events import Event, end_of
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
from session_supervisor.spec import Attachment, OnPermission


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
    timeout_s: float | None = None
    place: Place | None = None
    attachments: tuple[Attachment, ...] = ()
    command: bool = False
    on_permission: OnPermission = "deny"
    permission_timeout_s: float | None = None
    budget_usd: float | None = None
    phase: Phase = Phase.QUEUED
    answer: Answer = field(default_factory=Answer)
    started_at: datetime | None = None
    started_time: float | None = None
    spawn_s: float = 0.0
    sent: bool = False
    """Whether its prompt was given to a process, as far as we know."""
    first_text_time: float | None = None
    ended_at: datetime | None = None
    result: TurnResult | None = None
    last_seq: int | None = None
    end: Event | None = None
    announced: Latch = field(default_factory=Latch)
    left: Callable[[], Refused] | None = None
    """Why whoever waits for its end is told of none."""

    @classmethod
    def restored(cls, record: TurnRecord) -> Turn:
        """Return a turn as the store had it, open or ended."""
        turn = cls(
            session_id=record.session_id,
            turn_id=record.turn_id,
            origin=record.origin,
            prompt=record.prompt,
            accepted_at=record.accepted_at,
            accepted_time=0.0,
            first_seq=record.first_seq,
            timeout_s=record.timeout_s,
            attachments=record.attachments,
            command=record.command,
            on_permission=record.on_permission,
            permission_timeout_s=record.permission_timeout_s,
            budget_usd=record.budget_usd,
            phase=record.phase,
            started_at=record.started_at,
            ended_at=record.ended_at,
            result=record.result,
            last_seq=record.last_seq,
            sent=record.phase is not Phase.QUEUED,  # by whoever had it then, for all we know
        )
        if record.result is not None and record.ended_at is not None:
            end = end_of(record.result)
            turn.end = Event(record.last_seq or 0, record.turn_id, record.ended_at, end)
            turn.announced.set()
        return turn

    def record(self) -> TurnRecord:
        """Return the turn as it is now. Its result shows once its end is announced."""
        return self._record(ended=self.end is not None)

    def stored(self) -> TurnRecord:
        """Return the turn as the store is to know it: with its end as soon as it has one."""
        return self._record(ended=self.phase is Phase.ENDED)

    def _record(self, *, ended: bool) -> TurnRecord:
        return TurnRecord(
            session_id=self.session_id,
            turn_id=self.turn_id,
            origin=self.origin,
            prompt=self.prompt,
            phase=Phase.RUNNING if self.phase is Phase.ENDED and not ended else self.phase,
            text=self.answer.text if self.result is None else self.result.text,
            accepted_at=self.accepted_at,
            first_seq=self.first_seq,
            last_seq=self.last_seq if ended else None,
            started_at=self.started_at,
            ended_at=self.ended_at if ended else None,
            result=self.result if ended else None,
            timeout_s=self.timeout_s,
            attachments=self.attachments,
            command=self.command,
            on_permission=self.on_permission,
            permission_timeout_s=self.permission_timeout_s,
            budget_usd=self.budget_usd,
        )


class Ledger:
    """The turns of one session that have not ended; the store has the others.

    Args:
        session_id: Whose turns.
        clock: What time it is.
        total_cost_usd: What the session's turns have cost before.
        conversation_cost_usd: What the agent last said that the conversation had cost.
    """

    def __init__(
        self,
        session_id: str,
        *,
        clock: Clock,
        total_cost_usd: float = 0.0,
        conversation_cost_usd: float = 0.0,
    ) -> None:
        self._session_id = session_id
        self._clock = clock
        self._turns: dict[str, Turn] = {}
        self._changed: dict[str, Turn] = {}
        self.total_cost_usd = total_cost_usd
        self.conversation_cost_usd = conversation_cost_usd

    def restore(self, record: TurnRecord, *, text: str, place: Place) -> None:
        """Enter a turn that was open when its session was found.

        Args:
            record: As the store has it.
            text: What it had answered.
            place: Given back when its end is announced.
        """
        turn = Turn.restored(record)
        turn.accepted_time = self._clock.monotonic()
        turn.place = place
        if text:
            turn.answer.delta(text, last_seq=record.first_seq)
        self._turns[turn.turn_id] = turn

    def go_back(
        self,
        records: Sequence[TurnRecord],
        texts: Mapping[str, str],
        take_place: Callable[[], Place],
    ) -> None:
        """Be what is stored, after a fault. Whoever waits for a turn waits on.

        Args:
            records: Every turn that is stored, oldest first.
            texts: What those that have not ended had answered.
            take_place: Called for each of them.
        """
        self._changed.clear()
        before, self._turns = self._turns, {}
        for record in records:
            turn = before.pop(record.turn_id, None)
            if turn is not None and turn.announced.is_set():
                turn = None  # nobody waits for it any more
            if turn is None:
                if record.phase is not Phase.ENDED:
                    self.restore(record, text=texts[record.turn_id], place=take_place())
                continue
            stored = Turn.restored(record)
            turn.phase, turn.result = stored.phase, stored.result
            turn.started_at, turn.ended_at = stored.started_at, stored.ended_at
            turn.last_seq = stored.last_seq
            self._turns[turn.turn_id] = turn
            if stored.end is not None:
                self.announce(turn, stored.end)
                continue
            if turn.phase is Phase.RUNNING and turn.origin is Origin.USER and not turn.sent:
                self.put_back(turn)  # it is stored that it began, but no process has seen it
            turn.answer = Answer()
            turn.answer.delta(texts[turn.turn_id], last_seq=turn.first_seq)
            if turn.place is not None:
                turn.place.release()
            turn.place = take_place()
        for turn in before.values():  # it was never acknowledged
            if turn.place is not None:
                turn.place.release()
            turn.announced.set()

    def accept(
        self,
        turn_id: str,
        *,
        origin: Origin,
        prompt: str,
        first_seq: int,
        timeout_s: float | None = None,
        on_permission: OnPermission = "deny",
        permission_timeout_s: float | None = None,
        attachments: tuple[Attachment, ...] = (),
        command: bool = False,
        budget_usd: float | None = None,
        place: Place | None = None,
    ) -> Turn:
        """Enter a turn.

        Args:
            turn_id: Its id, new to this session.
            origin: Who began it.
            prompt: What was asked.
            first_seq: Number that its first event will have.
            timeout_s: Seconds after which it is given up; None never.
            on_permission: What happens to tool calls that need a permission.
            permission_timeout_s: Seconds that a human has to answer; None: any time.
            attachments: What goes with the prompt.
            command: Whether the prompt is a command to the agent itself.
            budget_usd: What its owner may spend, in US dollars; None: any amount.
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
            timeout_s=timeout_s,
            place=place,
            attachments=attachments,
            command=command,
            on_permission=on_permission,
            permission_timeout_s=permission_timeout_s,
            budget_usd=budget_usd,
        )
        self._turns[turn_id] = self._changed[turn_id] = turn
        return turn

    def take_changed(self) -> tuple[TurnRecord, ...]:
        """Return what the store must be told: every turn that is not as it was the last time."""
        changed = tuple(turn.stored() for turn in self._changed.values())
        self._changed.clear()
        return changed

    def start(self, turn: Turn, *, spawn_s: float = 0.0) -> None:
        """Note that the agent is being handed the turn: from here on it can be lost.

        Args:
            turn: Which.
            spawn_s: Seconds that it waited for a process to come up.
        """
        turn.spawn_s = spawn_s
        turn.phase = Phase.RUNNING
        self._changed[turn.turn_id] = turn
        turn.started_at = self._clock.now()
        turn.started_time = self._clock.monotonic()

    def put_back(self, turn: Turn) -> None:
        """Note that the agent has not taken the turn after all."""
        turn.phase = Phase.QUEUED
        turn.started_at = turn.started_time = None
        turn.sent = False
        self._changed[turn.turn_id] = turn

    def end(
        self,
        turn: Turn,
        outcome: Outcome,
        *,
        last_seq: int,
        failure: Failure | None = None,
        accounting: Accounting | None = None,
    ) -> TurnResult:
        """Give a turn its one end, which nobody sees until `announce`.

        Args:
            turn: Which.
            outcome: How it ended.
            last_seq: Number that its terminal event will have.
            failure: Why there is no answer, if there is none.
            accounting: What it took, where that is known.

        Raises:
            SecondEnd: It has one.
        """
        if turn.phase is Phase.ENDED:
            raise SecondEnd(f"turn {turn.turn_id} has ended before")
        now = self._clock.monotonic()
        started = now if turn.started_time is None else turn.started_time
        first_text = turn.first_text_time
        turn.phase = Phase.ENDED
        # Nobody needs them again, and they are large.
        turn.attachments = tuple(replace(one, data="") for one in turn.attachments)
        self._changed[turn.turn_id] = turn
        turn.last_seq = last_seq
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
        self._turns.pop(turn.turn_id, None)

    def suspend(self, reason: Callable[[], Refused], *, queued_only: bool = False) -> None:
        """Let nobody wait for turns of which nothing will be heard for long.

        Args:
            reason: Makes what those hear who wait.
            queued_only: Leave those alone that run.
        """
        for turn in self._turns.values():
            if queued_only and turn.phase is not Phase.QUEUED:
                continue
            if turn.place is not None:
                turn.place.release()
            if turn.phase is Phase.ENDED:  # an end that is not stored is none
                turn.phase = Phase.RUNNING
                turn.result = turn.ended_at = turn.last_seq = None
            turn.left = reason
            turn.announced.set()

    def charge(self, conversation_cost_usd: float) -> float:
        """Return what the turn that just ended has cost.

        Args:
            conversation_cost_usd: What the agent says the conversation has cost so far; zero if it
                has not said yet.
        """
        if not conversation_cost_usd:
            return 0.0
        cost = conversation_cost_usd - self.conversation_cost_usd
        # A conversation that began anew counts from zero again.
        cost = conversation_cost_usd if cost < 0 else cost
        self.conversation_cost_usd = conversation_cost_usd
        # A difference of floats has digits that mean nothing; a token costs more than this.
        cost = round(cost, 9)
        self.total_cost_usd = round(self.total_cost_usd + cost, 9)
        return cost

    def find(self, turn_id: str) -> Turn | None:
        """Return a turn, or None if there is none with that id, or it has ended."""
        return self._turns.get(turn_id)

    def records(self) -> tuple[TurnRecord, ...]:
        """Return every turn, oldest first."""
        return tuple(turn.record() for turn in self._turns.values())

    def unannounced(self) -> tuple[Turn, ...]:
        """Return every turn whose end nobody was told of, oldest first."""
        return tuple(turn for turn in self._turns.values() if not turn.announced.is_set())

    def open(self) -> tuple[Turn, ...]:
        """Return every turn that has not ended, oldest first."""
        return tuple(turn for turn in self._turns.values() if turn.phase is not Phase.ENDED)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
