"""The API as one table: every operation once, with what it takes, gives and refuses.

The routes (`app`) and the description (`openapi`) are both made from `OPERATIONS`, and the
models in it are the ones that validate, so neither can say anything that the server does not do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from session_http import handlers
from session_http.call import Answer, Call
from session_http.keyfile import Role
from session_http.problems import TURN_CODES
from session_http.reading import Source, read_model
from session_http.schemas import (
    CloseReply,
    EventsParameters,
    Health,
    Index,
    InspectReply,
    InterruptReply,
    InterruptRequest,
    MessagesParameters,
    MessagesReply,
    NoParameters,
    QueryReply,
    QueryRequest,
    Ready,
    RestReply,
    SessionQueryReply,
    SessionQueryRequest,
    SessionReply,
    SessionsParameters,
    SessionsReply,
    StartReply,
    StartRequest,
    SupervisorReply,
    TurnReply,
    TurnsReply,
)
from session_http.settings import OpenPaths

Run = Callable[[Call, bytes], Awaitable[Answer]]
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One row of the table.

    Attributes:
        method: Of HTTP.
        path: With parameters in braces.
        name: Unique; the description's `operationId`.
        summary: What it is for, in a line.
        notes: More about it.
        tag: The chapter of the description that it stands in.
        takes: The model of its body or, without one, of its query string.
        source: Where the model is read from.
        gives: The model of its answer; None for a page or a stream.
        answered: What 200 means.
        streams: Whether it answers, or can answer, with Server-Sent Events.
        begins: Whether it begins work, so that a retry needs a key to begin it only once.
        refuses: Codes that it can answer with, besides those that any operation can.
        described: Whether the description has it.
        open: Among which paths it is that may be open to callers without a key; None: none.
        role: What the caller must be; None: any caller.
        run: Reads the model from the raw body or query string and carries the operation out.
    """

    method: str
    path: str
    name: str
    summary: str
    notes: str
    tag: str
    takes: type[BaseModel]
    source: Source
    gives: type[BaseModel] | None
    answered: str
    streams: bool
    begins: bool
    refuses: tuple[str, ...]
    described: bool
    open: OpenPaths | None
    role: Role | None
    run: Run


def operation(
    method: str,
    path: str,
    handler: Callable[[Call, M], Awaitable[Answer]],
    *,
    takes: type[M],
    source: Source = Source.QUERY,
    gives: type[BaseModel] | None = None,
    summary: str,
    notes: str = "",
    tag: str = "Documentation",
    answered: str = "Success.",
    streams: bool = False,
    begins: bool = False,
    refuses: tuple[str, ...] = (),
    described: bool = True,
    open: OpenPaths | None = None,  # noqa: A002  # as the row calls it
    role: Role | None = None,
) -> Operation:
    """Return a row; see `Operation`."""

    async def run(call: Call, raw: bytes) -> Answer:
        return await handler(call, read_model(takes, raw, source))

    return Operation(
        method=method,
        path=path,
        name=handler.__name__,
        summary=summary,
        notes=notes,
        tag=tag,
        takes=takes,
        source=source,
        gives=gives,
        answered=answered,
        streams=streams,
        begins=begins,
        refuses=refuses,
        described=described,
        open=open,
        role=role,
        run=run,
    )


HEALTH = "Health and status"
ONE_OFF = "One-off queries"
SESSIONS = "Conversation sessions"
TURNS = "Turns and events"

_STARTS_WORK = (
    "not_authenticated",
    "draining",
    "quota_exceeded",
    "store_unavailable",
    "idempotency_conflict",
    *TURN_CODES,
)
_STARTS_SESSION = ("at_capacity", "no_workspace", "not_allowed", *_STARTS_WORK)
_FINDS_SESSION = ("session_not_found", "session_spoiled")
_READS_SESSION = ("store_unavailable", *_FINDS_SESSION)
_TELLS_SESSION = (*_FINDS_SESSION, "session_closed", "queue_full")

OPERATIONS: tuple[Operation, ...] = (
    operation(
        "GET",
        "/health",
        handlers.health,
        takes=NoParameters,
        gives=Health,
        tag=HEALTH,
        summary="Check server health and authentication status",
        answered="The server is healthy.",
        open="health",
    ),
    operation(
        "GET",
        "/ready",
        handlers.ready,
        takes=NoParameters,
        gives=Ready,
        tag=HEALTH,
        summary="Check whether the server takes new work",
        answered="It does.",
        refuses=("draining", "at_capacity", "not_authenticated"),
        open="health",
    ),
    operation(
        "GET",
        "/",
        handlers.index,
        takes=NoParameters,
        gives=Index,
        tag=HEALTH,
        summary="Get API information and available endpoints",
        open="docs",
    ),
    operation(
        "POST",
        "/query",
        handlers.query,
        takes=QueryRequest,
        source=Source.BODY,
        gives=QueryReply,
        tag=ONE_OFF,
        streams=True,
        begins=True,
        summary="Send a single query to Claude without conversation history",
        notes="The turn has a session of its own, which is neither listed nor counted; it stays "
        "readable under the ids in the answer for a while.",
        refuses=("too_many_streams", *_STARTS_SESSION),
        role="user",
    ),
    operation(
        "POST",
        "/session/start",
        handlers.start,
        takes=StartRequest,
        source=Source.OPTIONAL_BODY,
        gives=StartReply,
        tag=SESSIONS,
        begins=True,
        summary="Start a new conversation session",
        notes="If the first message fails, the session is closed again and the failure answered.",
        answered="Session started.",
        refuses=_STARTS_SESSION,
        role="user",
    ),
    operation(
        "POST",
        "/session/{session_id}/query",
        handlers.session_query,
        takes=SessionQueryRequest,
        source=Source.BODY,
        gives=SessionQueryReply,
        tag=SESSIONS,
        streams=True,
        begins=True,
        summary="Continue a conversation",
        notes="Claude remembers the session's earlier messages. While another turn runs, this one "
        "waits for it.",
        refuses=("too_many_streams", "session_failed", *_TELLS_SESSION, *_STARTS_WORK),
        role="user",
    ),
    operation(
        "POST",
        "/session/{session_id}/interrupt",
        handlers.interrupt,
        takes=InterruptRequest,
        source=Source.OPTIONAL_BODY,
        gives=InterruptReply,
        tag=SESSIONS,
        summary="Interrupt the current task in a session",
        notes="Answers once the turn's end can be seen. The interrupted request answers 200 with "
        'the text until then and `"outcome": "interrupted"`.',
        answered="The session has come to rest, also if nothing ran; `outcome` says which.",
        refuses=("turn_not_found", *_TELLS_SESSION),
    ),
    operation(
        "GET",
        "/session/{session_id}",
        handlers.get_session,
        takes=NoParameters,
        gives=SessionReply,
        tag=SESSIONS,
        summary="Get session information",
        refuses=_FINDS_SESSION,
    ),
    operation(
        "DELETE",
        "/session/{session_id}",
        handlers.close,
        takes=NoParameters,
        gives=CloseReply,
        tag=SESSIONS,
        summary="Close and clean up a session",
        notes="Answers when the process and all that it started are gone, and says how it ended.",
        answered="Session closed; from now on it is a 404.",
        refuses=_FINDS_SESSION,
    ),
    operation(
        "POST",
        "/session/{session_id}/wake",
        handlers.wake,
        takes=NoParameters,
        gives=RestReply,
        tag=SESSIONS,
        summary="Have a session get its process back before it is needed",
        notes="A hint: a query wakes the session as well. Answers at once.",
        refuses=_TELLS_SESSION,
        role="user",
    ),
    operation(
        "POST",
        "/session/{session_id}/hibernate",
        handlers.hibernate,
        takes=NoParameters,
        gives=RestReply,
        tag=SESSIONS,
        summary="Have a session give up its process, if that has nothing to do",
        notes="It wakes by itself, with its context. Answers at once, with the state that follows.",
        refuses=_TELLS_SESSION,
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/inspect",
        handlers.inspect,
        takes=NoParameters,
        gives=InspectReply,
        tag=SESSIONS,
        summary="Look what a session is doing, also in the middle of a turn",
        refuses=(*_FINDS_SESSION, "queue_full"),
    ),
    operation(
        "GET",
        "/sessions",
        handlers.list_sessions,
        takes=SessionsParameters,
        gives=SessionsReply,
        tag=SESSIONS,
        summary="List all active sessions",
        notes="The caller's own, or with the role `admin` those of another owner. All of them, or "
        "with `limit` some at a time.",
        refuses=("not_allowed",),
    ),
    operation(
        "GET",
        "/supervisor",
        handlers.supervisor_tree,
        takes=NoParameters,
        gives=SupervisorReply,
        tag=HEALTH,
        summary="Look at all sessions and processes",
        role="admin",
    ),
    operation(
        "GET",
        "/session/{session_id}/messages",
        handlers.list_messages,
        takes=MessagesParameters,
        gives=MessagesReply,
        tag=TURNS,
        summary="Read the transcript of a session, some messages at a time",
        notes="What the model was told, and what it said, in this order. The answer of a turn that "
        "runs is there once it has ended; a prompt that waits, once its turn comes.",
        refuses=_READS_SESSION,
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/turns",
        handlers.list_turns,
        takes=NoParameters,
        gives=TurnsReply,
        tag=TURNS,
        summary="List a session's turns",
        refuses=_READS_SESSION,
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/turns/{turn_id}",
        handlers.get_turn,
        takes=NoParameters,
        gives=TurnReply,
        tag=TURNS,
        summary="Look up a turn, running or ended",
        notes="A client that timed out or went away loses nothing: the turn goes on, and its "
        "answer is here.",
        refuses=("turn_not_found", *_READS_SESSION),
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/events",
        handlers.session_events,
        takes=EventsParameters,
        tag=TURNS,
        streams=True,
        summary="Stream everything that a session says",
        notes="From the beginning, or from where `after` or the header `Last-Event-ID` says, with "
        "no gap and no duplicate, until the session ends. 204 if it has, and nothing is left.",
        answered="The session's events.",
        refuses=("too_many_streams", *_READS_SESSION),
        role="user",
    ),
    operation(
        "GET",
        "/docs",
        handlers.docs,
        takes=NoParameters,
        summary="The API in Swagger UI",
        described=False,
        open="docs",
    ),
    operation(
        "GET",
        "/redoc",
        handlers.redoc,
        takes=NoParameters,
        summary="The API in ReDoc",
        described=False,
        open="docs",
    ),
    operation(
        "GET",
        "/openapi.json",
        handlers.openapi,
        takes=NoParameters,
        summary="The description of the API",
        described=False,
        open="docs",
    ),
    operation(
        "GET",
        "/assets/{name}",
        handlers.asset,
        takes=NoParameters,
        summary="A file that the documentation loads",
        refuses=("not_found",),
        described=False,
        open="docs",
    ),
)
"""Every operation. Paths without parameters stand before those that would match them too."""

ENDPOINTS: tuple[str, ...] = tuple(
    dict.fromkeys(row.path for row in OPERATIONS if not row.path.startswith("/assets/"))
)
"""Every path of the API."""
