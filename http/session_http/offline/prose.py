"""The texts that the offline model writes, and how they are split into deltas."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pydantic import JsonValue

from session_http.offline.conversation import Conversation, ToolResult

__all__ = [
    "bulk",
    "filled",
    "numbered",
    "quoted_notice",
    "quoted_results",
    "recall",
    "summary",
    "words",
]

_QUOTE = 2_000
"""A quoted turn is cut after so many characters."""
_QUOTED_TURNS = 50
"""So many earlier turns are quoted, the newest."""
_QUOTED_RESULT = 20_000
"""A quoted tool result is cut after so many characters."""


def recall(conversation: Conversation) -> str:
    """Prose that proves what the model was told in this conversation."""
    *earlier, prompt = conversation.turns or ("",)
    lines = [f"You said: {_quoted(prompt)}"]
    if conversation.attachments:
        lines.append(f"It came with: {', '.join(conversation.attachments)}.")
    lines.append("")
    if not earlier:
        lines.append("That is the first thing you said in this conversation.")
        return "\n".join(lines)
    lines.append("Before that, you said:")
    skipped = max(0, len(earlier) - _QUOTED_TURNS)
    if skipped:
        lines.append(f"({skipped} more turns before these)")
    lines.extend(
        f"{number}. {_quoted(turn)}"
        for number, turn in enumerate(earlier[skipped:], start=skipped + 1)
    )
    return "\n".join(lines)


def summary(turns: Sequence[str]) -> str:
    """What is left of a conversation when it is compacted; `conversation` reads it back."""
    lines = [f"- the user said: {json.dumps(turn)}" for turn in turns]
    return "\n".join(["<summary>", "What the user said:", *lines, "</summary>"])


def quoted_notice(notice: str) -> str:
    """The answer to what the CLI reports."""
    told = re.search(r"<summary>(.*?)</summary>", notice, re.DOTALL)
    return f"I was told: {_quoted(told[1] if told else notice)}"


def quoted_results(results: Sequence[ToolResult]) -> str:
    """What the tools have answered."""
    if not results:
        return "No tool has answered."
    return "\n\n".join(
        f"{result.name} {'failed' if result.is_error else 'answered'}:\n"
        f"{_cut(result.text, _QUOTED_RESULT) or '(nothing)'}"
        for result in results
    )


_DEPTH = 20
"""Schemas that refer to themselves are followed so far."""


def filled(schema: JsonValue, text: str) -> JsonValue:
    """The smallest sensible value of a JSON schema; strings are made of the text's first words."""
    return _filled(schema, text, schema, _DEPTH)


def _filled(schema: JsonValue, text: str, root: JsonValue, depth: int) -> JsonValue:
    if not isinstance(schema, dict) or not depth:
        return None
    reference = schema.get("$ref")
    if isinstance(reference, str):
        found = root
        for step in reference.split("/")[1:]:
            found = found.get(step) if isinstance(found, dict) else None
        return _filled(found, text, root, depth - 1)
    if "const" in schema:
        return schema["const"]
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    properties = schema.get("properties")
    match schema.get("type"):
        case "object" if isinstance(properties, dict):
            return {
                name: _filled(inner, text, root, depth - 1) for name, inner in properties.items()
            }
        case "object":
            return {}
        case "array":
            return []
        case "string":
            plain = re.sub(r"\[\[.*?\]\]|<[^>]*>", " ", text, flags=re.DOTALL)
            return " ".join(plain.split()[:6]) or "Offline session"
        case "integer" | "number":
            return 0
        case "boolean":
            return False
        case _:
            return None


def _quoted(text: str) -> str:
    return f'"{_cut(" ".join(text.split()), _QUOTE)}"'


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


def words(text: str) -> tuple[str, ...]:
    """Split into deltas of one word each; together they are the text."""
    return tuple(re.findall(r"\s*\S+|\s+$", text))


def numbered(count: int) -> tuple[str, ...]:
    """The words w0, w1, ... as deltas."""
    return tuple(f"w{number}" if not number else f" w{number}" for number in range(count))


def bulk(size: int) -> tuple[str, ...]:
    """So many bytes of text, in deltas of 4 KiB."""
    line = "The quick brown fox jumps over the lazy dog, again and again.\n"
    text = (line * (size // len(line) + 1))[:size]
    return tuple(text[start : start + 4096] for start in range(0, size, 4096))
