"""What the server offers applications beyond ASGI; on any other, they do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

WRITE_NOW = "session_http.write_now"
"""Name of an extension in a request's scope: a `WriteNow`, for the answer to that request."""

WriteNow: TypeAlias = Callable[[bytes], bool]
"""Takes a piece of a body, as `send` does, and returns whether it went out; it does not wait.

It does not while the client has not read all that was before, or if the answer has not begun, is
over, or is not of a kind for which this can be done: then the piece is for `send`. Whoever uses it
sees to it that no `send` is under way."""
