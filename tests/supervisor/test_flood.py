"""An agent that says more than the store takes: it has to wait, and nobody pays for that."""

from __future__ import annotations

import asyncio

import pytest

from session_supervisor import CloseReason, InterruptOutcome, Outcome, Session, Watchdogs
from session_supervisor.agents.port import TextBlock, TextDelta, TurnBegan, TurnEnded
from session_supervisor.incarnation import AHEAD
from tests.support.manual import ManualAgent, ManualProcess
from tests.support.sessions import check_log, supervisor_of, text_of
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

PIECES = [f"{number} " for number in range(2_000)]


def flood(process: ManualProcess, turn_id: str) -> None:
    """Let it say a long answer, with a block in front of it that has to be stored."""
    ids = (turn_id,)
    process.say(TurnBegan(prompt_ids=ids), TextBlock("first"))
    process.say(*map(TextDelta, PIECES), TextBlock("".join(PIECES)), TurnEnded(prompt_ids=ids))


async def flooded(session: Session, agent: ManualAgent, store: HardStore, stuck_s: float) -> str:
    """Let the store stand still when the answer comes; return the id of the turn."""
    turn = await session.query("x")
    await asyncio.sleep(1)
    store.append_s = stuck_s
    flood(agent.processes[-1], turn.turn_id)
    await asyncio.sleep(1)
    return turn.turn_id


@virtual()
async def test_an_agent_waits_for_a_store_that_does_not_keep_up_and_loses_nothing() -> None:
    agent, store = ManualAgent(), HardStore()
    async with supervisor_of(agent, store=store) as supervisor:
        session = await supervisor.start()
        turn = await session.turn(await flooded(session, agent, store, 20.0))
        read = len(PIECES) + 4 - agent.processes[0].unread
        assert AHEAD <= read <= AHEAD + 10, "what the agent says piles up"
        store.append_s = 0.0
        result = await turn.wait()
        assert result.text == "first\n\n" + "".join(PIECES)
        events = await session.events().read(10_000)
        check_log(events)
        assert text_of([event for event in events if event.turn_id == turn.turn_id]) == result.text
        # And it is read on as before.
        again = await session.query("y")
        await asyncio.sleep(0.1)
        agent.processes[0].say_turn(again.turn_id, "hello")
        assert (await again.result()).text == "hello"


@pytest.mark.parametrize("stuck_s", [2.0, 10.0])
@virtual()
async def test_whom_we_keep_waiting_is_not_taken_for_dead(stuck_s: float) -> None:
    """A probe's answer stands behind all that the process has said before."""
    agent, store = ManualAgent(), HardStore()
    watchdogs = Watchdogs(silence_s=2.0, probe_s=3.0)
    async with supervisor_of(agent, store=store, watchdogs=watchdogs) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        agent.probe_s = 1.0  # so it is on its way when the flood comes
        turn = await session.query("x")
        await asyncio.sleep(2.5)
        store.append_s = stuck_s
        flood(agent.processes[0], turn.turn_id)
        await asyncio.sleep(stuck_s - 0.1)
        store.append_s = 0.0
        assert (await turn.wait()).outcome is Outcome.COMPLETED
        await asyncio.sleep(10)
        assert session.snapshot().restarts == 0


@virtual()
async def test_control_messages_overtake_what_the_process_has_said() -> None:
    agent, store = ManualAgent(), HardStore()
    async with supervisor_of(agent, store=store) as supervisor:
        session = await supervisor.start()
        turn = await session.query("x")
        await asyncio.sleep(1)
        store.append_s = 1.0
        ids = (turn.turn_id,)
        agent.processes[0].say(TurnBegan(prompt_ids=ids), *map(TextBlock, "abcdefghijklmnopqrst"))
        await asyncio.sleep(1.5)
        asked = asyncio.get_running_loop().time()
        await session.inspect()
        assert asyncio.get_running_loop().time() - asked == 0.5, "at the end of one append"


@virtual()
async def test_a_process_that_is_kept_waiting_can_be_ended() -> None:
    agent, store = ManualAgent(), HardStore()
    async with supervisor_of(agent, store=store) as supervisor:
        session = await supervisor.start()
        turn = await session.turn(await flooded(session, agent, store, 5.0))
        interrupting = asyncio.get_running_loop().create_task(session.interrupt())
        assert (await session.close()).reason is CloseReason.REQUESTED
        assert (await turn.wait()).outcome is Outcome.FAILED
        assert (await interrupting).outcome is InterruptOutcome.NOTHING_RUNNING
        assert agent.processes[0].unread == 0, "it was not read to its end"


@virtual()
async def test_a_session_that_fails_while_its_process_waits_ends() -> None:
    agent, store = ManualAgent(), HardStore()
    async with supervisor_of(agent, store=store) as supervisor:
        session = await supervisor.start()
        await flooded(session, agent, store, 5.0)
        store.fails.add("append")
        assert (await session.ended()).reason is CloseReason.FAULT
        assert agent.processes[0].exit is not None
