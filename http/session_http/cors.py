"""Which pages of other sites may use the server from a browser: none, unless the operator says so.

Starlette's middleware does it; it passes events on one by one as they come. What it refuses becomes
the answer that every other refusal is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from session_http.problems import Problem

REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "X-API-Key",
    "X-Request-Id",
)
RESPONSE_HEADERS = (
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Retry-After",
    "Server-Timing",
    "WWW-Authenticate",
    "X-Request-Id",
)
"""What pages may send and see, besides what any may."""

PREFLIGHT_S = 600
"""Seconds for which a browser may remember what it was told."""


class Cors(CORSMiddleware):
    """Answers preflights, and says in every answer whether a page may see it.

    `App` calls its parts, so that refusals and preflights get what every other answer does.

    Args:
        app: What to serve.
        origins: Whose pages may use it, as browsers write them, or `*`.
        methods: What there is.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str], methods: Iterable[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=tuple(sorted({*methods, "HEAD", "OPTIONS"})),
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
            allow_private_network=True,
            max_age=PREFLIGHT_S,
        )

    def is_preflight(self, method: str, headers: Headers) -> bool:
        """Whether a browser asks with this what a page may do."""
        return (
            method == "OPTIONS"
            and "origin" in headers
            and "access-control-request-method" in headers
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return what the browser is told, without any key: it may not send one yet."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        refusal = Problem(
            code="untrusted_origin",
            detail=f"{bytes(response.body).decode()}. The operator can allow the page's origin.",
        ).response()
        refusal.headers["vary"] = response.headers["vary"]
        return refusal
