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
from urllib.parse import parse_qsl
from weakref import WeakSet

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from session_http import logs
from session_http.call import Answer, Call, Nothing, Page, Server
from session_http.cors import Cors
from session_http.credentials import Assumed, Credentials
from session_http.downloads import Download
from session_http.encoding import dump, dump_model
from session_http.guard import check_host, check_page
from session_http.keys import (
    ANONYMOUS,
    Authenticate,
    NoKey,
    Principal,
    anybody,
    check_validity,
)
from session_http.openapi import document
from session_http.operations import ENDPOINTS, OPERATIONS, Operation
from session_http.pages import Pages
from session_http.problems import problem_of, refuse, unforeseen
from session_http.reading import Body, ClientGone, Source
from session_http.schemas import Reply
from session_http.settings import HttpSettings, OpenPaths
from session_http.sse import EventStream, EventStreamResponse, Streams
from session_supervisor import Supervisor
from session_supervisor.errors import StoreError

logger = logging.getLogger(__name__)

DISCARD_S = 5.0
"""Seconds that a client may go on sending a body that nobody wants."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")


def create_app(
    supervisor: Supervisor,
    *,
    credentials: Credentials | None = None,
    settings: HttpSettings | None = None,
    authenticate: Authenticate = anybody,
) -> App:
    """Return the API of a supervisor as an ASGI application.

    The supervisor must be open before the first request, and stay so until the last; the
    application neither opens nor closes it, and needs no lifespan.

    Args:
        supervisor: The sessions.
        credentials: Whether they can reach the model; None vouches that they can.
        settings: Limits and policies; None for the defaults.
        authenticate: Tells who calls, such as `KeyRing.authenticate`. By default anybody may.
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
        self._bodies: WeakSet[Body] = WeakSet()
        self._idle = asyncio.Event()
        self._idle.set()
        self._streams = Streams(settings.streams)
        asks_not = None if authenticate is anybody else settings.open_paths
        server = Server(
            supervisor=supervisor,
            credentials=credentials,
            settings=settings,
            streams=self._streams,
            pages=Pages(),
            endpoints=ENDPOINTS,
            describe=functools.cache(lambda: dump(document(OPERATIONS, open_paths=asks_not))),
        )
        door = _Door(authenticate, settings)
        by_path: dict[str, dict[str, Operation]] = {}
        for row in OPERATIONS:
            by_path.setdefault(row.path, {})[row.method] = row
        self._router = Router(
            [
                # A path within a path has slashes of its own.
                Route(
                    path.replace("{path}", "{path:path}"),
                    _Resource(server, methods, door),
                    name=path,
                )
                for path, methods in by_path.items()
            ],
            redirect_slashes=False,
            default=_NoSuchPath(door),
        )
        self._cors: Cors | None = None
        if settings.cors_origins:
            methods = {row.method for row in OPERATIONS}
            self._cors = Cors(self._router, origins=settings.cors_origins, methods=methods)

    @property
    def open_requests(self) -> int:
        """Requests that are being answered, streams included."""
        return self._requests

    def give_up_bodies(self) -> None:
        """Answer every request whose body has not arrived; the server is to end."""
        for body in tuple(self._bodies):
            body.give_up()

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
            with logs.request(_request_id(Headers(scope=scope)), scope["method"]) as noted:
                scope["session_http.noted"] = noted
                await self._serve(scope, receive, send, noted)
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def _serve(self, scope: Scope, receive: Receive, send: Send, noted: logs.Request) -> None:
        """Route a request; whatever goes wrong becomes an answer, if there is none yet."""
        headers = Headers(scope=scope)
        settings = self._settings
        body = Body(
            scope, receive, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
        )
        scope["session_http.body"] = body
        if body.pending:
            self._bodies.add(body)
        is_head = scope["method"] == "HEAD"
        started = False
        cors = self._cors
        if cors is not None:
            send = functools.partial(cors.send, send=send, request_headers=headers)

        async def respond(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                noted.status = message["status"]
                added = MutableHeaders(scope=message)
                added["x-request-id"] = noted.request_id
                total = (time.perf_counter() - noted.began) * 1000
                added.append("server-timing", f"total;dur={total:.1f}")
                added.setdefault("x-content-type-options", "nosniff")
            elif is_head:
                message = {**message, "body": b""}
            try:
                await send(message)
            except OSError as error:  # how some servers say so
                raise ClientGone("The client went away in the middle of its answer.") from error

        try:
            body.check_framing()
            check_host(headers, settings.trusted_hosts)
            if cors is not None and cors.is_preflight(scope["method"], headers):
                await body.skip()
                await cors.preflight_response(headers)(scope, body.receive, respond)
            else:
                await self._router(scope, body.receive, respond)
        except ClientGone:
            return
        except Exception as error:
            problem = problem_of(error)
            if problem is None or isinstance(error, StoreError):
                # Without its path, which may be anything, and is in its line where it is known.
                logger.exception("request %s failed", noted.request_id)
            if problem is None:
                problem = unforeseen(noted.request_id)
            if started:
                # Too late for an answer; the server closes the connection, so nobody takes what
                # there is for a whole one.
                raise
            try:
                await _answer_early(problem.response(), body, scope, respond)
            except* ClientGone:
                logger.debug("a client did not wait for its refusal")


async def _answer_early(response: Response, body: Body, scope: Scope, send: Send) -> None:
    """Answer a request whose body may not have arrived, and may never do.

    A client that is still sending would not see the answer if the connection were closed on it, and
    Hypercorn's reader would be stuck with what nobody receives.
    """
    if response.status_code != 408 and not body.unasked and not body.given_up:
        await body.discard(DISCARD_S)
    if not body.pending:
        await response(scope, body.receive, send)
        return
    # From HTTP/2 on, it is the stream that is ended, by the server, and the header does not exist.
    if scope.get("http_version", "1.1").startswith("1"):
        response.headers["connection"] = "close"
    if body.unasked:  # so the client sends nothing
        await response(scope, body.receive, send)
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(body.discard, DISCARD_S)
        await response(scope, body.receive, send)


class _Door:
    """Says who comes in; nothing is told, and no body read, before."""

    def __init__(self, authenticate: Authenticate, settings: HttpSettings) -> None:
        self._authenticate = authenticate
        self._settings = settings

    def enter(self, scope: Scope, open_path: OpenPaths | None = None) -> Principal:
        """Return who calls.

        Args:
            scope: The request.
            open_path: Among which paths it is that may be open; None: none.

        Raises:
            ProblemError: The caller may not.
        """
        settings = self._settings
        connection = HTTPConnection(scope)
        try:
            principal = self._authenticate(connection)
        except NoKey:
            if open_path not in settings.open_paths:
                raise
            principal = ANONYMOUS
        if principal.key_id is None:
            check_page(
                scope["method"], connection.headers, settings.trusted_hosts, settings.cors_origins
            )
        noted: logs.Request | None = scope.get("session_http.noted")
        if noted is not None:
            noted.owner, noted.key_id = principal.owner, principal.key_id
        return principal


class _Resource:
    """Everything at one path; an ASGI application."""

    def __init__(self, server: Server, methods: Mapping[str, Operation], door: _Door) -> None:
        self._server = server
        self._methods = MappingProxyType(dict(methods))
        self._door = door
        # All that is at one path is open, or none of it.
        rows = tuple(methods.values())
        self._open: OpenPaths | None = rows[0].open
        self._path = rows[0].path
        assert all(row.open == self._open for row in rows)
        names = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set[str]())
        self._allow = ", ".join(sorted(names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out the operation of the request's method."""
        noted: logs.Request = scope["session_http.noted"]
        noted.path = self._path
        # Some of them may be the application's in which this one is mounted.
        given = scope["path_params"]
        noted.about(session_id=given.get("session_id"), turn_id=given.get("turn_id"))
        principal = self._door.enter(scope, self._open)
        method: str = scope["method"]
        row = self._methods.get("GET" if method == "HEAD" else method)
        if row is not None:
            response = await self._run(row, scope, principal)
        elif method == "OPTIONS":
            response = Response(status_code=204, headers={"allow": self._allow})
        else:
            raise refuse(
                "method_not_allowed",
                f"{scope['path']} has no {method}; it has {self._allow}.",
                headers={"allow": self._allow},
            )
        await response(scope, receive, send)

    async def _run(self, row: Operation, scope: Scope, principal: Principal) -> ASGIApp:
        if row.role is not None and row.role not in principal.roles:
            raise refuse("not_allowed", f"This key has no role {row.role!r}, which this needs.")
        headers = Headers(scope=scope)
        call = Call(
            server=self._server,
            principal=principal,
            path=scope["path_params"],
            root_path=scope.get("root_path", ""),
            last_event_id=headers.get("last-event-id"),
            if_none_match=headers.get("if-none-match"),
            query=_query(scope) if row.source is not Source.QUERY else {},
            idempotency_key=headers.get("idempotency-key"),
        )
        body: Body = scope["session_http.body"]
        if row.source is Source.QUERY:
            # Hypercorn's reader gets stuck in a body that nobody receives.
            await body.skip()
            raw: bytes = scope["query_string"]
        else:
            raw = await body.read()
        answer = await row.run(call, raw)
        _note(scope["session_http.noted"], answer)
        if not isinstance(answer, EventStream):  # which sees to it itself
            check_validity(principal)
        return _response(answer, call)


def _note(noted: logs.Request, answer: Answer) -> None:
    """Note which session and turn an answer is about."""
    if isinstance(answer, EventStream):
        turn = answer.turn
        noted.about(
            session_id=answer.session.session_id, turn_id=None if turn is None else turn.turn_id
        )
    else:
        noted.about(
            session_id=getattr(answer, "session_id", None), turn_id=getattr(answer, "turn_id", None)
        )


def _response(answer: Answer, call: Call) -> ASGIApp:
    match answer:
        case EventStream():
            settings = call.server.settings.streams
            return EventStreamResponse(answer, settings, call.principal.validity)
        case Nothing():
            return Response(status_code=204)
        case Download():
            return answer
        case Page():
            return _page(answer, call)
        case _:
            status = answer.http_status if isinstance(answer, Reply) else 200
            content = dump_model(answer)
            response = Response(content, status, media_type="application/json")
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


class _NoSuchPath:
    """What is at every other path; an ASGI application."""

    def __init__(self, door: _Door) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        self._door.enter(scope)
        raise refuse(
            "not_found",
            f"There is no {scope['path']!r} here. "
            f"`GET {scope.get('root_path', '')}/` lists what there is.",
        )


def _query(scope: Scope) -> dict[str, str]:
    """Return the parameters in an address; of one that is given twice, the first."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True):
        found.setdefault(name, value)
    return found


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
