"""What each operation does: a request model in, one message to a session, an answer out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from pydantic_core import from_json

from session_http import TITLE, idempotency, listing, transcript, version
from session_http.call import Answer, Call, Nothing, Page
from session_http.encoding import dump
from session_http.frames import told
from session_http.keys import ANONYMOUS
from session_http.problems import (
    FieldError,
    InvalidRequest,
    ProblemError,
    problem_of,
    refuse,
)
from session_http.schemas import (
    CloseReply,
    ContextReply,
    EventReply,
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
    PoolReply,
    ProcessExit,
    QueryReply,
    QueryRequest,
    Ready,
    RestReply,
    SessionQueryReply,
    SessionQueryRequest,
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
from session_http.work import (
    accepted_reply,
    account_of,
    attachments_of,
    cursor_of,
    found_session,
    kept_session,
    looks_after,
    own_session,
    require_credential,
    result_of,
    spec_of,
    stream_of,
    work_of,
)
from session_supervisor import (
    Event,
    Inspection,
    Session,
    SessionSnapshot,
    State,
    TurnHandle,
)
from session_supervisor.errors import (
    InvalidSpec,
    Refused,
    SessionClosed,
    SessionNotFound,
    TurnFailed,
)
from session_supervisor.events import Gap
from session_supervisor.messages import OnBusy

_AT_REST = frozenset({State.HIBERNATED, State.FAILED, State.CLOSED})
"""States without a process, in which nothing happens that `GET /supervisor` does not say anyway."""

_LOOK_S = 5.0
"""Seconds that a session has to say what it is doing: its store may stall."""

# -- the server ------------------------------------------------------------------------------


async def health(call: Call, _request: NoParameters) -> Answer:
    """Say how the server is."""
    nobody = call.principal is ANONYMOUS
    state = await call.server.credentials.state(account_of(call))
    return Health(
        authenticated=state.authenticated,
        active_sessions=0 if nobody else call.server.supervisor.count(owner=call.owner),
        timestamp=datetime.now(UTC),
        offline=state.offline,
    )


async def ready(call: Call, _request: NoParameters) -> Answer:
    """Say whether new work would be taken."""
    call.server.supervisor.check_admission()
    await require_credential(call)
    return Ready()


async def index(call: Call, _request: NoParameters) -> Answer:
    """Say what there is."""
    endpoints = tuple(f"{call.root_path}{path}" for path in call.server.endpoints)
    return Index(name=TITLE, version=version(), endpoints=endpoints)


# -- sessions --------------------------------------------------------------------------------


async def query(call: Call, request: QueryRequest) -> Answer:
    """Ask once."""
    supervisor = call.server.supervisor
    work = await work_of(call, request, streams=bool(request.stream))
    spec = await spec_of(call, request)
    attachments = attachments_of(call, request.attachments)

    async def ask() -> TurnHandle:
        with idempotency.kept(work.key):
            return await supervisor.query(
                request.prompt,
                spec,
                owner=call.owner,
                attachments=attachments,
                timeout_s=request.timeout_s,
                quota=work.quota,
                claim=work.key,
            )

    if not work.waits:
        return accepted_reply(await ask())
    if not request.stream:
        result = await result_of(call, await ask())
        return QueryReply(
            response=result.text,
            duration_ms=result.duration_ms,
            num_turns=result.accounting.num_turns,
            total_cost_usd=result.accounting.total_cost_usd,
            session_id=result.session_id,
            turn_id=result.turn_id,
            outcome=answer_outcome(result),
            permission_denials=result.accounting.permission_denials,
            structured_output=result.accounting.structured_output,
        )
    return await stream_of(call, work, ask)


async def start(call: Call, request: StartRequest) -> Answer:
    """Start a conversation, and wait for the answer to its first message if there is one."""
    work = await work_of(call, request)
    spec = await spec_of(call, request)
    attachments = attachments_of(call, request.attachments)
    if attachments and request.initial_prompt is None:
        problem = "go with a prompt: give initial_prompt, too"
        raise InvalidRequest([FieldError(field="attachments", message=problem)])
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
                request.initial_prompt,
                attachments=attachments,
                timeout_s=request.timeout_s,
                quota=work.quota,
                claim=key,
            )
        if not work.waits:
            return accepted_reply(turn)
        result = await result_of(call, turn)
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
        structured_output=result.accounting.structured_output,
    )


async def session_query(call: Call, request: SessionQueryRequest) -> Answer:
    """Ask in a conversation."""
    session = own_session(call)
    work = await work_of(call, request, streams=bool(request.stream))
    attachments = attachments_of(call, request.attachments)

    async def ask() -> TurnHandle:
        with idempotency.kept(work.key):
            return await session.query(
                request.prompt,
                attachments=attachments,
                on_busy=request.on_busy or OnBusy.QUEUE,
                on_permission=request.on_permission,
                permission_timeout_s=request.permission_timeout_s,
                timeout_s=request.timeout_s,
                quota=work.quota,
                claim=work.key,
            )

    if not work.waits:
        return accepted_reply(await ask())
    if not request.stream:
        result = await result_of(call, await ask())
        return SessionQueryReply(
            session_id=result.session_id,
            response=result.text,
            duration_ms=result.duration_ms,
            turn_id=result.turn_id,
            outcome=answer_outcome(result),
            num_turns=result.accounting.num_turns,
            total_cost_usd=result.accounting.total_cost_usd,
            permission_denials=result.accounting.permission_denials,
            structured_output=result.accounting.structured_output,
        )
    return await stream_of(call, work, ask)


async def interrupt(call: Call, request: InterruptRequest) -> Answer:
    """Stop what runs."""
    session = found_session(call, looks_after(call))
    found = await session.interrupt(turn_id=request.turn_id, queued=bool(request.queued))
    return InterruptReply(
        session_id=session.session_id, outcome=found.outcome, turn_ids=found.turn_ids
    )


async def close(call: Call, _request: NoParameters) -> Answer:
    """End a session."""
    session_id = call.path["session_id"]
    closed = await call.server.supervisor.close(session_id, owner=looks_after(call))
    return CloseReply(
        session_id=session_id, exit=None if closed.exit is None else ProcessExit.of(closed.exit)
    )


async def wake(call: Call, _request: NoParameters) -> Answer:
    """Have a session get its process back before it is needed."""
    session = own_session(call)
    return RestReply(session_id=session.session_id, state=await session.wake())


async def hibernate(call: Call, _request: NoParameters) -> Answer:
    """Have a session give up its process."""
    session = own_session(call)
    return RestReply(session_id=session.session_id, state=await session.hibernate())


async def inspect(call: Call, _request: NoParameters) -> Answer:
    """Say what a session is doing."""
    session = found_session(call, looks_after(call))
    try:
        return _inspected(await session.inspect(context=True))
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
    found = supervisor.list(owner=owner, state=request.state)
    page, cursor = listing.page_of(found, cursor=request.cursor, limit=request.limit)
    if request.state is None:  # as a rule, and of all: without a look at each
        ids = supervisor.ids(owner=owner)[page]
    else:
        ids = tuple(session.session_id for session in found[page])
    return SessionsReply(
        active_sessions=ids,
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
        pool=None if tree.pool is None else PoolReply.of(tree.pool),
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
    session = kept_session(call)
    turns = tuple(turn_summary(record) for record in (await session.turns()))
    return TurnsReply(session_id=session.session_id, turns=turns, count=len(turns))


async def get_turn(call: Call, _request: NoParameters) -> Answer:
    """Look a turn up."""
    return turn_reply((await kept_session(call).turn(call.path["turn_id"])).record())


async def list_messages(call: Call, request: MessagesParameters) -> Answer:
    """List what was said to the model, and by it."""
    session = kept_session(call)
    page, has_more = await transcript.page_of(session, after=request.after, limit=request.limit)
    return MessagesReply(session_id=session.session_id, messages=page, has_more=has_more)


async def session_events(call: Call, request: EventsParameters) -> Answer:
    """Stream everything that a session says."""
    session = kept_session(call)
    after = call.after
    after = (request.after or 0) if after is None else after
    cursor = cursor_of(call, session, after)
    if await is_over(session, after):
        return Nothing()
    return EventStream(session=session, cursor=cursor, slot=call.server.streams.reserve())


async def get_event(call: Call, _request: NoParameters) -> Answer:
    """Look up one event, whole."""
    session = own_session(call)
    event = await _event(session, call.path["event_id"])
    said = told(event.body, session_id=session.session_id, turn_id=event.turn_id)
    return EventReply(
        session_id=session.session_id,
        id=event.seq,
        at=event.at,
        event=from_json(dump(said)),  # as JSON, which a reply holds
    )


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


async def _event(session: Session, event_id: str) -> Event:
    """Return an event that is still kept."""
    if event_id.isascii() and event_id.isdigit() and len(event_id) < 20:
        seq = int(event_id)
        with suppress(InvalidSpec):  # the session never had it
            for event in await session.events(max(seq - 1, 0)).read_nowait(1):
                if event.seq == seq and not isinstance(event.body, Gap):
                    return event
    raise refuse(
        "event_not_found", f"The session has no event {event_id[:40]!r}, or no longer keeps it."
    )


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
        pending=found.requests,
        context=(
            None
            if found.context is None
            else ContextReply(tokens=found.context.tokens, max_tokens=found.context.max_tokens)
        ),
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
        pending=(),
        context=None,
    )


def _without_ids(error: TurnFailed) -> Exception:
    """Return the same refusal without naming a session that is gone."""
    problem = problem_of(error)
    assert problem is not None, "every failure of a turn is foreseen"
    return refuse(problem.code, problem.detail, retry_after=problem.retry_after)


def _file(call: Call, name: str) -> Answer:
    file = call.server.pages.get(name)
    return Page(content=file.content, media_type=file.media_type, etag=file.etag)
