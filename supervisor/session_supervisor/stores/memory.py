"""A store in memory: gone with the process, bounded by a retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from session_supervisor.asks import Request, weight
from session_supervisor.config import Retention
from session_supervisor.errors import (
    AlreadyExists,
    ClaimTaken,
    Fenced,
    SequenceConflict,
    StoreError,
    UnknownSession,
)
from session_supervisor.events import Event
from session_supervisor.results import Phase, TurnRecord
from session_supervisor.stores.port import JUST_ENDED_S
from session_supervisor.stores.records import Batch, Claim, Found, Lease, SessionRecord
from session_supervisor.window import Window


@dataclass(slots=True, kw_only=True)
class _Kept:
    record: SessionRecord
    windows: list[Window]
    """Runs of events without holes; a new writer may begin another."""
    fence: int = 1
    last_seq: int = 0
    reserved_seq: int = 0
    turns: dict[str, TurnRecord] = field(default_factory=dict[str, TurnRecord])
    requests: dict[str, Request] = field(default_factory=dict[str, Request])
    weights: dict[str, int] = field(default_factory=dict[str, int])
    """Of the requests that are over."""


def _size_of(kept: _Kept) -> int:
    turns = sum(len(turn.prompt) + len(turn.text) for turn in kept.turns.values())
    return turns + sum(window.weight for window in kept.windows)


class MemoryStore:
    """Keeps sessions in memory, and of each one the newest events and turns.

    Args:
        retention: What to keep of each session, and of all together.
    """

    def __init__(self, retention: Retention | None = None) -> None:
        self._retention = retention or Retention()
        self._kept: dict[str, _Kept] = {}
        self._claims: dict[tuple[str, str], Claim] = {}
        self._spent: dict[str, float] = {}

    @property
    def durable(self) -> bool:
        """It goes with its process."""
        return False

    async def create(self, session: SessionRecord, *, first: Batch | None = None) -> Lease:
        """See `Store.create`."""
        session_id = session.session_id
        if session_id in self._kept:
            raise AlreadyExists(session_id)
        kept = self._kept[session_id] = _Kept(record=session, windows=[self._window()])
        if first is not None:
            try:
                self._add(session_id, kept, 0, replace(first, session=None))
            except StoreError:
                del self._kept[session_id]
                raise
        return Lease(fence=kept.fence, last_seq=kept.last_seq)

    async def acquire(self, session_id: str) -> Lease:
        """See `Store.acquire`."""
        kept = self._kept.get(session_id)
        if kept is None:
            raise UnknownSession(session_id)
        kept.fence += 1
        if kept.reserved_seq > kept.last_seq:
            kept.last_seq = kept.reserved_seq
            kept.windows.append(self._window())
        return Lease(fence=kept.fence, last_seq=kept.last_seq)

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        """See `Store.commit`."""
        kept = self._kept.get(session_id)
        if kept is None or fence != kept.fence:
            raise Fenced(
                f"Session {session_id!r} has another writer, or was erased: this one must stop."
            )
        self._add(session_id, kept, expected_seq, batch)

    def _add(self, session_id: str, kept: _Kept, expected_seq: int, batch: Batch) -> None:
        events = batch.events
        follows_on = all(event.seq == expected_seq + n for n, event in enumerate(events, start=1))
        if expected_seq != kept.last_seq or not follows_on:
            raise SequenceConflict(
                f"The log of session {session_id!r} ends at {kept.last_seq}; it cannot be "
                f"extended from {expected_seq} by {[event.seq for event in events][:8]}."
            )
        self._check_claims(batch.claims)
        self._put_claims(batch.claims)
        kept.windows[-1].extend(events)
        kept.last_seq += len(events)
        kept.reserved_seq = kept.last_seq + batch.reserve
        self._trim_events(kept)
        if batch.session is not None:
            self._spend(batch.session, batch.session.total_cost_usd - kept.record.total_cost_usd)
            kept.record = batch.session
        kept.turns.update((turn.turn_id, turn) for turn in batch.turns)
        self._trim_turns(kept)
        for request in batch.requests:
            kept.requests[request.request_id] = request
            if request.resolution is not None:
                kept.weights[request.request_id] = weight(request)
        if batch.requests:
            self._trim_requests(kept)

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[Event]:
        """See `Store.read`."""
        kept = self._kept.get(session_id)
        runs = () if kept is None else (w.read(after=after, limit=limit) for w in kept.windows)
        return next(filter(None, runs), ())

    async def take_over(self) -> Sequence[Found]:
        """See `Store.take_over`."""
        return [
            Found(
                session=kept.record,
                lease=await self.acquire(session_id),
                open_turns=[turn for turn in kept.turns.values() if turn.phase is not Phase.ENDED],
                open_requests=[one for one in kept.requests.values() if one.resolution is None],
            )
            for session_id, kept in self._kept.items()
        ]

    async def turn(self, session_id: str, turn_id: str) -> TurnRecord | None:
        """See `Store.turn`."""
        kept = self._kept.get(session_id)
        return None if kept is None else kept.turns.get(turn_id)

    async def turns(self, session_id: str) -> Sequence[TurnRecord]:
        """See `Store.turns`."""
        kept = self._kept.get(session_id)
        return [] if kept is None else list(kept.turns.values())

    async def told(self, session_id: str, *, after: int, limit: int) -> Sequence[TurnRecord]:
        """See `Store.told`."""
        kept = self._kept.get(session_id)
        ends = [
            (turn.last_seq, turn)
            for turn in (() if kept is None else kept.turns.values())
            if turn.phase is Phase.ENDED and turn.started_at is not None
        ]
        found = [(seq, turn) for seq, turn in ends if seq is not None and seq > after]
        return [turn for _, turn in sorted(found, key=lambda one: one[0])[:limit]]

    async def requests(self, session_id: str) -> Sequence[Request]:
        """See `Store.requests`."""
        kept = self._kept.get(session_id)
        return [] if kept is None else list(kept.requests.values())

    async def request(self, session_id: str, request_id: str) -> Request | None:
        """See `Store.request`."""
        kept = self._kept.get(session_id)
        return None if kept is None else kept.requests.get(request_id)

    async def claim(self, owner: str, key: str, *, now: datetime) -> Claim | None:
        """See `Store.claim`."""
        claim = self._claims.get((owner, key))
        return None if claim is None or claim.expires_at <= now else claim

    async def spending(self) -> Mapping[str, float]:
        """See `Store.spending`."""
        return dict(self._spent)

    async def erase(self, session_id: str, *, claims: bool = False) -> None:
        """See `Store.erase`."""
        self._kept.pop(session_id, None)
        if not claims:
            return
        for key in [key for key, claim in self._claims.items() if claim.session_id == session_id]:
            del self._claims[key]

    async def trim(self, *, now: datetime) -> bool:
        """See `Store.trim`. What counts is the text in events, prompts and answers."""
        age_s, most = self._retention.age_s, self._retention.state_bytes
        if age_s is not None:
            limit = now - timedelta(seconds=age_s)
            for kept in self._kept.values():
                self._drop_oldest(kept, until=limit)
        if most is not None:
            limit = now - timedelta(seconds=JUST_ENDED_S)
            size = sum(map(_size_of, self._kept.values()))
            for kept in sorted(self._kept.values(), key=lambda kept: kept.record.active_at):
                while size > most and (freed := self._drop_oldest(kept, until=limit, turns=1)):
                    size -= freed
        return False

    async def aclose(self) -> None:
        """See `Store.aclose`."""

    def _window(self) -> Window:
        return Window(max_events=self._retention.events, max_weight=self._retention.event_bytes)

    def _trim_events(self, kept: _Kept) -> None:
        """Drop the oldest runs that are too many; each keeps to the bounds by itself."""
        while len(kept.windows) > 1 and (
            sum(map(len, kept.windows)) > self._retention.events
            or sum(window.weight for window in kept.windows) > self._retention.event_bytes
        ):
            del kept.windows[0]

    def _trim_turns(self, kept: _Kept) -> None:
        """Drop the oldest ended turns that are too many."""
        if len(kept.turns) <= 1:
            return
        ended = [turn for turn in kept.turns.values() if turn.phase is Phase.ENDED]
        total = 0
        for newer, turn in enumerate(reversed(ended)):
            total += len(turn.prompt) + len(turn.text)
            if newer and (newer >= self._retention.turns or total > self._retention.turn_bytes):
                del kept.turns[turn.turn_id]

    def _trim_requests(self, kept: _Kept) -> None:
        """Drop the oldest requests that are over and too many."""
        over = [request_id for request_id in kept.requests if request_id in kept.weights]
        total = 0
        for newer, request_id in enumerate(reversed(over)):
            total += kept.weights[request_id]
            if newer and (
                newer >= self._retention.requests or total > self._retention.request_bytes
            ):
                del kept.requests[request_id], kept.weights[request_id]

    def _drop_oldest(self, kept: _Kept, *, until: datetime, turns: int | None = None) -> int:
        """Drop the oldest that ended by a time; return how much that was.

        Args:
            kept: Of what.
            until: The time.
            turns: How many turns at most, each with its events; None: all, and other events.
        """
        before = _size_of(kept)
        old = [
            turn
            for turn in kept.turns.values()
            if turn.phase is Phase.ENDED and (turn.ended_at is None or turn.ended_at <= until)
        ]
        through = 0
        for turn in old[:turns]:
            del kept.turns[turn.turn_id]
            for request in [one for one in kept.requests.values() if one.turn_id == turn.turn_id]:
                del kept.requests[request.request_id]
                kept.weights.pop(request.request_id, None)
            through = max(through, turn.last_seq or 0)
        if turns is None or not old:
            for window in kept.windows:
                for event in window.read(after=through, limit=len(window)):
                    if event.at > until:
                        break
                    through = event.seq
        needed = [turn.first_seq for turn in kept.turns.values() if turn.phase is not Phase.ENDED]
        through = min(through, *(seq - 1 for seq in needed)) if needed else through
        while len(kept.windows) > 1 and kept.windows[0].last_seq <= through:
            del kept.windows[0]
        kept.windows[0].drop(through)
        return before - _size_of(kept)

    def _spend(self, session: SessionRecord, usd: float) -> None:
        if usd > 0:
            self._spent[session.owner] = round(self._spent.get(session.owner, 0.0) + usd, 9)

    def _check_claims(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            earlier = self._claims.get((claim.owner, claim.key))
            if earlier is not None and earlier.expires_at > claim.claimed_at:
                raise ClaimTaken(claim.key)

    def _put_claims(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            # In the order in which they were made, which is that in which they expire.
            while self._claims:
                key, oldest = next(iter(self._claims.items()))
                if oldest.expires_at > claim.claimed_at:
                    break
                del self._claims[key]
            self._claims.pop((claim.owner, claim.key), None)
            self._claims[claim.owner, claim.key] = claim
