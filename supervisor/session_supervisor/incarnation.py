"""One agent process, from the decision to start it until it is gone.

An incarnation does what takes long, in child tasks of the actor, and posts what comes of it.
It decides nothing. Once it is given up, all that still counts is that it is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from session_supervisor.agents.port import (
    Agent,
    AgentMessage,
    AgentProcess,
    Binding,
    ContextUsage,
    Exit,
    Fingerprint,
    Tree,
    TurnEnded,
)
from session_supervisor.asks import Decision
from session_supervisor.config import Watchdogs
from session_supervisor.errors import AgentError, AgentGone, AgentStartFailed, CannotChange
from session_supervisor.latch import Latch
from session_supervisor.seats import Seat
from session_supervisor.slots import Slots
from session_supervisor.spec import PermissionMode, Prompt

logger = logging.getLogger(__name__)

CONTEXT_S = 2.0
"""Seconds that a process may take to say how full its context is."""

AHEAD = 256
"""Messages of a process that may wait for the actor, which a slow store can hold up. Then the
process waits."""


@dataclass(frozen=True, slots=True)
class Up:
    """The process is ready."""

    incarnation: Incarnation


class Said(NamedTuple):
    """The process said something. Not a dataclass like the others: most signals are this one."""

    incarnation: Incarnation
    message: AgentMessage


@dataclass(frozen=True, slots=True)
class Probed:
    """The process answered a probe."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The process could not change what it was told to; another one has to be started for it."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Faulty:
    """The process cannot do what it must, or says nothing any more; it may still be there."""

    incarnation: Incarnation
    cause: str


@dataclass(frozen=True, slots=True)
class Down:
    """The process is gone, or never came: the last signal of every incarnation.

    Attributes:
        exit: How it ended.
        error: Why it did not come up, if it did not.
    """

    incarnation: Incarnation
    exit: Exit
    error: AgentError | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """The session works somewhere else, which has to be stored.

    Attributes:
        stored: Set once it is.
    """

    stored: Latch


ENDED = "The agent's process ended by itself."

Signal: TypeAlias = Up | Said | Probed | Unchanged | Faulty | Moved | Down
"""What an incarnation posts."""

_End: TypeAlias = tuple[Exit, AgentError | None]
"""How a process ended and, if it did not come up, why."""


class Incarnation:
    """One process.

    Args:
        agent: Starts it.
        fingerprint: What it is started with.
        binding: The session it works for.
        resume: The conversation to go on with, if any.
        watchdogs: Time limits for start and probe.
        slots: Room for it; it takes a slot from before its start until it is gone.
        starting: Held while it comes up.
        prepare: Called before it is started.
        post: Called with each signal.
        tasks: Where its child tasks run.
        seat: The way to a process that stands ready; None: it is started.
    """

    def __init__(
        self,
        agent: Agent,
        fingerprint: Fingerprint,
        *,
        binding: Binding,
        resume: str | None,
        watchdogs: Watchdogs,
        slots: Slots,
        starting: AbstractAsyncContextManager[object],
        prepare: Callable[[], Awaitable[None]],
        post: Callable[[Signal], None],
        tasks: asyncio.TaskGroup,
        seat: Seat | None = None,
    ) -> None:
        self._agent = agent
        self._fingerprint = fingerprint
        self._binding = binding
        self._resume = resume
        self._watchdogs = watchdogs
        self._slots = slots
        self._seat = seat
        self._starting = starting if seat is None else seat
        self._prepare = prepare
        self._post = post
        self._tasks = tasks
        self._process: AgentProcess | None = None
        self._errands: set[asyncio.Task[None]] = set()
        self._last: asyncio.Task[None] | None = None
        self._taken: str | None = None
        self._interrupting: asyncio.Task[None] | None = None
        self._unserved = 0
        self._room: asyncio.Event | None = None
        self._holds = 0
        self.given_up = False
        self.cost_usd = 0.0
        """What it said last that the conversation has cost, also after it was given up."""
        self.gone = Latch()
        self._life = tasks.create_task(self._live())
        # Not in the task itself: one that is cancelled before its first step never runs.
        self._life.add_done_callback(self._over)

    @property
    def pid(self) -> int | None:
        """The process id, if there is a process with one of its own."""
        return None if self._process is None else self._process.pid

    @property
    def up(self) -> bool:
        """Whether there is a process, and nobody has given it up."""
        return self._process is not None and not self.given_up

    @property
    def at_hand(self) -> bool:
        """Whether there is a process that only has to be looked at before it is up."""
        ready = self._seat is not None and self._seat.spare is not None
        return self._process is None and ready

    @property
    def came_up(self) -> bool:
        """Whether there is or was a process."""
        return self._process is not None

    async def tree(self) -> Tree:
        """Look what processes there are; none before it is up."""
        return Tree() if self._process is None else await self._process.tree()

    def send(self, prompt: Prompt) -> None:
        """Hand over a prompt; `Faulty` follows if that fails."""

        async def hand(process: AgentProcess) -> None:
            await process.send(prompt)
            self._taken = prompt.prompt_id

        _ = self._in_turn(hand, "did not take a prompt")

    def took(self, prompt_id: str) -> bool:
        """Return whether a prompt, the last that was handed over, was taken."""
        return self._taken == prompt_id

    def interrupt(self) -> None:
        """Ask for the running turn to stop; `Faulty` follows if that fails."""

        async def tell(process: AgentProcess) -> None:
            await process.interrupt()

        self._interrupting = self._in_turn(tell, "did not take an interrupt")

    def let_go(self) -> None:
        """Interrupt no more: the turn that was meant has ended, and the next must not be hit."""
        if self._interrupting is not None:
            self._interrupting.cancel()
            self._interrupting = None

    def answer(self, request_id: str, decision: Decision) -> None:
        """Answer what it asked; `Faulty` follows if that fails.

        Args:
            request_id: What.
            decision: The answer.
        """

        async def tell(process: AgentProcess) -> None:
            await process.answer(request_id, decision)

        _ = self._in_turn(tell, "did not take an answer")

    def configure(
        self, *, model: str | None = None, permission_mode: PermissionMode | None = None
    ) -> asyncio.Task[None]:
        """Change what can change while it lives; `Unchanged` follows if that fails.

        Args:
            model: Name or alias; None leaves it.
            permission_mode: None leaves it.

        Returns:
            What does it, and ends when either is so, or the process is gone.
        """

        async def tell(process: AgentProcess) -> None:
            try:
                async with asyncio.timeout(self._watchdogs.probe_s):
                    await process.configure(model=model, permission_mode=permission_mode)
            except AgentGone:
                raise
            except CannotChange:
                self._post(Unchanged(self))
            except Exception:  # whatever the adapter raises, the next process has it
                logger.exception("an agent process could not be changed (pid %s)", process.pid)
                self._post(Unchanged(self))

        return self._in_turn(tell, "could not be changed")

    def context(self, then: Callable[[ContextUsage | None], None]) -> None:
        """Ask how full the model's context is.

        Args:
            then: Called in any case, with None where that does not become known in time.
        """
        found: list[ContextUsage | None] = []

        async def ask(process: AgentProcess) -> None:
            with suppress(Exception):  # whatever the adapter raises: it is not known then
                async with asyncio.timeout(CONTEXT_S):
                    found.append(await process.context())

        def over(_: asyncio.Task[None]) -> None:
            then(found[0] if found else None)

        # Not in the task itself: one that is cancelled before its first step never runs.
        self._errand(ask, "did not say how full its context is").add_done_callback(over)

    def probe(self) -> None:
        """Ask for a sign of life; `Probed` or `Faulty` follows within the time limit."""

        async def ask(process: AgentProcess) -> None:
            holds = self._holds
            time_limit = asyncio.timeout(self._watchdogs.probe_s)
            try:
                async with time_limit:
                    await process.probe()
            except TimeoutError:
                if not time_limit.expired():
                    raise
                if self._room is None and self._holds == holds:
                    self._post(
                        Faulty(self, f"The agent was silent for {silent_s:g} s, even to a probe.")
                    )
                    return
                # It was we who did not read: its answer may stand behind all that it has said.
            self._post(Probed(self))

        silent_s = self._watchdogs.silence_s + self._watchdogs.probe_s
        _ = self._errand(ask, "refused a probe")

    def served(self, count: int = 1) -> None:
        """Note that some of its messages were served, which the reader may wait for."""
        self._unserved -= count
        if self._room is not None and self._unserved <= AHEAD // 2:
            self._room.set()

    def give_up(self) -> None:
        """End the process; nothing that it says counts any more, and `Down` follows."""
        if self.given_up:
            return
        self.given_up = True
        if self._room is not None:
            self._room.set()
        if self._process is None:
            self._life.cancel()
        else:
            self._tasks.create_task(self._stop(self._process))

    def _in_turn(
        self, do: Callable[[AgentProcess], Awaitable[None]], fault: str
    ) -> asyncio.Task[None]:
        """Run an errand after those that were sent before it.

        An interrupt ends what was sent before it, so it must not overtake a prompt in a full pipe,
        and an answer that is to follow an interrupt must not be taken up before it.
        """
        last = self._last

        async def follow(process: AgentProcess) -> None:
            if last is not None:
                await asyncio.wait({last})
            await do(process)

        self._last = self._errand(follow, fault)
        return self._last

    def _errand(
        self, do: Callable[[AgentProcess], Awaitable[None]], fault: str
    ) -> asyncio.Task[None]:
        process = self._process
        assert process is not None, "nothing can be asked of a process that is not up"

        async def run() -> None:
            try:
                await do(process)
            except AgentGone:
                pass  # `Down` is on its way, and knows more about it
            except Exception as error:  # whatever the adapter raises, the process is no use
                detail = f": {error}" if str(error) else ""
                self._post(Faulty(self, f"The agent {fault}{detail}."))

        errand = self._tasks.create_task(run())
        self._errands.add(errand)
        errand.add_done_callback(self._errands.discard)
        return errand

    async def _live(self) -> _End:
        """Wait for room, and live in it.

        Returns:
            How it ended. Not `Down`, which knows this: a task keeps its result, and this its task.
        """
        session_id = self._binding.session_id
        if self._seat is not None:
            self._seat.claim()
        try:
            await self._slots.take(session_id, owner=self._fingerprint.owner)
            return await self._read()
        finally:
            if self._seat is not None:
                self._seat.release()
            if self._slots.has(session_id):
                self._slots.give_back(session_id)

    async def _read(self) -> _End:
        """Read the process from its start to its end, and say what that was."""
        try:
            process = await self._start()
        except AgentError as error:
            return Exit(cause=str(error)), _alone(error)
        except Exception as error:  # contains the adapter's failure: the session lives on
            wrapped = AgentStartFailed(f"The agent did not start: {error!r}")
            return Exit(cause=str(wrapped)), wrapped
        self._process = process
        cause = ""
        try:
            # Given up while it started, and started all the same: it is stopped unheard.
            if not self.given_up:
                process.bind(self._binding)
                self._slots.lives(self._binding.session_id, process.tree)
                self._post(Up(self))
                async for message in process.messages():
                    if self._hear(message):
                        await self._wait_for_room()
        except Exception as error:  # contains the adapter's failure: it is a crash
            cause = f"The agent could not be read: {error!r}"
        # Said before it is stopped, which may take long: nothing more may be handed to it.
        known = process.exit
        self._post(Faulty(self, cause or (known.cause if known else "") or ENDED))
        ended = await self._stop(process)
        return replace(ended, cause=cause) if cause else ended, None

    def _hear(self, message: AgentMessage) -> bool:
        """Post a message; return whether so many are unserved that the process has to wait."""
        if isinstance(message, TurnEnded):
            self.cost_usd = message.cost_usd
        if self.given_up:
            return False
        self._post(Said(self, message))
        self._unserved += 1
        return self._unserved >= AHEAD

    async def _wait_for_room(self) -> None:
        self._room = asyncio.Event()
        await self._room.wait()
        self._room = None
        self._holds += 1

    async def _stop(self, process: AgentProcess) -> Exit:
        try:
            return await process.stop()
        except Exception as error:  # contains the adapter's failure, which stops nobody else
            logger.exception("an agent process could not be stopped (pid %s)", process.pid)
            return Exit(cause=f"The agent could not be stopped: {error!r}")

    def _over(self, life: asyncio.Task[_End]) -> None:
        for errand in self._errands:
            errand.cancel()
        given_up = Exit(cause="given up before it was up")
        ended, error = (given_up, None) if life.cancelled() else life.result()
        self.gone.set()
        self._post(Down(self, ended, error))

    async def _start(self) -> AgentProcess:
        limit = self._watchdogs.start_s
        async with self._starting:
            time_limit = asyncio.timeout(limit)
            try:
                async with time_limit:
                    await self._prepare()
                    if self._seat is not None:
                        return await self._seat.spawn()
                    return await self._agent.spawn(self._fingerprint, resume=self._resume)
            except TimeoutError as error:
                if not time_limit.expired():
                    raise AgentStartFailed(f"The agent did not start: {error!r}") from error
                raise AgentStartFailed(
                    f"The agent was not ready within {limit:g} s. The machine may be overloaded."
                ) from None


def _alone(error: AgentError) -> AgentError:
    """Return an error without how it came about.

    A life keeps it as its result, and the frames of its traceback, or of what it came from, know
    that life: a circle, and all that the session had would be in it.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
