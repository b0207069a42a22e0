"""The tables, and how an older file becomes one of today."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from session_supervisor.errors import StoreError

APPLICATION_ID = 0x43535356
"""Marks a file as ours: the letters CSSV."""

LONGEST_LOG = 16 * 2**20
"""Bytes that the write-ahead log keeps on the disk after it was longer."""

_VALID = "json_valid(CAST(record AS TEXT))"
"""Whether a row's record is JSON at all."""


def _in(name: str) -> str:
    """Return what gives a field of a row's record."""
    return f"json_extract(CAST(record AS TEXT), '$.{name}')"


def _time_in(name: str) -> str:
    """Return what gives a time in a row's record, in microseconds since 1970."""
    return f"CAST(strftime('%s', {_in(name)}) AS INTEGER) * 1000000"


MIGRATIONS = (
    """
    CREATE TABLE sessions (
        session_id TEXT PRIMARY KEY,
        number INTEGER NOT NULL,
        fence INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        reserved_seq INTEGER NOT NULL,
        events INTEGER NOT NULL,
        event_bytes INTEGER NOT NULL,
        record BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX sessions_in_order ON sessions (number);
    CREATE TABLE turns (
        session_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        turn_id TEXT NOT NULL,
        ended INTEGER NOT NULL,
        weight INTEGER NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (session_id, number)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX turns_by_id ON turns (session_id, turn_id);
    CREATE INDEX open_turns ON turns (session_id, number) WHERE NOT ended;
    CREATE TABLE runs (
        session_id TEXT NOT NULL,
        last_seq INTEGER NOT NULL,
        first_seq INTEGER NOT NULL,
        weight INTEGER NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (session_id, last_seq)
    ) WITHOUT ROWID;
    CREATE TABLE claims (
        owner TEXT NOT NULL,
        key TEXT NOT NULL,
        session_id TEXT NOT NULL,
        expires_at INTEGER NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (owner, key)
    ) WITHOUT ROWID;
    CREATE INDEX claims_by_session ON claims (session_id);
    CREATE INDEX claims_by_age ON claims (expires_at);
    CREATE TABLE transcripts (
        project_key TEXT NOT NULL,
        session_id TEXT NOT NULL,
        subpath TEXT NOT NULL,
        number INTEGER NOT NULL,
        uuid TEXT,
        at INTEGER NOT NULL,
        entry BLOB NOT NULL,
        PRIMARY KEY (project_key, session_id, subpath, number)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX transcripts_once ON transcripts (project_key, session_id, subpath, uuid)
        WHERE uuid IS NOT NULL;
    """,
    f"""
    ALTER TABLE sessions ADD COLUMN active_at INTEGER NOT NULL DEFAULT 0;
    UPDATE sessions SET active_at = coalesce({_time_in("active_at")}, 0) WHERE {_VALID};
    CREATE INDEX sessions_by_use ON sessions (active_at);
    ALTER TABLE turns ADD COLUMN last_seq INTEGER;
    ALTER TABLE turns ADD COLUMN ended_at INTEGER;
    ALTER TABLE turns ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
    UPDATE turns SET last_seq = {_in("last_seq")}, ended_at = {_time_in("ended_at")},
        told = {_in("started_at")} IS NOT NULL WHERE ended AND {_VALID};
    CREATE INDEX told_turns ON turns (session_id, last_seq) WHERE told;
    CREATE INDEX turns_by_age ON turns (ended_at, last_seq) WHERE ended;
    ALTER TABLE runs ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
    UPDATE runs SET at = coalesce({_in("pieces[#-1]")}, {_in("at")}, 0) WHERE {_VALID};
    """,
    f"""
    CREATE TABLE requests (
        session_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        turn_id TEXT,
        resolved INTEGER NOT NULL,
        weight INTEGER NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (session_id, number)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX requests_by_id ON requests (session_id, request_id);
    CREATE INDEX requests_by_turn ON requests (session_id, turn_id);
    CREATE INDEX open_requests ON requests (session_id, number) WHERE NOT resolved;
    CREATE TABLE costs (
        session_id TEXT PRIMARY KEY,
        usd REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE spending (
        owner TEXT PRIMARY KEY,
        usd REAL NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO costs SELECT session_id, {_in("total_cost_usd")} FROM sessions
        WHERE {_VALID} AND {_in("total_cost_usd")} > 0;
    INSERT INTO spending SELECT {_in("owner")}, sum(usd) FROM costs JOIN sessions USING (session_id)
        GROUP BY 1;
    """,
)
"""What makes each version of the schema out of the one before; the first out of nothing. Never
change one that was released: add another."""


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make a file ready for use, whatever its version.

    Raises:
        StoreError: It is no database, another program's, or one of a newer version of ours.
    """
    from session_supervisor.stores.sqlite.database import failure

    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        raise failure(error, path) from error


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of a file's tables; 0: there are none yet.

    Raises:
        StoreError: It is another program's, or of a newer version of ours.
        sqlite3.Error: It is no database, or cannot be read.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise StoreError(
            f"{str(path)!r} is a database of another program. Name another file, or move it away."
        )
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{str(path)!r} was written by a newer version of this program (schema {version}, "
            f"known up to {len(MIGRATIONS)}). Run that version, or restore a backup."
        )
    return int(version)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = version_of(connection, path)
    if not version:
        # Possible as long as there is no table: pages that become free can be given back.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(
            f"{str(path)!r} cannot have a write-ahead log here. Put it on a local disk."
        )
    # Every commit is on the disk when it is acknowledged, also if the power fails.
    connection.execute("PRAGMA synchronous = FULL")
    # What is erased is overwritten, or it could be read in the file for as long as that lives.
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(f"PRAGMA journal_size_limit = {LONGEST_LOG}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {statements} PRAGMA user_version = {number}; COMMIT;"
        )
