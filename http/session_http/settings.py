"""What can be set about the HTTP layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from session_http.sse import StreamSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """Limits and policies of one application.

    Attributes:
        default_model: What a session that names no model says it has.
        max_body_bytes: Longest request body.
        body_timeout_s: Seconds in which a request's body must have arrived.
        trusted_hosts: Host names by which the server may be addressed; None: any. A browser can
            be led to send requests to this machine by any page that it shows, and then names that
            page's host: where nobody needs a key, only these names are served.
        streams: How Server-Sent Events are sent.
    """

    default_model: str = "default"
    max_body_bytes: int = 10 * 2**20
    body_timeout_s: float = 60.0
    trusted_hosts: frozenset[str] | None = None
    streams: StreamSettings = field(default_factory=StreamSettings)
