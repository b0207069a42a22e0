"""The Messages API as an ASGI application that answers offline."""

from __future__ import annotations

import math
import re
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import anyio
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from session_http.offline.conversation import Conversation, Kind, read_conversation
from session_http.offline.directives import Directive, Fail
from session_http.offline.reply import Pacing, Reply
from session_http.offline.scenario import Dice, Scenario
from session_http.offline.script import plan
from session_http.offline.wire import Body, Drop, Head, Pause, Step, error_body, steps

__all__ = ["OfflineApp", "RequestRecord", "create_offline_app"]

_COUNTED_TRIES = 10_000
"""Requests whose tries are remembered, for `times=`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """One request for a message that the model got.

    Attributes:
        time: when, seconds since the epoch.
        path: the path, with the base URL's prefix.
        session: the CLI's session id, empty if it sent none.
        kind: why the CLI made the request.
        model: the model asked for.
        messages: number of messages in the conversation.
        tools: names of the tools on offer.
        prompt: the newest prompt of the user.
        step: how many times tool results have come back since.
        attempt: how many times the same request came before.
        stream: whether an event stream was wanted.
        fault: the fault that it met, e.g. "fail 529", "hang before" or "cut"; None if none.
    """

    time: float
    path: str
    session: str
    kind: Kind
    model: str
    messages: int
    tools: tuple[str, ...]
    prompt: str
    step: int
    attempt: int
    stream: bool
    fault: str | None


def create_offline_app(
    *,
    scenario: Scenario | None = None,
    pacing: Pacing | None = None,
    unknown_models: str = "no-such-model",
    records: int = 10_000,
    clock: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
) -> OfflineApp:
    """Make the application.

    Args:
        scenario: chance for prompts without directives; None: nothing happens by chance.
        pacing: the pace where the prompt sets none; None: as fast as possible.
        unknown_models: regular expression; models whose name it matches somewhere do not exist.
        records: how many requests are kept on record, the newest.
        clock: the time, seconds since the epoch.
        new_id: gives a new unique id, at each call.
    """
    return OfflineApp(
        scenario=scenario,
        pacing=pacing or Pacing(),
        unknown_models=unknown_models,
        records=records,
        clock=clock,
        new_id=new_id,
    )


class OfflineApp:
    """An ASGI application; see `create_offline_app`."""

    def __init__(
        self,
        *,
        scenario: Scenario | None,
        pacing: Pacing,
        unknown_models: str,
        records: int,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        """Take what `create_offline_app` takes."""
        self._dice = Dice(scenario) if scenario else None
        self._pacing = pacing
        self._unknown_models = re.compile(unknown_models)
        self._clock = clock
        self._new_id = new_id
        self._records: deque[RequestRecord] = deque(maxlen=records)
        self._tries: OrderedDict[int, int] = OrderedDict()
        self._running: set[anyio.CancelScope] = set()
        self._closed = False
        self._router = Starlette(
            routes=[
                Route(prefix + path, handler, methods=methods)
                for prefix in ("", "/{prefix:path}")
                for path, handler, methods in (
                    ("/v1/messages", self._messages, ["POST"]),
                    ("/v1/messages/count_tokens", self._count_tokens, ["POST"]),
                    ("/api/hello", self._hello, ["GET"]),
                )
            ],
            exception_handlers={404: self._not_found, 405: self._not_found},
        )
        self._router.router.redirect_slashes = False

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """The newest requests for messages, oldest first."""
        return tuple(self._records)

    @property
    def running(self) -> int:
        """The number of requests that are being answered."""
        return len(self._running)

    def close(self) -> None:
        """Break off every answer, hanging ones too, and refuse later requests; idempotent."""
        self._closed = True
        for scope in self._running:
            scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        with anyio.CancelScope() as cancel:
            if self._closed:
                cancel.cancel()
            self._running.add(cancel)
            try:
                await self._router(scope, receive, send)
            except ClientDisconnect:
                pass
            finally:
                self._running.discard(cancel)

    async def _messages(self, request: Request) -> Response:
        body = await request.body()
        request_id = f"req_{self._new_id()}"
        try:
            conversation = read_conversation(body)
        except ValidationError as error:
            reasons = "; ".join(
                f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5]
            )
            return _error(400, reasons, request_id)
        reply, attempt = self._answer(conversation, request)
        self._record(conversation, reply, attempt, request)
        return _Performance(
            steps(
                reply,
                model=conversation.model,
                stream=conversation.stream,
                message_id=f"msg_{self._new_id()}",
                request_id=request_id,
            )
        )

    def _answer(self, conversation: Conversation, request: Request) -> tuple[Reply, int]:
        if self._unknown_models.search(conversation.model):
            message = f"model: {conversation.model}"
            return Reply(fault=Fail(status=404, message=message)), 0
        attempt = 0
        chance: tuple[Directive, ...] = ()
        if conversation.kind is Kind.PROMPT:
            attempt = self._count_try(conversation, _session(request))
            chance = self._dice.roll() if self._dice else ()
        return plan(conversation, attempt=attempt, pacing=self._pacing, chance=chance), attempt

    def _count_try(self, conversation: Conversation, session: str) -> int:
        # Without the CLI's session id, the first turn stands for the conversation.
        whose = session or conversation.turns[:1]
        key = hash((whose, len(conversation.turns), conversation.prompt, conversation.step))
        attempt = self._tries.pop(key, 0)
        self._tries[key] = attempt + 1
        if len(self._tries) > _COUNTED_TRIES:
            self._tries.popitem(last=False)
        return attempt

    def _record(
        self, conversation: Conversation, reply: Reply, attempt: int, request: Request
    ) -> None:
        self._records.append(
            RequestRecord(
                time=self._clock(),
                path=request.url.path,
                session=_session(request),
                kind=conversation.kind,
                model=conversation.model,
                messages=conversation.messages,
                tools=conversation.tools,
                prompt=conversation.prompt,
                step=conversation.step,
                attempt=attempt,
                stream=conversation.stream,
                fault=reply.fault.label if reply.fault else None,
            )
        )

    async def _count_tokens(self, request: Request) -> Response:
        return JSONResponse({"input_tokens": max(1, len(await request.body()) // 4)})

    async def _hello(self, request: Request) -> Response:
        return JSONResponse({"message": "hello"})

    async def _not_found(self, request: Request, error: Exception) -> Response:
        message = f"{request.method} {request.url.path} is not offered by the offline model"
        return _error(404, message, f"req_{self._new_id()}")


class _Performance(Response):
    """Carries out the steps of a reply, until they end or the client goes away."""

    def __init__(self, todo: Iterable[Step]) -> None:
        super().__init__()
        self._todo = todo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def until_gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(until_gone)
            await self._perform(send)
            group.cancel_scope.cancel()

    async def _perform(self, send: Send) -> None:
        pending: list[bytes] = []

        async def flush(*, more: bool) -> None:
            if pending or not more:
                body = b"".join(pending)
                pending.clear()
                await send({"type": "http.response.body", "body": body, "more_body": more})

        for step in self._todo:
            match step:
                case Head(status=status, headers=headers):
                    raw = [(name.encode(), value.encode()) for name, value in headers]
                    await send({"type": "http.response.start", "status": status, "headers": raw})
                case Body(data=data):
                    # One send for what is ready at once: each costs about as much as 20 events.
                    pending.append(data)
                    if len(pending) >= 64:
                        await flush(more=True)
                case Pause(seconds=seconds):
                    await flush(more=True)
                    await anyio.sleep(math.inf if seconds is None else seconds)
                case Drop():
                    # ASGI has no word for it, but a server can only close the connection when
                    # the application returns and the response is not finished.
                    await flush(more=True)
                    return
        await flush(more=False)


def _session(request: Request) -> str:
    return request.headers.get("x-claude-code-session-id", "")


def _error(status: int, message: str, request_id: str) -> Response:
    return Response(
        error_body(status, message, request_id),
        status_code=status,
        media_type="application/json",
        headers={"request-id": request_id},
    )
