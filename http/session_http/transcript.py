"""The transcript of a session: what the model was told, and what it said, in this order.

It is made from the session's turns. One that still waits, or was taken out before its turn came,
the model never saw; the answer of one that runs is not there before its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from session_http.problems import FieldError, InvalidRequest
from session_http.schemas import Message, Role
from session_supervisor import Origin, Session, TurnRecord
from session_supervisor.errors import TurnNotFound


async def page_of(
    session: Session, *, after: str | None, limit: int
) -> tuple[tuple[Message, ...], bool]:
    """Return some of a session's messages, and whether there are more.

    Only the turns that they are of are read.

    Args:
        session: Whose messages.
        after: Id of the last one that the caller had; None: none.
        limit: How many at most.

    Raises:
        InvalidRequest: There is no such message.
    """
    before: list[Message] = []
    seq = 0
    if after is not None:
        turn = await _turn_of(session, after)
        ids = [message.id for message in _messages(turn)]
        if after not in ids:
            raise _unknown()
        before = list(_messages(turn))[ids.index(after) + 1 :]
        if turn.last_seq is None:  # it runs, and nothing comes after it
            return tuple(before), False
        seq = turn.last_seq
    # Each turn has a message at least, but one that the agent began and that runs.
    turns = await session.told(after=seq, limit=limit + 1)
    found = [*before, *(message for turn in turns for message in _messages(turn))]
    return tuple(found[:limit]), len(found) > limit


async def _turn_of(session: Session, message_id: str) -> TurnRecord:
    try:
        turn = (await session.turn(message_id.rpartition(".")[0])).record()
    except TurnNotFound:
        raise _unknown() from None
    if turn.started_at is None:
        raise _unknown()
    return turn


def _unknown() -> InvalidRequest:
    problem = "must be the id of a message of this session that is still kept"
    return InvalidRequest([FieldError(field="after", message=problem)])


def _messages(turn: TurnRecord) -> Iterator[Message]:
    if turn.command:  # to Claude Code, not to the model
        return
    if turn.origin is Origin.USER:
        yield Message(
            id=_id(turn, "user"),
            turn_id=turn.turn_id,
            role="user",
            content=turn.prompt,
            at=turn.accepted_at,
            outcome=None,
        )
    if turn.result is not None and turn.ended_at is not None:
        yield Message(
            id=_id(turn, "assistant"),
            turn_id=turn.turn_id,
            role="assistant",
            content=turn.result.text,
            at=turn.ended_at,
            outcome=turn.result.outcome,
        )


def _id(turn: TurnRecord, role: Role) -> str:
    return f"{turn.turn_id}.{role}"
