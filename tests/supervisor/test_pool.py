"""Processes that stand ready, and come back: the bookkeeping, with scripted agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from session_supervisor import (
    Outcome,
    PoolPolicy,
    PoolSnapshot,
    SessionSpec,
    State,
    Supervisor,
    TurnResult,
)
from session_supervisor.agents.scripted import (
    BeginAlone,
    Conversation,
    Hang,
    Manners,
    Pause,
    Say,
    ScriptedAgent,
    Start,
    Step,
    UseTool,
)
from session_supervisor.agents.scripted.process import ScriptedProcess
from session_supervisor.errors import AgentStartFailed
from session_supervisor.recycling import RESPITE_S
from session_supervisor.spec import Prompt
from session_supervisor.stores.memory import MemoryStore
from session_supervisor.stores.records import Batch
from tests.support.sessions import ImaginaryDirectories, supervisor_of
from tests.support.virtual_time import virtual

START_S = 0.5


def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    match prompt.text:
        case "slow":
            return [Pause(5.0), Say("slow")]
        case "hang":
            return [Hang()]
        case "background":
            return [BeginAlone(30.0, [Say("by itself")]), Say("begun")]
        case "tool":
            return [UseTool("Bash", seconds=0.1), Say("used")]
        case _:
            return [Say(" ".join([*conversation.earlier, prompt.text]))]


def agent_of(**manners: Any) -> ScriptedAgent:
    return ScriptedAgent(script, start=Start(delay_s=START_S), manners=Manners(**manners))


def renewing_takes(
    monkeypatch: pytest.MonkeyPatch, seconds: float, *, begun: asyncio.Event | None = None
) -> None:
    """Have each renewal take so long, and tell that one has begun."""
    original = ScriptedProcess.renew

    async def renew(process: ScriptedProcess) -> None:
        if begun is not None:
            begun.set()
        await asyncio.sleep(seconds)
        await original(process)

    monkeypatch.setattr(ScriptedProcess, "renew", renew)


@asynccontextmanager
async def pooling(
    agent: ScriptedAgent, *, max_starting: int = 2, max_live: int = 8, **policy: Any
) -> AsyncGenerator[Supervisor]:
    directories = ImaginaryDirectories()
    async with supervisor_of(
        agent,
        directories=directories,
        pool=PoolPolicy(**policy),
        max_starting=max_starting,
        max_live=max_live,
    ) as supervisor:
        yield supervisor
    assert agent.live == 0
    assert agent.forks == 0
    assert not directories.held


def pool_of(supervisor: Supervisor) -> PoolSnapshot:
    pool = supervisor.snapshot().pool
    assert pool is not None
    return pool


async def ask(
    supervisor: Supervisor, prompt: str = "hello", **how: Any
) -> tuple[TurnResult, float]:
    """Ask once; return what came of it, and how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    turn = await supervisor.query(prompt, **how)
    result = await turn.result()
    return result, loop.time() - began


@virtual()
async def test_the_first_starts_cold_and_the_next_has_its_process() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        _, cold_s = await ask(supervisor)
        await asyncio.sleep(1)
        result, warm_s = await ask(supervisor)
        assert (cold_s, warm_s) == (START_S, 0.0)
        assert result.text == "hello", "it knows nothing of the one before"
        await asyncio.sleep(1)
        pool = pool_of(supervisor)
        assert (pool.hits, pool.misses, pool.recycled, pool.ready) == (1, 1, 2, 1)
        assert agent.spawned == 1


@virtual()
@pytest.mark.parametrize("users", [1, 3])
async def test_who_asks_again_at_once_finds_one_ready_and_one_more_is_kept_for_all(
    monkeypatch: pytest.MonkeyPatch, users: int
) -> None:
    renewing_takes(monkeypatch, 0.1)
    agent = agent_of()
    waits: list[list[float]] = []

    async def visit(supervisor: Supervisor, number: int) -> None:
        await asyncio.sleep(number)
        waits.append([(await ask(supervisor, "slow"))[1] - 5.0 for _ in range(8)])

    async with pooling(agent) as supervisor:
        await asyncio.gather(*(visit(supervisor, number) for number in range(users)))
        for waited in waits:
            assert waited[0] == START_S
            assert waited[2:] == pytest.approx([0.0] * 6), "none waits for a renewal"
        await asyncio.sleep(1)
        assert agent.spawned == pool_of(supervisor).ready == users + 1


async def two_ready(supervisor: Supervisor) -> None:
    """Have two processes stand ready: somebody asked again and again."""
    for _ in range(3):
        await ask(supervisor, "slow")
    await asyncio.sleep(1)
    assert pool_of(supervisor).ready == 2


@virtual()
async def test_a_renewal_lets_who_asks_next_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()
    renewing_takes(monkeypatch, 0.1, begun=begun)
    loop = asyncio.get_running_loop()
    async with pooling(agent_of()) as supervisor:
        await two_ready(supervisor)
        begun.clear()
        await ask(supervisor)
        over = loop.time()
        await begun.wait()
        assert loop.time() - over == pytest.approx(RESPITE_S)


@virtual()
async def test_who_needs_just_that_process_does_not_wait_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewing_takes(monkeypatch, 0.1)
    async with pooling(agent_of()) as supervisor:
        await two_ready(supervisor)
        await ask(supervisor)
        several = await asyncio.gather(*(ask(supervisor, "slow") for _ in range(2)))
        assert [took for _, took in several] == pytest.approx([5.0, 5.1])


@virtual()
async def test_who_needs_its_room_does_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    renewing_takes(monkeypatch, 0.1)
    async with pooling(agent_of(), max_live=3, max_starting=3) as supervisor:
        await two_ready(supervisor)
        await ask(supervisor)
        several = await asyncio.gather(*(ask(supervisor, "slow", owner="ben") for _ in range(3)))
        assert [took for _, took in several] == [5.0 + START_S] * 3
        assert pool_of(supervisor).retired["gave way"] == 2


@virtual()
async def test_no_session_gives_up_its_process_for_one_that_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewing_takes(monkeypatch, 0.1)
    async with pooling(agent_of(), max_live=3) as supervisor:
        session = await supervisor.start()
        await (await session.query("hi")).result()
        await two_ready(supervisor)
        await ask(supervisor)
        several = (ask(supervisor, "slow"), ask(supervisor, "slow", owner="ben"))
        assert [took for _, took in await asyncio.gather(*several)] == [5.0, 5.0 + START_S]
        assert pool_of(supervisor).retired == {"gave way": 1}
        assert session.state is State.IDLE, "it is not hibernated"


@virtual()
async def test_nothing_rests_in_a_pool_that_is_closed() -> None:
    loop = asyncio.get_running_loop()
    async with pooling(agent_of()) as supervisor:
        await two_ready(supervisor)
        await ask(supervisor)
        await asyncio.sleep(RESPITE_S / 2)
        over = loop.time()
    assert loop.time() == over


@virtual()
async def test_who_waits_for_a_start_gets_the_process_that_comes_back() -> None:
    agent = agent_of()
    async with pooling(agent, max_starting=1) as supervisor:
        _ = await ask(supervisor)
        await asyncio.sleep(1)
        several = await asyncio.gather(*(ask(supervisor) for _ in range(20)))
        assert {result.outcome for result, _ in several} == {Outcome.COMPLETED}
        # One start at a time takes half a second; a process that comes back, nothing.
        assert max(took for _, took in several) <= START_S
        assert pool_of(supervisor).misses <= 2


@virtual()
async def test_who_waits_for_room_gets_the_process_that_comes_back() -> None:
    agent = agent_of()
    async with pooling(agent, max_live=1) as supervisor:
        several = await asyncio.gather(*(ask(supervisor) for _ in range(5)))
        assert max(took for _, took in several) == START_S
        assert agent.spawned == 1
        assert agent.most_live == 1


@virtual()
async def test_nobody_of_another_kind_waits_for_one_that_rests() -> None:
    agent = agent_of()
    async with pooling(agent, max_live=1) as supervisor:
        _ = await ask(supervisor, owner="ann")
        await asyncio.sleep(1)
        assert pool_of(supervisor).ready == 1
        _, took = await ask(supervisor, owner="ben")
        assert took == START_S
        assert agent.most_live == 1
        assert pool_of(supervisor).retired == {"gave way": 1}


@virtual()
async def test_who_waits_for_one_that_is_already_being_stopped_gets_its_room() -> None:
    agent = agent_of(stop_s=5.0)
    async with pooling(agent, max_live=1, max_age_s=10.0) as supervisor:
        _ = await ask(supervisor, owner="ann")
        await asyncio.sleep(12)
        assert pool_of(supervisor).retired == {"age": 1}
        _, took = await ask(supervisor, owner="ben")
        assert took < 5.0 + START_S
        assert agent.most_live == 1
        assert pool_of(supervisor).retired == {"age": 1}


@virtual()
async def test_no_owner_gets_what_was_another_s() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        for owner in ("ann", "ben", "ann", "ben"):
            _ = await ask(supervisor, owner=owner)
            await asyncio.sleep(1)
        assert pool_of(supervisor).hits == 2
        for process in agent.processes:
            assert len({prompt.text for prompt in process.sent}) == 1
        assert {process.fingerprint.owner for process in agent.processes} == {"ann", "ben"}
        assert agent.spawned == 2


@virtual()
async def test_what_was_changed_since_its_start_is_not_handed_out() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        _ = await ask(supervisor)
        await asyncio.sleep(1)
        agent.surroundings = "another credential"
        _, took = await ask(supervisor)
        assert took == START_S
        assert pool_of(supervisor).retired == {"changed": 1}


@virtual()
async def test_a_session_finds_a_process_once_there_were_two_like_it() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        one = await supervisor.start()
        await asyncio.sleep(2)
        assert pool_of(supervisor).started == 0, "its like may never come again"
        _ = await supervisor.start()
        await asyncio.sleep(2)
        assert pool_of(supervisor).ready == 1
        two = await supervisor.start()
        began = asyncio.get_running_loop().time()
        assert (await (await two.query("hi")).result()).text == "hi"
        assert asyncio.get_running_loop().time() == began
        assert (await (await two.query("ho")).result()).text == "hi ho"
        assert pool_of(supervisor).hits == 1
        assert one.workspace != two.workspace
        await two.hibernate()
        assert (await (await two.query("on")).result()).text == "hi ho on"


@virtual()
async def test_model_and_mode_are_changed_for_a_session_and_set_back_after_it() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        _ = await ask(supervisor)
        await asyncio.sleep(1)
        (process,) = agent.processes
        turn = await supervisor.query("slow", SessionSpec(model="m", permission_mode="acceptEdits"))
        await asyncio.sleep(1)
        has = process.fingerprint
        assert (has.model, has.permission_mode) == ("m", "acceptEdits")
        await turn.result()
        await asyncio.sleep(1)
        assert (process.fingerprint.model, process.fingerprint.permission_mode) == (None, "default")
        assert agent.spawned == 1


@virtual()
async def test_what_is_not_as_it_was_does_not_come_back() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        _ = await ask(supervisor, "background")
        await asyncio.sleep(1)
        assert pool_of(supervisor).retired == {"busy": 1}
        assert agent.spawned == 2, "another one is ready in its place"
        assert pool_of(supervisor).ready == 1


@virtual()
async def test_one_that_was_used_often_enough_is_stopped() -> None:
    agent = agent_of()
    async with pooling(agent, max_uses=3) as supervisor:
        for _ in range(6):
            _ = await ask(supervisor)
            await asyncio.sleep(2)
        assert max(len(process.sent) for process in agent.processes) == 3
        assert pool_of(supervisor).retired["uses"] == 2


@virtual()
async def test_one_that_is_old_or_dead_is_stopped_and_replaced_and_hangs_are_noticed() -> None:
    agent = agent_of()
    async with pooling(agent, max_age_s=60.0) as supervisor:
        _ = await ask(supervisor)
        await asyncio.sleep(70)
        assert pool_of(supervisor).retired == {"age": 1}
        assert pool_of(supervisor).ready == 1
        agent.processes[-1].crash()
        await asyncio.sleep(12)
        assert pool_of(supervisor).retired == {"age": 1, "died": 1}
        agent.processes[-1].freeze()
        await asyncio.sleep(25)
        assert pool_of(supervisor).retired == {"age": 1, "died": 1, "health": 1}
        _, took = await ask(supervisor)
        assert took == 0.0


@virtual()
async def test_what_nobody_asks_for_any_more_is_let_go_of() -> None:
    agent = agent_of()
    async with pooling(agent, max_age_s=10_000.0) as supervisor:
        _ = await asyncio.gather(*(ask(supervisor, "slow") for _ in range(3)))
        await asyncio.sleep(10)
        assert pool_of(supervisor).ready == 3
        await asyncio.sleep(310)
        assert pool_of(supervisor).ready == 0
        assert pool_of(supervisor).retired == {"surplus": 3}


@virtual()
async def test_without_recycling_each_one_off_has_a_process_of_its_own() -> None:
    agent = agent_of()
    async with pooling(agent, recycle=False) as supervisor:
        for _ in range(4):
            _ = await ask(supervisor)
            await asyncio.sleep(5)
        assert max(len(process.sent) for process in agent.processes) == 1
        assert pool_of(supervisor).hits == 2, "from the third on: the second showed that more come"


@virtual()
async def test_a_start_ahead_of_time_makes_way_for_a_session_s() -> None:
    agent = agent_of()
    async with pooling(agent, max_starting=1, recycle=False) as supervisor:
        _ = await asyncio.gather(*(ask(supervisor, owner="ann") for _ in range(2)))
        await asyncio.sleep(0.1)
        assert pool_of(supervisor).starting == 1
        _, took = await ask(supervisor, owner="ben")
        assert took == pytest.approx(START_S)
        assert pool_of(supervisor).retired["gave way"] == 1


@virtual()
async def test_who_comes_while_one_of_its_kind_comes_up_gets_that() -> None:
    agent = agent_of()
    async with pooling(agent, max_starting=1, recycle=False) as supervisor:
        _ = await asyncio.gather(ask(supervisor), ask(supervisor))
        await asyncio.sleep(0.3)
        assert pool_of(supervisor).starting == 1
        _, took = await ask(supervisor)
        assert took < START_S
        assert pool_of(supervisor).hits == 1


@virtual()
async def test_one_that_does_not_come_up_is_not_tried_again_at_once() -> None:
    agent = agent_of()
    async with pooling(agent, recycle=False) as supervisor:
        _ = await ask(supervisor)
        await asyncio.sleep(3)
        _ = await ask(supervisor)
        agent.start = Start(error=AgentStartFailed("no"))
        await asyncio.sleep(20)
        assert agent.spawned <= 3
        agent.start = Start()
        await asyncio.sleep(60)
        assert pool_of(supervisor).ready == 1


@virtual()
async def test_a_drain_stops_what_stands_ready_and_takes_nothing_back() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        turn = await supervisor.query("slow")
        _ = await ask(supervisor)
        await asyncio.sleep(1)
        assert pool_of(supervisor).ready == 1
        await supervisor.drain(60.0)
        assert agent.live == 0
        assert (await turn.result()).outcome is Outcome.COMPLETED
        assert pool_of(supervisor).ready == 0


@virtual()
async def test_a_one_off_that_is_interrupted_or_closed_leaves_a_process_or_none() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        turn = await supervisor.query("hang")
        await asyncio.sleep(2)
        await supervisor.close(turn.session_id)
        await asyncio.sleep(2)
        _ = await ask(supervisor)


@virtual()
async def test_what_is_put_into_a_session_s_directory_before_it_has_a_process_stays() -> None:
    directories = ImaginaryDirectories()
    pool = PoolPolicy()
    async with supervisor_of(agent_of(), directories=directories, pool=pool) as supervisor:
        for _ in range(2):
            _ = await supervisor.start()
        await asyncio.sleep(START_S + 0.1)
        session = await supervisor.start()
        first = session.workspace
        assert first is not None
        await asyncio.sleep(0.1)
        assert session.state is State.STARTING
        directories.files[first] = {"data.csv"}
        _ = await (await session.query("hi")).result()
        assert pool_of(supervisor).hits == 1
        assert session.workspace is not None
        assert session.workspace != first
        assert directories.files[session.workspace] == {"data.csv"}
        assert first not in directories.held


class SlowStore(MemoryStore):
    """Takes its time once it is told to."""

    slow_s = 0.0

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        await asyncio.sleep(self.slow_s)
        await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)


@virtual()
async def test_nobody_gets_a_directory_that_is_stored_as_another_s() -> None:
    store = SlowStore()
    async with supervisor_of(agent_of(), store=store, pool=PoolPolicy()) as supervisor:
        turn = await supervisor.query("hello")
        _ = await turn.result()
        store.slow_s = 2.0
        await asyncio.sleep(1)
        assert pool_of(supervisor).ready == 0
        await asyncio.sleep(2)
        assert pool_of(supervisor).ready == 1
        store.slow_s = 0.0
