"""What is done with a whole session besides asking in it: change, fork, restart, sum up."""

from __future__ import annotations

from session_http import idempotency
from session_http.call import Answer, Call
from session_http.schemas import (
    CompactReply,
    CompactRequest,
    ForkReply,
    ForkRequest,
    NoParameters,
    PatchRequest,
    RestReply,
    SessionReply,
    WithdrawReply,
    answer_outcome,
)
from session_http.work import (
    accepted_reply,
    found_session,
    looks_after,
    own_session,
    result_of,
    work_of,
)
from session_supervisor import Session


async def get_session(call: Call, _request: NoParameters) -> Answer:
    """Say how a session is."""
    return _session_reply(call, found_session(call, looks_after(call)))


async def patch_session(call: Call, request: PatchRequest) -> Answer:
    """Change what can change in a session."""
    session = own_session(call)
    await session.configure(
        model=request.model,
        permission_mode=request.permission_mode,
        title=request.title,
        metadata=request.metadata,
    )
    return _session_reply(call, session)


async def fork(call: Call, request: ForkRequest) -> Answer:
    """Begin another session with the context of this one."""
    session = own_session(call)
    work = await work_of(call, request, needs_model=False)
    with idempotency.kept(work.key):
        forked = await call.server.supervisor.fork(
            session.session_id,
            owner=call.owner,
            turn_id=request.turn_id,
            title=request.title,
            metadata=request.metadata,
            copy_workspace=bool(request.copy_workspace),
            quota=work.quota,
            claim=work.key,
        )
    return ForkReply(
        session_id=forked.session_id,
        created_at=forked.created_at,
        forked_from=session.session_id,
        forked_after=request.turn_id,
    )


async def restart(call: Call, _request: NoParameters) -> Answer:
    """Try again with a session that failed."""
    session = await call.server.supervisor.restart(
        call.path["session_id"], owner=call.owner, quota=call.principal.limits
    )
    return RestReply(session_id=session.session_id, state=session.state)


async def compact(call: Call, request: CompactRequest) -> Answer:
    """Have the conversation summed up, so that there is room for more."""
    session = own_session(call)
    work = await work_of(call, request)
    with idempotency.kept(work.key):
        turn = await session.compact(
            instructions=request.instructions,
            timeout_s=request.timeout_s,
            quota=work.quota,
            claim=work.key,
        )
    if not work.waits:
        return accepted_reply(turn)
    result = await result_of(call, turn)
    return CompactReply(
        session_id=result.session_id,
        turn_id=result.turn_id,
        outcome=answer_outcome(result),
        duration_ms=result.duration_ms,
        total_cost_usd=result.accounting.total_cost_usd,
    )


async def withdraw(call: Call, _request: NoParameters) -> Answer:
    """Take out a turn that waits."""
    session = own_session(call)
    turn_id = call.path["turn_id"]
    await session.withdraw(turn_id)
    return WithdrawReply(session_id=session.session_id, turn_id=turn_id)


def _session_reply(call: Call, session: Session) -> SessionReply:
    found = session.snapshot()
    # What its owner has written is nobody else's business.
    mine = found.owner == call.owner
    return SessionReply(
        session_id=found.session_id,
        created_at=found.created_at,
        active=session.active,
        model=found.model or call.server.settings.default_model,
        state=found.state.value,
        owner=found.owner,
        permission_mode=found.permission_mode,
        title=found.title if mine else None,
        metadata=found.metadata if mine else {},
        total_cost_usd=found.total_cost_usd,
        pending=len(found.pending),
    )
