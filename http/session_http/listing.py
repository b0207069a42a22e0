"""Pages of sessions: which there are, oldest first, some at a time.

A cursor names a place in time, not a session, so that it holds after that session is gone.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from datetime import datetime

from session_http.problems import FieldError, InvalidRequest
from session_supervisor import SessionSnapshot

Place = tuple[datetime, str]


def page_of(
    sessions: Iterable[SessionSnapshot], *, cursor: str | None, limit: int | None
) -> tuple[tuple[SessionSnapshot, ...], str | None]:
    """Return some sessions, and the cursor of the page after them if there is one.

    Args:
        sessions: All of them.
        cursor: Of the page; None for the first.
        limit: How many at most; None for any number.

    Raises:
        InvalidRequest: The cursor is none of ours.
    """
    found = sorted(sessions, key=_place)
    if cursor is not None:
        after = _decode(cursor)
        found = [session for session in found if _place(session) > after]
    page = found if limit is None else found[:limit]
    more = len(page) < len(found)
    return tuple(page), _encode(_place(page[-1])) if more else None


def _place(session: SessionSnapshot) -> Place:
    return session.created_at, session.session_id


def _encode(place: Place) -> str:
    created_at, session_id = place
    raw = f"{created_at.isoformat()} {session_id}".encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(cursor: str) -> Place:
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        created_at, _, session_id = raw.decode("ascii").partition(" ")
        found = datetime.fromisoformat(created_at)
        if found.tzinfo is None:
            raise ValueError("no time zone")
    except (ValueError, binascii.Error):
        problem = "must be the `next_cursor` of an earlier answer"
        raise InvalidRequest([FieldError(field="cursor", message=problem)]) from None
    return found, session_id
