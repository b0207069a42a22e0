"""Where things meet at the wrong moment: races, failing adapters, cancelled embedders."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from session_supervisor import (
    CloseReason,
    InterruptOutcome,
    Origin,
    Outcome,
    RestartPolicy,
    SessionSnapshot,
    State,
    Supervisor,
    Watchdogs,
)
from session_supervisor.agents.port import (
    Alive,
    BackgroundWork,
    Exit,
    Initialized,
    Member,
    TextBlock,
    TextDelta,
    Tree,
    TurnBegan,
    TurnEnded,
)
from session_supervisor.agents.scripted import (
    BeginAlone,
    Freeze,
    IgnoreInterrupts,
    Manners,
    Pause,
    Say,
    ScriptedAgent,
    Start,
    Step,
    UseTool,
    by_prompt,
)
from session_supervisor.config import Retention
from session_supervisor.errors import (
    AgentMissing,
    AgentStartFailed,
    AtCapacity,
    Draining,
    FailureCode,
    InvalidSpec,
    NoWorkspace,
    ResumeNotFound,
    SessionClosed,
    Unavailable,
)
from session_supervisor.events import Gap
from session_supervisor.stores.memory import MemoryStore
from tests.support.manual import ManualAgent
from tests.support.sessions import (
    ImaginaryDirectories,
    check_log,
    supervising,
    supervisor_of,
    text_of,
)
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

SLOW = [Say("one two three four", deltas=4, every_s=1.0)]


def slow_agent(**manners: Any) -> ScriptedAgent:
    return ScriptedAgent(by_prompt({"slow": SLOW}), manners=Manners(**manners))


def now() -> float:
    return asyncio.get_running_loop().time()


def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


# -- interrupts --------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", range(6))
@virtual()
async def test_an_interrupt_that_meets_the_natural_end_spares_the_next_turn(hops: int) -> None:
    async with supervising(slow_agent()) as supervisor:
        session = await supervisor.start()
        first, second = await session.query("slow"), await session.query("slow")
        await asyncio.sleep(4.0 - now())
        for _ in range(hops):
            await asyncio.sleep(0)
        answer = await session.interrupt()
        await first.wait()
        if answer.turn_ids != (second.turn_id,):
            assert (await second.wait()).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("at", [0.0, 0.1, 0.19, 0.2])
@virtual()
async def test_an_interrupt_before_the_agent_took_the_prompt_up_spares_the_next_turn(
    at: float,
) -> None:
    async with supervising(slow_agent(pickup_s=0.2)) as supervisor:
        session = await supervisor.start()
        first, second = await session.query("slow"), await session.query("slow")
        await asyncio.sleep(at)
        answer = await session.interrupt()
        assert answer.turn_ids == (first.turn_id,)
        assert (await first.wait()).outcome is Outcome.INTERRUPTED
        assert (await second.wait()).outcome is Outcome.COMPLETED


@virtual()
async def test_an_interrupt_does_not_overtake_a_prompt_in_a_full_pipe() -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        (process,) = agent.processes

        async def full_pipe() -> None:
            await asyncio.sleep(0.5)

        process.before_send = full_pipe
        turn = await session.query("x")
        interrupting = start(session.interrupt())
        await asyncio.sleep(0.4)
        assert (process.sent, process.interrupts) == ([], 0)
        await asyncio.sleep(0.2)
        assert process.interrupts == 1
        process.say_turn(turn.turn_id, "so far", interrupted=True)
        assert (await interrupting).outcome is InterruptOutcome.INTERRUPTED


@virtual()
async def test_each_interrupt_reports_its_own_turns() -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        first, second = await session.query("a"), await session.query("b")
        interrupting = start(session.interrupt(turn_id=first.turn_id))
        await asyncio.sleep(0.1)
        assert (await session.interrupt(turn_id=second.turn_id)).turn_ids == (second.turn_id,)
        agent.processes[0].say_turn(first.turn_id, "done all the same")
        answer = await interrupting
        assert (answer.outcome, answer.turn_ids) == (InterruptOutcome.NOTHING_RUNNING, ())


@virtual()
async def test_an_interrupt_that_a_close_overtakes_does_not_claim_the_turn() -> None:
    stubborn = by_prompt({"stubborn": [IgnoreInterrupts(), Pause(100.0)]})
    async with supervising(ScriptedAgent(stubborn)) as supervisor:
        session = await supervisor.start()
        turn = await session.query("stubborn")
        await asyncio.sleep(1)
        interrupting = start(session.interrupt())
        await asyncio.sleep(1)
        await session.close()
        assert (await turn.wait()).outcome is Outcome.FAILED
        assert (await interrupting).turn_ids == ()


# -- turns that were given up ------------------------------------------------------------------


@virtual()
async def test_a_prompt_that_was_given_up_does_not_answer_for_the_next() -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        old, new = await session.query("old", timeout_s=1.0), await session.query("new")
        assert (await old.wait()).outcome is Outcome.FAILED
        (process,) = agent.processes
        process.say(TurnBegan(), TurnEnded(interrupted=True))
        await asyncio.sleep(0.01)
        assert [prompt.text for prompt in process.sent] == ["old"]
        process.say_turn(old.turn_id, "the old answer", interrupted=True)
        await asyncio.sleep(0.01)
        process.say_turn(new.turn_id, "the new answer")
        assert (await new.wait()).text == "the new answer"


@virtual()
async def test_a_users_deadline_leaves_the_agents_own_turn_alone() -> None:
    job: list[Step] = [BeginAlone(2.0, [Say("a b c d", deltas=4, every_s=2.0)]), Say("started")]
    agent = ScriptedAgent(by_prompt({"job": job, "slow": SLOW}))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await (await session.query("job")).result()
        await asyncio.sleep(0.5 + 2.0 - now())
        late = await session.query("slow", timeout_s=1.0)
        failure = (await late.wait()).failure
        assert failure is not None
        assert failure.code is FailureCode.TIMEOUT
        await asyncio.sleep(20)
        (own,) = [turn for turn in (await session.turns()) if turn.origin is Origin.AGENT]
        assert own.result is not None
        assert own.result.outcome is Outcome.COMPLETED
        assert (await (await session.query("x")).result()).outcome is Outcome.COMPLETED
        check_log(await session.events().read(10_000))


@virtual()
async def test_what_an_agent_says_outside_of_any_turn_is_nobodys_answer() -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        agent.processes[0].say(TextBlock("by the way"))
        await asyncio.sleep(1)
        assert (await session.turns()) == ()


@virtual()
async def test_an_agent_that_speaks_outside_of_any_turn_is_reported_once_and_not_quoted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        (process,) = agent.processes
        process.say(
            Alive(), Initialized(agent_session_id="c", model="m"), BackgroundWork(pending=0)
        )
        await asyncio.sleep(1)
        assert not caplog.records
        for _ in range(3):
            process.say(TextBlock("a secret"))
        await asyncio.sleep(1)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "TextBlock" in record.getMessage()
        assert "a secret" not in record.getMessage()
        assert vars(record)["session_id"] == session.session_id
        # Another process is another matter.
        process.die()
        await asyncio.sleep(1)
        agent.processes[1].say(TextDelta("once more"))
        await asyncio.sleep(1)
        assert "TextDelta" in caplog.records[-1].getMessage()


@virtual()
async def test_what_is_still_said_of_a_turn_that_was_given_up_is_nothing_to_report(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        turn = await session.query("x", timeout_s=1.0)
        agent.processes[0].say(TurnBegan(prompt_ids=(turn.turn_id,)))
        await turn.wait()
        agent.processes[0].say(TextBlock("too late"))
        await asyncio.sleep(0.1)
        assert turn.record().text == ""
        assert not caplog.records


# -- processes that misbehave ------------------------------------------------------------------


@virtual()
async def test_nothing_is_handed_to_a_process_that_is_being_removed() -> None:
    agent = ManualAgent()
    agent.stop_s = 0.5
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        agent.processes[0].die()
        await asyncio.sleep(0.1)
        turn = await session.query("x")
        await asyncio.sleep(5)
        assert agent.processes[0].sent == []
        agent.processes[1].say_turn(turn.turn_id, "hello")
        assert (await turn.result()).text == "hello"


@virtual()
async def test_a_prompt_that_a_dying_process_did_not_take_is_not_lost() -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        process = agent.processes[0]
        process.exit = Exit(returncode=-9, cause="It was killed.")  # and its pipe is still open
        first, second = await session.query("a"), await session.query("b")
        await asyncio.sleep(0.1)
        process.die()
        await asyncio.sleep(5)
        agent.processes[1].say_turn(first.turn_id, "hello")
        await asyncio.sleep(0.1)
        agent.processes[1].say_turn(second.turn_id, "again")
        assert [(await turn.result()).text for turn in (first, second)] == ["hello", "again"]
        assert [prompt.text for prompt in agent.processes[1].sent] == ["a", "b"]


@virtual()
async def test_a_process_that_cannot_be_stopped_ends_no_more_than_its_session() -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session, sibling = await supervisor.start(), await supervisor.start()
        await asyncio.sleep(1)
        agent.stop_error = RuntimeError("it will not go")
        assert (await session.close()).reason is CloseReason.REQUESTED
        agent.stop_error = None
        assert sibling.state is State.IDLE


@virtual()
async def test_a_start_that_does_not_heed_its_cancellation_is_stopped_all_the_same() -> None:
    agent = ManualAgent()
    agent.spawn_s = 5.0
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        await supervisor.close(session.session_id)
        assert [process.exit is not None for process in agent.processes] == [True]


@virtual()
async def test_an_adapters_own_time_out_is_not_taken_for_ours() -> None:
    agent = ManualAgent()
    agent.spawn_error = TimeoutError("the handshake took too long")
    policy = RestartPolicy(max_restarts=0)
    async with supervisor_of(agent, restarts=policy) as supervisor:
        failure = (await (await supervisor.query("x")).wait()).failure
        assert failure is not None
        assert "the handshake took too long" in failure.message


@virtual()
async def test_a_probes_own_time_out_is_not_taken_for_ours() -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        turn = await session.query("x")
        agent.probe_error = TimeoutError("no answer in 60 s")
        failure = (await turn.wait()).failure
        assert failure is not None
        assert "refused a probe: no answer in 60 s." in failure.message


@virtual()
async def test_one_answered_probe_is_no_licence_to_hang() -> None:
    agent = ManualAgent()
    watchdogs = Watchdogs(silence_s=10.0, probe_s=5.0)
    async with supervisor_of(agent, watchdogs=watchdogs) as supervisor:
        session = await supervisor.start()
        turn = await session.query("x")
        await asyncio.sleep(15.0)
        agent.probe_s = 1e9
        failure = (await turn.wait()).failure
        assert failure is not None
        assert "silent for 15 s" in failure.message
        assert now() == 25.0


@virtual()
async def test_a_start_that_fails_does_not_hide_how_the_last_process_ended() -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        agent.spawn_error = AgentStartFailed("no")
        agent.processes[0].die()
        await asyncio.sleep(100)
        assert (await session.inspect()).state is State.FAILED
        died = agent.processes[0].exit
        assert died is not None
        assert (await session.close()).exit == died


@virtual()
async def test_the_id_of_the_process_is_known_while_there_is_one() -> None:
    agent = ManualAgent()
    agent.pid, agent.spawn_s = 4711, 1.0
    async with supervisor_of(agent) as supervisor:
        session = await supervisor.start()
        assert (await session.inspect()).pid is None
        await asyncio.sleep(2)
        tree = Tree(members=(Member(pid=4711, parent=1, name="agent", pss_bytes=5),))
        agent.processes[0].grown = tree
        seen = await session.inspect()
        assert (seen.pid, seen.tree) == (4711, tree)
        assert (seen.queued, seen.waiting_control) == (0, 0)
        agent.processes[0].die()
        await asyncio.sleep(0.1)
        seen = await session.inspect()
        assert (seen.pid, seen.tree) == (None, Tree())


@virtual()
async def test_an_agent_that_never_knows_any_conversation_is_given_up() -> None:
    agent = ScriptedAgent(start=Start(error=ResumeNotFound("never heard of it")))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(60)
        assert session.state is State.FAILED
    assert agent.spawned < 10


@virtual()
async def test_a_failed_session_keeps_its_place_until_its_process_is_gone() -> None:
    agent = ScriptedAgent(by_prompt({"freeze": [Freeze()]}), manners=Manners(stop_s=7.0))
    policy = RestartPolicy(max_restarts=0)
    async with supervising(agent, max_live=1, restarts=policy) as supervisor:
        session = await supervisor.start()
        await (await session.query("freeze")).wait()
        assert session.state is State.FAILED
        failed_at = now()
        turn = await supervisor.query("x")
        assert (await turn.result()).outcome is Outcome.COMPLETED
        assert now() == failed_at + 7.0
    assert agent.most_live == 1


@virtual(limit_s=1e6)
async def test_failed_sessions_lock_nobody_out_and_do_not_pile_up() -> None:
    agent = ScriptedAgent(start=Start(error=AgentMissing("not here")))
    retention = Retention(ended_s=3600.0, ended_sessions=10)
    async with supervising(agent, max_sessions=2, max_live=2, retention=retention) as supervisor:
        for _ in range(50):
            await supervisor.start()
            await asyncio.sleep(1)
        kept: tuple[SessionSnapshot, ...] = supervisor.snapshot().sessions
        assert len(kept) == 10
        await asyncio.sleep(4000)
        assert supervisor.snapshot().sessions == ()


@virtual(limit_s=5000)
async def test_a_talkative_agent_on_a_slow_store_starves_nobody() -> None:
    talk = [UseTool("Bash", seconds=0.01) for _ in range(2_000)]
    agent = ScriptedAgent(by_prompt({"talk": talk}))
    async with supervisor_of(agent, store=HardStore(append_s=0.02)) as supervisor:
        session = await supervisor.start()
        turn = await session.query("talk", timeout_s=5.0)
        await asyncio.sleep(3)
        asked = now()
        await session.inspect()
        assert now() - asked < 1
        failure = (await turn.wait()).failure
        assert failure is not None
        assert failure.code is FailureCode.TIMEOUT
        assert now() < 15


# -- stores that are slow or fail --------------------------------------------------------------


@virtual()
async def test_a_crash_while_a_turn_is_being_handed_over_is_a_crash() -> None:
    agent = ScriptedAgent()
    async with supervisor_of(agent, store=HardStore(append_s=0.1)) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        asking = start(session.query("hi"))
        await asyncio.sleep(0.15)
        agent.processes[-1].crash()
        failure = (await (await asking).wait()).failure
        assert failure is None or failure.code is FailureCode.CRASHED
        assert session.active


@virtual(limit_s=1e5)
async def test_a_session_that_cannot_be_erased_takes_no_other_with_it() -> None:
    store = HardStore()
    store.fails.add("erase")
    agent = ScriptedAgent(by_prompt({"build": [UseTool("Bash", seconds=9000.0)]}))
    async with supervisor_of(agent, store=store) as supervisor:
        sibling = await supervisor.start()
        await sibling.query("build")
        await (await supervisor.query("one-off")).result()
        await asyncio.sleep(4000)
        assert sibling.state is State.RUNNING
        doomed = await supervisor.start()
        with pytest.raises(Unavailable):
            await supervisor.close(doomed.session_id)
        assert sibling.state is State.RUNNING
        assert len(supervisor.snapshot().sessions) == 3
        store.fails.clear()
        await supervisor.close(doomed.session_id)
        await asyncio.sleep(100)
        assert len(supervisor.snapshot().sessions) == 1, "what failed is tried again"


@virtual()
async def test_a_session_does_not_end_before_its_process_whatever_goes_wrong() -> None:
    store, agent = HardStore(), ManualAgent()
    agent.stop_s = 5.0
    async with supervisor_of(agent, store=store) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1)
        agent.processes[0].die()
        await asyncio.sleep(1)
        store.fails.add("append")
        with pytest.raises(SessionClosed):
            await session.query("x")
        assert (await session.ended()).reason is CloseReason.FAULT
        assert (set(agent.stopped_at), now()) == ({6.0}, 6.0)


@virtual()
async def test_a_store_that_never_answers_holds_nobody_for_ever() -> None:
    store = HardStore()
    agent = slow_agent()
    async with supervisor_of(agent, store=store) as supervisor:
        session = await supervisor.start()
        turn = await session.query("slow")
        await asyncio.sleep(1.5)
        store.append_s = 1e9
        failure = (await turn.wait()).failure
        assert failure is not None
        assert failure.code is FailureCode.INTERNAL
        assert now() < 100
    assert agent.live == 0


@virtual()
async def test_a_session_whose_very_end_cannot_be_stored_ends_all_the_same() -> None:
    store = HardStore()
    async with supervisor_of(ScriptedAgent(), store=store) as supervisor:
        session = await supervisor.start()
        await (await session.query("x")).result()
        reading = start(anext(aiter(session.events(session.snapshot().last_seq)), None))
        store.fails.add("append")
        closed = await session.close()
        assert closed.reason is CloseReason.FAULT
        await reading
        assert await session.events(session.snapshot().last_seq).read() == ()
        with pytest.raises(SessionClosed):
            await session.inspect()


@virtual()
async def test_a_session_is_not_closed_before_that_is_stored() -> None:
    store = HardStore()
    async with supervisor_of(ScriptedAgent(), store=store) as supervisor:
        session = await supervisor.start()
        await (await session.query("x")).result()
        store.append_s = 5.0
        closing = start(session.close())
        await asyncio.sleep(4.0)
        assert session.snapshot().state is State.CLOSING
        await closing
        assert now() == 5.0
        assert session.snapshot().state is State.CLOSED


@virtual()
async def test_a_start_that_the_store_refuses_leaves_nothing() -> None:
    store, directories = HardStore(), ImaginaryDirectories()
    store.fails.add("acquire")
    supervisor = Supervisor(ScriptedAgent(), store=store, workspaces=directories)
    async with supervisor:
        with pytest.raises(Unavailable):
            await supervisor.start()
        assert not directories.held
        assert supervisor.snapshot().live == 0


@virtual()
async def test_a_session_without_a_directory_is_refused() -> None:
    class Full(ImaginaryDirectories):
        async def allot(self, session_id: str) -> Path:
            raise NoWorkspace("the disk is full")

    supervisor = Supervisor(ScriptedAgent(), workspaces=Full())
    async with supervisor:
        with pytest.raises(NoWorkspace, match="disk is full"):
            await supervisor.start()
        assert supervisor.snapshot().live == 0


# -- readers -----------------------------------------------------------------------------------


@virtual()
async def test_a_slow_reader_of_a_long_block_misses_nothing() -> None:
    long = [Say("word " * 3000, deltas=3000, every_s=0.001)]
    async with supervising(ScriptedAgent(by_prompt({"long": long}))) as supervisor:
        session = await supervisor.start()
        turn = await session.query("long")
        await asyncio.sleep(2.9)
        events = [event async for event in turn]
        assert not [event for event in events if isinstance(event.body, Gap)]
        assert text_of(events) == (await turn.result()).text


@virtual()
async def test_whoever_missed_the_end_of_a_turn_is_told_of_the_gap_and_the_end() -> None:
    agent = ScriptedAgent(by_prompt({"long": [Say("w " * 3000, deltas=3000)]}))
    store = MemoryStore(Retention(events=10))
    async with supervisor_of(agent, store=store) as supervisor:
        session = await supervisor.start()
        first = await session.query("x")
        await first.result()
        await (await session.query("long")).result()
        gap, end = [event async for event in first]
        assert isinstance(gap.body, Gap)
        assert end.is_terminal
        assert end.turn_id == first.turn_id


# -- supervisors -------------------------------------------------------------------------------


@virtual()
async def test_what_the_body_raised_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with supervising(ScriptedAgent()):
            raise ValueError("mine")


@pytest.mark.parametrize("times", [1, 2, 5])
@virtual()
async def test_however_often_the_embedder_is_cancelled_nobody_is_left_hanging(times: int) -> None:
    agent = slow_agent(stop_s=5.0)
    got: dict[str, Any] = {}

    async def embedder() -> None:
        async with supervising(agent) as supervisor:
            got["session"] = await supervisor.start()
            got["turns"] = [await got["session"].query("slow") for _ in range(2)]
            await asyncio.sleep(100)

    task = start(embedder())
    await asyncio.sleep(2)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.5)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert agent.live == 0
    for turn in got["turns"]:
        assert (await turn.wait()).outcome in (Outcome.INTERRUPTED, Outcome.FAILED)
    assert (await got["session"].ended()).reason is CloseReason.DRAINED


@virtual()
async def test_a_start_that_meets_a_drain_is_refused_and_leaves_nothing() -> None:
    directories = ImaginaryDirectories()
    agent = ScriptedAgent()
    store = HardStore(acquire_s=1.0)
    async with Supervisor(agent, store=store, workspaces=directories) as supervisor:
        starting = start(supervisor.start())
        await asyncio.sleep(0.5)
    with pytest.raises(Draining):
        await starting
    assert (agent.spawned, directories.held) == (0, set())


@virtual()
async def test_many_starts_at_once_keep_within_the_limit() -> None:
    store = HardStore(acquire_s=0.1)
    async with supervisor_of(
        ScriptedAgent(), store=store, max_sessions=2, max_live=10
    ) as supervisor:
        results = await asyncio.gather(
            *(supervisor.start() for _ in range(5)), return_exceptions=True
        )
        assert len(supervisor.list()) == 2
        assert sum(isinstance(result, AtCapacity) for result in results) == 3


@virtual()
async def test_a_close_that_is_cancelled_is_finished() -> None:
    directories = ImaginaryDirectories()
    store = HardStore(erase_s=1.0)
    async with Supervisor(ScriptedAgent(), store=store, workspaces=directories) as supervisor:
        session = await supervisor.start()
        closing = start(supervisor.close(session.session_id))
        await asyncio.sleep(0.5)
        closing.cancel()
        await asyncio.wait([closing])
        assert not directories.held


@virtual()
async def test_a_close_and_a_drain_are_taken_though_the_lane_is_full() -> None:
    async with supervising(ScriptedAgent(), max_control=8) as supervisor:
        closed, drained = await supervisor.start(), await supervisor.start()
        await asyncio.sleep(1)
        asking = [start(session.inspect()) for session in (closed, drained) for _ in range(8)]
        await asyncio.gather(closed.close(), supervisor.drain(0.0))
        await asyncio.gather(*asking, return_exceptions=True)
        assert (await drained.ended()).reason is CloseReason.DRAINED


@virtual()
async def test_an_idle_session_is_noticed_though_its_last_query_was_taken_out() -> None:
    async with supervising(ScriptedAgent(), expiry_s=10.0) as supervisor:
        session = await supervisor.start()
        await (await session.query("a")).result()
        asking, interrupting = start(session.query("b")), start(session.interrupt())
        await asyncio.gather(asking, interrupting)
        assert (await session.ended()).reason is CloseReason.EXPIRED


@virtual()
async def test_the_id_of_a_turn_is_used_once() -> None:
    async with supervising(slow_agent()) as supervisor:
        session = await supervisor.start()
        first = await session.query("slow", turn_id="7" * 8)
        for _ in range(2):
            with pytest.raises(InvalidSpec, match="turn_id"):
                await session.query("x", turn_id="7" * 8)
        asking = [start(session.query("x", turn_id="8" * 8)) for _ in range(2)]
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(isinstance(answer, InvalidSpec) for answer in answers) == 1
        assert (await first.result()).outcome is Outcome.COMPLETED


@virtual()
async def test_a_refusal_is_made_anew_for_everybody() -> None:
    async with supervising(ScriptedAgent()) as supervisor:
        session = await supervisor.start()
        await session.close()
        errors: list[SessionClosed] = []
        for _ in range(2):
            with pytest.raises(SessionClosed) as caught:
                await session.query("x")
            errors.append(caught.value)
        assert errors[0] is not errors[1]


@virtual()
async def test_a_monitor_of_a_supervisor_that_is_gone_ends() -> None:
    async with supervising(ScriptedAgent(), watchdogs=Watchdogs()) as supervisor:
        pass
    async with supervisor.monitor() as monitor:
        assert [notice async for notice in monitor] == []
