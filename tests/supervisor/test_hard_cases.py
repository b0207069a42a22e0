"""What comes at the same moment, too late or only once in a year: stores, clocks, timers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest

from session_supervisor import RestartPolicy, Supervisor, SupervisorConfig, Watchdogs
from session_supervisor.agents.port import AgentMessage, BackgroundWork, ToolStarted, TurnBegan
from session_supervisor.agents.scripted import (
    BeginAlone,
    Conversation,
    Manners,
    Say,
    ScriptedAgent,
    Start,
    Step,
    by_prompt,
)
from session_supervisor.claims import ClaimKey
from session_supervisor.clock import Clock
from session_supervisor.errors import Draining, SessionNotFound, StoreError, Unavailable
from session_supervisor.events import Event, Gap, Status, end_of
from session_supervisor.lifecycle import State
from session_supervisor.messages import InterruptOutcome
from session_supervisor.quotas import Usage
from session_supervisor.results import Outcome, TurnRecord
from session_supervisor.session import Session, TurnHandle
from session_supervisor.spec import Prompt
from session_supervisor.stores.records import Batch
from session_supervisor.stores.sqlite import SqliteStore
from tests.supervisor.test_recovery import KeptDirectories, KeptStore, supervisor_on, whole_log
from tests.support.manual import ManualAgent
from tests.support.sessions import bodies, supervisor_of
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

T = TypeVar("T")

SLOW = [Say("one two three four", deltas=4, every_s=1.0)]
KEY = ClaimKey(key="k", digest="d")


def slow_agent() -> ScriptedAgent:
    return ScriptedAgent(by_prompt({"slow": SLOW}))


# -- stores -----------------------------------------------------------------------------------


@virtual()
async def test_readers_hear_of_an_end_that_the_store_took_too_late() -> None:
    class SlowToTell(HardStore):
        async def commit(
            self, session_id: str, *, fence: int, expected_seq: int, batch: Batch
        ) -> None:
            self.answer_s = 6.0 if any(turn.result for turn in batch.turns) else 0.0
            await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)

    store, watchdogs = SlowToTell(durable=True), Watchdogs(store_s=5.0)
    async with supervisor_on(store, slow_agent(), watchdogs=watchdogs) as supervisor:
        session = await supervisor.start()
        turn = await session.query("slow")
        async with asyncio.timeout(60):
            seen = [event async for event in turn]
        assert seen[-1].is_terminal


@virtual()
async def test_a_start_that_cannot_read_what_is_stored_fails_and_does_not_hang() -> None:
    class Unreadable(KeptStore):
        broken = False

        async def read(self, session_id: str, *, after: int, limit: int) -> Sequence[Event]:
            if self.broken:
                raise StoreError("a bad block")
            return await super().read(session_id, after=after, limit=limit)

    store, agent = Unreadable(), slow_agent()
    first = supervisor_on(store, agent)
    await first.__aenter__()
    session = await first.start()
    await session.query("slow")
    await asyncio.sleep(1.5)
    for process in agent.processes:
        process.crash()
    await store.take_over()
    await first.__aexit__(None, None, None)
    store.broken = True
    with pytest.raises(StoreError, match="bad block"):
        async with asyncio.timeout(60):
            await supervisor_on(store, agent).__aenter__()


@virtual()
async def test_what_a_killed_server_had_begun_is_not_run_again_though_its_end_is_not_stored() -> (
    None
):
    class Kept(KeptStore, HardStore):
        """A store that fails, and outlives its server."""

    ran: list[str] = []

    def script(prompt: Prompt, _conversation: Conversation) -> Sequence[Step]:
        ran.append(prompt.text)
        return SLOW

    store, agent = Kept(durable=True), ScriptedAgent(script)
    first = supervisor_on(store, agent)
    await first.__aenter__()
    session = await first.start()
    turn = await session.query("slow")
    await asyncio.sleep(1.5)
    for process in agent.processes:
        process.crash()
    await store.take_over()
    await first.__aexit__(None, None, None)
    store.bad_appends = 1
    async with supervisor_on(store, agent) as second:
        found = await second.get(session.session_id).turn(turn.turn_id)
        assert (await found.wait()).outcome is Outcome.LOST
        await asyncio.sleep(10)
        assert not store.bad_appends
    assert ran == ["slow"]


@pytest.mark.parametrize("how", ["fails", "hangs"])
@virtual()
async def test_an_interrupt_does_no_harm_though_the_store_cannot_be_read(how: str) -> None:
    class Unreadable(HardStore):
        async def turn(self, session_id: str, turn_id: str) -> TurnRecord | None:
            if how == "fails":
                raise StoreError("a bad block")
            await asyncio.get_running_loop().create_future()
            raise AssertionError

    async with supervisor_on(Unreadable(durable=True), slow_agent()) as one:
        session = await one.start()
        turn = await session.query("slow")
        await asyncio.sleep(1.5)
        unknown = "3e2a6a1e-6f0c-4a52-9b5b-6a4f4b8f1f11"
        asking = asyncio.ensure_future(session.interrupt(turn_id=unknown))
        assert (await turn.wait()).outcome is Outcome.COMPLETED
        if how == "fails":
            with pytest.raises(Unavailable):
                await asking
        asking.cancel()


@virtual()
async def test_a_single_fault_makes_nobody_wait_in_vain_whatever_the_jitter() -> None:
    store, agent = HardStore(durable=True), slow_agent()
    supervisor = Supervisor(
        agent,
        store=store,
        config=SupervisorConfig(restarts=RestartPolicy(jitter=0.2)),
        workspaces=KeptDirectories(),
        random=lambda: 0.9,
    )
    async with supervisor:
        session = await supervisor.start()
        turn = await session.query("slow")
        await asyncio.sleep(1.6)
        store.bad_appends = 1
        assert (await turn.wait()).outcome is Outcome.LOST


@virtual()
async def test_a_retry_finds_no_session_that_is_about_to_be_undone() -> None:
    store = HardStore(durable=True)
    watchdogs = Watchdogs(store_s=5.0)
    async with supervisor_on(store, slow_agent(), watchdogs=watchdogs) as supervisor:
        store.acquire_s, store.erase_s = 8.0, 4.0
        with pytest.raises(Unavailable):
            await supervisor.start(claim=KEY)
        store.acquire_s = 0.0
        await asyncio.sleep(4.0)  # by now it is there, and not yet erased
        async with asyncio.timeout(60):
            session = await supervisor.start(claim=KEY)
        assert not session.attached
        assert (await (await session.query("x")).result()).outcome is Outcome.COMPLETED
        assert (await supervisor.start(claim=KEY)).session_id == session.session_id


# -- clocks and timers ------------------------------------------------------------------------


@virtual(limit_s=1e6)
async def test_a_clock_that_is_set_back_puts_off_no_expiry() -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    back = timedelta()
    loop = asyncio.get_running_loop()
    clock = Clock(now=lambda: begin + timedelta(seconds=loop.time()) - back)
    async with supervisor_of(slow_agent(), clock=clock, expiry_s=100.0) as supervisor:
        session = await supervisor.start()
        await (await session.query("x")).result()
        back = timedelta(days=1)
        await session.hibernate()
        await asyncio.sleep(1)
        await session.wake()
        await asyncio.sleep(110)
        assert session.state is State.CLOSED


@pytest.mark.parametrize(
    "messages",
    [
        [TurnBegan(prompt_ids=())],
        [
            ToolStarted(tool_use_id="t", name="Task", input={}, parent_tool_use_id="p"),
            BackgroundWork(pending=1),
        ],
    ],
    ids=["a turn of its own", "work in the background"],
)
@virtual()
async def test_a_session_whose_agent_begins_something_at_that_moment_does_not_expire(
    messages: list[AgentMessage],
) -> None:
    agent, store = ManualAgent(), HardStore()
    async with supervisor_of(agent, store=store, expiry_s=100.0) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(99.8)
        store.append_s = 1.0  # until after it is due
        agent.processes[0].say(*messages)
        await asyncio.sleep(10)
        assert session.active


# -- between drain and exit -------------------------------------------------------------------


@virtual()
async def test_a_session_that_goes_on_is_not_said_to_be_closed_after_a_drain() -> None:
    store = KeptStore()
    async with supervisor_on(store, slow_agent()) as supervisor:
        session, slow = await supervisor.start(), await supervisor.start()
        await (await session.query("x")).result()
        await slow.query("slow")
        await asyncio.sleep(1)
        await supervisor.drain(0.5)
        for one in (session, slow):
            assert one.state is State.HIBERNATED
            assert one.snapshot().state is State.HIBERNATED
            assert one.active
            with pytest.raises(Draining):
                await one.query("y")
            with pytest.raises(Draining):
                await supervisor.close(one.session_id)
        assert set(supervisor.list()) == {session, slow}


@virtual()
async def test_a_drain_tells_nothing_in_the_log_of_a_session_that_sleeps_on() -> None:
    store, agent = KeptStore(), slow_agent()
    async with supervisor_on(store, agent) as first:
        session = await first.start()
        await (await session.query("x")).result()
        await session.hibernate()
        await asyncio.sleep(1)
        asleep = session.snapshot().last_seq
    async with supervisor_on(store, agent) as second:
        assert second.get(session.session_id).snapshot().last_seq == asleep
        await (await second.get(session.session_id).query("y")).result()
    async with supervisor_on(store, agent) as third:
        log = await third.get(session.session_id).events().read(1_000)
        told = [body.state for body in bodies(log) if isinstance(body, Status)]
        assert "closing" not in told
        assert told[-1] == "hibernated"


# -- room for processes -----------------------------------------------------------------------


@virtual(limit_s=1e4)
async def test_sessions_that_never_rest_let_others_have_a_turn() -> None:
    agent = slow_agent()
    async with supervisor_of(agent, max_live=2) as supervisor:
        busy = [await supervisor.start() for _ in range(2)]
        asked = 0

        async def ask_always(session: Session) -> None:
            nonlocal asked
            while True:
                turns = [await session.query("slow") for _ in range(4)]
                asked += len(turns)
                # There is always one more than it has answered.
                await turns[-2].result()

        asking = [asyncio.ensure_future(ask_always(session)) for session in busy]
        await asyncio.sleep(10)
        late = [await supervisor.start() for _ in range(3)]
        began = asyncio.get_running_loop().time()
        for turn in [await session.query("x") for session in late]:
            assert (await turn.result()).outcome is Outcome.COMPLETED
        assert asyncio.get_running_loop().time() - began < 60
        spawned = agent.spawned
        before = asked
        await asyncio.sleep(100)
        assert asked > before + 8
        assert agent.spawned <= spawned + 2, "with enough room nobody yields"
        for each in asking:
            each.cancel()
    assert agent.most_live == 2
    assert agent.forks == 0


@virtual()
async def test_one_that_leaves_still_does_though_it_is_asked_something_meanwhile() -> None:
    agent = ScriptedAgent(by_prompt({"slow": SLOW}), manners=Manners(stop_s=5.0))
    async with supervisor_of(agent, max_live=2) as supervisor:
        first, second = await supervisor.start(), await supervisor.start()
        await asyncio.sleep(1)
        third = await supervisor.start()
        await asyncio.sleep(1)
        assert (first.state, second.state) == (State.HIBERNATING, State.IDLE)
        turn = await first.query("x")
        await asyncio.sleep(1)
        assert second.state is State.IDLE, "one is enough"
        assert (await turn.result()).outcome is Outcome.COMPLETED
        assert third.state is not State.STARTING


# -- a stall at every commit ------------------------------------------------------------------


class StallingStore(KeptStore):
    """A store of which one commit takes too long, before or after it is done."""

    def __init__(self, *, stall_at: int, done: bool) -> None:
        super().__init__()
        self._left, self._done = stall_at, done

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        self._left -= 1
        if self._left == -1 and not self._done:
            await asyncio.sleep(1000)
        await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)
        if self._left == -1:
            await asyncio.sleep(1000)


async def told_in_full(turn: TurnHandle) -> list[Event]:
    return [event async for event in turn]


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stall_at", range(24))
@virtual()
async def test_whoever_was_told_yes_hears_of_one_end_wherever_the_store_stalls(
    stall_at: int, done: bool
) -> None:
    store, agent = StallingStore(stall_at=stall_at, done=done), slow_agent()
    watchdogs = Watchdogs(store_s=5.0)
    async with supervisor_on(store, agent, watchdogs=watchdogs) as supervisor:
        session = await supervisor.start(claim=KEY)
        turns: list[TurnHandle] = []
        readers: list[asyncio.Future[list[Event]]] = []

        async def ask(prompt: str) -> None:
            for attempt in range(20):
                claim = ClaimKey(key=prompt, digest="d")
                with suppress(Unavailable):
                    turn = await session.query(prompt, claim=claim)
                    turns.append(turn)
                    readers.append(asyncio.ensure_future(told_in_full(turn)))
                    return
                await asyncio.sleep(0.5)
                assert attempt < 19

        for prompt in ("slow", "b", "c"):
            await ask(prompt)
        await asyncio.sleep(30)
        with suppress(Unavailable):
            await session.hibernate()
        await asyncio.sleep(30)
        await ask("d")
        async with asyncio.timeout(100):
            told = await asyncio.gather(*readers)
        results = [await turn.wait() for turn in turns]
        for events, result in zip(told, results, strict=True):
            (end,) = [event for event in events if event.is_terminal]
            assert end.body == end_of(result)
        lost = [result for result in results if result.outcome is not Outcome.COMPLETED]
        assert len(lost) <= 1
        assert all(result.outcome is Outcome.LOST for result in lost)
        sent = [prompt.prompt_id for process in agent.processes for prompt in process.sent]
        assert len(sent) == len(set(sent)), "a prompt was sent twice"
        assert len(await session.turns()) == 4
        assert supervisor.usage("local").turns == 0
        log = await whole_log(supervisor, session.session_id)
        numbers = [event.seq for event in log if not isinstance(event.body, Gap)]
        assert numbers == sorted(set(numbers))


# -- callers that give up ---------------------------------------------------------------------


@pytest.mark.parametrize("after_s", [n * 0.05 for n in range(14)])
@virtual()
async def test_a_caller_that_gives_up_at_any_moment_and_comes_back_has_its_work_once(
    after_s: float,
) -> None:
    store, agent = HardStore(durable=True), slow_agent()
    async with supervisor_on(store, agent) as supervisor:
        store.append_s = store.acquire_s = store.erase_s = store.answer_s = 0.1

        async def twice(work: Callable[[], Awaitable[T]]) -> T:
            async def first() -> None:
                await work()

            given_up = asyncio.ensure_future(first())
            await asyncio.sleep(after_s)
            given_up.cancel()
            return await work()

        session = await twice(lambda: supervisor.start(claim=KEY))
        turn = await twice(lambda: session.query("a", claim=ClaimKey(key="a", digest="d")))
        assert (await turn.result()).outcome is Outcome.COMPLETED
        one = await twice(lambda: supervisor.query("b", claim=ClaimKey(key="b", digest="d")))
        assert (await one.result()).outcome is Outcome.COMPLETED
        assert [one.turn_id for one in await session.turns()] == [turn.turn_id]
        await asyncio.sleep(5)
        assert len(supervisor.list()) == 1
        assert [prompt.text for process in agent.processes for prompt in process.sent] == ["a", "b"]
        assert supervisor.usage("local") == Usage(sessions=1, turns=0)
        await twice(lambda: close_it(supervisor, session))
        assert supervisor.usage("local") == Usage(sessions=0, turns=0)
        assert await store.turns(session.session_id) == []


async def close_it(supervisor: Supervisor, session: Session) -> None:
    with suppress(SessionNotFound):
        await supervisor.close(session.session_id)


@virtual()
async def test_a_callers_time_limit_holds_after_a_fault_and_under_the_next_supervisor() -> None:
    store = HardStore(durable=True)
    agent = ScriptedAgent(by_prompt({"slow": SLOW}), start=Start(delay_s=50.0))
    async with supervisor_on(store, agent) as first:
        session = await first.start()
        turn, later = [await session.query("x", timeout_s=limit) for limit in (10.0, 30.0)]
        await asyncio.sleep(5)
        store.bad_appends = 1
        with suppress(Unavailable):
            await session.query("y")
        assert (await turn.wait()).outcome is Outcome.FAILED
        assert asyncio.get_running_loop().time() < 20
    async with supervisor_on(store, agent) as second:
        began = asyncio.get_running_loop().time()
        found = await second.get(session.session_id).turn(later.turn_id)
        assert (await found.wait()).failure is not None
        assert asyncio.get_running_loop().time() == began + 30


@virtual()
async def test_an_interrupt_that_comes_too_late_for_its_turn_still_takes_out_what_waits() -> None:
    async with supervisor_of(slow_agent()) as supervisor:
        session = await supervisor.start()
        ended = await session.query("x")
        await ended.result()
        running, waiting = [await session.query("slow") for _ in range(2)]
        await asyncio.sleep(1)
        found = await session.interrupt(turn_id=ended.turn_id, queued=True)
        assert found.turn_ids == (waiting.turn_id,)
        assert (await running.wait()).outcome is Outcome.COMPLETED
        alone = await session.interrupt(turn_id=ended.turn_id)
        assert alone.outcome is InterruptOutcome.NOTHING_RUNNING


def test_a_session_whose_rows_are_damaged_fails_alone(tmp_path: Path) -> None:
    async def work() -> None:
        async with Supervisor(slow_agent(), store=SqliteStore(tmp_path / "sessions.db")) as one:
            damaged, *sound = [await one.start() for _ in range(9)]
            await (await damaged.query("x")).result()
            with closing(sqlite3.connect(tmp_path / "sessions.db")) as other, other:
                # A row that is in the way of the next.
                other.execute(
                    "INSERT INTO runs (session_id, first_seq, last_seq, weight, record) "
                    "SELECT session_id, 1, last_seq + 1, 0, x'00' FROM sessions "
                    "WHERE session_id = ?",
                    (damaged.session_id,),
                )
            asking = asyncio.ensure_future(damaged.query("y"))
            for turn in await asyncio.gather(*(each.query("x") for each in sound)):
                assert (await turn.result()).outcome is Outcome.COMPLETED
            with pytest.raises(Unavailable):
                await asking

    asyncio.run(work())


@virtual()
async def test_an_end_that_comes_after_a_drain_has_begun_is_told_only_once_it_is_stored() -> None:
    store = HardStore(durable=True)
    agent = ScriptedAgent(by_prompt({"slow": SLOW}), start=Start(delay_s=50.0))
    async with supervisor_on(store, agent) as first:
        session = await first.start()
        turn = await session.query("x")
        waiting = asyncio.ensure_future(turn.wait())
        await asyncio.sleep(1)
        store.append_s = 0.1
        interrupting = asyncio.ensure_future(session.interrupt())
        await asyncio.sleep(0)
        store.fails.add("append")
        await first.drain(0.0)
        with pytest.raises(Draining):
            await waiting
        assert turn.record().result is None
        with pytest.raises((Draining, Unavailable)):
            await interrupting


@virtual()
async def test_a_process_that_hangs_with_work_in_the_background_does_not_keep_its_room() -> None:
    agent = ScriptedAgent(by_prompt({"job": [BeginAlone(5.0, [Say("done")]), Say("started")]}))
    async with supervisor_of(agent, max_live=1) as supervisor:
        first = await supervisor.start()
        await (await first.query("job")).result()
        agent.processes[0].freeze()
        second = await supervisor.start()
        async with asyncio.timeout(60):
            assert (await (await second.query("x")).result()).outcome is Outcome.COMPLETED
