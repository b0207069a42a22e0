"""What the suite must be told about an adapter."""

from __future__ import annotations

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

import pytest

from session_supervisor.agents.port import Agent, AgentProcess, Fingerprint
from session_supervisor.errors import FailureCode
from session_supervisor.spec import JsonObject

Suite = TypeVar("Suite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What to ask to make the agent do what a test needs.

    Attributes:
        say: Makes a prompt whose answer is one block with exactly this text.
        blocks: Makes a prompt whose answer is these blocks, in one turn.
        quote: Its answer quotes the text of all earlier prompts.
        slow: Streams text in many pieces, for at least ten seconds.
        think: Thinks, and then says something.
        tool: Uses a tool once, and then says something.
        tool_name: Which tool.
        tool_result: What its result contains.
        slow_tool: Uses a tool that runs for at least ten seconds.
        hang: The agent waits for its upstream, silently and for ever.
        cut: The upstream breaks off in the middle of a text and, asked again, gives all of it.
        cut_text: That text.
        retry: The upstream fails once, and then the answer comes.
        fail: The upstream fails for good, and with it the turn.
        fail_code: How that failure is called.
        giant: Makes a prompt whose answer is one block of so many characters.
        alone: After its turn, and some work in the background, the agent begins a turn by
            itself and says something in it.
        permission: Makes a prompt for a call that needs a permission, whose result contains the
            word, and that says something then.
        permission_tool: Of which tool.
        permission_input: Makes the input of such a call.
        question: Asks two questions with two answers each: the first lets one choose several.
        edit: Makes the agent change a file, which `acceptEdits` allows.
        form: Its answer meets a schema that asks for an object with the string `answer`.
        no_form: Its answer does not.
    """

    say: Callable[[str], str]
    blocks: Callable[[Sequence[str]], str]
    quote: str
    slow: str
    think: str
    tool: str
    tool_name: str
    tool_result: str
    slow_tool: str
    hang: str
    cut: str
    cut_text: str
    retry: str
    fail: str
    fail_code: FailureCode
    giant: Callable[[int], str]
    alone: str
    permission: Callable[[str], str]
    permission_tool: str
    permission_input: Callable[[str], JsonObject]
    question: str
    edit: str
    form: str
    no_form: str


class AgentHarness(ABC):
    """How the suite gets at one adapter.

    Args:
        agent: The agent under test.
        prompts: What it is asked.

    Attributes:
        unknown_tool: Name of a tool that the agent does not have.
        known_tool: Name of one that it has.
        other_model: Name of a model that is not the default.
        patience_s: Seconds within which whatever must happen has happened.
        stop_s: Seconds within which `stop` has returned.
        quiet_s: Seconds of silence after which nothing more is expected.
        skips: Tests that do not apply, by name, each with the reason.
    """

    unknown_tool: str = "NoSuchTool"
    known_tool: str = "Bash"
    other_model: str = "haiku"
    patience_s: float = 90.0
    stop_s: float = 60.0
    quiet_s: float = 0.5
    skips: Mapping[str, str] = MappingProxyType({})

    def __init__(self, agent: Agent, prompts: Prompts) -> None:
        self.agent = agent
        self.prompts = prompts

    @abstractmethod
    def run(self, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a test, in real time (`asyncio.run`) or on virtual time."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Return what processes are started with; it names no tools."""

    def asking(self) -> Fingerprint:
        """Return what processes are started with that ask a human."""
        return replace(self.fingerprint(), permission_mode="default", asks=True)

    def elsewhere(self) -> Fingerprint:
        """Return what processes are started with that work in another directory."""
        return self.fingerprint()

    @abstractmethod
    def without_program(self) -> Agent:
        """Return an agent that has no program to start."""

    @abstractmethod
    def crash(self, process: AgentProcess) -> None:
        """Kill a process from outside, as SIGKILL does; nothing happens to one that has ended."""

    @abstractmethod
    def freeze(self, process: AgentProcess) -> None:
        """Let a process stand still, as SIGSTOP does."""

    @abstractmethod
    def thaw(self, process: AgentProcess) -> None:
        """Let it go on, as SIGCONT does."""

    @abstractmethod
    def live(self) -> int:
        """Return how many processes of the agent exist, their children included."""

    async def none_left(self) -> None:
        """Wait until no process exists, and fail if that takes too long."""
        try:
            async with asyncio.timeout(self.patience_s):
                while self.live():  # noqa: ASYNC110  # nothing tells of the end of a process
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"{self.live()} processes are left")


def contract(
    test: Callable[[Suite, AgentHarness], Coroutine[Any, Any, None]],
) -> Callable[[Suite, AgentHarness], None]:
    """Run an async test of the suite as its harness says, and see that no process is left."""

    @functools.wraps(test)
    def under_harness(self: Suite, harness: AgentHarness) -> None:
        reason = harness.skips.get(test.__name__)
        if reason is not None:
            pytest.skip(reason)

        async def main() -> None:
            await test(self, harness)
            await harness.none_left()

        harness.run(main)

    return under_harness
