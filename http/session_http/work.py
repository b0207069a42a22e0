"""What requests that begin work have in common: who may, with which key, and what is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import BaseModel

from session_http import idempotency
from session_http.answerschema import check_size
from session_http.attachments import accepted
from session_http.call import Answer, Call, Nothing
from session_http.directories import resolve_cwd
from session_http.keys import ANONYMOUS
from session_http.problems import FieldError, InvalidRequest, Problem, ProblemError, refuse
from session_http.schemas import AcceptedReply, AttachmentRequest, QueryRequest, StartRequest
from session_http.sse import EventStream
from session_supervisor import ClaimKey, Cursor, Quota, Session, SessionSpec, TurnHandle, TurnResult
from session_supervisor.errors import Draining, InvalidSpec
from session_supervisor.spec import LOCAL_OWNER, Attachment


def looks_after(call: Call) -> str | None:
    """Return whose sessions the caller may look up and end; None: everybody's."""
    return None if "admin" in call.principal.roles else call.owner


def own_session(call: Call) -> Session:
    """Return a session whose conversation the caller may read and go on with.

    Raises:
        SessionNotFound: There is none, or it is somebody else's.
    """
    return found_session(call, call.owner)


def kept_session(call: Call) -> Session:
    """Return a session whose conversation the caller may read, also once it was closed.

    Raises:
        SessionNotFound: There is none, or it is somebody else's.
    """
    return call.server.supervisor.kept(call.path["session_id"], owner=call.owner)


def found_session(call: Call, owner: str | None) -> Session:
    """Return the session that the path names.

    Args:
        call: The request.
        owner: Whose it must be; None: anybody's.

    Raises:
        SessionNotFound: There is none, or it is somebody else's.
    """
    return call.server.supervisor.get(call.path["session_id"], owner=owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a request begins, or has begun before.

    Attributes:
        key: The caller's key for it.
        quota: What the caller may have at once.
        after: Behind which event its stream goes on; None: with its first.
        waits: Whether the caller waits for the end.
    """

    key: ClaimKey | None
    quota: Quota | None
    after: int | None
    waits: bool


async def work_of(
    call: Call, request: BaseModel, *, streams: bool = False, needs_model: bool = True
) -> Work:
    """Return what a request is to begin, if it may.

    Args:
        call: The request.
        request: What it asks.
        streams: Whether it wants a stream.
        needs_model: Whether the work cannot be done without the model.

    Raises:
        ProblemError: It may not.
    """
    waits = call.waits
    if streams and not waits:
        problem = "`false` means nothing with `stream`"
        raise InvalidRequest([FieldError(field="wait", message=problem)])
    key = idempotency.key_of(call, request)
    claimed = key is not None and await call.server.supervisor.claimed(key, owner=call.owner)
    after = idempotency.resume_after(call, key, streams=streams, claimed=claimed)
    if needs_model and not claimed:
        await require_credential(call)
    return Work(key=key, quota=call.principal.limits, after=after, waits=waits)


async def spec_of(call: Call, request: QueryRequest | StartRequest) -> SessionSpec:
    """Return what a request wants of its session.

    Raises:
        ProblemError: It is not possible, or not allowed.
    """
    cwd, schema = request.cwd, request.output_schema
    if schema is not None:
        check_size(schema)
    if cwd is not None:
        # In a thread: a file system that does not answer holds this request up, and no other.
        cwd = await asyncio.to_thread(resolve_cwd, call.server.settings.cwd_root, call.owner, cwd)
    return SessionSpec(
        model=request.model,
        cwd=cwd,
        allowed_tools=request.allowed_tools or None,
        permission_mode=request.permission_mode or "default",
        system_prompt=request.system_prompt,
        max_turns=request.max_turns,
        max_budget_usd=request.max_budget_usd,
        output_schema=None if schema is None else dict(schema),
        mcp_servers=request.mcp_servers or (),
        thinking=request.thinking,
        on_permission=request.on_permission,
        permission_timeout_s=request.permission_timeout_s,
        title=request.title or None,
        metadata=request.metadata or {},
        idle_timeout_s=request.idle_timeout_s if isinstance(request, StartRequest) else None,
        expiry_s=request.expiry_s if isinstance(request, StartRequest) else None,
    )


def attachments_of(
    call: Call, given: tuple[AttachmentRequest, ...] | None
) -> tuple[Attachment, ...]:
    """Return what goes with a prompt.

    Raises:
        InvalidRequest: It is too much, or not what it is said to be.
    """
    return accepted(given, call.server.settings.attachments)


def accepted_reply(turn: TurnHandle) -> AcceptedReply:
    """Return the answer to a caller who does not wait."""
    return AcceptedReply(
        session_id=turn.session_id,
        turn_id=turn.turn_id,
        position=None if turn.attached else turn.position,
    )


async def result_of(call: Call, turn: TurnHandle) -> TurnResult:
    """Wait for a turn's answer, and note what took how long.

    Raises:
        TurnFailed: There is none.
        ProblemError: The turn waits for the next server.
    """
    try:
        result = await turn.result()
    except Draining as error:
        problem = Problem(
            code=error.code,
            detail="The server is shutting down. The turn waits, and runs when there is a server "
            "again. Look it up then.",
            retry_after=error.retry_after,
            session_id=turn.session_id,
            turn_id=turn.turn_id,
        )
        raise ProblemError(problem) from error
    call.timing["queue"] = result.queued_ms - result.spawn_ms
    call.timing["spawn"] = result.spawn_ms
    call.timing["model"] = result.duration_ms - result.queued_ms
    return result


async def stream_of(call: Call, work: Work, ask: Callable[[], Awaitable[TurnHandle]]) -> Answer:
    """Stream a turn that is about to be asked for, from its beginning or from where it broke."""
    slot = call.server.streams.reserve()
    try:
        turn = await ask()
        session = call.server.supervisor.get(turn.session_id, owner=call.owner)
        cursor = turn.cursor()
        if work.after is not None and work.after > cursor.after:
            cursor = cursor_of(call, session, work.after)
            last_seq = turn.record().last_seq
            if last_seq is not None and work.after >= last_seq:
                slot.release()
                return Nothing()
    except BaseException:
        slot.release()
        raise
    return EventStream(session=session, cursor=cursor, slot=slot, turn=turn)


def cursor_of(call: Call, session: Session, after: int) -> Cursor:
    """Return a reader that begins behind an event.

    Raises:
        InvalidRequest: The session never had it.
    """
    try:
        return session.events(after)
    except InvalidSpec as error:
        raise InvalidRequest([FieldError(field=call.after_field, message=error.reason)]) from error


async def require_credential(call: Call) -> None:
    """Refuse what needs the model where there is nothing to reach it with."""
    state = await call.server.credentials.state(account_of(call))
    if not state.authenticated:
        raise refuse("not_authenticated", state.hint, retry_after=10.0)


def account_of(call: Call) -> str:
    """Return by whose credential the caller's sessions reach the model."""
    return LOCAL_OWNER if call.principal is ANONYMOUS else call.owner
