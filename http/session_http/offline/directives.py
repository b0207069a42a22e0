"""The directive language: how a prompt tells the offline model what to do.

A directive stands anywhere in the prompt as ``[[name arguments]]``. Only the newest prompt of the
user counts: a directive in an earlier turn, in a tool result, or in text that the CLI adds is only
text. Text outside directives is the prompt that the default answer quotes. ``[[`` followed by
anything but the names below is ordinary text; a known name with wrong arguments is answered with
a 400 that says what is wrong.

One prompt may need several requests, because each tool call ends one. Directives act in the order
in which they stand, and a directive after a tool call acts on the request that brings the tool's
result back. ``[[fail ...]] [[tool ...]]`` fails the first request; ``[[tool ...]] [[fail ...]]``
the second.

What the model writes (one content block each; without any, the answer quotes the conversation):

==================================== ==========================================================
``[[say TEXT]]``                     a text block with exactly TEXT
``[[think TEXT]]``                   a thinking block
``[[tool NAME {JSON}]]``             a tool call; the request ends with ``tool_use``, the next one
                                     goes on behind it. Without own text there, it quotes the result
``[[and NAME {JSON}]]``              one more call in the same message as the ``[[tool]]`` before it
``[[result]]``                       a text block that quotes the newest tool results
``[[slow tokens=20 delay_ms=20]]``   a text block of the words w0 ... w19, 20 ms between deltas;
                                     without ``tokens``, only the pace of what the prompt makes
``[[big bytes=N]]``                  a text block of N bytes, in deltas of 4 KiB
==================================== ==========================================================

How it ends:

==================================== ==========================================================
``[[stop reason=max_tokens           the stop reason: ``max_tokens``, ``refusal``, ...; ``after=N``:
after=N times=N]]``                  the answer ends after N deltas; ``times`` as below
``[[usage input=N output=N           token counts to report instead of characters / 4
cache_read=N cache_write=N]]``
``[[header NAME=VALUE ...]]``        extra headers of the reply, e.g. of rate limits
==================================== ==========================================================

What goes wrong (``times=N``: for the first N tries of that request, then the next fault of the
prompt has its turn, then success; without ``times``: for ever). Tries are counted per conversation,
turn and request, so the CLI's own retries count, and the same prompt sent later starts anew. When
the CLI does not try again but asks the model to go on where it was cut off, as it does after a
finished block, that counts as a try, and the answer is the rest:

==================================== ==========================================================
``[[fail status=529 times=2]]``      an API error of that status. ``message="..."``,
                                     ``retry_after=SECONDS`` (429: 1 unless given). With ``after=N``
                                     or ``block=B`` it comes in mid-stream, as an ``error`` event
``[[hang before]]``                  no headers. ``ms=N``: only for so long, then the answer
``[[hang mid after=N]]``             silence after N deltas. ``ms=N`` as above; ``ping_ms=N`` sends
                                     ``ping`` events meanwhile
``[[cut after=N]]``                  the connection is dropped after N deltas
==================================== ==========================================================

``after=N`` counts the deltas of the whole answer (default 1); with ``block=B`` (from 1) only those
of the B-th block. An answer with fewer deltas has the fault just before its end.

Where a JSON schema is asked for (the CLI's tool ``StructuredOutput``), the last answer of the turn
ends with a call of that tool, unless it has a ``[[stop]]`` of its own.

Values with blanks are quoted: ``message="try later"``. TEXT may hold line breaks but not ``]]``.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

__all__ = [
    "And",
    "Big",
    "Cut",
    "Directive",
    "DirectiveError",
    "Fail",
    "Fault",
    "Hang",
    "Header",
    "Result",
    "Say",
    "Slow",
    "Stop",
    "Think",
    "Tool",
    "Usage",
    "parse_directives",
]


class DirectiveError(ValueError):
    """A known directive with arguments that it does not take; the message says which and why."""


class _Directive(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Say(_Directive):
    """Write `text`."""

    text: str


class Think(_Directive):
    """Think `text`."""

    text: str


class Tool(_Directive):
    """Call the tool `name`; the request ends here."""

    name: str
    input: dict[str, JsonValue]


class And(Tool):
    """Call one more tool in the same message."""


class Result(_Directive):
    """Quote the newest tool results."""


class Slow(_Directive):
    """Set the pace, and write `tokens` numbered words if given."""

    tokens: int | None = Field(default=None, ge=1)
    delay_ms: float = Field(default=20, ge=0)


class Big(_Directive):
    """Write `bytes` bytes of text."""

    bytes: int = Field(ge=1)


class Stop(_Directive):
    """End with this stop reason, for the first `times` tries, after so many deltas."""

    reason: str
    after: int | None = Field(default=None, ge=0)
    times: int | None = Field(default=None, ge=1)


class Usage(_Directive):
    """Report these token counts."""

    input: int | None = Field(default=None, ge=0)
    output: int | None = Field(default=None, ge=0)
    cache_read: int = Field(default=0, ge=0)
    cache_write: int = Field(default=0, ge=0)


class Header(_Directive):
    """Send these headers with the reply."""

    headers: dict[str, str]


class _Fault(_Directive):
    """Something that goes wrong, `times` times (None: for ever)."""

    times: int | None = Field(default=None, ge=1)

    @property
    def label(self) -> str:
        """A short name for records."""
        raise NotImplementedError


class Fail(_Fault):
    """Answer with an API error, or send one in mid-stream if `after` or `block` is set.

    `retry_after` is in seconds.
    """

    status: int = Field(default=529, ge=400, le=599)
    message: str | None = None
    retry_after: float | None = Field(default=None, ge=0)
    after: int | None = Field(default=None, ge=0)
    block: int | None = Field(default=None, ge=1)

    @property
    def label(self) -> str:
        """E.g. "fail 529"."""
        return f"fail {self.status}"


class Hang(_Fault):
    """Fall silent, before the headers or after some deltas, for `ms` milliseconds or for ever."""

    where: Literal["before", "mid"]
    ms: float | None = Field(default=None, ge=0)
    ping_ms: float | None = Field(default=None, gt=0)
    after: int = Field(default=1, ge=0)
    block: int | None = Field(default=None, ge=1)

    @property
    def label(self) -> str:
        """The words "hang before" or "hang mid"."""
        return f"hang {self.where}"


class Cut(_Fault):
    """Drop the connection after some deltas."""

    after: int = Field(default=1, ge=0)
    block: int | None = Field(default=None, ge=1)

    @property
    def label(self) -> str:
        """The word "cut"."""
        return "cut"


Fault = Fail | Hang | Cut
Directive = Say | Think | Tool | And | Result | Slow | Big | Stop | Usage | Header | Fault


class _Grammar:
    """The three shapes of a directive's arguments."""

    free_text: ClassVar[dict[str, type[Say] | type[Think]]] = {"say": Say, "think": Think}
    call: ClassVar[dict[str, type[Tool]]] = {"tool": Tool, "and": And}
    options: ClassVar[dict[str, type[_Directive]]] = {
        "result": Result,
        "slow": Slow,
        "big": Big,
        "stop": Stop,
        "usage": Usage,
        "header": Header,
        "fail": Fail,
        "hang": Hang,
        "cut": Cut,
    }
    opening: ClassVar[re.Pattern[str]] = re.compile(
        r"\[\[(" + "|".join([*free_text, *call, *options]) + r")(?=\s|\]\])"
    )
    tool_name: ClassVar[re.Pattern[str]] = re.compile(r"\s+([\w.:-]+)\s*")
    closing: ClassVar[re.Pattern[str]] = re.compile(r"\s*\]\]")


def parse_directives(prompt: str) -> tuple[Directive, ...]:
    """Read the directives of a prompt, in their order.

    Raises:
        DirectiveError: a known directive is not closed, or its arguments are wrong.
    """
    found: list[Directive] = []
    position = 0
    while match := _Grammar.opening.search(prompt, position):
        name = match[1]
        if name in _Grammar.call:
            directive, position = _read_call(prompt, name, match.end())
        else:
            end = prompt.find("]]", match.end())
            if end < 0:
                raise DirectiveError(f"[[{name} has no closing ]]")
            arguments = prompt[match.end() : end]
            directive = _read_arguments(name, arguments)
            position = end + 2
        found.append(directive)
    return tuple(found)


def _read_call(prompt: str, name: str, position: int) -> tuple[Directive, int]:
    tool = _Grammar.tool_name.match(prompt, position)
    if tool is None:
        raise DirectiveError(f"[[{name}]] needs the name of a tool, and its input as JSON")
    position = tool.end()
    arguments: object = {}
    if prompt.startswith("{", position):
        try:
            arguments, position = json.JSONDecoder().raw_decode(prompt, position)
        except json.JSONDecodeError as error:
            raise DirectiveError(f"[[{name} {tool[1]}]]: bad JSON, {error}") from None
    close = _Grammar.closing.match(prompt, position)
    if close is None:
        raise DirectiveError(f"[[{name} {tool[1]}]]: ]] expected after the JSON object")
    directive = _Grammar.call[name].model_validate({"name": tool[1], "input": arguments})
    return directive, close.end()


def _read_arguments(name: str, arguments: str) -> Directive:
    if name in _Grammar.free_text:
        return _Grammar.free_text[name](text=arguments[1:])
    fields: dict[str, object] = {}
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise DirectiveError(f"[[{name}]]: {error}") from None
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            fields[key] = value
        elif name == "hang":
            fields["where"] = word
        else:
            raise DirectiveError(f"[[{name}]]: {word!r} is not of the form name=value")
    if name == "header":
        fields = {"headers": fields}
    try:
        directive = _Grammar.options[name].model_validate(fields)
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
        )
        raise DirectiveError(f"[[{name}]]: {reasons}") from None
    assert isinstance(directive, Directive)
    return directive
