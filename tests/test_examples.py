"""The examples of embedding, run in-process with a scripted agent; tests/e2e runs them for real."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from examples import fastapi_app, starlette_app, worker
from fastapi import FastAPI
from starlette.applications import Starlette

from session_supervisor import SessionSpec
from session_supervisor.agents.scripted import (
    Conversation,
    Crash,
    Fail,
    Pause,
    Say,
    ScriptedAgent,
    Start,
    Step,
    by_prompt,
)
from session_supervisor.errors import AgentMissing, Failure, FailureCode
from session_supervisor.spec import Prompt
from tests.http.contract import parse_stream
from tests.support.virtual_time import virtual

ADA = {"Authorization": "Bearer token-of-ada"}
BOB = {"Authorization": "Bearer token-of-bob"}


@asynccontextmanager
async def opened(app: Starlette) -> AsyncGenerator[httpx.AsyncClient]:
    """Run an application's lifespan, and call it without a socket."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", timeout=20
        ) as client,
    ):
        yield client


# -- in Starlette ------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_in_starlette_the_applications_own_login_guards_the_api() -> None:
    async with opened(starlette_app.create(ScriptedAgent())) as client:
        for path in ("/agents/sessions", "/agents/docs", "/usage"):
            response = await client.get(path)
            assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
            assert (await client.get(path, headers=ADA)).status_code == 200


@pytest.mark.anyio
async def test_in_starlette_everybody_has_sessions_of_their_own() -> None:
    async with opened(starlette_app.create(ScriptedAgent())) as client:
        started = await client.post(
            "/agents/session/start", json={"initial_prompt": "Hi."}, headers=ADA
        )
        assert started.json()["initial_response"] == "You said: Hi."
        path = f"/agents/session/{started.json()['session_id']}"
        assert (await client.get(path, headers=ADA)).status_code == 200
        assert (await client.get(path, headers=BOB)).status_code == 404
        assert (await client.get("/usage", headers=ADA)).json() == {
            "sessions": 1,
            "cost_usd": 0.01,
        }
        assert (await client.get("/usage", headers=BOB)).json() == {"sessions": 0, "cost_usd": 0}


@pytest.mark.anyio
async def test_in_starlette_leaving_lets_turns_end() -> None:
    begun = asyncio.Event()

    def script(_prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
        begun.set()
        yield Pause(0.3)
        yield Say("done")

    agent = ScriptedAgent(script)
    async with opened(starlette_app.create(agent)) as client:
        asking = asyncio.create_task(
            client.post("/agents/query", json={"prompt": "slow"}, headers=ADA)
        )
        await begun.wait()
    assert (await asking).json()["response"] == "done"
    assert agent.live == 0


# -- in FastAPI --------------------------------------------------------------------------------


@pytest.fixture
def fastapi() -> FastAPI:
    return fastapi_app.create(ScriptedAgent())


@pytest.mark.anyio
async def test_in_fastapi_a_chat_is_streamed(fastapi: FastAPI) -> None:
    async with opened(fastapi) as client:
        chat = (await client.post("/chats", headers=ADA)).json()["chat_id"]
        answer = await client.post(f"/chats/{chat}/messages", json={"text": "Hi."}, headers=ADA)
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        said = parse_stream(answer.content)
        assert said[-1].data["response"] == "You said: Hi."

        # The same from the outside: the chat is a session of the API, and its stream ends with it.
        after = said[0].id
        following = asyncio.create_task(
            client.get(f"/chats/{chat}/events", headers={**ADA, "Last-Event-ID": str(after)})
        )
        await asyncio.sleep(0.05)
        closed = await client.delete(f"/agents/session/{chat}", headers=ADA)
        assert closed.status_code == 200
        followed = [one.id for one in parse_stream((await following).content)]
        assert followed[0] == (after or 0) + 1
        assert {one.id for one in said[1:]} <= set(followed)


@pytest.mark.anyio
async def test_in_fastapi_refusals_are_answered_as_the_api_answers_them(fastapi: FastAPI) -> None:
    async with opened(fastapi) as client:
        chat = (await client.post("/chats", headers=ADA)).json()["chat_id"]
        path = f"/chats/{chat}/messages"
        for headers, text, status, code in (
            (BOB, "Hi.", 404, "session_not_found"),
            (ADA, "  ", 400, "invalid_request"),
        ):
            answer = await client.post(path, json={"text": text}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        late = await client.get(f"/chats/{chat}/events", headers={**ADA, "Last-Event-ID": "99"})
        assert late.status_code == 400
        assert (await client.post("/chats")).status_code == 401
        # What FastAPI raises is understood below the mount point too, where it has no handlers.
        answer = await client.get("/agents/sessions")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


@pytest.mark.anyio
async def test_in_fastapi_a_job_goes_on_behind_its_request(
    fastapi: FastAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    async with opened(fastapi) as client:
        ordered = await client.post("/reports", json={"text": "Hi."}, headers=ADA)
        assert ordered.status_code == 202
        job = ordered.json()
        turn = f"/agents/session/{job['session_id']}/turns/{job['turn_id']}"
        assert (await client.get(turn, headers=ADA)).json()["response"] == "You said: Hi."
        assert (await client.get(turn, headers=BOB)).status_code == 404
    assert capsys.readouterr().out == "report for ada: completed: You said: Hi.\n"


@pytest.mark.anyio
async def test_in_fastapi_both_descriptions_are_there(fastapi: FastAPI) -> None:
    async with opened(fastapi) as client:
        own = (await client.get("/openapi.json")).json()
        assert "/chats/{chat_id}/messages" in own["paths"]
        stream = own["paths"]["/chats/{chat_id}/messages"]["post"]["responses"]["200"]
        assert "text/event-stream" in stream["content"]
        ours = (await client.get("/agents/openapi.json", headers=ADA)).json()
        assert "/session/start" in ours["paths"]


# -- without HTTP ------------------------------------------------------------------------------


class Jobs:
    """A queue that remembers what became of its jobs."""

    def __init__(self, *jobs: worker.Job) -> None:
        self.waiting = list(jobs)
        self.out: dict[str, worker.Job] = {}
        self.ends: dict[str, str] = {}
        self.back: list[tuple[str, float]] = []
        self.most_out = 0

    async def take(self) -> worker.Job | None:
        if not self.waiting:
            return None
        job = self.waiting.pop(0)
        self.out[job.id] = job
        self.most_out = max(self.most_out, len(self.out))
        return job

    async def done(self, job: worker.Job, text: str) -> None:
        del self.out[job.id]
        self.ends[job.id] = text

    async def failed(self, job: worker.Job, reason: str) -> None:
        del self.out[job.id]
        self.ends[job.id] = f"failed: {reason}"

    async def put_back(self, job: worker.Job, delay_s: float) -> None:
        del self.out[job.id]
        self.back.append((job.id, delay_s))
        self.waiting.append(job)


@pytest.fixture
def _nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SPEC", SessionSpec(cwd="/"))


def jobs(*prompts: str, repeatable: bool = False) -> Jobs:
    return Jobs(
        *(
            worker.Job(id=str(n), prompt=prompt, repeatable=repeatable)
            for n, prompt in enumerate(prompts)
        )
    )


BUSY = Failure(code=FailureCode.OVERLOADED, message="busy", retryable=True)
WRONG = Failure(code=FailureCode.UPSTREAM_REFUSED, message="no")


def agent_of(**extra: Any) -> ScriptedAgent:
    return ScriptedAgent(
        by_prompt(
            {
                "slow": [Say("one two", deltas=2, every_s=5.0)],
                "die": [Say("ha", confirmed=False), Crash()],
                "busy": [Fail(BUSY)],
                "wrong": [Fail(WRONG)],
                **extra,
            }
        )
    )


@pytest.mark.usefixtures("_nowhere")
@virtual()
async def test_a_worker_does_every_job_and_no_more_at_once_than_it_may() -> None:
    agent, queue = agent_of(), jobs(*["slow"] * 7)
    await worker.run(queue, agent, at_once=3, stop=asyncio.Event())
    assert Counter(queue.ends.values()) == {"one two": 7}
    assert (agent.most_live, queue.most_out, agent.live) == (3, 3, 0)
    assert asyncio.get_running_loop().time() == 30.0


@pytest.mark.usefixtures("_nowhere")
@pytest.mark.parametrize("repeatable", [False, True])
@virtual()
async def test_a_worker_repeats_only_what_may_be_and_only_so_often(repeatable: bool) -> None:
    queue = jobs("x", "die", "busy", "wrong", repeatable=repeatable)
    await worker.run(queue, agent_of(), at_once=2, stop=asyncio.Event())
    assert queue.ends["0"] == "You said: x"
    assert queue.ends["1"].startswith("failed: lost: ")
    assert queue.ends["2"] == "failed: failed: busy"
    assert queue.ends["3"] == "failed: failed: no"
    again = Counter(job_id for job_id, _ in queue.back)
    assert again == ({"1": 2, "2": 2} if repeatable else {})


@pytest.mark.usefixtures("_nowhere")
@pytest.mark.parametrize("repeatable", [False, True])
@virtual()
async def test_a_worker_that_is_stopped_leaves_no_job_undecided(repeatable: bool) -> None:
    agent = agent_of(long=[Say("a b", deltas=2, every_s=100.0)])
    queue, stop = jobs("slow", "long", "slow", "slow", repeatable=repeatable), asyncio.Event()
    working = asyncio.get_running_loop().create_task(
        worker.run(queue, agent, at_once=2, stop=stop, grace_s=20.0)
    )
    await asyncio.sleep(1.0)
    stop.set()
    await working
    assert asyncio.get_running_loop().time() == 21.0
    assert (agent.live, queue.out) == (0, {})
    assert queue.ends.pop("0") == "one two", "what was under way may end"
    if repeatable:
        assert [job.id for job in queue.waiting] == ["2", "3", "1"]
    else:
        assert queue.ends == {"1": "failed: interrupted: it was interrupted"}
        assert [job.id for job in queue.waiting] == ["2", "3"]


@pytest.mark.usefixtures("_nowhere")
@virtual()
async def test_a_worker_without_an_agent_stops_and_keeps_the_jobs() -> None:
    agent, queue = ScriptedAgent(start=Start(error=AgentMissing("not here"))), jobs("a", "b", "c")
    stop = asyncio.Event()
    await worker.run(queue, agent, at_once=1, stop=stop)
    assert stop.is_set()
    assert (queue.ends, queue.out) == ({}, {})
    assert {job.id for job in queue.waiting} == {"a", "b", "c"} or len(queue.waiting) == 3
