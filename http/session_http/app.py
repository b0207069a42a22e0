"""`create_app`: the API as one plain ASGI application, for any server, mountable in any other."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
import uuid
from collections.abc import Mapping
from types import MappingProxyType

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from session_http.call import Answer, Call, Nothing, Page, Server
from session_http.credentials import Assumed, Credentials
from session_http.encoding import dump
from session_http.guard import check_origin
from session_http.keys import Authenticate, authenticate
from session_http.openapi import document
from session_http.operations import ENDPOINTS, OPERATIONS, Operation
from session_http.pages import Pages
from session_http.problems import problem_of, refuse, unforeseen
from session_http.reading import Body, ClientGone, Source
from session_http.settings import HttpSettings
from session_http.sse import EventStream, EventStreamResponse, Streams
from session_supervisor import Supervisor

logger = logging.getLogger(__name__)

DISCARD_S = 5.0
"""Seconds that a client may go on sending a body that nobody wants."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")


def create_app(
    supervisor: Supervisor,
    *,
    credentials: Credentials | None = None,
    settings: HttpSettings | None = None,
    authenticate: Authenticate = authenticate,
) -> App:
    """Return the API of a supervisor as an ASGI application.

    The supervisor must be open before the first request, and stay so until the last; the
    application neither opens nor closes it, and needs no lifespan.

    Args:
        supervisor: The sessions.
        credentials: Whether they can reach the model; None vouches that they can.
        settings: Limits and policies; None for the defaults.
        authenticate: Tells who calls.
    """
    return App(
        supervisor,
        credentials=credentials or Assumed(),
        settings=settings or HttpSettings(),
        authenticate=authenticate,
    )


class App:
    """The application; see `create_app`."""

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        credentials: Credentials,
        settings: HttpSettings,
        authenticate: Authenticate,
    ) -> None:
        self._settings = settings
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._streams = Streams(settings.streams)
        server = Server(
            supervisor=supervisor,
            credentials=credentials,
            settings=settings,
            streams=self._streams,
            pages=Pages(),
            endpoints=ENDPOINTS,
            describe=functools.cache(lambda: dump(document(OPERATIONS))),
        )
        by_path: dict[str, dict[str, Operation]] = {}
        for row in OPERATIONS:
            by_path.setdefault(row.path, {})[row.method] = row
        self._router = Router(
            [
                Route(path, _Resource(server, methods, authenticate), name=path)
                for path, methods in by_path.items()
            ],
            redirect_slashes=False,
            default=_no_such_path,
        )

    @property
    def open_requests(self) -> int:
        """Requests that are being answered, streams included."""
        return self._requests

    async def all_answered(self) -> None:
        """Return when no request is being answered."""
        await self._idle.wait()

    @property
    def open_streams(self) -> int:
        """Streams that are open."""
        return self._streams.open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        self._requests += 1
        self._idle.clear()
        try:
            await self._serve(scope, receive, send)
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Route a request; whatever goes wrong becomes an answer, if there is none yet."""
        began = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        settings = self._settings
        body = Body(
            scope, receive, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
        )
        scope["session_http.body"] = body
        is_head = scope["method"] == "HEAD"
        started = False

        async def respond(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                added = MutableHeaders(scope=message)
                added["x-request-id"] = request_id
                total = (time.perf_counter() - began) * 1000
                added.append("server-timing", f"total;dur={total:.1f}")
                added.setdefault("x-content-type-options", "nosniff")
            elif is_head:
                message = {**message, "body": b""}
            try:
                await send(message)
            except OSError as error:  # how some servers say so
                raise ClientGone("The client went away in the middle of its answer.") from error

        try:
            check_origin(scope["method"], headers, settings.trusted_hosts)
            await self._router(scope, body.receive, respond)
        except ClientGone:
            return
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                logger.exception("request %s failed: %s", request_id, scope["path"])
                problem = unforeseen(request_id)
            if started:
                # Too late for an answer; the server closes the connection, so nobody takes what
                # there is for a whole one.
                raise
            await _answer_early(problem.response(), body, scope, respond)


async def _answer_early(response: Response, body: Body, scope: Scope, send: Send) -> None:
    """Answer a request whose body may not have arrived, and may never do.

    A client that is still sending would not see the answer if the connection were closed on it, and
    Hypercorn's reader would be stuck with what nobody receives.
    """
    if response.status_code != 408:
        await body.discard(DISCARD_S)
    if not body.pending:
        await response(scope, body.receive, send)
        return
    response.headers["connection"] = "close"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body.discard, DISCARD_S)
        await response(scope, body.receive, send)


class _Resource:
    """Everything at one path; an ASGI application."""

    def __init__(
        self, server: Server, methods: Mapping[str, Operation], authenticate: Authenticate
    ) -> None:
        self._server = server
        self._methods = MappingProxyType(dict(methods))
        self._authenticate = authenticate
        names = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set[str]())
        self._allow = ", ".join(sorted(names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out the operation of the request's method."""
        method: str = scope["method"]
        row = self._methods.get("GET" if method == "HEAD" else method)
        if row is not None:
            response = await self._run(row, scope, receive)
        elif method == "OPTIONS":
            response = Response(status_code=204, headers={"allow": self._allow})
        else:
            raise refuse(
                "method_not_allowed",
                f"{scope['path']} has no {method}; it has {self._allow}.",
                headers={"allow": self._allow},
            )
        await response(scope, receive, send)

    async def _run(self, row: Operation, scope: Scope, receive: Receive) -> ASGIApp:
        connection = HTTPConnection(scope)
        headers = connection.headers
        call = Call(
            server=self._server,
            principal=self._authenticate(connection),
            path=scope["path_params"],
            last_event_id=headers.get("last-event-id"),
            if_none_match=headers.get("if-none-match"),
        )
        body: Body = scope["session_http.body"]
        if row.source is Source.QUERY:
            # Hypercorn's reader gets stuck in a body that nobody receives.
            await body.skip()
            raw: bytes = scope["query_string"]
        else:
            raw = await body.read()
        answer = await row.run(call, raw)
        return _response(answer, call)


def _response(answer: Answer, call: Call) -> ASGIApp:
    match answer:
        case EventStream():
            return EventStreamResponse(answer, call.server.settings.streams)
        case Nothing():
            return Response(status_code=204)
        case Page():
            return _page(answer, call)
        case _:
            response = Response(dump(answer.model_dump(mode="json")), media_type="application/json")
            if call.timing:
                spent = (f"{name};dur={ms:.1f}" for name, ms in call.timing.items())
                response.headers["server-timing"] = ", ".join(spent)
            return response


def _page(page: Page, call: Call) -> Response:
    headers = {"cache-control": "no-cache"}
    if page.etag is not None:
        headers["etag"] = page.etag
        if page.etag in (call.if_none_match or ""):
            return Response(status_code=304, headers=headers)
    return Response(page.content, headers={**headers, "content-type": page.media_type})


async def _no_such_path(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1000})
        return
    raise refuse("not_found", f"There is no {scope['path']!r} here. `GET /` lists what there is.")


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
