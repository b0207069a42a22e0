"""HTTP/1.1 by Hypercorn, with what no setting of it reaches mended."""

from __future__ import annotations

import re
from typing import Any, cast

import h11
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import H11SendableEvent

from session_http.encoding import dump
from session_http.inbox import Calls, Inbox
from session_http.problems import Problem
from session_http.wire import Wire

PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
"""What a client that assumes HTTP/2 begins with, as far as it looks like a request."""

MOST_WAITING = 64 * 1024
"""Bytes of a body that may wait for the application before no more is read from the client."""

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})

_URL = re.compile(rb"(?i:https?)://(?P<host>[^/?#]*)(?P<rest>[^#]*).*")


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
            cast(Any, Calls(wire.group, self._new_inbox, self._write_now)),
            wire.state,
            wire.ssl,
            wire.client,
            wire.server,
            wire.send,
        )
        self._http2 = wire.http2
        self._wire_write_now = wire.write_now
        self._in_chunks = False
        """Whether a body is being sent that comes in chunks."""

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
        """Change to HTTP/2 where the client assumes it, and it may.

        Over TLS the handshake has decided. Offers (`Upgrade: h2c`) are ignored, as RFC 9113 has it:
        a proxy that passes one on sees nothing of what comes after, and its rules hold for none of
        it.
        """
        is_preface = event.method == b"PRI" and event.http_version == b"2.0"
        if is_preface and event.target == b"*" and self._http2 and not self.ssl:
            raise H2ProtocolAssumedError(PREFACE + self.connection.trailing_data[0])

    def _new_inbox(self) -> Inbox:
        return Inbox(most=MOST_WAITING, asked=self._permit)

    async def _permit(self) -> None:
        """Tell a client that waits for it that its body is wanted."""
        if self.connection.they_are_waiting_for_100_continue:
            await super()._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    # -- what goes --------------------------------------------------------------------------

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        # Hypercorn asks for every body at once, also for one that is going to be refused.
        if isinstance(event, h11.InformationalResponse) and event.status_code == 100:
            return
        if isinstance(event, h11.EndOfMessage):
            self._in_chunks = False
        await super()._send_h11_event(event)
        if isinstance(event, h11.Response):
            self._in_chunks = self._comes_in_chunks(event)

    def _comes_in_chunks(self, response: h11.Response) -> bool:
        """Whether the body of an answer whose head was sent comes in chunks, by h11's rules."""
        return (
            self.connection.our_state is h11.SEND_BODY
            and isinstance(self.stream, HTTPStream)
            and self.stream.scope["method"] != "HEAD"
            and self.stream.scope["http_version"] == "1.1"
            and response.status_code not in (204, 304)
            and not any(name in _FRAMING for name, _ in response.headers)
        )

    def _write_now(self, data: bytes) -> bool:
        """Send a piece of a body as a chunk, if that needs no waiting; return whether it was sent.

        A chunk changes nothing in h11's state, so it need not pass there.
        """
        # Written as one: what is in between is copied, but a second call costs more than that.
        return self._in_chunks and self._wire_write_now(b"%x\r\n%b\r\n" % (len(data), data))

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
        response = h11.Response(status_code=problem.status, headers=headers)
        # What is wrong may be behind a request that is being answered.
        is_head = isinstance(self.stream, HTTPStream) and self.stream.scope["method"] == "HEAD"
        content = () if is_head else (h11.Data(data=body),)
        data = [self.connection.send(one) for one in (response, *content, h11.EndOfMessage())]
        await self.send(RawData(data=b"".join(data)))


def _plain(request: h11.Request) -> h11.Request:
    """Return a request for this server as such, without an offer to become a WebSocket.

    The target may be a whole URL, as for proxies, and then its host is the one that is meant. An
    offer to change the protocol may be ignored; Hypercorn would hand it to the application as
    something that is no HTTP.
    """
    target, headers = request.target, list(request.headers)
    if (url := _URL.fullmatch(target)) is not None:
        # Not by `urlsplit`, which raises for hosts that cannot be: whether one may is not for here.
        target = b"/" + url["rest"].removeprefix(b"/")
        headers = [(name, value) for name, value in headers if name != b"host"]
        headers.insert(0, (b"host", url["host"]))
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
