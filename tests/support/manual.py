"""An agent that a test drives by hand, message by message, and that may misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from session_supervisor.agents.port import (
    AgentMessage,
    Binding,
    ContextUsage,
    Exit,
    Fingerprint,
    TextBlock,
    Tree,
    TurnBegan,
    TurnEnded,
)
from session_supervisor.asks import Decision
from session_supervisor.errors import AgentGone
from session_supervisor.spec import PermissionMode, Prompt, SessionSpec


class ManualProcess:
    """One process of it."""

    def __init__(self, agent: ManualAgent) -> None:
        self._agent = agent
        self._said: asyncio.Queue[AgentMessage | None] = asyncio.Queue()
        self.exit: Exit | None = None
        self.pid: int | None = agent.pid
        self.sent: list[Prompt] = []
        self.interrupts = 0
        self.answered: list[tuple[str, Decision]] = []
        self.told: list[str] = []
        """All that it was sent, in order."""
        self.configured: list[tuple[str | None, PermissionMode | None]] = []
        self.grown = Tree()
        self.before_send: Callable[[], Awaitable[None]] | None = None

    def bind(self, binding: Binding) -> None:
        pass

    async def messages(self) -> AsyncIterator[AgentMessage]:
        while (message := await self._said.get()) is not None:
            yield message

    @property
    def unread(self) -> int:
        """What it has said and nobody has read."""
        return self._said.qsize()

    def say(self, *messages: AgentMessage) -> None:
        for message in messages:
            self._said.put_nowait(message)

    def say_turn(self, turn_id: str, text: str, *, interrupted: bool = False) -> None:
        """Say a whole turn."""
        ids = (turn_id,)
        self.say(
            TurnBegan(prompt_ids=ids),
            TextBlock(text),
            TurnEnded(prompt_ids=ids, interrupted=interrupted),
        )

    def die(self) -> None:
        self.exit = Exit(returncode=-9, cause="It was killed.")
        self._said.put_nowait(None)

    async def send(self, prompt: Prompt) -> None:
        if self.before_send is not None:
            await self.before_send()
        self._refuse_the_dead()
        self.sent.append(prompt)
        self.told.append("prompt")

    async def interrupt(self) -> None:
        self._refuse_the_dead()
        self.interrupts += 1
        self.told.append("interrupt")

    async def answer(self, request_id: str, decision: Decision) -> None:
        self._refuse_the_dead()
        self.answered.append((request_id, decision))
        self.told.append("answer")

    async def configure(
        self, *, model: str | None = None, permission_mode: PermissionMode | None = None
    ) -> None:
        self._refuse_the_dead()
        if self._agent.configure_error is not None:
            raise self._agent.configure_error
        await asyncio.sleep(self._agent.configure_s)
        self.configured.append((model, permission_mode))
        self.told.append("configuration")

    async def context(self) -> ContextUsage | None:
        self._refuse_the_dead()
        await asyncio.sleep(self._agent.context_s)
        return ContextUsage(tokens=1_000, max_tokens=200_000)

    async def probe(self) -> None:
        self._refuse_the_dead()
        if self._agent.probe_error is not None:
            raise self._agent.probe_error
        await asyncio.sleep(self._agent.probe_s)
        while self.unread:  # noqa: ASYNC110  (nobody is told of it)
            await asyncio.sleep(0.1)
        await asyncio.sleep(self._agent.probe_s)

    async def tree(self) -> Tree:
        return self.grown

    async def stop(self) -> Exit:
        if self._agent.stop_error is not None:
            self.die()
            raise self._agent.stop_error
        await asyncio.sleep(self._agent.stop_s)
        if self.exit is None:
            self.exit = Exit(returncode=0, cause="It was stopped.")
            self._said.put_nowait(None)
        self._agent.stopped_at.append(asyncio.get_running_loop().time())
        return self.exit

    def _refuse_the_dead(self) -> None:
        if self.exit is not None:
            raise AgentGone("It has ended.")


class ManualAgent:
    """Starts them.

    Attributes:
        processes: Those that came up.
        pid: What they say that their ids are.
        stop_s: Seconds that stopping takes.
        stop_error: What stopping raises.
        spawn_error: What starting raises.
        resume_error: What starting with a conversation to go on with raises.
        spawn_s: Seconds that starting takes, however often it is cancelled.
        probe_s: Seconds that a probe takes to arrive, and its answer once all has been read that
            was said before.
        probe_error: What probes raise.
        configure_error: What changing something raises.
        configure_s: Seconds that it takes.
        context_s: Seconds that it takes to say how full the context is.
        fingerprints: What processes were started with.
    """

    def __init__(self) -> None:
        self.processes: list[ManualProcess] = []
        self.pid: int | None = None
        self.stopped_at: list[float] = []
        self.stop_s = 0.0
        self.stop_error: Exception | None = None
        self.spawn_error: Exception | None = None
        self.resume_error: Exception | None = None
        self.spawn_s = 0.0
        self.probe_s = 0.0
        self.probe_error: Exception | None = None
        self.configure_error: Exception | None = None
        self.configure_s = 0.0
        self.context_s = 0.0
        self.fingerprints: list[Fingerprint] = []

    def check(self, spec: SessionSpec) -> None:
        pass

    async def spawn(self, fingerprint: Fingerprint, *, resume: str | None = None) -> ManualProcess:
        if self.spawn_s:
            # Against the contract, as a test of who relies on it.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(self.spawn_s)
        if self.spawn_error is not None:
            raise self.spawn_error
        if resume is not None and self.resume_error is not None:
            raise self.resume_error
        self.fingerprints.append(fingerprint)
        process = ManualProcess(self)
        self.processes.append(process)
        return process
