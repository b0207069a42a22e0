"""Claude Code's own transcripts, in the same database.

The CLI writes what it needs to resume a conversation to local files. A copy of it here lets a
session go on where those files are gone. This has the shape of the SDK's `SessionStore`, so that
whatever works with one works with this; the SDK is not imported for it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from session_supervisor.spec import JsonObject
from session_supervisor.stores.sqlite.database import Database


class TranscriptKey(TypedDict):
    """Which transcript, as the SDK's `SessionKey` says it.

    Attributes:
        project_key: The directory that the conversation is held in, in the CLI's spelling.
        session_id: The conversation's id, the CLI's own.
        subpath: Which of its subagents' transcripts; absent for the main one.
    """

    project_key: str
    session_id: str
    subpath: NotRequired[str]


class KnownSession(TypedDict):
    """A conversation that there is a transcript of.

    Attributes:
        session_id: Its id.
        mtime: When it last grew, milliseconds since 1970.
    """

    session_id: str
    mtime: int


class SqliteTranscripts:
    """Transcripts in a database that somebody else opens and closes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, key: TranscriptKey, entries: Sequence[JsonObject]) -> None:
        """Add lines to a transcript; one whose `uuid` is there already is not added again."""
        if not entries:
            return
        rows = [(entry.get("uuid"), json.dumps(entry).encode("ascii")) for entry in entries]
        where = _where(key)
        now = time.time_ns() // 1_000_000

        def work(db: sqlite3.Connection) -> None:
            (number,) = db.execute(
                "SELECT coalesce(max(number), 0) FROM transcripts "
                "WHERE project_key = ? AND session_id = ? AND subpath = ?",
                where,
            ).fetchone()
            db.executemany(
                "INSERT OR IGNORE INTO transcripts VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (*where, number + n, uuid if isinstance(uuid, str) else None, now, line)
                    for n, (uuid, line) in enumerate(rows, start=1)
                ],
            )

        await self._database.write(work)

    async def load(self, key: TranscriptKey) -> list[JsonObject] | None:
        """Return the lines of a transcript in order, None for one that there is not."""

        def work(db: sqlite3.Connection) -> list[JsonObject]:
            rows = db.execute(
                "SELECT entry FROM transcripts "
                "WHERE project_key = ? AND session_id = ? AND subpath = ? ORDER BY number",
                _where(key),
            )
            return [json.loads(entry) for (entry,) in rows]

        return await self._database.read(work) or None

    async def list_sessions(self, project_key: str) -> list[KnownSession]:
        """Return the conversations that were held in a directory."""

        def work(db: sqlite3.Connection) -> list[KnownSession]:
            rows = db.execute(
                "SELECT session_id, max(at) FROM transcripts "
                "WHERE project_key = ? AND subpath = '' GROUP BY session_id",
                (project_key,),
            )
            return [KnownSession(session_id=name, mtime=at) for name, at in rows]

        return await self._database.read(work)

    async def list_subkeys(self, key: TranscriptKey) -> list[str]:
        """Return which subagents' transcripts a conversation has."""

        def work(db: sqlite3.Connection) -> list[str]:
            rows = db.execute(
                "SELECT DISTINCT subpath FROM transcripts "
                "WHERE project_key = ? AND session_id = ? AND subpath <> ''",
                (key["project_key"], key["session_id"]),
            )
            return [subpath for (subpath,) in rows]

        return await self._database.read(work)

    async def delete(self, key: TranscriptKey) -> None:
        """Forget a transcript; without a `subpath`, also those of the conversation's subagents."""

        def work(db: sqlite3.Connection) -> None:
            where = "project_key = ? AND session_id = ?"
            if key.get("subpath"):
                db.execute(
                    f"DELETE FROM transcripts WHERE {where} AND subpath = ?",
                    _where(key),
                )
            else:
                db.execute(f"DELETE FROM transcripts WHERE {where}", _where(key)[:2])

        await self._database.write(work)


def _where(key: Mapping[str, object]) -> tuple[object, object, object]:
    return key["project_key"], key["session_id"], key.get("subpath") or ""
