"""What a handler is given and what it gives back; nothing of it knows ASGI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pydantic import BaseModel

from session_http.credentials import Credentials
from session_http.downloads import Download
from session_http.keys import Principal
from session_http.pages import Pages
from session_http.problems import FieldError, InvalidRequest
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
        query: The parameters in the address, of a request that has a body.
        idempotency_key: The header `Idempotency-Key`, as it was sent.
        if_none_match: The header `If-None-Match`, as it was sent.
        timing: What took how many milliseconds, by name; goes out as `Server-Timing`.
    """

    server: Server
    principal: Principal
    path: Mapping[str, str]
    root_path: str = ""
    last_event_id: str | None = None
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    idempotency_key: str | None = None
    if_none_match: str | None = None
    timing: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def owner(self) -> str:
        """Whose sessions it is about."""
        return self.principal.owner

    @property
    def after_field(self) -> str:
        """What says behind which event to go on."""
        return "Last-Event-ID" if self.last_event_id else "after"

    @property
    def after(self) -> int | None:
        """Behind which event to go on; None: it does not say.

        Raises:
            InvalidRequest: It cannot be the id of an event.
        """
        # An empty one is what a browser sends before it has had any event.
        given = self.last_event_id or self.query.get("after")
        if given is None:
            return None
        if not (given.isascii() and given.isdigit() and len(given) < 20):
            problem = "must be the id of an event that was sent"
            raise InvalidRequest([FieldError(field=self.after_field, message=problem)])
        return int(given)

    @property
    def waits(self) -> bool:
        """Whether the caller waits for the end of what it begins.

        Raises:
            InvalidRequest: `wait` is neither true nor false.
        """
        given = self.query.get("wait", "true")
        if given not in ("true", "false"):
            raise InvalidRequest([FieldError(field="wait", message="must be `true` or `false`")])
        return given == "true"


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


Answer: TypeAlias = BaseModel | EventStream | Download | Page | Nothing
"""What a handler gives back."""
