"""The REST and SSE server on top of `session_supervisor`.

`session_http.app.create_app(supervisor)` gives a plain ASGI application for any server, to be
mounted in another application if need be; `session_http.serve` runs one, and the command
`session-supervisor serve` is all of it together.
"""

from __future__ import annotations

from importlib import metadata

TITLE = "Claude Session Supervisor"
"""What the API calls itself."""


def version() -> str:
    """Return the version of the distribution; `0` where it runs without being installed."""
    try:
        return metadata.version("claude-session-supervisor")
    except metadata.PackageNotFoundError:
        return "0"
