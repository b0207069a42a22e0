"""The JSON Schema that answers have to meet: what the CLI takes, said before a process is started.

The CLI gives the schema to the model as the input of a tool, so its root is an object. It judges it
by draft 7 of JSON Schema, in which a word that it does not know is a mistake, and knows no other
schema that it could refer to. One that it does not take would keep the process from starting.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import JsonValue

from session_supervisor.spec import JsonObject

MAX_BYTES = 64 * 1024
"""The longest schema: it is an argument of a program, and those have a limit."""

_DIALECT = "$schema"

_ONE = {
    *("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not"),
    *("propertyNames", "then"),
}
_SEVERAL = {"allOf", "anyOf", "items", "oneOf"}
_NAMED = {"$defs", "definitions", "dependencies", "patternProperties", "properties"}
"""The words behind which there is a schema, a list of them, and an object of them."""

_OTHER = {
    *("$anchor", "$comment", "$id", "$ref", "const", "contentEncoding", "contentMediaType"),
    *("default", "deprecated", "description", "enum", "examples", "exclusiveMaximum"),
    *("exclusiveMinimum", "format", "maxItems", "maxLength", "maxProperties", "maximum"),
    *("minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern", "readOnly"),
    *("required", "title", "type", "uniqueItems", "writeOnly"),
}
"""The other words that the CLI knows."""


def fault(schema: JsonObject) -> str | None:
    """Return what is wrong with a schema, for its author, or None."""
    try:
        size = len(spelled(schema).encode())
    except (UnicodeEncodeError, ValueError, RecursionError):
        return "it holds what JSON cannot say."
    if size > MAX_BYTES:
        return f"it takes {size} bytes, and may take {MAX_BYTES}."
    if schema.get("type") != "object":
        return 'its root must say "type": "object".'
    # Late: it takes a while, and few sessions have a schema.
    jsonschema: Any = importlib.import_module("jsonschema")
    try:
        jsonschema.Draft7Validator.check_schema(_without_dialect(schema))
    except jsonschema.SchemaError as error:
        where = error.json_path.removeprefix("$").lstrip(".") or "its root"
        return f"it is no JSON Schema: {where}: {str(error.message)[:200]}."
    for one in _schemas(_without_dialect(schema)):
        for word in one:
            if word not in _ONE | _SEVERAL | _NAMED | _OTHER:
                return f"it has the word {word[:200]!r}, which draft 7 of JSON Schema does not."
        reference = one.get("$ref")
        if isinstance(reference, str) and not _is_there(schema, reference):
            return f"it refers to {reference[:200]!r}, which it does not hold."
    return None


def spelled(schema: JsonObject) -> str:
    """Return a schema as the CLI takes it: it knows no dialect by its name."""
    return json.dumps(_without_dialect(schema), separators=(",", ":"), allow_nan=False)


def _without_dialect(schema: JsonObject) -> JsonObject:
    return {name: value for name, value in schema.items() if name != _DIALECT}


def _schemas(schema: JsonObject) -> Iterator[JsonObject]:
    """Yield a schema, and all that it is made of."""
    yield schema
    for word, value in schema.items():
        below: list[JsonValue] = []
        if word in _ONE and isinstance(value, dict):
            below = [value]
        elif word in _SEVERAL and isinstance(value, list):
            below = value
        elif word in _NAMED and isinstance(value, dict):
            below = list(value.values())
        for one in below:
            if isinstance(one, dict):
                yield from _schemas(one)


def _is_there(schema: JsonObject, reference: str) -> bool:
    """Whether a reference leads to something in the schema, by its place in it."""
    root, _, place = reference.partition("#")
    if root or (place and not place.startswith("/")):
        return False
    found: JsonValue = schema
    for step in place.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return False
    return True
