"""What is kept of sessions that were closed, or are old, and what becomes of damaged ones."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from session_supervisor import Retention, Supervisor, SupervisorConfig
from session_supervisor.agents.scripted import ScriptedAgent
from session_supervisor.claims import ClaimKey
from session_supervisor.clock import Clock
from session_supervisor.errors import SessionNotFound, SessionSpoiled, Spoiled, Unavailable
from session_supervisor.events import Gap
from session_supervisor.lifecycle import State
from session_supervisor.spec import LOCAL_OWNER
from session_supervisor.stores.memory import MemoryStore
from session_supervisor.stores.port import Store
from session_supervisor.stores.sqlite import SqliteStore
from session_supervisor.supervisor import TRIM_EVERY_S
from session_supervisor.workspaces import PrivateDirectories
from tests.supervisor.test_recovery import KeptDirectories, KeptStore, agent_with, whole_log
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

START = datetime(2026, 1, 1, tzinfo=UTC)


def _now() -> datetime:
    """Return the time of day, which goes with the loop's, virtual or not."""
    return START + timedelta(seconds=asyncio.get_running_loop().time())


def supervisor_on(
    store: Store, agent: ScriptedAgent, retention: Retention | None = None
) -> Supervisor:
    return Supervisor(
        agent,
        store=store,
        config=SupervisorConfig(retention=retention or Retention()),
        workspaces=KeptDirectories(),
        clock=Clock(now=_now),
    )


KEPT = Retention(closed_s=100.0)


@virtual()
async def test_what_a_closed_session_said_can_be_read_for_a_while_by_its_owner() -> None:
    store, agent = KeptStore(), agent_with()
    async with supervisor_on(store, agent, retention=KEPT) as supervisor:
        session = await supervisor.start(owner="alice")
        session_id = session.session_id
        turn = await session.query("a")
        await turn.result()
        await supervisor.close(session_id, owner="alice")
        with pytest.raises(SessionNotFound):
            supervisor.get(session_id, owner="alice")
        with pytest.raises(SessionNotFound):
            await supervisor.close(session_id, owner="alice")
        with pytest.raises(SessionNotFound):
            supervisor.kept(session_id, owner="bob")
        kept = supervisor.kept(session_id, owner="alice")
        assert kept.state is State.CLOSED
        assert (await kept.turns()) == (turn.record(),)
        assert [one.deleted for one in supervisor.snapshot().sessions] == [True]
        await asyncio.sleep(99.0)
        assert await kept.events().read()
        await asyncio.sleep(2.0)
        with pytest.raises(SessionNotFound):
            supervisor.kept(session_id, owner="alice")
        assert not await store.turns(session_id)
        assert not await store.take_over()


@virtual()
async def test_a_closed_session_is_kept_as_long_by_the_next_supervisor() -> None:
    store = KeptStore()
    async with supervisor_on(store, agent_with(), retention=KEPT) as first:
        session = await first.start(claim=ClaimKey(key="k", digest="d"))
        await (await session.query("a")).result()
        await first.close(session.session_id)
        await asyncio.sleep(60.0)
    async with supervisor_on(store, agent_with(), retention=KEPT) as second:
        with pytest.raises(SessionNotFound):
            second.get(session.session_id)
        with pytest.raises(SessionNotFound):
            await second.start(claim=ClaimKey(key="k", digest="d"))
        assert not second.list()
        assert second.usage(LOCAL_OWNER).sessions == 0
        assert len(await second.kept(session.session_id).turns()) == 1
        await asyncio.sleep(38.0)
        assert len(await second.kept(session.session_id).turns()) == 1
        await asyncio.sleep(3.0)
        with pytest.raises(SessionNotFound):
            second.kept(session.session_id)


@virtual()
async def test_a_close_that_cannot_be_stored_is_none() -> None:
    store = HardStore(durable=True)
    async with supervisor_on(store, agent_with(), retention=KEPT) as supervisor:
        session = await supervisor.start()
        await (await session.query("a")).result()
        await session.close()
        store.fails.add("append")
        with pytest.raises(Unavailable):
            await supervisor.close(session.session_id)
        assert supervisor.get(session.session_id).state is State.CLOSED
        store.fails.clear()
        await supervisor.close(session.session_id)
        with pytest.raises(SessionNotFound):
            supervisor.get(session.session_id)


@pytest.mark.parametrize("store", [KeptStore, MemoryStore])
def test_what_is_old_is_dropped_and_readers_are_told(store: type[MemoryStore]) -> None:
    retention = Retention(age_s=1000.0, ended_s=5000.0)

    @virtual()
    async def run() -> None:
        async with supervisor_on(store(retention), agent_with(), retention=retention) as supervisor:
            session = await supervisor.start()
            await (await session.query("first")).result()
            once = await supervisor.query("once")
            await once.result()
            await asyncio.sleep(600.0)
            second = await session.query("second")
            await second.result()
            assert len(await session.turns()) == 2
            await session.hibernate()  # what it has at hand can be read until then
            await asyncio.sleep(500.0 + TRIM_EVERY_S)
            assert [turn.turn_id for turn in await session.turns()] == [second.turn_id]
            log = await whole_log(supervisor, session.session_id)
            assert isinstance(log[0].body, Gap)
            assert log[1].seq == log[0].body.before
            with pytest.raises(SessionNotFound):
                supervisor.get(once.session_id)

    run()


def damage(path: Path, table: str, where: str) -> None:
    with sqlite3.connect(path) as db:
        changed = db.execute(f"UPDATE {table} SET record = x'7b' WHERE {where}").rowcount
    db.close()
    assert changed


@pytest.mark.anyio
async def test_a_damaged_session_is_set_aside_and_can_be_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, agent = tmp_path / "sessions.db", ScriptedAgent()

    async with supervisor_on(SqliteStore(path), agent) as first:
        bad, turns, good = [await first.start(owner="alice") for _ in range(3)]
        for one in (bad, turns, good):
            await (await one.query("a")).result()
    damage(path, "sessions", f"session_id = '{bad.session_id}'")
    damage(path, "turns", f"session_id = '{turns.session_id}'")
    async with supervisor_on(SqliteStore(path), agent) as second:
        assert f"session {bad.session_id} is set aside" in caplog.text
        assert second.snapshot().damaged == (bad.session_id,)
        assert [one.session_id for one in second.list()] == [turns.session_id, good.session_id]
        assert (await (await second.get(good.session_id).query("b")).result()).text
        with pytest.raises(Spoiled, match="damaged"):
            await second.get(turns.session_id).turns()
        for owner in ("alice", None):
            with pytest.raises(SessionSpoiled, match="damaged"):
                second.get(bad.session_id, owner=owner)
        with pytest.raises(SessionSpoiled):  # whose it was, nobody knows
            await second.close(bad.session_id, owner="alice")
        await second.close(bad.session_id)
        with pytest.raises(SessionNotFound):
            second.get(bad.session_id)
    store = SqliteStore(path)
    assert len(await store.take_over()) == 2
    await store.aclose()


@pytest.mark.anyio
async def test_a_directory_goes_though_what_ran_in_it_took_the_right_to(tmp_path: Path) -> None:
    directories = PrivateDirectories(tmp_path / "all")
    directory = await directories.allot("one")
    below = directory / "a" / "b"
    below.mkdir(parents=True)
    (below / "file").write_text("x")
    below.chmod(0o500)
    below.parent.chmod(0)
    await directories.release(directory)
    assert not directory.exists()
    await directories.release(directory)
    await directories.aclose()
