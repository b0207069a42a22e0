"""`SqliteStore`: sessions in one file, safe when acknowledged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from session_supervisor.asks import Request, weight
from session_supervisor.config import Retention
from session_supervisor.errors import (
    AlreadyExists,
    ClaimTaken,
    Fenced,
    SequenceConflict,
    Spoiled,
    UnknownSession,
)
from session_supervisor.events import Event
from session_supervisor.results import Phase, TurnRecord
from session_supervisor.stores import codec
from session_supervisor.stores.records import (
    Batch,
    Claim,
    Damaged,
    Found,
    Lease,
    SessionRecord,
)
from session_supervisor.stores.sqlite.checkpoints import Checkpoint, add_together
from session_supervisor.stores.sqlite.database import Database, Joint
from session_supervisor.stores.sqlite.transcripts import SqliteTranscripts
from session_supervisor.stores.sqlite.trimming import Trimming


class SqliteStore:
    """Keeps everything in one SQLite database.

    Args:
        path: The file; made if there is none. It must be on a local disk.
        retention: What to keep of each session, and of all together.

    Attributes:
        transcripts: Claude Code's own transcripts, for `ClaudeAgent`.

    Raises:
        StoreError: The file cannot be opened, is another program's, or of a newer version.
    """

    def __init__(self, path: str | os.PathLike[str], retention: Retention | None = None) -> None:
        self._database = Database(Path(path))
        self._retention = retention or Retention()
        self._trimming = Trimming(self._retention)
        self.transcripts = SqliteTranscripts(self._database)

    @property
    def durable(self) -> bool:
        """It outlives its process."""
        return True

    async def create(self, session: SessionRecord, *, first: Batch | None = None) -> Lease:
        """See `Store.create`."""

        def work(db: sqlite3.Connection) -> Lease:
            try:
                db.execute(
                    "INSERT INTO sessions VALUES (?, "
                    "(SELECT coalesce(max(number), 0) + 1 FROM sessions), 1, 0, 0, 0, 0, ?, ?)",
                    (
                        session.session_id,
                        codec.encode_session(session),
                        codec.stamp(session.active_at),
                    ),
                )
            except sqlite3.IntegrityError:
                raise AlreadyExists(session.session_id) from None
            if session.total_cost_usd:  # it was not spent here
                _put_cost(db, session)
            if first is None:
                return Lease(fence=1, last_seq=0)
            self._commit(db, session.session_id, 1, 0, replace(first, session=None))
            return Lease(fence=1, last_seq=len(first.events))

        return await self._database.write(work)

    async def acquire(self, session_id: str) -> Lease:
        """See `Store.acquire`."""

        def work(db: sqlite3.Connection) -> Lease:
            row = db.execute(
                "UPDATE sessions SET fence = fence + 1, last_seq = reserved_seq "
                "WHERE session_id = ? RETURNING fence, last_seq",
                (session_id,),
            ).fetchone()
            if row is None:
                raise UnknownSession(session_id)
            return Lease(fence=row[0], last_seq=row[1])

        return await self._database.write(work)

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        """See `Store.commit`."""
        joint: Joint[Checkpoint] | None = None
        if not (batch.turns or batch.session or batch.claims or batch.requests):
            checkpoint = Checkpoint(
                session_id=session_id,
                fence=fence,
                expected_seq=expected_seq,
                events=batch.events,
                reserve=batch.reserve,
            )
            joint = Joint(self._add_together, checkpoint)
        await self._database.write(
            lambda db: self._commit(db, session_id, fence, expected_seq, batch), joint=joint
        )

    async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[Event]:
        """See `Store.read`."""
        return await self._database.read(lambda db: _read(db, session_id, after, limit))

    async def take_over(self) -> Sequence[Found | Damaged]:
        """See `Store.take_over`."""

        def work(db: sqlite3.Connection) -> list[Found | Damaged]:
            open_turns: dict[str, list[bytes]] = {}
            for session_id, record in db.execute(
                "SELECT session_id, record FROM turns WHERE NOT ended ORDER BY session_id, number"
            ):
                open_turns.setdefault(session_id, []).append(record)
            open_requests: dict[str, list[bytes]] = {}
            for session_id, record in db.execute(
                "SELECT session_id, record FROM requests WHERE NOT resolved "
                "ORDER BY session_id, number"
            ):
                open_requests.setdefault(session_id, []).append(record)
            db.execute("UPDATE sessions SET fence = fence + 1, last_seq = reserved_seq")
            rows = db.execute(
                "SELECT session_id, fence, last_seq, record FROM sessions ORDER BY number"
            )
            return [
                _found(
                    session_id,
                    Lease(fence=fence, last_seq=last_seq),
                    record,
                    open_turns.get(session_id, ()),
                    open_requests.get(session_id, ()),
                )
                for session_id, fence, last_seq, record in rows
            ]

        return await self._database.write(work)

    async def turn(self, session_id: str, turn_id: str) -> TurnRecord | None:
        """See `Store.turn`."""

        def work(db: sqlite3.Connection) -> TurnRecord | None:
            row = db.execute(
                "SELECT record FROM turns WHERE session_id = ? AND turn_id = ?",
                (session_id, turn_id),
            ).fetchone()
            return None if row is None else codec.decode_turn(row[0])

        return await self._database.read(work)

    async def turns(self, session_id: str) -> Sequence[TurnRecord]:
        """See `Store.turns`."""

        def work(db: sqlite3.Connection) -> list[TurnRecord]:
            rows = db.execute(
                "SELECT record FROM turns WHERE session_id = ? ORDER BY number", (session_id,)
            ).fetchall()
            return [codec.decode_turn(record) for (record,) in rows]

        return await self._database.read(work)

    async def told(self, session_id: str, *, after: int, limit: int) -> Sequence[TurnRecord]:
        """See `Store.told`."""

        def work(db: sqlite3.Connection) -> list[TurnRecord]:
            rows = db.execute(
                "SELECT record FROM turns WHERE session_id = ? AND told AND last_seq > ? "
                "ORDER BY last_seq LIMIT ?",
                (session_id, after, limit),
            ).fetchall()
            return [codec.decode_turn(record) for (record,) in rows]

        return await self._database.read(work)

    async def requests(self, session_id: str) -> Sequence[Request]:
        """See `Store.requests`."""

        def work(db: sqlite3.Connection) -> list[Request]:
            rows = db.execute(
                "SELECT record FROM requests WHERE session_id = ? ORDER BY number", (session_id,)
            )
            return [codec.decode_request(record) for (record,) in rows]

        return await self._database.read(work)

    async def request(self, session_id: str, request_id: str) -> Request | None:
        """See `Store.request`."""

        def work(db: sqlite3.Connection) -> Request | None:
            row = db.execute(
                "SELECT record FROM requests WHERE session_id = ? AND request_id = ?",
                (session_id, request_id),
            ).fetchone()
            return None if row is None else codec.decode_request(row[0])

        return await self._database.read(work)

    async def claim(self, owner: str, key: str, *, now: datetime) -> Claim | None:
        """See `Store.claim`."""

        def work(db: sqlite3.Connection) -> Claim | None:
            row = db.execute(
                "SELECT record FROM claims WHERE owner = ? AND key = ?", (owner, key)
            ).fetchone()
            found = None if row is None else codec.decode_claim(row[0])
            return None if found is None or found.expires_at <= now else found

        return await self._database.read(work)

    async def spending(self) -> Mapping[str, float]:
        """See `Store.spending`."""

        def work(db: sqlite3.Connection) -> dict[str, float]:
            return dict(db.execute("SELECT owner, usd FROM spending"))

        return await self._database.read(work)

    async def erase(self, session_id: str, *, claims: bool = False) -> None:
        """See `Store.erase`."""

        def work(db: sqlite3.Connection) -> None:
            tables = ("sessions", "turns", "runs", "requests", "costs")
            for table in (*tables, "claims") if claims else tables:
                db.execute(f"DELETE FROM {table} WHERE session_id = ?", (session_id,))

        await self._database.write(work, scrub=True)

    async def trim(self, *, now: datetime) -> bool:
        """See `Store.trim`."""
        more = await self._database.write(lambda db: self._trimming.step(db, now))
        if not more and self._trimming.take_dropped():
            await self._database.write(lambda _: None, scrub=True)
        return more

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._database.aclose()

    # -- in the writer's thread --------------------------------------------------------------

    def _add_together(self, db: sqlite3.Connection, each: Sequence[Checkpoint]) -> Sequence[bool]:
        return add_together(db, each, self._retention)

    def _commit(
        self,
        db: sqlite3.Connection,
        session_id: str,
        fence: int,
        expected_seq: int,
        batch: Batch,
    ) -> None:
        row = db.execute(
            "SELECT fence, last_seq, events, event_bytes FROM sessions WHERE session_id = ?",
            (session_id,),
        ).fetchone()
        if row is None or row[0] != fence:
            raise Fenced(
                f"Session {session_id!r} has another writer, or was erased: this one must stop."
            )
        _, last_seq, count, weight = row
        follows_on = all(
            event.seq == expected_seq + n for n, event in enumerate(batch.events, start=1)
        )
        if expected_seq != last_seq or not follows_on:
            raise SequenceConflict(
                f"The log of session {session_id!r} ends at {last_seq}; it cannot be extended "
                f"from {expected_seq} by {[event.seq for event in batch.events][:8]}."
            )
        added_count, added_weight = _append(db, session_id, batch.events)
        count, weight = count + added_count, weight + added_weight
        if count > self._retention.events or weight > self._retention.event_bytes:
            count, weight = self._drop_oldest(db, session_id, count, weight)
        last_seq += len(batch.events)
        db.execute(
            "UPDATE sessions SET last_seq = ?, reserved_seq = ?, events = ?, event_bytes = ? "
            "WHERE session_id = ?",
            (last_seq, last_seq + batch.reserve, count, weight, session_id),
        )
        if batch.session is not None:
            db.execute(
                "UPDATE sessions SET record = ?, active_at = ? WHERE session_id = ?",
                (
                    codec.encode_session(batch.session),
                    codec.stamp(batch.session.active_at),
                    session_id,
                ),
            )
            _spend(db, batch.session)
        _put_turns(db, session_id, batch.turns)
        if any(turn.phase is Phase.ENDED for turn in batch.turns):
            self._drop_turns(db, session_id)
        _put_requests(db, session_id, batch.requests)
        if any(request.resolution is not None for request in batch.requests):
            self._drop_requests(db, session_id)
        _insert_claims(db, batch.claims)

    def _drop_oldest(
        self, db: sqlite3.Connection, session_id: str, count: int, weight: int
    ) -> tuple[int, int]:
        """Drop rows from the front of a log until it is within the retention."""
        rows = db.execute(
            # The newest row stays in any case.
            "SELECT first_seq, last_seq, weight FROM runs WHERE session_id = ? AND last_seq < "
            "(SELECT max(last_seq) FROM runs WHERE session_id = ?) ORDER BY last_seq",
            (session_id, session_id),
        )
        dropped_to = 0
        for first_seq, last_seq, row_weight in rows:  # only as many as it takes are looked at
            if count <= self._retention.events and weight <= self._retention.event_bytes:
                break
            count -= last_seq - first_seq + 1
            weight -= row_weight
            dropped_to = last_seq
        db.execute(
            "DELETE FROM runs WHERE session_id = ? AND last_seq <= ?", (session_id, dropped_to)
        )
        return count, weight

    def _drop_turns(self, db: sqlite3.Connection, session_id: str) -> None:
        """Drop the oldest ended turns that are too many."""
        retention = self._retention
        _drop_rows(db, "turns", "ended", session_id, retention.turns, retention.turn_bytes)

    def _drop_requests(self, db: sqlite3.Connection, session_id: str) -> None:
        """Drop the oldest requests that are over and too many."""
        retention = self._retention
        _drop_rows(
            db, "requests", "resolved", session_id, retention.requests, retention.request_bytes
        )


def _drop_rows(
    db: sqlite3.Connection, table: str, over: str, session_id: str, most: int, most_weight: int
) -> None:
    """Drop the oldest rows that may go and are too many; the newest stays in any case.

    Args:
        db: The database.
        table: Which rows.
        over: The column that says which of them may go.
        session_id: Whose.
        most: How many may stay.
        most_weight: How much they may weigh together.
    """
    rows = db.execute(
        f"SELECT number, weight FROM {table} WHERE session_id = ? AND {over} ORDER BY number DESC",
        (session_id,),
    ).fetchall()
    total = 0
    for kept, (number, weighs) in enumerate(rows):
        total += weighs
        if kept and (kept >= most or total > most_weight):
            db.execute(
                f"DELETE FROM {table} WHERE session_id = ? AND {over} AND number <= ?",
                (session_id, number),
            )
            return


def _found(
    session_id: str,
    lease: Lease,
    record: bytes,
    open_turns: Sequence[bytes],
    open_requests: Sequence[bytes],
) -> Found | Damaged:
    session: SessionRecord | None = None
    try:
        session = codec.decode_session(record)
        turns = [codec.decode_turn(turn) for turn in open_turns]
        requests = [codec.decode_request(request) for request in open_requests]
    except Spoiled as error:
        return Damaged(session_id=session_id, session=session, reason=str(error))
    return Found(session=session, lease=lease, open_turns=turns, open_requests=requests)


def _append(db: sqlite3.Connection, session_id: str, events: Sequence[Event]) -> tuple[int, int]:
    """Add events behind a log; return how many there are more, and what they weigh."""
    if not events:
        return 0, 0
    weight = 0
    row = db.execute(
        "SELECT first_seq, last_seq, weight, record, at FROM runs WHERE session_id = ? "
        "AND last_seq = ?",
        (session_id, events[0].seq - 1),
    ).fetchone()
    last = None if row is None else codec.Run(*row)
    for run in codec.runs_of(events, last=last):
        weight += run.weight
        if last is not None and run.first_seq == last.first_seq:
            weight -= last.weight
            db.execute(
                "DELETE FROM runs WHERE session_id = ? AND last_seq = ?",
                (session_id, last.last_seq),
            )
        db.execute(
            "INSERT INTO runs (session_id, first_seq, last_seq, weight, record, at) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (session_id, run.first_seq, run.last_seq, run.weight, run.record, run.at),
        )
    return len(events), weight


def _read(db: sqlite3.Connection, session_id: str, after: int, limit: int) -> list[Event]:
    rows = db.execute(
        "SELECT first_seq, record FROM runs WHERE session_id = ? AND last_seq > ? "
        "ORDER BY last_seq",
        (session_id, after),
    )
    found: list[Event] = []
    # Closed at once, also with an error that somebody keeps: it would hold on to the database.
    with closing(rows):
        for first_seq, record in rows:
            if found and first_seq > found[-1].seq + 1:  # a hole: it is told of when it comes first
                break
            found += (event for event in codec.events_of(first_seq, record) if event.seq > after)
            if len(found) >= limit:
                break
    return found[:limit]


def _put_turns(db: sqlite3.Connection, session_id: str, turns: Sequence[TurnRecord]) -> None:
    for turn in turns:
        db.execute(
            "INSERT INTO turns VALUES (?, (SELECT coalesce(max(number), 0) + 1 FROM turns "
            "WHERE session_id = ?), ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (session_id, turn_id) "
            "DO UPDATE SET ended = excluded.ended, weight = excluded.weight, "
            "record = excluded.record, last_seq = excluded.last_seq, "
            "ended_at = excluded.ended_at, told = excluded.told",
            (
                session_id,
                session_id,
                turn.turn_id,
                turn.phase is Phase.ENDED,
                len(turn.prompt) + len(turn.text),
                codec.encode_turn(turn),
                turn.last_seq,
                None if turn.ended_at is None else codec.stamp(turn.ended_at),
                turn.phase is Phase.ENDED and turn.started_at is not None,
            ),
        )


def _put_requests(db: sqlite3.Connection, session_id: str, requests: Sequence[Request]) -> None:
    for request in requests:
        db.execute(
            "INSERT INTO requests VALUES (?, (SELECT coalesce(max(number), 0) + 1 FROM requests "
            "WHERE session_id = ?), ?, ?, ?, ?, ?) ON CONFLICT (session_id, request_id) "
            "DO UPDATE SET "
            "resolved = excluded.resolved, weight = excluded.weight, record = excluded.record",
            (
                session_id,
                session_id,
                request.request_id,
                request.turn_id,
                request.resolution is not None,
                weight(request),
                codec.encode_request(request),
            ),
        )


def _spend(db: sqlite3.Connection, session: SessionRecord) -> None:
    """Add what a session has cost since it was stored last to what its owner has spent."""
    row = db.execute("SELECT usd FROM costs WHERE session_id = ?", (session.session_id,)).fetchone()
    more = session.total_cost_usd - (0.0 if row is None else row[0])
    if more > 0:
        db.execute(
            "INSERT INTO spending VALUES (?, ?) ON CONFLICT (owner) DO UPDATE SET "
            "usd = round(usd + excluded.usd, 9)",
            (session.owner, round(more, 9)),
        )
    if more:
        _put_cost(db, session)


def _put_cost(db: sqlite3.Connection, session: SessionRecord) -> None:
    db.execute(
        "INSERT OR REPLACE INTO costs VALUES (?, ?)", (session.session_id, session.total_cost_usd)
    )


def _insert_claims(db: sqlite3.Connection, claims: Sequence[Claim]) -> None:
    for claim in claims:
        # Whatever has expired makes room, and goes.
        db.execute("DELETE FROM claims WHERE expires_at <= ?", (codec.stamp(claim.claimed_at),))
        expires_at = codec.stamp(claim.expires_at)
        try:
            db.execute(
                "INSERT INTO claims VALUES (?, ?, ?, ?, ?)",
                (claim.owner, claim.key, claim.session_id, expires_at, codec.encode_claim(claim)),
            )
        except sqlite3.IntegrityError:
            raise ClaimTaken(claim.key) from None
