"""A request's bytes become its model, or an error that says which field and why."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Coroutine, Iterable
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from session_http.problems import FieldError, InvalidRequest, ProblemError, invalid, refuse
from session_http.schemas import Request

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


SMALL = 16 * 1024
"""Bytes of a body that need no look ahead: nothing in it can be many."""

MOST_PARTS = 2_000
"""Lists, objects, fields and items of a body that are worth parsing; each takes memory and time."""

NOT_A_MARK = bytes(set(range(256)) - set(b"[{,"))
"""Bytes before which nothing begins: a field or an item follows `[`, `{` or a comma."""

BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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
        if not raw.strip(b" \t\r\n") and source is Source.OPTIONAL_BODY:  # blank, for JSON
            return model.model_validate({})
        _refuse_many_parts(raw, model)
        found = model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise _not_json(first.get("ctx", {}).get("error", first["msg"]), raw) from None
        elsewhere = model.elsewhere if issubclass(model, Request) else None
        raise invalid(error, model.model_fields, elsewhere or {}) from None
    # Once it fits the model, it is neither deep nor full of parts, and Python's parser can have it.
    json.loads(raw, object_pairs_hook=_refuse_repeated)
    return found


def _refuse_repeated(members: Iterable[tuple[str, Any]]) -> None:
    """Refuse an object that says something twice: who reads the first does not read the last."""
    seen: set[str] = set()
    for name, _ in members:
        if name in seen:
            raise InvalidRequest([FieldError(field=name, message="is given more than once")])
        seen.add(name)


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
        raise _not_json(error, raw) from None
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


def _not_json(cause: object, raw: bytes) -> ProblemError:
    if raw.startswith(BYTE_ORDER_MARKS):
        cause = "it begins with a byte order mark; send UTF-8 without one"
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
        # From HTTP/2 on, whether there is a body shows only when it begins.
        self._undeclared = "content-length" not in self._headers and not scope.get(
            "http_version", "1.1"
        ).startswith("1")
        self.pending = self._length > 0 or "transfer-encoding" in self._headers or self._undeclared
        """Whether some of it has not been received."""
        self.unasked = self._headers.get("expect", "").strip().lower() == "100-continue"
        """Whether the client waits to be asked for it, by the first `receive`."""
        self.given_up = False
        """Whether nobody waits for the rest of it."""
        self._waiting: asyncio.Timeout | None = None

    def check_framing(self) -> None:
        """Refuse a request whose body's end two readers would see in different places.

        Where a proxy goes by the one header and we by the other, what is a body to it is a request
        to us, of whoever uses the connection next. So nothing more may be read from it either.

        Raises:
            ProblemError: Both headers say where it ends.
        """
        if "content-length" in self._headers and "transfer-encoding" in self._headers:
            raise refuse(
                "invalid_request",
                "The request has both Content-Length and Transfer-Encoding. Send one of them.",
                headers={"connection": "close"},
            )

    async def receive(self) -> Message:
        """Receive as an ASGI application does, and note whether that was the end of the body."""
        self.unasked = False
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
        begin = await self._begin()
        if begin is None:
            return b""
        media_type = self._headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not (
            media_type.startswith("application/") and media_type.endswith("+json")
        ):
            raise refuse(
                "unsupported_media_type",
                "The body must be JSON, and say so: Content-Type: application/json"
                + (f", not {media_type[:100]!r}." if media_type else "."),
            )
        coding = self._headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise refuse(
                "unsupported_media_type",
                f"The body must be plain JSON, not compressed or encoded: {coding[:100]!r}.",
            )
        return await self._in_time(self._read_all(begin))

    def give_up(self) -> None:
        """Wait no longer for it: the server is to end."""
        self.given_up = True
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

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
            async with asyncio.timeout(0 if self.given_up else timeout_s) as self._waiting:
                await self._discard_all()
        except TimeoutError:
            return
        finally:
            self._waiting = None

    async def _in_time(self, receiving: Coroutine[None, None, T]) -> T:
        try:
            async with asyncio.timeout(0 if self.given_up else self._timeout_s) as self._waiting:
                return await receiving
        except TimeoutError:
            if self.given_up:
                raise refuse(
                    "draining",
                    "The server shuts down, and the body had not arrived.",
                    retry_after=5.0,
                ) from None
            raise refuse(
                "request_timeout", f"The body did not arrive within {self._timeout_s:g} s."
            ) from None
        finally:
            self._waiting = None

    async def _discard_all(self) -> None:
        while self.pending:
            await self.receive()

    async def _read_all(self, begin: bytes) -> bytes:
        pieces = [begin]
        size = len(begin)
        while size <= self._max_bytes:
            if not self.pending:
                return b"".join(pieces)
            pieces.append(await self._next())
            size += len(pieces[-1])
        raise self._too_long()

    async def _begin(self) -> bytes | None:
        """Return the first piece of a body, where one was not declared; None: there is none."""
        if not self._undeclared:
            return b""
        piece = await self._in_time(self._next())
        return piece if piece or self.pending else None

    async def _next(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        return piece

    def _too_long(self) -> ProblemError:
        return refuse(
            "payload_too_large",
            f"The body is longer than {self._max_bytes} bytes, the most that is allowed.",
        )


class ClientGone(ConnectionError):
    """The client went away; nobody waits for an answer."""
