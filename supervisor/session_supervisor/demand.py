"""How many processes there are to be of each kind: learned from recent use.

Of a kind whose processes come back, as many are wanted as were in use at once, at the most, in the
last five minutes, and one more where the last was still being renewed as the next was asked for. Of
one whose processes stay with their sessions, as many as were asked for within two seconds, from the
second request on: one that never comes again would have a process started in vain. So what comes
one at a time finds one, what comes in bursts finds a burst's worth, and what nobody asks for any
more is let go of five minutes later. Where all that cannot be, owners share alike, and of an
owner's kinds each gets its first before any gets its second: first those that were asked for more
than once, and of these the most recently used.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from itertools import chain, islice, zip_longest

BURST_S = 2.0
"""Seconds within which what is asked for is a burst: about the time of some cold starts."""

WINDOW_S = 300.0
"""Seconds for which it is remembered."""

MOST_KINDS = 256
"""Most kinds that are remembered; a caller can ask for as many as there are system prompts."""

CHANGES = 3
"""So many changes in a row, and nothing is kept ready for a kind, for `WINDOW_S`."""

MOST = 256
"""More processes of one kind than that nobody wants."""


class _Kind:
    """The most of a number in the window: what is followed by more is forgotten."""

    def __init__(self) -> None:
        self.burst: deque[float] = deque(maxlen=MOST)
        self.peaks: deque[tuple[float, int]] = deque()
        self.again = False
        """Whether it was asked for more than once."""

    def note(self, now: float, in_use: int | None) -> None:
        self.again = bool(self.burst) and self.burst[-1] + WINDOW_S > now
        self.burst.append(now)
        while self.burst[0] <= now - BURST_S:
            self.burst.popleft()
        count = min(MOST, (len(self.burst) if self.again else 0) if in_use is None else in_use)
        while self.peaks and self.peaks[-1][1] <= count:
            self.peaks.pop()
        self.peaks.append((now, count))

    def most(self, now: float) -> int:
        while self.peaks and self.peaks[0][0] + WINDOW_S <= now:
            self.peaks.popleft()
        return self.peaks[0][1] if self.peaks else 0


class Demand:
    """What was asked for lately, by kind. It has no clock: times come in, and never go back."""

    def __init__(self) -> None:
        # The least recently used first.
        self._kinds: OrderedDict[str, _Kind] = OrderedDict()

    def note(self, kind: str, now: float, *, in_use: int | None = None) -> None:
        """Note that a process of some kind was asked for.

        Args:
            kind: Which.
            now: The time, seconds.
            in_use: How many are in use that will come back, with this one; None: none comes back.
        """
        if kind not in self._kinds:
            self._kinds[kind] = _Kind()
        self._kinds[kind].note(now, in_use)
        self._kinds.move_to_end(kind)
        while len(self._kinds) > MOST_KINDS:
            self._kinds.popitem(last=False)

    def forget(self, kind: str) -> None:
        """Take it that a kind was never asked for."""
        self._kinds.pop(kind, None)

    def wanted(self, now: float) -> dict[str, int]:
        """Return how many of each kind are wanted, the kind first that is to be served first."""
        found = {kind: asked.most(now) for kind, asked in reversed(self._kinds.items())}
        for kind in [kind for kind, asked in self._kinds.items() if not asked.peaks]:
            del self._kinds[kind]
        wanted = [kind for kind, count in found.items() if count]
        wanted.sort(key=lambda kind: not self._kinds[kind].again)
        return {kind: found[kind] for kind in wanted}

    def next_change(self) -> float | None:
        """Return when less may be wanted, if nobody asks for anything; None: nothing is wanted."""
        oldest = min((one.peaks[0][0] for one in self._kinds.values() if one.peaks), default=None)
        return None if oldest is None else oldest + WINDOW_S


class Changes:
    """Kinds of which nothing stands ready that is still as one would be started now.

    Their credential is another one each time, say: what is started ahead for them is in vain.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}
        """How often in a row, and when last."""

    def note(self, kind: str, now: float, *, started_at: float) -> None:
        """Note that a process was not as it would be started now, and when it was."""
        count, last = self._seen.pop(kind, (0, started_at))
        if started_at >= last:  # else it is the change that others showed before
            count, last = count + 1, now
        self._seen = {one: seen for one, seen in self._seen.items() if seen[1] + WINDOW_S > now}
        self._seen[kind] = count, last

    def settle(self, kind: str) -> None:
        """Note that a process was as it would be started now."""
        self._seen.pop(kind, None)

    def is_hopeless(self, kind: str, now: float) -> bool:
        """Whether that is to be expected of the next as well."""
        count, last = self._seen.get(kind, (0, now))
        return count >= CHANGES and last + WINDOW_S > now


def shares(wanted: Mapping[str, int], most: int, owners: Mapping[str, str]) -> dict[str, int]:
    """Return how many of each kind there are to be, of so many in all.

    Args:
        wanted: How many are wanted, the kind first that is to be served first.
        most: How many there may be.
        owners: Whose each kind is.
    """
    hands: dict[str, list[str]] = {}
    for nth in range(min(most, max(wanted.values(), default=0))):
        for kind, count in wanted.items():
            if count > nth:
                hands.setdefault(owners[kind], []).append(kind)
    dealt = chain.from_iterable(zip_longest(*hands.values()))
    given = Counter(islice((kind for kind in dealt if kind is not None), most))
    return {kind: given[kind] for kind in wanted}
