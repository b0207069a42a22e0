"""What is stored before a prompt is handed over, and in how many steps: each waits for the disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from session_supervisor import Outcome, PoolPolicy, Quota, Supervisor, Usage, Watchdogs
from session_supervisor.agents.port import Fingerprint
from session_supervisor.agents.scripted import ScriptedAgent, Start
from session_supervisor.agents.scripted.process import ScriptedProcess
from session_supervisor.claims import ClaimKey
from session_supervisor.errors import Unavailable
from session_supervisor.events import Turn
from session_supervisor.messages import OnBusy
from session_supervisor.results import Phase
from session_supervisor.spec import Prompt
from session_supervisor.stores.records import Batch, Found, Lease, SessionRecord
from tests.support.sessions import ImaginaryDirectories, supervisor_of
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

KEY = ClaimKey(key="k", digest="d")
START_S = 0.5


class WatchedStore(HardStore):
    """A store that notes in which steps it was written to, and what turns came to by them."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.steps: list[str] = []

    async def create(self, session: SessionRecord, *, first: Batch | None = None) -> Lease:
        lease = await super().create(session, first=first)
        self._note("created", first or Batch())
        return lease

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)
        self._note("added", batch)

    def _note(self, what: str, batch: Batch) -> None:
        phases = [event.body.phase for event in batch.events if isinstance(event.body, Turn)]
        self.steps.append(" ".join([what, *phases]))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> WatchedStore:
    """A store that notes as well when a prompt is handed over."""
    store, original = WatchedStore(), ScriptedProcess.send

    async def send(process: ScriptedProcess, prompt: Prompt) -> None:
        store.steps.append("handed over")
        await original(process, prompt)

    monkeypatch.setattr(ScriptedProcess, "send", send)
    return store


@asynccontextmanager
async def warm(
    store: WatchedStore, *, agent: ScriptedAgent | None = None, **how: Any
) -> AsyncGenerator[Supervisor]:
    """A supervisor with a process that stands ready, and nothing else."""
    agent = agent or ScriptedAgent(start=Start(delay_s=START_S))
    directories = ImaginaryDirectories()
    async with supervisor_of(
        agent, store=store, directories=directories, pool=PoolPolicy(), **how
    ) as supervisor:
        turn = await supervisor.query("warm up")
        await turn.result()
        await asyncio.sleep(1)
        await supervisor.close(turn.session_id)
        assert ready(supervisor) == 1
        store.steps.clear()
        yield supervisor
    assert agent.live == 0
    assert not directories.held


def ready(supervisor: Supervisor) -> int:
    pool = supervisor.snapshot().pool
    return 0 if pool is None else pool.ready


# -- how often ---------------------------------------------------------------------------------


@virtual()
async def test_a_one_off_with_a_process_at_hand_is_stored_once_before_that_is_asked(
    store: WatchedStore,
) -> None:
    async with warm(store) as supervisor:
        turn = await supervisor.query("hello", claim=KEY)
        await turn.result()
        assert store.steps[:2] == ["created accepted started", "handed over"]
        assert (await supervisor.query("hello", claim=KEY)).turn_id == turn.turn_id


@virtual()
async def test_a_one_off_that_has_to_wait_for_a_process_is_acknowledged_before_it_has_one(
    store: WatchedStore,
) -> None:
    agent = ScriptedAgent(start=Start(delay_s=START_S))
    async with supervisor_of(agent, store=store) as supervisor:
        turn = await supervisor.query("hello")
        assert asyncio.get_running_loop().time() == 0
        await turn.result()
        assert store.steps[:3] == ["created accepted", "added started", "handed over"]


@virtual()
async def test_a_turn_of_a_session_at_rest_is_stored_once_before_the_agent_is_asked(
    store: WatchedStore,
) -> None:
    async with supervisor_of(ScriptedAgent(), store=store) as supervisor:
        session = await supervisor.start()
        await (await session.query("hello")).result()
        for on_busy in OnBusy:
            store.steps.clear()
            turn = await session.query("hello again", on_busy=on_busy)
            assert turn.position == 0
            assert (await turn.result()).outcome is Outcome.COMPLETED
            assert store.steps[:2] == ["added accepted started", "handed over"]


@virtual()
async def test_a_start_that_takes_long_to_be_sure_of_holds_no_acknowledgement_up(
    store: WatchedStore,
) -> None:
    class Slow(ScriptedAgent):
        async def circumstances(self, fingerprint: Fingerprint) -> str:
            await asyncio.sleep(3.0)
            return await super().circumstances(fingerprint)

    async with warm(store, agent=Slow(start=Start(delay_s=START_S))) as supervisor:
        began = asyncio.get_running_loop().time()
        turn = await supervisor.query("hello")
        assert asyncio.get_running_loop().time() - began < 0.1
        assert (await turn.result()).outcome is Outcome.COMPLETED
        assert store.steps[:3] == ["created accepted", "added started", "handed over"]


# -- nothing before it is stored ---------------------------------------------------------------


@virtual()
async def test_nobody_sees_a_one_off_before_it_is_stored(store: WatchedStore) -> None:
    async with warm(store) as supervisor:
        store.acquire_s = 2.0
        asking = asyncio.ensure_future(supervisor.query("hello"))
        await asyncio.sleep(1.9)
        assert not asking.done()
        assert not supervisor.snapshot().sessions
        assert store.steps == []
        turn = await asking
        assert [one.session_id for one in supervisor.snapshot().sessions] == [turn.session_id]
        assert (await turn.result()).outcome is Outcome.COMPLETED


@virtual()
async def test_a_one_off_that_the_store_refuses_leaves_nothing(store: WatchedStore) -> None:
    async with warm(store) as supervisor:
        store.fails.add("acquire")
        with pytest.raises(Unavailable):
            await supervisor.query("hello", claim=KEY, quota=Quota(turns=1))
        assert store.steps == []
        assert not supervisor.snapshot().sessions
        assert supervisor.usage("local") == Usage(sessions=0, turns=0)
        store.fails.clear()
        turn = await supervisor.query("hello", claim=KEY, quota=Quota(turns=1))
        assert not turn.attached
        assert (await turn.result()).outcome is Outcome.COMPLETED


@virtual()
async def test_a_one_off_that_is_stored_too_late_is_undone_before_its_key_is_looked_at(
    store: WatchedStore,
) -> None:
    async with warm(store, watchdogs=Watchdogs(store_s=4.0)) as supervisor:
        store.acquire_s = 8.0
        for _ in range(2):  # the second while it is not known whether it is stored
            began = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable):
                await supervisor.query("hello", claim=KEY)
            assert asyncio.get_running_loop().time() - began == pytest.approx(4.0, abs=0.1)
            store.acquire_s = 0.0
        turn = await supervisor.query("hello", claim=KEY)
        assert not turn.attached
        assert (await turn.result()).outcome is Outcome.COMPLETED
        assert store.steps.count("handed over") == 1
        assert [one.session_id for one in supervisor.snapshot().sessions] == [turn.session_id]
        (kept,) = await store.take_over()
        assert isinstance(kept, Found)
        assert kept.session.session_id == turn.session_id


@virtual()
async def test_a_caller_that_goes_away_leaves_a_one_off_to_its_retry(store: WatchedStore) -> None:
    async with warm(store) as supervisor:
        store.acquire_s = 2.0
        asking = asyncio.ensure_future(supervisor.query("hello", claim=KEY))
        await asyncio.sleep(1)
        asking.cancel()
        retry = await supervisor.query("hello", claim=KEY)
        assert retry.attached
        assert (await retry.result()).outcome is Outcome.COMPLETED
        assert store.steps.count("handed over") == 1


@virtual()
async def test_a_one_off_that_meets_a_drain_while_it_is_stored_is_told_how_it_ended(
    store: WatchedStore,
) -> None:
    agent = ScriptedAgent(start=Start(delay_s=START_S))
    async with supervisor_of(agent, store=store) as supervisor:
        store.acquire_s = 2.0
        asking = asyncio.ensure_future(supervisor.query("hello"))
        await asyncio.sleep(1)
        await supervisor.drain(0.0)
        result = await (await asking).wait()
        assert result.outcome is not Outcome.COMPLETED
        assert "handed over" not in store.steps
    assert agent.live == 0


@virtual()
async def test_whoever_takes_over_knows_that_a_one_off_was_begun_and_where_it_works(
    store: WatchedStore,
) -> None:
    async with warm(store) as supervisor:
        turn = await supervisor.query("hello")
        (kept,) = await store.take_over()  # as the next server would, had this one been killed
        assert isinstance(kept, Found)
        (found,) = kept.open_turns
        assert (found.turn_id, found.phase) == (turn.turn_id, Phase.RUNNING)
        assert kept.session.cwd == str(supervisor.get(turn.session_id).workspace)
