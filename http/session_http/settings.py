"""What can be set about the HTTP layer."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from session_http.attachments import AttachmentLimits
from session_http.sse import StreamSettings

OpenPaths: TypeAlias = Literal["health", "docs"]
"""Paths that may be open to callers without a key: `/health` and `/ready`; `/`, `/docs`, `/redoc`,
`/openapi.json` and what the pages load."""

MAX_TOOL_OUTPUT_BYTES = 16 * 2**10

OPEN_PATHS: frozenset[OpenPaths] = frozenset({"health", "docs"})


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
        cwd_root: Directory below which callers may choose where a session works; `{owner}` in it
            stands for the session's owner. None: they may not.
        open_paths: What callers without a key may look at, where the others need one.
        cors_origins: Origins (`https://app.example`) whose pages may use the server from a browser,
            or `*` for all, which is for servers with keys only; empty: none.
        attachments: What may go with a prompt.
        streams: How Server-Sent Events are sent.
    """

    default_model: str = "default"
    max_body_bytes: int = 10 * 2**20
    body_timeout_s: float = 60.0
    trusted_hosts: frozenset[str] | None = None
    open_paths: frozenset[OpenPaths] = OPEN_PATHS
    cors_origins: frozenset[str] = frozenset()
    cwd_root: str | os.PathLike[str] | None = None
    attachments: AttachmentLimits = field(default_factory=AttachmentLimits)
    streams: StreamSettings = field(
        default_factory=lambda: StreamSettings(max_tool_output_bytes=MAX_TOOL_OUTPUT_BYTES)
    )
