"""What needs a human: asked, answered once, stored before anybody acts on it, and never left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from session_supervisor import Session, State, Supervisor, TurnHandle
from session_supervisor.agents.port import (
    AskWithdrawn,
    BackgroundWork,
    PermissionAsked,
    TurnBegan,
    TurnEnded,
)
from session_supervisor.agents.scripted import (
    AskQuestions,
    BeginAlone,
    Say,
    ScriptedAgent,
    UseTool,
    by_prompt,
)
from session_supervisor.asks import (
    Allow,
    Answers,
    Choice,
    Deny,
    Question,
    Request,
    RequestKind,
    Resolution,
    Rule,
)
from session_supervisor.config import Watchdogs
from session_supervisor.errors import (
    FailureCode,
    InvalidSpec,
    RequestNotFound,
    RequestOver,
    SessionClosed,
)
from session_supervisor.events import (
    Event,
    PermissionRequest,
    Resolved,
    Status,
    ToolResult,
)
from session_supervisor.messages import InterruptOutcome
from session_supervisor.requests import NOBODY_THERE, STOPPED
from session_supervisor.results import Outcome
from session_supervisor.stores.records import Batch
from tests.supervisor.test_recovery import KeptDirectories, KeptStore
from tests.support.asking import offer
from tests.support.manual import ManualAgent, ManualProcess
from tests.support.sessions import bodies, check_log, supervising
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

MAKE = UseTool("Bash", input={"command": "make"}, result="built", asks=True)
COLOUR = Question(question="Which colour?", options=(Choice(label="red"), Choice(label="blue")))
SIZES = Question(question="Which sizes?", multi_select=True)

SCRIPT = by_prompt(
    {
        "make": [MAKE, Say("It is built.")],
        "twice": [MAKE, MAKE, Say("It is built.")],
        "edit": [UseTool("Write", input={"file_path": "a"}, asks=True), Say("Written.")],
        "choose": [AskQuestions((COLOUR, SIZES)), Say("So be it.")],
        "alone": [BeginAlone(1.0, [MAKE, Say("by myself")], background=False), Say("later")],
    }
)


@asynccontextmanager
async def asking(**config: Any) -> AsyncGenerator[tuple[Supervisor, Session, ScriptedAgent], None]:
    manners = config.pop("manners", None)
    agent = ScriptedAgent(SCRIPT, manners=manners)
    config.setdefault("on_permission", "ask")
    async with supervising(agent, **config) as supervisor:
        yield supervisor, await supervisor.start(), agent


async def ask(session: Session, prompt: str, **more: Any) -> TurnHandle:
    more.setdefault("permission_timeout_s", 600.0)
    return await offer(session, prompt, on_permission="ask", **more)


async def pending(session: Session) -> Request:
    """Return the one thing that waits for a human, once there is one."""
    async for event in session.events():
        if isinstance(event.body, PermissionRequest) or event.body.type == "question":
            waiting = await session.requests(pending=True)
            if [one.request_id for one in waiting] == [event.body.request_id]:
                return waiting[0]
    raise AssertionError("nothing was asked")


async def said(session: Session, *, whole: bool = True) -> list[Any]:
    """Return what a session has said, which is as promised if it is whole."""
    log, cursor = list[Event](), session.events()
    while batch := await cursor.read_nowait(10_000):
        log += batch
    if whole:
        check_log(log)
    return bodies(log)


def resolutions(log: Sequence[Any]) -> list[tuple[str, Resolution]]:
    return [(body.request_id, body.resolution) for body in log if isinstance(body, Resolved)]


# -- asked and answered ------------------------------------------------------------------------


@virtual()
async def test_a_tool_call_waits_for_a_human_and_runs_when_it_is_allowed() -> None:
    async with asking() as (_, session, _):
        turn = await ask(session, "make")
        request = await pending(session)
        assert session.snapshot().state is State.WAITING
        assert (request.tool, request.input) == ("Bash", {"command": "make"})
        assert request.turn_id == turn.turn_id
        assert request.expires_at is not None
        assert (request.expires_at - request.asked_at).total_seconds() == 600.0
        assert (await session.inspect()).requests == (request.request_id,)
        assert (await session.inspect()).waiting_for == "a human, about Bash"
        await asyncio.sleep(100.0)
        decided = await session.decide(request.request_id, Allow())
        assert decided.resolution is Resolution.ALLOWED
        assert decided.decision == Allow()
        assert (await turn.result()).text == "It is built."
        assert (await session.inspect()).next_timer is None, "its deadline went with it"
        log = await said(session)
        results = [body.content for body in log if isinstance(body, ToolResult)]
        assert results == ["built"]
        assert resolutions(log) == [(request.request_id, Resolution.ALLOWED)]
        assert State.WAITING not in [body.state for body in log if isinstance(body, Status)]
        assert await session.requests() == (decided,)
        assert await session.requests(pending=True) == ()
        assert await session.request(request.request_id) == decided


@virtual()
async def test_it_does_not_run_when_it_is_denied_and_the_turn_goes_on() -> None:
    async with asking() as (_, session, _):
        turn = await ask(session, "make")
        request = await pending(session)
        await session.decide(request.request_id, Deny(message="Not today."))
        assert (await turn.result()).outcome is Outcome.COMPLETED
        log = await said(session)
        (result,) = [body for body in log if isinstance(body, ToolResult)]
        assert (result.content, result.is_error) == ("Not today.", True)
        (resolved,) = [body for body in log if isinstance(body, Resolved)]
        assert (resolved.resolution, resolved.message) == (Resolution.DENIED, "Not today.")


@virtual()
async def test_a_denial_may_end_the_turn() -> None:
    async with asking() as (_, session, agent):
        turn = await ask(session, "make")
        request = await pending(session)
        await session.decide(request.request_id, Deny(end_turn=True))
        assert (await turn.wait()).outcome is Outcome.INTERRUPTED
        assert (await (await session.query("next")).result()).text.startswith("You said: next")
        assert agent.spawned == 1


@virtual()
async def test_an_agent_that_does_not_end_its_turn_at_a_denial_is_stopped() -> None:
    process, session, close = await manual()
    process.say(permission("a"), permission("b"))
    await asyncio.sleep(1.0)
    await session.decide("a", Deny(end_turn=True))
    await asyncio.sleep(1.0)
    assert session.snapshot().state is State.INTERRUPTING
    assert process.told == ["prompt", "answer", "interrupt", "answer"]
    assert process.answered == [("a", Deny(end_turn=True)), ("b", STOPPED)]
    await asyncio.sleep(10.0)
    assert process.exit is not None
    (record,) = await session.turns()
    assert record.result is not None
    assert record.result.outcome is Outcome.INTERRUPTED
    await close()


@virtual()
async def test_only_the_first_answer_counts_and_the_second_is_shown_it() -> None:
    async with asking() as (_, session, agent):
        turn = await ask(session, "make")
        request = await pending(session)
        first, second = await asyncio.gather(
            session.decide(request.request_id, Allow()),
            session.decide(request.request_id, Deny()),
            return_exceptions=True,
        )
        assert isinstance(first, Request)
        assert isinstance(second, RequestOver)
        assert second.request == first
        await turn.result()
        with pytest.raises(RequestOver, match="it was allowed"):
            await session.decide(request.request_id, Allow())
        assert agent.processes[0].answers == [(request.request_id, Allow())]


@virtual()
async def test_who_asks_for_what_there_is_not_is_told_so() -> None:
    async with asking() as (_, session, _):
        with pytest.raises(RequestNotFound):
            await session.decide("nothing", Allow())
        with pytest.raises(RequestNotFound):
            await session.request("nothing")


@virtual()
async def test_questions_are_answered_by_their_text() -> None:
    async with asking() as (_, session, _):
        turn = await ask(session, "choose")
        request = await pending(session)
        assert request.kind is RequestKind.QUESTION
        assert request.questions == (COLOUR, SIZES)
        answers = Answers(answers={"Which colour?": ("green",), "Which sizes?": ("S", "M")})
        assert (await session.decide(request.request_id, answers)).resolution is Resolution.ANSWERED
        await turn.result()
        (result,) = [body for body in await said(session) if isinstance(body, ToolResult)]
        assert result.content == '{"Which colour?": ["green"], "Which sizes?": ["S", "M"]}'


@pytest.mark.parametrize(
    ("prompt", "decision", "match"),
    [
        ("make", Answers(answers={}), "a permission is allowed or denied"),
        ("choose", Allow(), "a question is answered, or denied"),
        ("choose", Answers(answers={}), "there is none to 'Which colour"),
        (
            "choose",
            Answers(answers={"Which colour?": ("red",), "Which sizes?": (" ",)}),
            "there is none to 'Which sizes",
        ),
        (
            "choose",
            Answers(answers={"Which colour?": ("red",), "Which sizes?": ("S", " ")}),
            "or an empty one",
        ),
        (
            "choose",
            Answers(answers={"Which colour?": ("red",), "Which sizes?": ("S", "M", "S")}),
            "one to 'Which sizes.' is given twice",
        ),
        (
            "choose",
            Answers(answers={"Which colour?": ("red", "blue"), "Which sizes?": ("S",)}),
            "only one to 'Which colour",
        ),
        (
            "choose",
            Answers(answers={"Which colour?": ("red",), "Which sizes?": ("S",), "What?": ("x",)}),
            "there is no question 'What",
        ),
    ],
)
@virtual()
async def test_what_is_no_answer_is_refused_and_has_no_effect(
    prompt: str, decision: Any, match: str
) -> None:
    async with asking() as (_, session, agent):
        await ask(session, prompt)
        request = await pending(session)
        with pytest.raises(InvalidSpec, match=match):
            await session.decide(request.request_id, decision)
        assert await session.requests(pending=True) == (request,)
        assert not agent.processes[0].answers


# -- policies ----------------------------------------------------------------------------------


@virtual()
async def test_where_nobody_is_to_be_asked_it_is_denied_at_once_and_nothing_is_recorded() -> None:
    async with asking(on_permission="deny") as (_, session, agent):
        turn = await session.query("make")
        assert (await turn.result()).outcome is Outcome.COMPLETED
        ((_, decision),) = agent.processes[0].answers
        assert decision == NOBODY_THERE
        assert await session.requests() == ()
        assert not [one for one in await said(session) if isinstance(one, PermissionRequest)]


@virtual()
async def test_at_the_deadline_it_is_denied_and_the_turn_goes_on() -> None:
    async with asking() as (_, session, agent):
        turn = await ask(session, "make", permission_timeout_s=30.0)
        request = await pending(session)
        await asyncio.sleep(29.0)
        assert session.snapshot().state is State.WAITING
        assert (await turn.result()).outcome is Outcome.COMPLETED
        ((_, told),) = agent.processes[0].answers
        assert isinstance(told, Deny)
        assert told.message == "Nobody answered within 30 s, so it was denied."
        over = await session.request(request.request_id)
        assert (over.resolution, over.decision) == (Resolution.EXPIRED, None)
        with pytest.raises(RequestOver, match="it was expired"):
            await session.decide(request.request_id, Allow())
        assert (await session.inspect()).next_timer is None


@virtual()
async def test_what_was_remembered_needs_no_permission_any_more_in_any_process() -> None:
    rule = Rule(tool="Bash", content="make")
    async with asking() as (_, session, agent):
        turn = await ask(session, "twice")
        request = await pending(session)
        await session.decide(request.request_id, Allow(remember=(rule, rule)))
        await turn.result()
        assert len(await session.requests()) == 1
        agent.processes[0].crash()
        await asyncio.sleep(1.0)
        await (await ask(session, "make")).result()
        assert len(await session.requests()) == 1
        assert agent.processes[1].fingerprint.rules == (rule,)


# -- time --------------------------------------------------------------------------------------


@virtual()
async def test_the_turns_time_stands_still_while_a_human_is_awaited() -> None:
    watchdogs = Watchdogs(first_byte_s=20.0, progress_s=20.0)
    async with asking(watchdogs=watchdogs) as (_, session, _):
        turn = await ask(session, "twice", timeout_s=10.0, permission_timeout_s=None)
        for _ in range(2):
            request = await pending(session)
            assert request.expires_at is None
            await asyncio.sleep(5_000.0)
            await session.decide(request.request_id, Allow())
            await asyncio.sleep(0.0)
        assert (await turn.wait()).outcome is Outcome.COMPLETED


@virtual()
async def test_what_is_left_of_a_turns_time_runs_on_afterwards() -> None:
    process, session, close = await manual(timeout_s=10.0)
    await asyncio.sleep(4.0)
    process.say(permission("a"), permission("b"))
    await asyncio.sleep(100.0)
    await session.decide("a", Allow())
    await asyncio.sleep(100.0)
    assert session.snapshot().state is State.WAITING
    await session.decide("b", Allow())
    assert session.snapshot().state is State.RUNNING
    await asyncio.sleep(5.9)
    assert session.snapshot().state is State.RUNNING
    await asyncio.sleep(0.2)
    assert session.snapshot().state is State.INTERRUPTING
    (record,) = await session.turns()
    assert record.result is not None
    assert record.result.failure is not None
    assert record.result.failure.code is FailureCode.TIMEOUT
    await close()


@virtual()
async def test_the_model_has_its_time_again_once_a_human_has_answered() -> None:
    process, session, close = await manual(watchdogs=Watchdogs(first_byte_s=20.0))
    process.say(permission("a"))
    await asyncio.sleep(500.0)
    await session.decide("a", Allow())
    await asyncio.sleep(19.0)
    assert session.snapshot().state is State.RUNNING
    await asyncio.sleep(2.0)
    assert session.snapshot().state is State.INTERRUPTING
    await close()


# -- how it ends otherwise ---------------------------------------------------------------------


@virtual()
async def test_an_interrupt_cancels_what_was_asked_and_tells_the_agent_after_it() -> None:
    process, session, close = await manual()
    process.say(permission("a"))
    await asyncio.sleep(1.0)
    interrupt = asyncio.ensure_future(session.interrupt())
    await asyncio.sleep(1.0)
    assert session.snapshot().state is State.INTERRUPTING
    assert process.told[-2:] == ["interrupt", "answer"]
    assert process.answered == [("a", STOPPED)]
    with pytest.raises(RequestOver, match="cancelled"):
        await session.decide("a", Allow())
    process.say(permission("late"))
    await asyncio.sleep(0.1)
    assert process.answered[1:] == [("late", STOPPED)], "nobody is asked for a turn that is over"
    process.say(TurnEnded(prompt_ids=(process.sent[0].prompt_id,), interrupted=True))
    assert (await interrupt).outcome is InterruptOutcome.INTERRUPTED
    assert len(await session.requests()) == 1
    await close()


@virtual()
async def test_what_the_agent_withdraws_is_cancelled_and_it_is_not_told() -> None:
    process, session, close = await manual()
    process.say(permission("a"), AskWithdrawn("a"), AskWithdrawn("never asked"))
    await asyncio.sleep(1.0)
    assert session.snapshot().state is State.RUNNING
    assert resolutions(await said(session)) == [("a", Resolution.CANCELLED)]
    assert not process.answered
    await close()


@virtual()
async def test_a_turn_that_ends_takes_what_it_asked_along_before_its_end() -> None:
    process, session, close = await manual()
    turn_id = process.sent[0].prompt_id
    process.say(permission("a"), TurnEnded(prompt_ids=(turn_id,)))
    await asyncio.sleep(1.0)
    assert session.snapshot().state is State.IDLE
    log = await said(session)  # which checks that the turn's end is its last event
    assert resolutions(log) == [("a", Resolution.CANCELLED)]
    assert process.answered == [("a", STOPPED)]
    await close()


@virtual()
async def test_a_crash_loses_what_was_asked() -> None:
    async with asking() as (_, session, agent):
        turn = await ask(session, "make")
        request = await pending(session)
        agent.processes[0].crash()
        assert (await turn.wait()).outcome is Outcome.LOST
        over = await session.request(request.request_id)
        assert over.resolution is Resolution.LOST
        with pytest.raises(RequestOver, match="lost"):
            await session.decide(request.request_id, Allow())
        await (await session.query("next")).result()
        assert not agent.processes[1].answers


@virtual()
async def test_closing_cancels_what_was_asked_and_who_answers_then_is_shown_that() -> None:
    async with asking() as (_, session, _):
        await ask(session, "make")
        request = await pending(session)
        closing = asyncio.ensure_future(session.close())
        deciding = asyncio.ensure_future(session.decide(request.request_id, Allow()))
        await closing
        with pytest.raises(RequestOver, match="cancelled"):
            await deciding
        with pytest.raises(RequestOver, match="cancelled"):
            await session.decide(request.request_id, Allow())
        with pytest.raises(SessionClosed):
            await session.decide("unknown", Allow())


@virtual()
async def test_a_draining_session_can_still_be_answered() -> None:
    async with asking() as (supervisor, session, _):
        turn = await ask(session, "make")
        request = await pending(session)
        draining = asyncio.ensure_future(supervisor.drain(60.0))
        await asyncio.sleep(50.0)
        assert session.snapshot().state is State.DRAINING
        await session.decide(request.request_id, Allow())
        assert (await turn.result()).text == "It is built."
        await draining


@virtual()
async def test_at_the_end_of_the_grace_it_is_cancelled() -> None:
    async with asking() as (supervisor, session, _):
        turn = await ask(session, "make")
        request = await pending(session)
        await supervisor.drain(60.0)
        assert (await turn.wait()).outcome is Outcome.INTERRUPTED
        assert (await session.request(request.request_id)).resolution is Resolution.CANCELLED


@virtual()
async def test_what_was_asked_before_the_server_went_away_is_lost() -> None:
    store, agent = KeptStore(), ScriptedAgent(SCRIPT)
    directories = KeptDirectories()
    first = Supervisor(agent, store=store, workspaces=directories, random=lambda: 0.0)
    await first.__aenter__()
    session = await first.start()
    await ask(session, "make")
    request = await pending(session)
    await store.take_over()  # nothing that the first writes from here on counts
    agent.processes[0].crash()
    await first.__aexit__(None, None, None)
    async with Supervisor(agent, store=store, workspaces=directories) as second:
        found = second.get(session.session_id)
        await asyncio.sleep(0.1)
        assert await found.requests(pending=True) == ()
        assert (await found.request(request.request_id)).resolution is Resolution.LOST
        assert resolutions(await said(found, whole=False)) == [
            (request.request_id, Resolution.LOST)
        ]
        with pytest.raises(RequestOver, match="lost"):
            await found.decide(request.request_id, Allow())
        assert agent.spawned == 1, "and it does not run by itself"


@virtual()
async def test_a_turn_of_the_agents_own_asks_as_the_session_says() -> None:
    async with asking() as (_, session, _):
        await session.query("alone")
        request = await pending(session)
        assert session.snapshot().state is State.WAITING
        await session.decide(request.request_id, Allow())
        await asyncio.sleep(1.0)
        assert session.snapshot().state is State.IDLE


@virtual()
async def test_what_is_asked_in_the_background_keeps_the_process_and_leaves_the_session_idle() -> (
    None
):
    process, session, close = await manual(idle_timeout_s=5.0)
    turn_id = process.sent[0].prompt_id
    process.say(BackgroundWork(pending=1), TurnEnded(prompt_ids=(turn_id,)), permission("a"))
    process.say(BackgroundWork(pending=0))
    await asyncio.sleep(100.0)
    assert session.snapshot().state is State.IDLE
    assert await session.hibernate() is State.IDLE
    (request,) = await session.requests(pending=True)
    assert request.turn_id is None
    await session.decide("a", Allow())
    await asyncio.sleep(10.0)
    assert process.answered == [("a", Allow())]
    assert session.snapshot().state is State.HIBERNATED
    await close()


@virtual()
async def test_what_is_asked_in_the_background_ends_with_the_process_or_the_session() -> None:
    for end, resolution in (("crash", Resolution.LOST), ("close", Resolution.CANCELLED)):
        process, session, close = await manual()
        turn_id = process.sent[0].prompt_id
        process.say(BackgroundWork(pending=1), TurnEnded(prompt_ids=(turn_id,)), permission("a"))
        await asyncio.sleep(1.0)
        assert session.snapshot().state is State.IDLE
        if end == "crash":
            process.die()
            await asyncio.sleep(0.1)
        else:
            await session.close()
        assert (await session.request("a")).resolution is resolution
        assert resolutions(await said(session)) == [("a", resolution)]
        await close()


# -- stored before anybody acts ----------------------------------------------------------------


class Watching(HardStore):
    """A store that notes what an agent had been told when something was stored."""

    def __init__(self) -> None:
        super().__init__()
        self.append_s = 1.0
        self.seen: list[tuple[str | None, int]] = []
        self.process: ManualProcess | None = None

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)
        told = 0 if self.process is None else len(self.process.answered)
        self.seen += [(one.resolution, told) for one in batch.requests]


@virtual()
async def test_a_request_and_its_answer_are_stored_before_anybody_hears_of_them() -> None:
    store = Watching()
    process, session, close = await manual(store=store)
    store.process = process
    process.say(permission("a"))
    await asyncio.sleep(0.5)
    assert session.snapshot().state is State.WAITING
    assert await session.requests(pending=True) == ()
    assert not [one for one in await said(session) if isinstance(one, PermissionRequest)]
    request = await pending(session)
    deciding = asyncio.ensure_future(session.decide(request.request_id, Allow()))
    await asyncio.sleep(0.5)
    assert not deciding.done()
    assert not process.answered
    await deciding
    await asyncio.sleep(0.0)
    assert store.seen == [(None, 0), (Resolution.ALLOWED, 0)]
    assert process.answered == [("a", Allow())]
    await close()


@virtual()
async def test_an_answer_that_could_not_be_stored_is_none() -> None:
    store = HardStore()
    process, session, close = await manual(store=store)
    process.say(permission("a"))
    await pending(session)
    store.bad_appends = 1
    with pytest.raises((SessionClosed, RequestOver)):
        await session.decide("a", Allow())
    await session.ended()
    assert not process.answered
    assert resolutions(await said(session)) == [("a", Resolution.LOST)]
    await close()


# -- an agent by hand --------------------------------------------------------------------------


def permission(request_id: str) -> PermissionAsked:
    return PermissionAsked(request_id=request_id, tool="Bash", tool_use_id="t", input={"c": 1})


async def manual(
    timeout_s: float | None = None, **config: Any
) -> tuple[ManualProcess, Session, Any]:
    """Return a process that was handed a turn, its session, and what ends them."""
    agent = ManualAgent()
    config.setdefault("on_permission", "ask")
    context = supervising(agent, **config)
    supervisor = await context.__aenter__()

    async def close() -> None:
        for process in agent.processes:
            process.die()
        await context.__aexit__(None, None, None)

    session = await supervisor.start()
    turn = await ask(session, "go", timeout_s=timeout_s)
    await asyncio.sleep(0.0)
    while not agent.processes or not agent.processes[0].sent:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    process = agent.processes[0]
    process.say(TurnBegan(prompt_ids=(turn.turn_id,)))
    return process, session, close
