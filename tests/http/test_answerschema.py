"""A schema for answers is neither too long nor too deep for who has to look at it."""

from __future__ import annotations

from typing import Any

import pytest

from session_http.answerschema import DEEPEST, LONGEST, check_size
from session_http.problems import InvalidRequest


def problem(schema: Any) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        check_size(schema)
    (error,) = caught.value.problem.errors
    return error.field, error.message


def nested(levels: int, *, lists: bool = False) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"anyOf": [schema]} if lists else {"not": schema}
    return schema


def test_what_is_short_and_flat_is_taken() -> None:
    check_size({})
    check_size({"type": "object", "properties": {"a": {"enum": [1, "b", None]}}})


def test_the_deepest_is_taken_and_no_deeper() -> None:
    check_size(nested(DEEPEST))
    assert problem(nested(DEEPEST + 1)) == ("output_schema", f"is more than {DEEPEST} levels deep")
    assert DEEPEST == 32, "an object and a list for each"
    check_size(nested(16, lists=True))
    assert "deep" in problem(nested(17, lists=True))[1]


def test_the_longest_is_taken_and_no_longer() -> None:
    empty = len('{"description": ""}')
    check_size({"description": "x" * (LONGEST - empty)})
    field, message = problem({"description": "x" * (LONGEST - empty + 1)})
    assert (field, message) == ("output_schema", f"has {LONGEST + 1} bytes, and may have {LONGEST}")
