"""What is kept no longer goes, in small steps between the commits.

What is too old goes first; then, if all sessions together take more than they may, the oldest of
those that were used least recently. An ended turn goes with what it asked humans, its events and
all before them. The newest row of each log stays, so that a reader who comes back learns of the
gap.
"""

from __future__ import annotations

import logging
import sqlite3
from datetime import datetime, timedelta

from session_supervisor.config import Retention
from session_supervisor.errors import Spoiled
from session_supervisor.stores import codec
from session_supervisor.stores.port import JUST_ENDED_S

logger = logging.getLogger(__name__)

STEP_BYTES = 512 * 2**10
"""What one step drops, about: as much as is written in a few milliseconds."""

STEP_ROWS = 256
"""Rows that one step looks at or drops, about."""

STEP_PAGES = 256
"""Free pages that one step gives back to the file system."""

SPARE_PAGES = 512
"""Free pages that are kept for what comes."""


class Trimming:
    """Where it has got to. For the thread that writes.

    Args:
        retention: What is kept.
    """

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._dropped = False
        self._told = False
        self._begin()

    def _begin(self) -> None:
        self._looked_at: str | None = ""
        """The session whose age was looked at last; None: all were."""
        self._used: tuple[int, str] | None = (-1, "")
        """The session up to which, from the least recently used on, there is nothing to drop; None:
        there is nothing in any."""

    def step(self, db: sqlite3.Connection, now: datetime) -> bool:
        """Drop a little; return whether there may be more.

        Args:
            db: The database, in a transaction.
            now: What time it is.
        """
        more = self._drop_old(db, now) or self._drop_too_much(db, now) or _give_back(db)
        if not more:
            self._begin()
        return more

    def take_dropped(self) -> bool:
        """Return whether anything was dropped since this was asked the last time."""
        dropped, self._dropped = self._dropped, False
        return dropped

    # -- by age ------------------------------------------------------------------------------

    def _drop_old(self, db: sqlite3.Connection, now: datetime) -> bool:
        age_s = self._retention.age_s
        if age_s is None or self._looked_at is None:
            return False
        limit = codec.stamp(now - timedelta(seconds=age_s))
        turns = db.execute(
            "SELECT session_id, number, last_seq FROM turns WHERE ended AND ended_at <= ? "
            "ORDER BY ended_at LIMIT ?",
            (limit, STEP_ROWS // 8),
        ).fetchall()
        room = STEP_BYTES
        for session_id, number, last_seq in turns:
            room -= self._drop_turn(db, session_id, number, last_seq)
            if room <= 0:
                break
        return bool(turns) or self._drop_old_events(db, limit)

    def _drop_old_events(self, db: sqlite3.Connection, limit: int) -> bool:
        """Drop old events of turns that are gone, or of none."""
        names = db.execute(
            "SELECT session_id FROM sessions WHERE session_id > ? ORDER BY session_id LIMIT ?",
            (self._looked_at, STEP_ROWS),
        ).fetchall()
        room = STEP_BYTES
        for (session_id,) in names:
            dropped = self._drop_events(db, session_id, until=limit)
            room -= dropped
            if not dropped:
                self._looked_at = session_id
            if room <= 0:
                break
        if not names:
            self._looked_at = None
        return bool(names)

    # -- by size -----------------------------------------------------------------------------

    def _drop_too_much(self, db: sqlite3.Connection, now: datetime) -> bool:
        most = self._retention.state_bytes
        if most is None:
            return False
        if size_of(db) <= most:
            self._told = False
            return False
        limit = codec.stamp(now - timedelta(seconds=JUST_ENDED_S))
        room = STEP_BYTES
        for _ in range(STEP_ROWS // 4):
            session = self._least_used(db)
            if session is None:
                self._tell(size_of(db), most)
                return False
            dropped = self._drop_oldest(db, session[1], limit)
            if not dropped:
                self._used = session
            room -= dropped
            if room <= 0 or (dropped and size_of(db) <= most):
                break
        return True

    def _least_used(self, db: sqlite3.Connection) -> tuple[int, str] | None:
        """Return the least recently used session that may have something to drop."""
        if self._used is None:
            return None
        found: tuple[int, str] | None = db.execute(
            "SELECT active_at, session_id FROM sessions WHERE (active_at, session_id) > (?, ?) "
            "ORDER BY active_at, session_id LIMIT 1",
            self._used,
        ).fetchone()
        if found is None:
            self._used = None
        return found

    def _drop_oldest(self, db: sqlite3.Connection, session_id: str, limit: int) -> int:
        """Drop the oldest that a session has; return how much that was, 0: it has no more."""
        turn = db.execute(
            "SELECT number, last_seq FROM turns WHERE session_id = ? AND ended "
            "AND coalesce(ended_at, 0) <= ? ORDER BY number LIMIT 1",
            (session_id, limit),
        ).fetchone()
        if turn is not None:
            return self._drop_turn(db, session_id, *turn)
        return self._drop_events(db, session_id, until=limit)

    def _tell(self, size: int, most: int) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "the database holds %d MiB, more than the %d MiB that it may, and all that is "
                "left is needed by sessions that are there: close some, let them expire, or allow "
                "more",
                size // 2**20,
                most // 2**20,
            )

    # -- what goes ---------------------------------------------------------------------------

    def _drop_turn(
        self, db: sqlite3.Connection, session_id: str, number: int, last_seq: int | None
    ) -> int:
        """Drop events up to a turn's end and, when they are gone, the turn; return how much."""
        dropped = self._drop_events(db, session_id, through=last_seq or 0)
        if dropped < STEP_BYTES:
            turn_id, weight = db.execute(
                "DELETE FROM turns WHERE session_id = ? AND number = ? RETURNING turn_id, weight",
                (session_id, number),
            ).fetchone()
            asked = db.execute(
                "DELETE FROM requests WHERE session_id = ? AND turn_id = ? RETURNING weight",
                (session_id, turn_id),
            ).fetchall()
            dropped += weight + sum(one for (one,) in asked)
            self._dropped = True
        return max(1, dropped)

    def _drop_events(
        self,
        db: sqlite3.Connection,
        session_id: str,
        *,
        through: int = 2**62,
        until: int = 2**62,
    ) -> int:
        """Drop rows from the front of a log; return what they weigh, but at least 1 if there are.

        Args:
            db: The database.
            session_id: Whose log.
            through: Number of the last event that may go.
            until: Time of the last event that may go, as `codec.stamp` counts.
        """
        rows = db.execute(
            "SELECT first_seq, last_seq, weight, at FROM runs WHERE session_id = ? "
            "AND last_seq <= ? AND last_seq < "
            "(SELECT max(last_seq) FROM runs WHERE session_id = ?) ORDER BY last_seq",
            (session_id, through, session_id),
        )
        count = weight = gone = 0
        needed: int | None = None
        for first_seq, last_seq, row_weight, at in rows:
            if at > until or weight >= STEP_BYTES:
                break
            if needed is None:
                needed = _first_needed(db, session_id)
            if last_seq >= needed:
                break
            count += last_seq - first_seq + 1
            weight += row_weight
            gone = last_seq
        if not gone:
            return 0
        db.execute("DELETE FROM runs WHERE session_id = ? AND last_seq <= ?", (session_id, gone))
        db.execute(
            "UPDATE sessions SET events = events - ?, event_bytes = event_bytes - ? "
            "WHERE session_id = ?",
            (count, weight, session_id),
        )
        self._dropped = True
        return max(1, weight)


def size_of(db: sqlite3.Connection) -> int:
    """Return the bytes that are in use in a database, without its free pages."""
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    (size,) = db.execute("PRAGMA page_size").fetchone()
    return (int(pages) - int(free)) * int(size)


def _first_needed(db: sqlite3.Connection, session_id: str) -> int:
    """Return the number of the first event of a turn that has not ended."""
    needed = 2**62
    rows = db.execute("SELECT record FROM turns WHERE session_id = ? AND NOT ended", (session_id,))
    for (record,) in rows:
        try:
            needed = min(needed, codec.decode_turn(record).first_seq)
        except Spoiled:  # then nobody knows
            return 0
    return needed


def _give_back(db: sqlite3.Connection) -> bool:
    """Give free pages back, if there are many; return whether there are more."""
    (mode,) = db.execute("PRAGMA auto_vacuum").fetchone()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    spare = max(SPARE_PAGES, pages // 8)
    if mode != 2 or free <= spare:  # 2: INCREMENTAL
        return False
    for _ in range(min(STEP_PAGES, free - spare)):
        # The module steps through a statement without columns once, and that is one page.
        db.execute("PRAGMA incremental_vacuum(1)")
    return bool(free - spare > STEP_PAGES)
