"""Sessions under everything at once, against a small model, on virtual time.

Hypothesis calls the handles of two sessions and a supervisor in any order, lets their agents
crash, freeze, stall, ask humans and begin turns by themselves, and lets time pass. The model knows
only what was asked; the properties are those that the documentation promises:

* every message is answered, once, and nobody waits for ever;
* a session runs at most one turn at a time;
* sequence numbers have no holes, every turn has one terminal event, and text less what was
  withdrawn is the answer;
* a conversation is never in two processes;
* a request to a human has exactly one resolution, whoever comes first of answer, deadline,
  interrupt, close and crash; all are told that one, and the agent at most once, and only when it is
  stored; a turn waits for a human exactly as long as there is a request of it;
* an owner never has more than its quota, and what it has is counted exactly;
* nothing is left at the end: no process, no task, no directory, nothing counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from session_supervisor import (
    Closed,
    Interrupted,
    Origin,
    Outcome,
    Quota,
    RestartPolicy,
    Session,
    State,
    Supervisor,
    TurnHandle,
    TurnResult,
    Usage,
    Watchdogs,
)
from session_supervisor.agents.port import TextWithdrawn
from session_supervisor.agents.scripted import (
    AskQuestions,
    BeginAlone,
    Conversation,
    Crash,
    Fail,
    Freeze,
    Hang,
    IgnoreInterrupts,
    Manners,
    Pause,
    Say,
    Start,
    Step,
    UseTool,
)
from session_supervisor.asks import Deny, Request
from session_supervisor.errors import (
    AgentStartFailed,
    AtCapacity,
    Draining,
    Failure,
    FailureCode,
    MailboxFull,
    NotFailed,
    NotQueued,
    QuotaExceeded,
    Refused,
    RequestNotFound,
    RequestOver,
    SessionClosed,
    SessionFailed,
    TurnNotFound,
)
from session_supervisor.events import Event, Gap, Resolved, Turn
from session_supervisor.lifecycle import ACTIVE
from session_supervisor.messages import Configure, OnBusy, Restart, Settings
from session_supervisor.spec import LOCAL_OWNER, Prompt, SessionKind
from session_supervisor.stores.memory import MemoryStore
from tests.support.asking import (
    COLOUR,
    WatchedAgent,
    core_of,
    decision_on,
    offer,
    resolutions_of,
    tell,
)
from tests.support.sessions import ImaginaryDirectories, at_once, check_log, supervisor_of, text_of
from tests.support.virtual_time import VirtualWorld

SCRIPTS: dict[str, list[Step]] = {
    "say": [Say("some words here", deltas=3)],
    "slow": [Say("a b c d", deltas=4, every_s=1.0)],
    "cut": [Say("one"), Say("tw", confirmed=False), TextWithdrawn(), Say("two")],
    "cut_block": [Say("one"), Say("tw", confirmed=False), TextWithdrawn(blocks=1), Say("two")],
    "tool": [UseTool("Bash", seconds=3.0), Say("done")],
    "fail": [
        Say("part"),
        Fail(Failure(code=FailureCode.OVERLOADED, message="busy", retryable=True)),
    ],
    "crash": [Say("last words", confirmed=False), Crash()],
    "crash_slowly": [Pause(2.0), Crash(remembered=False)],
    "hang": [Say("I", confirmed=False), Hang()],
    "freeze": [Freeze()],
    "stubborn": [IgnoreInterrupts(), Say("no", confirmed=False), Pause(500.0)],
    "job": [BeginAlone(2.0, [Say("by itself", deltas=2, every_s=1.0)]), Say("started")],
    "ask": [UseTool("Bash", asks=True, seconds=1.0), Say("done")],
    "ask_twice": [UseTool("Bash", asks=True), UseTool("Bash", asks=True), Say("done")],
    "ask_stubbornly": [IgnoreInterrupts(), UseTool("Bash", asks=True), Pause(3.0), Say("no")],
    "question": [AskQuestions((COLOUR,)), Say("done")],
    "asking_job": [
        BeginAlone(1.0, [UseTool("Bash", asks=True), Say("by itself")]),
        Say("started"),
    ],
    "crashing_job": [BeginAlone(1.0, [Say("oh", confirmed=False), Crash()]), Say("started")],
}

ASKING = sorted(name for name in SCRIPTS if name.startswith("ask") or name == "question")

LONG_S = 2_000.0
"""Longer than any of the time limits below can add up to."""


def script(prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
    return SCRIPTS[prompt.text]


@dataclass
class Caller:
    """Somebody who waits for one answer."""

    what: str
    task: asyncio.Task[Any]
    turn: TurnHandle | None = None


@dataclass
class Client:
    """Somebody who uses one session, and reads all its events."""

    session: Session
    reader: asyncio.Task[None]
    events: list[Event] = field(default_factory=list[Event])
    close_asked: bool = False


class Sessions(RuleBasedStateMachine):
    world: VirtualWorld
    supervisor: Supervisor

    @initialize(
        interrupt_s=st.sampled_from([0.5, 5.0]),
        max_restarts=st.integers(0, 3),
        idle_timeout_s=st.sampled_from([None, 30.0]),
        stop_s=st.sampled_from([0.0, 1.0]),
        pickup_s=st.sampled_from([0.0, 0.2]),
        merge_queued=st.booleans(),
        most_turns=st.sampled_from([None, 1, 3]),
        max_live=st.sampled_from([1, 2, 4]),
        permission_timeout_s=st.sampled_from([None, 4.0]),
        cannot_change=st.booleans(),
    )
    def open(
        self,
        interrupt_s: float,
        max_restarts: int,
        idle_timeout_s: float | None,
        stop_s: float,
        pickup_s: float,
        merge_queued: bool,
        most_turns: int | None,
        max_live: int,
        permission_timeout_s: float | None,
        cannot_change: bool,
    ) -> None:
        self.world = VirtualWorld()
        self.store = MemoryStore()
        self.callers: list[Caller] = []
        self.turns: dict[str, TurnHandle] = {}
        self.interrupted: set[str] = set()
        self.drained = False
        self.quota = Quota(sessions=2, turns=most_turns)
        self.directories = ImaginaryDirectories()
        self.preempting: set[str] = set()
        self.ending: set[str] = set()
        self.decided: dict[str, Request] = {}
        self.accepted: set[str] = set()
        self.agent = WatchedAgent(
            script,
            store=self.store,
            manners=Manners(
                stop_s=stop_s,
                pickup_s=pickup_s,
                merge_queued=merge_queued,
                cannot_change=("model",) if cannot_change else (),
            ),
        )
        self.supervisor = supervisor_of(
            self.agent,
            clock=self.world.clock(),
            store=self.store,
            on_permission="ask",
            permission_timeout_s=permission_timeout_s,
            idle_timeout_s=idle_timeout_s,
            max_queued=3,
            max_live=max_live,
            max_agent_turns=2,
            restarts=RestartPolicy(max_restarts=max_restarts, window_s=100.0),
            watchdogs=Watchdogs(
                start_s=10.0,
                first_byte_s=20.0,
                progress_s=30.0,
                silence_s=7.0,
                probe_s=3.0,
                interrupt_s=interrupt_s,
            ),
        )
        self.world.run(self.supervisor.__aenter__())
        self.clients = [self.world.run(self._join()) for _ in range(2)]

    async def _join(self) -> Client:
        session = await self.supervisor.start(quota=self.quota)
        events: list[Event] = []

        async def read() -> None:
            async for event in session.events():
                events.append(event)  # noqa: PERF401  # looked at while it grows

        reader = asyncio.get_running_loop().create_task(read())
        return Client(session=session, reader=reader, events=events)

    def _call(self, what: str, coro: Any) -> Caller:
        caller = Caller(what, self.world.start(coro))
        self.callers.append(caller)
        return caller

    # -- what callers do -------------------------------------------------------------------

    @rule(
        which=st.integers(0, 1),
        prompt=st.sampled_from(sorted(SCRIPTS)),
        timeout_s=st.sampled_from([None, None, None, 2.5, 15.0]),
        on_busy=st.sampled_from([OnBusy.QUEUE, OnBusy.QUEUE, OnBusy.QUEUE, OnBusy.INTERRUPT]),
    )
    def query(self, which: int, prompt: str, timeout_s: float | None, on_busy: OnBusy) -> None:
        self._query(which, prompt, timeout_s, on_busy)

    @rule(
        which=st.integers(0, 1),
        prompt=st.sampled_from(ASKING),
        timeout_s=st.sampled_from([None, None, 2.5]),
        on_busy=st.sampled_from([OnBusy.QUEUE, OnBusy.QUEUE, OnBusy.INTERRUPT]),
        asks=st.sampled_from(["ask", "ask", "ask", "deny"]),
        permission_timeout_s=st.sampled_from([None, 1.0, 6.0]),
    )
    def query_to_be_asked(
        self,
        which: int,
        prompt: str,
        timeout_s: float | None,
        on_busy: OnBusy,
        asks: str,
        permission_timeout_s: float | None,
    ) -> None:
        self._query(which, prompt, timeout_s, on_busy, asks, permission_timeout_s)

    def _query(
        self,
        which: int,
        prompt: str,
        timeout_s: float | None,
        on_busy: OnBusy,
        asks: str = "ask",
        permission_timeout_s: float | None = None,
    ) -> None:
        session = self.clients[which].session

        async def ask() -> TurnResult:
            turn = await offer(
                session,
                prompt,
                timeout_s=timeout_s,
                quota=self.quota,
                on_permission=asks,
                permission_timeout_s=permission_timeout_s,
                on_busy=on_busy,
            )
            caller.turn = turn
            self.turns[turn.turn_id] = turn
            if on_busy is OnBusy.INTERRUPT:
                self.preempting.add(turn.turn_id)
            return await turn.wait()

        caller = self._call(f"query {prompt}", ask())

    @rule(prompt=st.sampled_from(sorted(SCRIPTS)))
    def one_off(self, prompt: str) -> None:
        async def ask() -> TurnResult:
            turn = await self.supervisor.query(prompt, quota=self.quota)
            events = [event async for event in turn]
            result = await turn.wait()
            assert events[-1].is_terminal
            assert text_of(events) == result.text
            return result

        self._call(f"one-off {prompt}", ask())

    @rule(which=st.integers(0, 1), queued=st.booleans())
    def interrupt(self, which: int, queued: bool) -> None:
        self._call("interrupt", self._interrupt(self.clients[which].session, queued))

    async def _interrupt(
        self, session: Session, queued: bool, turn_id: str | None = None
    ) -> Interrupted:
        interrupted = await session.interrupt(turn_id=turn_id, queued=queued)
        self.interrupted.update(interrupted.turn_ids)
        for turn_id in interrupted.turn_ids:
            record = (await session.turn(turn_id)).record()
            assert record.result is not None, "an interrupt answered before the turn's end"
        return interrupted

    @precondition(lambda self: self.turns)
    @rule(index=st.integers(0, 30), hops=st.integers(0, 5))
    def interrupt_one(self, index: int, hops: int) -> None:
        turn_id = list(self.turns)[index % len(self.turns)]
        session = next(
            client.session
            for client in self.clients
            if client.session.session_id == self.turns[turn_id].session_id
        )

        async def interrupt() -> Interrupted:
            # At any moment of what the event loop is about to do.
            for _ in range(hops):
                await asyncio.sleep(0)
            return await self._interrupt(session, queued=False, turn_id=turn_id)

        self._call("interrupt one", interrupt())

    @precondition(lambda self: self._asked(pending=False))
    @rule(
        index=st.integers(0, 30),
        what=st.sampled_from(["favour", "favour", "deny", "end"]),
        late=st.sampled_from([False, False, False, True]),
        hops=st.integers(0, 5),
    )
    def decide(self, index: int, what: str, late: bool, hops: int) -> None:
        """Somebody answers something that was asked, perhaps long ago."""
        asked = (not late and self._asked(pending=True)) or self._asked(pending=False)
        session, request = asked[index % len(asked)]

        async def decide() -> Request:
            for _ in range(hops):
                await asyncio.sleep(0)
            if what == "end":
                self.ending.add(request.request_id)
            first = True
            try:
                decided = await session.decide(request.request_id, decision_on(request, what))
            except RequestOver as error:
                first, decided = False, error.request
            assert decided.resolution is not None
            known = self.decided.setdefault(request.request_id, decided)
            assert known == decided, "two were told of different ends"
            if first:
                assert request.request_id not in self.accepted, "two were told that theirs counts"
                self.accepted.add(request.request_id)
            return decided

        self._call("decide", decide())

    def _asked(self, *, pending: bool) -> list[tuple[Session, Request]]:
        return [
            (client.session, request)
            for client in self.clients
            for request in at_once(client.session.requests(pending=pending))
        ]

    @precondition(lambda self: self.turns)
    @rule(index=st.integers(0, 30))
    def withdraw(self, index: int) -> None:
        turn_id = list(self.turns)[index % len(self.turns)]

        async def withdraw() -> None:
            for client in self.clients:
                if client.session.session_id == self.turns[turn_id].session_id:
                    await client.session.withdraw(turn_id)
                    self.interrupted.add(turn_id)

        self._call("withdraw", withdraw())

    @rule(which=st.integers(0, 1), model=st.sampled_from(["one", "two"]))
    def configure(self, which: int, model: str) -> None:
        self._call("configure", tell(self.clients[which].session, Configure(model=model)))

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        session = self.clients[which].session

        async def restart() -> State:
            place = None
            if session.state is State.FAILED:
                place = core_of(session).account.take_session(None)
            message = Restart(place=place)
            try:
                state: State = await tell(session, message)
            except Refused:
                if place is not None:
                    place.release()
                raise
            return state

        self._call("restart", restart())

    @rule(which=st.integers(0, 1))
    def inspect(self, which: int) -> None:
        caller = self._call("inspect", self.clients[which].session.inspect())
        self.world.settle()
        assert caller.task.done(), "inspect was not answered at once"

    @rule(which=st.integers(0, 1))
    def hibernate(self, which: int) -> None:
        self._call("hibernate", self.clients[which].session.hibernate())

    @rule(which=st.integers(0, 1))
    def wake(self, which: int) -> None:
        self._call("wake", self.clients[which].session.wake())

    # Ends come late, or there is nothing to see before them.
    @precondition(lambda self: len(self.callers) > 12)
    @precondition(lambda self: not any(client.close_asked for client in self.clients))
    @rule(which=st.integers(0, 1))
    def close(self, which: int) -> None:
        client = self.clients[which]
        client.close_asked = True
        self._call("close", client.session.close())

    @precondition(lambda self: len(self.callers) > 16)
    @precondition(lambda self: not self.drained)
    @rule(budget_s=st.sampled_from([0.0, 5.0]))
    def drain(self, budget_s: float) -> None:
        self.drained = True
        self._call("drain", self.supervisor.drain(budget_s))

    # -- what befalls the agents -----------------------------------------------------------

    @rule(index=st.integers(0, 7))
    def crash(self, index: int) -> None:
        live = [process for process in self.agent.processes if process.exit is None]
        if live:
            live[index % len(live)].crash()

    @rule(index=st.integers(0, 7))
    def freeze(self, index: int) -> None:
        live = [process for process in self.agent.processes if process.exit is None]
        if live:
            live[index % len(live)].freeze()

    @rule(
        start=st.sampled_from(
            [
                Start(delay_s=3.0),
                Start(hangs=True),
                Start(error=AgentStartFailed("it did not like the weather")),
            ]
        )
    )
    def next_start(self, start: Start) -> None:
        self.agent.starts.append(start)

    # -- time ------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 1.5, 6.0]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule()
    def wait_long(self) -> None:
        self.world.advance(25.0)

    # -- what must hold --------------------------------------------------------------------

    @invariant()
    def the_past_is_as_promised(self) -> None:
        self.world.settle()
        assert self.agent.forks == 0, "two processes had one conversation"
        assert self.agent.live <= self.supervisor.config.max_live
        self.agent.check_told()
        for client in self.clients:
            check_log(client.events)
            self._check_requests(client)
            running: set[str] = set()
            for event in client.events:
                assert not isinstance(event.body, Gap)
                if event.turn_id is None:
                    continue
                if isinstance(event.body, Turn) and event.body.phase == "started":
                    running.add(event.turn_id)
                    own = {turn for turn in running if self._is_own(client, turn)}
                    assert len(running - own) <= 1, "two prompts were with the agent"
                    assert len(own) <= 1, "the agent was in two turns of its own"
                if event.is_terminal:
                    running.discard(event.turn_id)

    @invariant()
    def what_an_owner_has_is_counted(self) -> None:
        usage = self.supervisor.usage(LOCAL_OWNER)
        sessions = [
            self.supervisor.get(one.session_id) for one in self.supervisor.snapshot().sessions
        ]
        assert usage.turns == sum(
            record.result is None and record.origin is Origin.USER
            for session in sessions
            for record in at_once(session.turns())
        )
        if self.quota.turns is not None:
            assert usage.turns <= self.quota.turns
        conversations = [one for one in sessions if one.snapshot().kind is SessionKind.CONVERSATION]
        assert usage.sessions <= len(conversations) <= 2
        active = [one for one in conversations if one.state in ACTIVE]
        assert usage.sessions >= len(active)
        active.sort(key=lambda one: (one.created_at, one.session_id))
        assert self.supervisor.list() == self.supervisor.list(owner=LOCAL_OWNER) == tuple(active)
        assert self.supervisor.count() == self.supervisor.count(owner=LOCAL_OWNER) == len(active)
        ids = tuple(one.session_id for one in active)
        assert self.supervisor.ids() == self.supervisor.ids(owner=LOCAL_OWNER) == ids
        for state in State:
            assert self.supervisor.list(state=state) == tuple(
                sorted(
                    (one for one in conversations if one.state is state),
                    key=lambda one: (one.created_at, one.session_id),
                )
            )

    @rule()
    def start_beyond_the_quota(self) -> None:
        """Another conversation is refused, unless one of the two is over."""

        async def start() -> None:
            if self.supervisor.usage(LOCAL_OWNER).sessions == 2:
                try:
                    await self.supervisor.start(quota=self.quota)
                except (QuotaExceeded, AtCapacity, Draining):
                    return
                raise AssertionError("a third conversation was started")

        self.world.run(start())

    def _check_requests(self, client: Client) -> None:
        """What was asked, and what became of it, is as was told, stored and is acted upon."""
        said = resolutions_of(client.events)
        for request in at_once(client.session.requests()):
            resolution = [] if request.resolution is None else [request.resolution]
            assert said.pop(request.request_id) == resolution
            if request.request_id in self.decided:
                assert self.decided[request.request_id] == request
        assert not said
        pending = at_once(client.session.requests(pending=True))
        of_turns = [request for request in pending if request.turn_id is not None]
        state = client.session.state
        assert (state is State.WAITING) == bool(of_turns) or state is State.DRAINING
        if pending:
            assert state in (State.WAITING, State.DRAINING, State.RUNNING, State.IDLE)

    def _is_own(self, client: Client, turn_id: str) -> bool:
        return any(
            isinstance(event.body, Turn) and event.body.origin == "agent"
            for event in client.events
            if event.turn_id == turn_id
        )

    def teardown(self) -> None:
        if not hasattr(self, "clients"):
            return
        try:
            with self.world:
                for _ in range(20):
                    self.world.advance(LONG_S / 20)
                    self._answer_everything()
                for caller in self.callers:
                    assert caller.task.done(), f"{caller.what} was never answered"
                    self._check_answer(caller)
                if not self.drained:
                    self._check_interrupted()
                    self._ask_once_more()
                self.world.run(self.supervisor.__aexit__(None, None, None), limit_s=LONG_S)
                for client in self.clients:
                    assert client.reader.done(), "a reader was left waiting"
                    client.reader.result()
                    check_log(client.events)
                    self._check_turns(client)
                assert self.agent.live == 0
                assert self.supervisor.usage(LOCAL_OWNER) == Usage(sessions=0, turns=0)
                assert not self.directories.held
        finally:
            del self.world

    def _answer_everything(self) -> None:
        for client in self.clients:
            for request in at_once(client.session.requests(pending=True)):
                self.world.run(client.session.decide(request.request_id, Deny()))

    def _check_answer(self, caller: Caller) -> None:
        error = caller.task.exception()
        if error is not None:
            assert isinstance(error, Refused), repr(error)
            assert isinstance(
                error,
                (
                    SessionClosed,
                    SessionFailed,
                    Draining,
                    MailboxFull,
                    TurnNotFound,
                    QuotaExceeded,
                    RequestOver,
                    RequestNotFound,
                    NotQueued,
                    NotFailed,
                ),
            ) or (caller.what.startswith("one-off"))
            return
        answer = caller.task.result()
        if isinstance(answer, TurnResult):
            assert (answer.failure is None) == (
                answer.outcome in (Outcome.COMPLETED, Outcome.INTERRUPTED)
            )
        else:
            assert (
                answer is None
                or isinstance(answer, (Interrupted, Closed, State, Request, Settings))
                or (caller.what == "inspect")
            )

    def _check_interrupted(self) -> None:
        """Nobody's turn is interrupted but by an interrupt that says so."""
        for turn in self.turns.values():
            result = turn.record().result
            assert result is not None
            if result.outcome is Outcome.INTERRUPTED and turn.turn_id not in self.interrupted:
                assert self._was_stopped(turn), "it was interrupted, and nobody wanted that"

    def _was_stopped(self, turn: TurnHandle) -> bool:
        """Whether another turn that was to come first, or a denial, stopped this one."""
        (events,) = [
            client.events for client in self.clients if client.session.session_id == turn.session_id
        ]
        record = turn.record()
        return any(
            record.first_seq <= event.seq <= (record.last_seq or 0)
            and (
                (isinstance(event.body, Turn) and event.turn_id in self.preempting)
                or (isinstance(event.body, Resolved) and event.body.request_id in self.ending)
            )
            for event in events
        )

    def _ask_once_more(self) -> None:
        """A session that says it takes queries does."""
        self.agent.starts.clear()
        for client in self.clients:
            if client.session.state in (State.IDLE, State.HIBERNATED):

                async def ask(session: Session = client.session) -> TurnResult:
                    return await (await session.query("say")).wait()

                result = self.world.run(ask(), limit_s=LONG_S)
                assert (result.outcome, result.text) == (Outcome.COMPLETED, "some words here") or (
                    # Its process was frozen while it was idle; that shows only now.
                    result.outcome is Outcome.LOST
                )

    def _check_turns(self, client: Client) -> None:
        ended = {event.turn_id for event in client.events if event.is_terminal}
        for record in at_once(client.session.turns()):
            assert record.result is not None
            assert record.turn_id in ended
            own = [event for event in client.events if event.turn_id == record.turn_id]
            assert text_of(own) == record.result.text == record.text


class Asking(Sessions):
    """The same for sessions that ask all the time: every race on one request."""

    # Hypothesis takes every rule that it finds; here they would only leave less for the others.
    query = one_off = inspect = hibernate = wake = next_start = None  # type: ignore[assignment]
    start_beyond_the_quota = configure = restart = withdraw = None  # type: ignore[assignment]


SETTINGS = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestSessions = Sessions.TestCase
TestSessions.settings = SETTINGS
TestAsking = Asking.TestCase
TestAsking.settings = SETTINGS
