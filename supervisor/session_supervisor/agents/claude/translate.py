"""What the CLI prints, translated into the messages of the port: one state machine, no I/O.

What it relies on, all of it measured:

* A turn begins with a `system/init` frame, which names the prompts that it answers; without names
  the agent began it by itself. It ends with a `result` frame, which names them again.
* A prompt that arrives while such a turn of the agent's own uses a tool is taken into it, and the
  next `system/status` names it. We end the agent's turn there and begin the prompt's.
* A block's whole text comes as an `assistant` frame after its deltas and before its
  `content_block_stop`. A stop without it means that the upstream broke off: the block is void. A
  block that was whole is never sent again.
* Text of the model `<synthetic>` is the CLI's own: the prose of an error.
* Frames with a `parent_tool_use_id` are a subagent's. One that runs in the background goes on
  after the turn that started it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import JsonValue

from session_supervisor.agents.claude.failures import NO_OUTPUT, failure_of, prose_of
from session_supervisor.agents.claude.tools import documented_name
from session_supervisor.agents.port import (
    AgentMessage,
    Alive,
    BackgroundWork,
    Initialized,
    TextBlock,
    TextDelta,
    TextWithdrawn,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
    TurnBegan,
    TurnEnded,
    UpstreamLimit,
    UpstreamRetry,
)
from session_supervisor.spec import JsonObject

_SYNTHETIC = "<synthetic>"

_OF_ONE_MODEL = ("seven_day_opus", "seven_day_sonnet")
"""Limits of use beyond which there are other models still."""


@dataclass(slots=True)
class _Turn:
    prompt_ids: list[str]
    rounds: int = 0
    """Model round trips so far."""
    counted: int = 0
    """Round trips that another turn has been charged with already."""
    api_error: str | None = None
    anchor: str | None = None
    """The last message of the conversation that came with it."""
    tools: set[str] = field(default_factory=set[str])
    """The calls that were reported, so that a stray one of an earlier turn is not."""


@dataclass(slots=True)
class _Block:
    """The content block that is being streamed."""

    provisional: bool = False
    """Whether text was passed on that nothing has confirmed."""
    thinking: bool = False
    """Whether thinking was passed on, which its `assistant` frame would repeat."""


class Translator:
    """Translates the frames of one process, in their order."""

    def __init__(self, *, now: Callable[[], float], structured: bool = False) -> None:
        """Begin with no turn.

        Args:
            now: The time of day, seconds since 1970; rate limits end at such a time.
            structured: Whether the answer to a prompt has to meet a schema. The CLI ends a turn
                well that has no such answer.
        """
        self._now = now
        self._structured = structured
        self._commands: set[str] = set()
        self._turn: _Turn | None = None
        self._taken_up: set[str] = set()
        self._block = _Block()
        self._cost = 0.0
        self._limit_resets_at: float | None = None
        self.complaint: str | None = None
        """What the CLI said when it gave up outside of any turn, such as at its start."""

    @property
    def in_turn(self) -> bool:
        """Whether a turn runs."""
        return self._turn is not None

    def expect_command(self, prompt_id: str) -> None:
        """Note that a prompt is a command, to which there is no answer that could have a form."""
        self._commands.add(prompt_id)

    def feed(self, frame: JsonObject) -> list[AgentMessage]:
        """Translate one frame; what has no meaning still says that the process lives."""
        messages = list(self._translate(frame)) or [Alive()]
        self._note_place(frame)
        return messages

    def _translate(self, frame: JsonObject) -> Iterator[AgentMessage]:
        match frame:
            case {"type": "stream_event", "event": dict(event)} if _parent(frame) is None:
                yield from self._ensure_turn(frame)
                yield from self._streamed(event)
            case {"type": "assistant", "message": {"content": list(content), **message}}:
                if _parent(frame) is None:
                    yield from self._ensure_turn(frame)
                    if message.get("model") == _SYNTHETIC:
                        self._note_error(frame)
                    else:
                        yield from self._spoken(content)
                else:
                    yield from self._tools_called(content, _parent(frame))
            case {"type": "user", "message": {"content": list(content)}}:
                yield from self._tools_answered(content, _parent(frame))
            case {"type": "system", "subtype": str(subtype)}:
                yield from self._told(subtype, frame)
            case {"type": "result"}:
                yield from self._result(frame)
            case {"type": "rate_limit_event", "rate_limit_info": dict(info)}:
                resets = info.get("resetsAt")
                rejected = info.get("status") == "rejected"
                self._limit_resets_at = (
                    float(resets) if rejected and isinstance(resets, int | float) else None
                )
                yield _limit(info)
            case _:
                pass

    def _note_place(self, frame: JsonObject) -> None:
        """Note the last message of the running turn: by it the transcript can be cut there."""
        uuid = frame.get("uuid")
        said = frame.get("type") in ("assistant", "user") and frame.get("isReplay") is not True
        if said and self._turn is not None and isinstance(uuid, str) and _parent(frame) is None:
            self._turn.anchor = uuid

    # Turns

    def _told(self, subtype: str, frame: JsonObject) -> Iterator[AgentMessage]:
        match subtype:
            case "init":
                yield _initialized(frame)
                yield from self._begun(self._new_prompts(frame))
            case "status":
                if self._turn is not None:
                    yield from self._taken_in(self._new_prompts(frame))
            case "api_retry":
                # It may be a subagent's, of which nothing but the turn it falls into is known.
                if self._turn is not None:
                    yield _retry(frame)
            case "background_tasks_changed":
                tasks = frame.get("tasks")
                if isinstance(tasks, list):
                    yield BackgroundWork(pending=len(tasks))
            case _:
                pass

    def _begun(self, prompt_ids: list[str]) -> Iterator[AgentMessage]:
        if self._turn is not None:
            yield from self._taken_in(prompt_ids)
            return
        self._turn = _Turn(prompt_ids)
        self._taken_up.update(prompt_ids)
        self._block = _Block()
        yield TurnBegan(prompt_ids=tuple(prompt_ids))

    def _ensure_turn(self, frame: JsonObject) -> Iterator[AgentMessage]:
        """Begin a turn that speaks though no `init` came before it."""
        if self._turn is None:
            yield from self._begun(self._new_prompts(frame))

    def _taken_in(self, prompt_ids: list[str]) -> Iterator[AgentMessage]:
        """Note prompts that the running turn has come to answer as well."""
        turn = self._turn
        assert turn is not None
        if not prompt_ids:
            return
        self._taken_up.update(prompt_ids)
        if turn.prompt_ids:
            turn.prompt_ids += prompt_ids
            return
        yield from self._broken_off()
        yield TurnEnded(num_turns=turn.rounds, cost_usd=self._cost, anchor=turn.anchor)
        self._turn = _Turn(prompt_ids, counted=turn.rounds)
        yield TurnBegan(prompt_ids=tuple(prompt_ids))

    def _new_prompts(self, frame: JsonObject) -> list[str]:
        """Return the prompts that a frame names and no turn has taken up: each is answered once."""
        return [one for one in prompt_ids_of(frame) if one not in self._taken_up]

    def _result(self, frame: JsonObject) -> Iterator[AgentMessage]:
        prompt_ids = self._new_prompts(frame)
        if self._turn is None and not prompt_ids:
            self.complaint = prose_of(frame)
            return
        if self._turn is None:
            yield from self._begun(prompt_ids)
        else:
            yield from self._taken_in(prompt_ids)
        turn = self._turn
        assert turn is not None
        yield from self._broken_off()
        self._turn = None
        cost = frame.get("total_cost_usd")
        if isinstance(cost, int | float):
            self._cost = float(cost)
        reason = frame.get("terminal_reason")
        interrupted = isinstance(reason, str) and reason.startswith("aborted")
        failed = frame.get("is_error") is True and not interrupted
        num_turns = frame.get("num_turns")
        usage = frame.get("usage")
        stop_reason = frame.get("stop_reason")
        denials = frame.get("permission_denials")
        output = frame.get("structured_output")
        failure = None
        if failed:
            failure = failure_of(
                frame, api_error=turn.api_error, retry_after=self._until_limit_resets()
            )
        elif output is None and not interrupted and self._needs_output(turn):
            failure = NO_OUTPUT
        yield TurnEnded(
            prompt_ids=tuple(turn.prompt_ids),
            interrupted=interrupted,
            failure=failure,
            num_turns=max(0, num_turns - turn.counted) if isinstance(num_turns, int) else 0,
            cost_usd=self._cost,
            usage=usage if isinstance(usage, dict) else {},
            stop_reason=stop_reason if isinstance(stop_reason, str) else None,
            permission_denials=tuple(denials) if isinstance(denials, list) else (),
            structured_output=output if failure is None else None,
            anchor=turn.anchor,
        )

    def _needs_output(self, turn: _Turn) -> bool:
        prompts = set(turn.prompt_ids) - self._commands
        self._commands.difference_update(turn.prompt_ids)
        return self._structured and bool(prompts)

    def _until_limit_resets(self) -> float | None:
        resets = self._limit_resets_at
        return None if resets is None else max(0.0, resets - self._now())

    # Content

    def _streamed(self, event: JsonObject) -> Iterator[AgentMessage]:
        match event:
            case {"type": "content_block_delta", "delta": {"text": str(text)}}:
                if text:
                    self._block.provisional = True
                    yield TextDelta(text)
            case {"type": "content_block_delta", "delta": {"thinking": str(text)}}:
                if text:
                    self._block.thinking = True
                    yield ThinkingDelta(text)
            case {"type": "content_block_start"}:
                yield from self._broken_off()
            case {"type": "content_block_stop"}:
                yield from self._broken_off()
            case {"type": "message_start"}:
                yield from self._broken_off()
                if self._turn is not None:
                    self._turn.rounds += 1
            case _:
                pass

    def _broken_off(self) -> Iterator[AgentMessage]:
        """Withdraw what was streamed of a block that has not been confirmed, and forget it."""
        if self._block.provisional:
            yield TextWithdrawn()
        self._block = _Block()

    def _note_error(self, frame: JsonObject) -> None:
        error = frame.get("error")
        if self._turn is not None and isinstance(error, str):
            self._turn.api_error = error

    def _spoken(self, content: list[JsonValue]) -> Iterator[AgentMessage]:
        for block in content:
            match block:
                case {"type": "text", "text": str(text)}:
                    if text or self._block.provisional:
                        yield TextBlock(text)
                    self._block.provisional = False
                case {"type": "thinking", "thinking": str(text)}:
                    if text and not self._block.thinking:
                        yield ThinkingDelta(text)
                case _:
                    pass
        yield from self._tools_called(content, None)

    def _tools_called(self, content: list[JsonValue], parent: str | None) -> Iterator[AgentMessage]:
        turn = self._turn
        if turn is None or (parent is not None and parent not in turn.tools):
            return
        for block in content:
            match block:
                case {
                    "type": "tool_use" | "server_tool_use",
                    "id": str(call),
                    "name": str(name),
                    "input": dict(given),
                }:
                    turn.tools.add(call)
                    yield ToolStarted(
                        tool_use_id=call,
                        name=documented_name(name),
                        input=given,
                        parent_tool_use_id=parent,
                    )
                case {"type": str(kind), "tool_use_id": str()} if kind.endswith("_tool_result"):
                    yield from self._tools_answered([block], parent)  # of a server's tool
                case _:
                    pass

    def _tools_answered(
        self, content: list[JsonValue], parent: str | None
    ) -> Iterator[AgentMessage]:
        turn = self._turn
        if turn is None:
            return
        for block in content:
            match block:
                case {"tool_use_id": str(call)} if call in turn.tools:
                    assert isinstance(block, dict)
                    yield ToolFinished(
                        tool_use_id=call,
                        content=block.get("content"),
                        is_error=block.get("is_error") is True,
                        parent_tool_use_id=parent,
                    )
                case _:
                    pass


def _initialized(frame: JsonObject) -> Initialized:
    tools = frame.get("tools")
    version = frame.get("claude_code_version")
    return Initialized(
        agent_session_id=str(frame.get("session_id", "")),
        model=str(frame.get("model", "")),
        tools=tuple(tool for tool in tools if isinstance(tool, str))
        if isinstance(tools, list)
        else (),
        version=version if isinstance(version, str) else None,
    )


def _limit(info: JsonObject) -> UpstreamLimit:
    resets, kind, used = info.get("resetsAt"), info.get("rateLimitType"), info.get("utilization")
    # What is beyond the limit may be paid for.
    paid = info.get("isUsingOverage") is True or info.get("overageStatus") == "allowed"
    return UpstreamLimit(
        rejected=info.get("status") == "rejected" and not paid,
        resets_at=_time(resets),
        kind=kind if isinstance(kind, str) else None,
        of_one_model=kind in _OF_ONE_MODEL,
        utilization=float(used) if isinstance(used, int | float) else None,
    )


def _time(value: JsonValue) -> datetime | None:
    """Return a time that is counted in seconds since 1970; None where it can be none."""
    try:
        return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None


def _retry(frame: JsonObject) -> UpstreamRetry:
    attempt, most = frame.get("attempt"), frame.get("max_retries")
    delay, status = frame.get("retry_delay_ms"), frame.get("error_status")
    reason = frame.get("error")
    return UpstreamRetry(
        attempt=attempt if isinstance(attempt, int) else 1,
        max_attempts=most if isinstance(most, int) else 1,
        delay_s=delay / 1000 if isinstance(delay, int | float) else 0.0,
        status=status if isinstance(status, int) else None,
        reason=reason if isinstance(reason, str) else None,
    )


def prompt_ids_of(frame: JsonObject) -> list[str]:
    """Return the prompts that a frame says it is about."""
    several = frame.get("user_message_uuids")
    if isinstance(several, list):
        return [prompt_id for prompt_id in several if isinstance(prompt_id, str)]
    one = frame.get("user_message_uuid")
    return [one] if isinstance(one, str) else []


def _parent(frame: JsonObject) -> str | None:
    parent = frame.get("parent_tool_use_id")
    return parent if isinstance(parent, str) else None
