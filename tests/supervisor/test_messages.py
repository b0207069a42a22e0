"""What a session makes of what its agent says, message by message, driven by hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from session_supervisor import (
    CloseReason,
    InterruptOutcome,
    Origin,
    Outcome,
    Session,
    State,
    Supervisor,
    Watchdogs,
)
from session_supervisor.actor import CHECKPOINT_EVENTS, CHECKPOINT_S
from session_supervisor.agents.port import (
    AgentMessage,
    Exit,
    Initialized,
    TextBlock,
    TextDelta,
    ToolFinished,
    ToolStarted,
    TurnBegan,
    TurnEnded,
    UpstreamRetry,
)
from session_supervisor.errors import ResumeNotFound
from tests.support.manual import ManualAgent, ManualProcess
from tests.support.sessions import supervisor_of
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual


@asynccontextmanager
async def one_session(
    agent: ManualAgent, **config: Any
) -> AsyncGenerator[tuple[Supervisor, Session, ManualProcess]]:
    async with supervisor_of(agent, **config) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        yield supervisor, session, agent.processes[0]


def tool(tool_use_id: str) -> ToolStarted:
    return ToolStarted(tool_use_id=tool_use_id, name="Bash", input={})


def done(tool_use_id: str) -> ToolFinished:
    return ToolFinished(tool_use_id=tool_use_id, content="")


# -- turns that wait ---------------------------------------------------------------------------


@virtual()
async def test_a_turn_that_was_not_taken_is_still_the_first() -> None:
    agent = ManualAgent()
    async with one_session(agent) as (_, session, process):
        process.exit = Exit(returncode=-9, cause="It was killed.")  # and its pipe is still open
        first = await session.query("a")
        await session.query("b")
        await asyncio.sleep(0.1)
        process.die()
        await asyncio.sleep(0.1)
        assert session.state is State.RESTARTING
        record = first.record()
        assert (record.phase, record.started_at) == ("queued", None)
        # Nothing runs, so it is the first that an interrupt means.
        assert (await session.interrupt()).turn_ids == (first.turn_id,)
        ended = await first.wait()
        assert ended.queued_ms == ended.duration_ms


@virtual()
async def test_a_turn_of_the_agents_own_is_in_front_of_a_query() -> None:
    agent = ManualAgent()
    async with one_session(agent) as (_, session, process):
        process.say(TurnBegan())
        await asyncio.sleep(0.1)
        assert (await session.query("x")).position == 1
        assert (await session.query("y")).position == 2


@virtual()
async def test_an_interrupt_spares_what_waits_behind_a_turn_that_was_given_up() -> None:
    agent = ManualAgent()
    async with one_session(agent) as (_, session, process):
        old, new = await session.query("old", timeout_s=1.0), await session.query("new")
        assert (await old.wait()).outcome is Outcome.FAILED
        answer = await session.interrupt()
        assert (answer.outcome, answer.turn_ids) == (InterruptOutcome.NOTHING_RUNNING, ())
        process.say_turn(old.turn_id, "", interrupted=True)
        await asyncio.sleep(0.1)
        process.say_turn(new.turn_id, "the new answer")
        assert (await new.result()).text == "the new answer"


# -- what a conversation holds -----------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([TextDelta("Hm")], id="text"),
        pytest.param([tool("1")], id="a tool"),
        pytest.param([TurnEnded(prompt_ids=("t",))], id="an empty answer"),
    ],
)
@virtual()
async def test_a_conversation_that_holds_anything_is_never_begun_anew(
    said: Sequence[AgentMessage],
) -> None:
    agent = ManualAgent()
    async with one_session(agent) as (_, session, process):
        await session.query("x", turn_id="t")
        process.say(Initialized(agent_session_id="c", model="m"), TurnBegan(prompt_ids=("t",)))
        process.say(*said)
        await asyncio.sleep(0.1)
        agent.resume_error = ResumeNotFound("never heard of it")
        process.die()
        await asyncio.sleep(5)
        assert session.state is State.FAILED


@virtual()
async def test_a_conversation_that_holds_nothing_is_begun_anew_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    agent = ManualAgent()
    async with one_session(agent) as (_, session, process):
        await session.query("x", turn_id="t")
        process.say(Initialized(agent_session_id="c", model="m"), TurnBegan(prompt_ids=("t",)))
        await asyncio.sleep(0.1)
        agent.resume_error = ResumeNotFound("never heard of it")
        process.die()
        await asyncio.sleep(5)
        assert "begins its conversation anew" in caplog.text
        assert session.state is not State.FAILED


# -- turns -------------------------------------------------------------------------------------


@virtual()
async def test_what_two_turns_cost_that_ended_as_one_is_counted_once() -> None:
    agent = ManualAgent()
    async with one_session(agent) as (_, session, process):
        turn = await session.query("x")
        await asyncio.sleep(0.1)
        process.say(TurnBegan(), TurnEnded(prompt_ids=(turn.turn_id,), num_turns=3, cost_usd=0.5))
        await turn.wait()
        spent = {record.origin: record.result for record in (await session.turns())}
        own, users = spent[Origin.AGENT], spent[Origin.USER]
        assert own is not None
        assert users is not None
        assert (own.accounting.total_cost_usd, own.accounting.num_turns) == (0.0, 0)
        assert (users.accounting.total_cost_usd, users.accounting.num_turns) == (0.5, 3)
        assert session.snapshot().total_cost_usd == 0.5


@virtual()
async def test_a_query_lets_the_agent_begin_turns_by_itself_again() -> None:
    agent = ManualAgent()
    async with one_session(agent, max_agent_turns=2) as (_, session, process):
        for _ in range(3):
            for _ in range(2):
                process.say(TurnBegan(), TurnEnded())
            await asyncio.sleep(0.1)
            turn = await session.query("go on")
            await asyncio.sleep(0.1)
            process.say_turn(turn.turn_id, "")
            await turn.result()
        results = [record.result for record in (await session.turns())]
        assert [result.outcome for result in results if result] == [Outcome.COMPLETED] * 9


# -- watchdogs ---------------------------------------------------------------------------------


@virtual()
async def test_a_model_that_will_be_asked_again_later_is_not_given_up_before() -> None:
    agent = ManualAgent()
    watchdogs = Watchdogs(first_byte_s=20.0)
    async with one_session(agent, watchdogs=watchdogs) as (_, session, process):
        turn = await session.query("x")
        process.say(
            TurnBegan(prompt_ids=(turn.turn_id,)),
            UpstreamRetry(attempt=1, max_attempts=9, delay_s=60.0),
        )
        await asyncio.sleep(79.0)
        assert turn.record().phase == "running"
        failure = (await turn.wait()).failure
        assert failure is not None
        assert failure.cause == "no_first_byte"
        assert asyncio.get_running_loop().time() == 81.0


@virtual()
async def test_one_of_two_tools_may_go_on_as_long_as_it_likes() -> None:
    agent = ManualAgent()
    async with one_session(agent) as (_, session, process):
        turn = await session.query("x")
        process.say(TurnBegan(prompt_ids=(turn.turn_id,)), tool("1"), tool("2"), done("1"))
        await asyncio.sleep(5000.0)
        process.say(done("2"), TextBlock("done"), TurnEnded(prompt_ids=(turn.turn_id,)))
        assert (await turn.result()).text == "done"


# -- the log -----------------------------------------------------------------------------------


@virtual()
@pytest.mark.parametrize("durable", [True, False])
async def test_a_long_block_is_stored_before_it_ends(*, durable: bool) -> None:
    agent, store = ManualAgent(), HardStore(durable=durable)
    async with supervisor_of(agent, store=store) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        turn = await session.query("x")
        agent.processes[0].say(TurnBegan(prompt_ids=(turn.turn_id,)))
        agent.processes[0].say(*[TextDelta("w ")] * (CHECKPOINT_EVENTS + 10))
        await asyncio.sleep(CHECKPOINT_S / 2)
        stored = await store.read(session.session_id, after=0, limit=10_000)
        assert len(stored) >= CHECKPOINT_EVENTS
        assert session.snapshot().last_seq > stored[-1].seq, "each piece is stored by itself"
        await asyncio.sleep(CHECKPOINT_S)
        stored = await store.read(session.session_id, after=0, limit=10_000)
        # What is stored is there for the next server, if there is one that can have it.
        assert (session.snapshot().last_seq == stored[-1].seq) is durable
        await supervisor.close(session.session_id)


# -- ends --------------------------------------------------------------------------------------


@virtual()
async def test_why_a_session_ends_is_what_came_first() -> None:
    agent = ManualAgent()
    async with one_session(agent) as (supervisor, session, _):
        await session.query("x")
        await asyncio.sleep(1)
        draining = asyncio.get_running_loop().create_task(supervisor.drain(50.0))
        await asyncio.sleep(1)
        assert session.state is State.DRAINING
        assert (await session.close()).reason is CloseReason.DRAINED
        await draining
