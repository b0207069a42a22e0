"""Events of many sessions, added to their logs at once.

While a thousand sessions speak, each has some more events to store four times a second. Every
statement gives up the interpreter's lock and waits, behind a busy event loop, to have it back: by a
few statements for each session such a moment never ends. So there are a few for all of them.

Only what is usual is done here. Whatever is refused, or needs more than to be added, is left to the
commit of a single session, which knows the reason.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from session_supervisor.config import Retention
from session_supervisor.events import Event
from session_supervisor.stores import codec


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Events that a writer adds to its session's log.

    Attributes:
        session_id: Which session.
        fence: What the writer writes with.
        expected_seq: Number of the last event, to the writer.
        events: What comes after it.
        reserve: How many numbers to set aside.
    """

    session_id: str
    fence: int
    expected_seq: int
    events: Sequence[Event]
    reserve: int

    @property
    def follows_on(self) -> bool:
        """Whether the events have the numbers that come next."""
        first = self.expected_seq + 1
        return all(event.seq == seq for seq, event in enumerate(self.events, start=first))


# In hexadecimal, since what is damaged need not be text.
_FIND = """
    SELECT json_group_array(json_array(s.session_id, s.fence, s.last_seq, s.events, s.event_bytes,
        r.first_seq, r.weight, r.at, hex(r.record)))
    FROM json_each(?) AS asked CROSS JOIN sessions AS s ON s.session_id = asked.value
    LEFT JOIN runs AS r ON r.session_id = s.session_id AND r.last_seq = s.last_seq
        AND (length(r.record) < ? OR length(r.record) BETWEEN ? AND ?)
"""

_DROP = """
    DELETE FROM runs WHERE (session_id, last_seq) IN
        (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))
"""

_ADD = """
    INSERT INTO runs (session_id, first_seq, last_seq, weight, record, at)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
        json_extract(value, '$[3]'), CAST(json_extract(value, '$[4]') AS BLOB),
        json_extract(value, '$[5]')
    FROM json_each(?)
"""

_MOVE = """
    UPDATE sessions SET last_seq = json_extract(moved.value, '$[1]'),
        reserved_seq = json_extract(moved.value, '$[2]'),
        events = json_extract(moved.value, '$[3]'),
        event_bytes = json_extract(moved.value, '$[4]')
    FROM json_each(?) AS moved WHERE session_id = json_extract(moved.value, '$[0]')
"""


def add_together(
    db: sqlite3.Connection, checkpoints: Sequence[Checkpoint], retention: Retention
) -> Sequence[bool]:
    """Add events to logs, within a transaction.

    Args:
        db: The database.
        checkpoints: What to add.
        retention: What is kept of each session.

    Returns:
        Of each, whether that was done; if not, nothing of it was.
    """
    times = Counter(one.session_id for one in checkpoints)
    asked = {one.session_id: one for one in checkpoints if times[one.session_id] == 1}
    sizes = codec.GROWS_TO, codec.SPILLS_FROM, codec.SPILLED_GROWS_TO
    ((found,),) = db.execute(_FIND, (json.dumps(list(asked)), *sizes)).fetchall()
    gone: list[tuple[str, int]] = []
    added: list[tuple[str, int, int, int, str, int]] = []
    moved: dict[str, tuple[str, int, int, int, int]] = {}
    for session_id, fence, last_seq, count, weight, first_seq, weighs, at, record in json.loads(
        found
    ):
        one = asked[session_id]
        if (fence, last_seq) != (one.fence, one.expected_seq) or not one.follows_on:
            continue
        last = None
        if first_seq is not None:
            last = codec.Run(first_seq, last_seq, weighs, bytes.fromhex(record), at)
        runs = list(codec.runs_of(one.events, last=last))
        grown = last is not None and bool(runs) and runs[0].first_seq == last.first_seq
        count += len(one.events)
        weight += sum(run.weight for run in runs) - (weighs if grown else 0)
        if count > retention.events or weight > retention.event_bytes:
            continue
        if grown:
            gone.append((session_id, last_seq))
        added += (
            (session_id, run.first_seq, run.last_seq, run.weight, run.record.decode(), run.at)
            for run in runs
        )
        last_seq += len(one.events)
        moved[session_id] = (session_id, last_seq, last_seq + one.reserve, count, weight)
    for statement, rows in ((_DROP, gone), (_ADD, added), (_MOVE, list(moved.values()))):
        if rows:
            db.execute(statement, (json.dumps(rows),))
    return [one.session_id in moved for one in checkpoints]
