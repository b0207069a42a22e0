"""What a planned reply consists of."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

from session_http.offline.directives import Fault

__all__ = ["Block", "Pacing", "Reply", "Text", "Thinking", "ToolUse"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pacing:
    """How answers flow when the prompt does not say.

    Attributes:
        tokens: length of the default answer, in deltas; None: as long as it is.
        delay_s: time between two deltas, seconds.
    """

    tokens: int | None = None
    delay_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A text block, one delta a piece."""

    pieces: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """A thinking block, one delta a piece."""

    pieces: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolUse:
    """A call of a tool."""

    name: str
    input: dict[str, JsonValue]


Block = Text | Thinking | ToolUse


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One planned answer to one request.

    Attributes:
        blocks: what it contains.
        stop_reason: the API's `stop_reason`.
        delay_s: time between two deltas, seconds.
        input_tokens: tokens read, without the cached ones; None until counted.
        output_tokens: tokens written; None until counted.
        cache_read: tokens read from the cache.
        cache_write: tokens written to the cache.
        headers: further response headers.
        fault: what goes wrong with it, if anything.
    """

    blocks: tuple[Block, ...] = ()
    stop_reason: str = "end_turn"
    delay_s: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read: int = 0
    cache_write: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    fault: Fault | None = None
