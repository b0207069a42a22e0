"""What a caller gives as `output_schema` is of a size that is worth a look.

Whether it is a JSON Schema that can be met, the agent says, which alone knows the language that its
program speaks. Here is only kept away what would take it too long, or too deep.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from session_http.encoding import dump
from session_http.problems import FieldError, InvalidRequest

LONGEST = 64 * 1024
"""Bytes of JSON: an argument of a program may have little more."""

DEEPEST = 32
"""Objects and lists within each other."""


def check_size(schema: Mapping[str, JsonValue]) -> None:
    """Refuse a schema that is too long or too deep.

    Raises:
        InvalidRequest: It is.
    """
    size = len(dump(schema))
    if size > LONGEST:
        raise _invalid(f"has {size} bytes, and may have {LONGEST}")
    level: list[JsonValue] = [dict(schema)]
    for _ in range(DEEPEST):
        level = [inner for part in level for inner in _inside(part)]
    if level:
        raise _invalid(f"is more than {DEEPEST} levels deep")


def _inside(part: JsonValue) -> list[JsonValue]:
    """Return the objects and lists that are directly in one."""
    match part:
        case dict():
            members = list(part.values())
        case list():
            members = part
        case _:
            members = []
    return [one for one in members if isinstance(one, (dict, list))]


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest([FieldError(field="output_schema", message=problem)])
