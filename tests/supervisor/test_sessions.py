"""What a session does, through the handles that an embedder holds, on virtual time."""

from __future__ import annotations

import asyncio

import pytest

from session_supervisor import (
    CloseReason,
    Down,
    InterruptOutcome,
    OnBusy,
    Origin,
    Outcome,
    Restarted,
    RestartPolicy,
    Session,
    SessionKind,
    SessionSpec,
    State,
    Supervisor,
    Watchdogs,
)
from session_supervisor.agents.port import TextWithdrawn, ThinkingDelta, UpstreamRetry
from session_supervisor.agents.scripted import (
    BeginAlone,
    Crash,
    Fail,
    Freeze,
    Hang,
    IgnoreInterrupts,
    Manners,
    Pause,
    Say,
    ScriptedAgent,
    Start,
    UseTool,
    by_prompt,
)
from session_supervisor.errors import (
    AgentMissing,
    AgentStartFailed,
    AtCapacity,
    Busy,
    Draining,
    Failure,
    FailureCode,
    InvalidSpec,
    MailboxFull,
    SessionClosed,
    SessionFailed,
    SessionNotFound,
    TurnFailed,
    TurnNotFound,
)
from session_supervisor.events import (
    Discard,
    Done,
    Result,
    Retrying,
    Status,
    Text,
    Thinking,
    ToolUse,
    Turn,
)
from tests.support.sessions import bodies, check_log, supervising, text_of
from tests.support.virtual_time import virtual

SLOW = [Say("one two three four", deltas=4, every_s=1.0)]


def agent_with(**answers: object) -> ScriptedAgent:
    return ScriptedAgent(by_prompt(answers))  # type: ignore[arg-type]


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual()
async def test_a_query_is_answered_with_its_text() -> None:
    async with supervising(ScriptedAgent()) as supervisor:
        session = await supervisor.start()
        turn = await session.query("hello")
        events = [event async for event in turn]
        result = await turn.result()
        check_log(await session.events().read(10_000))
    assert result.text == "You said: hello" == text_of(events)
    assert isinstance(events[0].body, Turn)
    assert isinstance(events[-1].body, Done)
    assert isinstance(events[-2].body, Result)
    assert result.outcome is Outcome.COMPLETED


@virtual()
async def test_a_session_remembers_and_a_one_off_does_not() -> None:
    async with supervising(ScriptedAgent()) as supervisor:
        session = await supervisor.start()
        await (await session.query("a")).result()
        assert "Earlier you said: a" in (await (await session.query("b")).result()).text
        assert (await (await supervisor.query("c")).result()).text == "You said: c"
        assert len(supervisor.list()) == 1


@virtual()
async def test_deltas_are_seen_as_they_are_written() -> None:
    async with supervising(agent_with(slow=SLOW)) as supervisor:
        session = await supervisor.start()
        turn = await session.query("slow")
        seen = [(now(), event.body.content) async for event in turn if isinstance(event.body, Text)]
        assert [at for at, _ in seen] == [1.0, 2.0, 3.0, 4.0]
        assert "".join(text for _, text in seen) == "one two three four"
        result = await turn.result()
    assert result.first_text_ms == 1000
    assert result.duration_ms == 4000


@virtual()
async def test_queries_of_one_session_run_one_after_the_other() -> None:
    agent = agent_with(slow=SLOW)
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        turns = [await session.query("slow") for _ in range(3)]
        assert [turn.position for turn in turns] == [0, 1, 2]
        results = [await turn.result() for turn in turns]
        check_log(await session.events().read(10_000))
    assert [result.duration_ms for result in results] == [4000, 8000, 12_000]
    assert [result.queued_ms for result in results] == [0, 4000, 8000]


@virtual()
async def test_what_the_upstream_took_back_is_withdrawn_from_stream_and_answer() -> None:
    script = [
        Say("first block"),
        Say("half of", confirmed=False),
        TextWithdrawn(),
        Say("the second"),
    ]
    async with supervising(agent_with(cut=script)) as supervisor:
        session = await supervisor.start()
        turn = await session.query("cut")
        events = [event async for event in turn]
        result = await turn.result()
    assert result.text == "first block\n\nthe second" == text_of(events)
    assert any(isinstance(body, Discard) for body in bodies(events))


@virtual()
async def test_tools_and_retries_are_in_the_stream() -> None:
    script = [
        UseTool("Bash", input={"command": "ls"}, result="a b"),
        UpstreamRetry(attempt=1, max_attempts=10, delay_s=0.5, status=529, reason="overloaded"),
        Say("done"),
    ]
    async with supervising(agent_with(tool=script)) as supervisor:
        turn = await supervisor.query("tool")
        said = [event.body async for event in turn]
    (use,) = [body for body in said if isinstance(body, ToolUse)]
    assert (use.name, use.input) == ("Bash", {"command": "ls"})
    (retry,) = [body for body in said if isinstance(body, Retrying)]
    assert (retry.attempt, retry.delay_ms, retry.status) == (1, 500, 529)


@pytest.mark.parametrize(("thinking", "told"), [(None, True), (True, True), (False, False)])
@virtual()
async def test_thinking_is_told_unless_nobody_wants_it(thinking: bool | None, told: bool) -> None:
    async with supervising(agent_with(think=[ThinkingDelta("hm"), Say("done")])) as supervisor:
        turn = await supervisor.query("think", SessionSpec(thinking=thinking))
        said = [event.body async for event in turn]
    assert any(isinstance(body, Thinking) for body in said) == told


@virtual()
async def test_a_failed_turn_is_an_error_and_the_session_goes_on() -> None:
    failure = Failure(code=FailureCode.OVERLOADED, message="busy", retryable=True)
    async with supervising(agent_with(bad=[Say("so far"), Fail(failure)])) as supervisor:
        session = await supervisor.start()
        turn = await session.query("bad")
        with pytest.raises(TurnFailed) as caught:
            await turn.result()
        assert caught.value.failure == failure
        assert turn.record().text == "so far"
        assert (await (await session.query("x")).result()).outcome is Outcome.COMPLETED


@virtual()
async def test_a_crash_loses_its_turn_and_nothing_else() -> None:
    agent = agent_with(die=[Say("par", confirmed=False), Pause(1.0), Crash()])
    async with supervising(agent) as supervisor, supervisor.monitor() as monitor:
        session, sibling = await supervisor.start(), await supervisor.start()
        await (await session.query("before")).result()
        dying, queued = await session.query("die"), await session.query("after")
        lost = await dying.wait()
        assert (lost.outcome, lost.text) == (Outcome.LOST, "par")
        assert lost.failure is not None
        assert lost.failure.code is FailureCode.CRASHED
        answer = await queued.result()
        assert "before" in answer.text
        assert session.snapshot().restarts == 1
        assert sibling.snapshot().restarts == 0
        notice = await anext(aiter(monitor))
        assert isinstance(notice, Restarted)
        check_log(await session.events().read(10_000))
    assert agent.forks == 0


@virtual()
async def test_a_crash_while_idle_is_mended_before_anybody_asks() -> None:
    agent = ScriptedAgent()
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await (await session.query("a")).result()
        agent.processes[-1].crash()
        await asyncio.sleep(5)
        assert session.state is State.IDLE
        assert "a" in (await (await session.query("b")).result()).text
    assert agent.spawned == 2


@virtual()
async def test_a_process_that_died_before_its_first_answer_is_started_afresh() -> None:
    agent = agent_with(die=[Crash(remembered=False)])
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        assert (await (await session.query("die")).wait()).outcome is Outcome.LOST
        assert (await (await session.query("x")).result()).text == "You said: x"


@virtual()
async def test_a_conversation_that_cannot_be_resumed_fails_rather_than_forget() -> None:
    agent = ScriptedAgent()
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await (await session.query("remember me")).result()
        agent.lose("conversation-1")
        agent.processes[-1].crash()
        await asyncio.sleep(60)
        assert session.state is State.FAILED
        with pytest.raises(SessionFailed, match="conversation"):
            await session.query("x")


@virtual()
async def test_too_many_crashes_fail_the_session_and_not_its_siblings() -> None:
    agent = agent_with(die=[Crash()])
    policy = RestartPolicy(max_restarts=2, window_s=60.0, base_delay_s=1.0)
    async with supervising(agent, restarts=policy) as supervisor, supervisor.monitor() as monitor:
        sibling, session = await supervisor.start(), await supervisor.start()
        turns = [await session.query("die") for _ in range(4)]
        ends = [await turn.wait() for turn in turns]
        codes = [end.failure.code for end in ends if end.failure is not None]
        assert codes == [FailureCode.CRASHED] * 3 + [FailureCode.SESSION_FAILED]
        assert session.state is State.FAILED
        assert not session.active
        assert supervisor.list() == (sibling,)
        assert (await (await sibling.query("x")).result()).outcome is Outcome.COMPLETED
        notices = aiter(monitor)
        for expected in (Restarted, Restarted, Down):
            assert isinstance(await anext(notices), expected)
        await supervisor.close(session.session_id)
        with pytest.raises(SessionNotFound):
            supervisor.get(session.session_id)
        check_log(await session.events().read(10_000))


@virtual()
async def test_crashes_far_apart_never_fail_a_session() -> None:
    agent = agent_with(die=[Crash()])
    policy = RestartPolicy(max_restarts=1, window_s=60.0)
    async with supervising(agent, restarts=policy) as supervisor:
        session = await supervisor.start()
        for _ in range(5):
            assert (await (await session.query("die")).wait()).outcome is Outcome.LOST
            await asyncio.sleep(61)
        assert session.active


@virtual()
async def test_a_missing_program_fails_at_once_with_what_to_do() -> None:
    agent = ScriptedAgent(start=Start(error=AgentMissing("no claude here: install it")))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        turn = await session.query("x")
        with pytest.raises(TurnFailed, match="install it") as caught:
            await turn.result()
        assert caught.value.failure.code is FailureCode.START_FAILED
        assert now() == 0.0
        assert session.state is State.FAILED


@virtual()
async def test_a_start_that_fails_is_tried_again_and_the_query_waits() -> None:
    agent = ScriptedAgent()
    agent.starts.extend([Start(error=AgentStartFailed("flaky")), Start(hangs=True)])
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        result = await (await session.query("x")).result()
        assert result.text == "You said: x"
        assert session.snapshot().restarts == 2
    assert agent.live == 0


@pytest.mark.parametrize("oneoff", [True, False])
@virtual()
async def test_nobody_waits_for_ever_for_an_agent_that_never_comes_up(oneoff: bool) -> None:
    async with supervising(ScriptedAgent(start=Start(hangs=True))) as supervisor:
        if oneoff:
            turn = await supervisor.query("x")
        else:
            turn = await (await supervisor.start()).query("x")
        with pytest.raises(TurnFailed) as caught:
            await turn.result()
        assert caught.value.failure.code is FailureCode.START_FAILED
        limits, policy = Watchdogs(), RestartPolicy()
        tries = policy.max_restarts + 1
        longest = tries * (limits.start_s + policy.max_delay_s * (1 + policy.jitter))
        assert tries * limits.start_s <= now() <= longest


@virtual()
async def test_an_interrupt_answers_after_the_end_is_in_the_log() -> None:
    async with supervising(agent_with(slow=SLOW)) as supervisor:
        session = await supervisor.start()
        turn = await session.query("slow")
        await asyncio.sleep(1.5)
        interrupted = await session.interrupt()
        assert interrupted.outcome is InterruptOutcome.INTERRUPTED
        assert interrupted.turn_ids == (turn.turn_id,)
        record = turn.record()
        assert record.result is not None
        assert record.result.outcome is Outcome.INTERRUPTED
        assert record.text
        assert "one two three four".startswith(record.text)
        assert (await turn.result()).text == record.text
        assert (await (await session.query("x")).result()).outcome is Outcome.COMPLETED


@virtual()
async def test_interrupting_nothing_says_so() -> None:
    async with supervising(ScriptedAgent()) as supervisor:
        session = await supervisor.start()
        await (await session.query("a")).result()
        assert (await session.interrupt()).outcome is InterruptOutcome.NOTHING_RUNNING
        assert (await (await session.query("b")).result()).outcome is Outcome.COMPLETED


@virtual()
async def test_queued_turns_survive_an_interrupt_unless_it_wants_them_too() -> None:
    async with supervising(agent_with(slow=SLOW)) as supervisor:
        session = await supervisor.start()
        running, queued = await session.query("slow"), await session.query("slow")
        await asyncio.sleep(1)
        await session.interrupt()
        assert (await running.wait()).outcome is Outcome.INTERRUPTED
        assert (await queued.wait()).outcome is Outcome.COMPLETED
        running, queued = await session.query("slow"), await session.query("slow")
        await asyncio.sleep(1)
        interrupted = await session.interrupt(queued=True)
        assert set(interrupted.turn_ids) == {running.turn_id, queued.turn_id}
        assert (await queued.wait()).outcome is Outcome.INTERRUPTED


@virtual()
async def test_one_queued_turn_can_be_taken_out() -> None:
    async with supervising(agent_with(slow=SLOW)) as supervisor:
        session = await supervisor.start()
        running, queued = await session.query("slow"), await session.query("slow")
        interrupted = await session.interrupt(turn_id=queued.turn_id)
        assert interrupted.turn_ids == (queued.turn_id,)
        assert (await queued.wait()).outcome is Outcome.INTERRUPTED
        assert (await running.wait()).outcome is Outcome.COMPLETED
        ended = await session.interrupt(turn_id=running.turn_id)
        assert ended.outcome is InterruptOutcome.NOTHING_RUNNING
        with pytest.raises(TurnNotFound):
            await session.interrupt(turn_id="nobody")


@virtual()
async def test_a_turn_that_waits_for_its_process_can_be_interrupted() -> None:
    agent = ScriptedAgent(start=Start(delay_s=10.0))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        turn = await session.query("x")
        assert (await session.interrupt()).turn_ids == (turn.turn_id,)
        assert now() == 0.0
        assert (await turn.wait()).outcome is Outcome.INTERRUPTED


@virtual()
async def test_an_agent_that_ignores_interrupts_is_ended_and_resumed() -> None:
    stubborn = [IgnoreInterrupts(), Say("going on", confirmed=False), Pause(1000.0)]
    agent = agent_with(stubborn=stubborn)
    watchdogs = Watchdogs(interrupt_s=5.0)
    async with supervising(agent, watchdogs=watchdogs) as supervisor:
        session = await supervisor.start()
        await (await session.query("before")).result()
        turn = await session.query("stubborn")
        await asyncio.sleep(1)
        interrupted = await session.interrupt()
        assert interrupted.outcome is InterruptOutcome.ESCALATED
        assert now() == 6.0
        assert (await turn.wait()).outcome is Outcome.INTERRUPTED
        assert "before" in (await (await session.query("x")).result()).text
        assert session.snapshot().restarts == 0
    assert agent.spawned == 2


@virtual()
async def test_a_silent_model_is_given_up_by_cause() -> None:
    agent = agent_with(
        first=[Hang()],
        middle=[Say("I", confirmed=False), Hang()],
    )
    watchdogs = Watchdogs(first_byte_s=20.0, progress_s=30.0)
    async with supervising(agent, watchdogs=watchdogs) as supervisor:
        session = await supervisor.start()
        for prompt, cause, at in (
            ("first", "no_first_byte", 20.0),
            ("middle", "no_progress", 50.0),
        ):
            result = await (await session.query(prompt)).wait()
            assert result.failure is not None
            assert result.failure.code is FailureCode.STALLED
            assert result.failure.cause == cause
            assert now() == at
        assert (await (await session.query("x")).result()).outcome is Outcome.COMPLETED
    assert agent.spawned == 1


@virtual()
async def test_a_running_tool_may_take_as_long_as_it_likes() -> None:
    agent = agent_with(build=[UseTool("Bash", seconds=5000.0), Say("built")])
    async with supervising(agent) as supervisor:
        result = await (await supervisor.query("build")).result()
    assert result.text == "built"


@virtual()
async def test_a_frozen_process_is_found_out_and_replaced() -> None:
    agent = agent_with(freeze=[Say("I", confirmed=False), Freeze()])
    watchdogs = Watchdogs(silence_s=10.0, probe_s=5.0)
    async with supervising(agent, watchdogs=watchdogs) as supervisor:
        session = await supervisor.start()
        await (await session.query("before")).result()
        result = await (await session.query("freeze")).wait()
        assert (result.outcome, now()) == (Outcome.LOST, 15.0)
        answer = await (await session.query("x")).result()
        assert "before" in answer.text
        assert now() == 15.25, "the next process did not wait for the backoff"
    assert agent.forks == 0


@virtual()
async def test_a_process_that_takes_long_to_stop_is_gone_before_the_next_starts() -> None:
    agent = ScriptedAgent(by_prompt({"freeze": [Freeze()]}), manners=Manners(stop_s=7.0))
    watchdogs = Watchdogs(silence_s=10.0, probe_s=5.0)
    async with supervising(agent, watchdogs=watchdogs) as supervisor:
        session = await supervisor.start()
        await (await session.query("before")).result()
        await (await session.query("freeze")).wait()
        assert now() == 15.0
        assert "before" in (await (await session.query("x")).result()).text
        assert now() == 22.0
    assert (agent.forks, agent.most_live) == (0, 1)


@virtual()
async def test_an_interrupt_is_answered_when_the_process_dies_of_it() -> None:
    stubborn = [IgnoreInterrupts(), Say("going on", confirmed=False), Pause(1000.0)]
    agent = agent_with(stubborn=stubborn)
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        turn = await session.query("stubborn")
        await asyncio.sleep(1)
        interrupting = [asyncio.create_task(session.interrupt()) for _ in range(2)]
        await asyncio.sleep(1)
        agent.processes[-1].crash()
        answers = [await task for task in interrupting]
        assert now() == 2.0
        assert {answer.outcome for answer in answers} == {InterruptOutcome.ESCALATED}
        assert (await turn.wait()).outcome is Outcome.LOST


@virtual()
async def test_a_turn_that_takes_too_long_is_stopped_wherever_it_is() -> None:
    agent = agent_with(build=[UseTool("Bash", seconds=5000.0), Say("built")])
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        running = await session.query("build", timeout_s=10.0)
        queued = await session.query("x", timeout_s=4.0)
        for turn, at in ((queued, 4.0), (running, 10.0)):
            result = await turn.wait()
            assert result.failure is not None
            assert (result.failure.code, now()) == (FailureCode.TIMEOUT, at)
        assert (await (await session.query("y")).result()).outcome is Outcome.COMPLETED


@virtual()
async def test_a_turn_that_the_agent_begins_is_a_turn_of_its_own() -> None:
    agent = agent_with(job=[BeginAlone(5.0, [Say("the job is done")]), Say("started")])
    async with supervising(agent, expiry_s=3.0) as supervisor:
        session = await supervisor.start()
        assert (await (await session.query("job")).result()).text == "started"
        assert (await session.inspect()).background == 1
        await asyncio.sleep(6)
        user, own = await session.turns()
        assert (own.origin, own.text) == (Origin.AGENT, "the job is done")
        assert own.result is not None
        assert user.origin is Origin.USER
        check_log(await session.events().read(10_000))
        await session.ended()
        # Not idle while background work was pending, nor in the second after it.
        assert round(now(), 1) == 9.0


@virtual()
async def test_an_agent_cannot_keep_itself_busy_for_ever() -> None:
    def chain(left: int) -> list[object]:
        return [Say(f"{left}"), *([BeginAlone(1.0, chain(left - 1))] if left else [])]  # type: ignore[arg-type]

    async with supervising(agent_with(go=chain(10)), max_agent_turns=3) as supervisor:
        session = await supervisor.start()
        await (await session.query("go")).result()
        await asyncio.sleep(60)
        failures = [
            turn.result.failure for turn in (await session.turns()) if turn.result is not None
        ]
        assert [failure.code for failure in failures if failure is not None][:1] == [
            FailureCode.AGENT_TURN_LIMIT
        ]
        assert (await (await session.query("x")).result()).outcome is Outcome.COMPLETED


@virtual()
async def test_closing_ends_every_turn_and_answers_everybody() -> None:
    agent = agent_with(slow=SLOW)
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        turns = [await session.query("slow") for _ in range(3)]
        closed = await asyncio.gather(*(session.close() for _ in range(3)))
        assert {each.reason for each in closed} == {CloseReason.REQUESTED}
        assert agent.live == 0
        for turn in turns:
            failure = (await turn.wait()).failure
            assert failure is not None
            assert failure.code is FailureCode.CLOSED
        with pytest.raises(SessionClosed):
            await session.query("x")
        assert (await session.close()).reason is CloseReason.REQUESTED
        check_log(await session.events().read(10_000))


@virtual()
async def test_a_session_can_be_closed_while_its_process_starts() -> None:
    agent = ScriptedAgent(start=Start(hangs=True))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await supervisor.close(session.session_id)
        assert (now(), agent.live) == (0.0, 0)


@virtual()
async def test_an_unused_session_is_closed_and_can_still_be_read() -> None:
    async with supervising(ScriptedAgent(), expiry_s=10.0) as supervisor:
        session = await supervisor.start()
        turn = await session.query("x")
        await turn.result()
        assert (await session.ended()).reason is CloseReason.EXPIRED
        assert round(now(), 1) == 10.0
        found = supervisor.get(session.session_id)
        assert not found.active
        assert (await found.turn(turn.turn_id)).record().text == "You said: x"
        assert supervisor.list() == ()


@virtual()
async def test_a_one_off_ends_with_its_turn_and_is_forgotten_after_its_retention() -> None:
    agent = ScriptedAgent()
    async with supervising(agent) as supervisor:
        turn = await supervisor.query("x")
        await turn.result()
        session = supervisor.get(turn.session_id)
        assert (await session.ended()).reason is CloseReason.FINISHED
        assert agent.live == 0
        assert supervisor.snapshot().sessions[0].kind is SessionKind.ONEOFF
        await asyncio.sleep(3599)
        assert (await supervisor.get(turn.session_id).turn(turn.turn_id)).record().text
        await asyncio.sleep(2)
        with pytest.raises(SessionNotFound):
            supervisor.get(turn.session_id)


@virtual()
async def test_a_one_off_that_crashes_is_lost_and_not_run_again() -> None:
    agent = agent_with(die=[Crash()])
    async with supervising(agent) as supervisor:
        turn = await supervisor.query("die")
        assert (await turn.wait()).outcome is Outcome.LOST
        await supervisor.get(turn.session_id).ended()
    assert agent.spawned == 1


@virtual()
async def test_nobody_hears_of_a_restart_that_a_one_off_does_not_get() -> None:
    agent = agent_with(die=[Crash()])
    async with supervising(agent) as supervisor, supervisor.monitor() as monitor:
        turn = await supervisor.query("die")
        assert (await turn.wait()).outcome is Outcome.LOST
        notice = await anext(aiter(monitor))
        assert isinstance(notice, Down)
        assert notice.reason is CloseReason.FINISHED
        session = supervisor.get(turn.session_id)
        assert session.snapshot().restarts == 0
        assert "restarting" not in await states_of(session)


async def states_of(session: Session) -> list[str]:
    events = await session.events().read(10_000)
    return [event.body.state for event in events if isinstance(event.body, Status)]


@virtual()
async def test_readers_hear_of_each_change_that_no_turn_tells() -> None:
    stubborn = [IgnoreInterrupts(), Pause(1000.0)]
    agent = agent_with(die=[Pause(1.0), Crash()], stubborn=stubborn)
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await (await session.query("x")).result()
        assert await states_of(session) == ["idle"]
        await (await session.query("die")).wait()
        await (await session.query("x")).result()
        assert await states_of(session) == ["idle", "restarting", "starting", "idle"]
        await session.query("stubborn")
        await asyncio.sleep(1)
        await session.interrupt()
        await (await session.query("x")).result()
        assert (await states_of(session))[4:] == ["interrupting", "starting", "idle"]
        await session.close()
        assert (await states_of(session))[7:] == ["closing", "closed"]


@virtual()
async def test_readers_hear_that_a_session_rests_after_an_interrupt() -> None:
    async with supervising(agent_with(slow=SLOW)) as supervisor:
        session = await supervisor.start()
        await session.query("slow")
        await asyncio.sleep(1)
        await session.interrupt()
        await asyncio.sleep(0)
        assert (await states_of(session))[1:] == ["interrupting", "idle"]
        long = await session.query("slow")
        await asyncio.sleep(1)
        await supervisor.drain(10.0)
        assert (await long.wait()).outcome is Outcome.COMPLETED
        assert (await states_of(session))[3:] == ["draining", "closing", "closed"]


@virtual()
async def test_there_are_never_more_sessions_than_allowed() -> None:
    async with supervising(ScriptedAgent(), max_sessions=2) as supervisor:
        sessions = [await supervisor.start() for _ in range(2)]
        with pytest.raises(AtCapacity, match="All 2 sessions") as caught:
            await supervisor.start()
        assert caught.value.retry_after
        await (await supervisor.query("a")).result()
        await supervisor.close(sessions[0].session_id)
        await supervisor.start()


@virtual()
async def test_waiting_for_a_process_and_for_other_turns_are_told_apart() -> None:
    agent = ScriptedAgent(by_prompt({"slow": SLOW}), start=Start(delay_s=2.0))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(0.5)
        turns = [await session.query("slow") for _ in range(2)]
        waits = [(end.spawn_ms, end.queued_ms) for end in [await turn.wait() for turn in turns]]
    assert waits == [(1500, 1500), (1500, 5500)]


@virtual()
async def test_few_processes_come_up_at_the_same_time() -> None:
    agent = ScriptedAgent(start=Start(delay_s=1.0))
    async with supervising(agent, max_starting=2) as supervisor:
        turns = [await supervisor.query("x") for _ in range(6)]
        ends: list[float] = []
        for turn in turns:
            await turn.result()
            ends.append(now())
    assert ends == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]


@virtual()
async def test_a_full_lane_refuses_and_says_when_to_come_back() -> None:
    async with supervising(agent_with(slow=SLOW), max_queued=2) as supervisor:
        session = await supervisor.start()
        await session.query("slow")
        await asyncio.sleep(0.1)
        turns = [await session.query("slow") for _ in range(2)]
        with pytest.raises(MailboxFull) as caught:
            await session.query("slow")
        assert caught.value.retry_after
        with pytest.raises(Busy):
            await session.query("slow", on_busy=OnBusy.REJECT)
        for turn in turns:
            await turn.result()


@virtual()
async def test_a_session_is_somebodys() -> None:
    async with supervising(ScriptedAgent()) as supervisor:
        session = await supervisor.start(owner="alice")
        assert supervisor.get(session.session_id, owner="alice") is session
        with pytest.raises(SessionNotFound):
            supervisor.get(session.session_id, owner="bob")
        with pytest.raises(SessionNotFound):
            await supervisor.close(session.session_id, owner="bob")
        assert supervisor.list(owner="bob") == ()
        assert supervisor.list(owner="alice") == (session,)


@virtual()
async def test_draining_lets_turns_end_and_interrupts_the_rest() -> None:
    agent = agent_with(slow=SLOW, long=[Say("a b c d e f", deltas=6, every_s=10.0)])
    async with supervising(agent) as supervisor:
        quick, slow, idle = [await supervisor.start() for _ in range(3)]
        short, long = await quick.query("slow"), await slow.query("long")
        queued = await slow.query("x")
        await asyncio.sleep(1)
        draining = asyncio.create_task(supervisor.drain(20.0))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await supervisor.start()
        with pytest.raises(Draining):
            await slow.query("y")
        await draining
        assert now() == 21.0
        assert (await short.wait()).outcome is Outcome.COMPLETED
        ended = await long.wait()
        assert (ended.outcome, ended.text) == (Outcome.INTERRUPTED, "a b")
        failure = (await queued.wait()).failure
        assert failure is not None
        assert failure.code is FailureCode.DRAINED
        assert (await idle.ended()).reason is CloseReason.DRAINED
        assert agent.live == 0


@virtual()
async def test_leaving_the_supervisor_ends_everything() -> None:
    agent = agent_with(slow=SLOW, freeze=[Freeze()])
    async with supervising(agent) as supervisor:
        turns = [await supervisor.query(text) for text in ("slow", "freeze", "x")]
        await asyncio.sleep(1)
    assert agent.live == 0
    outcomes = [(await turn.wait()).outcome for turn in turns]
    assert outcomes == [Outcome.INTERRUPTED, Outcome.INTERRUPTED, Outcome.COMPLETED]


@virtual()
async def test_cancelling_the_embedder_leaves_no_process() -> None:
    agent = agent_with(slow=SLOW)

    async def embedder() -> None:
        async with supervising(agent) as supervisor:
            await (await supervisor.query("slow")).result()

    task = asyncio.create_task(embedder())
    await asyncio.sleep(2)
    assert agent.live == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert agent.live == 0


@virtual()
async def test_a_failing_store_ends_its_session_and_answers_everybody() -> None:
    from session_supervisor.stores.memory import MemoryStore
    from tests.support.sessions import supervisor_of

    store = MemoryStore()
    agent = agent_with(slow=SLOW)
    async with supervisor_of(agent, store=store) as supervisor:
        session, sibling = await supervisor.start(), await supervisor.start()
        turns = [await session.query("slow") for _ in range(2)]
        await asyncio.sleep(1)
        await store.acquire(session.session_id)  # somebody else writes from now on
        for turn in turns:
            failure = (await turn.wait()).failure
            assert failure is not None
            assert failure.code is FailureCode.INTERNAL
        assert (await session.ended()).reason is CloseReason.FAULT
        with pytest.raises(SessionClosed):
            await session.query("x")
        assert (await (await sibling.query("x")).result()).outcome is Outcome.COMPLETED
        assert agent.live == 1


@virtual()
async def test_inspect_answers_in_the_middle_of_a_turn() -> None:
    agent = agent_with(build=[UseTool("Bash", seconds=50.0), Say("built")])
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        turn = await session.query("build")
        await session.query("x")
        await asyncio.sleep(2)
        seen = await session.inspect()
        assert seen.state is State.RUNNING
        assert seen.turn_id == turn.turn_id
        assert seen.waiting_for == "tools: Bash"
        assert (seen.queued, seen.last_message_s) == (1, 2.0)
        assert seen.next_timer is not None
        await turn.result()


@virtual()
async def test_bad_values_are_refused_by_name() -> None:
    async with supervising(ScriptedAgent()) as supervisor:
        with pytest.raises(InvalidSpec, match=r"allowed_tools: .*'Nonsense'"):
            await supervisor.start(SessionSpec(allowed_tools=("Nonsense",)))
        session = await supervisor.start()
        with pytest.raises(InvalidSpec, match="prompt"):
            await session.query("  ")
        with pytest.raises(InvalidSpec, match="timeout_s"):
            await session.query("x", timeout_s=0.0)
        with pytest.raises(InvalidSpec, match="after"):
            session.events(after=99)


@virtual()
async def test_a_supervisor_that_was_not_opened_says_how() -> None:
    with pytest.raises(RuntimeError, match="async with Supervisor"):
        await Supervisor(ScriptedAgent()).start()


@virtual()
async def test_a_supervisor_is_opened_once() -> None:
    async with supervising(ScriptedAgent()) as supervisor:
        with pytest.raises(RuntimeError, match="opened once"):
            await supervisor.__aenter__()
        await (await supervisor.query("x")).result()
    with pytest.raises(RuntimeError, match="Make another"):
        await supervisor.__aenter__()
