"""JSON as it leaves the server: one encoder, used for every answer and every event."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime


def rfc3339(moment: datetime) -> str:
    """Return a time in UTC, with a Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What naive readers of lines (`str.splitlines`, httpx's `iter_lines`) take for the end of one.
_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")


def _plain(value: object) -> object:
    """Return what the encoder does not know as something that it does."""
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, datetime):
        return rfc3339(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON")


_readable = json.JSONEncoder(ensure_ascii=False, default=_plain).encode
_ascii = json.JSONEncoder(ensure_ascii=True, default=_plain).encode


def dump(value: object) -> bytes:
    """Return a value as one line of JSON.

    Text stays as it is; only what could break a line, or is not text at all (half of a
    surrogate pair), is escaped.
    """
    text = _readable(value)
    if not text.isascii() and _LINE_BREAKS.search(text):
        text = _LINE_BREAKS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _ascii(value).encode()
