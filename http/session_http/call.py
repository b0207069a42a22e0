"""What a handler is given and what it gives back; nothing of it knows ASGI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pydantic import BaseModel

from session_http.credentials import Credentials
from session_http.keys import Principal
from session_http.pages import Pages
from session_http.settings import HttpSettings
from session_http.sse import EventStream, Streams
from session_supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What all requests to one application share.

    Attributes:
        supervisor: The sessions.
        credentials: Whether they can reach the model.
        settings: Limits and policies.
        streams: The open streams.
        pages: The documentation.
        endpoints: Every path of the API.
        describe: Gives the description of the API, JSON.
    """

    supervisor: Supervisor
    credentials: Credentials
    settings: HttpSettings
    streams: Streams
    pages: Pages
    endpoints: tuple[str, ...]
    describe: Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, less its body.

    Attributes:
        server: What it is made to.
        principal: Who makes it.
        path: The parameters in its path, by name.
        root_path: Where the API is mounted; empty at the root.
        last_event_id: The header `Last-Event-ID`, as it was sent.
        if_none_match: The header `If-None-Match`, as it was sent.
        timing: What took how many milliseconds, by name; goes out as `Server-Timing`.
    """

    server: Server
    principal: Principal
    path: Mapping[str, str]
    root_path: str = ""
    last_event_id: str | None = None
    if_none_match: str | None = None
    timing: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def owner(self) -> str:
        """Whose sessions it is about."""
        return self.principal.owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer that is no JSON of ours: a page, or a file of one.

    Attributes:
        content: The bytes.
        media_type: What they are.
        etag: Changes whenever they do.
    """

    content: bytes
    media_type: str
    etag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """An answer without content, which also tells a browser's `EventSource` to stop."""


Answer: TypeAlias = BaseModel | EventStream | Page | Nothing
"""What a handler gives back."""
