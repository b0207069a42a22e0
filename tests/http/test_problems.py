"""Every failure has one answer: a status, a detail, a code, and nothing of our insides."""

from __future__ import annotations

import json

import pytest

from session_http.problems import (
    KINDS,
    LONGEST_DETAIL,
    FieldError,
    InvalidRequest,
    Problem,
    problem_of,
    refuse,
    unforeseen,
)
from session_supervisor import errors
from session_supervisor.errors import (
    AtCapacity,
    Busy,
    Draining,
    Failure,
    FailureCode,
    InvalidSpec,
    MailboxFull,
    NotAllowed,
    Refused,
    SessionClosed,
    SessionFailed,
    SessionNotFound,
    Spoiled,
    StoreError,
    TurnFailed,
    TurnNotFound,
)

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


@pytest.mark.parametrize("error", [MailboxFull(1), AtCapacity("sessions", 1), Draining()])
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


def test_a_detail_made_of_the_request_is_cut() -> None:
    problem = Problem(code="not_found", detail="x" * 100_000)
    assert len(str(problem.body()["detail"])) == LONGEST_DETAIL


def test_of_many_mistakes_the_first_are_told() -> None:
    errors = [FieldError(field="f" * 1000, message="m" * 1000)] * 100
    assert len(bytes(InvalidRequest(errors).problem.response().body)) < 20_000
