"""What a run of `bench.chaos` keeps of a session about which a promise was not kept.

When a run is over, all that it had is erased. To find out why a promise was not kept takes what
the store, Claude Code and the server's log have of that session, next to what its client knows.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.chaos_conversation import Conversation
from bench.chaos_record import Record

_TABLES = ("sessions", "turns", "transcripts")


class Keeper:
    """Copies what there is of sessions into a directory, one below it for each.

    Args:
        directory: Where to; made when it is needed.
        state: The server's state directory.
        database: Its database.
        log: The server's log.
    """

    def __init__(self, directory: Path, *, state: Path, database: Path, log: Path) -> None:
        self._directory = directory
        self._state = state
        self._database = database
        self._log = log

    def keep(self, record: Record, conversations: Collection[Conversation]) -> None:
        """Copy what there is of every session that a violation is about.

        Args:
            record: The run's; faults and violations go along.
            conversations: All sessions of the run.
        """
        for one in conversations:
            said = [found for found in record.violations if one.session_id in found.what]
            if not said:
                continue
            folder = self._directory / one.session_id
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "violations.json", [asdict(found) for found in said])
            _write(folder / "told.json", [asdict(told) for told in one.told])
            _write(folder / "faults.json", _faults(record, one.session_id))
            place = self._copy_database(folder, one.session_id)
            self._copy_files(folder, place)
            self._copy_log(folder, one.session_id)

    def _copy_database(self, folder: Path, session_id: str) -> str:
        """Copy the rows of a session, and what the store has of its transcripts.

        Returns:
            The name of the directory that it works in: its own id or, where a process was there
            before it, that of the process.
        """
        place = session_id
        with closing(sqlite3.connect(f"{self._database.as_uri()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            for table in _TABLES:
                column, wanted = "session_id", session_id
                if table == "transcripts":  # whose session is Claude Code's own
                    column, wanted = "project_key", f"%{place}%"
                rows = database.execute(f"SELECT * FROM {table} WHERE {column} LIKE ?", (wanted,))
                found = [_readable(dict(row)) for row in rows]
                _write(folder / f"{table}.json", found)
                if table == "sessions" and found:
                    place = Path(str(found[0]["record"]["cwd"])).name
        return place

    def _copy_files(self, folder: Path, place: str) -> None:
        """Copy Claude Code's own transcripts: they lie in a directory named after the session's."""
        for path in self._state.rglob("*.jsonl"):
            if place in str(path.relative_to(self._state)):
                shutil.copy2(path, folder / path.name)

    def _copy_log(self, folder: Path, session_id: str) -> None:
        with self._log.open("rb") as lines, (folder / "server.log").open("wb") as kept:
            kept.writelines(line for line in lines if session_id.encode() in line)


def _faults(record: Record, session_id: str) -> Sequence[Mapping[str, object]]:
    """Return what happened to a session, or to all, in the order of time."""
    # The run knows monotonic time, the log and the transcripts have that of the clock.
    began = datetime.now(UTC) - timedelta(seconds=record.age_s)
    return [
        {
            "at": (began + timedelta(seconds=one.at - record.began)).isoformat(),
            "kind": one.kind,
            "whom": "it" if one.session_id else "everybody",
        }
        for one in record.injected
        if one.session_id in (None, session_id)
    ]


def _readable(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row as what can be written as JSON, with its records taken apart."""
    return {
        name: json.loads(value) if isinstance(value, bytes) else value
        for name, value in row.items()
    }


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
