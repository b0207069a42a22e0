"""One SQLite file: one thread that writes, in groups, and one that reads.

Whoever wants to write hands a function over and waits. The writer takes all that wait together
into one transaction, each within a savepoint of its own, so that one that is refused leaves the
others whole, and answers them all when the disk has it. So a commit's price, one `fsync`, is paid
once for as many as came while the last one was being paid.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from session_supervisor.errors import StoreError
from session_supervisor.stores.sqlite import schema
from session_supervisor.timers import Gate

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

Work = Callable[[sqlite3.Connection], T]
"""What is done with the database, by the thread that has it."""

MOST_AT_ONCE = 1024
"""Most pieces of work in one transaction, so that the first need not wait for ever more."""

BUSY_S = 5.0
"""Seconds to wait for another program that has the file locked, such as a backup."""


SCRUB_BUSY_S = 0.25
"""Seconds to wait for whoever reads, before the log is emptied another time."""

ITS_OWN = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)
"""What goes wrong for a piece of work alone, as where rows are damaged that it adds to."""


class Together(Protocol[T_contra]):
    """Does something for many; says of each whether that was done, else nothing of it was."""

    def __call__(self, db: sqlite3.Connection, each: Sequence[T_contra]) -> Sequence[bool]:
        """Do it, within a transaction."""
        ...


@dataclass(frozen=True, slots=True)
class Joint(Generic[T]):
    """How a piece of work can be done along with others like it.

    Attributes:
        do: Does it for many.
        what: This one.
    """

    do: Together[T]
    what: T


@dataclass(frozen=True, slots=True)
class _Asked:
    work: Work[Any]
    answer: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    gate: Gate
    scrub: bool
    joint: Joint[Any] | None


class Database:
    """A database that is open.

    Args:
        path: The file; made if there is none.

    Raises:
        StoreError: It cannot be opened, or is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._gates: WeakKeyDictionary[asyncio.AbstractEventLoop, Gate] = WeakKeyDictionary()
        """What those pass who are answered, of each loop."""
        self._closing = False
        self._to_scrub = False
        connection = self._connect()
        try:
            schema.prepare(connection, path)
        except BaseException:
            connection.close()
            raise
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="store-reader")
        self._reader: sqlite3.Connection | None = None
        self._writer = threading.Thread(
            target=self._write_all, args=(connection,), name="store-writer", daemon=True
        )
        self._writer.start()

    async def write(
        self, work: Work[T], *, scrub: bool = False, joint: Joint[Any] | None = None
    ) -> T:
        """Do something in a transaction; it is on the disk when this returns.

        Cancelled, it may be done all the same.

        Args:
            work: What to do.
            scrub: Whether what is deleted by it, or was before, is to be nowhere on the disk any
                more. If somebody reads for long, it will be so after a later write.
            joint: How it can be done along with others; then it has no result. It may be done
                before what was handed over earlier and is not done yet.

        Raises:
            StoreError: The database failed, and nothing of it was done.
        """
        self._require_open()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        if (gate := self._gates.get(loop)) is None:
            gate = self._gates[loop] = Gate()
        self._asked.put(_Asked(work, answer, loop, gate, scrub, joint))
        return await answer

    async def read(self, work: Work[T]) -> T:
        """Do something that changes nothing.

        Raises:
            StoreError: The database failed.
        """
        self._require_open()
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, work)

    async def aclose(self) -> None:
        """Finish what was handed over, and close the file."""
        if self._closing:
            return
        self._closing = True
        self._asked.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._reading.shutdown)
        if self._reader is not None:
            self._reader.close()

    def _require_open(self) -> None:
        if self._closing:
            raise StoreError("The store is closed.")

    # -- in the threads ----------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise failure(error, self._path) from error
        return connection

    def _read(self, work: Work[T]) -> T:
        try:
            if self._reader is None:
                self._reader = self._connect()
                self._reader.execute("PRAGMA query_only = ON")
            return work(self._reader)
        except sqlite3.Error as error:
            raise failure(error, self._path) from error

    def _write_all(self, connection: sqlite3.Connection) -> None:
        """Do what is handed over, until there will be no more."""
        last = False
        while not last:
            together: list[_Asked] = []
            asked = self._asked.get()
            while asked is not None:
                together.append(asked)
                if len(together) == MOST_AT_ONCE:
                    break
                try:
                    asked = self._asked.get_nowait()
                except queue.Empty:
                    break
            last = asked is None
            if together:
                results = self._write_together(connection, together)
                self._to_scrub |= any(asked.scrub for asked in together)
                if self._to_scrub:
                    self._to_scrub = not _empty_log(connection)
                _settle(together, results)
        connection.close()

    def _write_together(
        self, connection: sqlite3.Connection, together: list[_Asked]
    ) -> list[tuple[Any, BaseException | None]]:
        """Do several things in one transaction; return each one's result or error."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            done = self._write_jointly(connection, together)
            results = [
                (None, None) if at in done else self._write_one(connection, asked.work)
                for at, asked in enumerate(together)
            ]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # or nobody would be answered any more
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            return [(None, failure(error, self._path))] * len(together)
        return results

    def _write_jointly(
        self, connection: sqlite3.Connection, together: Sequence[_Asked]
    ) -> frozenset[int]:
        """Do what can be done along with others; return the places of what is done."""
        kinds: dict[Any, list[tuple[int, Any]]] = {}
        for at, asked in enumerate(together):
            if asked.joint is not None:
                kinds.setdefault(asked.joint.do, []).append((at, asked.joint.what))
        done: set[int] = set()
        for do, each in kinds.items():
            if len(each) < 2:
                continue
            all_done, error = self._write_one(
                connection, partial(do, each=[what for _, what in each])
            )
            if error is None:
                done.update(at for (at, _), was in zip(each, all_done, strict=True) if was)
        return frozenset(done)

    def _write_one(
        self, connection: sqlite3.Connection, work: Work[Any]
    ) -> tuple[Any, BaseException | None]:
        connection.execute("SAVEPOINT one")
        try:
            result = work(connection)
        except sqlite3.Error as error:
            if not isinstance(error, ITS_OWN) or not connection.in_transaction:
                raise  # all of it has failed
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            return None, failure(error, self._path)
        except Exception as error:  # refused: the others are none the worse for it
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
            return None, error
        connection.execute("RELEASE one")
        return result, None


def _empty_log(connection: sqlite3.Connection) -> bool:
    """Take all into the file itself, and empty the log; return whether that could be done."""
    connection.execute(f"PRAGMA busy_timeout = {SCRUB_BUSY_S * 1000:.0f}")
    try:
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error:  # what was written is safe in the log
        return False
    finally:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000:.0f}")
    return not busy


_Answer: TypeAlias = tuple[_Asked, Any, BaseException | None]


def _settle(together: list[_Asked], results: list[tuple[Any, BaseException | None]]) -> None:
    """Answer everybody, with one wake-up of each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Answer]] = {}
    for asked, (result, error) in zip(together, results, strict=True):
        by_loop.setdefault(asked.loop, []).append((asked, result, error))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer, answers)
        except RuntimeError:  # the loop is closed, and nobody waits any more
            continue


def _answer(answers: Sequence[_Answer]) -> None:
    """Answer a few at once, and the others when whoever has something else to do has had a turn.

    All that were stored before wait at the same gate, or there would be so many in one step as
    there are transactions whose answers are still on their way.
    """
    for asked, result, error in answers:
        asked.gate.answer(asked.answer, result, error)


def failure(error: sqlite3.Error, path: Path) -> StoreError:
    """Return what a failure of the database means to an operator."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    match name:
        case "SQLITE_FULL":
            reason = "The disk is full. Free some space; what was acknowledged is safe."
        case "SQLITE_READONLY" | "SQLITE_READONLY_DIRECTORY" | "SQLITE_READONLY_DBMOVED":
            reason = "It, or its directory, cannot be written. Check owner, mode and mount."
        case "SQLITE_CANTOPEN":
            reason = "It cannot be opened. Check that its directory exists and can be written."
        case "SQLITE_BUSY" | "SQLITE_LOCKED":
            reason = "Another program has it locked. End that program."
        case "SQLITE_CORRUPT" | "SQLITE_NOTADB":
            reason = "It is damaged or no database. Restore a backup, or move it away."
        case _ if name.startswith("SQLITE_IOERR"):
            reason = f"{error}. Check that its disk is well, and has room."
        case _:
            reason = f"{error}."
    return StoreError(f"The database {str(path)!r} failed ({name}). {reason}")
