"""What the pool costs those who ask for something new each time, and their neighbours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from session_supervisor import SessionSpec
from session_supervisor.demand import CHANGES, WINDOW_S
from session_supervisor.stock import Stock
from tests.supervisor.test_pool import agent_of, ask, pool_of, pooling
from tests.support.virtual_time import virtual


@pytest.fixture
def stocks(monkeypatch: pytest.MonkeyPatch) -> list[Stock]:
    """Every stock that is made."""
    made: list[Stock] = []

    class Kept(Stock):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)

    monkeypatch.setattr("session_supervisor.pool.Stock", Kept)
    return made


@virtual()
async def test_for_kinds_that_never_come_again_nothing_is_started_ahead_of_time() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        for number in range(20):
            spec = SessionSpec(system_prompt=f"It is {number} o'clock.")
            session = await supervisor.start(spec)
            _ = await (await session.query("hi")).result()
            await supervisor.close(session.session_id)
            await asyncio.sleep(3)
        assert agent.spawned == 20
        assert pool_of(supervisor).started == 0


@virtual()
async def test_an_owner_who_asks_for_much_that_is_new_keeps_no_other_cold() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        waits: list[float] = []
        for round_ in range(20):
            waits.append((await ask(supervisor, owner="ben"))[1])
            for number in range(4):
                spec = SessionSpec(system_prompt=f"{round_} {number}")
                await ask(supervisor, owner="ann", spec=spec)
            await asyncio.sleep(2)
        assert [wait > 0 for wait in waits] == [True, *[False] * 19]


@virtual()
async def test_what_is_over_is_forgotten(stocks: list[Stock]) -> None:
    async with pooling(agent_of()) as supervisor:
        for number in range(5):
            await ask(supervisor, spec=SessionSpec(system_prompt=str(number)))
        await asyncio.sleep(1000)
        (stock,) = stocks
        assert not stock.lent
        assert not stock.patterns


@virtual()
async def test_what_is_too_long_is_not_remembered_and_starts_as_it_would_without(
    stocks: list[Stock],
) -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        for _ in range(2):
            await ask(supervisor, spec=SessionSpec(system_prompt="x" * 100_000))
            await asyncio.sleep(1)
        (stock,) = stocks
        assert not stock.patterns
        assert agent.spawned == 2
        assert pool_of(supervisor).misses == 0, "the pool could not have spared them that"


@virtual()
@pytest.mark.parametrize("recycle", [True, False])
async def test_where_all_is_another_each_time_nothing_is_kept_ready(recycle: bool) -> None:
    agent = agent_of()
    async with pooling(agent, recycle=recycle) as supervisor:
        for number in range(20):
            agent.surroundings = str(number)
            await ask(supervisor)
            await asyncio.sleep(2)
        assert pool_of(supervisor).retired["changed"] == CHANGES
        assert pool_of(supervisor).ready == 0
        assert agent.spawned <= 20 + CHANGES
        await asyncio.sleep(WINDOW_S)
        for _ in range(2):
            await ask(supervisor)
            await asyncio.sleep(2)
        assert (await ask(supervisor))[1] == 0.0, "it is tried again later"


@virtual()
async def test_one_change_that_several_processes_show_counts_once() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        for number in range(2):
            agent.surroundings = str(number)
            for _ in range(2):
                await asyncio.gather(*(ask(supervisor, "slow") for _ in range(4)))
                await asyncio.sleep(2)
        assert pool_of(supervisor).retired["changed"] == 4
        assert pool_of(supervisor).ready == 4
