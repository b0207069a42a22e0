"""Stores that fail, and bugs of ours: what was acknowledged stays, and the session goes on."""

# ruff: noqa: ASYNC240

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from session_supervisor import RestartPolicy, Supervisor, SupervisorConfig, Watchdogs
from session_supervisor.agents.scripted import Say, ScriptedAgent, Start, by_prompt
from session_supervisor.claims import ClaimKey
from session_supervisor.clock import Clock
from session_supervisor.errors import (
    AgentMissing,
    Draining,
    SessionFailed,
    SessionNotFound,
    Unavailable,
)
from session_supervisor.events import Event, Gap
from session_supervisor.lifecycle import State
from session_supervisor.messages import CloseReason
from session_supervisor.results import Outcome, Phase
from session_supervisor.session import Session
from session_supervisor.stores.records import Batch
from session_supervisor.stores.sqlite import SqliteStore
from tests.supervisor.test_recovery import KeptDirectories, KeptStore, supervisor_on
from tests.support.sessions import supervisor_of, text_of
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

SLOW = [Say("one two three four", deltas=4, every_s=1.0)]


def now() -> float:
    return asyncio.get_running_loop().time()


def slow_agent() -> ScriptedAgent:
    return ScriptedAgent(by_prompt({"slow": SLOW}))


async def read_all(session: Session, seen: list[Event]) -> None:
    async for event in session.events():
        seen.append(event)  # noqa: PERF401  # looked at while it grows


@virtual()
async def test_a_session_goes_on_after_a_fault_with_all_that_was_acknowledged() -> None:
    store, agent = HardStore(durable=True), slow_agent()
    supervisor = supervisor_on(store, agent)
    async with supervisor:
        session = await supervisor.start()
        earlier = await session.query("before")
        await earlier.result()
        running, waiting = await session.query("slow"), await session.query("later")
        seen: list[Event] = []
        reading = asyncio.ensure_future(read_all(session, seen))
        await asyncio.sleep(2.1)
        store.bad_appends = 1
        result = await running.wait()
        assert session.active
        assert result.outcome is Outcome.LOST
        assert result.failure is not None
        assert result.failure.cause == "server_fault"
        answer = await waiting.result()
        assert answer.text == "You said: later\n\nEarlier you said: before; slow"
        assert (await earlier.result()).outcome is Outcome.COMPLETED
        assert [one.turn_id for one in await session.turns()] == [
            earlier.turn_id,
            running.turn_id,
            waiting.turn_id,
        ]
        assert supervisor.usage("local").turns == 0
        assert agent.forks == 0
        await session.close()
    await reading
    # Whoever read all the time had every number once, and was told of what was lost.
    numbers = [event.seq for event in seen if not isinstance(event.body, Gap)]
    assert numbers == sorted(set(numbers))
    lost = [event for event in seen if event.turn_id == running.turn_id]
    gaps = [event for event in seen if isinstance(event.body, Gap)]
    assert lost[-1].is_terminal
    assert text_of(lost).startswith(result.text)
    assert text_of(lost) == result.text or gaps


@virtual(limit_s=1e5)
async def test_a_store_that_is_ill_for_hours_is_waited_for_and_everybody_is_told() -> None:
    store, agent = HardStore(durable=True), slow_agent()
    async with supervisor_on(store, agent) as supervisor:
        session = await supervisor.start()
        running, waiting = await session.query("slow"), await session.query("later")
        await asyncio.sleep(1.5)
        reading = asyncio.ensure_future(read_all(session, []))
        store.fails |= {"append", "acquire"}
        with pytest.raises(Unavailable):
            await session.query("more")
        await reading  # it ends, though the session does not
        with pytest.raises(Unavailable):
            await running.wait()
        with pytest.raises(Unavailable):
            await waiting.wait()
        assert agent.live == 0
        await asyncio.sleep(10_000)
        with pytest.raises(Unavailable) as caught:
            await session.query("more")
        assert caught.value.retry_after
        with pytest.raises(Unavailable):
            await supervisor.close(session.session_id)
        assert supervisor.usage("local").turns == 0
        store.fails.clear()
        await asyncio.sleep(30)
        lost, later = await session.turns()
        assert (lost.turn_id, later.turn_id) == (running.turn_id, waiting.turn_id)
        assert lost.result is not None
        assert lost.result.outcome is Outcome.LOST
        assert later.result is not None
        assert later.result.outcome is Outcome.COMPLETED
        assert await (await session.turn(running.turn_id)).wait() == lost.result
        assert supervisor.usage("local").turns == 0
        assert (await (await session.query("more")).result()).outcome is Outcome.COMPLETED


@virtual()
async def test_a_drain_waits_for_no_store() -> None:
    store, agent = HardStore(durable=True), slow_agent()
    async with supervisor_on(store, agent) as supervisor:
        session = await supervisor.start()
        await session.query("slow")
        await session.query("later")
        await asyncio.sleep(1.5)
        store.fails |= {"append", "acquire"}
        await asyncio.sleep(5)
        began = now()
        await supervisor.drain(2.0)
        assert now() == began
        assert (await session.ended()).reason is CloseReason.DRAINED
    store.fails.clear()
    async with supervisor_on(store, agent) as second:
        found = second.get(session.session_id)
        await asyncio.sleep(1)
        lost, later = await found.turns()
        assert lost.result is not None
        assert lost.result.outcome is Outcome.LOST
        assert later.result is not None
        assert later.result.outcome is Outcome.COMPLETED


@pytest.mark.parametrize("claim", [None, ClaimKey(key="k", digest="d")])
@virtual()
async def test_a_query_that_was_refused_though_it_was_stored_does_not_run_unasked(
    claim: ClaimKey | None,
) -> None:
    store, agent = HardStore(durable=True), slow_agent()
    watchdogs = Watchdogs(store_s=5.0)
    async with supervisor_on(store, agent, watchdogs=watchdogs) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        store.answer_s = 6.0
        asking = asyncio.ensure_future(session.query("x", claim=claim))
        await asyncio.sleep(1)
        store.answer_s = 0.0
        with pytest.raises(Unavailable):
            await asking
        await asyncio.sleep(1)
        (turn,) = await session.turns()
        assert turn.result is not None
        if claim is None:
            assert turn.result.outcome is Outcome.INTERRUPTED
            assert agent.processes[-1].sent == []
        else:
            assert turn.result.outcome is Outcome.COMPLETED
            assert (await session.query("x", claim=claim)).turn_id == turn.turn_id
        assert supervisor.usage("local").turns == 0


@virtual()
async def test_an_end_that_was_stored_is_not_lost_though_nobody_was_told() -> None:
    class SlowToTell(HardStore):
        async def commit(
            self, session_id: str, *, fence: int, expected_seq: int, batch: Batch
        ) -> None:
            self.answer_s = 6.0 if any(turn.result for turn in batch.turns) else 0.0
            await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)

    store, agent = SlowToTell(durable=True), slow_agent()
    watchdogs = Watchdogs(store_s=5.0)
    async with supervisor_on(store, agent, watchdogs=watchdogs) as supervisor:
        session = await supervisor.start()
        turn = await session.query("slow")
        result = await turn.result()
        assert (result.outcome, result.text) == (Outcome.COMPLETED, "one two three four")
        record = (await session.turns())[0]
        assert record.phase is Phase.ENDED
        assert supervisor.usage("local").turns == 0


@virtual()
async def test_a_session_that_only_ever_meets_a_bug_ends_and_takes_no_other_with_it() -> None:
    class Buggy(KeptStore):
        poison = ""

        async def commit(
            self, session_id: str, *, fence: int, expected_seq: int, batch: Batch
        ) -> None:
            if session_id == self.poison:
                raise LookupError("a bug of ours")
            await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)

    store, agent = Buggy(), slow_agent()
    async with supervisor_on(store, agent, restarts=RestartPolicy(max_restarts=2)) as supervisor:
        session, sibling = await supervisor.start(), await supervisor.start()
        await asyncio.sleep(1)
        store.poison = session.session_id
        for _ in range(2):
            with pytest.raises(Unavailable):
                await session.query("x")
            await asyncio.sleep(1)
        with pytest.raises(Exception, match="closed"):
            await session.query("x")
        assert (await session.ended()).reason is CloseReason.FAULT
        assert (await (await sibling.query("x")).result()).outcome is Outcome.COMPLETED


@virtual(limit_s=1e5)
async def test_what_another_supervisor_has_taken_over_is_left_alone() -> None:
    store, agent = HardStore(durable=True), slow_agent()
    async with supervisor_on(store, agent) as first:
        session = await first.start()
        turn = await session.query("slow")
        await asyncio.sleep(1.5)
        (found,) = await store.take_over()
        with pytest.raises(Draining):
            await turn.wait()
        assert (await session.ended()).reason is CloseReason.FAULT
        await asyncio.sleep(4000)
        with pytest.raises(SessionNotFound):
            first.get(session.session_id)
    batch = Batch(events=())
    await store.commit(
        session.session_id,
        fence=found.lease.fence,
        expected_seq=found.lease.last_seq,
        batch=batch,
    )
    assert await store.turn(session.session_id, turn.turn_id) is not None


@virtual()
async def test_an_end_that_another_supervisor_did_not_let_be_stored_is_told_to_nobody() -> None:
    store = HardStore(durable=True)
    agent = ScriptedAgent(by_prompt({"slow": SLOW}))
    async with supervisor_on(store, agent) as first:
        session = await first.start()
        turn = await session.query("slow")
        await asyncio.sleep(1.6)
        await store.take_over()
        agent.processes[-1].crash()
        with pytest.raises(Draining):
            await turn.wait()
        assert turn.record().result is None
        assert turn.record().phase is Phase.RUNNING


# -- what a kill can leave behind ------------------------------------------------------------


async def kill(supervisor: Supervisor, store: KeptStore, agent: ScriptedAgent) -> None:
    """End a supervisor so that nothing it writes from now on counts."""
    for process in agent.processes:
        if process.exit is None:
            process.crash()
    await store.take_over()
    await supervisor.__aexit__(None, None, None)


class StoppingStore(KeptStore):
    """A store that takes so many commits, and then no more."""

    left = 10**9

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        if self.left <= 0:
            await asyncio.get_running_loop().create_future()
        self.left -= 1
        await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)


@pytest.mark.parametrize("commits", range(8))
@virtual()
async def test_a_one_off_that_was_cut_off_anywhere_ends(commits: int) -> None:
    store, agent = StoppingStore(), slow_agent()
    first = supervisor_on(store, agent)
    await first.__aenter__()
    store.left = commits
    asking = asyncio.ensure_future(first.query("x"))
    await asyncio.sleep(10)
    asking.cancel()
    store.left = 10**9
    await kill(first, store, agent)
    async with supervisor_on(store, agent) as second:
        await asyncio.sleep(1)
        (one,) = second.snapshot().sessions
        assert one.state is State.CLOSED
        for turn in await second.get(one.session_id).turns():
            assert turn.result is not None
        assert second.snapshot().live == 0


@pytest.mark.parametrize("commits", range(6))
@virtual()
async def test_a_session_that_was_cut_off_while_it_failed_is_failed(commits: int) -> None:
    store, agent = StoppingStore(), slow_agent()
    first = supervisor_on(store, agent)
    await first.__aenter__()
    agent.start = Start(delay_s=5.0, error=AgentMissing("gone"))
    session = await first.start()
    turns = [await session.query("x") for _ in range(3)]
    store.left = commits
    await asyncio.sleep(10)
    store.left = 10**9
    await kill(first, store, agent)
    async with supervisor_on(store, agent) as second:
        await asyncio.sleep(10)
        found = second.get(session.session_id)
        for turn in turns:
            assert (await (await found.turn(turn.turn_id)).wait()).outcome is Outcome.FAILED
        assert found.state is State.FAILED
        with pytest.raises(SessionFailed):
            await found.query("x")
        assert second.usage("local").sessions == 0
        assert (await found.close()).reason is CloseReason.REQUESTED


@virtual()
async def test_a_session_whose_end_by_a_fault_was_cut_off_is_closed_with_all_its_turns() -> None:
    store, agent = KeptStore(), slow_agent()
    async with supervisor_on(store, agent) as first:
        session = await first.start()
        turn = await session.query("slow")
        await asyncio.sleep(1)
        await kill(first, store, agent)
    (found,) = await store.take_over()
    await store.commit(
        session.session_id,
        fence=found.lease.fence,
        expected_seq=found.lease.last_seq,
        batch=Batch(session=dataclasses.replace(found.session, state=State.CLOSED)),
    )
    async with supervisor_on(store, agent) as second:
        await asyncio.sleep(1)
        again = second.get(session.session_id)
        assert again.state is State.CLOSED
        assert (await (await again.turn(turn.turn_id)).wait()).outcome is Outcome.LOST
        assert second.usage("local").turns == 0


@virtual(limit_s=1e5)
async def test_a_session_that_ended_long_before_a_restart_is_not_kept_for_longer() -> None:
    store, agent = KeptStore(), slow_agent()
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    clock = Clock(now=lambda: begin + timedelta(seconds=now()))
    directories = KeptDirectories()
    async with supervisor_of(agent, store=store, clock=clock, directories=directories) as first:
        session = await first.start()
        await session.close()
        await asyncio.sleep(3000)
    async with supervisor_of(agent, store=store, clock=clock, directories=directories) as second:
        assert second.get(session.session_id).state is State.CLOSED
        await asyncio.sleep(601)
        with pytest.raises(SessionNotFound):
            second.get(session.session_id)


# -- private directories ---------------------------------------------------------------------


def test_private_directories_outlive_a_supervisor_with_a_store_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    database = tmp_path / "sessions.db"

    def mine() -> Iterable[Path]:
        return tmp_path.glob("session-supervisor-*/*/note")

    async def work() -> None:
        async with Supervisor(ScriptedAgent()) as supervisor:
            session = await supervisor.start()
            await (await session.query("x")).result()
            (root,) = tmp_path.glob("session-supervisor-*")
        assert not root.exists()
        agent = ScriptedAgent()
        async with Supervisor(agent, store=SqliteStore(database)) as first:
            session = await first.start()
            await (await session.query("x")).result()
            cwd = Path(agent.processes[-1].fingerprint.cwd)
            (cwd / "note").write_text("kept")
        assert list(mine()) == [cwd / "note"]
        async with Supervisor(agent, store=SqliteStore(database)) as second:
            found = second.get(session.session_id)
            (cwd / "note").unlink()
            cwd.rmdir()
            await (await found.query("x")).result()
            assert cwd.is_dir(), "it was not made again"
            assert cwd.stat().st_mode & 0o777 == 0o700
            await second.close(found.session_id)
            assert not cwd.exists()

    asyncio.run(work())


def test_a_supervisor_that_kept_nothing_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def work() -> None:
        store = SqliteStore(tmp_path / "sessions.db")
        async with Supervisor(ScriptedAgent(), store=store, config=SupervisorConfig()) as first:
            await first.close((await first.start()).session_id)

    asyncio.run(work())
    assert list(tmp_path.glob("session-supervisor-*")) == []


@pytest.mark.parametrize("earlier", [False, True])
@virtual()
async def test_an_agent_that_stored_as_little_as_the_store_has_another_conversation(
    earlier: bool,
) -> None:
    store, agent = HardStore(durable=True), slow_agent()
    async with supervisor_on(store, agent) as supervisor:
        session = await supervisor.start()
        if earlier:
            await (await session.query("before")).result()
        running = await session.query("slow")
        await asyncio.sleep(2.1)
        conversation = (await session.inspect()).agent_session_id
        assert conversation is not None
        agent.lose(conversation)
        store.bad_appends = 1
        assert (await running.wait()).outcome is Outcome.LOST
        result = await (await session.query("later")).wait()
        # What completed may not be forgotten in silence; what was lost may be.
        assert session.active is not earlier
        assert result.text == ("" if earlier else "You said: later")
