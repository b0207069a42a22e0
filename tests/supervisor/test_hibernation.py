"""Sessions that give up their process and have another one when there is something to do."""

from __future__ import annotations

import asyncio

import pytest

from session_supervisor.agents.scripted import (
    BeginAlone,
    Freeze,
    Manners,
    Say,
    ScriptedAgent,
    Start,
    by_prompt,
)
from session_supervisor.errors import AgentMissing, AtCapacity, SessionClosed
from session_supervisor.events import Status
from session_supervisor.lifecycle import State
from session_supervisor.messages import CloseReason
from session_supervisor.results import Outcome
from tests.support.sessions import bodies, check_log, supervising
from tests.support.virtual_time import virtual

SLOW = [Say("one two three four", deltas=4, every_s=1.0)]


def now() -> float:
    return asyncio.get_running_loop().time()


def agent_with(**answers: object) -> ScriptedAgent:
    return ScriptedAgent(by_prompt({"slow": SLOW, **answers}))  # type: ignore[dict-item]


@virtual()
async def test_an_idle_session_gives_up_its_process_and_wakes_with_its_context() -> None:
    agent = agent_with()
    async with supervising(agent, idle_timeout_s=10.0) as supervisor:
        session = await supervisor.start()
        await (await session.query("a")).result()
        await asyncio.sleep(9)
        assert session.snapshot().state is State.IDLE
        await asyncio.sleep(2)
        assert session.snapshot().state is State.HIBERNATED
        assert agent.live == 0
        assert supervisor.snapshot().live == 0
        assert session.active
        assert supervisor.list() == (session,)
        answer = (await (await session.query("b")).result()).text
        assert answer.endswith("Earlier you said: a")
        assert agent.spawned == 2
        log = await session.events().read(10_000)
        check_log(log)
        told = [body.state for body in bodies(log) if isinstance(body, Status)]
        assert told == ["idle", "hibernating", "hibernated", "starting", "idle"]
        (first, second) = await session.turns()
        assert (first.text, second.text) == ("You said: a", answer)


@virtual()
async def test_a_session_is_asked_to_hibernate_and_to_wake() -> None:
    agent = ScriptedAgent(start=Start(delay_s=1.0), manners=Manners(stop_s=2.0))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        assert await session.hibernate() is State.STARTING
        await asyncio.sleep(2)
        assert await session.hibernate() is State.HIBERNATING
        assert await session.wake() is State.HIBERNATING
        await asyncio.sleep(3.5)
        assert session.snapshot().state is State.IDLE
        assert await session.hibernate() is State.HIBERNATING
        await asyncio.sleep(3)
        assert session.snapshot().state is State.HIBERNATED
        assert await session.wake() is State.STARTING
        await session.close()
        with pytest.raises(SessionClosed):
            await session.wake()


@virtual()
async def test_a_query_while_the_process_is_being_stopped_waits_for_the_next() -> None:
    agent = ScriptedAgent(manners=Manners(stop_s=5.0))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        await session.hibernate()
        turn = await session.query("x")
        assert (await turn.result()).outcome is Outcome.COMPLETED
        assert now() == 6.0
    assert agent.most_live == 1
    assert agent.forks == 0


@virtual()
async def test_nothing_that_goes_on_is_cut_by_hibernation() -> None:
    agent = agent_with(job=[BeginAlone(5.0, [Say("the job is done")]), Say("started")])
    async with supervising(agent, idle_timeout_s=3.0) as supervisor:
        session = await supervisor.start()
        await (await session.query("job")).result()
        assert await session.hibernate() is State.IDLE
        await asyncio.sleep(6)
        assert [turn.text for turn in await session.turns()] == ["started", "the job is done"]
        await asyncio.sleep(4)
        assert session.snapshot().state is State.HIBERNATED
        slow = await session.query("slow")
        await asyncio.sleep(2)
        assert await session.hibernate() is State.RUNNING
        assert (await slow.result()).outcome is Outcome.COMPLETED


@virtual()
async def test_the_moment_between_work_in_the_background_and_its_turn_is_no_rest() -> None:
    agent = agent_with(job=[BeginAlone(5.0, [Say("done")]), Say("started")])
    async with supervising(agent, max_live=1) as supervisor:
        first = await supervisor.start()
        await (await first.query("job")).result()
        second = await supervisor.start()
        waiting = await second.query("x")
        await waiting.result()
        assert [turn.text for turn in await first.turns()] == ["started", "done"]
        assert first.state is State.HIBERNATED


@virtual()
async def test_the_least_recently_used_session_makes_room() -> None:
    agent = agent_with()
    async with supervising(agent, max_live=3) as supervisor:
        sessions = [await supervisor.start() for _ in range(3)]
        for session in (sessions[1], sessions[2], sessions[0]):
            await (await session.query("x")).result()
            await asyncio.sleep(1)
        await (await supervisor.query("one")).result()
        assert [session.state for session in sessions] == [
            State.IDLE,
            State.HIBERNATED,
            State.IDLE,
        ]
        await (await sessions[1].query("y")).result()
        assert agent.most_live == 3
        assert agent.forks == 0


@virtual()
async def test_where_all_are_busy_a_query_waits_and_only_too_many_are_refused() -> None:
    agent = agent_with()
    async with supervising(agent, max_live=1, max_waiting=2) as supervisor:
        busy = await supervisor.query("slow")
        await asyncio.sleep(1)
        waiting = [await supervisor.query("x") for _ in range(2)]
        session = supervisor.get(waiting[0].session_id)
        assert (await session.inspect()).waiting_for == "room for its process"
        assert supervisor.snapshot().waiting == 2
        with pytest.raises(AtCapacity) as caught:
            await supervisor.query("x")
        assert caught.value.retry_after
        assert (await busy.result()).outcome is Outcome.COMPLETED
        for turn in waiting:
            assert (await turn.result()).outcome is Outcome.COMPLETED
        assert agent.most_live == 1


@virtual()
async def test_whoever_stops_waiting_for_room_leaves_it_to_others() -> None:
    agent = agent_with()
    async with supervising(agent, max_live=1) as supervisor:
        busy = await supervisor.query("slow")
        first, second = await supervisor.start(), await supervisor.start()
        await asyncio.sleep(1)
        turn = await second.query("x")
        await first.close()
        await busy.result()
        assert (await turn.result()).outcome is Outcome.COMPLETED
        assert supervisor.snapshot().waiting == 0


@virtual()
async def test_an_unused_session_is_closed_asleep_or_not() -> None:
    async with supervising(agent_with(), idle_timeout_s=5.0, expiry_s=20.0) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(10)
        assert session.snapshot().state is State.HIBERNATED
        await (await session.query("x")).result()
        await asyncio.sleep(19)
        assert session.snapshot().state is State.HIBERNATED
        assert (await session.ended()).reason is CloseReason.EXPIRED
        assert round(now(), 1) == 30.0
    async with supervising(agent_with(), expiry_s=20.0) as supervisor:
        session = await supervisor.start()
        assert (await session.ended()).reason is CloseReason.EXPIRED
        assert round(now(), 1) == 50.0


@virtual()
async def test_a_session_that_cannot_wake_fails_as_one_that_cannot_start() -> None:
    agent = agent_with()
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        await session.hibernate()
        await asyncio.sleep(1)
        agent.start = Start(error=AgentMissing("gone"))
        turn = await session.query("x")
        assert (await turn.wait()).outcome is Outcome.FAILED
        assert session.snapshot().state is State.FAILED


@virtual()
async def test_a_hibernating_session_is_closed_and_interrupted_like_any_other() -> None:
    agent = ScriptedAgent(manners=Manners(stop_s=5.0))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        await session.hibernate()
        turn = await session.query("x")
        interrupted = await session.interrupt()
        assert interrupted.turn_ids == (turn.turn_id,)
        assert (await session.close()).reason is CloseReason.REQUESTED
        assert now() == 6.0
        other = await supervisor.start()
        await asyncio.sleep(1)
        await other.hibernate()
        await asyncio.sleep(6)
        assert (await other.interrupt()).turn_ids == ()
        closed = await other.close()
        assert closed.reason is CloseReason.REQUESTED
    assert agent.live == 0


@virtual()
async def test_a_process_that_dies_while_it_is_stopped_is_no_crash() -> None:
    agent = ScriptedAgent(by_prompt({"freeze": [Freeze()]}), manners=Manners(stop_s=3.0))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        await session.hibernate()
        agent.processes[-1].crash()
        await asyncio.sleep(4)
        assert session.snapshot().state is State.HIBERNATED
        assert session.snapshot().restarts == 0
