"""What each operation does: a request model in, one message to a session, an answer out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from session_http import TITLE, idempotency, listing, transcript, version
from session_http.call import Answer, Call, Nothing, Page
from session_http.directories import resolve_cwd
from session_http.keys import ANONYMOUS
from session_http.problems import (
    FieldError,
    InvalidRequest,
    Problem,
    ProblemError,
    problem_of,
    refuse,
)
from session_http.schemas import (
    CloseReply,
    EventsParameters,
    Health,
    Index,
    InspectReply,
    InterruptReply,
    InterruptRequest,
    Lanes,
    MessagesParameters,
    MessagesReply,
    NoParameters,
    ProcessExit,
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
    SupervisedSession,
    SupervisorReply,
    TreeProcess,
    TurnsReply,
    answer_outcome,
    turn_reply,
    turn_summary,
)
from session_http.sse import EventStream, is_over
from session_supervisor import (
    ClaimKey,
    Cursor,
    Inspection,
    Quota,
    Session,
    SessionKind,
    SessionSnapshot,
    SessionSpec,
    State,
    TurnHandle,
    TurnResult,
)
from session_supervisor.errors import (
    Draining,
    InvalidSpec,
    Refused,
    SessionClosed,
    SessionNotFound,
    TurnFailed,
)
from session_supervisor.spec import LOCAL_OWNER

_AT_REST = frozenset({State.HIBERNATED, State.FAILED, State.CLOSED})
"""States without a process, in which nothing happens that `GET /supervisor` does not say anyway."""

_LOOK_S = 5.0
"""Seconds that a session has to say what it is doing: its store may stall."""

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
    supervisor = call.server.supervisor
    work = await _work(call, request, streams=bool(request.stream))
    spec = await _spec(call, request)

    async def ask() -> TurnHandle:
        with idempotency.kept(work.key):
            return await supervisor.query(
                request.prompt,
                spec,
                owner=call.owner,
                timeout_s=request.timeout_s,
                quota=work.quota,
                claim=work.key,
            )

    if not request.stream:
        result = await _result(call, await ask())
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
    return await _stream(call, work, ask)


async def start(call: Call, request: StartRequest) -> Answer:
    """Start a conversation, and wait for the answer to its first message if there is one."""
    work = await _work(call, request, streams=False)
    spec = await _spec(call, request)
    with idempotency.kept(work.key):
        session = await call.server.supervisor.start(
            spec, owner=call.owner, quota=work.quota, claim=work.key
        )
    if request.initial_prompt is None:
        return StartReply(
            session_id=session.session_id, initial_response=None, created_at=session.created_at
        )
    key = idempotency.key_of_first_prompt(work.key, session.session_id)
    try:
        with idempotency.kept(work.key):
            turn = await session.query(
                request.initial_prompt, timeout_s=request.timeout_s, quota=work.quota, claim=key
            )
        result = await _result(call, turn)
    except ProblemError:  # the session goes on, and a retry can have it
        raise
    except Exception as error:
        # A caller that gets an error gets no session, so none may stay behind. But one that an
        # earlier request has got is not ours to close.
        if not session.attached or isinstance(error, TurnFailed):
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
    work = await _work(call, request, streams=bool(request.stream))

    async def ask() -> TurnHandle:
        with idempotency.kept(work.key):
            return await session.query(
                request.prompt, timeout_s=request.timeout_s, quota=work.quota, claim=work.key
            )

    if not request.stream:
        result = await _result(call, await ask())
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
    return await _stream(call, work, ask)


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
    closed = await call.server.supervisor.close(session_id, owner=_looks_after(call))
    return CloseReply(
        session_id=session_id, exit=None if closed.exit is None else ProcessExit.of(closed.exit)
    )


async def wake(call: Call, _request: NoParameters) -> Answer:
    """Have a session get its process back before it is needed."""
    session = _session(call)
    return RestReply(session_id=session.session_id, state=await session.wake())


async def hibernate(call: Call, _request: NoParameters) -> Answer:
    """Have a session give up its process."""
    session = _session(call)
    return RestReply(session_id=session.session_id, state=await session.hibernate())


async def inspect(call: Call, _request: NoParameters) -> Answer:
    """Say what a session is doing."""
    session = _found(call, _looks_after(call))
    try:
        return _inspected(await session.inspect())
    except SessionClosed:
        return _inspected_after(session)


async def list_sessions(call: Call, request: SessionsParameters) -> Answer:
    """List the caller's sessions, or for an admin anybody's."""
    owner: str | None = call.owner if request.owner is None else request.owner
    if owner != call.owner:
        if "admin" not in call.principal.roles:
            raise refuse("not_allowed", "Only an admin may list the sessions of other owners.")
        owner = None if owner == "*" else owner
    supervisor = call.server.supervisor
    if request.state is None:
        found = [session.snapshot() for session in supervisor.list(owner=owner)]
    else:
        found = [
            session
            for session in supervisor.snapshot().sessions
            if session.state is request.state
            and session.kind is SessionKind.CONVERSATION
            and not session.deleted
            and owner in (None, session.owner)
        ]
    page, cursor = listing.page_of(found, cursor=request.cursor, limit=request.limit)
    return SessionsReply(
        active_sessions=tuple(session.session_id for session in page),
        count=len(found),
        next_cursor=cursor,
    )


async def supervisor_tree(call: Call, _request: NoParameters) -> Answer:
    """Say what everything looks like."""
    tree = call.server.supervisor.snapshot()
    inside = await _inside(call, tree.sessions)
    return SupervisorReply(
        active=tree.active,
        live=tree.live,
        waiting=tree.waiting,
        max_sessions=tree.max_sessions,
        max_live=tree.max_live,
        draining=tree.draining,
        memory_bytes=tree.memory_bytes,
        memory_budget_bytes=tree.memory_budget_bytes,
        sessions=tuple(
            SupervisedSession(
                session_id=session.session_id,
                owner=session.owner,
                kind=session.kind,
                state=session.state,
                model=session.model,
                created_at=session.created_at,
                queued=session.queued,
                restarts=session.restarts,
                last_event_id=session.last_seq,
                total_cost_usd=session.total_cost_usd,
                inside=inside.get(session.session_id),
            )
            for session in tree.sessions
        ),
    )


# -- turns and events --------------------------------------------------------------------------


async def list_turns(call: Call, _request: NoParameters) -> Answer:
    """List a session's turns."""
    session = _kept(call)
    turns = tuple(turn_summary(record) for record in (await session.turns()))
    return TurnsReply(session_id=session.session_id, turns=turns, count=len(turns))


async def get_turn(call: Call, _request: NoParameters) -> Answer:
    """Look a turn up."""
    return turn_reply((await _kept(call).turn(call.path["turn_id"])).record())


async def list_messages(call: Call, request: MessagesParameters) -> Answer:
    """List what was said to the model, and by it."""
    session = _kept(call)
    page, has_more = await transcript.page_of(session, after=request.after, limit=request.limit)
    return MessagesReply(session_id=session.session_id, messages=page, has_more=has_more)


async def session_events(call: Call, request: EventsParameters) -> Answer:
    """Stream everything that a session says."""
    session = _kept(call)
    after = call.after
    after = (request.after or 0) if after is None else after
    cursor = _cursor(call, session, after)
    if await is_over(session, after):
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


def _kept(call: Call) -> Session:
    """Return a session whose conversation the caller may read, also once it was closed."""
    return call.server.supervisor.kept(call.path["session_id"], owner=call.owner)


def _found(call: Call, owner: str | None) -> Session:
    return call.server.supervisor.get(call.path["session_id"], owner=owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a request begins, or has begun before.

    Attributes:
        key: The caller's key for it.
        quota: What the caller may have at once.
        after: Behind which event its stream goes on; None: with its first.
    """

    key: ClaimKey | None
    quota: Quota | None
    after: int | None


async def _work(
    call: Call, request: QueryRequest | StartRequest | SessionQueryRequest, *, streams: bool
) -> _Work:
    """Return what a request is to begin, if it may."""
    key = idempotency.key_of(call, request)
    claimed = key is not None and await call.server.supervisor.claimed(key, owner=call.owner)
    after = idempotency.resume_after(call, key, streams=streams, claimed=claimed)
    if not claimed:
        await _require_credential(call)
    return _Work(key=key, quota=call.principal.limits, after=after)


async def _stream(call: Call, work: _Work, ask: Callable[[], Awaitable[TurnHandle]]) -> Answer:
    """Stream a turn that is about to be asked for, from its beginning or from where it broke."""
    slot = call.server.streams.reserve()
    try:
        turn = await ask()
        session = call.server.supervisor.get(turn.session_id, owner=call.owner)
        cursor = turn.cursor()
        if work.after is not None and work.after > cursor.after:
            cursor = _cursor(call, session, work.after)
            last_seq = turn.record().last_seq
            if last_seq is not None and work.after >= last_seq:
                slot.release()
                return Nothing()
    except BaseException:
        slot.release()
        raise
    return EventStream(session=session, cursor=cursor, slot=slot, turn=turn)


def _cursor(call: Call, session: Session, after: int) -> Cursor:
    """Return a reader that begins behind an event.

    Raises:
        InvalidRequest: The session never had it.
    """
    try:
        return session.events(after)
    except InvalidSpec as error:
        raise InvalidRequest([FieldError(field=call.after_field, message=error.reason)]) from error


async def _inside(
    call: Call, sessions: Iterable[SessionSnapshot]
) -> Mapping[str, InspectReply | None]:
    """Return what the sessions are doing that may have a process."""

    async def look(session_id: str) -> InspectReply | None:
        try:
            async with asyncio.timeout(_LOOK_S):
                return _inspected(await call.server.supervisor.get(session_id).inspect())
        except (Refused, TimeoutError):
            return None

    busy = [one.session_id for one in sessions if one.state not in _AT_REST]
    return dict(zip(busy, await asyncio.gather(*map(look, busy)), strict=True))


def _inspected(found: Inspection) -> InspectReply:
    timer, timer_s = found.next_timer or (None, None)
    return InspectReply(
        session_id=found.session_id,
        state=found.state,
        turn_id=found.turn_id,
        turn_origin=found.turn_origin,
        queued=found.queued,
        lanes=Lanes(control=found.waiting_control, work=found.queued),
        waiting_for=found.waiting_for,
        last_message_s=found.last_message_s,
        pid=found.pid,
        processes=tuple(
            TreeProcess(pid=one.pid, parent=one.parent, name=one.name, pss_bytes=one.pss_bytes)
            for one in found.tree.members
        ),
        pss_bytes=found.tree.pss_bytes,
        agent_session_id=found.agent_session_id,
        background=found.background,
        restarts=found.restarts,
        next_timer=timer,
        next_timer_s=timer_s,
        last_event_id=found.last_seq,
    )


def _inspected_after(session: Session) -> InspectReply:
    """Return what there is to say of a session that has ended."""
    found = session.snapshot()
    return InspectReply(
        session_id=found.session_id,
        state=found.state,
        turn_id=None,
        turn_origin=None,
        queued=0,
        lanes=Lanes(control=0, work=0),
        waiting_for=None,
        last_message_s=None,
        pid=None,
        processes=(),
        pss_bytes=0,
        agent_session_id=None,
        background=0,
        restarts=found.restarts,
        next_timer=None,
        next_timer_s=None,
        last_event_id=found.last_seq,
    )


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
        idle_timeout_s=request.idle_timeout_s if isinstance(request, StartRequest) else None,
        expiry_s=request.expiry_s if isinstance(request, StartRequest) else None,
    )


async def _result(call: Call, turn: TurnHandle) -> TurnResult:
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


async def _require_credential(call: Call) -> None:
    state = await call.server.credentials.state(_account(call))
    if not state.authenticated:
        raise refuse("not_authenticated", state.hint, retry_after=10.0)


def _account(call: Call) -> str:
    """Return by whose credential the caller's sessions reach the model."""
    return LOCAL_OWNER if call.principal is ANONYMOUS else call.owner


def _without_ids(error: TurnFailed) -> Exception:
    """Return the same refusal without naming a session that is gone."""
    problem = problem_of(error)
    assert problem is not None, "every failure of a turn is foreseen"
    return refuse(problem.code, problem.detail, retry_after=problem.retry_after)


def _file(call: Call, name: str) -> Answer:
    file = call.server.pages.get(name)
    return Page(content=file.content, media_type=file.media_type, etag=file.etag)
