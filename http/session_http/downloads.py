"""Sends a file of a session's: as one to be saved, never to be shown, whatever is in it."""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import quote

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from session_http.files import NoSuchFile, Opened, open_file
from session_http.problems import refuse
from session_http.reading import ClientGone

CHUNK = 256 * 2**10
"""Bytes that are read, and sent, at once."""

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        # Where a browser should show it all the same, it is a page that may do nothing.
        "content-security-policy": "sandbox; default-src 'none'",
        "x-content-type-options": "nosniff",
        "cache-control": "private, no-cache",
        "accept-ranges": "bytes",
    }
)

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_PLAIN = re.compile(r"[A-Za-z0-9 ._+=@,~()-]+")


@dataclass(frozen=True, slots=True)
class Span:
    """Some bytes of a file, from the first up to and without the last."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A file to send; an ASGI application.

    Attributes:
        root: The session's own directory.
        parts: The names that lead from there to the file.
        send_timeout_s: Seconds that a client may read nothing, before it is dropped.
    """

    root: str
    parts: tuple[str, ...]
    send_timeout_s: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or the part of it that was asked for.

        Raises:
            ProblemError: There is no such file, or no such part of it.
            ClientGone: The client did not wait for its end.
        """
        try:
            opened = await anyio.to_thread.run_sync(open_file, self.root, self.parts)
        except NoSuchFile as error:
            raise refuse("file_not_found", str(error)) from error
        try:
            await self._send(opened, scope, receive, send)
        finally:
            os.close(opened.fd)

    async def _send(self, opened: Opened, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope)
        etag = f'"{opened.modified_ns:x}-{opened.size:x}"'
        headers = {**HEADERS, "etag": etag}
        if etag in asked.get("if-none-match", ""):
            await Response(status_code=304, headers=headers)(scope, receive, send)
            return
        span = None
        if asked.get("if-range", etag) == etag:
            span = span_of(asked.get("range", ""), opened.size)
        if span is not None:
            headers["content-range"] = f"bytes {span.start}-{span.stop - 1}/{opened.size}"
        whole = span or Span(0, opened.size)
        name = self.parts[-1]
        headers |= {
            "content-length": str(whole.stop - whole.start),
            "content-type": media_type_of(name),
            "content-disposition": disposition_of(name),
        }
        head = Response(status_code=200 if span is None else 206, headers=headers)
        start = {
            "type": "http.response.start",
            "status": head.status_code,
            "headers": head.raw_headers,
        }
        await send(start)
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        whole_sent = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_listen, receive, tasks.cancel_scope)
            with suppress(_Broken):
                await self._send_bytes(opened.fd, whole, send)
                whole_sent = True
            tasks.cancel_scope.cancel()
        if not whole_sent:
            # So that what was sent is taken for no whole file: the server ends the connection.
            raise ClientGone("A file was not sent to its end.")

    async def _send_bytes(self, fd: int, span: Span, send: Send) -> None:
        place = span.start
        while place < span.stop:
            # Not abandoned when this is cancelled, so that nothing reads what is closed then.
            piece = await anyio.to_thread.run_sync(
                os.pread, fd, min(CHUNK, span.stop - place), place
            )
            if not piece:
                raise _Broken  # it became shorter meanwhile
            place += len(piece)
            with anyio.move_on_after(self.send_timeout_s) as waiting:
                await _say(send, piece, more=True)
            if waiting.cancelled_caught:
                raise _Broken  # the client does not read what it asked for
        await _say(send, b"", more=False)


def span_of(header: str, size: int) -> Span | None:
    """Return which part of a file is asked for; None: all of it.

    What is no single range of bytes asks for all, as it may.

    Args:
        header: `Range`, empty if there is none.
        size: Bytes of the file.

    Raises:
        ProblemError: The file has no such part.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        start, stop = max(size - int(found[2]), 0), size
    else:
        start, stop = int(found[1]), size if found[2] == "" else int(found[2]) + 1
        if start >= stop and found[2] != "":
            return None
    stop = min(stop, size)
    if start >= stop:
        raise refuse(
            "range_not_satisfiable",
            f"The file has {size} bytes, and none of those.",
            headers={"content-range": f"bytes */{size}"},
        )
    return Span(start, stop)


def media_type_of(name: str) -> str:
    """Return what a file is, as far as its name says."""
    media_type, encoding = mimetypes.guess_type(f"./{name}")
    return media_type if media_type is not None and encoding is None else "application/octet-stream"


def disposition_of(name: str) -> str:
    """Return the header that has a file saved under its name, whatever is in that."""
    if _PLAIN.fullmatch(name):
        return f'attachment; filename="{name}"'
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


class _Broken(Exception):
    """The file cannot be sent to its end."""


async def _say(send: Send, piece: bytes, *, more: bool) -> None:
    try:
        await send({"type": "http.response.body", "body": piece, "more_body": more})
    except ClientGone:
        raise _Broken from None


async def _listen(receive: Receive, scope: anyio.CancelScope) -> None:
    """End the download as soon as the client is gone."""
    with suppress(Exception):  # some servers raise instead; either way nobody listens any more
        while (await receive())["type"] != "http.disconnect":
            pass
    scope.cancel()
