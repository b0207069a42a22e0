"""The adapter of the port `Store` for SQLite."""

from session_supervisor.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
