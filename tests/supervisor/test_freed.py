"""What a session took is freed as it ends: nothing of it waits for the collector of cycles.

Python looks for cycles among what has lived for long only once there are millions of new objects.
What a server leaves in cycles until then, visit by visit, is memory that grows for hours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from session_supervisor import (
    PoolPolicy,
    Retention,
    State,
    Supervisor,
)
from session_supervisor.agents.scripted import (
    Crash,
    Pause,
    Say,
    ScriptedAgent,
    Start,
    UseTool,
    by_prompt,
)
from session_supervisor.asks import Allow
from session_supervisor.errors import AgentMissing, AgentStartFailed
from session_supervisor.supervisor import STILL_READ
from tests.supervisor.test_recovery import KeptDirectories, KeptStore
from tests.support.freed import uncollected
from tests.support.sessions import supervisor_of
from tests.support.virtual_time import virtual

Visit: TypeAlias = Callable[[Supervisor], Awaitable[None]]

VISITS = 3


def agent() -> ScriptedAgent:
    return ScriptedAgent(
        by_prompt(
            {
                "slow": [Say("one two three four", deltas=4, every_s=1.0)],
                "hang": [Say("I w", confirmed=False), Pause(60.0)],
                "die": [Say("I w", confirmed=False), Crash()],
                "asks": [UseTool("Write", input={"file_path": "a"}, asks=True), Say("written")],
            }
        )
    )


async def ask_once(supervisor: Supervisor) -> None:
    await (await supervisor.query("slow")).result()


async def talk(supervisor: Supervisor) -> None:
    session = await supervisor.start()
    for prompt in ("hello", "slow"):
        turn = await session.query(prompt)
        async for _ in turn:
            pass
    await session.close()


async def close(supervisor: Supervisor) -> None:
    session = await supervisor.start()
    await (await session.query("hello")).result()
    await supervisor.close(session.session_id)


async def interrupt(supervisor: Supervisor) -> None:
    session = await supervisor.start()
    turn = await session.query("hang")
    await asyncio.sleep(1)
    await session.interrupt()
    await turn.result()
    await session.close()


async def close_at_work(supervisor: Supervisor) -> None:
    session = await supervisor.start()
    turn = await session.query("hang")
    await asyncio.sleep(1)
    await session.close()
    await turn.wait()


async def sleep_and_wake(supervisor: Supervisor) -> None:
    session = await supervisor.start()
    await (await session.query("hello")).result()
    await session.hibernate()
    await asyncio.sleep(1)
    await (await session.query("hello")).result()
    await session.close()


async def allow(supervisor: Supervisor) -> None:
    session = await supervisor.start()
    turn = await session.query("asks", on_permission="ask")
    async for event in turn:
        if event.body.type == "permission_request":
            await session.decide(event.body.request_id, Allow())
    await session.close()


async def crash(supervisor: Supervisor) -> None:
    session = await supervisor.start()
    await (await session.query("die")).wait()
    await (await session.query("hello")).result()
    await session.close()


VISITORS = (ask_once, talk, close, interrupt, close_at_work, sleep_and_wake, allow, crash)


@pytest.mark.parametrize("pool", [None, PoolPolicy()], ids=["no pool", "pool"])
@pytest.mark.parametrize("visit", VISITORS, ids=lambda one: one.__name__)
@virtual()
async def test_nothing_of_a_session_is_left_in_cycles(
    visit: Visit, pool: PoolPolicy | None
) -> None:
    retention = Retention(ended_sessions=1)
    async with supervisor_of(agent(), pool=pool, retention=retention) as supervisor:
        await visit(supervisor)
        with uncollected() as found:
            for _ in range(VISITS):
                await visit(supervisor)
                await asyncio.sleep(5)
    assert not found


STARTS: dict[str, Callable[[], Start]] = {
    "missing": lambda: Start(error=AgentMissing("there is no program")),
    "fails": lambda: Start(error=AgentStartFailed("no")),
    "hangs": lambda: Start(hangs=True),
}


@pytest.mark.parametrize("pool", [None, PoolPolicy()], ids=["no pool", "pool"])
@pytest.mark.parametrize("name", STARTS)
@virtual()
async def test_nothing_of_a_start_that_failed_is_left_in_cycles(
    name: str, pool: PoolPolicy | None
) -> None:
    scripted = agent()

    async def ask_in_vain(supervisor: Supervisor) -> None:
        # The first by itself, the others with the turn that waits for a process.
        scripted.starts.extend(STARTS[name]() for _ in range(2))
        session = await supervisor.start()
        await (await session.query("hello")).wait()
        await session.close()

    retention = Retention(ended_sessions=1)
    async with supervisor_of(scripted, pool=pool, retention=retention) as supervisor:
        await ask_in_vain(supervisor)
        with uncollected() as found:
            for _ in range(VISITS):
                await ask_in_vain(supervisor)
                scripted.starts.clear()
                await asyncio.sleep(5)
    assert not found


@virtual()
async def test_nothing_of_ended_sessions_that_were_found_is_left_in_cycles() -> None:
    store, scripted, directories = KeptStore(), agent(), KeptDirectories()
    async with supervisor_of(scripted, store=store, directories=directories) as supervisor:
        await ask_once(supervisor)
        await asyncio.sleep(1)
    retention = Retention(ended_s=100.0)
    with uncollected() as found:
        async with supervisor_of(
            scripted, store=store, directories=directories, retention=retention
        ) as supervisor:
            assert len(supervisor.snapshot().sessions) == 1
            await asyncio.sleep(200)
            assert not supervisor.snapshot().sessions
    assert not found


@virtual()
async def test_events_of_sessions_that_ended_before_others_are_in_the_store_alone() -> None:
    store = KeptStore()
    async with supervisor_of(agent(), store=store, directories=KeptDirectories()) as supervisor:
        first = await supervisor.query("hello")
        text = (await first.result()).text
        at_hand = supervisor.get(first.session_id).events()
        assert at_hand.at_hand(), "a reader that is a little late need not ask the store"
        for _ in range(STILL_READ):
            await (await supervisor.query("hello")).result()
            await asyncio.sleep(1)
        session = supervisor.get(first.session_id)
        assert session.state is State.CLOSED
        assert not session.events().at_hand()
        read = await session.events().read(1_000)
        assert any(event.is_terminal for event in read)
        assert (await first.result()).text == text
