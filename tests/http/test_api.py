"""What the operations do, called without a socket; every answer is held against the description."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from session_http.credentials import CredentialState, Watched
from session_http.examples import examples
from session_http.operations import OPERATIONS
from session_http.reading import Source
from session_http.settings import HttpSettings
from session_http.sse import StreamSettings
from session_supervisor import RestartPolicy, SupervisorConfig
from session_supervisor.agents.scripted import (
    Conversation,
    Crash,
    Fail,
    Hang,
    Pause,
    Say,
    ScriptedAgent,
    Start,
    Step,
    echo,
)
from session_supervisor.errors import AgentMissing, AgentStartFailed, Failure, FailureCode
from session_supervisor.spec import Prompt
from tests.http.contract import Said, judged, parse_stream
from tests.http.servers import World, eventually, in_process, world

pytestmark = pytest.mark.anyio


def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    match prompt.text.split():
        case ["fail", code]:
            yield Say("Partial", confirmed=False)
            yield Fail(Failure(code=FailureCode(code), message="It failed.", retry_after=3.0))
        case ["die"]:
            yield Say("Partial", confirmed=False)
            yield Crash()
        case ["hang"]:
            yield Say("Partial", confirmed=False)
            yield Hang()
        case ["wait", seconds]:
            yield Pause(float(seconds))
            yield Say("Done waiting.")
        case _:
            yield from echo(prompt, conversation)


@dataclass(frozen=True, slots=True)
class Api:
    world: World
    client: httpx.AsyncClient

    async def start(self, **body: Any) -> str:
        response = await self.client.post("/session/start", json=body)
        assert response.status_code == 200, response.text
        session_id: str = response.json()["session_id"]
        return f"/session/{session_id}"

    async def running(self, path: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many turns are there and the first runs; return them."""
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            found[:] = (await self.client.get(f"{path}/turns")).json()["turns"]
            return len(found) >= count and found[0]["phase"] == "running"

        await eventually(there)
        return found


@asynccontextmanager
async def api(**options: Any) -> AsyncGenerator[Api]:
    options.setdefault("script", script)
    async with world(**options) as one, in_process(one.app, hooks=judged()) as client:
        yield Api(one, client)


async def stream(client: httpx.AsyncClient, path: str, prompt: str) -> list[Said]:
    response = await client.post(path, json={"prompt": prompt, "stream": True})
    assert response.status_code == 200, response.text
    return parse_stream(response.content)


# -- turns that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("fail rate_limited", 502, "rate_limited"),
        ("fail model_not_found", 502, "model_not_found"),
        ("fail authentication_failed", 502, "authentication_failed"),
        ("die", 502, "crashed"),
    ],
)
async def test_a_turn_that_fails_is_an_error_that_names_it(
    prompt: str, status: int, code: str
) -> None:
    async with api() as one:
        response = await one.client.post("/query", json={"prompt": prompt})
        assert response.status_code == status
        problem = response.json()
        assert problem["code"] == code
        path = f"/session/{problem['session_id']}/turns/{problem['turn_id']}"
        turn = (await one.client.get(path)).json()
        assert turn["error"]["code"] == code
        assert turn["response"] == "Partial"
        assert turn["phase"] == "ended"


async def test_the_prose_of_an_error_is_no_answer() -> None:
    async with api() as one:
        problem = (await one.client.post("/query", json={"prompt": "fail billing"})).json()
        assert "response" not in problem
        assert problem["detail"] == "It failed."
        assert problem["retry_after"] == 3.0


async def test_a_stream_of_a_turn_that_fails_ends_with_one_error_event() -> None:
    async with api() as one:
        said = await stream(one.client, "/query", "fail overloaded")
        assert [event.type for event in said][-2:] == ["result", "error"]
        assert said[-1].data["code"] == "overloaded"
        assert said[-1].data["outcome"] == "failed"
        assert said[-1].data["session_id"]
        assert said[-1].data["turn_id"]


async def test_a_turn_over_its_time_is_a_504() -> None:
    async with api() as one:
        response = await one.client.post("/query", json={"prompt": "hang", "timeout_s": 0.05})
        assert response.status_code == 504
        assert response.json()["code"] == "timeout"
        path = await one.start()
        response = await one.client.post(
            f"{path}/query", json={"prompt": "hang", "timeout_s": 0.05}
        )
        assert response.status_code == 504
        again = await one.client.post(f"{path}/query", json={"prompt": "and now"})
        assert again.status_code == 200


async def test_a_start_whose_first_message_fails_leaves_no_session() -> None:
    async with api() as one:
        body = {"initial_prompt": "fail model_not_found"}
        response = await one.client.post("/session/start", json=body)
        assert response.status_code == 502
        assert response.json()["code"] == "model_not_found"
        assert "session_id" not in response.json()
        response = await one.client.post(
            "/session/start", json={"initial_prompt": "hang", "timeout_s": 0.05}
        )
        assert response.status_code == 504
        assert (await one.client.get("/sessions")).json()["count"] == 0
        assert one.world.agent.live == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AgentMissing("There is no Claude Code."), "start_failed"),
        (AgentStartFailed("It does not start."), "start_failed"),
    ],
)
async def test_an_agent_that_does_not_start_is_a_502(error: Any, code: str) -> None:
    agent = ScriptedAgent(script, start=Start(error=error))
    config = SupervisorConfig(restarts=RestartPolicy(max_restarts=1, base_delay_s=0.001))
    async with api(agent=agent, config=config) as one:
        for path, body in (
            ("/query", {"prompt": "hi"}),
            ("/session/start", {"initial_prompt": "hi"}),
        ):
            response = await one.client.post(path, json=body)
            assert (response.status_code, response.json()["code"]) == (502, code)
        assert (await one.client.get("/sessions")).json()["count"] == 0


async def test_a_session_that_gave_up_is_a_409_and_not_active() -> None:
    config = SupervisorConfig(restarts=RestartPolicy(max_restarts=0))
    async with api(config=config) as one:
        path = await one.start()
        await one.client.post(f"{path}/query", json={"prompt": "die"})
        response = await one.client.post(f"{path}/query", json={"prompt": "hi"})
        assert (response.status_code, response.json()["code"]) == (409, "session_failed")
        found = (await one.client.get(path)).json()
        assert (found["active"], found["state"]) == (False, "failed")
        assert (await one.client.delete(path)).status_code == 200


async def test_a_session_goes_on_after_a_crash() -> None:
    config = SupervisorConfig(restarts=RestartPolicy(base_delay_s=0.001))
    async with api(config=config) as one:
        path = await one.start(initial_prompt="one")
        assert (await one.client.post(f"{path}/query", json={"prompt": "die"})).status_code == 502
        answer = await one.client.post(f"{path}/query", json={"prompt": "two"})
        assert "Earlier you said: one" in answer.json()["response"]


async def test_a_turn_in_a_session_that_is_deleted_is_a_409() -> None:
    async with api() as one:
        path = await one.start()
        query = asyncio.create_task(one.client.post(f"{path}/query", json={"prompt": "hang"}))
        await one.running(path)
        await one.client.delete(path)
        response = await query
        assert (response.status_code, response.json()["code"]) == (409, "closed")


# -- interrupts --------------------------------------------------------------------------------


async def test_an_interrupt_can_name_its_turn_or_take_the_queue_along() -> None:
    async with api() as one:
        path = await one.start()
        queries = [
            asyncio.create_task(one.client.post(f"{path}/query", json={"prompt": f"{prompt}"}))
            for prompt in ("hang", "wait 0", "wait 30")
        ]
        turns = await one.running(path, 3)
        ids = [turn["turn_id"] for turn in turns]

        one_out = await one.client.post(f"{path}/interrupt", json={"turn_id": ids[2]})
        assert one_out.json()["turn_ids"] == [ids[2]]
        assert (await queries[2]).json()["outcome"] == "interrupted"

        unknown = await one.client.post(f"{path}/interrupt", json={"turn_id": "x"})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "turn_not_found")

        everything = await one.client.post(f"{path}/interrupt", json={"queued": True})
        assert everything.json()["outcome"] == "interrupted"
        assert (await queries[0]).json()["response"] == "Partial"
        assert (await queries[1]).json()["outcome"] == "interrupted"


async def test_a_stream_that_is_interrupted_ends_with_done() -> None:
    async with api() as one:
        path = await one.start()
        query = asyncio.create_task(stream(one.client, f"{path}/query", "hang"))
        await one.running(path)
        await one.client.post(f"{path}/interrupt")
        last = (await query)[-1]
        assert (last.type, last.data["outcome"]) == ("done", "interrupted")
        assert last.data["response"] == "Partial"


# -- limits ------------------------------------------------------------------------------------


async def test_a_full_queue_is_a_429() -> None:
    async with api(config=SupervisorConfig(max_queued=1)) as one:
        path = await one.start()
        queries = [asyncio.create_task(one.client.post(f"{path}/query", json={"prompt": "hang"}))]
        await one.running(path)
        queries.append(
            asyncio.create_task(one.client.post(f"{path}/query", json={"prompt": "hang"}))
        )
        await one.running(path, 2)
        response = await one.client.post(f"{path}/query", json={"prompt": "hi"})
        assert (response.status_code, response.json()["code"]) == (429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        await one.client.post(f"{path}/interrupt", json={"queued": True})
        await asyncio.gather(*queries)


async def test_too_many_sessions_or_processes_are_a_503() -> None:
    async with api(config=SupervisorConfig(max_sessions=1, max_live=2)) as one:
        path = await one.start()
        response = await one.client.post("/session/start", json={})
        assert (response.status_code, response.json()["code"]) == (503, "at_capacity")
        assert int(response.headers["retry-after"]) >= 1
        assert (await one.client.get("/ready")).status_code == 503
        await one.client.delete(path)
        assert (await one.client.get("/ready")).json() == {"status": "ready"}


async def test_streams_are_capped_before_their_turn_begins() -> None:
    settings = HttpSettings(streams=StreamSettings(max_streams=0))
    async with api(settings=settings) as one:
        path = await one.start()
        for response in (
            await one.client.post("/query", json={"prompt": "hi", "stream": True}),
            await one.client.post(f"{path}/query", json={"prompt": "hi", "stream": True}),
            await one.client.get(f"{path}/events"),
        ):
            assert (response.status_code, response.json()["code"]) == (503, "too_many_streams")
        assert (await one.client.get(f"{path}/turns")).json()["count"] == 0
        assert len(one.world.supervisor.snapshot().sessions) == 1


async def test_a_refused_stream_gives_its_place_back() -> None:
    settings = HttpSettings(streams=StreamSettings(max_streams=1))
    config = SupervisorConfig(max_live=1, max_waiting=1)
    async with api(settings=settings, config=config) as one:
        path = await one.start()
        hanging = asyncio.create_task(one.client.post(f"{path}/query", json={"prompt": "hang"}))
        await one.running(path)
        waiting = await one.start()
        await eventually(lambda: one.world.supervisor.snapshot().waiting == 1)
        for _ in range(3):
            response = await one.client.post("/query", json={"prompt": "hi", "stream": True})
            assert response.json()["code"] == "at_capacity"
        assert one.world.app.open_streams == 0
        await one.client.delete(waiting)
        await one.client.post(f"{path}/interrupt")
        await hanging
        assert (await stream(one.client, f"{path}/query", "hi"))[-1].type == "done"
        await one.world.supervisor.get(path.rpartition("/")[2]).close()
        for _ in range(3):
            response = await one.client.post(f"{path}/query", json={"prompt": "a", "stream": True})
            assert response.json()["code"] == "session_closed"
        assert one.world.app.open_streams == 0


async def test_a_draining_server_takes_no_work_and_is_not_ready() -> None:
    async with api() as one:
        path = await one.start()
        await one.world.supervisor.drain(0.0)
        for response in (
            await one.client.post("/query", json={"prompt": "hi"}),
            await one.client.post("/session/start", json={}),
            await one.client.get("/ready"),
        ):
            assert (response.status_code, response.json()["code"]) == (503, "draining")
            assert response.headers["retry-after"] == "5"
        assert (await one.client.post(f"{path}/query", json={"prompt": "hi"})).status_code in (
            409,
            503,
        )
        assert (await one.client.get("/health")).json()["status"] == "healthy"


# -- credentials -------------------------------------------------------------------------------


async def test_without_a_credential_work_is_refused_and_everything_else_is_not() -> None:
    found = False

    async def look(_owner: str) -> CredentialState:
        return CredentialState(authenticated=found, hint="Run `claude login`.")

    async with api(credentials=Watched(look, interval_s=0.0)) as one:
        assert (await one.client.get("/health")).json()["authenticated"] is False
        for path, body in (("/query", {"prompt": "hi"}), ("/session/start", {}), ("/ready", None)):
            method = "GET" if body is None else "POST"
            response = await one.client.request(method, path, json=body)
            assert (response.status_code, response.json()["code"]) == (503, "not_authenticated")
            assert "claude login" in response.json()["detail"]
        assert (await one.client.get("/sessions")).status_code == 200
        found = True
        assert (await one.client.post("/query", json={"prompt": "hi"})).status_code == 200
        assert (await one.client.get("/health")).json()["authenticated"] is True


# -- turns and sessions ------------------------------------------------------------------------


async def test_a_turn_can_be_looked_up_while_it_runs_and_after() -> None:
    async with api() as one:
        path = await one.start()
        query = asyncio.create_task(one.client.post(f"{path}/query", json={"prompt": "hang"}))
        (summary,) = await one.running(path)
        where = f"{path}/turns/{summary['turn_id']}"
        turn = (await one.client.get(where)).json()
        assert (turn["phase"], turn["prompt"], turn["outcome"]) == ("running", "hang", None)
        session = one.world.supervisor.get(summary["session_id"])
        running = await session.turn(summary["turn_id"])
        await eventually(lambda: running.record().text == "Partial")
        await one.client.post(f"{path}/interrupt")
        await query
        turn = (await one.client.get(where)).json()
        assert (turn["phase"], turn["outcome"], turn["response"]) == (
            "ended",
            "interrupted",
            "Partial",
        )
        assert turn["usage"]["input_tokens"] == 1
        assert turn["total_cost_usd"] == pytest.approx(0.01)
        missing = await one.client.get(f"{path}/turns/x")
        assert (missing.status_code, missing.json()["code"]) == (404, "turn_not_found")


async def test_a_session_without_a_model_shows_the_operators() -> None:
    async with api(settings=HttpSettings(default_model="sonnet")) as one:
        assert (await one.client.get(await one.start())).json()["model"] == "sonnet"


async def test_a_conversation_takes_turns_one_after_another() -> None:
    async with api() as one:
        path = await one.start()
        answers = await asyncio.gather(
            *(one.client.post(f"{path}/query", json={"prompt": f"{n}"}) for n in range(8))
        )
        assert [answer.status_code for answer in answers] == [200] * 8
        assert [p.text for p in one.world.agent.processes[0].sent] == [f"{n}" for n in range(8)]


@pytest.mark.parametrize(
    "session_id", ["x", "%2e%2e", "a%2Fb", "550e8400-e29b-41d4-a716-446655440000", "é" * 999]
)
async def test_an_id_that_no_session_has_is_a_404_on_every_path(session_id: str) -> None:
    async with api() as one:
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/query"),
            ("POST", "/interrupt"),
            ("GET", "/turns"),
            ("GET", "/turns/x"),
            ("GET", "/events"),
        ):
            body = {"prompt": "hi"} if path == "/query" else None
            response = await one.client.request(method, f"/session/{session_id}{path}", json=body)
            assert response.status_code in (404, 405), (method, path, response.text)
            assert response.json()["detail"]


# -- the session's stream ------------------------------------------------------------------------


async def test_the_events_of_a_session_can_be_read_again_from_any_of_them() -> None:
    async with api() as one:
        path = await one.start(initial_prompt="one")
        await one.client.post(f"{path}/query", json={"prompt": "two"})
        await one.world.supervisor.get(path.rpartition("/")[2]).close()
        everything = parse_stream((await one.client.get(f"{path}/events")).content)
        ids = [said.id or 0 for said in everything]
        for after in (0, ids[0], ids[3]):
            rest = [number for number in ids if number > after]
            header = {"Last-Event-ID": str(after)}
            hows: list[dict[str, Any]] = [
                {"params": {"after": after}},
                {"headers": header},
                {"headers": header, "params": {"after": 0}},
            ]
            for how in hows:
                response = await one.client.get(f"{path}/events", **how)
                said = parse_stream(response.content)
                assert [event.id for event in said][-1] == rest[-1]
                assert all((event.id or 0) > after for event in said)
        over = await one.client.get(f"{path}/events", params={"after": ids[-1]})
        assert over.status_code == 204


@pytest.mark.parametrize(
    "how",
    [
        {"params": {"after": 999}},
        {"params": {"after": "x"}},
        {"params": {"after": "1.0"}},
        {"params": {"after": "1_0"}},
        {"params": {"after": " 1"}},
        {"headers": {"Last-Event-ID": "999"}},
        {"headers": {"Last-Event-ID": "-1"}},
        {"headers": {"Last-Event-ID": "one"}},
    ],
)
async def test_an_id_that_was_never_sent_is_a_400(how: dict[str, Any]) -> None:
    async with api() as one:
        response = await one.client.get(f"{await one.start()}/events", **how)
        assert response.status_code == 400
        assert one.world.app.open_streams == 0


async def test_a_drained_server_says_bye_with_the_cursor_to_come_back_with() -> None:
    async with api() as one:
        path = await one.start(initial_prompt="one")
        reading = asyncio.create_task(one.client.get(f"{path}/events"))
        await eventually(lambda: one.world.app.open_streams == 1)
        await one.world.supervisor.drain(0.0)
        said = parse_stream((await reading).content)
        assert said[-1].type == "bye"
        assert said[-1].data["after"] == said[-2].id
        assert said[-1].id is None, "it is no event: a browser keeps the id that it had"


async def test_a_session_that_is_closed_ends_its_stream_without_a_bye() -> None:
    async with api() as one:
        path = await one.start(initial_prompt="one")
        reading = asyncio.create_task(one.client.get(f"{path}/events"))
        await eventually(lambda: one.world.app.open_streams == 1)
        await one.client.delete(path)
        said = parse_stream((await reading).content)
        assert (said[-1].type, said[-1].data["state"]) == ("status", "closed")


# -- around every answer -------------------------------------------------------------------------


async def test_every_answer_has_a_request_id_its_own_or_the_callers() -> None:
    async with api() as one:
        first = (await one.client.get("/health")).headers["x-request-id"]
        second = (await one.client.get("/nope")).headers["x-request-id"]
        assert first != second
        given = await one.client.get("/health", headers={"X-Request-Id": "req-1:a/b"})
        assert given.headers["x-request-id"] == "req-1:a/b"
        for bad in ("a b", "x" * 200, "-", "<script>"):
            answer = await one.client.get("/health", headers={"X-Request-Id": bad})
            assert answer.headers["x-request-id"] != bad


async def test_an_answer_says_what_took_how_long() -> None:
    async with api() as one:
        answer = await one.client.post("/query", json={"prompt": "wait 0.05"})
        timing = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        assert set(timing) == {"queue", "spawn", "model", "total"}
        assert 45 <= float(timing["model"]) <= float(timing["total"])
        assert answer.json()["duration_ms"] >= 45


async def test_a_mistake_of_ours_is_a_500_without_our_insides(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with api() as one:

        def broken(**_options: object) -> object:
            return 1 / 0

        monkeypatch.setattr(one.world.supervisor, "list", broken)
        response = await one.client.get("/sessions", headers={"X-Request-Id": "req-1"})
        assert response.status_code == 500
        assert response.json()["code"] == "internal"
        assert "req-1" in response.json()["detail"]
        assert "division" not in response.text
        assert "division" in caplog.text


async def test_a_mistake_in_a_stream_is_told_in_the_stream(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_args: object, **_kwargs: object) -> object:
        raise ZeroDivisionError

    async with api() as one:
        path = await one.start()
        monkeypatch.setattr("session_http.frames.Frames.chunks", broken)
        with caplog.at_level(logging.ERROR):
            said = await stream(one.client, f"{path}/query", "hi")
        assert [event.type for event in said] == ["error"]
        assert said[0].data["code"] == "internal"
        assert f"{path}/turns/{said[0].data['turn_id']}" in said[0].data["message"]
        assert one.world.app.open_streams == 0
        session = one.world.supervisor.get(path.rpartition("/")[2])
        turn = await session.turn(said[0].data["turn_id"])
        assert (await turn.result()).outcome == "completed"


async def test_a_foreign_page_cannot_use_a_guarded_server() -> None:
    settings = HttpSettings(trusted_hosts=frozenset({"test"}))
    async with api(settings=settings) as one:
        assert (await one.client.get("/health")).status_code == 200
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            response = await one.client.post("/query", json={"prompt": "hi"}, headers=headers)
            assert (response.status_code, response.json()["code"]) == (403, "untrusted_origin")
        assert one.world.agent.spawned == 0


async def test_it_can_be_mounted_in_another_application() -> None:
    async with world(script) as one:
        outer = Starlette(routes=[Mount("/claude", app=one.app)])
        async with in_process(outer) as client:
            assert (await client.get("/claude/health")).status_code == 200
            answer = await client.post("/claude/query", json={"prompt": "hi"})
            assert answer.json()["response"] == "You said: hi"
            assert (await client.get("/claude/nope")).json()["code"] == "not_found"
            assert (await client.put("/claude/query")).status_code == 405
            assert (await client.get("/claude/openapi.json")).json()["servers"] == [{"url": "./"}]
            assert (await client.get("/claude/assets/docs.js")).status_code == 200
            started = await client.post("/claude/session/start", json={})
            path = f"/claude/session/{started.json()['session_id']}"
            assert (await client.get(path)).status_code == 200


async def test_two_applications_can_share_a_supervisor() -> None:
    from session_http.app import create_app

    async with api() as one, in_process(create_app(one.world.supervisor)) as other:
        path = await one.start()
        assert (await other.get(path)).status_code == 200


# -- pages -------------------------------------------------------------------------------------


async def test_assets_are_served_with_their_types_and_only_they() -> None:
    async with api() as one:
        for name, media_type in (
            ("docs.js", "text/javascript"),
            ("swagger-ui.css", "text/css"),
            ("swagger-ui.LICENSE", "text/plain"),
        ):
            response = await one.client.get(f"/assets/{name}")
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(media_type)
            assert response.headers["x-content-type-options"] == "nosniff"
            again = await one.client.get(
                f"/assets/{name}", headers={"If-None-Match": response.headers["etag"]}
            )
            assert (again.status_code, again.content) == (304, b"")
        for name in ("../app.py", "..%2fapp.py", "%2e%2e", "nope.js", "docs.js/", "."):
            assert (await one.client.get(f"/assets/{name}")).status_code == 404


# -- the whole table ---------------------------------------------------------------------------


ELSEWHERE = {
    # What needs a session in which somebody is asked, a turn waits, or which has failed: the tests
    # of humans and of steering do these.
    "get_permission",
    "decide_permission",
    "get_question",
    "answer_question",
    "withdraw",
    "restart",
    # What needs a file.
    "get_file",
}


async def test_every_operation_of_the_table_answers_what_it_describes() -> None:
    async with api() as one:
        session = (await one.client.post("/session/start", json={"initial_prompt": "hi"})).json()
        for _ in range(2):  # one to be deleted, one to be read to its end
            await one.client.post("/query", json={"prompt": "hi"})
        values = {**session, "name": "docs.js", "event_id": 1}
        answered: list[tuple[str, str]] = []
        for row in OPERATIONS:
            if row.name in ELSEWHERE:
                continue
            path = row.path.format(**values)
            if row.method == "DELETE" or row.path.endswith("/events"):
                path = row.path.format(session_id=oneoff(one))
            bodies: list[dict[str, Any] | None] = [None]
            if row.source is Source.BODY:
                bodies = [examples()[row.takes]]
            if "prompt" in row.takes.model_fields:
                bodies = [{"prompt": "hi", "stream": stream} for stream in (False, True)]
            for body in bodies:
                response = await one.client.request(row.method, path, json=body)
                assert response.status_code == 200, (row.method, path, response.text)
                streamed = response.headers["content-type"].startswith("text/event-stream")
                assert streamed is (row.streams and (body is None or body["stream"]))
            answered.append((row.method, row.path))
        assert len(answered) == len(OPERATIONS) - len(ELSEWHERE)


def oneoff(one: Api) -> str:
    sessions = one.world.supervisor.snapshot().sessions
    return next(found.session_id for found in sessions if found.kind == "oneoff")


async def test_a_one_off_takes_no_second_query() -> None:
    async with api() as one:
        query = asyncio.create_task(one.client.post("/query", json={"prompt": "wait 0.2"}))
        await eventually(lambda: bool(one.world.supervisor.snapshot().sessions))
        path = f"/session/{oneoff(one)}"
        await one.running(path)
        response = await one.client.post(f"{path}/query", json={"prompt": "hi"})
        assert (response.status_code, response.json()["code"]) == (409, "session_closed")
        assert (await query).json()["response"] == "Done waiting."
        response = await one.client.post(f"{path}/query", json={"prompt": "hi"})
        assert (response.status_code, response.json()["code"]) == (409, "session_closed")
