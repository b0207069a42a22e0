"""What a failed result of the CLI means: one table from its words to ours.

The CLI says why a turn failed in four places that overlap: `terminal_reason`, the name of the last
API error, the HTTP status, and prose. `subtype` says nothing: an API error is a "success".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from session_supervisor.errors import Failure, FailureCode
from session_supervisor.spec import JsonObject


@dataclass(frozen=True, slots=True)
class _Meaning:
    code: FailureCode
    message: str
    retryable: bool = False


_RATE_LIMITED = _Meaning(
    FailureCode.RATE_LIMITED, "The rate limit of the Claude account is used up. Wait.", True
)
_OVERLOADED = _Meaning(
    FailureCode.OVERLOADED, "The Claude API is overloaded. Try again in a moment.", True
)
_UPSTREAM = _Meaning(
    FailureCode.UPSTREAM_ERROR,
    "The Claude API failed or could not be reached. Try again in a moment.",
    True,
)
_AUTHENTICATION = _Meaning(
    FailureCode.AUTHENTICATION_FAILED,
    "The Claude API did not accept the server's credential. Its operator must check the API key "
    "or log in again.",
)
_BILLING = _Meaning(
    FailureCode.BILLING,
    "The Claude account cannot be charged. Its owner must check the plan and the credit.",
)
_INVALID = _Meaning(
    FailureCode.UPSTREAM_REFUSED, "The Claude API refused the request as it was made."
)
_MODEL = _Meaning(
    FailureCode.MODEL_NOT_FOUND,
    "The model does not exist, or the Claude account may not use it. Name another.",
)
_CONTEXT = _Meaning(
    FailureCode.CONTEXT_FULL,
    "The conversation is longer than the model can read. Start a new session.",
)
_TOO_LARGE = _Meaning(
    FailureCode.CONTEXT_FULL,
    "The conversation, with all its images and files, is larger than the Claude API takes. Start a "
    "new session.",
)
_REFUSED = _Meaning(
    FailureCode.REFUSED,
    "The model's safeguards stopped the answer. Ask differently, or in a new session.",
)
_TOO_LONG = _Meaning(
    FailureCode.UPSTREAM_ERROR,
    "The answer grew longer than the model may write at once. Ask for less.",
)
_NO_OUTPUT = _Meaning(
    FailureCode.NO_STRUCTURED_OUTPUT,
    "The model gave no answer of the form that output_schema asks for. Ask again, or for something "
    "simpler.",
    True,
)
_UNKNOWN = _Meaning(FailureCode.INTERNAL, "Claude Code gave the turn up.", True)

_BY_REASON = {
    "max_turns": _Meaning(
        FailureCode.MAX_TURNS,
        "The turn took more model round trips than its limit allows. Raise max_turns, or go on "
        "with another query.",
    ),
    "budget_exhausted": _Meaning(
        FailureCode.BUDGET, "The session's budget is used up. Start another with a larger one."
    ),
    "structured_output_retry_exhausted": _NO_OUTPUT,
    "prompt_too_long": _CONTEXT,
    "image_error": _Meaning(
        FailureCode.UPSTREAM_REFUSED,
        "An image is larger than the Claude API takes, or of a kind that it does not.",
    ),
}

_BY_STATUS = {
    400: _INVALID,
    401: _AUTHENTICATION,
    402: _BILLING,
    403: _AUTHENTICATION,
    404: _MODEL,
    422: _INVALID,
    429: _RATE_LIMITED,
    529: _OVERLOADED,
}

_BY_NAME = {
    "rate_limit": _RATE_LIMITED,
    "overloaded": _OVERLOADED,
    "server_error": _UPSTREAM,
    "authentication_failed": _AUTHENTICATION,
    "cloud_credential_error": _AUTHENTICATION,
    "oauth_org_not_allowed": _AUTHENTICATION,
    "billing_error": _BILLING,
    "model_not_found": _MODEL,
    "invalid_request": _INVALID,
    "max_output_tokens": _TOO_LONG,
}

NO_OUTPUT = Failure(code=_NO_OUTPUT.code, message=_NO_OUTPUT.message, retryable=True)
"""Why a turn has failed that went well otherwise."""

_PROSE = 500
"""Characters of the upstream's prose that go into a message."""


def failure_of(
    result: JsonObject, *, api_error: str | None = None, retry_after: float | None = None
) -> Failure:
    """Say why a result that is an error is one.

    Args:
        result: The `result` frame.
        api_error: Name of the API error that the turn met last, if it met one.
        retry_after: Seconds until the rate limit is lifted, if that was said.
    """
    prose = prose_of(result)
    meaning, cause = _meaning(result, api_error, prose)
    failure = Failure(
        code=meaning.code,
        message=f"{meaning.message} ({prose})" if prose else meaning.message,
        retryable=meaning.retryable,
        cause=cause,
    )
    if meaning.code is FailureCode.RATE_LIMITED and retry_after is not None:
        return replace(failure, retry_after=retry_after)
    return failure


def _meaning(result: JsonObject, api_error: str | None, prose: str) -> tuple[_Meaning, str | None]:
    # The CLI gives this the same reason as one bad image; but it is the whole that is too large.
    if result.get("api_error_status") == 413:
        return _TOO_LARGE, "http_413"
    reason = result.get("terminal_reason")
    if isinstance(reason, str) and reason in _BY_REASON:
        return _BY_REASON[reason], reason
    if result.get("stop_reason") == "refusal":
        return _REFUSED, "refusal"
    # The CLI has one name for an answer that is too long and a conversation that is.
    if api_error == "max_output_tokens" and "context window" in prose:
        return _CONTEXT, "model_context_window_exceeded"
    # A billing error comes as a 400, and is more than that.
    if api_error == "billing_error":
        return _BILLING, api_error
    status = result.get("api_error_status")
    if isinstance(status, int):
        known = _BY_STATUS.get(status)
        if known is None:
            known = _UPSTREAM if status >= 500 else _INVALID
        return known, f"http_{status}"
    if api_error is not None:
        return _BY_NAME.get(api_error, _UPSTREAM), api_error
    subtype = result.get("subtype")
    return _UNKNOWN, subtype if isinstance(subtype, str) else None


def prose_of(result: JsonObject) -> str:
    """Return what a `result` frame says in words, shortened."""
    errors = result.get("errors")
    text = result.get("result")
    if isinstance(errors, list) and errors:
        text = "; ".join(error for error in errors if isinstance(error, str))
    return " ".join(text.split())[:_PROSE] if isinstance(text, str) else ""
