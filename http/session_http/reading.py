"""A request's bytes become its model, or an error that says which field and why."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import StrEnum
from typing import TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from session_http.problems import FieldError, InvalidRequest, ProblemError, invalid, refuse

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


SMALL = 16 * 1024
"""Bytes of a body that need no look ahead: nothing in it can be many."""

MOST_PARTS = 2_000
"""Lists, objects, fields and items of a body that are worth parsing; each takes memory and time."""

NOT_A_MARK = bytes(set(range(256)) - set(b"[{,"))
"""Bytes before which nothing begins: a field or an item follows `[`, `{` or a comma."""


class Source(StrEnum):
    """Where a request's model is read from."""

    QUERY = "query"
    """The query string."""
    BODY = "body"
    """A JSON body."""
    OPTIONAL_BODY = "optional_body"
    """A JSON body, which may be left out."""


def read_model(model: type[M], raw: bytes, source: Source) -> M:
    """Return what a request says.

    Args:
        model: What it may say.
        raw: Its body, or its query string.
        source: Which of the two.

    Raises:
        ProblemError: It is not JSON, or does not fit the model.
    """
    try:
        if source is Source.QUERY:
            return model.model_validate(_parameters(raw))
        if not raw.strip() and source is Source.OPTIONAL_BODY:
            return model.model_validate({})
        _refuse_many_parts(raw, model)
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise _not_json(first.get("ctx", {}).get("error", first["msg"])) from None
        raise invalid(error, model.model_fields) from None


def _refuse_many_parts(raw: bytes, model: type[BaseModel]) -> None:
    """Refuse unparsed what would take seconds to parse, and the event loop with it.

    Raises:
        ProblemError: It has many times more parts than any request, or does not begin as JSON.
    """
    if len(raw) < SMALL or count_parts(raw) <= MOST_PARTS:
        return
    # A long text that is no JSON at all has many commas, and should be told what it is.
    try:
        from_json(raw[:SMALL], allow_partial=True)
    except ValueError as error:
        raise _not_json(error) from None
    known = ", ".join(model.model_fields)
    message = (
        f"the body has more than {MOST_PARTS} lists, objects, fields and items; "
        f"the fields there are: {known}"
    )
    raise InvalidRequest([FieldError(field="", message=message)])


def count_parts(raw: bytes) -> int:
    """Return how many marks a body has outside its strings; above `MOST_PARTS` it may be inexact.

    Every step is one pass in C: a loop over strings or escapes would itself take seconds.
    """
    # Without its escapes, first of backslashes and then of quotes, every quote is a string's end.
    bare = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    # A mark begins a name and a value at most: if there are more strings, there are more marks.
    pieces = bare.split(b'"', 4 * MOST_PARTS)
    return sum(len(piece.translate(None, NOT_A_MARK)) for piece in pieces[::2])


def _not_json(cause: object) -> ProblemError:
    return refuse("malformed_json", f"The body is not JSON: {cause}.")


def _parameters(raw: bytes) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True):
        if name in parameters:
            raise InvalidRequest([FieldError(field=name, message="is given more than once")])
        parameters[name] = value
    return parameters


class Body:
    """The body of one request.

    Args:
        scope: The request.
        receive: Where the body comes from.
        max_bytes: Longest that is accepted.
        timeout_s: Seconds in which it must have arrived.
    """

    def __init__(self, scope: Scope, receive: Receive, *, max_bytes: int, timeout_s: float) -> None:
        self._headers = Headers(scope=scope)
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        length = self._headers.get("content-length", "0")
        self._length = int(length) if length.isascii() and length.isdigit() else 0
        self.pending = self._length > 0 or "transfer-encoding" in self._headers
        """Whether some of it has not been received."""

    async def receive(self) -> Message:
        """Receive as an ASGI application does, and note whether that was the end of the body."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.pending = False
        return message

    async def read(self) -> bytes:
        """Return all of it.

        Raises:
            ProblemError: It is too long, not declared as JSON, or does not arrive in time.
        """
        if not self.pending:
            return b""
        if self._length > self._max_bytes:
            raise self._too_long()
        media_type = self._headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not (
            media_type.startswith("application/") and media_type.endswith("+json")
        ):
            raise refuse(
                "unsupported_media_type",
                "The body must be JSON, and say so: Content-Type: application/json"
                + (f", not {media_type[:100]!r}." if media_type else "."),
            )
        return await self._in_time(self._read_all())

    async def skip(self) -> None:
        """Receive a body that means nothing, if there is one.

        Raises:
            ProblemError: It does not arrive in time.
        """
        if self.pending:
            await self._in_time(self._discard_all())

    async def discard(self, timeout_s: float) -> None:
        """Receive what is left, without keeping it, for so many seconds at most."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._discard_all()
        except TimeoutError:
            return

    async def _in_time(self, receiving: Coroutine[None, None, T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await receiving
        except TimeoutError:
            raise refuse(
                "request_timeout", f"The body did not arrive within {self._timeout_s:g} s."
            ) from None

    async def _discard_all(self) -> None:
        while self.pending:
            await self.receive()

    async def _read_all(self) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while self.pending:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > self._max_bytes:
                raise self._too_long()
            pieces.append(piece)
        return b"".join(pieces)

    def _too_long(self) -> ProblemError:
        return refuse(
            "payload_too_large",
            f"The body is longer than {self._max_bytes} bytes, the most that is allowed.",
        )


class ClientGone(ConnectionError):
    """The client went away; nobody waits for an answer."""
