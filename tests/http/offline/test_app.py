"""The Messages API over real HTTP, without the CLI."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from session_http.offline import Kind, OfflineModel, Pacing, RequestRecord, Scenario
from tests.http.offline.bodies import request

pytestmark = pytest.mark.anyio


@pytest.fixture
async def model() -> AsyncIterator[OfflineModel]:
    async with OfflineModel() as running:
        yield running


@pytest.fixture
async def client(model: OfflineModel) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=model.base_url, timeout=60, trust_env=False) as made:
        yield made


async def ask(
    client: httpx.AsyncClient, prompt: str, *, session: str = "s", **fields: Any
) -> httpx.Response:
    return await client.post(
        "/v1/messages",
        json=request(prompt, **fields),
        headers={"x-claude-code-session-id": session},
    )


async def test_it_answers_with_a_document_or_a_stream(client: httpx.AsyncClient) -> None:
    document = await ask(client, "[[say hello]]")
    assert document.json()["content"] == [{"type": "text", "text": "hello"}]
    assert document.headers["request-id"].startswith("req_")
    stream = await ask(client, "[[say hello]]", stream=True)
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.text.startswith("event: message_start\ndata: {")
    assert stream.text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')


async def test_message_ids_are_unique(client: httpx.AsyncClient) -> None:
    ids = {(await ask(client, "hello")).json()["id"] for _ in range(5)}
    assert len(ids) == 5


async def test_a_base_url_with_a_path_works(model: OfflineModel, client: httpx.AsyncClient) -> None:
    response = await client.post("/s/TOKEN/v1/messages?beta=true", json=request("hello"))
    assert response.status_code == 200
    assert model.requests[-1].path == "/s/TOKEN/v1/messages"
    assert (await client.head("/s/TOKEN/api/hello")).status_code == 200
    assert (await client.get("/api/hello")).status_code == 200


async def test_tokens_are_counted(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/messages/count_tokens", json=request("x" * 4000))
    assert 1000 < response.json()["input_tokens"] < 1100


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/v1/messages"), ("POST", "/v1/models"), ("POST", "/v1/messages/")],
)
async def test_anything_else_is_an_error_of_the_api(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await client.request(method, path)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"


async def test_a_body_that_is_no_request_is_an_error_of_the_api(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/messages", json={"model": "m"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert "messages" in response.json()["error"]["message"]


async def test_an_unknown_model_does_not_exist(client: httpx.AsyncClient) -> None:
    response = await ask(client, "hello", model="claude-no-such-model-1")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "model: claude-no-such-model-1"


async def test_tries_are_counted_per_conversation_turn_and_step(client: httpx.AsyncClient) -> None:
    prompt = "[[fail status=500 times=1]]"
    assert [(await ask(client, prompt)).status_code for _ in range(3)] == [500, 200, 200]
    assert (await ask(client, prompt, session="other")).status_code == 500
    later = request("hi", "hello", prompt)
    headers = {"x-claude-code-session-id": "s"}
    response = await client.post("/v1/messages", json=later, headers=headers)
    assert response.status_code == 500


async def test_a_cut_breaks_off_the_response(client: httpx.AsyncClient) -> None:
    got = b""
    body = request("[[slow tokens=9 delay_ms=1]] [[cut after=4]]", stream=True)
    async with client.stream("POST", "/v1/messages", json=body) as response:
        try:
            async for chunk in response.aiter_bytes():
                got += chunk
        except httpx.RemoteProtocolError:
            got += b"[cut]"
    assert got.endswith(b"[cut]")
    assert got.count(b"event: content_block_delta") == 4
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(client, "[[cut]]")


async def test_deltas_arrive_while_the_answer_is_written(
    model: OfflineModel, client: httpx.AsyncClient
) -> None:
    body = request("[[slow tokens=10 delay_ms=30]]", stream=True)
    began = anyio.current_time()
    async with client.stream("POST", "/v1/messages", json=body) as response:
        being_written = [
            model.app.running
            async for line in response.aiter_lines()
            if line == "event: content_block_delta"
        ]
    assert len(being_written) == 10
    assert being_written[0] == 1
    assert anyio.current_time() - began > 0.25


@pytest.mark.parametrize("prompt", ["[[hang before]]", "[[hang mid]]", "[[slow delay_ms=60000]]"])
async def test_a_client_that_goes_away_ends_its_answer(
    model: OfflineModel, client: httpx.AsyncClient, prompt: str
) -> None:
    with anyio.move_on_after(0.3):
        await ask(client, prompt, stream=True)
    with anyio.fail_after(60):
        while model.app.running:  # noqa: ASYNC110 - the number has no event
            await anyio.sleep(0.01)


async def test_requests_are_on_record(model: OfflineModel, client: httpx.AsyncClient) -> None:
    tools = [{"name": "Bash"}]
    await ask(client, "[[fail status=529 times=1]] a", tools=tools, stream=True)
    await ask(client, "[[fail status=529 times=1]] a", tools=tools)
    first, second = model.requests
    assert first == RequestRecord(
        time=first.time,
        path="/v1/messages",
        session="s",
        kind=Kind.PROMPT,
        model="claude-test",
        messages=1,
        tools=("Bash",),
        prompt="[[fail status=529 times=1]] a",
        step=0,
        attempt=0,
        stream=True,
        fault="fail 529",
    )
    assert (second.attempt, second.stream, second.fault) == (1, False, None)


async def test_a_scenario_is_the_same_for_the_same_seed_and_order() -> None:
    async def statuses() -> list[int]:
        scenario = Scenario(seed=3, faults={"[[fail status=500]]": 0.3, "[[think hm]]": 0.3})
        async with (
            OfflineModel(scenario=scenario) as model,
            httpx.AsyncClient(base_url=model.base_url, trust_env=False, timeout=60) as client,
        ):
            return [(await ask(client, f"turn {n}")).status_code for n in range(30)]

    first = await statuses()
    assert set(first) == {200, 500}
    assert first == await statuses()


async def test_pace_and_length_can_be_set() -> None:
    async with (
        OfflineModel(pacing=Pacing(tokens=5, delay_s=0.05)) as model,
        httpx.AsyncClient(base_url=model.base_url, trust_env=False, timeout=60) as client,
    ):
        start = anyio.current_time()
        stream = await ask(client, "hello", stream=True)
        assert 0.2 <= anyio.current_time() - start < 2
        assert stream.text.count("event: content_block_delta") == 5


async def test_a_big_answer_is_whole(client: httpx.AsyncClient) -> None:
    response = await ask(client, "[[big bytes=3000000]]", stream=True)
    text = "".join(
        json.loads(line[6:])["delta"]["text"]
        for line in response.text.splitlines()
        if line.startswith('data: {"type":"content_block_delta"')
    )
    assert len(text) == 3_000_000
