"""What goes on inside a scripted process: prompts in, messages out, one turn after the other.

It is a generator and knows no event loop. Between messages it gives what concerns the process
that it lives in: a `Rest`, when it has nothing to say, a line for standard error, or its end.
"""

from __future__ import annotations

import heapq
import json
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple, TypeAlias
from uuid import uuid4

from pydantic import JsonValue

from session_supervisor.agents.port import (
    AgentMessage,
    AskWithdrawn,
    BackgroundWork,
    ContextUsage,
    Fingerprint,
    Initialized,
    PermissionAsked,
    QuestionAsked,
    TextBlock,
    TextDelta,
    ToolFinished,
    ToolStarted,
    TurnBegan,
    TurnEnded,
)
from session_supervisor.agents.scripted.script import (
    Absorb,
    AskQuestions,
    BeginAlone,
    Complain,
    Conversation,
    Crash,
    Fail,
    Freeze,
    Give,
    Hang,
    IgnoreInterrupts,
    Pause,
    Say,
    Script,
    Step,
    UseTool,
)
from session_supervisor.asks import Allow, Answers, Decision, Deny, Rule
from session_supervisor.errors import CannotChange, Failure, FailureCode
from session_supervisor.spec import JsonObject, PermissionMode, Prompt
from session_supervisor.timers import is_due

TOOLS = ("Bash", "Edit", "Glob", "Grep", "Read", "Write")
"""The tools that exist where nobody names others."""

ASKING_TOOL = "AskUserQuestion"
"""The tool by which questions are asked."""

CONTEXT = 200_000
"""Tokens that there is room for."""

_EDITS = ("Edit", "Write")
"""The tools that run under acceptEdits."""


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
        cannot_change: What a live process cannot change: permission modes, or `model`.
    """

    tools: tuple[str, ...] = TOOLS
    model: str = "scripted"
    pickup_s: float = 0.0
    stop_s: float = 0.0
    turn_cost_usd: float = 0.01
    merge_queued: bool = False
    new_id_on_resume: bool = False
    cannot_change: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class Memory:
    """A conversation, which outlives its processes.

    Attributes:
        prompts: What was asked, oldest first.
        cost_usd: What it has cost so far.
        writers: Processes that have it now.
        compacted: How many of the prompts have been summed up.
        anchors: How many prompts there were at the end of each turn.
    """

    prompts: list[str] = field(default_factory=list[str])
    cost_usd: float = 0.0
    writers: int = 0
    compacted: int = 0
    anchors: dict[str, int] = field(default_factory=dict[str, int])

    def copy(self, anchor: str | None) -> Memory:
        """Return a copy, up to the end of a turn, which has cost nothing yet."""
        kept = len(self.prompts) if anchor is None else self.anchors[anchor]
        return Memory(
            prompts=self.prompts[:kept],
            compacted=min(self.compacted, kept),
            anchors={name: count for name, count in self.anchors.items() if count <= kept},
        )


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
        self._rules = set(fingerprint.rules)
        self._asked = set[str]()
        self._decisions: dict[str, Decision] = {}
        self._denials: list[JsonValue] = []
        self._given: JsonValue = None
        self._commanded = False

    @property
    def fingerprint(self) -> Fingerprint:
        """What the process was started with, or was told since."""
        return self._fingerprint

    def stain(self) -> str | None:
        """Return why another session may not have the process; None: it is as it was."""
        if self._running or self._inbox or self._alone or self._background:
            return "busy"
        return "rules" if self._rules != set(self._fingerprint.rules) else None

    def answer(self, request_id: str, decision: Decision) -> None:
        """Take a decision, unless its request is over."""
        if request_id in self._asked:
            self._decisions.setdefault(request_id, decision)

    def configure(self, *, model: str | None, permission_mode: PermissionMode | None) -> None:
        """Change what is given.

        Raises:
            CannotChange: The manners say so; then nothing has changed.
        """
        for what in ("model" if model else None, permission_mode):
            if what in self._manners.cannot_change:
                raise CannotChange(f"This process cannot change to {what!r} while it lives.")
        self._fingerprint = replace(
            self._fingerprint,
            model=model or self._fingerprint.model,
            permission_mode=permission_mode or self._fingerprint.permission_mode,
        )

    def context(self) -> ContextUsage:
        """Return how much is remembered."""
        prompts = self._memory.prompts[self._memory.compacted :]
        return ContextUsage(tokens=sum(map(len, prompts)) // 4, max_tokens=CONTEXT)

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
            elif is_due(due, self._now()):
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
        while not (self._interrupted or is_due(taken_up, self._now())):
            yield Rest(taken_up)
        prompts = [self._inbox.popleft()]
        if prompts[0].command:
            yield from self._turn(prompts, self._compact)
            return
        if self._manners.merge_queued:
            prompts += self._inbox
            self._inbox.clear()
        merged = Prompt(
            prompt_id=prompts[0].prompt_id,
            text="\n".join(prompt.text for prompt in prompts),
            attachments=tuple(one for prompt in prompts for one in prompt.attachments),
        )
        conversation = Conversation(
            agent_session_id=self._id,
            fingerprint=self._fingerprint,
            earlier=tuple(self._memory.prompts),
            cost_usd=self._memory.cost_usd,
        )
        yield from self._turn(prompts, lambda: self._script(merged, conversation))

    def _turn(
        self, prompts: Sequence[Prompt], script: Callable[[], Iterable[Step]]
    ) -> Generator[Sign, None, None]:
        self._running = True
        self._prompt_ids = []
        self._tokens = 0
        self._denials, self._given = [], None
        self._commanded = any(prompt.command for prompt in prompts)
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
                if isinstance(step, TextDelta):  # most steps are
                    yield step
                else:
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
        if not interrupted and failure is None:
            failure = self._shortcoming()
        anchor = f"{self._id}-turn-{len(self._memory.anchors) + 1}"
        self._memory.anchors[anchor] = len(self._memory.prompts)
        self._running = self._interrupted = self._ignores_interrupts = False
        yield TurnEnded(
            prompt_ids=tuple(self._prompt_ids),
            interrupted=interrupted,
            failure=failure,
            num_turns=1 + self._ever_used_tools - tools_before,
            cost_usd=self._memory.cost_usd,
            usage={"input_tokens": len(self._memory.prompts), "output_tokens": self._tokens},
            stop_reason=None if interrupted or failure else "end_turn",
            permission_denials=tuple(self._denials),
            structured_output=None if interrupted or failure else self._given,
            anchor=anchor,
        )

    def _play(self, step: Step) -> Generator[Sign, None, None]:
        match step:
            case Pause():
                yield from self._wait(step.seconds)
            case Say():
                yield from self._say(step)
            case UseTool():
                yield from self._use(step)
            case AskQuestions():
                yield from self._ask_questions(step)
            case Give():
                self._given = step.value
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

    def _compact(self) -> Iterable[Step]:
        self._memory.compacted = len(self._memory.prompts)
        return ()

    def _shortcoming(self) -> Failure | None:
        """Return what is wrong with a turn that went well by itself."""
        most = self._fingerprint.max_budget_usd
        if most is not None and self._memory.cost_usd > most:
            return Failure(code=FailureCode.BUDGET, message="The budget is used up.")
        answered = self._given is not None or not self._prompt_ids
        if self._fingerprint.output_schema is not None and not answered and not self._commanded:
            return Failure(
                code=FailureCode.NO_STRUCTURED_OUTPUT, message="The answer has not the form."
            )
        return None

    def _may_run(self, step: UseTool) -> bool:
        fingerprint = self._fingerprint
        given = step.input.get("command", step.input.get("file_path"))
        return (
            not step.asks
            or fingerprint.permission_mode == "bypassPermissions"
            or (fingerprint.permission_mode == "acceptEdits" and step.name in _EDITS)
            or step.name in (fingerprint.allowed_tools or ())
            or Rule(tool=step.name) in self._rules
            or (isinstance(given, str) and Rule(tool=step.name, content=given) in self._rules)
        )

    def _decision(self, request_id: str) -> Generator[Sign, None, Decision]:
        """Wait for what somebody decides."""
        try:
            while request_id not in self._decisions:
                self._heed_interrupt()
                yield Rest(inf)
            # What was decided is done, also if there was an interrupt right behind it.
            return self._decisions.pop(request_id)
        except _Interrupted:
            yield AskWithdrawn(request_id)
            raise
        finally:
            self._asked.discard(request_id)

    def _permission(
        self, step: UseTool, tool_use_id: str
    ) -> Generator[Sign, None, JsonObject | Deny]:
        """Return the arguments with which a tool may run, or the denial."""
        if self._may_run(step):
            return step.input
        decision: Decision = Deny(message="Nobody can be asked.")
        if self._fingerprint.asks:
            request_id = self._request_id()
            yield PermissionAsked(
                request_id=request_id,
                tool=step.name,
                tool_use_id=tool_use_id,
                input=step.input,
                suggestions=step.suggestions,
            )
            decision = yield from self._decision(request_id)
        match decision:
            case Allow():
                self._rules.update(decision.remember)
                given = decision.updated_input
                return step.input if given is None else given
            case Deny():
                self._denied(step.name, tool_use_id, step.input, decision)
                return decision
            case Answers():
                raise TypeError("a permission was given answers")

    def _denied(self, name: str, tool_use_id: str, given: JsonObject, decision: Deny) -> None:
        self._denials.append(
            {"tool_name": name, "tool_use_id": tool_use_id, "tool_input": dict(given)}
        )
        if decision.end_turn:
            self._interrupted = True

    def _tool_use_id(self) -> str:
        self._ever_used_tools += 1
        return f"{self._id}-tool-{self._ever_used_tools}"

    def _request_id(self) -> str:
        request_id = str(uuid4())
        # Before it is said: who hears it may answer before the next message is asked for.
        self._asked.add(request_id)
        return request_id

    def _ask_questions(self, step: AskQuestions) -> Generator[Sign, None, None]:
        if not self._fingerprint.asks:
            return  # the tool does not exist
        tool_use_id, request_id = self._tool_use_id(), self._request_id()
        yield ToolStarted(tool_use_id=tool_use_id, name=ASKING_TOOL, input={})
        yield QuestionAsked(
            request_id=request_id,
            tool=ASKING_TOOL,
            tool_use_id=tool_use_id,
            questions=step.questions,
        )
        try:
            decision = yield from self._decision(request_id)
        except _Interrupted:
            yield ToolFinished(tool_use_id=tool_use_id, content="interrupted", is_error=True)
            raise
        match decision:
            case Answers():
                content = json.dumps({one: list(said) for one, said in decision.answers.items()})
                yield ToolFinished(tool_use_id=tool_use_id, content=content)
            case Deny():
                self._denied(ASKING_TOOL, tool_use_id, {}, decision)
                message = decision.message or "It was not answered."
                yield ToolFinished(tool_use_id=tool_use_id, content=message, is_error=True)
            case Allow():
                raise TypeError("a question was given a permission")
        self._heed_interrupt()

    def _use(self, step: UseTool) -> Generator[Sign, None, None]:
        tool_use_id = self._tool_use_id()
        yield ToolStarted(tool_use_id=tool_use_id, name=step.name, input=step.input)
        try:
            given = yield from self._permission(step, tool_use_id)
            if not isinstance(given, Deny):
                yield from self._wait(step.seconds)
        except _Interrupted:
            yield ToolFinished(tool_use_id=tool_use_id, content="interrupted", is_error=True)
            raise
        if isinstance(given, Deny):
            message = given.message or "It was not allowed."
            yield ToolFinished(tool_use_id=tool_use_id, content=message, is_error=True)
            self._heed_interrupt()
            return
        content = step.result(given) if callable(step.result) else step.result
        yield ToolFinished(tool_use_id=tool_use_id, content=content, is_error=step.is_error)

    def _wait(self, seconds: float) -> Generator[Sign, None, None]:
        self._heed_interrupt()
        if seconds <= 0:
            return
        until = self._now() + seconds
        while not is_due(until, self._now()):
            yield Rest(until)
            self._heed_interrupt()

    def _heed_interrupt(self) -> None:
        if self._interrupted:
            raise _Interrupted

    def _remember(self, prompts: Iterable[Prompt]) -> None:
        for prompt in prompts:
            self._prompt_ids.append(prompt.prompt_id)
            if not prompt.command:
                self._memory.prompts.append(prompt.text)
        self._conversations[self._id] = self._memory

    def _unremember(self) -> None:
        del self._memory.prompts[len(self._memory.prompts) - len(self._prompt_ids) :]
        if not self._memory.prompts:
            self._conversations.pop(self._id, None)
