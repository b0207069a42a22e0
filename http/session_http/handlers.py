"""What each operation does: a request model in, one message to a session, an answer out."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

from session_http import TITLE, version
from session_http.call import Answer, Call, Nothing, Page
from session_http.directories import resolve_cwd
from session_http.keys import ANONYMOUS
from session_http.problems import FieldError, InvalidRequest, problem_of, refuse
from session_http.schemas import (
    CloseReply,
    EventsParameters,
    Health,
    Index,
    InterruptReply,
    InterruptRequest,
    NoParameters,
    QueryReply,
    QueryRequest,
    Ready,
    SessionQueryReply,
    SessionQueryRequest,
    SessionReply,
    SessionsParameters,
    SessionsReply,
    StartReply,
    StartRequest,
    TurnsReply,
    answer_outcome,
    turn_reply,
    turn_summary,
)
from session_http.sse import EventStream, is_over
from session_supervisor import Session, SessionSpec, TurnHandle, TurnResult
from session_supervisor.errors import InvalidSpec, SessionNotFound, TurnFailed
from session_supervisor.spec import LOCAL_OWNER

# -- the server ------------------------------------------------------------------------------


async def health(call: Call, _request: NoParameters) -> Answer:
    """Say how the server is."""
    nobody = call.principal is ANONYMOUS
    state = await call.server.credentials.state(_account(call))
    return Health(
        authenticated=state.authenticated,
        active_sessions=0 if nobody else len(call.server.supervisor.list(owner=call.owner)),
        timestamp=datetime.now(UTC),
        offline=state.offline,
    )


async def ready(call: Call, _request: NoParameters) -> Answer:
    """Say whether new work would be taken."""
    call.server.supervisor.check_admission()
    await _require_credential(call)
    return Ready()


async def index(call: Call, _request: NoParameters) -> Answer:
    """Say what there is."""
    endpoints = tuple(f"{call.root_path}{path}" for path in call.server.endpoints)
    return Index(name=TITLE, version=version(), endpoints=endpoints)


# -- sessions --------------------------------------------------------------------------------


async def query(call: Call, request: QueryRequest) -> Answer:
    """Ask once."""
    await _require_credential(call)
    supervisor = call.server.supervisor
    spec = await _spec(call, request)
    if not request.stream:
        turn = await supervisor.query(
            request.prompt,
            spec,
            owner=call.owner,
            timeout_s=request.timeout_s,
            quota=call.principal.limits,
        )
        result = await _result(call, turn)
        return QueryReply(
            response=result.text,
            duration_ms=result.duration_ms,
            num_turns=result.accounting.num_turns,
            total_cost_usd=result.accounting.total_cost_usd,
            session_id=result.session_id,
            turn_id=result.turn_id,
            outcome=answer_outcome(result),
            permission_denials=result.accounting.permission_denials,
        )
    slot = call.server.streams.reserve()
    try:
        turn = await supervisor.query(
            request.prompt,
            spec,
            owner=call.owner,
            timeout_s=request.timeout_s,
            quota=call.principal.limits,
        )
        session = supervisor.get(turn.session_id, owner=call.owner)
    except BaseException:
        slot.release()
        raise
    return EventStream(session=session, cursor=turn.cursor(), slot=slot, turn=turn)


async def start(call: Call, request: StartRequest) -> Answer:
    """Start a conversation, and wait for the answer to its first message if there is one."""
    await _require_credential(call)
    spec = await _spec(call, request)
    quota = call.principal.limits
    session = await call.server.supervisor.start(spec, owner=call.owner, quota=quota)
    if request.initial_prompt is None:
        return StartReply(
            session_id=session.session_id, initial_response=None, created_at=session.created_at
        )
    try:
        turn = await session.query(request.initial_prompt, timeout_s=request.timeout_s, quota=quota)
        result = await _result(call, turn)
    except Exception as error:
        # A caller that gets an error gets no session, so none may stay behind.
        with suppress(SessionNotFound):  # somebody else closed it
            await call.server.supervisor.close(session.session_id)
        if isinstance(error, TurnFailed):
            raise _without_ids(error) from error
        raise
    return StartReply(
        session_id=session.session_id,
        initial_response=result.text,
        created_at=session.created_at,
        turn_id=result.turn_id,
        outcome=answer_outcome(result),
        permission_denials=result.accounting.permission_denials,
    )


async def session_query(call: Call, request: SessionQueryRequest) -> Answer:
    """Ask in a conversation."""
    session = _session(call)
    await _require_credential(call)
    quota = call.principal.limits
    if not request.stream:
        turn = await session.query(request.prompt, timeout_s=request.timeout_s, quota=quota)
        result = await _result(call, turn)
        return SessionQueryReply(
            session_id=result.session_id,
            response=result.text,
            duration_ms=result.duration_ms,
            turn_id=result.turn_id,
            outcome=answer_outcome(result),
            num_turns=result.accounting.num_turns,
            total_cost_usd=result.accounting.total_cost_usd,
            permission_denials=result.accounting.permission_denials,
        )
    slot = call.server.streams.reserve()
    try:
        turn = await session.query(request.prompt, timeout_s=request.timeout_s, quota=quota)
    except BaseException:
        slot.release()
        raise
    return EventStream(session=session, cursor=turn.cursor(), slot=slot, turn=turn)


async def interrupt(call: Call, request: InterruptRequest) -> Answer:
    """Stop what runs."""
    session = _found(call, _looks_after(call))
    found = await session.interrupt(turn_id=request.turn_id, queued=bool(request.queued))
    return InterruptReply(
        session_id=session.session_id, outcome=found.outcome, turn_ids=found.turn_ids
    )


async def get_session(call: Call, _request: NoParameters) -> Answer:
    """Say how a session is."""
    session = _found(call, _looks_after(call))
    return SessionReply(
        session_id=session.session_id,
        created_at=session.created_at,
        active=session.active,
        model=session.spec.model or call.server.settings.default_model,
        state=session.state.value,
        owner=session.owner,
    )


async def close(call: Call, _request: NoParameters) -> Answer:
    """End a session."""
    session_id = call.path["session_id"]
    await call.server.supervisor.close(session_id, owner=_looks_after(call))
    return CloseReply(session_id=session_id)


async def list_sessions(call: Call, request: SessionsParameters) -> Answer:
    """List the caller's sessions, or for an admin anybody's."""
    owner: str | None = call.owner if request.owner is None else request.owner
    if owner != call.owner:
        if "admin" not in call.principal.roles:
            raise refuse("not_allowed", "Only an admin may list the sessions of other owners.")
        owner = None if owner == "*" else owner
    found = call.server.supervisor.list(owner=owner)
    return SessionsReply(
        active_sessions=tuple(session.session_id for session in found), count=len(found)
    )


# -- turns and events --------------------------------------------------------------------------


async def list_turns(call: Call, _request: NoParameters) -> Answer:
    """List a session's turns."""
    session = _session(call)
    turns = tuple(turn_summary(record) for record in session.turns())
    return TurnsReply(session_id=session.session_id, turns=turns, count=len(turns))


async def get_turn(call: Call, _request: NoParameters) -> Answer:
    """Look a turn up."""
    return turn_reply(_session(call).turn(call.path["turn_id"]).record())


async def session_events(call: Call, request: EventsParameters) -> Answer:
    """Stream everything that a session says."""
    session = _session(call)
    after = _last_event_id(call)
    after = (request.after or 0) if after is None else after
    try:
        cursor = session.events(after)
    except InvalidSpec as error:
        where = "after" if call.last_event_id is None else "Last-Event-ID"
        raise InvalidRequest([FieldError(field=where, message=error.reason)]) from error
    if is_over(session, after):
        return Nothing()
    return EventStream(session=session, cursor=cursor, slot=call.server.streams.reserve())


# -- documentation -----------------------------------------------------------------------------


async def docs(call: Call, _request: NoParameters) -> Answer:
    """Show the API in Swagger UI."""
    return _file(call, "docs.html")


async def redoc(call: Call, _request: NoParameters) -> Answer:
    """Show the API in ReDoc."""
    return _file(call, "redoc.html")


async def asset(call: Call, _request: NoParameters) -> Answer:
    """Give a file that the pages load."""
    return _file(call, call.path["name"])


async def openapi(call: Call, _request: NoParameters) -> Answer:
    """Describe the API."""
    return Page(content=call.server.describe(), media_type="application/json")


# -- inside ------------------------------------------------------------------------------------


def _looks_after(call: Call) -> str | None:
    """Return whose sessions the caller may look up and end; None: everybody's."""
    return None if "admin" in call.principal.roles else call.owner


def _session(call: Call) -> Session:
    """Return a session whose conversation the caller may read and go on with."""
    return _found(call, call.owner)


def _found(call: Call, owner: str | None) -> Session:
    return call.server.supervisor.get(call.path["session_id"], owner=owner)


async def _spec(call: Call, request: QueryRequest | StartRequest) -> SessionSpec:
    cwd = request.cwd
    if cwd is not None:
        # In a thread: a file system that does not answer holds this request up, and no other.
        cwd = await asyncio.to_thread(resolve_cwd, call.server.settings.cwd_root, call.owner, cwd)
    return SessionSpec(
        model=request.model,
        cwd=cwd,
        allowed_tools=request.allowed_tools or None,
        permission_mode=request.permission_mode or "default",
    )


async def _result(call: Call, turn: TurnHandle) -> TurnResult:
    """Wait for a turn's answer, and note what took how long."""
    result = await turn.result()
    call.timing["queue"] = result.queued_ms - result.spawn_ms
    call.timing["spawn"] = result.spawn_ms
    call.timing["model"] = result.duration_ms - result.queued_ms
    return result


async def _require_credential(call: Call) -> None:
    state = await call.server.credentials.state(_account(call))
    if not state.authenticated:
        raise refuse("not_authenticated", state.hint, retry_after=10.0)


def _account(call: Call) -> str:
    """Return by whose credential the caller's sessions reach the model."""
    return LOCAL_OWNER if call.principal is ANONYMOUS else call.owner


def _last_event_id(call: Call) -> int | None:
    given = call.last_event_id
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 20):
        raise InvalidRequest(
            [FieldError(field="Last-Event-ID", message="must be the id of an event that was sent")]
        )
    return int(given)


def _without_ids(error: TurnFailed) -> Exception:
    """Return the same refusal without naming a session that is gone."""
    problem = problem_of(error)
    assert problem is not None, "every failure of a turn is foreseen"
    return refuse(problem.code, problem.detail, retry_after=problem.retry_after)


def _file(call: Call, name: str) -> Answer:
    file = call.server.pages.get(name)
    return Page(content=file.content, media_type=file.media_type, etag=file.etag)
