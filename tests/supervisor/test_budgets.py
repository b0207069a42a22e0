"""No turn begins where all that may be spent has been; on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_supervisor import Outcome, Quota, Session, State, TurnHandle, Usage
from session_supervisor.agents.scripted import (
    BeginAlone,
    Conversation,
    Crash,
    Manners,
    Pause,
    Say,
    ScriptedAgent,
    Step,
)
from session_supervisor.errors import (
    BudgetExceeded,
    FailureCode,
    InvalidSpec,
    Refused,
    StoreError,
    TurnFailed,
)
from session_supervisor.spec import Prompt, SessionSpec
from tests.supervisor.test_recovery import KeptDirectories, KeptStore, supervisor_on
from tests.support.sessions import supervising
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

PRICE = 0.25


def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    del conversation
    match prompt.text:
        case "slow":
            yield Pause(10.0)
        case "crash":
            yield Crash()
        case "job":
            yield BeginAlone(1.0, [Say("by itself")])
        case _:
            pass
    yield Say(prompt.text)


def agent() -> ScriptedAgent:
    return ScriptedAgent(script, manners=Manners(turn_cost_usd=PRICE))


def budget(turns: int) -> Quota:
    """Return a quota that so many turns use up."""
    return Quota(budget_usd=turns * PRICE)


async def ask(session: Session, prompt: str = "a", **more: Any) -> None:
    await (await session.query(prompt, **more)).result()


# -- of a session ------------------------------------------------------------------------------


@virtual()
async def test_a_session_that_has_spent_its_budget_takes_no_further_turn() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(SessionSpec(max_budget_usd=2 * PRICE), owner="alice")
        await ask(session)
        await ask(session)
        with pytest.raises(BudgetExceeded) as refused:
            await ask(session)
        assert (refused.value.budget_usd, refused.value.spent_usd) == (2 * PRICE, 2 * PRICE)
        with pytest.raises(BudgetExceeded):
            await session.compact()
        assert supervisor.usage("alice") == Usage(sessions=1, turns=0)
        await ask(await supervisor.start(owner="alice"))


@virtual()
async def test_turns_that_waited_end_when_it_is_spent() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(SessionSpec(max_budget_usd=2 * PRICE), owner="alice")
        turns = [await session.query("slow") for _ in range(4)]
        results = [await turn.wait() for turn in turns]
        assert [one.outcome for one in results] == [Outcome.COMPLETED] * 2 + [Outcome.FAILED] * 2
        assert {one.failure.code for one in results if one.failure} == {FailureCode.BUDGET}
        assert supervisor.usage("alice").turns == 0
        assert session.state is State.IDLE


@virtual()
async def test_turns_that_the_agent_begins_by_itself_are_paid_for_too() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(SessionSpec(max_budget_usd=2 * PRICE))
        await ask(session, "job")
        await asyncio.sleep(5.0)
        with pytest.raises(BudgetExceeded):
            await ask(session)


@pytest.mark.parametrize("budget_usd", [0.0, -1.0])
@virtual()
async def test_a_budget_of_nothing_is_no_budget(budget_usd: float) -> None:
    async with supervising(agent()) as supervisor:
        with pytest.raises(InvalidSpec, match="max_budget_usd"):
            await supervisor.start(SessionSpec(max_budget_usd=budget_usd))


# -- of an owner -------------------------------------------------------------------------------


@virtual()
async def test_an_owner_that_has_spent_its_budget_takes_no_further_turn() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(owner="alice")
        await ask(session, quota=budget(3))
        await (await supervisor.query("a", owner="alice", quota=budget(3))).result()
        other = await supervisor.start(owner="alice")
        await ask(other, quota=budget(3))
        assert supervisor.spent("alice") == 3 * PRICE
        for one in (session, other):
            with pytest.raises(BudgetExceeded):
                await one.query("a", quota=budget(3))
        with pytest.raises(BudgetExceeded):
            await supervisor.query("a", owner="alice", quota=budget(3))
        with pytest.raises(BudgetExceeded):
            await session.compact(quota=budget(3))
        assert supervisor.usage("alice") == Usage(sessions=2, turns=0)
        # Others have theirs, and it may be given more.
        await (await supervisor.query("a", owner="bob", quota=budget(3))).result()
        await ask(session, quota=budget(4))


@virtual()
async def test_what_was_spent_outlives_the_sessions() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(owner="alice")
        await ask(session)
        await supervisor.close(session.session_id)
        assert supervisor.spent("alice") == PRICE
        with pytest.raises(BudgetExceeded):
            await supervisor.query("a", owner="alice", quota=budget(1))


@virtual()
async def test_what_was_spent_outlives_the_server() -> None:
    store = KeptStore()
    async with supervisor_on(store, agent()) as first:
        session = await first.start(owner="alice")
        await ask(session)
        gone = await first.start(owner="alice")
        await ask(gone)
        await first.close(gone.session_id)
    async with supervisor_on(store, agent()) as second:
        assert second.spent("alice") == 2 * PRICE
        with pytest.raises(BudgetExceeded):
            await ask(second.get(session.session_id), quota=budget(2))


@virtual()
async def test_turns_that_waited_through_a_restart_of_the_server_still_have_their_budget() -> None:
    store, same = KeptStore(), agent()
    async with supervisor_on(store, same) as first:
        session = await first.start(owner="alice")
        turns = [await session.query("slow", quota=budget(3)) for _ in range(4)]
        await turns[0].result()
        await asyncio.sleep(1.0)
    async with supervisor_on(store, same) as second:
        found = second.get(session.session_id)
        handles = [await found.turn(turn.turn_id) for turn in turns]
        results = [await handle.wait() for handle in handles]
        # The second is paid for as well, though it was interrupted with its process.
        assert [one.outcome for one in results] == [
            Outcome.COMPLETED,
            Outcome.INTERRUPTED,
            Outcome.COMPLETED,
            Outcome.FAILED,
        ]
        assert results[-1].failure is not None
        assert results[-1].failure.code is FailureCode.BUDGET


@virtual()
async def test_turns_at_the_same_time_are_begun_while_there_is_something_left() -> None:
    async with supervising(agent()) as supervisor:
        sessions = [await supervisor.start(owner="alice") for _ in range(3)]
        turns = [await one.query("slow", quota=budget(2)) for one in sessions]
        waiting = [await one.query("a", quota=budget(2)) for one in sessions]
        assert {(await turn.wait()).outcome for turn in turns} == {Outcome.COMPLETED}
        results = [await turn.wait() for turn in waiting]
        failed = [one for one in results if one.outcome is Outcome.FAILED]
        assert len(failed) >= 1, "those that begin when it is spent"
        assert {one.failure.code for one in failed if one.failure} == {FailureCode.BUDGET}


@virtual()
async def test_a_commit_that_fails_is_not_paid_for_twice() -> None:
    store = HardStore(durable=True)
    async with supervising(agent(), store=store, directories=KeptDirectories()) as supervisor:
        session = await supervisor.start(owner="alice")
        await ask(session)
        turn = await session.query("slow")
        await asyncio.sleep(5.0)
        store.bad_appends = 1
        await turn.wait()
        await ask(session)
        assert supervisor.spent("alice") == dict(await store.spending())["alice"]
        assert supervisor.spent("alice") == session.snapshot().total_cost_usd


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("a", "a", "slow", "crash", "job", "once", "interrupt", "close", "fault")),
        st.sampled_from((0.0, 0.0, 1.0, 15.0)),
        st.integers(0, 2),
    ),
    max_size=20,
)


@settings(max_examples=60)
@given(steps=STEPS, turns=st.integers(1, 6), durable=st.booleans())
@virtual(limit_s=100_000.0)
async def test_whatever_happens_the_books_are_right(
    steps: list[tuple[str, float, int]], turns: int, *, durable: bool
) -> None:
    store, quota = HardStore(durable=durable), budget(turns)
    async with supervising(agent(), store=store, directories=KeptDirectories()) as supervisor:
        sessions = [await supervisor.start(owner="alice") for _ in range(3)]
        handles: list[TurnHandle] = []
        for what, after_s, which in steps:
            session = sessions[which]
            spent = supervisor.spent("alice")
            try:
                match what:
                    case "interrupt":
                        await session.interrupt()
                    case "close":
                        await session.close()
                    case "fault":
                        store.bad_appends = 1
                    case "once":
                        handles.append(await supervisor.query("a", owner="alice", quota=quota))
                    case _:
                        handles.append(await session.query(what, quota=quota))
            except BudgetExceeded:
                assert spent >= turns * PRICE
            except (Refused, StoreError):
                pass
            else:
                begins = what not in ("interrupt", "close", "fault")
                assert not begins or spent < turns * PRICE
            await asyncio.sleep(after_s)
        for handle in handles:
            with suppress(TurnFailed, Refused):
                await handle.result()
        await asyncio.sleep(10.0)
        store.bad_appends = 0
        for session in sessions:
            await session.close()
        assert supervisor.usage("alice").turns == 0
        known = dict(await store.spending()).get("alice", 0.0)
        # A session that is not kept may end by a fault before what it cost last is stored.
        assert known == supervisor.spent("alice") or (not durable and "fault" in str(steps))
        totals = [one.total_cost_usd for one in supervisor.snapshot().sessions]
        assert supervisor.spent("alice") == pytest.approx(sum(totals))
