"""What a Messages API request says: who spoke, what is asked now, and how far its tools are.

The Claude Code CLI mixes text of its own into the user's messages (reminders, output of local
commands, notes about interrupts) and makes requests for itself (a title for the session, a
summary for compaction, a probe of the quota). This module tells them from the user's turns; what it
knows about them was seen in requests of CLI 2.1.330.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

__all__ = ["Conversation", "Kind", "MessagesRequest", "ToolResult", "read_conversation"]


class Kind(enum.StrEnum):
    """Why a request was made."""

    PROMPT = "prompt"
    """The user's newest prompt is to be answered, or its tools' results have come."""
    NOTICE = "notice"
    """The CLI reports something, e.g. the end of a background task, and nobody asked."""
    FORM = "form"
    """Only JSON of a given schema is wanted, e.g. a title for the session."""
    SUMMARY = "summary"
    """The conversation is to be summed up (compaction)."""
    PROBE = "probe"
    """A request for one token, which only finds out whether there is an answer."""


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Block(_Lenient):
    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    tool_use_id: str | None = None
    content: JsonValue = None
    is_error: bool | None = None


class _Message(_Lenient):
    role: str
    content: str | tuple[_Block, ...]

    def blocks(self) -> tuple[_Block, ...]:
        if isinstance(self.content, str):
            return (_Block(type="text", text=self.content),)
        return self.content


class _Tool(_Lenient):
    name: str = ""
    input_schema: JsonValue = None


class _Format(_Lenient):
    type: str
    schema_: JsonValue = Field(default=None, alias="schema")


class _OutputConfig(_Lenient):
    format: _Format | None = None


class MessagesRequest(_Lenient):
    """The body of `POST /v1/messages`, as far as the offline model looks at it."""

    model: str
    messages: tuple[_Message, ...] = Field(min_length=1)
    max_tokens: int | None = None
    stream: bool = False
    tools: tuple[_Tool, ...] = ()
    output_config: _OutputConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolResult:
    """What a tool that the model called has answered."""

    name: str
    text: str
    is_error: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One request, read.

    Attributes:
        kind: why the request was made.
        turns: the user's prompts, oldest first; for a prompt, the last one is to be answered.
        step: how many times tool results have come back since the newest prompt.
        results: the newest tool results, those of this step.
        said: the model's own text blocks since then, if it is asked to go on where it was cut off.
        attachments: the newest prompt's blocks that are not text, by type, e.g. "image".
        notice: what the CLI reports, if it does.
        schema: the JSON schema in which the answer is wanted, if it is: as the text of a form, as
            the input of the tool `StructuredOutput` for a prompt.
        model: the model's name.
        messages: the number of messages.
        tools: the names of the tools on offer.
        stream: whether an event stream is wanted.
        size: the size of the request, bytes.
    """

    kind: Kind
    turns: tuple[str, ...]
    step: int
    results: tuple[ToolResult, ...]
    said: tuple[str, ...]
    attachments: tuple[str, ...]
    notice: str
    schema: JsonValue
    model: str
    messages: int
    tools: tuple[str, ...]
    stream: bool
    size: int

    @property
    def prompt(self) -> str:
        """The newest prompt, empty if there is none."""
        return self.turns[-1] if self.turns else ""


def read_conversation(body: bytes) -> Conversation:
    """Read the body of a request.

    Raises:
        pydantic.ValidationError: it is no Messages API request.
    """
    request = MessagesRequest.model_validate_json(body)
    reading = _Reading()
    for message in request.messages:
        reading.take(message)
    offered = {tool.name: tool.input_schema for tool in request.tools}
    form = request.output_config.format if request.output_config else None
    kind = Kind.PROMPT
    # A form with tools is a turn whose end has a schema; without tools it is the CLI's own.
    if form is not None and not request.tools:
        kind = Kind.FORM
    elif reading.summary_wanted:
        kind = Kind.SUMMARY
    elif request.max_tokens == 1:
        kind = Kind.PROBE
    elif reading.notice:
        kind = Kind.NOTICE
    return Conversation(
        kind=kind,
        turns=tuple(reading.turns),
        step=reading.step,
        results=tuple(reading.results),
        said=tuple(reading.said) if reading.resumed else (),
        attachments=tuple(reading.attachments),
        notice=reading.notice,
        schema=form.schema_ if form else offered.get("StructuredOutput"),
        model=request.model,
        messages=len(request.messages),
        tools=tuple(offered),
        stream=request.stream,
        size=len(body),
    )


class _Reading:
    """Folds the messages, oldest first, into what a `Conversation` says."""

    reminder: ClassVar[re.Pattern[str]] = re.compile(
        r"<system-reminder>.*?</system-reminder>", re.DOTALL
    )
    remembered: ClassVar[re.Pattern[str]] = re.compile(r'^- the user said: (".*")$', re.MULTILINE)
    notification: ClassVar[re.Pattern[str]] = re.compile(
        r"<task-notification>.*?</task-notification>", re.DOTALL
    )
    # A message that came during a turn goes into that turn's next request, from "system".
    steering: ClassVar[re.Pattern[str]] = re.compile(
        r"The user sent a new message while you were working:\n(.*?)\n\nThis is how Claude Code",
        re.DOTALL,
    )
    # How the CLI's own texts begin.
    injected: ClassVar[tuple[str, ...]] = (
        "<local-command-",
        "<command-name>",
        "<command-message>",
        "<bash-",
        "Caveat: The messages below",
        "[Request interrupted by user",
        "[Image: ",
        "Continue from where you left off",
        "This session's worker process was restarted",
    )
    # How it asks to go on with an answer that was cut off, instead of asking again.
    resuming: ClassVar[tuple[str, ...]] = (
        "Your response above was cut off mid-stream",
        "Your response was cut off because it exceeded the output token limit",
        "Output token limit hit.",
        "Your response above was stopped by a safety classifier",
        "[structured-output-enforce]",
    )
    continued: ClassVar[str] = "This session is being continued from a previous conversation"
    summary: ClassVar[str] = "Your task is to create a detailed summary of"

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.step = 0
        self.results: list[ToolResult] = []
        self.said: list[str] = []
        self.resumed = False
        self.attachments: list[str] = []
        self.notice = ""
        self.summary_wanted = False
        self._calls: dict[str, str] = {}

    def take(self, message: _Message) -> None:
        if message.role == "assistant":
            for block in message.blocks():
                if block.type == "tool_use":
                    self._calls[block.id or ""] = block.name or ""
                elif block.type == "text":
                    self.said.append(block.text or "")
        elif message.role == "user":
            self._take_user(message)
        elif message.role == "system":
            for block in message.blocks():
                for text in self.steering.findall(block.text or ""):
                    self._take_text(text.strip())

    def _take_user(self, message: _Message) -> None:
        results: list[ToolResult] = []
        attachments: list[str] = []
        notice = ""
        for block in message.blocks():
            if block.type == "tool_result":
                results.append(
                    ToolResult(
                        name=self._calls.get(block.tool_use_id or "", "tool"),
                        text=self._own("\n".join(_texts(block.content))),
                        is_error=bool(block.is_error),
                    )
                )
            elif block.type == "text":
                text = block.text or ""
                if found := self.notification.search(text):
                    notice = found[0]
                if self._take_text(self._own(text)):
                    results, notice = [], ""
            else:
                attachments.append(block.type)
        if results:
            self.step += 1
            self.results = results
            self.said = []
            self.resumed = False
        elif notice:
            self._begin()
            self.notice = notice
        if attachments:
            self.attachments = attachments

    def _take_text(self, text: str) -> bool:
        """Take one text block of the user's; tell whether it is something to answer."""
        self.summary_wanted = False
        if not text or text.startswith(self.injected):
            return False
        if text.startswith(self.resuming):
            self.resumed = True
            return False
        if text.startswith(self.continued):
            self.turns = [json.loads(quoted) for quoted in self.remembered.findall(text)]
            return False
        if self.summary in text[:2000]:
            self.summary_wanted = True
            return False
        self._begin()
        self.turns.append(text)
        return True

    def _begin(self) -> None:
        """Start over: there is something new to answer."""
        self.step = 0
        self.results = []
        self.said = []
        self.resumed = False
        self.attachments = []
        self.notice = ""

    def _own(self, text: str) -> str:
        return self.reminder.sub("", text).strip()


def _texts(content: JsonValue) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for item in content:
            if isinstance(item, dict):
                text = item.get("text")
                yield text if isinstance(text, str) else f"[{item.get('type')}]"
