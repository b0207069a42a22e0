"""Bodies of Messages API requests, shaped as the Claude Code CLI sends them."""

from __future__ import annotations

import json
from typing import Any

REMINDER = "<system-reminder>\nToday is a [[say trap]].\n</system-reminder>\n"


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def user(*blocks: str | dict[str, Any]) -> dict[str, Any]:
    content = [text(block) if isinstance(block, str) else block for block in blocks]
    return {"role": "user", "content": content}


def assistant(*blocks: str | dict[str, Any]) -> dict[str, Any]:
    return {**user(*blocks), "role": "assistant"}


def call(identity: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": identity, "name": name, "input": arguments}


def result(identity: str, content: Any, *, is_error: bool = False) -> dict[str, Any]:
    return {
        "type": "tool_result",
        "tool_use_id": identity,
        "content": content,
        "is_error": is_error,
    }


def request(*messages: dict[str, Any] | str, **fields: Any) -> dict[str, Any]:
    """A request whose strings stand for user, assistant, user, ... by turns."""
    made = [
        message
        if isinstance(message, dict)
        else {"role": "assistant" if index % 2 else "user", "content": message}
        for index, message in enumerate(messages)
    ]
    return {"model": "claude-test", "max_tokens": 1000, "messages": made, **fields}


def body(*messages: dict[str, Any] | str, **fields: Any) -> bytes:
    return json.dumps(request(*messages, **fields)).encode()
