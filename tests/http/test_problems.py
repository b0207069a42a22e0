"""Every failure has one answer: a status, a detail, a code, and nothing of our insides."""

from __future__ import annotations

import ast
import inspect
import json
import re
from datetime import UTC, datetime

import pytest
from docs.generate import ROOT
from pydantic import ValidationError

from session_http.asked import AnswersRequest, DecisionRequest
from session_http.problems import (
    KINDS,
    LONGEST_DETAIL,
    FieldError,
    InvalidRequest,
    Problem,
    invalid,
    problem_of,
    refuse,
    unforeseen,
)
from session_supervisor import asks, errors
from session_supervisor.errors import (
    AtCapacity,
    BudgetExceeded,
    Busy,
    Draining,
    Failure,
    FailureCode,
    InvalidSpec,
    MailboxFull,
    NotAllowed,
    NotFailed,
    NothingToFork,
    Refused,
    RequestNotFound,
    RequestOver,
    SessionClosed,
    SessionFailed,
    SessionNotFound,
    Spoiled,
    StoreError,
    TurnFailed,
    TurnNotFound,
    UpstreamLimited,
)
from tests.http.contract import the_contract

REFUSALS: list[type[Refused]] = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, Refused) and value is not Refused
]


@pytest.mark.parametrize("kind", REFUSALS)
def test_every_refusal_of_the_library_is_in_the_table(kind: type[Refused]) -> None:
    assert kind.code in KINDS


@pytest.mark.parametrize("code", list(FailureCode))
def test_every_way_a_turn_can_fail_is_in_the_table(code: FailureCode) -> None:
    assert KINDS[code].status >= 400


def test_the_public_table_has_every_code_once() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    page = page.partition("<!-- generated: problems -->")[2].partition("<!-- end -->")[0]
    codes = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert len(codes) == len(set(codes)) == len(KINDS)
    assert set(codes) >= {*FailureCode, *(kind.code for kind in REFUSALS)}


def test_what_the_table_says_of_asking_again_is_what_the_library_says() -> None:
    """By its source: a failure that may be tried again has a row that says when."""
    tried_again: set[str] = set()
    for path in (ROOT / "supervisor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                text = ast.unparse(node)
                if re.match(r"(Failure|_Meaning)\(", text) and re.search(
                    r"\bTrue\)$|ble=True", text
                ):
                    tried_again |= set(re.findall(r"FailureCode\.(\w+)", text))
    assert tried_again >= {"RATE_LIMITED", "OVERLOADED", "CRASHED"}, "they are found"
    for name in tried_again:
        assert KINDS[FailureCode[name]].again is not None, name
    for kind in REFUSALS:
        if kind.retry_after is not None or "retry_after" in inspect.getsource(kind):
            assert KINDS[kind.code].again is not None, kind


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidSpec("model", "is strange"), 400, "invalid_request"),
        (NotAllowed("permission_mode", "is not allowed"), 403, "not_allowed"),
        (SessionNotFound("s"), 404, "session_not_found"),
        (TurnNotFound("t"), 404, "turn_not_found"),
        (Busy("busy"), 409, "busy"),
        (SessionClosed("s"), 409, "session_closed"),
        (SessionFailed("s", "It crashed."), 409, "session_failed"),
        (RequestNotFound("r"), 404, "request_not_found"),
        (NothingToFork("s"), 409, "nothing_to_fork"),
        (NotFailed("s"), 409, "not_failed"),
        (BudgetExceeded("Session 's'", 1.0, 1.5), 403, "budget_exceeded"),
        (UpstreamLimited(30.0), 429, "rate_limited"),
        (MailboxFull(16), 429, "queue_full"),
        (AtCapacity("sessions", 3), 503, "at_capacity"),
        (Draining(), 503, "draining"),
        (refuse("payload_too_large", "long"), 413, "payload_too_large"),
    ],
)
def test_a_refusal_is_answered_with_its_status(error: Exception, status: int, code: str) -> None:
    problem = problem_of(error)
    assert problem is not None
    assert (problem.status, problem.code) == (status, code)
    assert problem.detail == str(error)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (FailureCode.RATE_LIMITED, 502),
        (FailureCode.BUDGET, 409),
        (FailureCode.REFUSED, 502),
        (FailureCode.NO_STRUCTURED_OUTPUT, 502),
        (FailureCode.UPSTREAM_ERROR, 502),
        (FailureCode.MODEL_NOT_FOUND, 502),
        (FailureCode.START_FAILED, 502),
        (FailureCode.CRASHED, 502),
        (FailureCode.STALLED, 502),
        (FailureCode.TIMEOUT, 504),
        (FailureCode.CLOSED, 409),
        (FailureCode.DRAINED, 503),
        (FailureCode.INTERNAL, 500),
    ],
)
def test_a_failed_turn_is_answered_with_its_status_and_ids(code: FailureCode, status: int) -> None:
    failure = Failure(code=code, message="It went wrong.", retry_after=7.2)
    problem = problem_of(TurnFailed(failure, session_id="s", turn_id="t"))
    assert problem is not None
    response = problem.response()
    assert response.status_code == status
    assert json.loads(bytes(response.body)) == {
        "detail": "It went wrong.",
        "code": code.value,
        "retry_after": 7.2,
        "session_id": "s",
        "turn_id": "t",
    }
    assert response.headers["retry-after"] == "8"


def test_a_second_answer_shows_the_first() -> None:
    now = datetime(2025, 10, 14, 10, 30, tzinfo=UTC)
    request = asks.Request(
        request_id="r",
        session_id="s",
        turn_id="t",
        kind=asks.RequestKind.PERMISSION,
        tool="Bash",
        tool_use_id="u",
        input={"command": "ls"},
        asked_at=now,
        resolution=asks.Resolution.DENIED,
        decision=asks.Deny(message="Not now."),
        resolved_at=now,
    )
    problem = problem_of(RequestOver(request))
    assert problem is not None
    response = problem.response()
    assert response.status_code == 409
    body = json.loads(bytes(response.body))
    assert body["code"] == "request_over"
    assert body["request"]["resolution"] == "denied"
    assert body["request"]["message"] == "Not now."
    assert body["request"]["input"] == {"command": "ls"}
    the_contract().check_value(body, "ProblemReply")


@pytest.mark.parametrize(
    "error",
    [MailboxFull(1), AtCapacity("sessions", 1), Draining(), UpstreamLimited(12.0)],
)
def test_what_may_pass_says_when_to_try_again(error: Refused) -> None:
    problem = problem_of(error)
    assert problem is not None
    assert int(problem.response().headers["retry-after"]) >= 1


def test_what_nobody_foresaw_is_not_explained_to_the_caller() -> None:
    assert problem_of(ZeroDivisionError("secret")) is None
    failing = problem_of(StoreError("secret"))
    assert failing is not None
    assert failing.code == "store_unavailable"
    assert "secret" not in str(failing.body())
    damaged = problem_of(Spoiled("A turn", "ValueError"))
    assert damaged is not None
    assert (damaged.status, damaged.code) == (500, "session_spoiled")
    problem = unforeseen("request-1")
    assert problem.status == 500
    assert "request-1" in problem.detail


def test_a_refusal_that_the_table_lacks_is_an_error_of_ours() -> None:
    class Novel(Refused):
        code = "novel"

    problem = problem_of(Novel("something new"))
    assert problem is not None
    assert problem.status == 500


def test_several_wrong_fields_are_named_together_and_one_by_one() -> None:
    error = InvalidRequest(
        [FieldError(field="a", message="is wrong"), FieldError(field="", message="so is all")]
    )
    body = error.problem.body()
    assert body["detail"] == "a: is wrong; so is all"
    assert body["errors"] == [
        {"field": "a", "message": "is wrong"},
        {"field": "", "message": "so is all"},
    ]


@pytest.mark.parametrize(
    ("model", "body", "told"),
    [
        (
            DecisionRequest,
            {"decision": "allow", "remember": [{"tool": ""}]},
            ["remember[0].tool: string should match pattern"],
        ),
        (
            DecisionRequest,
            {"decision": "allow", "remember": 5},
            [
                "remember: input should be a valid boolean",
                "remember: input should be a valid array",
            ],
        ),
        (
            DecisionRequest,
            {"decision": "allow", "updated_input": []},
            ["updated_input: must be a JSON object"],
        ),
        (
            DecisionRequest,
            {"decision": "deny", "message": "x" * 10_001},
            ["message: must have at most 10000 characters"],
        ),
        (AnswersRequest, {"answers": {"Q": []}}, ["answers.Q: must have at least 1 items"]),
        (
            AnswersRequest,
            {"answers": {"Q": ""}},
            ["answers.Q: string should have at least 1 character"],
        ),
        (AnswersRequest, {"answers": {"bool": ["x", 5]}}, ["answers.bool[1]: input should be a"]),
    ],
)
def test_a_field_of_several_types_is_named_as_the_caller_knows_it(
    model: type[DecisionRequest | AnswersRequest], body: dict[str, object], told: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(body))
    found = invalid(caught.value, model.model_fields).problem.errors
    assert len(found) == len(told)
    for one, start in zip(found, told, strict=True):
        assert f"{one.field}: {one.message}".startswith(start)


def test_a_detail_made_of_the_request_is_cut() -> None:
    problem = Problem(code="not_found", detail="x" * 100_000)
    assert len(str(problem.body()["detail"])) == LONGEST_DETAIL


def test_of_many_mistakes_the_first_are_told() -> None:
    errors = [FieldError(field="f" * 1000, message="m" * 1000)] * 100
    assert len(bytes(InvalidRequest(errors).problem.response().body)) < 20_000
