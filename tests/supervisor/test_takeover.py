"""Supervisors that are killed, drained and replaced at any moment, against a small model.

Hypothesis uses sessions on a store that outlives their supervisors, lets processes and the store
fail, and kills the supervisor: nothing that it has not stored by then ever is, and its processes
are gone. The next one takes over. What must hold in the end:

* every prompt that was acknowledged has exactly one recorded end, and whoever was told of an end
  was told of that one;
* no number ever stands for two events, and they only grow;
* what a reader has had, reconnecting after each kill, less what was withdrawn is the answer, or a
  gap told it that something is missing;
* a conversation is never in two processes, and no prompt is run twice;
* a request to a human that was shown has exactly one recorded resolution, which is the one that all
  were told, and the agent at most once, and only when it was stored;
* nothing is left counted, and no process is left.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from session_supervisor import RestartPolicy, Session, State, Supervisor, TurnResult, Watchdogs
from session_supervisor.agents.scripted import (
    AskQuestions,
    BeginAlone,
    Conversation,
    Crash,
    Hang,
    Manners,
    Pause,
    Say,
    Step,
    UseTool,
)
from session_supervisor.asks import Deny, Request
from session_supervisor.claims import ClaimKey
from session_supervisor.errors import Refused, RequestOver
from session_supervisor.events import Event, Gap
from session_supervisor.messages import OnBusy
from session_supervisor.quotas import Usage
from session_supervisor.results import Outcome
from session_supervisor.spec import LOCAL_OWNER, Prompt
from tests.supervisor.test_recovery import KeptDirectories
from tests.support.asking import COLOUR, WatchedAgent, decision_on, offer, resolutions_of
from tests.support.sessions import at_once, supervisor_of, text_of
from tests.support.stores import HardStore
from tests.support.virtual_time import VirtualWorld

SCRIPTS: dict[str, list[Step]] = {
    "say": [Say("some words here", deltas=3)],
    "slow": [Say("a b c d e f g h", deltas=8, every_s=0.3), Say("and more", deltas=2, every_s=0.3)],
    "tool": [Say("first"), UseTool("Bash", seconds=2.0), Say("done")],
    "crash": [Say("last words", confirmed=False), Pause(0.5), Crash()],
    "hang": [Say("I", confirmed=False), Hang()],
    "ask": [Say("may I?"), UseTool("Bash", asks=True, seconds=0.5), Say("done")],
    "question": [AskQuestions((COLOUR,)), Say("done")],
    "asking_job": [BeginAlone(1.0, [UseTool("Bash", asks=True), Say("oh")]), Say("started")],
    "job": [BeginAlone(1.0, [Say("by itself", deltas=2, every_s=0.4)]), Say("started")],
}

LONG_S = 3_000.0


class Reader:
    """Somebody who reads a session's events, and comes back after each kill and each silence."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.after = 0
        self.task: asyncio.Task[None] | None = None

    async def read(self, session: Session) -> None:
        silent = True
        while silent:
            cursor = session.events(self.after)
            while batch := await cursor.read():
                for event in batch:
                    assert event.seq > self.after, "a number came twice, or backwards"
                    self.seen.append(event)
                    self.after = event.seq
            silent = cursor.stalled
            if silent:
                await asyncio.sleep(1.0)


class TakeOver(RuleBasedStateMachine):
    world: VirtualWorld
    supervisor: Supervisor

    @initialize(
        max_live=st.sampled_from([1, 2, 4]),
        idle_timeout_s=st.sampled_from([None, 3.0]),
        append_s=st.sampled_from([0.0, 0.02, 0.3]),
        answer_s=st.sampled_from([0.0, 0.02, 0.3]),
        stop_s=st.sampled_from([0.0, 0.5]),
        pickup_s=st.sampled_from([0.0, 0.2]),
        permission_timeout_s=st.sampled_from([None, 2.0]),
    )
    def open(
        self,
        max_live: int,
        idle_timeout_s: float | None,
        append_s: float,
        answer_s: float,
        stop_s: float,
        pickup_s: float,
        permission_timeout_s: float | None,
    ) -> None:
        self.world = VirtualWorld()
        self.store = HardStore(append_s=append_s, durable=True)
        self.store.answer_s = answer_s
        self.ran = Counter[str]()
        self.agent = WatchedAgent(
            self.script, store=self.store, manners=Manners(stop_s=stop_s, pickup_s=pickup_s)
        )
        self.directories = KeptDirectories()
        self.config: dict[str, Any] = {
            "max_live": max_live,
            "on_permission": "ask",
            "permission_timeout_s": permission_timeout_s,
            "idle_timeout_s": idle_timeout_s,
            "max_queued": 3,
            "max_agent_turns": 2,
            "restarts": RestartPolicy(max_restarts=1000, window_s=1.0),
            "watchdogs": Watchdogs(
                start_s=10.0, first_byte_s=20.0, progress_s=20.0, interrupt_s=2.0, store_s=5.0
            ),
        }
        self.acknowledged: dict[str, tuple[str, str]] = {}
        self.told: dict[str, TurnResult] = {}
        self.decided: dict[str, Request] = {}
        self.interrupted: set[str] = set()
        self.closed: set[str] = set()
        self.known: dict[tuple[str, int], Event] = {}
        self.callers: list[asyncio.Task[Any]] = []
        self.keys = 0
        self.readers: dict[str, Reader] = {}
        self.sessions: list[str] = []
        self.begin()
        for _ in range(2):
            self.start()

    def script(self, prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
        self.ran[prompt.prompt_id] += 1
        return SCRIPTS[prompt.text]

    def begin(self) -> None:
        self.supervisor = supervisor_of(
            self.agent,
            clock=self.world.clock(),
            store=self.store,
            directories=self.directories,
            **self.config,
        )
        self.world.run(self.supervisor.__aenter__())
        for session_id, reader in self.readers.items():
            if session_id not in self.closed:
                self.follow(session_id, reader)

    def follow(self, session_id: str, reader: Reader) -> None:
        reader.task = self.world.start(reader.read(self.supervisor.get(session_id)))

    def end(self) -> None:
        """The supervisor is gone, and all who were connected to it with it."""
        for reader in self.readers.values():
            if reader.task is not None:
                self.world.run(asyncio.wait({reader.task}))
                reader.task.result()
                reader.task = None
        for caller in self.callers:
            assert caller.done(), "somebody was not answered"
            error = caller.exception()
            assert error is None or isinstance(error, Refused), repr(error)
        self.callers.clear()

    def call(self, coro: Any) -> None:
        self.callers.append(self.world.start(coro))

    def pick(self, index: int) -> Session | None:
        living = [one for one in self.sessions if one not in self.closed]
        return self.supervisor.get(living[index % len(living)]) if living else None

    # -- what callers do -------------------------------------------------------------------

    @precondition(lambda self: len(self.sessions) < 4)
    @rule()
    def start(self) -> None:
        try:
            session = self.world.run(self.supervisor.start())
        except Refused:
            return
        self.sessions.append(session.session_id)
        self.readers[session.session_id] = reader = Reader()
        self.follow(session.session_id, reader)

    @rule(index=st.integers(0, 3), prompt=st.sampled_from(sorted(SCRIPTS)), keyed=st.booleans())
    def query(self, index: int, prompt: str, keyed: bool) -> None:
        session = self.pick(index)
        if session is None:
            return
        self.keys += 1
        claim = ClaimKey(key=f"k{self.keys}", digest=prompt) if keyed else None

        async def ask() -> None:
            turn = await session.query(prompt, claim=claim)
            self.acknowledged[turn.turn_id] = session.session_id, prompt
            self.told[turn.turn_id] = await turn.wait()

        self.call(ask())

    @precondition(lambda self: self.keys)
    @rule(index=st.integers(0, 3), key=st.integers(1, 30), prompt=st.sampled_from(sorted(SCRIPTS)))
    def retry(self, index: int, key: int, prompt: str) -> None:
        """A key is used again; it may have been used for anything, or nothing."""
        session = self.pick(index)
        if session is None:
            return
        claim = ClaimKey(key=f"k{key % self.keys + 1}", digest=prompt)

        async def ask() -> None:
            turn = await session.query(prompt, claim=claim)
            self.acknowledged[turn.turn_id] = session.session_id, prompt

        self.call(ask())

    @rule(prompt=st.sampled_from(sorted(SCRIPTS)))
    def one_off(self, prompt: str) -> None:
        supervisor = self.supervisor

        async def ask() -> None:
            turn = await supervisor.query(prompt)
            self.acknowledged[turn.turn_id] = turn.session_id, prompt
            self.told[turn.turn_id] = await turn.wait()

        self.call(ask())

    @rule(
        index=st.integers(0, 3),
        prompt=st.sampled_from(["ask", "question", "say"]),
        on_busy=st.sampled_from([OnBusy.QUEUE, OnBusy.INTERRUPT]),
        permission_timeout_s=st.sampled_from([None, 1.0]),
    )
    def query_to_be_asked(
        self, index: int, prompt: str, on_busy: OnBusy, permission_timeout_s: float | None
    ) -> None:
        session = self.pick(index)
        if session is None:
            return

        async def ask() -> None:
            turn = await offer(
                session,
                prompt,
                on_busy=on_busy,
                on_permission="ask",
                permission_timeout_s=permission_timeout_s,
            )
            self.acknowledged[turn.turn_id] = session.session_id, prompt
            self.told[turn.turn_id] = await turn.wait()

        self.call(ask())

    @rule(
        index=st.integers(0, 3),
        number=st.integers(0, 9),
        what=st.sampled_from(["favour", "deny", "end"]),
        hops=st.integers(0, 5),
    )
    def decide(self, index: int, number: int, what: str, hops: int) -> None:
        session = self.pick(index)
        if session is None:
            return
        requests = at_once(session.requests(pending=True)) or at_once(session.requests())
        if not requests:
            return
        request = requests[number % len(requests)]

        async def decide() -> None:
            for _ in range(hops):
                await asyncio.sleep(0)
            try:
                decided = await session.decide(request.request_id, decision_on(request, what))
            except RequestOver as error:
                decided = error.request
            else:
                assert request.request_id not in self.decided, "two were told that theirs counts"
            assert decided.resolution is not None
            assert self.decided.setdefault(request.request_id, decided) == decided

        self.call(decide())

    @rule(index=st.integers(0, 3), queued=st.booleans())
    def interrupt(self, index: int, queued: bool) -> None:
        if session := self.pick(index):
            self.call(session.interrupt(queued=queued))

    @rule(index=st.integers(0, 3))
    def hibernate(self, index: int) -> None:
        if session := self.pick(index):
            self.call(session.hibernate())

    @rule(index=st.integers(0, 3))
    def wake(self, index: int) -> None:
        if session := self.pick(index):
            self.call(session.wake())

    @precondition(lambda self: len(self.acknowledged) > 6)
    @rule(index=st.integers(0, 3))
    def close(self, index: int) -> None:
        if session := self.pick(index):
            try:
                self.world.run(self.supervisor.close(session.session_id))
            except Refused:
                return
            self.closed.add(session.session_id)

    # -- what befalls them -----------------------------------------------------------------

    @rule(index=st.integers(0, 7))
    def crash(self, index: int) -> None:
        live = [process for process in self.agent.processes if process.exit is None]
        if live:
            live[index % len(live)].crash()

    @rule(how_many=st.integers(1, 3))
    def bad_blocks(self, how_many: int) -> None:
        self.store.bad_appends = how_many

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.35, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def kill(self) -> None:
        for process in self.agent.processes:
            if process.exit is None:
                process.crash()
        # Nothing that it writes from here on counts.
        self.world.run(self.store.take_over())
        self.world.run(self.supervisor.__aexit__(None, None, None), limit_s=LONG_S)
        self.end()
        self.begin()

    @rule(budget_s=st.sampled_from([0.0, 1.0]))
    def deploy(self, budget_s: float) -> None:
        self.world.run(self.supervisor.drain(budget_s), limit_s=LONG_S)
        self.world.run(self.supervisor.__aexit__(None, None, None), limit_s=LONG_S)
        assert self.agent.live == 0
        self.end()
        self.begin()

    # -- what must hold --------------------------------------------------------------------

    @invariant()
    def always(self) -> None:
        if not hasattr(self, "supervisor"):
            return
        assert self.agent.forks == 0, "two processes had one conversation"
        assert self.agent.live <= self.config["max_live"]
        twice = [turn_id for turn_id, times in self.ran.items() if times > 1]
        assert not twice, "a prompt was run twice"
        self.agent.check_told()
        for session_id in self.readers:
            for request in at_once(self.store.requests(session_id)):
                if request.request_id in self.decided:
                    assert request == self.decided[request.request_id], "its end has changed"
        for session_id, reader in self.readers.items():
            for event in reader.seen:
                if not isinstance(event.body, Gap):
                    before = self.known.setdefault((session_id, event.seq), event)
                    assert before == event, "a number stands for two events"

    def teardown(self) -> None:
        if not hasattr(self, "supervisor"):
            return
        try:
            with self.world:
                self.store.bad_appends = 0
                for _ in range(20):
                    self.world.advance(LONG_S / 20)
                    self.answer_everything()
                self.check_everything()
                for session_id in self.sessions:
                    if session_id not in self.closed:
                        self.world.run(self.check_log(session_id))
                        self.world.run(self.ask_once_more(session_id), limit_s=LONG_S)
                self.world.run(self.supervisor.__aexit__(None, None, None), limit_s=LONG_S)
                self.end()
                self.always()
                assert self.agent.live == 0
        finally:
            del self.world

    def answer_everything(self) -> None:
        for session_id in self.sessions:
            if session_id not in self.closed:
                session = self.supervisor.get(session_id)
                for request in at_once(session.requests(pending=True)):
                    self.world.run(session.decide(request.request_id, Deny()))

    def check_everything(self) -> None:
        usage = self.supervisor.usage(LOCAL_OWNER)
        assert usage == Usage(sessions=len(self.sessions) - len(self.closed), turns=0)
        for turn_id, (session_id, _) in self.acknowledged.items():
            if session_id in self.closed:
                continue
            session = self.supervisor.get(session_id)
            record = self.world.run(session.turn(turn_id)).record()
            assert record.result is not None, "what was acknowledged has no end"
            if turn_id in self.told:
                assert record.result == self.told[turn_id], "it ended otherwise than was told"

    async def check_log(self, session_id: str) -> None:
        session = self.supervisor.get(session_id)
        log: list[Event] = []
        cursor = session.events()
        while batch := await cursor.read_nowait():
            log += batch
        for event in log:
            if not isinstance(event.body, Gap):
                assert self.known.setdefault((session_id, event.seq), event) == event
        said = resolutions_of(log)
        for request in await session.requests():
            assert request.resolution is not None, "somebody waits for ever"
            assert said.pop(request.request_id) == [request.resolution]
        assert not said
        seen = self.readers[session_id].seen
        for record in await session.turns():
            assert record.result is not None
            own = [event for event in log if event.turn_id == record.turn_id]
            assert sum(event.is_terminal for event in own) == 1, "it has not exactly one end"
            assert own[-1].is_terminal
            assert text_of(own) == record.result.text == record.text
            had = [event for event in seen if event.turn_id == record.turn_id]
            assert had, "the reader never heard of it"
            assert had[-1] == own[-1]
            missing = any(
                isinstance(event.body, Gap) and own[0].seq <= event.seq <= own[-1].seq
                for event in seen
            )
            assert missing or text_of(had) == record.text

    async def ask_once_more(self, session_id: str) -> None:
        session = self.supervisor.get(session_id)
        assert session.state in (State.IDLE, State.HIBERNATED), session.state
        result = await (await session.query("say")).wait()
        assert (result.outcome, result.text) == (Outcome.COMPLETED, "some words here")


TestTakeOver = TakeOver.TestCase
TestTakeOver.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
