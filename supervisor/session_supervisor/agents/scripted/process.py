"""A scripted process: the port's side of a `Life`, and the event loop's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from math import inf

from session_supervisor.agents.port import (
    AgentMessage,
    Binding,
    ContextUsage,
    Exit,
    Fingerprint,
    Tree,
)
from session_supervisor.agents.scripted.life import Life, Rest
from session_supervisor.agents.scripted.script import Complain, Crash, Freeze
from session_supervisor.asks import Decision
from session_supervisor.errors import AgentGone, CannotRenew
from session_supervisor.spec import PermissionMode, Prompt
from session_supervisor.timers import Gate, Wakeup

BURST = 16
"""Messages in a row without the event loop having its turn, as from one read of a pipe."""

STDERR_LINES = 50
"""Last lines of standard error that an `Exit` keeps."""


class ScriptedProcess:
    """One process of a `ScriptedAgent`. A test may crash, freeze and thaw it.

    Args:
        life: What goes on inside.
        fingerprint: What it was started with.
        agent_session_id: The id of its conversation.
        stop_s: Seconds that it takes to stop.
        on_exit: Called once, when it ends.
        begin_anew: Called when it is renewed; returns a life and the id of its conversation.
        gate: What it has to pass when it wakes; None: nothing.

    Attributes:
        agent_session_id: The id of its conversation.
        binding: The session that it works for, if any.
        sent: Every prompt that it was handed, oldest first.
        answers: Every decision that it was told, also of requests that were over, oldest first.
        interrupts: How many interrupts it acknowledged.
    """

    def __init__(
        self,
        life: Life,
        *,
        fingerprint: Fingerprint,
        agent_session_id: str,
        stop_s: float,
        on_exit: Callable[[], None],
        begin_anew: Callable[[], tuple[Life, str]],
        gate: Gate | None = None,
    ) -> None:
        self._begin_anew = begin_anew
        self._touched = False
        self._streams = 0
        self._started_with = fingerprint
        self._fingerprint = fingerprint
        self.agent_session_id = agent_session_id
        self.binding: Binding | None = None
        self.sent: list[Prompt] = []
        self.answers: list[tuple[str, Decision]] = []
        self.interrupts = 0
        self._life = life
        self._signs = life.signs()
        self._stop_s = stop_s
        self._on_exit = on_exit
        self._exit: Exit | None = None
        self._stopping = False
        self._read = False
        self._burst = 0
        self._bell = Wakeup(gate)
        self._responsive = asyncio.Event()
        self._responsive.set()
        self._ended = asyncio.Event()
        self._stderr = deque[str](maxlen=STDERR_LINES)

    @property
    def pid(self) -> int | None:
        """None: it is no process of the operating system."""
        return None

    @property
    def exit(self) -> Exit | None:
        """How it ended, or None while it lives."""
        return self._exit

    @property
    def fingerprint(self) -> Fingerprint:
        """What it was started with, or was told since."""
        return self._fingerprint

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return not self._responsive.is_set()

    def bind(self, binding: Binding) -> None:
        """Tie it to a session, in place of the one before."""
        self.binding = binding

    def messages(self) -> AsyncIterator[AgentMessage]:
        """Return the stream of what it says. Giving up waiting for a message loses none.

        Raises:
            RuntimeError: It was called before.
        """
        if self._read:
            raise RuntimeError("messages() is for one reader, once.")
        self._read = True
        return _Stream(partial(self._next, self._streams))

    @property
    def untouched(self) -> bool:
        """Whether it lives, and nobody has sent it anything since it came up or was renewed."""
        return self._exit is None and not self._touched

    @property
    def stain(self) -> str | None:
        """Why it cannot be renewed: what it is in the middle of, or a rule that it was given."""
        return self._life.stain()

    @property
    def conversation(self) -> str | None:
        """The id of its conversation."""
        return self.agent_session_id

    async def leftovers(self) -> Tree:
        """Return that there is no process of its own."""
        return await self.tree()

    async def renew(self) -> None:
        """Begin another conversation, with another life.

        Raises:
            CannotRenew: It is in the middle of something.
            AgentGone: It has ended.
        """
        await self.probe()
        if self._stopping:
            raise AgentGone("The process is being stopped.")
        if self.stain is not None:
            raise CannotRenew(self.stain)
        self._life, self.agent_session_id = self._begin_anew()
        self._signs = self._life.signs()
        self._fingerprint = self._started_with
        self.binding = None
        self._touched = self._read = False
        self._streams += 1
        self._bell.ring()

    async def send(self, prompt: Prompt) -> None:
        """Hand over a prompt, also to a frozen process; one with a known id is skipped.

        Raises:
            AgentGone: The process has ended.
        """
        self._refuse_the_dead()
        self._touched = True
        self.sent.append(prompt)
        self._life.hand(prompt)
        self._bell.ring()
        await asyncio.sleep(0)

    async def interrupt(self) -> None:
        """Stop the running turn; a prompt that was handed over counts as running.

        Raises:
            AgentGone: The process has ended.
        """
        await self.probe()
        self.interrupts += 1
        self._life.interrupt()
        self._bell.ring()

    async def answer(self, request_id: str, decision: Decision) -> None:
        """Answer what it asked, also of a frozen process.

        Raises:
            AgentGone: The process has ended.
        """
        self._refuse_the_dead()
        self.answers.append((request_id, decision))
        self._life.answer(request_id, decision)
        self._bell.ring()
        await asyncio.sleep(0)

    async def configure(
        self, *, model: str | None = None, permission_mode: PermissionMode | None = None
    ) -> None:
        """Change what its manners let it change.

        Raises:
            AgentGone: The process has ended.
            CannotChange: Its manners name the mode, or `model`.
        """
        await self.probe()
        self._life.configure(model=model, permission_mode=permission_mode)
        self._fingerprint = self._life.fingerprint

    async def context(self) -> ContextUsage:
        """Return how much has been asked so far, a token for four characters.

        Raises:
            AgentGone: The process has ended.
        """
        await self.probe()
        return self._life.context()

    async def probe(self) -> None:
        """Return at once, unless frozen.

        Raises:
            AgentGone: The process has ended.
        """
        self._refuse_the_dead()
        await asyncio.sleep(0)
        await self._responsive.wait()
        self._refuse_the_dead()

    async def tree(self) -> Tree:
        """Return that there is no process of its own."""
        return Tree()

    async def stop(self) -> Exit:
        """Interrupt what runs, and end after `stop_s` seconds in any case."""
        if self._exit is None and not self._stopping:
            self._stopping = True
            self._life.leave()
            self._bell.ring()
            exit_ = (
                Exit(returncode=-9, cause="It was frozen, so it was killed.")
                if self.frozen
                else Exit(returncode=0, cause="It was stopped.")
            )
            # A timer and not a sleep: it ends also when who asked gives up waiting.
            asyncio.get_running_loop().call_later(self._stop_s, self._end, exit_)
        await self._ended.wait()
        assert self._exit is not None
        return self._exit

    def crash(self, returncode: int = -9, *, cause: str = "It was told to crash.") -> None:
        """End at once, in the middle of whatever it does.

        Args:
            returncode: Its exit status, negative for a signal.
            cause: What is known of why, for people.
        """
        self._end(Exit(returncode=returncode, cause=cause, stderr="\n".join(self._stderr)))

    def freeze(self) -> None:
        """Stand still, as on SIGSTOP."""
        if self._exit is None:
            self._responsive.clear()

    def thaw(self) -> None:
        """Go on, as on SIGCONT."""
        self._responsive.set()
        self._bell.ring()

    async def _next(self, stream: int) -> AgentMessage:
        while self._exit is None and stream == self._streams:
            if not self._responsive.is_set():
                await self._bell.wait(None)
                continue
            if self._burst == BURST:
                self._burst = 0
                await asyncio.sleep(0)
                continue
            match next(self._signs):
                case Rest() as rest:
                    self._burst = 0
                    await self._bell.wait(None if rest.until == inf else rest.until)
                case Complain() as complaint:
                    self._complain(complaint.text)
                case Freeze():
                    self.freeze()
                case Crash() as crash:
                    self._complain(crash.stderr)
                    self.crash(crash.returncode, cause=crash.cause)
                case message:
                    self._burst += 1
                    return message
        raise StopAsyncIteration

    def _end(self, exit_: Exit) -> None:
        if self._exit is None:
            self._exit = exit_
            self._on_exit()
            self._ended.set()
            self.thaw()
            self._bell.mute()

    def _complain(self, text: str) -> None:
        for line in text.splitlines():
            self._stderr.append(line)
            if self.binding is not None:
                self.binding.on_stderr(line)

    def _refuse_the_dead(self) -> None:
        if self._exit is not None:
            raise AgentGone(f"The process has ended: {self._exit.cause}")


class _Stream(AsyncIterator[AgentMessage]):
    """Unlike an async generator, it survives that a wait for the next message is cancelled."""

    def __init__(self, next_message: Callable[[], Awaitable[AgentMessage]]) -> None:
        self._next_message = next_message

    def __anext__(self) -> Awaitable[AgentMessage]:
        return self._next_message()
