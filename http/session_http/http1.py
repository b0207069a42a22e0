"""HTTP/1.1 by Hypercorn, with what no setting of it reaches mended."""

from __future__ import annotations

import base64
import binascii
from typing import Any, cast
from urllib.parse import urlsplit

import h11
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import H11SendableEvent

from session_http.encoding import dump
from session_http.inbox import Calls, Inbox
from session_http.problems import Problem
from session_http.wire import Wire

MOST_WAITING = 64 * 1024
"""Bytes of a body that may wait for the application before no more is read from the client."""

SETTING = 6
"""Bytes of one HTTP/2 setting."""


class Http1(H11Protocol):
    """One connection's HTTP/1.1.

    Args:
        wire: The connection.
    """

    def __init__(self, wire: Wire) -> None:
        super().__init__(
            cast(Any, wire.app),
            wire.config,
            wire.context,
            cast(Any, Calls(wire.group, self._new_inbox)),
            wire.state,
            wire.ssl,
            wire.client,
            wire.server,
            wire.send,
        )
        self._http2 = wire.http2

    async def expire(self, *, partial: bool) -> None:
        """End the connection, on which nothing is being answered.

        Args:
            partial: Whether the beginning of a request has come.
        """
        if partial and self.connection.our_state is h11.IDLE:
            await self._answer(
                Problem(code="request_timeout", detail="The request's head did not arrive in time.")
            )
        await self.send(Closed())

    # -- what comes -------------------------------------------------------------------------

    async def _create_stream(self, request: h11.Request) -> None:
        await super()._create_stream(_plain(request))

    async def _check_protocol(self, event: h11.Request) -> None:
        """Change to HTTP/2 where the client assumes it, or offers it properly, and it may.

        Over TLS the handshake has decided. An offer may be ignored, and so a faulty one is.
        """
        if self._http2 and not self.ssl and (event.method == b"PRI" or _offers_http2(event)):
            await super()._check_protocol(event)

    def _new_inbox(self) -> Inbox:
        return Inbox(most=MOST_WAITING, asked=self._permit)

    async def _permit(self) -> None:
        """Tell a client that waits for it that its body is wanted."""
        if self.connection.they_are_waiting_for_100_continue:
            await super()._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    # -- what goes --------------------------------------------------------------------------

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        # Hypercorn asks for every body at once, also for one that is going to be refused.
        if not (isinstance(event, h11.InformationalResponse) and event.status_code == 100):
            await super()._send_h11_event(event)

    async def _send_error_response(self, status_code: int) -> None:
        """Answer what is no proper request."""
        if status_code == 431:
            await self._answer(
                Problem(code="headers_too_large", detail="The request's head is too long.")
            )
        else:
            await self._answer(
                Problem(code="malformed_http", detail="This is not a proper HTTP/1.1 request.")
            )

    async def _answer(self, problem: Problem) -> None:
        body = dump(problem.body())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        data = [
            self.connection.send(event)
            for event in (
                h11.Response(status_code=problem.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
        ]
        await self.send(RawData(data=b"".join(data)))


def _plain(request: h11.Request) -> h11.Request:
    """Return a request for this server as such, without an offer to become a WebSocket.

    The target may be a whole URL, as for proxies, and then its host is the one that is meant. An
    offer to change the protocol may be ignored; Hypercorn would hand it to the application as
    something that is no HTTP.
    """
    target, headers = request.target, list(request.headers)
    if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
        url = urlsplit(target)
        target = (url.path or b"/") + (b"?" + url.query if url.query else b"")
        headers = [(name, value) for name, value in headers if name != b"host"]
        headers.insert(0, (b"host", url.netloc))
    headers = [
        (name, value)
        for name, value in headers
        if name != b"upgrade" or value.strip().lower() != b"websocket"
    ]
    if target == request.target and len(headers) == len(list(request.headers)):
        return request
    return h11.Request(
        method=request.method, target=target, headers=headers, http_version=request.http_version
    )


def _offers_http2(request: h11.Request) -> bool:
    values = [value for name, value in request.headers if name == b"http2-settings"]
    if len(values) != 1:
        return False
    try:
        settings = base64.b64decode(values[0] + b"=" * (-len(values[0]) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(settings) % SETTING == 0
