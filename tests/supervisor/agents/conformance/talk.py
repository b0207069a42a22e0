"""A conversation with one process, and the grammar that all of it must follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

from session_supervisor.agents.port import (
    AgentMessage,
    AgentProcess,
    Alive,
    AskWithdrawn,
    BackgroundWork,
    Binding,
    Exit,
    Fingerprint,
    Initialized,
    PermissionAsked,
    QuestionAsked,
    TextBlock,
    TextDelta,
    TextWithdrawn,
    ToolFinished,
    ToolStarted,
    TurnBegan,
    TurnEnded,
    UpstreamLimit,
)
from session_supervisor.spec import Prompt
from tests.supervisor.agents.conformance.harness import AgentHarness

T = TypeVar("T")

_REQUESTS = (PermissionAsked, QuestionAsked)


@dataclass(slots=True, kw_only=True)
class HeardTurn:
    """What was heard of one turn, so far."""

    began: TurnBegan
    content: list[AgentMessage] = field(default_factory=list[AgentMessage])
    ended: TurnEnded | None = None

    @property
    def end(self) -> TurnEnded:
        assert self.ended is not None, f"the turn has not ended: {self}"
        return self.ended

    @property
    def blocks(self) -> list[str]:
        """The confirmed text."""
        blocks: list[str] = []
        for message in self.content:
            match message:
                case TextBlock(text):
                    blocks.append(text)
                case TextWithdrawn(count):
                    del blocks[len(blocks) - count :]
                case _:
                    pass
        return blocks

    def of(self, kind: type[T]) -> list[T]:
        """Return its messages of one kind."""
        return [message for message in self.content if isinstance(message, kind)]


def heard_turns(messages: Sequence[AgentMessage]) -> list[HeardTurn]:
    """Return the turns of a stream, and fail if it breaks the grammar of the port."""
    turns: list[HeardTurn] = []
    running: HeardTurn | None = None
    for message in messages:
        match message:
            case TurnBegan():
                assert running is None, f"{message} in the middle of {running}"
                running = HeardTurn(began=message)
                turns.append(running)
            case TurnEnded():
                assert running is not None, f"ended without a beginning: {message}"
                running.ended = message
                _check(running)
                running = None
            case Initialized() | BackgroundWork() | UpstreamLimit() | Alive() if running is None:
                pass  # not about any turn
            case PermissionAsked() | QuestionAsked() | AskWithdrawn() if running is None:
                pass  # of work in the background
            case _:
                assert running is not None, f"outside of any turn: {message}"
                running.content.append(message)
    ends = [turn.ended for turn in turns if turn.ended is not None]
    answered = [prompt_id for end in ends for prompt_id in end.prompt_ids]
    assert len(answered) == len(set(answered)), f"a prompt was answered twice: {answered}"
    asked = [each.request_id for each in messages if isinstance(each, _REQUESTS)]
    assert len(asked) == len(set(asked)), f"an id was used twice: {asked}"
    withdrawn = [each.request_id for each in messages if isinstance(each, AskWithdrawn)]
    assert set(withdrawn) <= set(asked), f"never asked: {withdrawn}"
    costs = [end.cost_usd for end in ends]
    assert costs == sorted(costs), f"the cost of the conversation fell: {costs}"
    return turns


def _check(turn: HeardTurn) -> None:
    end = turn.end
    assert set(turn.began.prompt_ids) <= set(end.prompt_ids), f"a prompt was dropped: {turn}"
    assert not (end.interrupted and end.failure), f"both interrupted and failed: {end}"
    streamed = ""
    confirmed = 0
    tools: set[str] = set()
    for message in turn.content:
        match message:
            case TextDelta(text):
                streamed += text
            case TextBlock(text):
                assert streamed in ("", text), f"{streamed!r} was streamed, the block is {text!r}"
                streamed = ""
                confirmed += 1
            case TextWithdrawn(blocks):
                assert blocks <= confirmed, f"{blocks} of {confirmed} blocks were withdrawn"
                streamed = ""
                confirmed -= blocks
            case ToolStarted():
                tools.add(message.tool_use_id)
            case ToolFinished():
                assert message.tool_use_id in tools, f"finished without a start: {message}"
                tools.remove(message.tool_use_id)
            case _:
                pass
    if not end.interrupted and end.failure is None:
        assert not streamed, f"neither confirmed nor withdrawn: {streamed!r}"
        assert not tools, f"tools without a result: {tools}"


class Talk:
    """One process, its one reader, and all that was heard."""

    def __init__(self, harness: AgentHarness, process: AgentProcess) -> None:
        self.harness = harness
        self.process = process
        self.heard: list[AgentMessage] = []
        self.over = False
        self._news = asyncio.Event()

    @property
    def turns(self) -> list[HeardTurn]:
        """All turns so far."""
        return heard_turns(self.heard)

    @property
    def agent_session_id(self) -> str:
        """The id of the conversation, as last heard."""
        return [each for each in self.heard if isinstance(each, Initialized)][-1].agent_session_id

    async def read(self) -> None:
        """Hear all that the process says."""
        async for message in self.process.messages():
            self.heard.append(message)
            self._news.set()
        self.over = True
        self._news.set()

    async def send(self, text: str, *, command: bool = False) -> str:
        """Send a prompt, and return its id."""
        prompt = Prompt(prompt_id=str(uuid4()), text=text, command=command)
        async with asyncio.timeout(self.harness.patience_s):
            await self.process.send(prompt)
        return prompt.prompt_id

    async def ask(self, text: str) -> HeardTurn:
        """Send a prompt, and return the turn that answers it."""
        return await self.answer_to(await self.send(text))

    async def answer_to(self, prompt_id: str) -> HeardTurn:
        """Wait for the end of the turn that answers a prompt."""

        def found() -> HeardTurn | None:
            ended = [turn for turn in self.turns if turn.ended is not None]
            return next((turn for turn in ended if prompt_id in turn.end.prompt_ids), None)

        return await self.until(found)

    async def until_said(self, kind: type[T], *, times: int = 1) -> T:
        """Wait until so many messages of a kind were heard, and return the last of them."""

        def found() -> T | None:
            said = [message for message in self.heard if isinstance(message, kind)]
            return said[times - 1] if len(said) >= times else None

        return await self.until(found)

    async def until(self, found: Callable[[], T | None]) -> T:
        """Wait until there is what is looked for in what was heard."""
        async with asyncio.timeout(self.harness.patience_s):
            while True:
                self._news.clear()
                result = found()
                if result is not None:
                    return result
                assert not self.over, f"the stream has ended: {self.process.exit}"
                await self._news.wait()

    async def until_over(self) -> Exit:
        """Wait until the stream ends, and return how the process did."""
        async with asyncio.timeout(self.harness.patience_s):
            while not self.over:
                self._news.clear()
                await self._news.wait()
        assert self.process.exit is not None, "the stream has ended, and `exit` does not say how"
        return self.process.exit

    async def quiet(self) -> list[AgentMessage]:
        """Return what is heard within the time in which nothing is expected."""
        before = len(self.heard)
        await asyncio.sleep(self.harness.quiet_s)
        return [message for message in self.heard[before:] if not isinstance(message, Alive)]

    async def interrupt(self) -> None:
        """Interrupt, and wait for the acknowledgement."""
        async with asyncio.timeout(self.harness.patience_s):
            await self.process.interrupt()

    async def probe(self) -> None:
        """Probe, and wait for the answer."""
        async with asyncio.timeout(self.harness.patience_s):
            await self.process.probe()

    async def stop(self) -> Exit:
        """Stop the process, which must not take long."""
        async with asyncio.timeout(self.harness.stop_s):
            return await self.process.stop()


@asynccontextmanager
async def talking(
    harness: AgentHarness, *, resume: str | None = None, as_: Fingerprint | None = None
) -> AsyncGenerator[Talk]:
    """Start a process, read it for as long as it lives, stop it, and check what it said."""
    async with asyncio.timeout(harness.patience_s):
        process = await harness.agent.spawn(as_ or harness.fingerprint(), resume=resume)
    process.bind(Binding(session_id="conformance"))
    talk = Talk(harness, process)
    reading = asyncio.create_task(talk.read(), name="the one reader")
    try:
        yield talk
    finally:
        await talk.stop()
        async with asyncio.timeout(harness.patience_s):
            await reading
    assert talk.turns is not None  # which checks the grammar
