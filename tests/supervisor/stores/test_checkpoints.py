"""Events of many sessions that are stored at once: what each would have by itself, for less."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from session_supervisor.config import Retention
from session_supervisor.errors import Fenced, SequenceConflict
from session_supervisor.events import Event, Text
from session_supervisor.stores import codec
from session_supervisor.stores.records import Batch
from session_supervisor.stores.sqlite import SqliteStore, checkpoints, database, store
from session_supervisor.stores.sqlite.checkpoints import Checkpoint
from session_supervisor.stores.sqlite.database import Database
from session_supervisor.timers import WOKEN_AT_ONCE
from tests.supervisor.stores.conformance import AT, add, run_of, session

pytestmark = pytest.mark.anyio


class Together:
    """Counts what is stored at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.statements = 0

    def __call__(
        self, db: sqlite3.Connection, each: Sequence[Checkpoint], retention: Retention
    ) -> Sequence[bool]:
        self.sizes.append(len(each))

        def count(_statement: str) -> None:
            self.statements += 1

        db.set_trace_callback(count)
        try:
            return checkpoints.add_together(db, each, retention)
        finally:
            db.set_trace_callback(None)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Together:
    found = Together()
    monkeypatch.setattr(store, "add_together", found)
    return found


@asynccontextmanager
async def opened(path: Path, retention: Retention | None = None) -> AsyncGenerator[SqliteStore]:
    found = SqliteStore(path / "sessions.db", retention)
    try:
        yield found
    finally:
        await found.aclose()


@asynccontextmanager
async def held(found: SqliteStore) -> AsyncGenerator[None]:
    """Let what is handed over wait, so that it is done at once afterwards."""
    database: Database = found._database  # pyright: ignore[reportPrivateUsage]
    begun, over = threading.Event(), threading.Event()

    def wait(_db: sqlite3.Connection) -> None:
        begun.set()
        assert over.wait(60)

    waiting = asyncio.create_task(database.write(wait))
    await asyncio.to_thread(begun.wait, 60)
    try:
        yield
        await asyncio.sleep(0)  # whoever was started hands over what it has
    finally:
        over.set()
        await waiting


def texts(first: int, count: int, size: int = 5) -> list[Event]:
    return [Event(n, "t", AT, Text(content="x" * size)) for n in range(first, first + count)]


async def test_many_checkpoints_take_a_few_statements(tmp_path: Path, together: Together) -> None:
    names = [f"s{number}" for number in range(100)]
    async with opened(tmp_path) as found:
        for name in names:
            await found.create(session(name))
        for seq in (0, 3, 6):
            async with held(found):
                storing = [
                    asyncio.create_task(add(found, 1, seq, texts(seq + 1, 3), to=name))
                    for name in names
                ]
            await asyncio.gather(*storing)
        assert together.sizes == [100, 100, 100]
        assert together.statements < 20
        for name in names:
            assert list(await found.read(name, after=0, limit=99)) == texts(1, 9)


async def test_what_is_refused_is_refused_alone(tmp_path: Path, together: Together) -> None:
    async with opened(tmp_path) as found:
        for name in ("good", "fenced", "wrong", "torn", "also good"):
            await found.create(session(name))
        await found.acquire("fenced")
        asked = [
            ("good", 1, 0, run_of(1, 3)),
            ("fenced", 1, 0, run_of(1, 3)),
            ("wrong", 1, 7, run_of(8, 3)),
            ("torn", 1, 0, run_of(2, 3)),
            ("nobody", 1, 0, run_of(1, 3)),
            ("also good", 1, 0, run_of(1, 2)),
        ]
        async with held(found):
            storing = [
                asyncio.create_task(add(found, fence, seq, events, to=name))
                for name, fence, seq, events in asked
            ]
        results = await asyncio.gather(*storing, return_exceptions=True)
        kinds = [type(one) for one in results]
        nothing = type(None)
        assert kinds == [nothing, Fenced, SequenceConflict, SequenceConflict, Fenced, nothing]
        assert together.sizes == [6]
        assert list(await found.read("good", after=0, limit=9)) == run_of(1, 3)
        assert list(await found.read("also good", after=0, limit=9)) == run_of(1, 2)
        for name in ("fenced", "wrong", "torn"):
            assert list(await found.read(name, after=0, limit=9)) == []


async def test_two_of_one_session_follow_each_other(tmp_path: Path, together: Together) -> None:
    async with opened(tmp_path) as found:
        await found.create(session("a"))
        await found.create(session("b"))
        async with held(found):
            storing = [
                asyncio.create_task(add(found, 1, seq, texts(seq + 1, 2), to=name))
                for name, seq in (("a", 0), ("b", 0), ("a", 2))
            ]
        await asyncio.gather(*storing)
        assert together.sizes == [3]
        assert list(await found.read("a", after=0, limit=9)) == texts(1, 4)
        assert list(await found.read("b", after=0, limit=9)) == texts(1, 2)


async def test_what_is_set_aside_is_not_given_twice(tmp_path: Path, together: Together) -> None:
    async with opened(tmp_path) as found:
        for name in ("a", "b"):
            await found.create(session(name))
        async with held(found):
            storing = [
                asyncio.create_task(
                    found.commit(
                        name, fence=1, expected_seq=0, batch=Batch(events=run_of(1, 2), reserve=10)
                    )
                )
                for name in ("a", "b")
            ]
        await asyncio.gather(*storing)
        assert together.sizes == [2]
        assert (await found.acquire("a")).last_seq == 12


async def test_logs_stay_within_the_retention(tmp_path: Path, together: Together) -> None:
    async with opened(tmp_path, Retention(events=20)) as found:
        for name in ("a", "b"):
            await found.create(session(name))
        for seq in range(0, 60, 5):
            async with held(found):
                storing = [
                    asyncio.create_task(add(found, 1, seq, texts(seq + 1, 5, 900), to=name))
                    for name in ("a", "b")
                ]
            await asyncio.gather(*storing)
        for name in ("a", "b"):
            kept = list(await found.read(name, after=0, limit=99))
            assert kept == texts(61 - len(kept), len(kept), 900)
            assert len(kept) <= 20
        assert len(together.sizes) == 12


async def test_a_damaged_last_row_is_nobody_elses_harm(tmp_path: Path, together: Together) -> None:
    async with opened(tmp_path) as found:
        for name in ("a", "b"):
            await found.create(session(name))
            await add(found, 1, 0, texts(1, 2), to=name)
        with sqlite3.connect(tmp_path / "sessions.db") as db:
            db.execute("UPDATE runs SET record = x'7b2274797065223aff' WHERE session_id = 'a'")
        db.close()
        async with held(found):
            storing = [
                asyncio.create_task(add(found, 1, 2, texts(3, 2), to=name)) for name in ("a", "b")
            ]
        await asyncio.gather(*storing)
        assert together.sizes == [2]
        assert list(await found.read("a", after=2, limit=9)) == texts(3, 2)
        assert list(await found.read("b", after=0, limit=9)) == texts(1, 4)


@pytest.mark.parametrize("most_at_once", [1024, WOKEN_AT_ONCE])
async def test_others_have_a_turn_while_many_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_at_once: int
) -> None:
    """Else a look at the server would wait for a thousand sessions that all go on.

    Whether they are all of one transaction, or of several that are over before it is their turn.
    """
    monkeypatch.setattr(database, "MOST_AT_ONCE", most_at_once)
    async with opened(tmp_path) as found:
        answered, seen = 0, [0]
        names = [f"s{number}" for number in range(4 * WOKEN_AT_ONCE)]
        for name in names:
            await found.create(session(name))

        async def one(name: str) -> None:
            nonlocal answered
            await add(found, 1, 0, run_of(1, 1), to=name)
            answered += 1

        stored = threading.Event()
        async with held(found):
            storing = [asyncio.create_task(one(name)) for name in names]
            await asyncio.sleep(0)
            last: Database = found._database  # pyright: ignore[reportPrivateUsage]
            ending = asyncio.create_task(last.write(lambda _: stored.set()))
        assert stored.wait(60)  # which stops the event loop, too
        seen.append(answered)
        while answered < len(names):
            await asyncio.sleep(0)
            seen.append(answered)
        await asyncio.gather(*storing, ending)
        assert max(b - a for a, b in pairwise(seen)) <= WOKEN_AT_ONCE


@pytest.mark.parametrize("size", [1, 8, 200])
@pytest.mark.parametrize("at_once", [1, 8, 25])
def test_a_text_that_grows_is_not_written_again_and_again(size: int, at_once: int) -> None:
    """What a piece costs does not depend on the text before it, nor does it have its own row."""
    count = 3000
    rows: list[codec.Run] = []
    written = whole = 0
    for first in range(1, count + 1, at_once):
        for run in codec.runs_of(texts(first, at_once, size), last=rows[-1] if rows else None):
            if rows and rows[-1].first_seq == run.first_seq:
                rows.pop()
            rows.append(run)
            written += len(run.record)
    whole = sum(len(run.record) for run in rows)
    assert written < 16 * max(whole, codec.GROWS_TO * len(rows))
    assert whole / len(rows) >= min(codec.GROWS_TO, whole) / 2
    assert sum(run.last_seq - run.first_seq + 1 for run in rows) == count
