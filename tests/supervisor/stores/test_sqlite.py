from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from claude_agent_sdk.testing import run_session_store_conformance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from session_supervisor.config import Retention
from session_supervisor.errors import Spoiled, StoreError
from session_supervisor.events import Discard, Event, Text, Thinking, weight
from session_supervisor.results import Phase
from session_supervisor.stores import codec
from session_supervisor.stores.port import Store
from session_supervisor.stores.records import Batch, Damaged, Found
from session_supervisor.stores.sqlite import SqliteStore, schema
from session_supervisor.stores.sqlite.database import failure
from tests.supervisor.stores.conformance import (
    AT,
    StoreConformance,
    add,
    claim,
    ended,
    run_of,
    session,
    take_over,
    talk,
    trim,
    turn,
)


class TestSqliteStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self._path = tmp_path / "sessions.db"

    async def make_store(self, retention: Retention | None = None) -> Store:
        return SqliteStore(self._path, retention)


@pytest.mark.anyio
async def test_everything_is_there_for_the_next_one_who_opens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    first = SqliteStore(path)
    lease = await first.create(session(), first=Batch(claims=[claim("k")]))
    batch = Batch(events=run_of(1, 3), turns=[turn("t")], reserve=10)
    await first.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
    await first.aclose()
    second = SqliteStore(path)
    (found,) = await take_over(second)
    assert found.session == session()
    assert found.lease.last_seq == 13
    assert list(await second.turns("a")) == [turn("t")]
    assert list(await second.read("a", after=0, limit=9)) == run_of(1, 3)
    assert await second.claim("alice", "k", now=AT) == claim("k")
    await second.aclose()


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    program = textwrap.dedent(
        """
        import asyncio, os, sys
        from session_supervisor.stores.sqlite import SqliteStore
        from tests.supervisor.stores.conformance import add, run_of, session

        async def main():
            store = SqliteStore(sys.argv[1])
            lease = await store.create(session())
            for seq in range(1000):
                await add(store, lease.fence, seq, run_of(seq + 1, 1))
                os.write(1, b"%d\\n" % (seq + 1))

        asyncio.run(main())
        """
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, os.fspath(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None
    acknowledged = 0
    for line in child.stdout:
        acknowledged = int(line)
        if acknowledged >= 20:
            child.kill()
    child.wait()
    child.stdout.close()

    async def look() -> list[Event]:
        store = SqliteStore(path)
        kept = list(await store.read("a", after=0, limit=2000))
        await store.aclose()
        return kept

    kept = asyncio.run(look())
    assert 20 <= acknowledged <= len(kept) <= acknowledged + 1
    assert kept == run_of(1, len(kept))


@pytest.mark.anyio
async def test_many_commits_at_once_share_the_disk_and_a_refused_one_is_alone(
    tmp_path: Path,
) -> None:
    store = SqliteStore(tmp_path / "sessions.db")
    names = [f"s{n}" for n in range(50)]
    for name in names:
        await store.create(session(name))

    async def write(name: str) -> bool:
        wrong = name.endswith("7")
        try:
            await add(store, 99 if wrong else 1, 0, run_of(1, 2), to=name)
        except StoreError:
            assert wrong
            return False
        return True

    written = await asyncio.gather(*map(write, names))
    for name, there in zip(names, written, strict=True):
        assert bool(await store.read(name, after=0, limit=2)) is there
    await store.aclose()


@pytest.mark.anyio
async def test_an_error_of_the_disk_is_told_and_what_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    store = SqliteStore(path)
    lease = await store.create(session())
    await add(store, lease.fence, 0, run_of(1, 1))
    pages = await store._database.write(  # pyright: ignore[reportPrivateUsage]
        lambda db: db.execute("PRAGMA page_count").fetchone()[0]
    )
    await store._database.write(  # pyright: ignore[reportPrivateUsage]
        lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone()
    )
    with pytest.raises(StoreError, match=r"disk is full.*what was acknowledged is safe"):
        await add(store, lease.fence, 1, [Event(2, "turn", AT, Text(content="x" * 200_000))])
    assert list(await store.read("a", after=0, limit=9)) == run_of(1, 1)
    await store._database.write(  # pyright: ignore[reportPrivateUsage]
        lambda db: db.execute("PRAGMA max_page_count = 100000").fetchone()
    )
    await add(store, lease.fence, 1, run_of(2, 1))
    await store.aclose()


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no database at all, but long enough to be taken for one" * 20)
    with pytest.raises(StoreError, match="damaged or no database"):
        SqliteStore(text)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE things (name TEXT)")
    db.close()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore(other)
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore(tmp_path / "nowhere" / "sessions.db")


@pytest.mark.anyio
async def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    await SqliteStore(path).aclose()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 1000")
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        SqliteStore(path)


@pytest.mark.anyio
async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "sessions.db")
    await store.aclose()
    await store.aclose()
    with pytest.raises(StoreError, match="closed"):
        await store.take_over()


@pytest.mark.anyio
async def test_transcripts_pass_the_suite_of_the_sdk(tmp_path: Path) -> None:
    stores: list[SqliteStore] = []

    def make() -> object:
        stores.append(SqliteStore(tmp_path / f"{len(stores)}.db"))
        return stores[-1].transcripts

    await run_session_store_conformance(make)  # type: ignore[arg-type]
    for store in stores:
        await store.aclose()


pieces = st.text(max_size=30)
bodies = st.one_of(
    st.builds(Text, content=pieces),
    st.builds(Thinking, content=pieces),
    st.builds(Discard, after=st.integers(0, 9)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(st.lists(st.tuples(bodies, st.sampled_from(["t1", "t2", None])), max_size=8)),
    st.integers(0, 60),
    st.integers(1, 20),
)
def test_rows_give_back_every_event_however_they_came(
    batches: list[list[tuple[Text | Thinking | Discard, str | None]]], after: int, limit: int
) -> None:
    whole: list[Event] = []
    rows: list[codec.Run] = []
    for drafts in batches:
        events = [
            Event(len(whole) + n, turn_id, AT, body)
            for n, (body, turn_id) in enumerate(drafts, start=1)
        ]
        for run in codec.runs_of(events, last=rows[-1] if rows else None):
            if rows and rows[-1].first_seq == run.first_seq:
                rows.pop()
            rows.append(run)
        whole += events
    read = [event for run in rows for event in codec.events_of(run.first_seq, run.record)]
    assert read == whole
    assert [run.first_seq for run in rows] == [1, *(run.last_seq + 1 for run in rows)][: len(rows)]
    assert sum(run.weight for run in rows) == sum(map(weight, whole))


def test_a_long_answer_is_few_rows_of_bounded_size() -> None:
    events = [Event(n, "t", AT, Text(content="x" * 40)) for n in range(1, 2001)]
    rows = list(codec.runs_of(events))
    assert len(rows) == -(-2000 * 40 // codec.LONGEST_RUN)
    assert all(len(run.record) < 3 * codec.LONGEST_RUN for run in rows)


def test_a_disk_that_fails_is_told_with_what_to_look_at(tmp_path: Path) -> None:
    """What SQLite says where it cannot make its index of the log, for want of room."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_SHMSIZE"
    assert "disk I/O error. Check that its disk is well, and has room." in str(
        failure(error, tmp_path)
    )


def test_a_full_file_system_is_told(tmp_path: Path) -> None:
    """On a file system of its own, where this may be made."""
    mount = tmp_path / "small"
    mount.mkdir()
    make = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if not shutil.which("mount") or subprocess.run(make, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")

    async def fill() -> None:
        store = SqliteStore(mount / "sessions.db")
        lease = await store.create(session())
        await add(store, lease.fence, 0, run_of(1, 1))

        async def write_on() -> None:
            for seq in range(1, 1000):
                text = Text(content=os.urandom(20_000).hex())
                await add(store, lease.fence, seq, [Event(seq + 1, "t", AT, text)])

        with pytest.raises(StoreError, match="disk is full"):
            await write_on()
        assert list(await store.read("a", after=0, limit=1)) == run_of(1, 1)
        await store.aclose()

    try:
        asyncio.run(fill())
    finally:
        subprocess.run(["umount", mount], check=True)


def files_hold(path: Path, text: bytes) -> list[str]:
    """Return which files of a database have a text in them, used or not."""
    return [one.name for one in path.parent.iterdir() if text in one.read_bytes()]


@pytest.mark.anyio
async def test_what_is_erased_is_nowhere_in_the_files(tmp_path: Path) -> None:
    """Neither in pages that are free, nor in the log."""
    path = tmp_path / "sessions.db"
    store = SqliteStore(path)
    for n in range(30):
        await store.create(session(f"s{n}"))
    for seq in range(1, 40):  # of all sessions in turn, so that they share pages
        for n in range(30):
            word = Text(content=f"canary-{n:02} " * (seq % 7) * (40 if seq % 11 == 0 else 1))
            one = turn(f"t{seq // 5}", Phase.RUNNING, f"canary-{n:02} " * 9)
            batch = Batch(events=[Event(seq, "turn", AT, word)], turns=[one])
            await store.commit(f"s{n}", fence=1, expected_seq=seq - 1, batch=batch)
    for n in range(0, 30, 2):
        assert files_hold(path, b"canary-%02d" % n)
        await store.erase(f"s{n}")
        assert not files_hold(path, b"canary-%02d" % n)
    for n in range(1, 30, 2):
        assert len(await store.read(f"s{n}", after=0, limit=99)) == 39
    await store.aclose()


@pytest.mark.anyio
async def test_what_was_dropped_is_given_back_in_steps_that_hold_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    store = SqliteStore(path, Retention(state_bytes=4 * 2**20))
    for n in range(20):
        await talk(store, f"s{n}", turns=4, size=200_000, active=n)
    lease = await store.create(session("live"))
    assert path.stat().st_size > 25 * 2**20
    now = AT + timedelta(hours=1)
    steps = 1
    while await store.trim(now=now):
        await add(store, lease.fence, steps - 1, run_of(steps, 1), to="live")
        steps += 1
    assert 50 < steps < 200
    assert path.stat().st_size < 8 * 2**20
    assert (path.parent / "sessions.db-wal").stat().st_size == 0
    assert len(await store.turns("s19")) == 4
    assert [one.seq for one in await store.read("s0", after=0, limit=99)] == [8]
    assert len(await store.read("live", after=0, limit=999)) == steps - 1
    await store.aclose()


@pytest.mark.anyio
async def test_an_operator_is_told_once_if_nothing_more_may_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(tmp_path / "sessions.db", Retention(state_bytes=100_000))
    lease = await store.create(session())
    batch = Batch(events=[Event(1, "t", AT, Text(content="x" * 200_000))], turns=[turn("t")])
    await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
    for _ in range(3):
        await trim(store, hours=1)
    (told,) = caplog.messages
    assert "more than" in told
    assert len(await store.turns("a")) == 1
    await store.aclose()


def spoil(path: Path, table: str, where: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE {table} SET record = CAST('{{\"type\":' AS BLOB) WHERE {where}")
    db.close()


@pytest.mark.anyio
async def test_a_damaged_row_is_told_and_takes_nothing_else_with_it(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    store = SqliteStore(path)
    for name in ("a", "b", "c", "d"):
        lease = await store.create(
            session(name), first=Batch(claims=[claim(name, session_id=name)])
        )
        batch = Batch(events=run_of(1, 2), turns=[turn("open"), ended("t", last_seq=2)])
        await store.commit(name, fence=lease.fence, expected_seq=0, batch=batch)
    spoil(path, "sessions", "session_id = 'a'")
    spoil(path, "turns", "session_id = 'b'")
    spoil(path, "runs", "session_id = 'c'")
    spoil(path, "claims", "key = 'c'")
    found = {
        one.session_id if isinstance(one, Damaged) else one.session.session_id: one
        for one in await store.take_over()
    }
    assert isinstance(a := found["a"], Damaged)
    assert isinstance(b := found["b"], Damaged)
    assert (a.session, b.session) == (None, session("b"))
    assert "A turn is damaged" in b.reason
    assert isinstance(found["c"], Found)
    assert isinstance(found["d"], Found)
    for reading in (
        store.turn("b", "t"),
        store.turns("b"),
        store.told("b", after=0, limit=1),
        store.read("c", after=0, limit=9),
        store.claim("alice", "c", now=AT),
    ):
        with pytest.raises(Spoiled, match=r"is damaged in the store .*Restore a backup"):
            await reading
    for name in ("c", "d"):
        await add(store, 2, 2, run_of(3, 1), to=name)
    assert list(await store.read("c", after=2, limit=9)) == run_of(3, 1)
    assert list(await store.read("d", after=0, limit=9)) == run_of(1, 3)
    await store.aclose()


@pytest.mark.anyio
async def test_a_file_of_the_first_version_is_read_and_trimmed(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        db.executescript(f"{schema.MIGRATIONS[0]} PRAGMA user_version = 1;")
        before = replace(session(), total_cost_usd=1.25)
        record = codec.encode_session(before)
        db.execute("INSERT INTO sessions VALUES ('a', 1, 1, 4, 4, 4, 4, ?)", (record,))
        db.execute("INSERT INTO sessions VALUES ('bad', 2, 1, 0, 0, 0, 0, x'ff00')")
        for n in range(2):
            one = ended(f"t{n}", last_seq=2 * n + 2, hours=n)
            row = (n, one.turn_id, codec.encode_turn(one))
            db.execute("INSERT INTO turns VALUES ('a', ?, ?, 1, 5, ?)", row)
        events = [*run_of(1, 3), Event(4, "turn", AT + timedelta(hours=1), Discard(after=0))]
        for run in codec.runs_of(events):
            fields = (run.last_seq, run.first_seq, run.weight, run.record)
            db.execute("INSERT INTO runs VALUES ('a', ?, ?, ?, ?)", fields)
    db.close()
    store = SqliteStore(path, Retention(age_s=3600.0))
    assert [one.turn_id for one in await store.told("a", after=0, limit=9)] == ["t0", "t1"]
    assert [type(one) for one in await store.take_over()] == [Found, Damaged]
    await trim(store, hours=1.5)
    assert [one.turn_id for one in await store.told("a", after=0, limit=9)] == ["t1"]
    assert [one.seq for one in await store.read("a", after=0, limit=9)] == [4]
    assert list(await store.requests("a")) == []
    assert dict(await store.spending()) == {"alice": 1.25}
    batch = Batch(session=replace(before, total_cost_usd=1.5))
    await store.commit("a", fence=2, expected_seq=4, batch=batch)
    assert dict(await store.spending()) == {"alice": 1.5}
    await store.aclose()


def test_records_from_before_there_was_anybody_to_ask_are_read() -> None:
    fields = json.loads(codec.encode_turn(turn("t")))
    for name in ("attachments", "command", "on_permission", "permission_timeout_s", "budget_usd"):
        del fields[name]
    assert codec.decode_turn(json.dumps(fields).encode()) == turn("t")
    fields = json.loads(codec.encode_session(session()))
    for name in ("rules", "forked_from"):
        del fields[name]
    assert codec.decode_session(json.dumps(fields).encode()) == session()
