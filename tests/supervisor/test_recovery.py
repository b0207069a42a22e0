"""Supervisors that come after another, on the store that it left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from session_supervisor import Retention, Supervisor, SupervisorConfig
from session_supervisor.agents.scripted import Say, ScriptedAgent, UseTool, by_prompt
from session_supervisor.errors import Draining, SessionNotFound
from session_supervisor.events import Done, Error, Event, Gap, Text
from session_supervisor.lifecycle import State
from session_supervisor.results import Outcome, Phase
from session_supervisor.stores.memory import MemoryStore
from session_supervisor.stores.sqlite import SqliteStore
from tests.support.sessions import ImaginaryDirectories, bodies, check_log, text_of
from tests.support.virtual_time import virtual

SLOW = [Say("one two three four", deltas=4, every_s=1.0)]


class KeptStore(MemoryStore):
    """A store that outlives its supervisors, as a disk would."""

    @property
    def durable(self) -> bool:
        return True


class KeptDirectories(ImaginaryDirectories):
    async def restore(self, directory: Path) -> None:
        self.held.add(directory)

    async def aclose(self) -> None:
        """Keep them."""


def agent_with(**answers: object) -> ScriptedAgent:
    return ScriptedAgent(by_prompt({"slow": SLOW, **answers}))  # type: ignore[dict-item]


def supervisor_on(store: MemoryStore, agent: ScriptedAgent, **config: object) -> Supervisor:
    return Supervisor(
        agent,
        store=store,
        config=SupervisorConfig(**config),  # type: ignore[arg-type]
        workspaces=KeptDirectories(),
        random=lambda: 0.0,
    )


async def whole_log(supervisor: Supervisor, session_id: str, after: int = 0) -> list[Event]:
    cursor, log = supervisor.get(session_id).events(after), list[Event]()
    while batch := await cursor.read_nowait(10_000):
        log += batch
    return log


@virtual()
async def test_sessions_are_there_after_a_drain_and_go_on_where_they_were() -> None:
    store, agent = KeptStore(), agent_with()
    async with supervisor_on(store, agent) as first:
        session = await first.start(owner="alice")
        turn = await session.query("a")
        await turn.result()
        one = await first.query("once")
        await one.result()
        log = await session.events().read(10_000)
    assert agent.live == 0
    async with supervisor_on(store, agent) as second:
        (found,) = second.list(owner="alice")
        assert found.session_id == session.session_id
        assert found.created_at == session.created_at
        assert found.state is State.HIBERNATED
        assert agent.spawned == 2, "it wakes when it is needed"
        assert (await found.turns()) == (turn.record(),)
        assert (await (await found.turn(turn.turn_id)).result()).text == "You said: a"
        answer = (await (await found.query("b")).result()).text
        assert answer.endswith("Earlier you said: a")
        again = await whole_log(second, session.session_id)
        check_log(again)
        assert list(again[: len(log)]) == list(log)
        assert (await (await second.get(one.session_id).turn(one.turn_id)).result()).text


@virtual()
async def test_a_drain_forgets_no_session_however_many_and_however_long_at_rest() -> None:
    store = KeptStore()
    kept = Retention(ended_s=60.0, ended_sessions=2)
    async with supervisor_on(store, agent_with(), retention=kept) as first:
        sessions = [await first.start() for _ in range(5)]
        await asyncio.sleep(100.0)
        await first.drain(0.0)
        await asyncio.sleep(100.0)
    async with supervisor_on(store, agent_with(), retention=kept) as second:
        assert {one.session_id for one in second.list()} == {one.session_id for one in sessions}


@virtual()
async def test_a_session_that_a_drain_has_left_is_not_called_closed() -> None:
    async with supervisor_on(KeptStore(), agent_with()) as supervisor:
        session = await supervisor.start()
        await supervisor.drain(0.0)
        with pytest.raises(Draining):
            await session.query("a")


@virtual()
async def test_a_drain_ends_what_runs_and_leaves_what_waits_to_the_next() -> None:
    store, agent = KeptStore(), agent_with()
    async with supervisor_on(store, agent) as first:
        session = await first.start()
        running, waiting = await session.query("slow"), await session.query("later")
        await asyncio.sleep(1.5)
        await first.drain(1.0)
        assert (await running.result()).outcome is Outcome.INTERRUPTED
        with pytest.raises(Draining):
            await waiting.result()
        assert waiting.record().phase is Phase.QUEUED
    async with supervisor_on(store, agent) as second:
        turn = await second.get(session.session_id).turn(waiting.turn_id)
        result = await turn.result()
        assert (result.outcome, result.text) == (
            Outcome.COMPLETED,
            "You said: later\n\nEarlier you said: slow",
        )
        check_log(await whole_log(second, session.session_id))


async def killed(
    store: KeptStore, agent: ScriptedAgent, prompt: str, after_s: float
) -> tuple[str, str, list[Event]]:
    """Run a turn under a supervisor that is as good as killed in the middle of it.

    Returns:
        The session's id, the turn's, and what a reader had seen.
    """
    loop = asyncio.get_running_loop()
    first = supervisor_on(store, agent)
    await first.__aenter__()
    session = await first.start()
    turn = await session.query(prompt)
    await session.query("later")
    cursor = session.events()
    seen: list[Event] = []
    until = loop.time() + after_s
    while loop.time() < until:
        await asyncio.sleep(0.1)
        seen += await cursor.read_nowait(10_000)
    # Nothing that it writes from now on counts, and its process is gone.
    for process in agent.processes:
        if process.exit is None:
            process.crash()
    await store.take_over()
    await first.__aexit__(None, None, None)
    return session.session_id, turn.turn_id, seen


@pytest.mark.parametrize("after_s", [0.5, 1.2, 2.6])
@virtual()
async def test_a_turn_that_a_kill_cut_off_is_lost_with_the_text_that_it_had(
    after_s: float,
) -> None:
    store, agent = KeptStore(), agent_with()
    session_id, turn_id, seen = await killed(store, agent, "slow", after_s)
    async with supervisor_on(store, agent) as second:
        session = second.get(session_id)
        turn = await session.turn(turn_id)
        result = await turn.wait()
        assert result.outcome is Outcome.LOST
        assert result.failure is not None
        assert result.failure.cause == "server_restart"
        stored = await whole_log(second, session_id)
        before = [event for event in stored if event.turn_id == turn_id]
        assert isinstance(before[-1].body, Error)
        assert text_of(before) == result.text == before[-1].body.response
        assert text_of(seen).startswith(result.text)
        # Whoever comes back is told of what is missing, and of the end, and no id means two things.
        rest = await whole_log(second, session_id, seen[-1].seq)
        known = {event.seq: event for event in seen}
        for event in [*stored, *rest]:
            if not isinstance(event.body, Gap):
                assert known.setdefault(event.seq, event) == event
        assert any(isinstance(event.body, Error) for event in rest)
        if result.text != text_of(seen):
            assert any(isinstance(event.body, Gap) for event in rest)


@virtual()
async def test_what_waited_when_the_server_was_killed_runs_and_what_ran_does_not() -> None:
    store = KeptStore()
    ran: list[str] = []

    def script(prompt: object, conversation: object) -> list[object]:
        ran.append(prompt.text)  # type: ignore[attr-defined]
        return [UseTool("Bash", seconds=5.0), Say("done")]

    agent = ScriptedAgent(script)  # type: ignore[arg-type]
    session_id, turn_id, _ = await killed(store, agent, "once", 2.0)
    async with supervisor_on(store, agent) as second:
        session = second.get(session_id)
        lost, later = await session.turns()
        assert lost.turn_id == turn_id
        turn = await session.turn(later.turn_id)
        assert (await turn.result()).outcome is Outcome.COMPLETED
        assert ran == ["once", "later"]
        states = [one.result.outcome for one in await session.turns() if one.result is not None]
        assert states == [Outcome.LOST, Outcome.COMPLETED]


@virtual()
async def test_failed_and_closed_sessions_are_found_as_such_and_forgotten_in_time() -> None:
    store, agent = KeptStore(), agent_with()
    async with supervisor_on(store, agent) as first:
        kept = await first.start()
        closed = await first.start()
        one = await first.query("x")
        await one.result()
        await closed.close()
        await asyncio.sleep(1)
        deleted = await first.start()
        await first.close(deleted.session_id)
    async with supervisor_on(store, agent) as second:
        assert second.list() == (second.get(kept.session_id),)
        assert second.get(closed.session_id).state is State.CLOSED
        assert second.get(one.session_id).state is State.CLOSED
        with pytest.raises(SessionNotFound):
            second.get(deleted.session_id)
        await asyncio.sleep(3601)
        with pytest.raises(SessionNotFound):
            second.get(closed.session_id)
        assert len(await store.take_over()) == 1


@virtual()
async def test_limits_count_what_was_found() -> None:
    store, agent = KeptStore(), agent_with()
    async with supervisor_on(store, agent) as first:
        for _ in range(3):
            await first.start(owner="alice")
    async with supervisor_on(store, agent, max_sessions=4) as second:
        assert second.usage("alice").sessions == 3
        await second.start()
        for session in second.list(owner="alice"):
            await second.close(session.session_id)
        assert second.usage("alice").sessions == 0
        assert len(second.list()) == 1


@virtual()
async def test_an_idle_session_has_no_gap_after_a_kill() -> None:
    store, agent = KeptStore(), agent_with()
    first = supervisor_on(store, agent)
    await first.__aenter__()
    session = await first.start()
    await (await session.query("a")).result()
    await asyncio.sleep(1)
    await store.take_over()
    await first.__aexit__(None, None, None)
    async with supervisor_on(store, agent) as second:
        found = second.get(session.session_id)
        await (await found.query("b")).result()
        log = await found.events().read(10_000)
        assert not any(isinstance(body, Gap) for body in bodies(log))
        check_log(log)


def test_a_database_on_disk_does_the_same(tmp_path: Path) -> None:
    """The same walk on the real store and real time."""
    path = tmp_path / "sessions.db"

    async def before() -> tuple[str, str]:
        agent = ScriptedAgent(by_prompt({"slow": [Say("a b c", deltas=3, every_s=0.2)]}))
        async with Supervisor(
            agent, store=SqliteStore(path), workspaces=KeptDirectories()
        ) as first:
            session = await first.start()
            turn = await session.query("slow")
            assert (await turn.result()).text == "a b c"
            return session.session_id, turn.turn_id

    async def after(session_id: str, turn_id: str) -> None:
        agent = ScriptedAgent()
        async with Supervisor(
            agent, store=SqliteStore(path), workspaces=KeptDirectories()
        ) as second:
            session = second.get(session_id)
            turn = await session.turn(turn_id)
            events = [event async for event in turn]
            assert isinstance(events[-1].body, Done)
            assert text_of(events) == "a b c"
            pieces = [(event.seq, event.body) for event in events if isinstance(event.body, Text)]
            assert len(pieces) == 3
            seq, first = pieces[0]
            rest = await session.events(seq).read(10_000)
            assert text_of(rest) == "a b c"[len(first.content) :]

    asyncio.run(after(*asyncio.run(before())))
