"""The API within another application: below a path, and below whatever that application does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from session_http.app import create_app
from session_http.keys import Principal
from session_http.settings import HttpSettings
from session_http.sse import EventStream, EventStreamResponse
from session_supervisor.agents.scripted import Pause, Say, by_prompt
from tests.http.contract import parse_stream
from tests.http.exchange import exchanging
from tests.http.servers import PATIENCE_S, World, eventually, in_process, on_uvicorn, world

pytestmark = pytest.mark.anyio

script = by_prompt({"slow": [Say("one", confirmed=False), Pause(60.0)]})


def below(app: ASGIApp, prefix: str = "/claude") -> Starlette:
    return Starlette(routes=[Mount(prefix, app=app)])


class Rooted:
    """A server behind a proxy that takes a prefix away (`stripped`), or leaves it there."""

    def __init__(self, app: ASGIApp, root: str, *, stripped: bool = False) -> None:
        self._app, self._root, self._stripped = app, root, stripped

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if self._stripped else self._root + scope["path"]
        await self._app({**scope, "root_path": self._root, "path": path}, receive, send)


async def test_what_it_says_of_paths_holds_where_it_is_mounted() -> None:
    async with world(script) as one, in_process(below(one.app)) as client:
        found = (await client.get("/claude/")).json()["endpoints"]
        assert {"/claude/query", "/claude/session/{session_id}"} <= set(found)
        for path in found:
            if "{" not in path and not path.endswith("/query") and "start" not in path:
                assert (await client.get(path)).status_code == 200, path
        missing = (await client.get("/claude/nope")).json()
        assert missing["code"] == "not_found"
        assert missing["detail"].startswith("There is no '/claude/nope' here. `GET /claude/` ")
        wrong = await client.put("/claude/query")
        assert wrong.json()["detail"].startswith("/claude/query has no PUT")
        assert (await client.get("/claude", follow_redirects=True)).json()["name"]


async def test_what_it_says_of_paths_holds_behind_a_proxy() -> None:
    async with world(script) as one:
        # Starlette's `Mount` knows only servers that leave the prefix there.
        left, stripped = Rooted(below(one.app), "/api"), Rooted(one.app, "/api", stripped=True)
        for app, prefix in ((left, "/claude"), (stripped, "")):
            async with in_process(app) as client:
                found = (await client.get(f"{prefix}/")).json()["endpoints"]
                assert f"/api{prefix}/query" in found
                detail = (await client.get(f"{prefix}/nope")).json()["detail"]
                assert f"`GET /api{prefix}/` lists" in detail
                answer = await client.post(f"{prefix}/query", json={"prompt": "hi"})
                assert answer.json()["response"] == "You said: hi"


async def test_its_pages_load_what_they_need_from_below_the_mount_point() -> None:
    async with world(script) as one, in_process(below(one.app, "/a/b")) as client:
        for page in ("docs", "redoc"):
            at = httpx.URL(f"http://test/a/b/{page}")
            html = (await client.get(at)).text
            links = [part.split('"')[0] for part in html.split('src="')[1:]]
            links += [part.split('"')[0] for part in html.split('href="')[1:] if part[0] != "d"]
            assert len(links) >= 4
            for link in links:
                assert (await client.get(at.join(link))).status_code == 200, link
        document = httpx.URL("http://test/a/b/openapi.json")
        (server,) = (await client.get(document)).json()["servers"]
        assert document.join(server["url"]).path == "/a/b/"


async def test_a_mount_points_own_parameters_do_no_harm() -> None:
    async with world(script) as one, in_process(below(one.app, "/{tenant}/{session_id}")) as client:
        started = (await client.post("/1/2/session/start", json={})).json()["session_id"]
        answer = await client.get(f"/1/2/session/{started}")
        assert answer.json()["session_id"] == started
        assert "/1/2/query" in (await client.get("/1/2/")).json()["endpoints"]


async def pass_on(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await call_next(request)
    response.headers["x-outer"] = "yes"
    return response


async def outer_failure(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"from": "the application around"}, status_code=418)


def thick(app: ASGIApp) -> Starlette:
    """An application with all kinds of things around."""
    return Starlette(
        routes=[Mount("/claude", app=app)],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=["https://app.example"]),
            Middleware(GZipMiddleware, minimum_size=10),
            Middleware(BaseHTTPMiddleware, dispatch=pass_on),
        ],
        exception_handlers={404: outer_failure, 401: outer_failure, Exception: outer_failure},
    )


async def test_errors_are_its_own_whatever_the_application_around_does_with_its_own() -> None:
    async with world(script) as one, in_process(thick(one.app)) as client:
        assert (await client.get("/claude/nope")).json()["code"] == "not_found"
        assert (await client.get("/claude/session/x")).json()["code"] == "session_not_found"
        assert (await client.get("/elsewhere")).status_code == 418
        bad = await client.post("/claude/query", json={"prompt": ""})
        assert (bad.status_code, bad.json()["code"]) == (400, "invalid_request")
        assert bad.headers["x-outer"] == "yes"


async def test_its_pages_are_its_own_and_those_of_others_are_named_to_it() -> None:
    """A page that the application around lets in must be known here as well: it runs commands."""
    page = {"Origin": "https://app.example"}
    async with world(script) as one:
        async with in_process(thick(one.app)) as client:
            answer = await client.post("/claude/query", json={"prompt": "hi"}, headers=page)
            assert (answer.status_code, answer.json()["code"]) == (403, "untrusted_origin")
        settings = HttpSettings(cors_origins=frozenset({"https://app.example"}))
        knowing = thick(create_app(one.supervisor, settings=settings))
        async with in_process(knowing) as client:
            answer = await client.post("/claude/query", json={"prompt": "hi"}, headers=page)
            assert answer.json()["response"] == "You said: hi"
            assert answer.headers.get_list("access-control-allow-origin") == [page["Origin"]]


async def test_a_stream_is_sent_as_it_comes_through_what_is_around_it() -> None:
    async with world(script) as one:
        body = {"prompt": "slow", "stream": True}
        app = thick(one.app)
        async with exchanging(app, "POST", "/claude/query", body) as exchange:
            text = await asyncio.wait_for(exchange.until("text"), PATIENCE_S)
            assert text.data["content"] == "one"
            assert one.app.open_streams == 1
            exchange.disconnect()
            await eventually(lambda: one.app.open_streams == 0)
            assert one.agent.live == 1, "a client that goes away stops no turn"


async def test_a_stream_below_a_mount_point_is_dropped_when_its_client_is_gone() -> None:
    async with world(script) as one:
        outer = World(agent=one.agent, supervisor=one.supervisor, app=thick(one.app))  # type: ignore[arg-type]
        async with on_uvicorn(outer) as address, httpx.AsyncClient(timeout=PATIENCE_S) as client:
            url = f"{address.url}/claude/query"
            body = {"prompt": "slow", "stream": True}
            async with client.stream("POST", url, json=body) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                assert "content-encoding" not in response.headers
                async for line in response.aiter_lines():
                    if '"text"' in line:
                        break
                assert one.app.open_streams == 1
            await eventually(lambda: one.app.open_streams == 0)


@pytest.mark.parametrize(
    ("status", "code"), [(401, "unauthorized"), (403, "not_allowed"), (429, "too_many_requests")]
)
async def test_an_embedders_authentication_may_refuse_as_its_framework_does(
    status: int, code: str
) -> None:
    def nobody(_connection: HTTPConnection) -> Principal:
        raise HTTPException(status, "Not you.", headers={"www-authenticate": "Custom"})

    async with world(script) as one:
        app = thick(create_app(one.supervisor, authenticate=nobody))
        async with in_process(app) as client:
            answer = await client.get("/claude/sessions")
            assert answer.status_code == status
            assert answer.json() == {"detail": "Not you.", "code": code}
            assert answer.headers["www-authenticate"] == "Custom"


async def test_an_authentication_that_breaks_lets_nobody_in() -> None:
    def broken(_connection: HTTPConnection) -> Principal:
        raise HTTPException(507, "what?")

    async with world(script) as one:
        app = below(create_app(one.supervisor, authenticate=broken))
        async with in_process(app) as client:
            answer = await client.post("/claude/query", json={"prompt": "hi"})
            assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert one.agent.spawned == 0


async def test_an_endpoint_of_an_embedder_can_answer_with_a_stream_of_ours() -> None:
    ran: list[str] = []

    async with world(script) as one:

        async def ask(_request: Request) -> Response:
            session = await one.supervisor.start()
            turn = await session.query("hi")

            async def after() -> None:
                ran.append(turn.turn_id)

            response = EventStreamResponse(
                EventStream(session=session, cursor=turn.cursor(), turn=turn),
                background=BackgroundTask(after),
            )
            response.set_cookie("seen", "yes")
            return response

        app = Starlette(routes=[Route("/ask", ask, methods=["POST"])])
        async with in_process(app) as client:
            answer = await client.post("/ask")
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["set-cookie"].startswith("seen=yes")
        assert "content-length" not in answer.headers
        said = parse_stream(answer.content)
        assert said[-1].data["response"] == "You said: hi"
        assert ran == [said[-1].data["turn_id"]]
