"""The port `Agent`: what the actor needs of whatever answers prompts.

An agent is a factory of processes. `spawn` starts one from its fingerprint, which is
everything that cannot change while it lives; `bind` ties it to a session. The two are apart
so that a process can be started before anybody needs it.

What a process says arrives as one stream of the frozen messages below. They are the words of
this port, not of any SDK: an adapter translates, and in doing so takes the peculiarities of its
program upon itself. The contract:

* Exactly one task reads `messages()`, all the time, for as long as the process lives. An
  adapter may rely on it, and must not need a second reader. It may pause while a store does not
  keep up, for as long as that may take; an adapter holds a bounded number of messages then, and
  lets its program wait.
* A turn is `TurnBegan`, then content, then `TurnEnded`; never two at once. `TurnEnded` carries
  the ids of the prompts that it answers: none for a turn that the agent began by itself. A turn
  may come to answer prompts that it did not begin with. Outside of turns there are only
  `Initialized`, `BackgroundWork`, `Alive`, and the tools of subagents in the background; anything
  else there is nobody's, and is dropped with a warning in the log.
* Text arrives as `TextDelta`, which is provisional, and is confirmed by `TextBlock`, which
  is the truth. `TextWithdrawn` takes back provisional text, also of blocks already confirmed.
  A turn that is interrupted or fails may end with unconfirmed text and unfinished tools.
* The prose of an error is never text. It is in `TurnEnded.failure`.
* Where `Fingerprint.asks`, a tool call that needs a permission, and a question, is a
  `PermissionAsked` or a `QuestionAsked`, and waits for `answer`, however long that takes. It is
  over when it was answered, when `AskWithdrawn` follows, and with the process. Where not, the
  agent denies what needs a permission by itself, and asks nothing.
* An interrupt ends what was sent before it, also a prompt that the agent has not taken up yet.
* The stream ends when the process does, however that happens, and never raises. `exit` says how.
  Requests that it still owes an answer then raise `AgentGone`.
* A process that hangs answers no request: the caller sets the time limits, and may give up
  waiting without harm.
* `stop` is bounded in time, may be called at any time, by several at once and again; after
  it there is no process, nor any of its children.
* Cancelling `spawn` leaves no process behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias, runtime_checkable

from pydantic import JsonValue

from session_supervisor.asks import Decision, Question, Rule
from session_supervisor.errors import Failure
from session_supervisor.spec import (
    JsonObject,
    PermissionMode,
    Prompt,
    SessionKind,
    SessionSpec,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Everything that is fixed when a process starts.

    Two sessions with equal fingerprints could be served by the same process.

    Attributes:
        owner: On whose behalf it runs.
        cwd: Absolute path of its working directory, which existed, with no symbolic link in it,
            when the session began.
        model: Name or alias of the model; None for the agent's default.
        allowed_tools: The only tools; None for the default set.
        permission_mode: What happens to tools that are not allowed outright.
        system_prompt: Replaces the agent's own; None keeps it.
        max_turns: Most model round trips in one turn.
        background: Whether work may go on in the background after the turn that began it. A
            one-off ends with its turn, so what a subagent finds must be in it.
        asks: Whether what needs a human is asked; else it is denied.
        rules: Tool calls that need no permission.
        max_budget_usd: Most that the conversation may cost, in US dollars.
        output_schema: JSON Schema that each answer has to meet.
        mcp_servers: Names of MCP servers whose tools there are.
        thinking: Whether thinking is told; None as the agent does by itself.
    """

    owner: str
    cwd: str
    model: str | None = None
    allowed_tools: tuple[str, ...] | None = None
    permission_mode: PermissionMode = "default"
    system_prompt: str | None = None
    max_turns: int | None = None
    background: bool = True
    asks: bool = False
    rules: tuple[Rule, ...] = ()
    max_budget_usd: float | None = None
    output_schema: JsonObject | None = None
    mcp_servers: tuple[str, ...] = ()
    thinking: bool | None = None

    @classmethod
    def of(
        cls,
        spec: SessionSpec,
        *,
        owner: str,
        cwd: str,
        kind: SessionKind,
        asks: bool = False,
        rules: tuple[Rule, ...] = (),
    ) -> Fingerprint:
        """Return what a process for this session must be started with."""
        return cls(
            owner=owner,
            cwd=cwd,
            model=spec.model,
            allowed_tools=spec.allowed_tools or None,
            permission_mode=spec.permission_mode,
            system_prompt=spec.system_prompt,
            max_turns=spec.max_turns,
            background=kind is not SessionKind.ONEOFF,
            asks=asks,
            rules=rules,
            max_budget_usd=spec.max_budget_usd,
            output_schema=spec.output_schema,
            mcp_servers=spec.mcp_servers,
            thinking=spec.thinking,
        )


def _ignore(_line: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """The session that a process works for.

    Attributes:
        session_id: Which.
        on_stderr: Hears each line that the process prints to standard error.
    """

    session_id: str
    on_stderr: Callable[[str], None] = _ignore


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialized:
    """The process says who it is; comes with turns, since any of it may change.

    Attributes:
        agent_session_id: The id to resume this conversation with.
        model: The model in use.
        tools: Names of the tools that exist.
        version: The program's version.
    """

    agent_session_id: str
    model: str
    tools: tuple[str, ...] = ()
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnBegan:
    """The agent took up a turn.

    Attributes:
        prompt_ids: The prompts that it answers; none when the agent began by itself.
    """

    prompt_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A provisional piece of the current text block."""

    text: str


@dataclass(frozen=True, slots=True)
class TextBlock:
    """The current text block is complete, and this is all of it."""

    text: str


@dataclass(frozen=True, slots=True)
class TextWithdrawn:
    """The upstream broke off: the unconfirmed text is void.

    Attributes:
        blocks: How many of the last confirmed text blocks are void as well.
    """

    blocks: int = 0


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """A piece of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStarted:
    """The model called a tool, which now runs."""

    tool_use_id: str
    name: str
    input: JsonObject
    parent_tool_use_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFinished:
    """A tool gave its result."""

    tool_use_id: str
    content: JsonValue
    is_error: bool = False
    parent_tool_use_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionAsked:
    """A tool call waits for a permission.

    Attributes:
        request_id: To answer it by; a UUID that was never used before.
        tool: The tool.
        tool_use_id: The call.
        input: Its arguments.
        suggestions: What a human may want to have remembered.
    """

    request_id: str
    tool: str
    tool_use_id: str
    input: JsonObject
    suggestions: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAsked:
    """The agent wants to know something.

    Attributes:
        request_id: To answer it by; a UUID that was never used before.
        tool: The tool by which it asks.
        tool_use_id: The call.
        questions: What it wants to know; at least one.
    """

    request_id: str
    tool: str
    tool_use_id: str
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class AskWithdrawn:
    """Nobody needs the answer to a request any more."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamLimit:
    """The upstream says how near its limit of use is.

    Attributes:
        rejected: Whether it takes no request until then.
        resets_at: When the limit is counted anew, UTC, if it says so.
        kind: The upstream's own name for the limit.
        utilization: Share of it that is used, 0 to 1, if it says so.
        of_one_model: Whether it takes requests to other models all the same.
    """

    rejected: bool
    resets_at: datetime | None = None
    kind: str | None = None
    utilization: float | None = None
    of_one_model: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRetry:
    """The agent will ask its upstream again.

    Attributes:
        attempt: Number of the coming attempt, from 1.
        max_attempts: After how many it gives up.
        delay_s: Seconds until the attempt.
        status: HTTP status of the failure, if there was one.
        reason: The upstream's own name for it.
    """

    attempt: int
    max_attempts: int
    delay_s: float
    status: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundWork:
    """How many tasks the agent has running in the background."""

    pending: int


@dataclass(frozen=True, slots=True)
class Alive:
    """The process said something that means nothing to a session but that it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """A turn is over, and the process is ready for the next prompt.

    Attributes:
        prompt_ids: The prompts that it answered; none when the agent began by itself.
        interrupted: Whether it ended because of an interrupt.
        failure: Why there is no answer, if there is none.
        num_turns: Model round trips of this turn.
        cost_usd: What the conversation has cost so far, in US dollars; it only grows, and goes
            on through a resume.
        usage: Tokens, as the upstream counts them.
        stop_reason: Why the model stopped.
        permission_denials: Tool calls that were denied.
        structured_output: The answer as JSON, where a schema was given and met.
        anchor: By which the agent knows the place in the conversation where the turn ended, to
            fork there.
    """

    prompt_ids: tuple[str, ...] = ()
    interrupted: bool = False
    failure: Failure | None = None
    num_turns: int = 0
    cost_usd: float = 0.0
    usage: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    stop_reason: str | None = None
    permission_denials: tuple[JsonValue, ...] = ()
    structured_output: JsonValue = None
    anchor: str | None = None


AgentMessage: TypeAlias = (
    Initialized
    | TurnBegan
    | TextDelta
    | TextBlock
    | TextWithdrawn
    | ThinkingDelta
    | ToolStarted
    | ToolFinished
    | PermissionAsked
    | QuestionAsked
    | AskWithdrawn
    | UpstreamLimit
    | UpstreamRetry
    | BackgroundWork
    | Alive
    | TurnEnded
)
"""Everything that a process can say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended.

    Attributes:
        returncode: Its exit status, negative for a signal; None if there was no process.
        cause: What is known of why, for people.
        stderr: The last of what it printed to standard error.
    """

    returncode: int | None = None
    cause: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextUsage:
    """How full the model's context is.

    Attributes:
        tokens: What the conversation takes.
        max_tokens: What there is room for.
    """

    tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One process of a tree.

    Attributes:
        pid: Its id.
        parent: Id of its parent, which is not in the tree if it is the first or disowned.
        name: Short name of its program.
        pss_bytes: What it takes of the machine's memory, shared pages counted in part.
    """

    pid: int
    parent: int
    name: str
    pss_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A process and all that it started, disowned children included.

    Attributes:
        members: All of them, itself first; empty where there is no process, or none any more.
    """

    members: tuple[Member, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        """Their ids, its own first."""
        return tuple(member.pid for member in self.members)

    @property
    def pss_bytes(self) -> int:
        """What they take of the machine's memory together."""
        return sum(member.pss_bytes for member in self.members)


class AgentProcess(Protocol):
    """One live process. See the module for the contract."""

    @property
    def pid(self) -> int | None:
        """Its process id, or None where there is no process of its own."""
        ...

    @property
    def exit(self) -> Exit | None:
        """How it ended, or None while it lives."""
        ...

    def bind(self, binding: Binding) -> None:
        """Tie it to a session, in place of the one before."""
        ...

    def messages(self) -> AsyncIterator[AgentMessage]:
        """Return the stream of what it says, until it ends. For one reader, once."""
        ...

    async def send(self, prompt: Prompt) -> None:
        """Hand over a prompt; returns when it is written, not when it is answered.

        Raises:
            AgentGone: The process has ended, and has not taken it.
        """
        ...

    async def interrupt(self) -> None:
        """Tell it to stop the turn that runs or is about to; its `TurnEnded` follows.

        Raises:
            AgentGone: The process has ended.
        """
        ...

    async def answer(self, request_id: str, decision: Decision) -> None:
        """Answer what it asked; nothing happens if it is over already.

        Args:
            request_id: Of the `PermissionAsked` or `QuestionAsked`.
            decision: `Answers` for a question, `Allow` for a permission, `Deny` for either.

        Raises:
            AgentGone: The process has ended.
        """
        ...

    async def configure(
        self, *, model: str | None = None, permission_mode: PermissionMode | None = None
    ) -> None:
        """Change what can change while it lives, from the next request to the model on.

        Args:
            model: Name or alias; None leaves it.
            permission_mode: None leaves it.

        Raises:
            AgentGone: The process has ended.
            CannotChange: It has to be started anew for that.
        """
        ...

    async def context(self) -> ContextUsage | None:
        """Return how full the model's context is; None where that is not known.

        The caller sets the time limit.

        Raises:
            AgentGone: The process has ended.
        """
        ...

    async def probe(self) -> None:
        """Return once the process has shown that it still serves requests.

        The caller sets the time limit: a hung process never answers.

        Raises:
            AgentGone: The process has ended.
        """
        ...

    async def tree(self) -> Tree:
        """Look what processes there are and what memory they take. Never raises."""
        ...

    async def stop(self) -> Exit:
        """End the process and all that it started, gently at first, and say how it ended."""
        ...


class Agent(Protocol):
    """A factory of processes. See the module for the contract."""

    def check(self, spec: SessionSpec) -> None:
        """Refuse what this agent could not do.

        Raises:
            InvalidSpec: It names the field and says why.
        """
        ...

    async def spawn(self, fingerprint: Fingerprint, *, resume: str | None = None) -> AgentProcess:
        """Start a process and return when it is ready for a prompt.

        Args:
            fingerprint: What it is started with.
            resume: `agent_session_id` of the conversation to go on with; None begins one.

        Raises:
            AgentMissing: There is no program to start.
            AgentStartFailed: It did not come up.
            ResumeNotFound: It does not know the conversation.
        """
        ...


@runtime_checkable
class Pools(Protocol):
    """An agent that can say whether a process is still what it would start now.

    Its processes, which are `Renews`, may be started before anybody needs them.
    """

    def spelled_out(self, fingerprint: Fingerprint) -> Fingerprint:
        """Return the fingerprint with what the agent chooses where it says nothing, if it can."""
        ...

    def can_be_told(self, model: str) -> bool:
        """Whether a process of another model can be told of this one, at no cost."""
        ...

    async def circumstances(self, fingerprint: Fingerprint) -> str:
        """Return a name for all that a process is started with besides its fingerprint.

        That is the program and its version, the environment, the credential, what the operator has
        set. A process may be handed out as long as the name is that of its start. No secret can be
        read from it.

        Args:
            fingerprint: What the process is, or would be, started with.

        Raises:
            AgentError: It could not be started now.
        """
        ...


@runtime_checkable
class Renews(Protocol):
    """A process that can begin anew, for another session with the same fingerprint."""

    @property
    def untouched(self) -> bool:
        """Whether it lives, and has said and been told nothing since it came up or was renewed."""
        ...

    @property
    def stain(self) -> str | None:
        """Why it cannot be renewed, in a word or two that are the same each time; None: it may."""
        ...

    @property
    def conversation(self) -> str | None:
        """Id of the conversation that it is in, as far as something of it may be kept."""
        ...

    async def leftovers(self) -> Tree:
        """Look what processes there are of it and of what it started: one, where nothing is left.

        Memory that others share with it may be left out, which is faster.

        Raises:
            OSError: They cannot be looked for just now.
        """
        ...

    async def renew(self) -> None:
        """Bring it back to how it came up, and prove it. Nobody may be about to use it.

        Its directory has to be empty by then: it may look there again. What is kept of its
        conversation is erased. Then the stream of its messages ends, and it can be bound and read
        anew, as one that has just come up. The caller sets the time limit.

        Raises:
            CannotRenew: It is not proven. It has to be stopped.
            AgentGone: It has ended.
        """
        ...


@runtime_checkable
class Forks(Protocol):
    """An agent whose conversations can be gone on with twice."""

    async def fork(
        self,
        fingerprint: Fingerprint,
        agent_session_id: str,
        *,
        into: Fingerprint,
        anchor: str | None = None,
    ) -> str:
        """Copy a conversation; the original is untouched, and what the copy costs begins at zero.

        No process may be at work on it.

        Args:
            fingerprint: What the processes of its session were started with.
            agent_session_id: Which.
            into: What the processes of the copy will be started with.
            anchor: `TurnEnded.anchor` of the last turn to copy; None copies all.

        Returns:
            The id to resume the copy with.

        Raises:
            ResumeNotFound: It does not know the conversation, or the place in it.
            AgentError: It could not be copied. Nothing was.
        """
        ...


@runtime_checkable
class Forgets(Protocol):
    """An agent that keeps conversations, and can erase them."""

    async def forget(self, fingerprint: Fingerprint, agent_session_id: str) -> None:
        """Erase a conversation, wherever it is kept. One that is not known is erased already.

        No process may be at work on it.

        Args:
            fingerprint: What the processes of its session were started with.
            agent_session_id: Which.

        Raises:
            AgentError: Something of it is still there. Try again later.
        """
        ...


@runtime_checkable
class Recovers(Protocol):
    """An agent whose processes may outlive a supervisor that was killed."""

    async def recover(self) -> int:
        """End what a predecessor has left; call it before any session wakes.

        Returns:
            How many processes that were.
        """
        ...
