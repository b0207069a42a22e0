"""`Idempotency-Key`: a retry finds the work that was begun, and begins none.

A client that lost its connection cannot know whether its request arrived. Under a key of its own
choice it may simply send it again: the first one is carried out, every other one is attached to it
and gets the same answer, now or later, whole or as a stream, and a stream from where it broke off.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator
from contextlib import contextmanager

from pydantic import BaseModel

from session_http.call import Call
from session_http.problems import FieldError, InvalidRequest, refuse
from session_supervisor import ClaimKey
from session_supervisor.errors import SessionNotFound, TurnNotFound

HEADER = "Idempotency-Key"
PATTERN = r"^[!-~]([ -~]{0,253}[!-~])?$"
"""Printable ASCII, which every HTTP client and server passes on as it is."""

HOW_IT_IS_ANSWERED = frozenset({"stream"})
"""Fields that say nothing about the work: a retry may choose otherwise."""


def key_of(call: Call, request: BaseModel) -> ClaimKey | None:
    """Return the caller's key with what it asks for; None if it sent none.

    Raises:
        ProblemError: It cannot be used.
    """
    given = call.idempotency_key
    if given is None:
        return None
    if re.fullmatch(PATTERN, given) is None:
        raise _invalid(HEADER, "must be 1 to 255 printable ASCII characters")
    asked = request.model_dump(mode="json", exclude_none=True, exclude=set(HOW_IT_IS_ANSWERED))
    whole = json.dumps([type(request).__name__, dict(call.path), asked], sort_keys=True)
    # Half of a surrogate pair is no text, and may be in a prompt all the same.
    digest = hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()
    return ClaimKey(key=given, digest=digest)


def key_of_first_prompt(key: ClaimKey | None, session_id: str) -> ClaimKey | None:
    """Return the key for the first prompt of a session that was started under a key.

    The session and its first turn are stored one after the other. Should the server go away in
    between, the retry finds the session, and asks.
    """
    if key is None:
        return None
    # No caller's key has a line break in it.
    return ClaimKey(key=f"first prompt\n{session_id}", digest=key.digest)


def resume_after(call: Call, key: ClaimKey | None, *, streams: bool, claimed: bool) -> int | None:
    """Return the id behind which the stream of a retry goes on; None: the turn's beginning.

    Args:
        call: The request.
        key: The caller's key.
        streams: Whether it wants a stream.
        claimed: Whether the key stands for a turn already.

    Raises:
        ProblemError: It asks to go on with what it cannot have begun.
    """
    after = call.after
    if after is None:
        return None
    if key is None:
        raise _invalid(call.after_field, f"only a retry with an {HEADER} can go on with a stream")
    if not streams:
        raise _invalid(call.after_field, "means nothing without `stream`")
    if not claimed:
        raise _invalid(
            call.after_field,
            f"the {HEADER} stands for nothing, so there is no stream to go on with. "
            "Leave it out to begin",
        )
    return after


@contextmanager
def kept(key: ClaimKey | None) -> Generator[None]:
    """Say of a key whose work is forgotten that it is, instead of that there is no session."""
    try:
        yield
    except (SessionNotFound, TurnNotFound) as error:
        if key is None:
            raise
        raise refuse(
            "idempotency_conflict",
            f"What was done under the key {key.key!r} is no longer kept. Choose a new key to have "
            "it done again.",
        ) from error


def _invalid(field: str, message: str) -> InvalidRequest:
    return InvalidRequest([FieldError(field=field, message=message)])
