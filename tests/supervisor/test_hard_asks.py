"""What can go wrong where humans are asked, settings change and money is spent; on virtual time."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from dataclasses import replace
from datetime import timedelta

import pytest

from session_supervisor import Quota, State
from session_supervisor.agents.port import (
    Exit,
    Fingerprint,
    TurnBegan,
    TurnEnded,
    UpstreamLimit,
)
from session_supervisor.agents.scripted import ScriptedAgent, UseTool, by_prompt
from session_supervisor.asks import (
    Allow,
    Answers,
    Deny,
    Request,
    RequestKind,
    Resolution,
    Rule,
    weight,
)
from session_supervisor.clock import Clock
from session_supervisor.config import Retention
from session_supervisor.errors import (
    BudgetExceeded,
    CannotChange,
    NotQueued,
    RequestNotFound,
    RequestOver,
    Spoiled,
    StoreError,
    TurnNotFound,
    Unavailable,
)
from session_supervisor.pacing import Pacing
from session_supervisor.requests import with_rules
from session_supervisor.results import Outcome, TurnRecord
from tests.supervisor.test_recovery import KeptDirectories, KeptStore
from tests.supervisor.test_requests import ask, asking, pending
from tests.support.manual import ManualAgent, ManualProcess
from tests.support.sessions import supervising
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

LONG_S = 1e300


class Unreadable(KeptStore):
    """A store whose past cannot be read, or not for long."""

    def __init__(self, read_s: float = 0.0) -> None:
        super().__init__()
        self.read_s = read_s
        self.damaged = False

    async def request(self, session_id: str, request_id: str) -> Request | None:
        await self._read()
        return await super().request(session_id, request_id)

    async def turn(self, session_id: str, turn_id: str) -> TurnRecord | None:
        await self._read()
        return await super().turn(session_id, turn_id)

    async def _read(self) -> None:
        if self.damaged:
            await asyncio.sleep(self.read_s)
            raise Spoiled("a row", "it is damaged")


# -- what is read for somebody -----------------------------------------------------------------


@virtual()
async def test_a_past_that_cannot_be_read_takes_no_running_turn_with_it() -> None:
    store = Unreadable()
    async with asking(store=store, directories=KeptDirectories()) as (_, session, agent):
        turn = await ask(session, "make")
        request = await pending(session)
        store.damaged = True
        with pytest.raises((StoreError, Unavailable)):
            await session.decide("another", Allow())
        with pytest.raises((StoreError, Unavailable)):
            await session.withdraw("another")
        assert session.snapshot().state is State.WAITING
        await session.decide(request.request_id, Allow())
        assert (await turn.wait()).outcome is Outcome.COMPLETED
        assert agent.spawned == 1


@virtual()
async def test_a_past_that_is_read_slowly_keeps_no_answer_back() -> None:
    store = Unreadable(read_s=1_000.0)
    async with asking(store=store, directories=KeptDirectories()) as (_, session, _):
        turn = await ask(session, "make")
        request = await pending(session)
        store.damaged = True
        deciding = asyncio.ensure_future(session.decide("another", Allow()))
        withdrawing = asyncio.ensure_future(session.withdraw("another"))
        await asyncio.sleep(1.0)
        async with asyncio.timeout(10.0):
            await session.decide(request.request_id, Allow())
            assert (await turn.wait()).outcome is Outcome.COMPLETED
        deciding.cancel()
        withdrawing.cancel()
        await asyncio.gather(deciding, withdrawing, return_exceptions=True)


@virtual()
async def test_who_comes_too_late_is_still_told_what_there_was() -> None:
    async with asking() as (_, session, _):
        turn = await ask(session, "make")
        request = await pending(session)
        await session.decide(request.request_id, Deny())
        await turn.wait()
        with pytest.raises(RequestOver, match="it was denied"):
            await session.decide(request.request_id, Allow())
        with pytest.raises(NotQueued):
            await session.withdraw(turn.turn_id)
        with pytest.raises(TurnNotFound):
            await session.withdraw("another")
        with pytest.raises(RequestNotFound):
            await session.decide("another", Allow())


# -- time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [LONG_S, float("inf")])
@virtual()
async def test_a_human_may_have_longer_than_there_are_dates(timeout_s: float) -> None:
    async with asking() as (_, session, _):
        turn = await ask(session, "make", permission_timeout_s=timeout_s)
        request = await pending(session)
        await session.decide(request.request_id, Allow())
        assert (await turn.wait()).outcome is Outcome.COMPLETED


# -- money -------------------------------------------------------------------------------------


class Confessing(ManualProcess):
    """Says what its turn has cost when it is stopped, as the CLI does."""

    async def stop(self) -> Exit:
        if self.exit is None and self.sent:
            ids = (self.sent[-1].prompt_id,)
            self.say(TurnEnded(prompt_ids=ids, interrupted=True, cost_usd=0.75))
        return await super().stop()


class ConfessingAgent(ManualAgent):
    async def spawn(self, fingerprint: Fingerprint, *, resume: str | None = None) -> ManualProcess:
        self.fingerprints.append(fingerprint)
        self.processes.append(Confessing(self))
        return self.processes[-1]


@pytest.mark.parametrize("how", ["close", "once", "drain"])
@virtual()
async def test_closing_before_the_end_does_not_save_the_money(how: str) -> None:
    store, agent = KeptStore(), ConfessingAgent()
    async with supervising(agent, store=store, directories=KeptDirectories()) as supervisor:
        if how == "once":
            turn = await supervisor.query("go", owner="alice")
        else:
            session = await supervisor.start(owner="alice")
            turn = await session.query("go")
        await asyncio.sleep(1.0)
        agent.processes[0].say(TurnBegan(prompt_ids=(turn.turn_id,)))
        await asyncio.sleep(1.0)
        if how == "drain":
            await supervisor.drain(0.0)
        else:
            await supervisor.close(turn.session_id)
        assert supervisor.spent("alice") == 0.75
        if how != "drain":
            with pytest.raises(BudgetExceeded):
                await supervisor.query("go", owner="alice", quota=Quota(budget_usd=0.5))
    assert dict(await store.spending()) == {"alice": 0.75}


# -- settings ----------------------------------------------------------------------------------


@virtual()
async def test_a_turn_that_follows_a_change_does_not_run_in_a_process_without_it() -> None:
    agent = ManualAgent()
    agent.configure_error = CannotChange("no")
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        first = await session.query("first")
        await asyncio.sleep(1.0)
        process = agent.processes[0]
        process.say(TurnBegan(prompt_ids=(first.turn_id,)))
        await session.configure(model="other")
        await asyncio.sleep(1.0)
        second = await session.query("second")
        # It says more than what ends its turn, which is not heard yet when the next one could go.
        process.say(TurnEnded(prompt_ids=(first.turn_id,)), *[UpstreamLimit(rejected=False)] * 200)
        await first.wait()
        await asyncio.sleep(1.0)
        assert [prompt.text for prompt in process.sent] == ["first"]
        assert [one.model for one in agent.fingerprints] == [None, "other"]
        agent.processes[1].say_turn(second.turn_id, "done")
        await second.wait()
        for one in agent.processes:
            one.die()


@virtual()
async def test_a_change_that_is_refused_is_not_made() -> None:
    store = HardStore(durable=True)
    async with asking(store=store, directories=KeptDirectories()) as (_, session, _):
        await (await ask(session, "hello")).wait()
        store.bad_appends = 1
        with pytest.raises(Unavailable):
            await session.configure(permission_mode="acceptEdits", title="new")
        await asyncio.sleep(60.0)
        assert session.snapshot().permission_mode == "default"
        assert session.snapshot().title is None


# -- what is kept ------------------------------------------------------------------------------


def test_what_a_human_said_counts_as_much_as_what_was_asked() -> None:
    asked = Request(
        request_id="r",
        session_id="s",
        turn_id=None,
        kind=RequestKind.QUESTION,
        tool="AskUserQuestion",
        tool_use_id="t",
        asked_at=Clock().now(),
    )
    words = "x" * 10_000
    for decision in (Answers(answers={"?": (words,)}), Deny(message=words)):
        assert weight(replace(asked, decision=decision)) >= 10_000


@virtual(limit_s=1_000_000.0)
async def test_nothing_is_left_of_two_thousand_requests() -> None:
    agent = ScriptedAgent(by_prompt({"go": [UseTool("Bash", asks=True)] * 250}))
    retention = Retention(events=500, turns=2, requests=10)
    async with supervising(agent, on_permission="ask", retention=retention) as supervisor:
        session = await supervisor.start()

        async def ask_and_answer(turns: int) -> None:
            for _ in range(turns):
                turn = await ask(session, "go")
                while turn.record().ended_at is None:
                    for request in await session.requests(pending=True):
                        await session.decide(request.request_id, Allow())
                    await asyncio.sleep(0.01)
            agent.processes[0].answers.clear()  # the only one that remembers them all

        tracemalloc.start()
        try:
            await ask_and_answer(turns=3)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            await ask_and_answer(turns=8)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(await session.requests()) == 10
        assert after - before < 50 * 2_000


def test_a_session_remembers_so_many_rules_and_no_more() -> None:
    rules: tuple[Rule, ...] = ()
    for n in range(1_010):
        rules = with_rules(rules, [Rule(tool="Bash", content=str(n))])
    assert len(rules) == 1_000
    assert rules[-1] == Rule(tool="Bash", content="1009")


@virtual()
async def test_what_was_left_open_by_a_session_that_closed_is_lost() -> None:
    store = KeptStore()
    async with asking(store=store, directories=KeptDirectories()) as (_, session, _):
        await ask(session, "make")
        request = await pending(session)
    # As a store leaves it that fails at the end.
    kept = store._kept[session.session_id]  # pyright: ignore[reportPrivateUsage]
    kept.record = replace(kept.record, state=State.CLOSED)
    kept.requests = {request.request_id: request}
    kept.weights.clear()
    async with asking(store=store, directories=KeptDirectories()):
        await asyncio.sleep(1.0)
        (over,) = await store.requests(session.session_id)
        assert over.resolution is Resolution.LOST


# -- the upstream ------------------------------------------------------------------------------


def test_a_limit_of_one_model_is_not_for_all() -> None:
    clock = Clock()
    pacing = Pacing(clock)
    resets_at = clock.now() + timedelta(days=5)
    pacing.hear("alice", UpstreamLimit(rejected=True, resets_at=resets_at, of_one_model=True))
    pacing.check("alice")
