"""Pages of other sites: none may use the server, but those that the operator names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Message

from session_http.app import App
from session_http.guard import LOOPBACK_NAMES
from session_http.settings import HttpSettings
from session_supervisor.agents.scripted import Say, ScriptedAgent, by_prompt
from tests.http.contract import parse_stream
from tests.http.exchange import Exchange
from tests.http.keyring import Keys
from tests.http.servers import World, in_process, on_hypercorn, on_uvicorn, world
from tests.http.test_pages import CHROMIUM, browse

pytestmark = pytest.mark.anyio

PAGE = "https://app.example"
OTHER = "https://evil.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, last-event-id, x-api-key",
}
NEEDED = {"authorization", "content-type", "idempotency-key", "last-event-id", "x-api-key"}


@asynccontextmanager
async def served(
    directory: Path, *origins: str, keys: bool = True, loopback: bool = False
) -> AsyncGenerator[tuple[httpx.AsyncClient, Keys]]:
    ring = Keys(directory)
    ring.add("ann")
    settings = HttpSettings(
        cors_origins=frozenset(origins),
        trusted_hosts=LOOPBACK_NAMES | {"test"} if loopback else None,
    )
    async with (
        _world(settings, ring if keys else None) as one,
        in_process(one.app) as client,
    ):
        yield client, ring


@asynccontextmanager
async def _world(settings: HttpSettings, keys: Keys | None) -> AsyncGenerator[World]:
    agent = ScriptedAgent(by_prompt({"hi": [Say("one two", deltas=2)]}))
    if keys is None:
        async with world(agent=agent, settings=settings) as one:
            yield one
    else:
        async with world(
            agent=agent, settings=settings, authenticate=keys.ring.authenticate
        ) as one:
            yield one


async def test_without_a_setting_no_page_is_let_in(tmp_path: Path) -> None:
    async with served(tmp_path) as (client, keys):
        preflight = await client.options("/query", headers=PREFLIGHT)
        assert preflight.status_code == 401
        answered = await client.get("/sessions", headers={"origin": PAGE, **keys.of("ann")})
        assert answered.status_code == 200
        for response in (preflight, answered):
            assert not any(name.startswith("access-control") for name in response.headers)


async def test_a_preflight_is_answered_without_a_key(tmp_path: Path) -> None:
    async with served(tmp_path, PAGE) as (client, _):
        for path in ("/query", "/session/x/events", "/nothing"):
            response = await client.options(path, headers=PREFLIGHT)
            assert response.status_code == 200
            headers = response.headers
            assert headers["access-control-allow-origin"] == PAGE
            assert {"GET", "POST", "DELETE"} <= set(
                headers["access-control-allow-methods"].split(", ")
            )
            allowed = headers["access-control-allow-headers"].lower().split(", ")
            assert set(allowed) >= NEEDED
            assert "access-control-allow-credentials" not in headers
            assert "x-request-id" in headers


async def test_a_preflight_of_another_page_is_refused_as_everything_is(tmp_path: Path) -> None:
    async with served(tmp_path, PAGE) as (client, _):
        for change in (
            {"origin": OTHER},
            {"access-control-request-method": "PUT"},
            {"access-control-request-headers": "x-other"},
        ):
            response = await client.options("/query", headers={**PREFLIGHT, **change})
            assert (response.status_code, response.json()["code"]) == (403, "untrusted_origin")
            if "origin" in change:
                assert "access-control-allow-origin" not in response.headers


async def test_a_page_sees_answers_refusals_and_streams(tmp_path: Path) -> None:
    async with served(tmp_path, PAGE) as (client, keys):
        page = {"origin": PAGE}
        ann = {**page, **keys.of("ann")}
        stream = {"prompt": "hi", "stream": True}
        responses = [
            await client.get("/sessions", headers=ann),
            await client.get("/sessions", headers=page),
            await client.get("/nothing", headers=ann),
            await client.post("/query", json={"prompt": ""}, headers=ann),
            await client.post("/query", json=stream, headers=ann),
        ]
        assert [one.status_code for one in responses] == [200, 401, 404, 400, 200]
        for response in responses:
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "origin" in response.headers["vary"].lower()
            exposed = response.headers["access-control-expose-headers"].lower()
            assert set(exposed.split(", ")) >= {"x-request-id", "retry-after", "server-timing"}
        assert parse_stream(responses[-1].content)[-1].type == "done"
        other = await client.get("/sessions", headers={**keys.of("ann"), "origin": OTHER})
        assert "access-control-allow-origin" not in other.headers


async def test_a_page_that_is_named_may_use_a_server_without_keys(tmp_path: Path) -> None:
    """The guard against foreign pages makes room for it, and for nobody else."""
    async with served(tmp_path, PAGE, keys=False, loopback=True) as (client, _):
        for origin, status in ((PAGE, 200), (OTHER, 403), ("null", 403)):
            response = await client.post(
                "/query", json={"prompt": "hi"}, headers={"origin": origin}
            )
            assert response.status_code == status
        foreign = await client.get("/health", headers={"host": "evil.example", "origin": PAGE})
        assert foreign.status_code == 403


async def test_with_a_key_it_does_not_matter_where_a_request_is_from(tmp_path: Path) -> None:
    """A page that knows a key was given it; what it may see is the browser's business."""
    async with served(tmp_path) as (client, keys):
        headers = {"origin": OTHER, **keys.of("ann")}
        response = await client.post("/query", json={"prompt": "hi"}, headers=headers)
        assert response.status_code == 200
        for wrong in ({"origin": OTHER}, {"origin": OTHER, "x-api-key": "wrong"}):
            response = await client.post("/query", json={"prompt": "hi"}, headers=wrong)
            assert response.status_code == 401


async def test_any_page_may_where_the_operator_says_so(tmp_path: Path) -> None:
    async with served(tmp_path, "*") as (client, keys):
        response = await client.options("/query", headers={**PREFLIGHT, "origin": OTHER})
        assert response.headers["access-control-allow-origin"] == "*"
        response = await client.get("/sessions", headers={"origin": OTHER, **keys.of("ann")})
        assert response.headers["access-control-allow-origin"] == "*"


async def test_the_body_of_a_preflight_is_received(tmp_path: Path) -> None:
    """Or the server's reader would wait for somebody who does."""
    settings = HttpSettings(cors_origins=frozenset({PAGE}))
    async with _world(settings, Keys(tmp_path)) as one:
        exchange = Exchange("OPTIONS", "/query", {"of": "no use"})
        exchange.scope["headers"] += [(k.encode(), v.encode()) for k, v in PREFLIGHT.items()]
        received: list[object] = []

        async def receive() -> Message:
            received.append(await exchange.receive())
            return cast(Message, received[-1])

        await one.app(exchange.scope, receive, exchange.send)
    assert exchange.sent[0][1]["status"] == 200
    assert len(received) == 1


# -- a real browser --------------------------------------------------------------------------

SCRIPT = """
<!doctype html><script>
fetch("/hold"); // the browser's clock stands still while this is not answered
(async () => {
  const [api, key] = %s;
  const said = [];
  const ask = (headers) => fetch(api + "/query", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify({ prompt: "hi", stream: true }),
  });
  try {
    const refused = await ask({});
    said.push(refused.status, (await refused.json()).code);
    const response = await ask({ "Authorization": "Bearer " + key });
    said.push((response.headers.get("X-Request-Id") || "").length);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) { const { done, value } = await reader.read(); if (done) break; text += value; }
    said.push(text);
  } catch (error) { said.push("failed: " + error); }
  fetch("/said", { method: "POST", body: JSON.stringify(said) });
})();
</script>
"""


@pytest.mark.chromium
@pytest.mark.skipif(
    CHROMIUM is None,
    reason="NO CHROMIUM: nobody checks that a page can use the API; apt-get install chromium",
)
@pytest.mark.parametrize("named", [True, False])
async def test_a_browser_lets_a_page_that_is_named_stream(tmp_path: Path, named: bool) -> None:
    keys = Keys(tmp_path)
    token = keys.add("ann").token
    said: list[Any] = []
    over = asyncio.Event()

    async def page(request: Request) -> Response:
        return HTMLResponse(SCRIPT % json.dumps([request.query_params["api"], token]))

    async def hold(_request: Request) -> Response:
        await over.wait()
        return Response()

    async def hear(request: Request) -> Response:
        said.extend(await request.json())
        over.set()
        return Response()

    outer = Starlette(
        routes=[Route("/", page), Route("/hold", hold), Route("/said", hear, methods=["POST"])]
    )
    async with (
        world() as hosting,
        on_uvicorn(replace(hosting, app=cast(App, outer))) as site,
        _world(
            HttpSettings(cors_origins=frozenset({site.url} if named else set[str]())), keys
        ) as one,
        on_hypercorn(one) as address,
    ):
        await browse(f"{site.url}/?api={address.url}", tmp_path / "profile")
    if not named:
        assert said == ["failed: TypeError: Failed to fetch"]
        return
    status, code, request_id, stream = said
    assert (status, code, request_id) == (401, "unauthorized", 32)
    assert [one.type for one in parse_stream(stream.encode())][-1] == "done"
