"""The transcript of a session: what the model was told, and what it said, in this order.

It is made from the session's turns. One that still waits, or was taken out before its turn came,
the model never saw; the answer of one that runs is not there before its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from session_http.problems import FieldError, InvalidRequest
from session_http.schemas import Message, Role
from session_supervisor import Origin, TurnRecord


def messages_of(turns: Iterable[TurnRecord]) -> list[Message]:
    """Return the messages of a session's turns."""
    # Turns end in the order in which they ran, and only the newest can be under way.
    told = [turn for turn in turns if turn.started_at is not None]
    told.sort(key=lambda turn: (turn.last_seq is None, turn.last_seq or turn.first_seq))
    return [message for turn in told for message in _messages(turn)]


def page_of(
    messages: list[Message], *, after: str | None, limit: int
) -> tuple[tuple[Message, ...], bool]:
    """Return some of the messages, and whether there are more.

    Args:
        messages: All of them.
        after: Id of the last one that the caller had; None: none.
        limit: How many at most.

    Raises:
        InvalidRequest: There is no such message.
    """
    begin = 0
    if after is not None:
        ids = [message.id for message in messages]
        if after not in ids:
            problem = "must be the id of a message of this session that is still kept"
            raise InvalidRequest([FieldError(field="after", message=problem)])
        begin = ids.index(after) + 1
    page = messages[begin : begin + limit]
    return tuple(page), begin + limit < len(messages)


def _messages(turn: TurnRecord) -> Iterator[Message]:
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
