"""Keys for work: a retry finds what was begun, and begins nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from session_supervisor import Supervisor
from session_supervisor.agents.scripted import Say, ScriptedAgent, by_prompt
from session_supervisor.claims import ClaimKey
from session_supervisor.clock import Clock
from session_supervisor.errors import (
    ClaimConflict,
    InvalidSpec,
    MailboxFull,
    SessionNotFound,
    TurnNotFound,
    Unavailable,
)
from session_supervisor.lifecycle import State
from session_supervisor.quotas import Quota
from session_supervisor.results import Outcome
from session_supervisor.spec import SessionSpec
from tests.supervisor.test_recovery import KeptStore, supervisor_on
from tests.support.sessions import supervising, supervisor_of
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

KEY = ClaimKey(key="k", digest="d")
OTHER = ClaimKey(key="k", digest="e")
SLOW = [Say("one two three four", deltas=4, every_s=1.0)]


def slow_agent() -> ScriptedAgent:
    return ScriptedAgent(by_prompt({"slow": SLOW}))


@virtual()
async def test_a_retry_attaches_to_the_turn_whatever_became_of_it() -> None:
    agent = slow_agent()
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        first = await session.query("slow", claim=KEY)
        assert not first.attached
        running = await session.query("slow", claim=KEY, quota=Quota(turns=1))
        assert (running.attached, running.turn_id) == (True, first.turn_id)
        answer = await first.result()
        ended = await session.query("slow", claim=KEY)
        assert await ended.result() == answer
        assert len(await session.turns()) == 1
        with pytest.raises(ClaimConflict):
            await session.query("slow", claim=OTHER)
        another = await supervisor.start()
        with pytest.raises(ClaimConflict):
            await another.query("slow", claim=KEY)
        with pytest.raises(ClaimConflict):
            await supervisor.query("slow", claim=KEY)
        with pytest.raises(ClaimConflict):
            await supervisor.start(claim=KEY)


@virtual()
async def test_a_retry_of_a_start_attaches_to_the_session() -> None:
    async with supervising(slow_agent(), max_sessions=2) as supervisor:
        first = await supervisor.start(claim=KEY, quota=Quota(sessions=1))
        again = await supervisor.start(claim=KEY, quota=Quota(sessions=1))
        assert (first.attached, again.attached) == (False, True)
        assert again.session_id == first.session_id
        assert len(supervisor.list()) == 1
        with pytest.raises(ClaimConflict):
            await supervisor.start(claim=OTHER)
        with pytest.raises(ClaimConflict):
            await again.query("x", claim=KEY)
        other_owner = await supervisor.start(owner="bob", claim=OTHER)
        assert not other_owner.attached
        await first.close()
        assert (await supervisor.start(claim=KEY)).state is State.CLOSED
        await supervisor.close(first.session_id)
        with pytest.raises(SessionNotFound):
            await supervisor.start(claim=KEY)


@virtual()
async def test_a_retry_of_a_one_off_attaches_to_its_turn() -> None:
    agent = slow_agent()
    async with supervising(agent, max_live=1) as supervisor:
        first, second = await asyncio.gather(
            *(supervisor.query("slow", claim=KEY) for _ in range(2))
        )
        assert first.turn_id == second.turn_id
        assert sorted([first.attached, second.attached]) == [False, True]
        answer = await first.result()
        assert await (await supervisor.query("slow", claim=KEY)).result() == answer
        assert agent.spawned == 1
        assert len(supervisor.snapshot().sessions) == 1


@virtual()
async def test_of_many_at_once_one_runs() -> None:
    store = HardStore(append_s=0.5)
    agent = slow_agent()
    async with supervisor_of(agent, store=store) as supervisor:
        session = await supervisor.start()
        turns = await asyncio.gather(*(session.query("x", claim=KEY) for _ in range(20)))
        assert len({turn.turn_id for turn in turns}) == 1
        assert sum(not turn.attached for turn in turns) == 1
        assert len(await session.turns()) == 1


@virtual()
async def test_a_caller_that_goes_away_leaves_its_work_to_its_retry() -> None:
    store = HardStore(append_s=0.5)
    async with supervisor_of(slow_agent(), store=store) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(5)
        asking = asyncio.ensure_future(session.query("x", claim=KEY))
        await asyncio.sleep(0.1)
        asking.cancel()
        retry = await session.query("x", claim=KEY)
        assert retry.attached
        assert (await retry.result()).outcome is Outcome.COMPLETED
        assert len(await session.turns()) == 1


@virtual()
async def test_what_was_refused_may_be_tried_again() -> None:
    agent = slow_agent()
    async with supervising(agent, max_queued=1) as supervisor:
        session = await supervisor.start()
        with pytest.raises(InvalidSpec):
            await session.query(" ", claim=KEY)
        running = await session.query("slow")
        await asyncio.sleep(1)
        queued = await session.query("slow")
        for _ in range(2):
            with pytest.raises(MailboxFull):
                await session.query("x", claim=KEY)
        await running.result()
        await queued.result()
        assert not (await session.query("x", claim=KEY)).attached
        with pytest.raises(InvalidSpec):
            await supervisor.start(SessionSpec(expiry_s=0), claim=ClaimKey(key="s", digest="d"))
        assert not (await supervisor.start(claim=ClaimKey(key="s", digest="e"))).attached


@virtual()
async def test_a_start_that_is_given_up_leaves_neither_session_nor_key() -> None:
    store = HardStore(acquire_s=5.0)
    async with supervisor_of(slow_agent(), store=store) as supervisor:
        starting = asyncio.ensure_future(supervisor.start(claim=KEY))
        await asyncio.sleep(1)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not (await supervisor.start(claim=KEY)).attached
        store.acquire_s = 40.0
        with pytest.raises(Unavailable):
            await supervisor.start()
        assert len(supervisor.list()) == 1
    assert len(await store.take_over()) == 1, "there are sessions that nobody knows of"


@virtual()
async def test_a_key_expires() -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    clock = Clock(now=lambda: begin + timedelta(seconds=asyncio.get_running_loop().time()))
    async with supervising(slow_agent(), clock=clock, claim_s=60.0) as supervisor:
        session = await supervisor.start()
        first = await session.query("x", claim=KEY)
        await asyncio.sleep(59)
        assert (await session.query("x", claim=KEY)).attached
        await asyncio.sleep(2)
        again = await session.query("y", claim=OTHER)
        assert (again.attached, again.turn_id == first.turn_id) == (False, False)


@virtual(limit_s=1e6)
async def test_work_that_is_no_longer_kept_is_not_done_again() -> None:
    agent = slow_agent()
    async with supervising(agent) as supervisor:
        one = await supervisor.query("x", claim=KEY)
        await one.result()
        await asyncio.sleep(4000)
        with pytest.raises(SessionNotFound):
            await supervisor.query("x", claim=KEY)
        assert agent.spawned == 1


@virtual()
async def test_keys_hold_under_the_next_supervisor_and_while_this_one_drains() -> None:
    store, agent = KeptStore(), slow_agent()
    async with supervisor_on(store, agent) as first:
        session = await first.start(claim=ClaimKey(key="start", digest="d"))
        turn = await session.query("slow", claim=KEY)
        one = await first.query("y", claim=ClaimKey(key="one", digest="d"))
        await turn.result()
        await one.result()
        await first.drain(0.0)
        assert (await session.query("slow", claim=KEY)).turn_id == turn.turn_id
    async with supervisor_on(store, agent) as second:
        assert await _attached(second, session.session_id) == (turn.turn_id, one.turn_id)
        assert agent.spawned == 2


async def _attached(supervisor: Supervisor, session_id: str) -> tuple[str, str]:
    session = await supervisor.start(claim=ClaimKey(key="start", digest="d"))
    assert (session.attached, session.session_id) == (True, session_id)
    turn = await session.query("slow", claim=KEY)
    one = await supervisor.query("y", claim=ClaimKey(key="one", digest="d"))
    assert turn.attached
    assert one.attached
    return turn.turn_id, one.turn_id


@virtual()
async def test_a_turn_that_retention_dropped_is_not_found_under_its_key() -> None:
    from session_supervisor import Retention

    async with supervising(slow_agent(), retention=Retention(turns=1)) as supervisor:
        session = await supervisor.start()
        for prompt in ("x", "y", "z"):
            claim = KEY if prompt == "x" else None
            await (await session.query(prompt, claim=claim)).result()
        with pytest.raises(TurnNotFound):
            await session.query("x", claim=KEY)
