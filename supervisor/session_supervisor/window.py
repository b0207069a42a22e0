"""A bounded run of consecutively numbered events, cheap to read from any place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from session_supervisor.events import Event, weight


class Window:
    """The newest events of one log.

    Since numbers have no holes, the place of an event follows from its number, and reading
    costs what is read, however many there are.

    Args:
        max_events: Most events to hold.
        max_weight: Most bytes to hold, as `events.weight` counts; the newest event is
            held in any case.
    """

    def __init__(self, *, max_events: int, max_weight: int) -> None:
        self._max_events = max_events
        self._max_weight = max_weight
        self._events: list[Event] = []
        self._head = 0
        self._weight = 0

    def __len__(self) -> int:
        return len(self._events) - self._head

    @property
    def weight(self) -> int:
        """What the held events weigh, as `events.weight` counts."""
        return self._weight

    @property
    def first_seq(self) -> int | None:
        """Number of the oldest event held, None without any."""
        return self._events[self._head].seq if len(self) else None

    @property
    def last_seq(self) -> int:
        """Number of the newest event held, 0 without any."""
        return self._events[-1].seq if len(self) else 0

    def append(self, event: Event) -> None:
        """Add an event, which must follow on, and drop the oldest that are too many."""
        self._events.append(event)
        self._weight += weight(event)
        if self._weight > self._max_weight or len(self._events) - self._head > self._max_events:
            self._shed()

    def extend(self, events: Iterable[Event]) -> None:
        """Add events, which must follow on, and drop the oldest that are too many."""
        for event in events:
            self._events.append(event)
            self._weight += weight(event)
        self._shed()

    def _shed(self) -> None:
        events, head = self._events, self._head
        count = len(events) - head
        while count > 1 and (count > self._max_events or self._weight > self._max_weight):
            self._weight -= weight(events[head])
            head += 1
            count -= 1
        self._head = head
        self._tidy()

    def drop(self, through: int) -> None:
        """Drop events up to a number; the newest one is held in any case."""
        while len(self) > 1 and self._events[self._head].seq <= through:
            self._weight -= weight(self._events[self._head])
            self._head += 1
        self._tidy()

    def read(self, *, after: int, limit: int) -> tuple[Event, ...]:
        """Return up to `limit` held events with numbers greater than `after`, in order."""
        if not len(self):
            return ()
        start = self._head + max(0, after + 1 - self._events[self._head].seq)
        return tuple(self._events[start : start + limit])

    def follow(self, after: int, limit: int) -> Sequence[Event]:
        """Return up to `limit` held events from the one behind a number on, if that is held."""
        events, head = self._events, self._head
        if head == len(events):
            return ()
        start = head + after + 1 - events[head].seq
        return events[start : start + limit] if start >= head else ()

    def _tidy(self) -> None:
        # Dropping from the front of a list costs its length: do it once for many.
        if self._head > 64 and self._head * 2 > len(self._events):
            del self._events[: self._head]
            self._head = 0
