"""What can be told of a database without changing it, or anything beside it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from session_supervisor.stores.sqlite import schema
from session_supervisor.stores.sqlite.database import failure


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseFacts:
    """A database, looked at from outside.

    Attributes:
        schema: Version of its tables; 0: there are none yet.
        known: The newest version that this program knows.
        sessions: How many sessions are in it.
        size: Bytes that it takes, its log included.
    """

    schema: int
    known: int
    sessions: int
    size: int


def inspect_database(path: Path) -> DatabaseFacts | None:
    """Look at a database, which another process may have open; None: there is no file.

    Raises:
        StoreError: It cannot be read, is damaged, another program's, or of a newer version.
    """
    if not path.exists():
        return None
    log = path.with_name(f"{path.name}-wal")
    # Without a log nobody has it open, and SQLite need not make one to read it.
    mode = "mode=ro" if log.exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True)) as connection:
            version = schema.version_of(connection, path)
            count = "SELECT count(*) FROM sessions" if version else "SELECT 0"
            (sessions,) = connection.execute(count).fetchone()
    except sqlite3.Error as error:
        raise failure(error, path) from error
    return DatabaseFacts(
        schema=version,
        known=len(schema.MIGRATIONS),
        sessions=sessions,
        size=sum(one.stat().st_size for one in (path, log) if one.exists()),
    )
