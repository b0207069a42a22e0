"""Sessions that begin with what another knows; on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_supervisor import (
    ClaimKey,
    OnBusy,
    Quota,
    RestartPolicy,
    Session,
    State,
    Supervisor,
    Usage,
)
from session_supervisor.agents.port import Fingerprint, Initialized, ToolStarted
from session_supervisor.agents.scripted import (
    BeginAlone,
    Conversation,
    Crash,
    Manners,
    Pause,
    Say,
    ScriptedAgent,
    Start,
    Step,
    UseTool,
)
from session_supervisor.asks import Allow, Rule
from session_supervisor.errors import (
    AgentError,
    AgentStartFailed,
    AtCapacity,
    Busy,
    ClaimConflict,
    Draining,
    InvalidSpec,
    NotFailed,
    NothingToFork,
    QuotaExceeded,
    Refused,
    ResumeNotFound,
    SessionClosed,
    SessionNotFound,
    TurnFailed,
    TurnNotFound,
    Unavailable,
)
from session_supervisor.spec import Prompt, SessionSpec
from tests.supervisor.test_recovery import KeptStore, supervisor_on
from tests.support.manual import ManualAgent
from tests.support.sessions import ImaginaryDirectories, supervisor_of
from tests.support.stores import HardStore
from tests.support.virtual_time import virtual

NOTHING = Usage(sessions=0, turns=0)


def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    match prompt.text:
        case "slow":
            yield Pause(10.0)
        case "crash":
            yield Crash()
        case "job":
            yield BeginAlone(5.0, [Say("by itself")])
        case "ask":
            yield UseTool("Bash", input={"command": "make"}, asks=True)
        case _:
            pass
    yield Say(",".join((*conversation.earlier, prompt.text)))


class Copyist(ScriptedAgent):
    """Takes its time to copy, and looks whether anybody works on what is copied."""

    def __init__(self, *, copy_s: float = 0.0, **more: Any) -> None:
        super().__init__(script, **more)
        self.copy_s = copy_s
        self.after_s = 0.0
        self.error: Exception | None = None
        self.disturbed = 0
        self.copies: list[str] = []

    async def fork(
        self,
        fingerprint: Fingerprint,
        agent_session_id: str,
        *,
        into: Fingerprint,
        anchor: str | None = None,
    ) -> str:
        memory = self._conversations.get(agent_session_id)
        for _ in range(2):
            self.disturbed += memory is not None and memory.writers > 0
            await asyncio.sleep(self.copy_s / 2)
        self.disturbed += memory is not None and memory.writers > 0
        if self.error is not None:
            raise self.error
        copy = await super().fork(fingerprint, agent_session_id, into=into, anchor=anchor)
        self.copies.append(copy)
        await asyncio.sleep(self.after_s)
        return copy

    @property
    def known(self) -> set[str]:
        """Its conversations."""
        return set(self._conversations)


async def said(session: Session, prompt: str) -> str:
    return (await (await session.query(prompt)).result()).text


async def begun(supervisor: Supervisor, *prompts: str, **more: Any) -> Session:
    """Return a session that has had some turns."""
    session = await supervisor.start(**more)
    for prompt in prompts:
        await said(session, prompt)
    return session


# -- what it knows -----------------------------------------------------------------------------


@virtual()
async def test_a_fork_goes_on_from_the_context_and_the_original_does_not_know() -> None:
    agent = Copyist()
    async with supervisor_of(agent) as supervisor:
        original = await begun(supervisor, "a", "b")
        fork = await supervisor.fork(original.session_id)
        assert fork.session_id != original.session_id
        assert fork.state is State.HIBERNATED, "it needs no process yet"
        assert await said(fork, "c") == "a,b,c"
        assert await said(original, "d") == "a,b,d"
        assert await said(fork, "e") == "a,b,c,e"
        assert not agent.disturbed
        assert not agent.forks


@virtual()
async def test_it_may_know_the_context_up_to_a_turn_alone() -> None:
    async with supervisor_of(Copyist()) as supervisor:
        original = await supervisor.start()
        first = await (await original.query("a")).result()
        await said(original, "b")
        fork = await supervisor.fork(original.session_id, turn_id=first.turn_id)
        assert await said(fork, "c") == "a,c"
        assert fork.snapshot().forked_from == (original.session_id, first.turn_id)
        with pytest.raises(TurnNotFound):
            await supervisor.fork(original.session_id, turn_id="nobody")


@virtual()
async def test_a_turn_that_never_ran_is_no_place_to_fork_at() -> None:
    async with supervisor_of(Copyist()) as supervisor:
        original = await begun(supervisor, "a")
        running = await original.query("slow")
        queued = await original.query("b")
        await original.withdraw(queued.turn_id)
        await running.result()
        with pytest.raises(NothingToFork):
            await supervisor.fork(original.session_id, turn_id=queued.turn_id)


@virtual()
async def test_it_has_all_that_is_in_force_and_its_own_place_to_work() -> None:
    directories = ImaginaryDirectories()
    async with supervisor_of(Copyist(), directories=directories, on_permission="ask") as supervisor:
        spec = SessionSpec(model="sonnet", title="old", metadata={"a": "b"})
        original = await begun(supervisor, "a", spec=spec, owner="alice")
        asking = await original.query("ask")
        await asyncio.sleep(1.0)
        pending = await original.requests(pending=True)
        rule = Rule(tool="Bash", content="make")
        await original.decide(pending[0].request_id, Allow(remember=(rule,)))
        await asking.result()
        await original.configure(model="opus", permission_mode="plan", title="new")
        fork = await supervisor.fork(original.session_id)
        found = fork.snapshot()
        assert (found.model, found.permission_mode, found.owner) == ("opus", "plan", "alice")
        assert (found.title, found.metadata) == ("new", {"a": "b"})
        assert fork.workspace in directories.held
        assert fork.workspace != original.workspace
        result = await (await fork.query("ask")).result()
        assert not result.accounting.permission_denials, "and nobody was asked"
        other = await supervisor.fork(original.session_id, title="", metadata={})
        assert (other.snapshot().title, other.snapshot().metadata) == (None, {})


@virtual()
async def test_it_works_where_the_original_was_told_to() -> None:
    async with supervisor_of(Copyist()) as supervisor:
        original = await begun(supervisor, "a", spec=SessionSpec(cwd="/srv/work"))
        fork = await supervisor.fork(original.session_id)
        assert fork.workspace is None
        assert fork.spec.cwd == "/srv/work"
        with pytest.raises(InvalidSpec, match="copy_workspace"):
            await supervisor.fork(original.session_id, copy_workspace=True)


@virtual()
async def test_what_it_costs_is_only_its_own() -> None:
    async with supervisor_of(Copyist(manners=Manners(turn_cost_usd=0.5))) as supervisor:
        original = await begun(supervisor, "a", "b")
        fork = await supervisor.fork(original.session_id)
        assert fork.snapshot().total_cost_usd == 0.0
        result = await (await fork.query("c")).result()
        assert result.accounting.total_cost_usd == pytest.approx(0.5)
        assert fork.snapshot().total_cost_usd == pytest.approx(0.5)
        assert original.snapshot().total_cost_usd == pytest.approx(1.0)


@virtual()
async def test_it_has_a_budget_of_its_own() -> None:
    agent = Copyist(manners=Manners(turn_cost_usd=0.4))
    async with supervisor_of(agent) as supervisor:
        original = await begun(supervisor, "a", "b", spec=SessionSpec(max_budget_usd=1.0))
        fork = await supervisor.fork(original.session_id)
        assert [await said(fork, one) for one in "cd"] == ["a,b,c", "a,b,c,d"]
        with pytest.raises(TurnFailed) as failed:
            await said(fork, "e")
        assert failed.value.failure.code == "budget_exceeded"


@virtual()
async def test_a_fork_of_a_fork_is_as_good() -> None:
    async with supervisor_of(Copyist()) as supervisor:
        original = await begun(supervisor, "a")
        fork = await supervisor.fork(original.session_id)
        again = await supervisor.fork(fork.session_id)
        await supervisor.close(original.session_id)
        await supervisor.close(fork.session_id)
        assert await said(again, "b") == "a,b"


@virtual()
async def test_a_session_that_failed_can_be_forked() -> None:
    agent = Copyist()
    never = RestartPolicy(max_restarts=0)
    async with supervisor_of(agent, restarts=never) as supervisor:
        original = await begun(supervisor, "a")
        agent.processes[-1].crash()
        await asyncio.sleep(1.0)
        assert original.state is State.FAILED
        fork = await supervisor.fork(original.session_id)
        assert await said(fork, "b") == "a,b"
        assert original.state is State.FAILED


# -- when it cannot be -------------------------------------------------------------------------


@virtual()
async def test_a_session_with_something_to_do_is_busy() -> None:
    agent = Copyist()
    async with supervisor_of(agent, on_permission="ask") as supervisor:
        original = await begun(supervisor, "a")
        for prompt in ("slow", "ask", "job"):
            turn = await original.query(prompt)
            await asyncio.sleep(1.0)
            with pytest.raises(Busy):
                await supervisor.fork(original.session_id)
            await original.interrupt()
            await turn.wait()
            await asyncio.sleep(10.0)
        assert not agent.copies
        agent.start = Start(delay_s=5.0)
        await original.hibernate()
        await asyncio.sleep(1.0)
        await original.wake()
        with pytest.raises(Busy):
            await supervisor.fork(original.session_id)


@virtual()
async def test_what_has_no_context_or_has_ended_is_not_forked() -> None:
    async with supervisor_of(Copyist()) as supervisor:
        original = await supervisor.start(owner="alice")
        with pytest.raises(NothingToFork):
            await supervisor.fork(original.session_id)
        await said(original, "a")
        with pytest.raises(SessionNotFound):
            await supervisor.fork(original.session_id, owner="bob")
        once = await supervisor.query("a", owner="alice")
        await once.result()
        with pytest.raises(SessionClosed):
            await supervisor.fork(once.session_id)
        await original.close()
        with pytest.raises(SessionClosed):
            await supervisor.fork(original.session_id)
        assert supervisor.usage("alice") == NOTHING


@virtual()
async def test_an_agent_that_cannot_says_so() -> None:
    agent = ManualAgent()
    async with supervisor_of(agent) as supervisor:
        original = await supervisor.start()
        turn = await original.query("a")
        await asyncio.sleep(0.1)
        agent.processes[0].say_turn(turn.turn_id, "b")
        await turn.result()
        with pytest.raises(Refused):
            await supervisor.fork(original.session_id)


@virtual()
async def test_quotas_and_limits_count_forks() -> None:
    async with supervisor_of(Copyist(), max_sessions=2) as supervisor:
        original = await begun(supervisor, "a", owner="alice")
        with pytest.raises(QuotaExceeded):
            await supervisor.fork(original.session_id, quota=Quota(sessions=1))
        fork = await supervisor.fork(original.session_id, quota=Quota(sessions=2))
        assert supervisor.usage("alice") == Usage(sessions=2, turns=0)
        with pytest.raises(AtCapacity):
            await supervisor.fork(original.session_id)
        await supervisor.close(fork.session_id)
        assert supervisor.usage("alice") == Usage(sessions=1, turns=0)
        await supervisor.fork(original.session_id)


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (AgentError("It is full."), Unavailable),
        (ResumeNotFound("It is gone."), NothingToFork),
        (RuntimeError("It is broken."), Unavailable),
    ],
)
@virtual()
async def test_a_copy_that_fails_leaves_nothing(error: Exception, refusal: type[Refused]) -> None:
    agent, directories = Copyist(), ImaginaryDirectories()
    async with supervisor_of(agent, directories=directories) as supervisor:
        original = await begun(supervisor, "a", owner="alice")
        before = set(directories.held), agent.known, supervisor.usage("alice")
        agent.error = error
        with pytest.raises(refusal):
            await supervisor.fork(original.session_id)
        assert (set(directories.held), agent.known, supervisor.usage("alice")) == before
        assert len(supervisor.list()) == 1
        assert await said(original, "b") == "a,b"


@virtual()
async def test_a_store_that_does_not_take_it_leaves_nothing() -> None:
    agent, directories, store = Copyist(), ImaginaryDirectories(), HardStore()
    async with supervisor_of(agent, directories=directories, store=store) as supervisor:
        original = await begun(supervisor, "a", owner="alice")
        before = set(directories.held), agent.known, supervisor.usage("alice")
        store.fails.add("acquire")
        with pytest.raises(Unavailable):
            await supervisor.fork(original.session_id)
        assert (set(directories.held), agent.known, supervisor.usage("alice")) == before
        store.fails.clear()
        assert await said(await supervisor.fork(original.session_id), "b") == "a,b"


@virtual()
async def test_one_that_hangs_is_given_up_and_leaves_nothing() -> None:
    agent, directories = Copyist(copy_s=1_000.0), ImaginaryDirectories()
    async with supervisor_of(agent, directories=directories) as supervisor:
        original = await begun(supervisor, "a")
        forking = asyncio.ensure_future(supervisor.fork(original.session_id))
        await asyncio.sleep(1.0)
        waiting = asyncio.ensure_future(said(original, "b"))
        with pytest.raises(Unavailable):
            await forking
        assert await waiting == "a,b", "the original goes on"
        await asyncio.sleep(1_000.0)
        assert agent.copies
        assert agent.known == {agent.processes[-1].agent_session_id}
        assert directories.held == {original.workspace}


@pytest.mark.parametrize("at_s", [0.0, 0.5, 1.5, 2.0])
@virtual()
async def test_whoever_gives_it_up_leaves_nothing(at_s: float) -> None:
    agent, directories = Copyist(copy_s=2.0), ImaginaryDirectories()
    async with supervisor_of(agent, directories=directories) as supervisor:
        original = await begun(supervisor, "a", owner="alice")
        forking = asyncio.ensure_future(supervisor.fork(original.session_id))
        await asyncio.sleep(at_s)
        forking.cancel()
        with suppress(asyncio.CancelledError):
            await supervisor.close((await forking).session_id)
        assert await said(original, "b") == "a,b"
        await asyncio.sleep(5.0)
        assert agent.known == {agent.processes[-1].agent_session_id}
        assert directories.held == {original.workspace}
        assert supervisor.usage("alice") == Usage(sessions=1, turns=0)


# -- what happens meanwhile --------------------------------------------------------------------


@virtual()
async def test_what_the_original_is_asked_meanwhile_waits() -> None:
    agent = Copyist(copy_s=5.0)
    async with supervisor_of(agent) as supervisor:
        original = await begun(supervisor, "a")
        forking = asyncio.ensure_future(supervisor.fork(original.session_id))
        await asyncio.sleep(1.0)
        waiting = await original.query("b")
        await original.wake()
        assert original.state is State.HIBERNATED
        assert (await original.inspect()).waiting_for == "its conversation to be copied"
        fork = await forking
        assert (await waiting.result()).text == "a,b"
        assert await said(fork, "c") == "a,c"
        assert not agent.disturbed


@virtual()
async def test_whoever_wanted_it_awake_meanwhile_has_it_awake_then() -> None:
    async with supervisor_of(Copyist(copy_s=5.0)) as supervisor:
        original = await begun(supervisor, "a")
        forking = asyncio.ensure_future(supervisor.fork(original.session_id))
        await asyncio.sleep(1.0)
        await original.wake()
        await forking
        await asyncio.sleep(1.0)
        assert original.state is State.IDLE


@virtual()
async def test_what_waits_comes_before_another_fork() -> None:
    async with supervisor_of(Copyist(copy_s=5.0)) as supervisor:
        original = await begun(supervisor, "a")
        forking = asyncio.ensure_future(supervisor.fork(original.session_id))
        await asyncio.sleep(1.0)
        waiting = await original.query("b")
        with pytest.raises(Busy):
            await supervisor.fork(original.session_id)
        await forking
        assert (await waiting.result()).text == "a,b"


class TalkativeManual(ManualAgent):
    """Has copied before it was asked."""

    async def fork(self, *_: object, **__: object) -> str:
        return "copy"


@virtual()
async def test_what_the_agent_says_after_a_turn_does_not_make_it_busy() -> None:
    agent, store = TalkativeManual(), HardStore(append_s=0.01)
    async with supervisor_of(agent, store=store) as supervisor:
        original = await supervisor.start()
        turn = await original.query("a")
        await asyncio.sleep(0.1)
        agent.processes[0].say(Initialized(agent_session_id="it", model="m"))
        agent.processes[0].say_turn(turn.turn_id, "b")
        use = ToolStarted(tool_use_id="u", name="Read", input={}, parent_tool_use_id="task")
        agent.processes[0].say(*[use] * 200)
        await turn.result()
        await supervisor.fork(original.session_id)


@virtual()
async def test_several_at_once_are_as_good_as_one_after_another() -> None:
    agent = Copyist(copy_s=5.0)
    async with supervisor_of(agent) as supervisor:
        original = await begun(supervisor, "a")
        forks = await asyncio.gather(
            *(supervisor.fork(original.session_id, title=str(n)) for n in range(3))
        )
        assert [await said(fork, "b") for fork in forks] == ["a,b"] * 3
        assert await said(original, "c") == "a,c"
        assert not agent.disturbed


@virtual()
async def test_a_session_that_is_closed_meanwhile_is_not_forked() -> None:
    agent, directories = Copyist(copy_s=5.0), ImaginaryDirectories()
    async with supervisor_of(agent, directories=directories) as supervisor:
        original = await begun(supervisor, "a", owner="alice")
        forking = asyncio.ensure_future(supervisor.fork(original.session_id))
        await asyncio.sleep(1.0)
        await supervisor.close(original.session_id)
        with pytest.raises(Refused):
            await forking
        assert not agent.known
        assert not directories.held
        assert supervisor.usage("alice") == NOTHING


@virtual()
async def test_a_copy_of_what_is_gone_since_is_none() -> None:
    agent, directories = Copyist(), ImaginaryDirectories()
    async with supervisor_of(agent, directories=directories) as supervisor:
        original = await begun(supervisor, "a", owner="alice")
        agent.after_s = 5.0
        forking = asyncio.ensure_future(supervisor.fork(original.session_id))
        await asyncio.sleep(1.0)
        assert agent.copies
        await supervisor.close(original.session_id)
        with pytest.raises(SessionClosed):
            await forking
        assert not agent.known
        assert not directories.held
        assert supervisor.usage("alice") == NOTHING


@virtual()
async def test_a_session_that_failed_is_tried_again_when_it_was_copied() -> None:
    agent = Copyist(copy_s=5.0)
    never = RestartPolicy(max_restarts=0)
    async with supervisor_of(agent, restarts=never) as supervisor:
        original = await begun(supervisor, "a")
        agent.processes[-1].crash()
        await asyncio.sleep(1.0)
        assert original.state is State.FAILED
        forking = asyncio.ensure_future(supervisor.fork(original.session_id))
        await asyncio.sleep(1.0)
        await supervisor.restart(original.session_id)
        fork = await forking
        assert not agent.disturbed
        assert [await said(one, "b") for one in (original, fork)] == ["a,b"] * 2


@virtual()
async def test_a_drain_meanwhile_leaves_nothing() -> None:
    agent, directories = Copyist(copy_s=5.0), ImaginaryDirectories()
    async with supervisor_of(agent, directories=directories) as supervisor:
        original = await begun(supervisor, "a")
        forking = asyncio.ensure_future(supervisor.fork(original.session_id))
        await asyncio.sleep(1.0)
        await supervisor.drain(0.0)
        with pytest.raises(Draining):
            await forking
        assert directories.held == {original.workspace}
        assert agent.known == {agent.processes[-1].agent_session_id}


# -- what is kept ------------------------------------------------------------------------------


@virtual()
async def test_a_fork_is_there_after_a_restart_of_the_server() -> None:
    store, agent = KeptStore(), Copyist(manners=Manners(turn_cost_usd=0.5))
    async with supervisor_on(store, agent) as first:
        original = await begun(first, "a")
        fork = await first.fork(original.session_id, title="copy")
    async with supervisor_on(store, agent) as second:
        found = second.get(fork.session_id)
        assert found.snapshot().title == "copy"
        assert found.snapshot().forked_from == (original.session_id, None)
        result = await (await found.query("b")).result()
        assert result.text == "a,b"
        assert result.accounting.total_cost_usd == pytest.approx(0.5)


@virtual()
async def test_a_retry_finds_the_fork() -> None:
    async with supervisor_of(Copyist(copy_s=1.0)) as supervisor:
        original = await begun(supervisor, "a", owner="alice")
        key = ClaimKey(key="k", digest="fork")
        forks = await asyncio.gather(
            *(supervisor.fork(original.session_id, owner="alice", claim=key) for _ in range(3))
        )
        assert len({fork.session_id for fork in forks}) == 1
        assert sorted(fork.attached for fork in forks) == [False, True, True]
        await supervisor.close(original.session_id)
        again = await supervisor.fork(original.session_id, owner="alice", claim=key)
        assert again.session_id == forks[0].session_id
        with pytest.raises(ClaimConflict):
            await supervisor.fork(
                again.session_id, owner="alice", claim=ClaimKey(key="k", digest="fork")
            )


# -- all of it at once -------------------------------------------------------------------------

STEPS = st.tuples(
    st.sampled_from(
        ("ask", "first", "slow", "crash", "job", "fork", "restart", "close", "hibernate", "give up")
    ),
    st.sampled_from((0.0, 0.0, 0.5, 1.0, 3.0)),
    st.integers(0, 3),
)


@settings(max_examples=60)
@given(steps=st.lists(STEPS, max_size=16), copy_s=st.sampled_from((0.0, 2.0)))
@virtual(limit_s=100_000.0)
async def test_whatever_happens_nothing_is_disturbed_lost_or_left(
    steps: list[tuple[str, float, int]], copy_s: float
) -> None:
    agent, directories = Copyist(copy_s=copy_s), ImaginaryDirectories()
    agent.starts.append(Start())
    restarts = RestartPolicy(max_restarts=1, window_s=1e6)
    async with supervisor_of(agent, directories=directories, restarts=restarts) as supervisor:
        sessions = [await begun(supervisor, "a", owner="alice")]
        tasks: list[asyncio.Task[Any]] = []

        async def fork(session: Session) -> None:
            made = await supervisor.fork(session.session_id)
            sessions.append(made)
            assert (await (await made.query("x")).wait()).text.startswith("a,")

        async def query(session: Session, prompt: str, on_busy: OnBusy) -> None:
            await (await session.query(prompt, on_busy=on_busy)).wait()

        def act(what: str, session: Session) -> None:
            match what:
                case "fork":
                    work: Any = fork(session)
                case "restart":
                    work = supervisor.restart(session.session_id)
                case "close":
                    work = supervisor.close(session.session_id)
                case "hibernate":
                    work = session.hibernate()
                case "give up":
                    for task in tasks[-2:]:
                        task.cancel()
                    return
                case _:
                    first = OnBusy.INTERRUPT if what == "first" else OnBusy.QUEUE
                    work = query(session, "a" if what == "ask" else what, first)
            tasks.append(asyncio.ensure_future(work))

        for what, after_s, which in steps:
            act(what, sessions[which % len(sessions)])
            await asyncio.sleep(after_s)
        for task in tasks:
            with suppress(Refused, asyncio.CancelledError):
                await task
        assert not agent.disturbed
        assert not agent.forks
        await asyncio.sleep(10.0)
        for snapshot in supervisor.snapshot().sessions:
            await supervisor.close(snapshot.session_id)
        assert supervisor.usage("alice") == NOTHING
        assert not agent.known
        assert not directories.held
        assert supervisor.snapshot().live == 0
        # Nobody is counted who is not there.
        assert supervisor._conversations == 0  # pyright: ignore[reportPrivateUsage]


# -- restarts ----------------------------------------------------------------------------------


async def failed(supervisor: Supervisor, agent: ScriptedAgent, **more: Any) -> Session:
    """Return a session that gave up."""
    agent.start = Start(error=AgentStartFailed("no"))
    session = await supervisor.start(**more)
    await asyncio.sleep(10.0)
    assert session.state is State.FAILED
    agent.start = Start()
    return session


@virtual()
async def test_a_session_that_failed_can_be_tried_again_and_counts_again() -> None:
    agent = Copyist()
    async with supervisor_of(agent, max_sessions=1) as supervisor:
        session = await failed(supervisor, agent, owner="alice")
        assert supervisor.usage("alice") == NOTHING
        other = await supervisor.start(owner="alice")
        with pytest.raises(AtCapacity):
            await supervisor.restart(session.session_id)
        await supervisor.close(other.session_id)
        with pytest.raises(QuotaExceeded):
            await supervisor.restart(session.session_id, quota=Quota(sessions=0))
        again = await supervisor.restart(session.session_id, quota=Quota(sessions=1))
        assert again.active
        assert supervisor.usage("alice") == Usage(sessions=1, turns=0)
        with pytest.raises(AtCapacity):
            await supervisor.start()
        assert await said(again, "a") == "a"
        with pytest.raises(NotFailed):
            await supervisor.restart(session.session_id)
        with pytest.raises(SessionNotFound):
            await supervisor.restart(session.session_id, owner="bob")
        await again.close()
        with pytest.raises(SessionClosed):
            await supervisor.restart(session.session_id)
        assert supervisor.usage("alice") == NOTHING


@virtual()
async def test_it_is_not_forgotten_any_more() -> None:
    agent = Copyist()
    async with supervisor_of(agent) as supervisor:
        session = await failed(supervisor, agent)
        await asyncio.sleep(supervisor.config.retention.ended_s - 20.0)
        await supervisor.restart(session.session_id)
        await asyncio.sleep(2 * supervisor.config.retention.ended_s)
        assert await said(supervisor.get(session.session_id), "a") == "a"


@virtual()
async def test_if_it_fails_again_it_is_forgotten_after_a_while_again() -> None:
    agent = Copyist()
    async with supervisor_of(agent) as supervisor:
        session = await failed(supervisor, agent)
        agent.start = Start(error=AgentStartFailed("no"))
        await supervisor.restart(session.session_id)
        await asyncio.sleep(10.0)
        assert session.state is State.FAILED
        await asyncio.sleep(supervisor.config.retention.ended_s)
        with pytest.raises(SessionNotFound):
            supervisor.get(session.session_id)


@pytest.mark.parametrize("restarts_first", [False, True])
@virtual()
async def test_of_a_restart_and_a_close_the_close_wins(*, restarts_first: bool) -> None:
    agent = Copyist()
    async with supervisor_of(agent, max_sessions=1) as supervisor:
        session = await failed(supervisor, agent, owner="alice")
        works: list[Any] = [
            supervisor.restart(session.session_id),
            supervisor.close(session.session_id),
        ]
        tasks = [asyncio.ensure_future(work) for work in works[:: 1 if restarts_first else -1]]
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(SessionNotFound):
            supervisor.get(session.session_id)
        assert supervisor.usage("alice") == NOTHING
        await supervisor.start()


@virtual()
async def test_many_that_are_tried_again_at_once_keep_within_the_limits() -> None:
    agent = Copyist()
    async with supervisor_of(agent, max_sessions=3) as supervisor:
        sessions = [await failed(supervisor, agent, owner="alice") for _ in range(6)]
        outcomes = await asyncio.gather(
            *(supervisor.restart(one.session_id, quota=Quota(sessions=2)) for one in sessions),
            return_exceptions=True,
        )
        assert sum(isinstance(one, Session) for one in outcomes) == 2
        assert sum(isinstance(one, QuotaExceeded | AtCapacity) for one in outcomes) == 4
        assert supervisor.usage("alice") == Usage(sessions=2, turns=0)


@virtual()
async def test_whoever_gives_up_waiting_for_it_leaves_the_counts_right() -> None:
    agent, store = Copyist(), HardStore()
    async with supervisor_of(agent, store=store, max_sessions=1) as supervisor:
        session = await failed(supervisor, agent, owner="alice")
        store.append_s = 1.0
        restarting = asyncio.ensure_future(supervisor.restart(session.session_id))
        await asyncio.sleep(0.5)
        restarting.cancel()
        await asyncio.wait({restarting})
        with pytest.raises(AtCapacity):
            await supervisor.start()
        await asyncio.sleep(2.0)
        assert session.active
        assert supervisor.usage("alice") == Usage(sessions=1, turns=0)
        store.append_s = 0.0
        await supervisor.close(session.session_id)
        assert supervisor.usage("alice") == NOTHING
        await supervisor.start()
