"""Schemas that the CLI takes, and what their authors are told of others."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from session_supervisor.agents.claude.schemas import MAX_BYTES, fault, spelled
from session_supervisor.spec import JsonObject

OBJECT: JsonObject = {"type": "object"}
NESTED: JsonValue = {"a": {"type": "string"}}


@pytest.mark.parametrize(
    "schema",
    [
        OBJECT,
        {**OBJECT, "properties": NESTED, "required": ["a"], "additionalProperties": False},
        {**OBJECT, "$schema": "https://json-schema.org/draft/2020-12/schema"},
        {**OBJECT, "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "null"}}},
        {**OBJECT, "properties": {"child": {"$ref": "#"}}},
        {**OBJECT, "properties": {"a": {"$ref": "#/definitions/a~1b"}}, "definitions": {"a/b": {}}},
        {**OBJECT, "properties": {"$ref": {"type": "string"}, "strange": {}}},
        {**OBJECT, "dependencies": {"a": ["b"]}, "default": {"strange": 1}},
    ],
)
def test_a_schema_that_the_cli_takes_has_no_fault(schema: JsonObject) -> None:
    assert fault(schema) is None


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, '"type": "object"'),
        ({"type": "array"}, '"type": "object"'),
        ({**OBJECT, "properties": 7}, "no JSON Schema: properties"),
        ({**OBJECT, "properties": {"a": {"type": "strin"}}}, "no JSON Schema: properties.a.type"),
        ({**OBJECT, "properties": {"a": {"$ref": "#/$defs/x"}}}, "'#/$defs/x'"),
        ({**OBJECT, "properties": {"a": {"$ref": "https://example.com/x"}}}, "example.com"),
        ({**OBJECT, "strange": 1}, "'strange'"),
        ({**OBJECT, "properties": {"a": {"anyOf": [{"nullable": True}]}}}, "'nullable'"),
        ({**OBJECT, "description": "x" * MAX_BYTES}, "bytes"),
        ({**OBJECT, "maximum": float("nan")}, "what JSON cannot say"),
    ],
)
def test_another_schema_has_a_fault_that_names_it(schema: JsonObject, words: str) -> None:
    found = fault(schema)
    assert found is not None
    assert words in found


def test_a_schema_is_spelled_without_its_dialect() -> None:
    assert spelled({"$schema": "x", **OBJECT}) == '{"type":"object"}'
