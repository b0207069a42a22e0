"""The user's own API reference, row by row, on every server that the application must run on.

A client written from that document must work unchanged, so the fields that it names are
compared as it has them; what we add stands beside them.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import httpx
import pytest

from session_supervisor.agents.scripted import Conversation, Pause, Say, Step, UseTool, echo
from session_supervisor.spec import Prompt
from tests.http.contract import Said, judged, parse_stream
from tests.http.servers import (
    PATIENCE_S,
    Address,
    Granian,
    World,
    eventually,
    on_hypercorn,
    on_uvicorn,
    world,
)

# Granian is one for the module, and opens before any test counts what is open.
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("granian")]

COUNT = "Count from 1 to 10"


def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    match prompt.text:
        case "Count from 1 to 10":
            yield Say("".join(f"{n} " for n in range(1, 11)), deltas=10, every_s=0.01)
        case "Use a tool":
            yield Say("I look.")
            yield UseTool("Read", input={"path": "a"}, result="what is in it")
            yield Say("I saw.")
        case "Think for a minute":
            yield Say("Well, ", confirmed=False)
            yield Pause(60)
            yield Say("no.")
        case _:
            yield from echo(prompt, conversation)


@dataclass(frozen=True, slots=True)
class Served:
    world: World
    address: Address
    client: httpx.AsyncClient


Serve: TypeAlias = Callable[[World], AbstractAsyncContextManager[Address]]


@pytest.fixture(scope="module")
async def granian() -> AsyncGenerator[Granian]:
    async with Granian.running() as server:
        yield server


@pytest.fixture(params=["hypercorn", "uvicorn", "granian"])
def serve(request: pytest.FixtureRequest) -> Serve:
    match request.param:
        case "hypercorn":
            return on_hypercorn
        case "uvicorn":
            return on_uvicorn
        case _:
            server: Granian = request.getfixturevalue("granian")
            return server.serving


@pytest.fixture
async def served(serve: Serve) -> AsyncGenerator[Served]:
    async with world(script) as one, serve(one) as address:
        hooks: Any = judged()
        async with httpx.AsyncClient(
            base_url=address.url, event_hooks=hooks, timeout=PATIENCE_S
        ) as client:
            yield Served(one, address, client)


def is_utc(moment: str) -> bool:
    return moment.endswith("Z") and datetime.fromisoformat(moment).utcoffset() is not None


async def stream(served: Served, path: str, body: dict[str, Any]) -> list[Said]:
    async with served.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        raw = await response.aread()
    assert b"\r" not in raw.replace(b"\\r", b"")
    assert b"event:" not in raw
    return parse_stream(raw)


async def test_get_health(served: Served) -> None:
    health = (await served.client.get("/health")).json()
    assert (health["status"], health["authenticated"], health["active_sessions"]) == (
        "healthy",
        True,
        0,
    )
    assert is_utc(health["timestamp"])


async def test_get_index(served: Served) -> None:
    index = (await served.client.get("/")).json()
    assert index["name"]
    assert index["version"]
    assert {"/health", "/query", "/session/start", "/sessions"} <= set(index["endpoints"])


async def test_post_query(served: Served) -> None:
    response = await served.client.post(
        "/query",
        json={
            "prompt": "What is Python?",
            "model": "claude-3-5-sonnet-20241022",
            "allowed_tools": ["Read", "Write"],
            "permission_mode": "acceptEdits",
            "stream": False,
        },
    )
    assert response.status_code == 200
    answer = response.json()
    assert answer["response"] == "You said: What is Python?"
    assert isinstance(answer["duration_ms"], int)
    assert answer["num_turns"] == 1
    assert answer["total_cost_usd"] == pytest.approx(0.01)
    assert answer["outcome"] == "completed"
    fingerprint = served.world.agent.processes[0].fingerprint
    assert fingerprint.model == "claude-3-5-sonnet-20241022"
    assert fingerprint.allowed_tools == ("Read", "Write")
    assert fingerprint.permission_mode == "acceptEdits"


async def test_a_one_off_is_neither_listed_nor_counted_and_stays_readable(served: Served) -> None:
    answer = (await served.client.post("/query", json={"prompt": "hi"})).json()
    listed = (await served.client.get("/sessions")).json()
    assert listed.items() >= {"active_sessions": [], "count": 0}.items()
    assert (await served.client.get("/health")).json()["active_sessions"] == 0
    path = f"/session/{answer['session_id']}/turns/{answer['turn_id']}"
    assert (await served.client.get(path)).json()["response"] == answer["response"]


async def test_post_query_streams_the_deltas_as_the_reference_shows(served: Served) -> None:
    said = await stream(served, "/query", {"prompt": COUNT, "stream": True})
    pieces = [one.data["content"] for one in said if one.type == "text"]
    assert "".join(pieces) == "1 2 3 4 5 6 7 8 9 10 "
    assert len(pieces) > 3, "real deltas, not whole blocks"
    assert said[-1].type == "done"
    assert said[-1].data["response"] == "".join(pieces)
    assert [one.type for one in said].count("done") == 1


async def test_a_stream_is_of_one_turn_from_its_acceptance_to_its_end(served: Served) -> None:
    said = await stream(served, "/query", {"prompt": "Use a tool", "stream": True})
    assert [one.type for one in said] == [
        "turn",
        "turn",
        "text",
        "tool_use",
        "tool_result",
        "text",
        "result",
        "done",
    ]
    assert [one.data["phase"] for one in said[:2]] == ["accepted", "started"]
    ids = [one.id for one in said]
    assert all(ids)
    assert ids == sorted(ids, key=lambda number: number or 0)
    assert {one.data["turn_id"] for one in said} == {said[-1].data["turn_id"]}
    assert said[0].data["session_id"] == said[-1].data["session_id"]
    assert said[-1].data["response"] == "I look.\n\nI saw."


async def test_post_session_start(served: Served) -> None:
    response = await served.client.post(
        "/session/start",
        json={"initial_prompt": "What is Docker?", "allowed_tools": ["Read"]},
    )
    assert response.status_code == 200
    session = response.json()
    assert str(uuid.UUID(session["session_id"])) == session["session_id"]
    assert session["status"] == "started"
    assert session["initial_response"] == "You said: What is Docker?"
    assert is_utc(session["created_at"])


async def test_a_session_can_start_without_a_prompt(served: Served) -> None:
    for body in ({}, {"initial_prompt": None}, {"model": "sonnet"}):
        session = (await served.client.post("/session/start", json=body)).json()
        assert session["initial_response"] is None
        assert session["status"] == "started"
    bare = await served.client.post("/session/start")
    assert bare.status_code == 200


async def test_a_conversation_from_start_to_delete(served: Served) -> None:
    client = served.client
    start = {"initial_prompt": "one", "model": "claude-3-opus-20240229"}
    session = (await client.post("/session/start", json=start)).json()
    path = f"/session/{session['session_id']}"

    answer = (await client.post(f"{path}/query", json={"prompt": "two"})).json()
    assert answer["session_id"] == session["session_id"]
    assert answer["response"] == "You said: two\n\nEarlier you said: one"
    assert isinstance(answer["duration_ms"], int)

    said = await stream(served, f"{path}/query", {"prompt": "three", "stream": True})
    text = "".join(one.data["content"] for one in said if one.type == "text")
    assert text == "You said: three\n\nEarlier you said: one; two"

    found = (await client.get(path)).json()
    assert found["session_id"] == session["session_id"]
    assert found["created_at"] == session["created_at"]
    assert found["active"] is True
    assert found["model"] == "claude-3-opus-20240229"

    listed = (await client.get("/sessions")).json()
    assert listed.items() >= {"active_sessions": [session["session_id"]], "count": 1}.items()
    assert (await client.get("/health")).json()["active_sessions"] == 1

    closed = await client.delete(path)
    assert closed.status_code == 200
    expected = {"status": "closed", "session_id": session["session_id"]}
    assert closed.json().items() >= expected.items()
    for gone in (
        await client.get(path),
        await client.delete(path),
        await client.post(f"{path}/query", json={"prompt": "four"}),
        await client.post(f"{path}/interrupt"),
    ):
        assert gone.status_code == 404
        assert session["session_id"] in gone.json()["detail"]
    assert (await client.get("/sessions")).json()["count"] == 0


async def test_post_interrupt(served: Served) -> None:
    client = served.client
    session = (await client.post("/session/start", json={})).json()
    path = f"/session/{session['session_id']}"
    query = asyncio.create_task(client.post(f"{path}/query", json={"prompt": "Think for a minute"}))

    async def has_text() -> bool:
        turns = (await client.get(f"{path}/turns")).json()["turns"]
        if not turns:
            return False
        turn = (await client.get(f"{path}/turns/{turns[0]['turn_id']}")).json()
        return bool(turn["response"])

    await eventually(has_text)
    interrupted = await client.post(f"{path}/interrupt")
    assert interrupted.status_code == 200
    assert interrupted.json()["status"] == "interrupted"
    assert interrupted.json()["session_id"] == session["session_id"]
    assert interrupted.json()["outcome"] == "interrupted"
    answer = await query
    assert answer.status_code == 200
    assert answer.json()["response"] == "Well, "
    assert answer.json()["outcome"] == "interrupted"
    idle = (await client.post(f"{path}/interrupt", json={})).json()
    assert (idle["status"], idle["outcome"]) == ("interrupted", "nothing_running")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a", "allowed_tools": ["Nope"]}, "Nope"),
        ({"prompt": "a", "permission_mode": "yes"}, "permission_mode"),
        ({"prompt": "a", "max_tokens": 1}, "max_tokens"),
    ],
)
async def test_invalid_input_is_a_400_that_says_which_field(
    served: Served, body: dict[str, Any], says: str
) -> None:
    response = await served.client.post("/query", json=body)
    assert response.status_code == 400
    assert says in response.json()["detail"]


async def test_unknown_paths_and_methods_are_json_too(served: Served) -> None:
    assert (await served.client.get("/nope")).status_code == 404
    assert (await served.client.get("/health/")).status_code == 404
    wrong = await served.client.get("/query")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "OPTIONS, POST")


async def test_head_and_options(served: Served) -> None:
    head = await served.client.head("/health")
    assert (head.status_code, head.content) == (200, b"")
    options = await served.client.options("/session/x")
    assert (options.status_code, options.content) == (204, b"")
    assert options.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH"
    session = (await served.client.post("/session/start", json={})).json()
    events = await served.client.head(f"/session/{session['session_id']}/events")
    assert (events.status_code, events.content) == (200, b"")


async def test_documentation_is_served(served: Served) -> None:
    for page in ("/docs", "/redoc"):
        response = await served.client.get(page)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert "openapi.json" in response.text
    document = json.loads((await served.client.get("/openapi.json")).content)
    assert "/query" in document["paths"]


async def test_a_client_that_goes_away_never_stops_its_turn(served: Served) -> None:
    session = (await served.client.post("/session/start", json={})).json()
    path = f"/session/{session['session_id']}"
    body = {"prompt": COUNT, "stream": True}
    async with (
        httpx.AsyncClient(base_url=served.address.url, timeout=60) as other,
        other.stream("POST", f"{path}/query", json=body) as response,
    ):
        async for _ in response.aiter_bytes():
            break
    await eventually(lambda: served.world.app.open_streams == 0)
    turns = (await served.client.get(f"{path}/turns")).json()["turns"]
    turn = await served.world.supervisor.get(session["session_id"]).turn(turns[0]["turn_id"])
    assert (await turn.result()).text == "1 2 3 4 5 6 7 8 9 10 "
    await eventually(lambda: served.world.app.open_requests == 0)
