"""The description of the API is valid, complete, and says what the table and the models say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from pydantic import BaseModel

from session_http.asked import AnswersRequest, DecisionRequest
from session_http.frames import BODIES, LONG, WITH_SESSION
from session_http.openapi import document
from session_http.operations import OPERATIONS, Operation
from session_http.problems import KINDS
from session_http.schemas import QueryRequest, SessionQueryRequest, StartRequest
from tests.http.contract import the_contract

DOCUMENT: dict[str, Any] = document(OPERATIONS)
DESCRIBED = [row for row in OPERATIONS if row.described]
READ_TURN = {"get_turn": ["session_id", "turn_id"]}


def test_it_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    validate(DOCUMENT)


def test_it_is_json() -> None:
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT


@pytest.mark.parametrize("row", DESCRIBED, ids=lambda row: f"{row.method} {row.path}")
def test_an_operation_has_its_answers_and_every_refusal_of_the_table(row: Operation) -> None:
    described = DOCUMENT["paths"][row.path][row.method.lower()]
    assert described["operationId"] == row.name
    responses = described["responses"]
    assert ("text/event-stream" in responses["200"]["content"]) is row.streams
    assert ("application/json" in responses["200"]["content"]) is (row.gives is not None)
    for code in row.refuses:
        assert f"`{code}`" in responses[str(KINDS[code].status)]["description"]


def test_operation_names_and_places_are_unique() -> None:
    assert len({row.name for row in OPERATIONS}) == len(OPERATIONS)
    assert len({(row.method, row.path) for row in OPERATIONS}) == len(OPERATIONS)


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    schemas = DOCUMENT["components"]["schemas"]
    for reference in text.split('"$ref": "')[1:]:
        name = reference.partition('"')[0].removeprefix("#/components/schemas/")
        assert name in schemas


def test_names_of_schemas_are_plain() -> None:
    assert all(name.isidentifier() for name in DOCUMENT["components"]["schemas"])


def test_every_event_is_described_with_every_field() -> None:
    options = DOCUMENT["components"]["schemas"]["SessionEvent"]["anyOf"]
    assert len(options) == len(BODIES)
    for body, option in zip(BODIES, options, strict=True):
        schema = DOCUMENT["components"]["schemas"][option["$ref"].rpartition("/")[2]]
        added = {"turn_id"} | ({"session_id"} if body in WITH_SESSION else set[str]())
        added |= {"truncated", "full"} if body in LONG else set[str]()
        assert set(schema["properties"]) == {field.name for field in fields(body)} | added
        assert "type" in schema["required"]
        assert schema["description"]


def test_servers_are_relative_so_that_a_mount_point_holds() -> None:
    assert DOCUMENT["servers"] == [{"url": "./"}]


@pytest.mark.parametrize(
    ("body", "valid"),
    [
        ({"prompt": "hi"}, True),
        ({"prompt": "hi", "model": None, "allowed_tools": None, "stream": None}, True),
        ({"prompt": "hi", "permission_mode": "acceptEdits", "timeout_s": 3}, True),
        ({}, False),
        ({"prompt": ""}, False),
        ({"prompt": 1}, False),
        ({"prompt": "hi", "permission_mode": "yolo"}, False),
        ({"prompt": "hi", "temperature": 1}, False),
        ({"prompt": "hi", "stream": "true"}, False),
        ({"prompt": "hi", "timeout_s": 0}, False),
        ({"prompt": "hi", "allowed_tools": "Read"}, False),
    ],
)
def test_the_schema_and_the_model_agree(body: dict[str, object], valid: bool) -> None:
    schemas = DOCUMENT["components"]["schemas"]
    schema = {"$ref": "#/components/schemas/QueryRequest", "components": {"schemas": schemas}}
    assert OAS31Validator(schema).is_valid(body) is valid
    try:
        QueryRequest.model_validate_json(json.dumps(body))
    except ValueError:
        assert not valid
    else:
        assert valid


def test_the_judge_of_answers_rejects_what_is_not_described() -> None:
    contract = the_contract()
    contract.check_value({"detail": "no", "code": "busy"}, "ProblemReply")
    with pytest.raises(AssertionError):
        contract.check_value({"detail": "no"}, "ProblemReply")
    with pytest.raises(AssertionError):
        contract.check_value({"type": "text"}, "SessionEvent")


def test_what_can_be_done_next_is_linked_by_ids_that_the_answer_always_has() -> None:
    def links(path: str) -> dict[str, list[str]]:
        found = DOCUMENT["paths"][path]["post"]["responses"]["200"]["links"]
        return {name: list(link["parameters"]) for name, link in found.items()}

    session = [
        "get_session",
        "inspect",
        "list_messages",
        "list_turns",
        "list_files",
        "list_permissions",
        "list_questions",
        "list_files",
        "session_events",
    ]
    assert links("/query") == {**{key: ["session_id"] for key in session}, **READ_TURN}
    steered = [*session, "session_query", "interrupt", "close", "wake", "hibernate"]
    steered += ["patch_session", "fork", "restart", "compact"]
    assert links("/session/start") == {key: ["session_id"] for key in steered}
    assert links("/session/{session_id}/query") == {
        **{key: ["session_id"] for key in steered},
        **READ_TURN,
        "withdraw": ["session_id", "turn_id"],
    }
    assert "links" not in DOCUMENT["paths"]["/session/{session_id}"]["delete"]["responses"]["200"]


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every body of JSON that is described, with where it is."""
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            if "requestBody" in operation:
                yield where, operation["requestBody"]["content"]["application/json"]
            for status, response in operation["responses"].items():
                body = response.get("content", {}).get("application/json")
                if body is not None and int(status) < 400:
                    yield f"{where} {status}", body


@pytest.mark.parametrize("body", [pytest.param(body, id=where) for where, body in bodies()])
def test_every_body_has_an_example_that_is_one(body: dict[str, Any]) -> None:
    name = body["schema"]["$ref"].rpartition("/")[2]
    the_contract().check_value(body["example"], name)


def test_a_code_with_two_statuses_is_described_under_both() -> None:
    responses = DOCUMENT["paths"]["/query"]["post"]["responses"]
    for code, refused, ended in (("rate_limited", "429", "502"), ("budget_exceeded", "403", "409")):
        assert f"`{code}`" in responses[refused]["description"]
        assert f"`{code}`" in responses[ended]["description"]


def test_who_need_not_wait_is_told_how() -> None:
    waiting = {
        path
        for path, methods in DOCUMENT["paths"].items()
        for operation in methods.values()
        if "202" in operation["responses"]
        and any(one["name"] == "wait" for one in operation["parameters"])
    }
    session = "/session/{session_id}"
    assert waiting == {"/query", "/session/start", f"{session}/query", f"{session}/compact"}


@pytest.mark.parametrize(
    ("model", "body", "valid"),
    [
        (DecisionRequest, {"decision": "allow"}, True),
        (DecisionRequest, {"decision": "allow", "remember": True, "message": None}, True),
        (DecisionRequest, {"decision": "allow", "remember": [{"tool": "Bash"}]}, True),
        (DecisionRequest, {"decision": "allow", "message": "no"}, False),
        (DecisionRequest, {"decision": "allow", "end_turn": False}, False),
        (DecisionRequest, {"decision": "deny", "message": "no", "end_turn": True}, True),
        (DecisionRequest, {"decision": "deny", "updated_input": {}}, False),
        (DecisionRequest, {"decision": "deny", "remember": False}, False),
        (DecisionRequest, {"decision": "maybe"}, False),
        (DecisionRequest, {"decision": "allow", "remember": [{"tool": "a,b"}]}, False),
        (DecisionRequest, {"decision": "allow", "remember": [{"tool": "B", "content": ""}]}, False),
        (DecisionRequest, {}, False),
        (AnswersRequest, {"answers": {"a": "b"}}, True),
        (AnswersRequest, {"answers": {"a": ["b", "c"]}, "decision": "answer"}, True),
        (AnswersRequest, {"decision": "deny", "message": "later"}, True),
        (AnswersRequest, {"decision": "deny", "answers": {"a": "b"}}, False),
        (AnswersRequest, {"decision": "answer"}, False),
        (AnswersRequest, {"answers": {"a": []}}, False),
        (AnswersRequest, {"answers": {"a": "b"}, "message": "c"}, False),
        (AnswersRequest, {}, False),
        (StartRequest, {}, True),
        (StartRequest, {"attachments": [], "metadata": {"a": "b"}, "title": "c"}, True),
        (StartRequest, {"metadata": {"": "b"}}, False),
        (StartRequest, {"metadata": {"a": 1}}, False),
        (StartRequest, {"max_budget_usd": 0}, False),
        (StartRequest, {"max_turns": 1.5}, False),
        (StartRequest, {"max_turns": 2.0}, True),
        (StartRequest, {"max_turns": "2"}, False),
        (StartRequest, {"system_prompt": ""}, False),
        (StartRequest, {"output_schema": True}, False),
        (SessionQueryRequest, {"prompt": "a", "on_busy": "interrupt"}, True),
        (SessionQueryRequest, {"prompt": "a", "on_busy": "wait"}, False),
        (SessionQueryRequest, {"prompt": "a", "on_permission": "allow"}, False),
        (SessionQueryRequest, {"prompt": "a", "system_prompt": "b"}, False),
    ],
)
def test_schema_and_model_of_what_steers_agree(
    model: type[BaseModel], body: dict[str, object], valid: bool
) -> None:
    schemas = DOCUMENT["components"]["schemas"]
    root = {"$ref": f"#/components/schemas/{model.__name__}", "components": {"schemas": schemas}}
    assert OAS31Validator(root).is_valid(body) is valid
    try:
        model.model_validate_json(json.dumps(body))
    except ValueError:
        assert not valid
    else:
        assert valid
