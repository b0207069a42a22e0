"""Pages of sessions: which there are, oldest first, some at a time.

A cursor names a place in time, not a session, so that it holds after that session is gone.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from session_http.problems import FieldError, InvalidRequest

Place = tuple[datetime, str]


class Listed(Protocol):
    """What a page is made of: sessions, or snapshots of them."""

    @property
    def session_id(self) -> str:
        """Its id."""
        ...

    @property
    def created_at(self) -> datetime:
        """When it was started, UTC."""
        ...


def page_of(
    sessions: Sequence[Listed], *, cursor: str | None, limit: int | None
) -> tuple[slice, str | None]:
    """Return which of all sessions a page has, and the cursor of the next one if there is one.

    Args:
        sessions: All of them, oldest first.
        cursor: Of the page; None for the first.
        limit: How many at most; None for any number.

    Raises:
        InvalidRequest: The cursor is none of ours.
    """
    first = 0 if cursor is None else bisect_right(sessions, _decode(cursor), key=_place)
    last = len(sessions) if limit is None else min(first + limit, len(sessions))
    more = last < len(sessions)
    return slice(first, last), _encode(_place(sessions[last - 1])) if more else None


def _place(session: Listed) -> Place:
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
