"""Every failure becomes `{"detail", "code", ...}` here, and nowhere else.

`KINDS` is the table: each code, its HTTP status and what it means. The description of the API is
made from it, and `problem_of` turns whatever a request ran into into a row of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import Response

from session_http.asked import reply_of
from session_http.encoding import dump
from session_supervisor.errors import (
    FailureCode,
    InvalidSpec,
    Refused,
    RequestOver,
    Spoiled,
    StoreError,
    TurnFailed,
    Unavailable,
)

LONGEST_DETAIL = 2_000
LONGEST_MESSAGE = 500
MOST_ERRORS = 20
"""How much of a request's mistakes is answered, characters and fields: some of it is the
request's own text."""


REFUSALS: Mapping[int, str] = MappingProxyType(
    {401: "unauthorized", 403: "not_allowed", 429: "too_many_requests"}
)
"""What an embedder's authentication refuses with, by the status that it says."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way in which a request can fail.

    Attributes:
        status: HTTP status.
        meaning: What it means, for the description of the API.
        refused: HTTP status where nothing was begun, if a turn that was begun can end so, too.
        again: When to ask the same again, where that may help; None: where it does not.
    """

    status: int
    meaning: str
    refused: int | None = None
    again: str | None = None


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        # The request itself
        "malformed_json": Kind(400, "The body is not JSON."),
        "malformed_http": Kind(400, "It is not proper HTTP; the connection is closed."),
        "invalid_request": Kind(400, "A field is missing, unknown or cannot be used."),
        "unauthorized": Kind(401, "There is no key, or a wrong one, or it was revoked."),
        "not_allowed": Kind(403, "The operator has not allowed it."),
        "untrusted_origin": Kind(403, "It comes from, or is addressed to, a foreign host name."),
        "not_found": Kind(404, "There is no such path."),
        "session_not_found": Kind(404, "There is no such session, or it is somebody else's."),
        "turn_not_found": Kind(404, "The session has no such turn, or no longer keeps it."),
        "event_not_found": Kind(404, "The session has no such event, or no longer keeps it."),
        "request_not_found": Kind(404, "Nobody was asked that, or it is no longer kept."),
        "file_not_found": Kind(
            404, "The session's directory has no such file, or it is none that can be read."
        ),
        "method_not_allowed": Kind(405, "The path does not have this method; see `Allow`."),
        "request_timeout": Kind(
            408,
            "The request's head or body did not arrive in time.",
            again="at once, over a better connection",
        ),
        "payload_too_large": Kind(413, "The body is longer than the operator allows."),
        "range_not_satisfiable": Kind(416, "The file has no bytes in the `Range` asked for."),
        "headers_too_large": Kind(431, "The request's head is too long."),
        "unsupported_media_type": Kind(
            415, "The body is not declared as application/json, or is compressed."
        ),
        # The session's state
        "idempotency_conflict": Kind(
            409, "The key was used for another request, or for work that is no longer kept."
        ),
        "busy": Kind(
            409,
            "Another turn runs, and the caller would not wait.",
            again="when that turn has ended",
        ),
        "request_over": Kind(
            409, "It was answered before, or is over; `request` in the answer shows how."
        ),
        "not_queued": Kind(409, "The turn does not wait any more; interrupt it, if it runs."),
        "nothing_to_fork": Kind(
            409, "The session has no context that another could begin with.", again="after a turn"
        ),
        "no_private_files": Kind(
            409, "The session works in a directory of its caller's choice; its files are there."
        ),
        "not_failed": Kind(409, "The session has not failed, and needs no restart."),
        "session_closed": Kind(409, "The session has ended; start another."),
        # Also the end of a turn that waited in the session.
        FailureCode.SESSION_FAILED: Kind(
            409, "The session gave up on its agent; restart or close it."
        ),
        # Limits
        "queue_full": Kind(
            429, "Too much waits in the session already.", again="after `retry_after` seconds"
        ),
        "quota_exceeded": Kind(
            429,
            "The caller has as much at once as it may have.",
            again="after `retry_after` seconds, when something of the caller's has ended",
        ),
        "too_many_requests": Kind(
            429,
            "The key was used as often in a minute as it may be.",
            again="after `retry_after` seconds",
        ),
        "at_capacity": Kind(
            503,
            "There are as many sessions or processes as there may be.",
            again="after `retry_after` seconds",
        ),
        "too_many_connections": Kind(
            503,
            "There are as many connections as there may be.",
            again="after `retry_after` seconds",
        ),
        "too_many_streams": Kind(
            503,
            "There are as many open streams as there may be.",
            again="after `retry_after` seconds",
        ),
        "store_unavailable": Kind(
            503,
            "The server cannot store anything at the moment.",
            again="after `retry_after` seconds",
        ),
        "no_workspace": Kind(
            503,
            "The server cannot make a directory for the session.",
            again="after `retry_after` seconds, when the operator has looked",
        ),
        "draining": Kind(
            503,
            "The server is shutting down. A turn that is named waits, and runs under the next.",
            again="after `retry_after` seconds",
        ),
        "not_authenticated": Kind(
            503,
            "The server has no Claude credential.",
            again="after `retry_after` seconds, when the operator has seen to it",
        ),
        # How a turn can end without an answer
        FailureCode.RATE_LIMITED: Kind(
            502,
            "The upstream limits the rate of requests.",
            refused=429,
            again="after `retry_after` seconds where they are known, otherwise in some minutes",
        ),
        FailureCode.OVERLOADED: Kind(
            502, "The upstream is overloaded.", again="in some seconds, waiting longer each time"
        ),
        FailureCode.UPSTREAM_ERROR: Kind(
            502, "The upstream failed.", again="in some seconds; not where the answer was too long"
        ),
        FailureCode.AUTHENTICATION_FAILED: Kind(502, "The upstream refused our credential."),
        FailureCode.BILLING: Kind(502, "The upstream refused for want of payment."),
        FailureCode.UPSTREAM_REFUSED: Kind(502, "The upstream called the request invalid."),
        FailureCode.MODEL_NOT_FOUND: Kind(502, "The upstream does not know the model."),
        FailureCode.CONTEXT_FULL: Kind(502, "The conversation no longer fits into the model."),
        FailureCode.REFUSED: Kind(502, "The model refused to answer."),
        FailureCode.NO_STRUCTURED_OUTPUT: Kind(
            502,
            "The answer did not meet `output_schema`.",
            again="at once, perhaps with a simpler schema",
        ),
        FailureCode.START_FAILED: Kind(502, "The agent's process did not come up."),
        FailureCode.CRASHED: Kind(
            502,
            "The agent's process died in the turn.",
            again="at once, where what its tools did may be done twice",
        ),
        FailureCode.STALLED: Kind(
            502,
            "The agent went silent and was stopped.",
            again="at once, where what its tools did may be done twice",
        ),
        FailureCode.TIMEOUT: Kind(
            504,
            "The turn took longer than it was allowed to.",
            again="at once, with a longer `timeout_s`",
        ),
        FailureCode.MAX_TURNS: Kind(409, "The turn reached its limit of model round trips."),
        FailureCode.BUDGET: Kind(
            409, "The session, or its owner, has spent all that it may.", refused=403
        ),
        FailureCode.AGENT_TURN_LIMIT: Kind(409, "The agent began too many turns by itself."),
        FailureCode.CLOSED: Kind(409, "The session was closed before the turn ended."),
        FailureCode.DRAINED: Kind(
            503,
            "The server shut down before the turn could run.",
            again="after `retry_after` seconds",
        ),
        "session_spoiled": Kind(500, "What is stored of the session is damaged; delete it."),
        FailureCode.INTERNAL: Kind(
            500,
            "The server made a mistake; its log says more.",
            again="once; then the operator must look",
        ),
    }
)
"""Every code that an answer, or the `error` event of a stream, can carry."""

TURN_CODES: tuple[str, ...] = tuple(code.value for code in FailureCode)
"""What a request that waits for a turn can end with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """What is wrong with one field of a request.

    Attributes:
        field: Its name, with dots and indices where it is nested; empty for the whole body.
        message: What is wrong.
    """

    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A failure as it is answered.

    Attributes:
        code: One of `KINDS`.
        detail: What happened and what to do, for people.
        retry_after: Seconds after which trying again makes sense.
        errors: One by one what is wrong with the request's fields.
        session_id: The session that it is about, where there is one to go on with.
        turn_id: The turn that it is about.
        request: What was asked of a human, where that is over.
        refused: Whether nothing was begun.
        headers: Further headers of the answer.
    """

    code: str
    detail: str
    retry_after: float | None = None
    errors: tuple[FieldError, ...] = ()
    session_id: str | None = None
    turn_id: str | None = None
    request: Mapping[str, object] | None = None
    refused: bool = False
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def status(self) -> int:
        """Its HTTP status."""
        kind = KINDS[self.code]
        return kind.refused if self.refused and kind.refused is not None else kind.status

    def body(self) -> dict[str, object]:
        """Return what is answered; optional members only where they say something."""
        optional: dict[str, object] = {
            "retry_after": self.retry_after,
            "errors": [
                {"field": _cut(one.field, 200), "message": _cut(one.message, LONGEST_MESSAGE)}
                for one in self.errors[:MOST_ERRORS]
            ]
            or None,
            "session_id": self.session_id,
            "turn_id": self.turn_id,
            "request": self.request,
        }
        return {
            "detail": _cut(self.detail, LONGEST_DETAIL),
            "code": self.code,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def response(self) -> Response:
        """Return the answer."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        return Response(
            dump(self.body()), self.status, headers=headers, media_type="application/json"
        )


class ProblemError(Exception):
    """Raised where a request cannot be served, with what to answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class InvalidRequest(ProblemError):
    """The request's fields do not fit its model.

    Only reading a request raises it, so that a mistake of ours with another model is not taken for
    the caller's.
    """

    def __init__(self, errors: Iterable[FieldError]) -> None:
        found = tuple(errors)
        detail = "; ".join(
            f"{one.field}: {one.message}" if one.field else one.message for one in found
        )
        super().__init__(Problem(code="invalid_request", detail=detail, errors=found))


def refuse(
    code: str,
    detail: str,
    *,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> ProblemError:
    """Return an error to raise, one of `KINDS`.

    Args:
        code: Which.
        detail: What happened and what to do.
        retry_after: Seconds after which trying again makes sense.
        headers: Further headers of the answer.
    """
    return ProblemError(
        Problem(code=code, detail=detail, retry_after=retry_after, headers=headers or {})
    )


def problem_of(error: Exception) -> Problem | None:
    """Return how an error is answered; None for one that nobody foresaw."""
    match error:
        case ProblemError():
            return error.problem
        case InvalidSpec():
            fields = (FieldError(field=error.field, message=error.reason),)
            return Problem(code=_known(error.code), detail=str(error), errors=fields)
        case RequestOver():
            return Problem(
                code=_known(error.code),
                detail=str(error),
                request=reply_of(error.request).model_dump(mode="json"),
            )
        case Refused():
            return Problem(
                code=_known(error.code),
                detail=str(error),
                retry_after=error.retry_after,
                refused=True,
            )
        case Spoiled():
            return Problem(code="session_spoiled", detail=str(error))
        case StoreError():
            refused = Unavailable()
            return Problem(code=refused.code, detail=str(refused), retry_after=refused.retry_after)
        case HTTPException():
            # From an embedder's `authenticate`, which may refuse as its framework does.
            refusal = REFUSALS.get(error.status_code)
            if refusal is None:
                return None
            return Problem(code=refusal, detail=str(error.detail), headers=error.headers or {})
        case TurnFailed():
            failure = error.failure
            retry_after = failure.retry_after
            if retry_after is None and failure.code is FailureCode.DRAINED:
                retry_after = 5.0
            return Problem(
                code=failure.code.value,
                detail=failure.message,
                retry_after=retry_after,
                session_id=error.session_id,
                turn_id=error.turn_id,
            )
        case _:
            return None


def unforeseen(request_id: str) -> Problem:
    """Return the answer to a failure that nobody foresaw; only the log has its traceback."""
    return Problem(
        code=FailureCode.INTERNAL.value,
        detail=f"The server made a mistake. Its log says more under request id {request_id}.",
    )


def invalid(
    error: ValidationError,
    known: Iterable[str],
    elsewhere: Mapping[str, str] = MappingProxyType({}),
) -> InvalidRequest:
    """Return what a model's validation found, in the words of the API.

    Args:
        error: From validating a request.
        known: Names of the fields that there are.
        elsewhere: What to do instead of giving another, by its name.
    """
    names = ", ".join(known) or "none"
    found = error.errors(include_url=False)
    # A field may be of several types: what counts is what is wrong with the one that was meant.
    meant = [one for one in found if not _is_of_another_type(one)]
    places = [_place(one) for one in meant]
    for one in found:
        if one not in meant and not any(place.startswith(_place(one)) for place in places):
            meant.append(one)
    return InvalidRequest(_field_error(one, names, elsewhere) for one in meant)


_TYPE = re.compile(r"constrained-str|(?:tuple|dict)\[.+\]")
"""How the validation calls a type, where a field may be of several."""


def _is_of_another_type(error: ErrorDetails) -> bool:
    place = error["loc"]
    return error["type"].endswith("_type") and bool(place) and _is_type(place, len(place) - 1)


def _is_type(place: tuple[int | str, ...], at: int) -> bool:
    part = place[at]
    if isinstance(part, int) or at == 0:
        return False
    return _TYPE.fullmatch(part) is not None or place[: at + 1] == ("remember", "bool")


def _place(error: ErrorDetails) -> str:
    """Return the name of a field, with dots and indices, and without types."""
    name = ""
    for at, part in enumerate(error["loc"]):
        if isinstance(part, int):
            name += f"[{part}]"
        elif not _is_type(error["loc"], at):
            name += f".{part}" if name else part
    return name


def _field_error(error: ErrorDetails, known: str, elsewhere: Mapping[str, str]) -> FieldError:
    name = _place(error)
    match error["type"]:
        case "extra_forbidden":
            # Within another field, the names that there are are others.
            there_are = f"; there are: {known}" if len(error["loc"]) == 1 else ""
            message = elsewhere.get(name, f"unknown field{there_are}")
        case "missing":
            message = "is required"
        case "value_error":
            message = str(error.get("ctx", {}).get("error", error["msg"]))
        case "model_type" | "model_attributes_type" | "dict_type":
            message = "must be a JSON object" if name else "the body must be a JSON object"
        case "too_long" | "too_short":
            limits, least = error.get("ctx", {}), error["type"] == "too_short"
            count = limits["min_length"] if least else limits["max_length"]
            unit = "characters" if isinstance(error["input"], str) else "items"
            message = f"must have at {'least' if least else 'most'} {count} {unit}"
        case _:
            message = error["msg"][:1].lower() + error["msg"][1:]
    return FieldError(field=name, message=message)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _known(code: str) -> str:
    # A refusal that the table does not have is a mistake of ours, and must not become a KeyError.
    return code if code in KINDS else FailureCode.INTERNAL.value
