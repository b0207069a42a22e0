"""Which conversations take queries, counted and in order, so that nobody need look at all others.

A session says when it moves (`SessionCore.move`), and its place here follows from what it is then.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import TypeAlias

from session_supervisor.core import SessionCore
from session_supervisor.lifecycle import ACTIVE
from session_supervisor.session import Session

_Place: TypeAlias = tuple[datetime, str]

by_age = attrgetter("created_at", "session_id")
"""Returns what sessions are listed by: the oldest comes first."""


@dataclass(slots=True, eq=False)
class _Column:
    """Sessions by age; three lists, since almost all that is done is to append and to copy."""

    places: list[_Place] = field(default_factory=list[_Place])
    sessions: list[Session] = field(default_factory=list[Session])
    ids: list[str] = field(default_factory=list[str])

    def put(self, place: _Place, session: Session) -> None:
        at = len(self.places)
        if at and place <= self.places[-1]:
            at = bisect_left(self.places, place)
            if self.places[at] == place:
                return
        self.places.insert(at, place)
        self.sessions.insert(at, session)
        self.ids.insert(at, place[1])

    def drop(self, place: _Place) -> None:
        at = bisect_left(self.places, place)
        if at < len(self.places) and self.places[at] == place:
            del self.places[at], self.sessions[at], self.ids[at]


_NONE = _Column()


class Roster:
    """The conversations that take queries: everybody's, and each owner's."""

    def __init__(self) -> None:
        self._all = _Column()
        self._of: dict[str, _Column] = {}

    def look(self, core: SessionCore, session: Session) -> None:
        """Put a conversation where it belongs by what it is now."""
        if (core.state if core.closed is None else core.standing) not in ACTIVE:
            self.drop(core)
            return
        place = core.created_at, core.session_id
        self._all.put(place, session)
        own = self._of.get(core.owner)
        if own is None:
            own = self._of[core.owner] = _Column()
        own.put(place, session)

    def drop(self, core: SessionCore) -> None:
        """Forget a session, if it is here."""
        own = self._of.get(core.owner)
        if own is None:
            return
        place = core.created_at, core.session_id
        self._all.drop(place)
        own.drop(place)
        if not own.places:
            del self._of[core.owner]

    def count(self, owner: str | None) -> int:
        """Return how many there are, of an owner or, for None, of everybody."""
        return len(self._column(owner).sessions)

    def list(self, owner: str | None) -> tuple[Session, ...]:
        """Return them, oldest first, of an owner or, for None, of everybody."""
        return tuple(self._column(owner).sessions)

    def ids(self, owner: str | None) -> tuple[str, ...]:
        """Return their ids, in the same order, without a look at each of them."""
        return tuple(self._column(owner).ids)

    def _column(self, owner: str | None) -> _Column:
        return self._all if owner is None else self._of.get(owner, _NONE)
