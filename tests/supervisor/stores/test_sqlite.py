from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from claude_agent_sdk.testing import run_session_store_conformance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from session_supervisor.config import Retention
from session_supervisor.errors import StoreError
from session_supervisor.events import Discard, Event, Text, Thinking, weight
from session_supervisor.stores import codec
from session_supervisor.stores.port import Store
from session_supervisor.stores.records import Batch
from session_supervisor.stores.sqlite import SqliteStore
from tests.supervisor.stores.conformance import (
    AT,
    StoreConformance,
    add,
    claim,
    run_of,
    session,
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
    lease = await first.create(session(), claims=[claim("k")])
    batch = Batch(events=run_of(1, 3), turns=[turn("t")], reserve=10)
    await first.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
    await first.aclose()
    second = SqliteStore(path)
    (found,) = await second.take_over()
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
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
