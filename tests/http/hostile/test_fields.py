"""Every field of every request, with values of every wrong kind, made from the models themselves.

Which values are wrong is what the description of the API says, so this also holds the two together:
what the one refuses the other does, by the field's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from openapi_schema_validator import OAS31Validator
from pydantic import BaseModel

from session_http.operations import OPERATIONS, Operation
from session_http.reading import Source
from tests.http.contract import the_contract
from tests.http.hostile.client import connected, get, post
from tests.http.hostile.siege import Siege

pytestmark = pytest.mark.anyio

WITH_BODY = [row for row in OPERATIONS if row.source is not Source.QUERY]
WITH_METADATA = [row for row in WITH_BODY if "metadata" in row.takes.model_fields]
WITH_PARAMETERS = [row for row in OPERATIONS if row.source is Source.QUERY]
REQUIRED = {"prompt": "hi", "decision": "deny"}
"""What a request needs, where it has such a field, besides the one that is wrong."""
LONG = "x" * 1_000_000

VALUES: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    1.5,
    1e308,
    -1e-308,
    10**400,
    2**63,
    "",
    " ",
    "\0",
    "a",
    "true",
    "1",
    "\u202e\U0001f600",
    LONG,
    list[object](),
    [None],
    [1],
    ["a", 1],
    [["a"]],
    ["a"] * 300,
    dict[str, object](),
    {"a": 1},
    {"\0": "a"},
    {"prompt": "a"},
    [dict[str, object]()],
)


def is_wrong(model: type[BaseModel], field: str, value: object) -> bool:
    """Whether the description of the API has no room for a value."""
    schemas = the_contract().document["components"]["schemas"]
    schema = schemas[model.__name__]["properties"][field]
    return not OAS31Validator({**schema, "components": {"schemas": schemas}}).is_valid(value)


def wrong(model: type[BaseModel]) -> Iterator[tuple[str, object]]:
    for field in model.model_fields:
        for value in VALUES:
            if is_wrong(model, field, value):
                yield field, value


def target(path: str) -> bytes:
    return re.sub(r"{\w+}", "x", path).encode()


def with_body(row: Operation, fields: dict[str, object]) -> bytes:
    """Return a request that is in order, but for a field."""
    required = {name: value for name, value in REQUIRED.items() if name in row.takes.model_fields}
    request = post(target(row.path), json.dumps({**required, **fields}).encode())
    return request.replace(b"POST", row.method.encode(), 1)


@pytest.mark.parametrize("row", WITH_BODY, ids=lambda row: row.name)
async def test_a_wrong_value_of_a_field_is_refused_by_its_name(
    siege: Siege, row: Operation
) -> None:
    """All on one connection, which must stay in step."""
    cases = list(wrong(row.takes))
    assert len(cases) > 10 * len(row.takes.model_fields)
    async with connected(siege.address) as line:
        for field, value in cases:
            line.say(with_body(row, {field: value}))
            answer = await line.answer()
            assert answer.status == 400, (field, value, answer)
            assert answer.json["code"] == "invalid_request"
            for error in answer.json["errors"]:
                assert re.split(r"[.\[]", error["field"])[0] == field, (field, value, answer)
            assert len(answer.body) < 10_000
    await siege.goes_on()


@pytest.mark.parametrize("row", WITH_METADATA, ids=lambda row: row.name)
def test_the_description_has_no_room_for_names_that_are_refused(row: Operation) -> None:
    assert not is_wrong(row.takes, "metadata", {"a": "b"})
    for name in ("", "\0", "x" * 65):
        assert is_wrong(row.takes, "metadata", {name: "b"}), name


@pytest.mark.parametrize("row", WITH_BODY, ids=lambda row: row.name)
async def test_an_unknown_field_is_refused_by_its_name(siege: Siege, row: Operation) -> None:
    async with connected(siege.address) as line:
        for field in (
            "x",
            "Prompt",
            "prompt ",
            "__class__",
            "$ref",
            "é",
            "a.b",
            "x" * 10_000,
            "\0",
        ):
            line.say(with_body(row, {field: 1}))
            answer = await line.answer()
            assert answer.status == 400
            (error,) = answer.json["errors"]
            assert error["field"][:100] == field[:100]
            assert error["message"].startswith("unknown field; there are: ")
    await siege.goes_on()


@pytest.mark.parametrize("row", WITH_PARAMETERS, ids=lambda row: row.name)
async def test_an_unknown_parameter_is_refused_by_its_name(siege: Siege, row: Operation) -> None:
    async with connected(siege.address) as line:
        for query in (b"x=1", b"x", b"%C3%A9=1", b"limit=-1&limit=2"):
            line.say(bare(row.method, target(row.path) + b"?" + query))
            answer = await line.answer()
            assert (answer.status, answer.json["code"]) == (400, "invalid_request")
    await siege.goes_on()


def bare(method: str, path: bytes) -> bytes:
    """Return a request without a body."""
    return get(path).replace(b"GET", method.encode(), 1)
