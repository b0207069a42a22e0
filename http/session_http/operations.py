"""The API as one table: every operation once, with what it takes, gives and refuses.

The routes (`app`) and the description (`openapi`) are both made from `OPERATIONS`, and the
models in it are the ones that validate, so neither can say anything that the server does not do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from session_http import asking, browsing, handlers, steering
from session_http.asked import (
    AnswersRequest,
    DecisionRequest,
    PendingParameters,
    PermissionReply,
    PermissionsReply,
    QuestionReply,
    QuestionsReply,
)
from session_http.call import Answer, Call
from session_http.keyfile import Role
from session_http.problems import TURN_CODES
from session_http.reading import Source, read_model
from session_http.schemas import (
    CloseReply,
    CompactReply,
    CompactRequest,
    EventReply,
    EventsParameters,
    FilesParameters,
    FilesReply,
    ForkReply,
    ForkRequest,
    Health,
    Index,
    InspectReply,
    InterruptReply,
    InterruptRequest,
    MessagesParameters,
    MessagesReply,
    NoParameters,
    PatchRequest,
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
    WithdrawReply,
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
        downloads: Whether it answers with a file of a session's.
        begins: Whether it begins work, so that a retry needs a key to begin it only once.
        waits: Whether it waits for a turn, unless the caller asks it not to.
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
    downloads: bool
    begins: bool
    waits: bool
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
    downloads: bool = False,
    begins: bool = False,
    waits: bool = False,
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
        downloads=downloads,
        begins=begins,
        waits=waits,
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
HUMANS = "Permissions and questions"
FILES = "Files"

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
_FINDS_REQUEST = ("request_not_found", *_FINDS_SESSION)
_DECIDES = ("request_over", "session_failed", "store_unavailable", *_FINDS_REQUEST, *_TELLS_SESSION)

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
        waits=True,
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
        waits=True,
        summary="Start a new conversation session",
        notes="If the first message fails, the session is closed again and the failure answered; "
        "not so with `wait=false`.",
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
        waits=True,
        summary="Continue a conversation",
        notes="Claude remembers the session's earlier messages. While another turn runs, this one "
        "waits for it, unless `on_busy` says otherwise.",
        refuses=("too_many_streams", "session_failed", "busy", *_TELLS_SESSION, *_STARTS_WORK),
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
        steering.get_session,
        takes=NoParameters,
        gives=SessionReply,
        tag=SESSIONS,
        summary="Get session information",
        refuses=_FINDS_SESSION,
    ),
    operation(
        "PATCH",
        "/session/{session_id}",
        steering.patch_session,
        takes=PatchRequest,
        source=Source.BODY,
        gives=SessionReply,
        tag=SESSIONS,
        summary="Change a session's model, permission mode, title or metadata",
        notes="In force from the next request to the model on, also in a turn that runs. Where a "
        "live process cannot change it, the session gets another process when it rests.",
        refuses=("not_allowed", "session_failed", "store_unavailable", *_TELLS_SESSION),
        role="user",
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
        "/session/{session_id}/fork",
        steering.fork,
        takes=ForkRequest,
        source=Source.OPTIONAL_BODY,
        gives=ForkReply,
        tag=SESSIONS,
        begins=True,
        summary="Begin another session with the same context",
        notes="The original is untouched. It must be at rest, and have had a turn.",
        answered="There is another session.",
        refuses=(
            "busy",
            "nothing_to_fork",
            "turn_not_found",
            "session_closed",
            "at_capacity",
            "no_workspace",
            "quota_exceeded",
            "draining",
            "store_unavailable",
            "idempotency_conflict",
            *_FINDS_SESSION,
        ),
        role="user",
    ),
    operation(
        "POST",
        "/session/{session_id}/restart",
        steering.restart,
        takes=NoParameters,
        gives=RestReply,
        tag=SESSIONS,
        summary="Try again with a session that failed",
        notes="It goes on with its context and the turns that wait. Answers at once, with the "
        "state that follows.",
        refuses=(
            "not_failed",
            "at_capacity",
            "quota_exceeded",
            "draining",
            "store_unavailable",
            *_TELLS_SESSION,
        ),
        role="user",
    ),
    operation(
        "POST",
        "/session/{session_id}/compact",
        steering.compact,
        takes=CompactRequest,
        source=Source.OPTIONAL_BODY,
        gives=CompactReply,
        tag=SESSIONS,
        begins=True,
        waits=True,
        summary="Have the conversation summed up, so that there is room for more",
        notes="A turn like any other: it waits for those before it, and costs.",
        refuses=("session_failed", *_TELLS_SESSION, *_STARTS_WORK),
        role="user",
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
        "DELETE",
        "/session/{session_id}/turns/{turn_id}",
        steering.withdraw,
        takes=NoParameters,
        gives=WithdrawReply,
        tag=TURNS,
        summary="Take out a turn that waits",
        notes="One that runs is interrupted instead, by `POST /session/{session_id}/interrupt`.",
        answered="It never ran, and ended as interrupted.",
        refuses=("turn_not_found", "not_queued", "store_unavailable", *_TELLS_SESSION),
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/files",
        browsing.list_files,
        takes=FilesParameters,
        gives=FilesReply,
        tag=FILES,
        summary="List what a session has made in its private directory",
        notes="Directories with all that is in them, those higher up first. The directory goes "
        "with the session; one that its caller chose is not listed.",
        refuses=("file_not_found", "no_private_files", "session_closed", *_FINDS_SESSION),
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/files/{path}",
        browsing.get_file,
        takes=NoParameters,
        tag=FILES,
        summary="Download a file that a session has made",
        notes="As it is at the moment. No symbolic link is followed.",
        answered="The file.",
        downloads=True,
        refuses=(
            "file_not_found",
            "no_private_files",
            "range_not_satisfiable",
            "session_closed",
            *_FINDS_SESSION,
        ),
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/permissions",
        asking.list_permissions,
        takes=PendingParameters,
        gives=PermissionsReply,
        tag=HUMANS,
        summary="List tool calls that need a permission",
        refuses=_FINDS_SESSION,
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/permissions/{request_id}",
        asking.get_permission,
        takes=NoParameters,
        gives=PermissionReply,
        tag=HUMANS,
        summary="Look up a permission request, waiting or over",
        refuses=_FINDS_REQUEST,
        role="user",
    ),
    operation(
        "POST",
        "/session/{session_id}/permissions/{request_id}",
        asking.decide_permission,
        takes=DecisionRequest,
        source=Source.BODY,
        gives=PermissionReply,
        tag=HUMANS,
        summary="Allow a tool call, or do not",
        notes="Answered once. The second answer is a 409 that shows the first.",
        answered="The decision is stored, and the agent told.",
        refuses=_DECIDES,
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/questions",
        asking.list_questions,
        takes=PendingParameters,
        gives=QuestionsReply,
        tag=HUMANS,
        summary="List what the agent wants to know",
        refuses=_FINDS_SESSION,
        role="user",
    ),
    operation(
        "GET",
        "/session/{session_id}/questions/{request_id}",
        asking.get_question,
        takes=NoParameters,
        gives=QuestionReply,
        tag=HUMANS,
        summary="Look up a question, waiting or over",
        refuses=_FINDS_REQUEST,
        role="user",
    ),
    operation(
        "POST",
        "/session/{session_id}/questions/{request_id}",
        asking.answer_question,
        takes=AnswersRequest,
        source=Source.BODY,
        gives=QuestionReply,
        tag=HUMANS,
        summary="Answer a question",
        notes="Answered once. The second answer is a 409 that shows the first.",
        answered="The answer is stored, and the agent told.",
        refuses=_DECIDES,
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
        "/session/{session_id}/events/{event_id}",
        handlers.get_event,
        takes=NoParameters,
        gives=EventReply,
        tag=TURNS,
        summary="Look up one event, whole",
        notes="Streams cut what tools were given and gave back where it is long: there the event "
        "says `truncated`, and names this path in `full`.",
        refuses=("event_not_found", *_FINDS_SESSION),
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
