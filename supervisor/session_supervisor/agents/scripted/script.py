"""What a script is made of: frozen steps, and what a script may know when it gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeAlias

from pydantic import JsonValue

from session_supervisor.agents.port import AgentMessage, Fingerprint
from session_supervisor.asks import Question, Rule
from session_supervisor.errors import Failure
from session_supervisor.spec import JsonObject, Prompt


@dataclass(frozen=True, slots=True)
class Say:
    """Say one block of text. `Say("x" * 2**22)` makes a giant message.

    Attributes:
        text: All of it.
        deltas: Pieces in which it is streamed; 0 gives the block without.
        every_s: Seconds before each piece.
        confirmed: Whether the block is completed. Text that breaks off is not; let a
            `TextWithdrawn`, a `Crash` or a `Hang` follow.
    """

    text: str
    _: KW_ONLY
    deltas: int = 1
    every_s: float = 0.0
    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Pause:
    """Be silent for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class UseTool:
    """Run a tool; an interrupt ends it with an error.

    Attributes:
        name: The tool.
        input: Its arguments.
        result: What it gives; or a function of the arguments that it ran with, which a human may
            have changed.
        seconds: How long it runs.
        is_error: Whether it fails.
        asks: Whether it needs a permission. Somebody is asked for it unless the session's tools,
            its permission mode or a rule say that it may run; a rule's content is compared with
            the `command` or the `file_path` of the input.
        suggestions: What is proposed to be remembered.
    """

    name: str
    _: KW_ONLY
    input: JsonObject = field(default_factory=dict[str, JsonValue])
    result: JsonValue | Callable[[JsonObject], JsonValue] = ""
    seconds: float = 0.0
    is_error: bool = False
    asks: bool = False
    suggestions: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class AskQuestions:
    """Ask somebody, and wait for the answers, which are the result of the tool that asks.

    Attributes:
        questions: What to ask; at least one.
    """

    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Give:
    """Answer with JSON, for a session whose answers have a schema.

    Attributes:
        value: The answer. It is not compared with the schema.
    """

    value: JsonValue


@dataclass(frozen=True, slots=True)
class BeginAlone:
    """Begin a turn that nobody asked for, some time later, and not before this one has ended.

    Attributes:
        after_s: Seconds from now.
        steps: What happens in it.
        background: Whether background work is reported as pending until then.
    """

    after_s: float
    steps: Sequence[Step]
    _: KW_ONLY
    background: bool = True


@dataclass(frozen=True, slots=True)
class Absorb:
    """Take the prompts that wait into the running turn, which then answers them too."""


@dataclass(frozen=True, slots=True)
class Complain:
    """Print to standard error.

    Attributes:
        text: One line, or several.
    """

    text: str


@dataclass(frozen=True, slots=True)
class IgnoreInterrupts:
    """For the rest of the turn, acknowledge interrupts and go on all the same."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Say nothing more. Probes are answered, and an interrupt ends the turn."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Stand still, as on SIGSTOP: no request is answered until `thaw` or `stop` is called."""


@dataclass(frozen=True, slots=True)
class Fail:
    """End the turn without an answer."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """End the process.

    Attributes:
        returncode: Its exit status, negative for a signal.
        cause: What is known of why, for people.
        stderr: What it prints to standard error before.
        remembered: Whether the turn's prompt will be in the conversation after a resume.
            A first prompt that is not leaves nothing to resume.
    """

    returncode: int = -9
    cause: str = "The script let it crash."
    stderr: str = ""
    remembered: bool = True


Step: TypeAlias = (
    AgentMessage
    | Say
    | Pause
    | UseTool
    | AskQuestions
    | Give
    | BeginAlone
    | Absorb
    | Complain
    | IgnoreInterrupts
    | Hang
    | Freeze
    | Fail
    | Crash
)
"""One step of a script. A message of the port is said as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a script may know of the conversation when it answers a prompt.

    Attributes:
        agent_session_id: The id to resume it with.
        fingerprint: What the process was started with.
        earlier: The prompts before this one, oldest first.
        cost_usd: What it has cost so far, in US dollars.
    """

    agent_session_id: str
    fingerprint: Fingerprint
    earlier: tuple[str, ...]
    cost_usd: float


Script: TypeAlias = Callable[[Prompt, Conversation], Iterable[Step]]
"""Gives the steps that answer a prompt. A generator is run step by step, as time passes."""


def echo(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    """Say the prompt again, and the earlier ones: the default script."""
    yield Say(f"You said: {prompt.text}")
    if conversation.earlier:
        yield Say("Earlier you said: " + "; ".join(conversation.earlier))


def by_prompt(answers: Mapping[str, Iterable[Step]], *, otherwise: Script = echo) -> Script:
    """Return a script that looks up the whole text of a prompt, and else asks another.

    Args:
        answers: Steps by prompt; may be changed later.
        otherwise: Answers all other prompts.
    """

    def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
        steps = answers.get(prompt.text)
        return otherwise(prompt, conversation) if steps is None else steps

    return script
