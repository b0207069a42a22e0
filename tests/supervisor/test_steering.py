"""Sessions that are steered: turns put first or taken out, settings changed, another try."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import uuid4

import pytest

from session_supervisor import RestartPolicy, State, Supervisor, TurnHandle, Watchdogs
from session_supervisor.agents.port import ContextUsage, TurnBegan, TurnEnded
from session_supervisor.agents.scripted import (
    Conversation,
    Manners,
    Pause,
    Say,
    ScriptedAgent,
    Start,
    Step,
    UseTool,
)
from session_supervisor.errors import (
    AgentStartFailed,
    CannotChange,
    NotFailed,
    NotQueued,
    SessionFailed,
    TurnNotFound,
)
from session_supervisor.events import Done, Result
from session_supervisor.messages import Configure, OnBusy, Restart, Settings
from session_supervisor.quotas import Place, Quota, Usage
from session_supervisor.results import Outcome, TurnResult
from session_supervisor.spec import LOCAL_OWNER, Attachment, Prompt, SessionSpec
from tests.supervisor.test_recovery import KeptDirectories, KeptStore
from tests.support.asking import core_of, offer, tell
from tests.support.manual import ManualAgent
from tests.support.sessions import supervising
from tests.support.virtual_time import virtual

IMAGE = Attachment(media_type="image/png", data="aGk=", name="hi.png")


def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    if prompt.text.startswith("slow"):
        yield Say("a b c d", deltas=4, every_s=1.0)
    elif prompt.text == "ask":
        yield UseTool("Bash", asks=True)
    elif prompt.text == "pause":
        yield Pause(10.0)
    yield Say(f"{prompt.text} by {conversation.fingerprint.model}")


async def ends(*turns: TurnHandle) -> list[TurnResult]:
    return sorted(
        [await turn.wait() for turn in turns],
        key=lambda result: result.duration_ms - result.queued_ms,
    )


# -- turns put first ---------------------------------------------------------------------------


@virtual()
async def test_a_query_may_stop_the_running_turn_and_comes_before_those_that_wait() -> None:
    agent = ScriptedAgent(script)
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        running = await session.query("slow")
        await asyncio.sleep(1.5)
        waiting = await session.query("waits")
        first = await offer(session, "first", on_busy=OnBusy.INTERRUPT)
        assert first.position == 1
        assert (await running.wait()).outcome is Outcome.INTERRUPTED
        assert (await first.wait()).outcome is Outcome.COMPLETED
        await waiting.wait()
        assert [prompt.text for prompt in agent.processes[0].sent] == ["slow", "first", "waits"]


@virtual()
async def test_it_waits_as_any_other_where_nothing_runs() -> None:
    agent = ScriptedAgent(script, start=Start(delay_s=5.0))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        waiting = await session.query("waits")
        first = await offer(session, "first", on_busy=OnBusy.INTERRUPT)
        assert first.position == 0
        assert [one.outcome for one in await ends(waiting, first)] == [Outcome.COMPLETED] * 2
        assert [prompt.text for prompt in agent.processes[0].sent] == ["first", "waits"]


@virtual()
async def test_it_also_stops_a_turn_that_waits_for_a_human() -> None:
    async with supervising(ScriptedAgent(script)) as supervisor:
        session = await supervisor.start()
        waiting = await offer(session, "ask", on_permission="ask")
        await asyncio.sleep(1.0)
        assert session.snapshot().state is State.WAITING
        first = await offer(session, "first", on_busy=OnBusy.INTERRUPT)
        assert (await waiting.wait()).outcome is Outcome.INTERRUPTED
        assert (await first.wait()).outcome is Outcome.COMPLETED


@virtual()
async def test_a_drain_that_comes_with_it_ends_everything() -> None:
    async with supervising(ScriptedAgent(script)) as supervisor:
        session = await supervisor.start()
        running = await session.query("slow")
        await asyncio.sleep(1.5)
        first = asyncio.ensure_future(offer(session, "first", on_busy=OnBusy.INTERRUPT))
        await asyncio.sleep(0.0)
        draining = asyncio.ensure_future(supervisor.drain(60.0))
        await draining
        assert (await running.wait()).outcome is Outcome.INTERRUPTED
        assert (await (await first).wait()).outcome is Outcome.FAILED


# -- turns taken out ---------------------------------------------------------------------------


@virtual()
async def test_a_turn_that_waits_can_be_taken_out_and_no_other() -> None:
    agent = ScriptedAgent(script)
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        running, waiting = await session.query("slow"), await session.query("waits")
        await asyncio.sleep(1.0)
        await session.withdraw(waiting.turn_id)
        assert (await waiting.wait()).outcome is Outcome.INTERRUPTED
        with pytest.raises(NotQueued, match="It runs: interrupt it"):
            await session.withdraw(running.turn_id)
        assert (await running.wait()).outcome is Outcome.COMPLETED
        for turn in (running, waiting):
            with pytest.raises(NotQueued, match="It has ended"):
                await session.withdraw(turn.turn_id)
        with pytest.raises(TurnNotFound):
            await session.withdraw("nothing")
        assert [prompt.text for prompt in agent.processes[0].sent] == ["slow"]


# -- what can be changed -----------------------------------------------------------------------


@virtual()
async def test_a_change_is_in_force_for_the_live_process_and_for_every_later_one() -> None:
    store, agent = KeptStore(), ScriptedAgent(script)
    directories = KeptDirectories()
    async with Supervisor(agent, store=store, workspaces=directories) as supervisor:
        session = await supervisor.start(SessionSpec(model="one", title="T", metadata={"a": "b"}))
        await (await session.query("x")).result()
        settings = await tell(session, Configure(model="two", permission_mode="plan"))
        assert settings == Settings(
            model="two", permission_mode="plan", title="T", metadata={"a": "b"}
        )
        settings = await tell(session, Configure(title="", metadata={}))
        assert (settings.title, settings.metadata) == (None, {})
        assert (await (await session.query("x")).result()).text == "x by two"
        assert agent.spawned == 1
        session_id = session.session_id
    async with Supervisor(agent, store=store, workspaces=directories) as supervisor:
        session = supervisor.get(session_id)
        assert (await (await session.query("x")).result()).text == "x by two"
        assert agent.processes[1].fingerprint.permission_mode == "plan"
        settings = await tell(session, Configure(permission_mode="default"))
        assert settings == Settings(model="two", permission_mode="default", title=None, metadata={})


@virtual()
async def test_what_changes_while_the_process_comes_up_it_is_told_before_its_first_turn() -> None:
    agent = ScriptedAgent(script, start=Start(delay_s=5.0))
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        turn = await session.query("x")
        await asyncio.sleep(1.0)
        await tell(session, Configure(model="two"))
        assert (await turn.result()).text == "x by two"


@virtual()
async def test_a_process_that_cannot_change_is_replaced_before_the_next_turn() -> None:
    agent = ScriptedAgent(script, manners=Manners(cannot_change=("model",)))
    async with supervising(agent) as supervisor:
        session = await supervisor.start(SessionSpec(model="one"))
        running, waiting = await session.query("slow"), await session.query("x")
        await asyncio.sleep(1.5)
        assert (await tell(session, Configure(model="two"))).model == "two"
        assert (await running.result()).text.endswith("slow by one")
        assert (await waiting.result()).text == "x by two"
        assert (agent.spawned, agent.forks) == (2, 0)
        await tell(session, Configure(model="three"))
        await asyncio.sleep(1.0)
        assert session.snapshot().state is State.HIBERNATED
        assert (await (await session.query("x")).result()).text == "x by three"


@pytest.mark.parametrize(
    "error", [None, CannotChange("no"), RuntimeError("it did not like the weather")]
)
@virtual()
async def test_a_process_that_does_not_say_whether_it_changed_is_replaced(
    error: Exception | None,
) -> None:
    agent = ManualAgent()
    agent.configure_error, agent.configure_s = error, 1_000.0
    async with supervising(agent, watchdogs=Watchdogs(probe_s=3.0)) as supervisor:
        session = await supervisor.start(SessionSpec(model="one"))
        await asyncio.sleep(1.0)
        await tell(session, Configure(model="two"))
        await asyncio.sleep(4.0)
        assert session.snapshot().state is State.HIBERNATED
        await session.wake()
        await asyncio.sleep(1.0)
        assert [one.model for one in agent.fingerprints] == ["one", "two"]


@virtual()
async def test_who_was_told_of_a_change_has_it_in_the_next_turn_whatever_the_process_says() -> None:
    agent = ManualAgent()
    agent.configure_s = 1_000.0
    async with supervising(agent, watchdogs=Watchdogs(probe_s=3.0)) as supervisor:
        session = await supervisor.start(SessionSpec(model="one"))
        await asyncio.sleep(1.0)
        await session.configure(model="two")
        turn = await session.query("x")
        await asyncio.sleep(5.0)
        assert [one.model for one in agent.fingerprints] == ["one", "two"]
        assert not agent.processes[0].sent
        agent.processes[1].say_turn(turn.turn_id, "done")
        await turn.result()


@virtual()
async def test_a_prompt_does_not_overtake_a_change_that_was_accepted_before_it() -> None:
    agent = ManualAgent()
    agent.configure_s = 1.0
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1.0)
        changing = asyncio.create_task(session.configure(model="two"))
        await asyncio.sleep(0.5)
        turn = await session.query("x")
        assert not changing.done()
        await asyncio.sleep(2.0)
        assert (await changing).model == "two"
        (process,) = agent.processes
        assert process.told == ["configuration", "prompt"]
        assert process.configured == [("two", None)]
        process.say_turn(turn.turn_id, "done")
        await turn.result()


# -- another try -------------------------------------------------------------------------------


@virtual()
async def test_a_session_that_failed_works_again_when_it_is_restarted() -> None:
    agent = ScriptedAgent(script)
    restarts = RestartPolicy(max_restarts=1, window_s=1e6)
    async with supervising(agent, restarts=restarts) as supervisor:
        session = await supervisor.start(quota=Quota(sessions=1))
        await (await session.query("x")).result()
        with pytest.raises(NotFailed):
            await tell(session, Restart())
        for _ in range(2):
            await asyncio.sleep(1.0)
            agent.processes[-1].crash()
        await asyncio.sleep(1.0)
        assert session.snapshot().state is State.FAILED
        with pytest.raises(SessionFailed):
            await session.query("x")
        assert supervisor.usage(LOCAL_OWNER) == Usage(sessions=0, turns=0)
        place = core_of(session).account.take_session(Quota(sessions=1))
        assert await tell(session, Restart(place=place)) is State.STARTING
        assert (await (await session.query("again")).result()).outcome is Outcome.COMPLETED
        assert supervisor.usage(LOCAL_OWNER) == Usage(sessions=1, turns=0)
        assert supervisor.list() == (session,)
        agent.processes[-1].crash()
        await asyncio.sleep(1.0)
        assert session.snapshot().state is State.IDLE, "what it may restart is counted anew"
        await asyncio.sleep(10_000.0)
        assert session.snapshot().state is State.IDLE, "and it is kept"


@virtual()
async def test_it_is_restarted_only_when_its_last_process_is_gone() -> None:
    agent = ScriptedAgent(script, manners=Manners(stop_s=5.0))
    async with supervising(agent, restarts=RestartPolicy(max_restarts=0)) as supervisor:
        session = await supervisor.start()
        await session.query("pause")
        await asyncio.sleep(1.0)
        agent.processes[0].freeze()
        await asyncio.sleep(21.0)
        assert (session.state, agent.live) == (State.FAILED, 1)
        given_back: list[int] = []
        second = Restart(place=Place(lambda: given_back.append(2)))
        results = await asyncio.gather(
            tell(session, Restart()), tell(session, second), return_exceptions=True
        )
        assert results[0] is State.STARTING
        assert isinstance(results[1], NotFailed)
        assert given_back == [2]
        await (await session.query("again")).result()
        assert (agent.spawned, agent.most_live, agent.forks) == (2, 1, 0)


@virtual()
async def test_one_that_fails_again_can_be_restarted_again() -> None:
    agent = ScriptedAgent(script)
    agent.start = Start(error=AgentStartFailed("it did not like the weather"))
    async with supervising(agent, restarts=RestartPolicy(max_restarts=0)) as supervisor:
        session = await supervisor.start()
        await asyncio.sleep(1.0)
        for _ in range(3):
            assert session.snapshot().state is State.FAILED
            await tell(session, Restart())
            await asyncio.sleep(1.0)
        agent.start = Start()
        await tell(session, Restart())
        assert (await (await session.query("x")).result()).outcome is Outcome.COMPLETED


# -- looking inside ----------------------------------------------------------------------------


@virtual()
async def test_how_full_the_context_is_is_said_where_it_is_asked_for_and_known_in_time() -> None:
    agent = ManualAgent()
    agent.spawn_s = 0.5
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        assert (await session.inspect(context=True)).context is None
        await asyncio.sleep(1.0)
        assert (await session.inspect()).context is None
        usage = (await session.inspect(context=True)).context
        assert usage == ContextUsage(tokens=1_000, max_tokens=200_000)
        agent.context_s = 1_000.0
        assert (await session.inspect(context=True)).context is None
        looking = asyncio.ensure_future(session.inspect(context=True))
        await asyncio.sleep(0.5)
        agent.processes[0].die()
        assert (await looking).context is None


# -- what goes with a prompt -------------------------------------------------------------------


@virtual()
async def test_attachments_are_durable_until_their_turn_has_ended() -> None:
    store, agent = KeptStore(), ScriptedAgent(script)
    directories = KeptDirectories()
    prompt = Prompt(prompt_id=str(uuid4()), text="look", attachments=(IMAGE,), command=True)
    async with Supervisor(agent, store=store, workspaces=directories) as supervisor:
        session = await supervisor.start()
        await session.query("slow")
        await asyncio.sleep(1.0)
        turn = await offer(session, prompt, on_permission="ask", permission_timeout_s=7.0)
        assert turn.record().attachments == (IMAGE,)
    async with Supervisor(agent, store=store, workspaces=directories) as supervisor:
        session = supervisor.get(session.session_id)
        found = await session.turn(prompt.prompt_id)
        record = found.record()
        assert (record.on_permission, record.permission_timeout_s) == ("ask", 7.0)
        await found.wait()
        assert agent.processes[1].sent == [prompt]
        record = (await session.turn(prompt.prompt_id)).record()
        assert record.attachments == (Attachment(media_type="image/png", data="", name="hi.png"),)
        assert record.command


@virtual()
async def test_what_the_agent_gives_as_json_is_in_the_result_and_its_events() -> None:
    agent = ManualAgent()
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        turn = await session.query("x")
        await asyncio.sleep(1.0)
        ids = (turn.turn_id,)
        agent.processes[0].say(
            TurnBegan(prompt_ids=ids),
            TurnEnded(prompt_ids=ids, structured_output={"a": [1]}, anchor="here"),
        )
        accounting = (await turn.result()).accounting
        assert (accounting.structured_output, accounting.anchor) == ({"a": [1]}, "here")
        said = [event.body async for event in turn]
        outputs = [body.structured_output for body in said if isinstance(body, (Done, Result))]
        assert outputs == [{"a": [1]}] * 2
