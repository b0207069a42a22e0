"""The pool under everything at once, on virtual time.

Hypothesis asks one-offs and starts sessions of two owners, with several models, modes and prompts;
crashes and freezes what stands ready; lets starts fail and hang; changes what processes are started
with; forgets owners; hibernates, closes, interrupts; and lets time pass. What holds all the time:

* no process ever works for two owners, nor for two kinds, nor for two sessions at once;
* what one session was told, none of another has in its context;
* a session's process has the session's model, mode and directory, and no two have one directory;
* there are never more processes than `max_live`, and those that stand ready are as many as may be;
* every turn ends, and nothing is left at the end: no process, no directory, no task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from session_supervisor import (
    PoolPolicy,
    Session,
    SessionSpec,
    Supervisor,
    TurnHandle,
    Watchdogs,
)
from session_supervisor.agents.scripted import (
    BeginAlone,
    Conversation,
    Crash,
    Fail,
    Hang,
    Pause,
    Say,
    ScriptedAgent,
    ScriptedProcess,
    Start,
    Step,
)
from session_supervisor.errors import AgentStartFailed, Failure, FailureCode, Refused
from session_supervisor.spec import PermissionMode, Prompt
from tests.support.sessions import ImaginaryDirectories, supervisor_of
from tests.support.virtual_time import VirtualWorld

MAX_LIVE = 3
MAX_POOLED = 2

OWNERS = st.sampled_from(["ann", "ben"])
MODELS = st.sampled_from([None, None, "opus", "haiku"])
MODES: st.SearchStrategy[PermissionMode] = st.sampled_from(["default", "default", "plan"])
SYSTEM = st.sampled_from([None, None, "Be brief."])
WORDS = st.sampled_from(["say", "say", "say", "slow", "hang", "crash", "fail", "background"])


class Watched(ScriptedAgent):
    """Checks each conversation as it goes on."""

    def __init__(self) -> None:
        super().__init__(self._answer, start=Start(delay_s=0.5))
        self.directories_in_use = Counter[str]()
        self.broken: list[str] = []

    def _answer(self, prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
        session, word, model, mode, owner = prompt.text.split("/")
        fingerprint = conversation.fingerprint
        for told in conversation.earlier:
            if told.split("/")[0] != session:
                self.broken.append(f"{prompt.text} comes after {told}")
        if (fingerprint.owner, str(fingerprint.model), fingerprint.permission_mode) != (
            owner,
            model,
            mode,
        ):
            self.broken.append(f"{prompt.text} is with {fingerprint}")
        match word:
            case "slow":
                return [Pause(3.0), Say("slow")]
            case "hang":
                return [Hang()]
            case "crash":
                return [Pause(0.2), Crash()]
            case "fail":
                return [Fail(Failure(code=FailureCode.UPSTREAM_ERROR, message="no"))]
            case "background":
                return [BeginAlone(5.0, [Say("later")]), Say("begun")]
            case _:
                return [Say("said")]


class PoolMachine(RuleBasedStateMachine):
    @initialize(recycle=st.booleans(), max_starting=st.integers(1, 2))
    def open(self, recycle: bool, max_starting: int) -> None:
        self.world = VirtualWorld()
        self.world.__enter__()
        self.agent = Watched()
        self.directories = ImaginaryDirectories()
        self.supervisor: Supervisor = supervisor_of(
            self.agent,
            directories=self.directories,
            pool=PoolPolicy(
                max_pooled=MAX_POOLED, recycle=recycle, max_uses=4, max_age_s=120.0, probe_s=5.0
            ),
            max_starting=max_starting,
            max_live=MAX_LIVE,
            watchdogs=Watchdogs(start_s=20.0, first_byte_s=30.0, progress_s=30.0),
        )
        self.world.run(self.supervisor.__aenter__())
        self.turns: list[TurnHandle] = []
        self.sessions: list[tuple[Session, str, str, str, str]] = []
        self.asked = 0

    @rule(owner=OWNERS, model=MODELS, mode=MODES, system=SYSTEM, word=WORDS)
    def ask_once(
        self,
        owner: str,
        model: str | None,
        mode: PermissionMode,
        system: str | None,
        word: str,
    ) -> None:
        self.asked += 1
        spec = SessionSpec(model=model, permission_mode=mode, system_prompt=system)
        text = f"once{self.asked}/{word}/{model}/{mode}/{owner}"

        async def ask() -> None:
            with suppress(Refused):
                turn = await self.supervisor.query(text, spec, owner=owner, timeout_s=40.0)
                self.turns.append(turn)

        self.world.run(ask())

    @rule(count=st.integers(2, 6), owner=OWNERS)
    def burst(self, count: int, owner: str) -> None:
        for _ in range(count):
            self.ask_once(owner, None, "default", None, "say")

    @rule(owner=OWNERS, model=MODELS, mode=MODES, word=WORDS)
    def start(self, owner: str, model: str | None, mode: PermissionMode, word: str) -> None:
        self.asked += 1
        name = f"session{self.asked}"

        async def begin() -> None:
            spec = SessionSpec(model=model, permission_mode=mode)
            session = await self.supervisor.start(spec, owner=owner)
            self.sessions.append((session, name, str(model), mode, owner))

        self.world.run(begin())
        self.go_on(len(self.sessions) - 1, word)

    @rule(which=st.integers(0, 20), word=WORDS)
    def go_on(self, which: int, word: str) -> None:
        if not self.sessions:
            return
        session, name, model, mode, owner = self.sessions[which % len(self.sessions)]

        async def ask() -> None:
            try:
                text = f"{name}/{word}/{model}/{mode}/{owner}"
                self.turns.append(await session.query(text, timeout_s=40.0))
            except Refused:
                pass

        self.world.run(ask())

    @rule(which=st.integers(0, 20), how=st.sampled_from(["close", "hibernate", "interrupt"]))
    def end(self, which: int, how: str) -> None:
        if not self.sessions:
            return
        session, *_ = self.sessions[which % len(self.sessions)]

        async def tell() -> None:
            try:
                if how == "close":
                    await self.supervisor.close(session.session_id)
                elif how == "hibernate":
                    await session.hibernate()
                else:
                    await session.interrupt()
            except Refused:
                pass

        self.world.run(tell())

    @rule(which=st.integers(0, 50), how=st.sampled_from(["crash", "freeze", "thaw"]))
    def meddle(self, which: int, how: str) -> None:
        live = [process for process in self.agent.processes if process.exit is None]
        if live:
            process = live[which % len(live)]
            getattr(process, how)()
            self.world.settle()

    @rule(what=st.sampled_from(["as ever", "another credential"]))
    def change(self, what: str) -> None:
        self.agent.surroundings = what

    @rule(which=st.integers(0, 50))
    def put_something_in_a_directory(self, which: int) -> None:
        held = sorted(self.directories.held)
        if held:
            self.directories.files.setdefault(held[which % len(held)], set()).add("planted")

    @rule(hangs=st.booleans())
    def fail_a_start(self, hangs: bool) -> None:
        error = None if hangs else AgentStartFailed("no")
        self.agent.starts.append(Start(delay_s=0.3, error=error, hangs=hangs))

    @rule(owner=OWNERS)
    def forget(self, owner: str) -> None:
        async def tell() -> None:
            self.supervisor.forget_owner(owner)

        self.world.run(tell())

    @rule(seconds=st.sampled_from([0.1, 0.4, 1.0, 5.0, 40.0, 130.0, 320.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.advance(seconds)

    @invariant()
    def all_is_as_promised(self) -> None:
        if not hasattr(self, "world"):
            return
        assert not self.agent.broken, self.agent.broken
        live = [process for process in self.agent.processes if process.exit is None]
        assert self.agent.live <= MAX_LIVE, "too many processes"
        directories = Counter(process.started_in for process in map(_Seen, live))
        assert not directories or max(directories.values()) == 1
        pool = self.supervisor.snapshot().pool
        assert pool is not None
        assert pool.ready <= MAX_POOLED
        assert self.agent.forks == 0
        for process in self.agent.processes:
            assert len({prompt.text.rpartition("/")[2] for prompt in process.sent}) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for process in self.agent.processes:
            process.thaw()
        self.agent.starts.clear()
        self.world.advance(400.0)

        async def leave() -> None:
            for turn in self.turns:
                await turn.wait()
            await self.supervisor.__aexit__(None, None, None)

        self.world.run(leave())
        assert self.agent.live == 0
        assert not self.directories.held
        self.world.__exit__(None, None, None)


class _Seen:
    def __init__(self, process: ScriptedProcess) -> None:
        self.started_in = process.fingerprint.cwd


TestPoolMachine: Any = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
