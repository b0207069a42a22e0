"""What goes on inside a scripted process: prompts in, messages out, one turn after the other.

It is a generator and knows no event loop. Between messages it gives what concerns the process
that it lives in: a `Rest`, when it has nothing to say, a line for standard error, or its end.
"""

from __future__ import annotations

import heapq
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple, TypeAlias

from session_supervisor.agents.port import (
    AgentMessage,
    BackgroundWork,
    Fingerprint,
    Initialized,
    TextBlock,
    TextDelta,
    ToolFinished,
    ToolStarted,
    TurnBegan,
    TurnEnded,
)
from session_supervisor.agents.scripted.script import (
    Absorb,
    BeginAlone,
    Complain,
    Conversation,
    Crash,
    Fail,
    Freeze,
    Hang,
    IgnoreInterrupts,
    Pause,
    Say,
    Script,
    Step,
    UseTool,
)
from session_supervisor.errors import Failure
from session_supervisor.spec import Prompt

TOOLS = ("Bash", "Edit", "Glob", "Grep", "Read", "Write")
"""The tools that exist where nobody names others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How an agent's processes behave, whatever the script.

    Attributes:
        tools: Names of the tools that exist; `check` refuses others.
        model: The model where a session names none.
        pickup_s: Seconds between a prompt and its turn. A prompt whose process dies in this
            time is not remembered.
        stop_s: Seconds that a process takes to stop.
        turn_cost_usd: Price of each turn, in US dollars.
        merge_queued: Whether prompts that wait together are answered as one turn.
        new_id_on_resume: Whether a resumed conversation gets another `agent_session_id`.
    """

    tools: tuple[str, ...] = TOOLS
    model: str = "scripted"
    pickup_s: float = 0.0
    stop_s: float = 0.0
    turn_cost_usd: float = 0.01
    merge_queued: bool = False
    new_id_on_resume: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Memory:
    """A conversation, which outlives its processes.

    Attributes:
        prompts: What was asked, oldest first.
        cost_usd: What it has cost so far.
        writers: Processes that have it now.
    """

    prompts: list[str] = field(default_factory=list[str])
    cost_usd: float = 0.0
    writers: int = 0


class Rest(NamedTuple):
    """Nothing happens until this time, or until the life is told something."""

    until: float


Sign: TypeAlias = AgentMessage | Rest | Complain | Freeze | Crash
"""What a life gives: something to say, or something that happens to its process."""


class _Interrupted(Exception):
    """Unwinds the script of a turn that was interrupted."""


class _Failed(Exception):
    """Unwinds the script of a turn that failed."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class Life:
    """The inside of one process.

    Args:
        script: Answers prompts.
        manners: How to behave.
        fingerprint: What the process was started with.
        agent_session_id: The conversation's id.
        memory: The conversation.
        conversations: Where conversations are found again, by id.
        now: The time, in seconds.
    """

    def __init__(
        self,
        *,
        script: Script,
        manners: Manners,
        fingerprint: Fingerprint,
        agent_session_id: str,
        memory: Memory,
        conversations: dict[str, Memory],
        now: Callable[[], float],
    ) -> None:
        self._script = script
        self._manners = manners
        self._fingerprint = fingerprint
        self._id = agent_session_id
        self._memory = memory
        self._conversations = conversations
        self._now = now
        self._inbox = deque[Prompt]()
        self._seen = set[str]()
        self._alone: list[tuple[float, int, BeginAlone]] = []
        self._ever_alone = 0
        self._background = 0
        self._ever_used_tools = 0
        self._running = False
        self._prompt_ids: list[str] = []
        self._tokens = 0
        self._interrupted = False
        self._ignores_interrupts = False
        self._leaving = False

    def hand(self, prompt: Prompt) -> None:
        """Queue a prompt, unless its id was seen before."""
        if prompt.prompt_id not in self._seen:
            self._seen.add(prompt.prompt_id)
            self._inbox.append(prompt)

    def interrupt(self) -> None:
        """End the turn, if one runs or is about to."""
        if (self._running or self._inbox) and not self._ignores_interrupts:
            self._interrupted = True

    def leave(self) -> None:
        """End the turn, and begin no other."""
        self._interrupted = self._leaving = True

    def signs(self) -> Generator[Sign, None, None]:
        """Yield all that happens, for as long as anybody asks."""
        while True:
            due = self._alone[0][0] if self._alone else inf
            if self._leaving:
                yield Rest(inf)
            elif due <= self._now():
                yield from self._begin_alone()
            elif self._inbox:
                yield from self._take_up()
            else:
                yield Rest(due)

    def _begin_alone(self) -> Generator[Sign, None, None]:
        alone = heapq.heappop(self._alone)[-1]
        if alone.background:
            self._background -= 1
            yield BackgroundWork(pending=self._background)
        yield from self._turn((), lambda: alone.steps)

    def _take_up(self) -> Generator[Sign, None, None]:
        taken_up = self._now() + self._manners.pickup_s
        while self._now() < taken_up and not self._interrupted:
            yield Rest(taken_up)
        prompts = [self._inbox.popleft()]
        if self._manners.merge_queued:
            prompts += self._inbox
            self._inbox.clear()
        merged = Prompt(
            prompt_id=prompts[0].prompt_id, text="\n".join(prompt.text for prompt in prompts)
        )
        conversation = Conversation(
            agent_session_id=self._id,
            fingerprint=self._fingerprint,
            earlier=tuple(self._memory.prompts),
            cost_usd=self._memory.cost_usd,
        )
        yield from self._turn(prompts, lambda: self._script(merged, conversation))

    def _turn(
        self, prompts: Iterable[Prompt], script: Callable[[], Iterable[Step]]
    ) -> Generator[Sign, None, None]:
        self._running = True
        self._prompt_ids = []
        self._tokens = 0
        self._remember(prompts)
        tools_before = self._ever_used_tools
        interrupted = False
        failure: Failure | None = None
        yield TurnBegan(prompt_ids=tuple(self._prompt_ids))
        yield Initialized(
            agent_session_id=self._id,
            model=self._fingerprint.model or self._manners.model,
            tools=self._fingerprint.allowed_tools or self._manners.tools,
            version="scripted",
        )
        try:
            for step in script():
                self._heed_interrupt()
                yield from self._play(step)
            self._heed_interrupt()
        except _Interrupted:
            interrupted = True
        except _Failed as failed:
            failure = failed.failure
        except Exception as error:  # the script's own: the stream of messages never raises
            yield Crash(
                returncode=1, cause=f"The script raised {error!r}.", stderr=traceback.format_exc()
            )
        self._memory.cost_usd += self._manners.turn_cost_usd
        self._running = self._interrupted = self._ignores_interrupts = False
        yield TurnEnded(
            prompt_ids=tuple(self._prompt_ids),
            interrupted=interrupted,
            failure=failure,
            num_turns=1 + self._ever_used_tools - tools_before,
            cost_usd=self._memory.cost_usd,
            usage={"input_tokens": len(self._memory.prompts), "output_tokens": self._tokens},
            stop_reason=None if interrupted or failure else "end_turn",
        )

    def _play(self, step: Step) -> Generator[Sign, None, None]:
        match step:
            case Say():
                yield from self._say(step)
            case Pause():
                yield from self._wait(step.seconds)
            case UseTool():
                yield from self._use(step)
            case BeginAlone():
                self._ever_alone += 1  # settles the order of those due together
                entry = (self._now() + step.after_s, self._ever_alone, step)
                heapq.heappush(self._alone, entry)
                if step.background:
                    self._background += 1
                    yield BackgroundWork(pending=self._background)
            case Absorb():
                self._remember(self._inbox)
                self._inbox.clear()
            case IgnoreInterrupts():
                self._ignores_interrupts = True
            case Hang():
                yield from self._wait(inf)
            case Fail():
                raise _Failed(step.failure)
            case Crash():
                if not step.remembered:
                    self._unremember()
                yield step
            case _:
                yield step

    def _say(self, step: Say) -> Generator[Sign, None, None]:
        length = len(step.text)
        self._tokens += step.deltas
        for index in range(step.deltas):
            yield from self._wait(step.every_s)
            piece = step.text[length * index // step.deltas : length * (index + 1) // step.deltas]
            if piece:
                yield TextDelta(piece)
        if step.confirmed:
            self._heed_interrupt()
            yield TextBlock(step.text)

    def _use(self, step: UseTool) -> Generator[Sign, None, None]:
        self._ever_used_tools += 1
        tool_use_id = f"{self._id}-tool-{self._ever_used_tools}"
        yield ToolStarted(tool_use_id=tool_use_id, name=step.name, input=step.input)
        try:
            yield from self._wait(step.seconds)
        except _Interrupted:
            yield ToolFinished(tool_use_id=tool_use_id, content="interrupted", is_error=True)
            raise
        yield ToolFinished(tool_use_id=tool_use_id, content=step.result, is_error=step.is_error)

    def _wait(self, seconds: float) -> Generator[Sign, None, None]:
        self._heed_interrupt()
        if seconds <= 0:
            return
        until = self._now() + seconds
        while self._now() < until:
            yield Rest(until)
            self._heed_interrupt()

    def _heed_interrupt(self) -> None:
        if self._interrupted:
            raise _Interrupted

    def _remember(self, prompts: Iterable[Prompt]) -> None:
        for prompt in prompts:
            self._prompt_ids.append(prompt.prompt_id)
            self._memory.prompts.append(prompt.text)
        self._conversations[self._id] = self._memory

    def _unremember(self) -> None:
        del self._memory.prompts[len(self._memory.prompts) - len(self._prompt_ids) :]
        if not self._memory.prompts:
            self._conversations.pop(self._id, None)
