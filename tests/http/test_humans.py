"""Humans are asked, and answer, over HTTP: permissions and questions, once each, by their owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from session_supervisor import SupervisorConfig
from session_supervisor.agents.scripted import (
    AskQuestions,
    Conversation,
    Crash,
    Pause,
    Say,
    Step,
    UseTool,
)
from session_supervisor.asks import Choice, Question, Rule
from session_supervisor.spec import JsonObject, Prompt
from tests.http.contract import Said, judged, parse_stream
from tests.http.servers import World, eventually, in_process, world

pytestmark = pytest.mark.anyio

ASKS = SupervisorConfig(on_permission="ask")
DATABASE = Question(
    question="Which database?",
    header="Database",
    options=(Choice(label="PostgreSQL", description="A server."), Choice(label="SQLite")),
)
CHECKS = Question(
    question="Which checks?",
    options=(Choice(label="lint"), Choice(label="types")),
    multi_select=True,
)


def ran(arguments: JsonObject) -> str:
    return f"ran {arguments['command']}"


def script(prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
    match prompt.text.split():
        case ["run", *command]:
            yield UseTool(
                "Bash",
                input={"command": " ".join(command)},
                result=ran,
                asks=True,
                suggestions=(Rule(tool="Bash", content=" ".join(command)),),
            )
            yield Say("Done.")
        case ["unsuggested"]:
            yield UseTool("Bash", input={"command": "ls"}, result=ran, asks=True)
            yield Say("Done.")
        case ["ask"]:
            yield AskQuestions((DATABASE, CHECKS))
            yield Say("I see.")
        case ["slow"]:
            yield Pause(60)
        case ["die"]:
            yield Crash()
        case _:
            yield Say("Hello.")


class Talk:
    """A session whose agent asks."""

    def __init__(self, world: World, client: httpx.AsyncClient, path: str) -> None:
        self.world = world
        self.client = client
        self.path = path

    async def ask(self, prompt: str, **fields: Any) -> str:
        """Begin a turn, without waiting for it; return its id."""
        response = await self.client.post(
            f"{self.path}/query?wait=false", json={"prompt": prompt, **fields}
        )
        assert response.status_code == 202, response.text
        turn_id: str = response.json()["turn_id"]
        return turn_id

    async def pending(self, kind: str = "permissions") -> dict[str, Any]:
        """Wait until one request waits, and return it."""
        found: list[dict[str, Any]] = []

        async def waits() -> bool:
            found[:] = (await self.client.get(f"{self.path}/{kind}")).json()[kind]
            return bool(found)

        await eventually(waits)
        (one,) = found
        return one

    async def answer(
        self, request: dict[str, Any], body: dict[str, Any], kind: str = "permissions"
    ) -> httpx.Response:
        return await self.client.post(f"{self.path}/{kind}/{request['request_id']}", json=body)

    async def ended(self, turn_id: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        async def over() -> bool:
            found.update((await self.client.get(f"{self.path}/turns/{turn_id}")).json())
            return bool(found["phase"] == "ended")

        await eventually(over)
        return found

    async def said(self, turn_id: str) -> list[Said]:
        """Return the events of an ended turn."""
        first = (await self.client.get(f"{self.path}/turns/{turn_id}")).json()["first_event_id"]
        session = self.world.supervisor.get(self.path.rpartition("/")[2])
        turn = await session.turn(turn_id)
        found: list[Said] = []
        async for event in turn:
            assert event.seq >= first
            reply = await self.client.get(f"{self.path}/events/{event.seq}")
            found.append(Said(id=reply.json()["id"], data=reply.json()["event"]))
        return found

    async def results(self, turn_id: str) -> list[Any]:
        return [
            one.data["content"] for one in await self.said(turn_id) if one.type == "tool_result"
        ]


@asynccontextmanager
async def talk(config: SupervisorConfig = ASKS, **start: Any) -> AsyncGenerator[Talk]:
    async with (
        world(script, config=config) as one,
        in_process(one.app, hooks=judged()) as client,
    ):
        response = await client.post("/session/start", json=start)
        assert response.status_code == 200, response.text
        yield Talk(one, client, f"/session/{response.json()['session_id']}")


# -- permissions -----------------------------------------------------------------------------


async def test_a_call_waits_until_it_is_allowed() -> None:
    async with talk() as one:
        turn_id = await one.ask("run make")
        request = await one.pending()
        assert request["tool"] == "Bash"
        assert request["input"] == {"command": "make"}
        assert request["turn_id"] == turn_id
        assert request["resolution"] is None
        assert request["expires_at"] is not None
        session = (await one.client.get(one.path)).json()
        assert (session["state"], session["pending"]) == ("waiting", 1)
        looked = (await one.client.get(f"{one.path}/inspect")).json()
        assert looked["pending"] == [request["request_id"]]
        answered = await one.answer(request, {"decision": "allow"})
        assert answered.status_code == 200
        assert answered.json()["resolution"] == "allowed"
        assert (await one.ended(turn_id))["response"] == "Done."
        assert await one.results(turn_id) == ["ran make"]
        kinds = [said.type for said in await one.said(turn_id)]
        assert kinds.index("permission_request") < kinds.index("resolved")
        assert (await one.client.get(f"{one.path}/permissions")).json()["count"] == 0
        kept = (await one.client.get(f"{one.path}/permissions?pending=false")).json()
        assert [one["resolution"] for one in kept["permissions"]] == ["allowed"]


async def test_the_arguments_can_be_changed() -> None:
    async with talk() as one:
        turn_id = await one.ask("run rm -r /")
        request = await one.pending()
        body = {"decision": "allow", "updated_input": {"command": "ls"}}
        answered = (await one.answer(request, body)).json()
        assert answered["updated_input"] == {"command": "ls"}
        assert answered["input"] == {"command": "rm -r /"}
        await one.ended(turn_id)
        assert await one.results(turn_id) == ["ran ls"]


async def test_a_call_that_is_denied_does_not_run() -> None:
    async with talk() as one:
        turn_id = await one.ask("run make")
        request = await one.pending()
        answered = await one.answer(request, {"decision": "deny", "message": "Not on a Friday."})
        assert answered.json()["resolution"] == "denied"
        assert answered.json()["message"] == "Not on a Friday."
        turn = await one.ended(turn_id)
        assert turn["outcome"] == "completed"
        assert "ran make" not in await one.results(turn_id)


async def test_a_denial_can_end_the_turn() -> None:
    async with talk() as one:
        turn_id = await one.ask("run make")
        await one.answer(await one.pending(), {"decision": "deny", "end_turn": True})
        assert (await one.ended(turn_id))["outcome"] == "interrupted"


@pytest.mark.parametrize(
    "remember", [True, [{"tool": "Bash", "content": "make"}], [{"tool": "Bash"}]]
)
async def test_what_is_remembered_is_not_asked_again(remember: Any) -> None:
    async with talk() as one:
        turn_id = await one.ask("run make")
        answered = await one.answer(
            await one.pending(), {"decision": "allow", "remember": remember}
        )
        rule = {"tool": "Bash", "content": "make"} if remember is True else remember[0]
        assert answered.json()["remembered"] == [{"content": None, **rule}]
        await one.ended(turn_id)
        again = await one.client.post(f"{one.path}/query", json={"prompt": "run make"})
        assert again.json()["response"] == "Done."
        assert await one.results(again.json()["turn_id"]) == ["ran make"]


async def test_nothing_can_be_remembered_where_nothing_is_suggested() -> None:
    async with talk() as one:
        await one.ask("unsuggested")
        request = await one.pending()
        refused = await one.answer(request, {"decision": "allow", "remember": True})
        assert refused.status_code == 400
        assert refused.json()["errors"][0]["field"] == "remember"
        assert (await one.pending())["request_id"] == request["request_id"]


async def test_the_second_answer_is_a_409_that_shows_the_first() -> None:
    async with talk() as one:
        turn_id = await one.ask("run make")
        request = await one.pending()
        bodies = ({"decision": "allow"}, {"decision": "deny", "message": "No."})
        replies = await asyncio.gather(*(one.answer(request, body) for body in bodies * 3))
        (first,) = [reply for reply in replies if reply.status_code == 200]
        for reply in replies:
            if reply is not first:
                assert (reply.status_code, reply.json()["code"]) == (409, "request_over")
                assert reply.json()["request"] == first.json()
        await one.ended(turn_id)
        late = await one.answer(request, {"decision": "allow", "remember": True})
        assert late.json()["request"] == first.json()


async def test_who_waits_for_the_answer_gets_it_when_somebody_has_allowed() -> None:
    async with talk() as one:
        asking = asyncio.create_task(
            one.client.post(f"{one.path}/query", json={"prompt": "run make"})
        )
        request = await one.pending()
        assert not asking.done()
        await one.answer(request, {"decision": "allow"})
        assert (await asking).json()["response"] == "Done."


async def test_a_stream_tells_of_the_request_and_its_end() -> None:
    async with talk() as one:
        asking = asyncio.create_task(
            one.client.post(f"{one.path}/query", json={"prompt": "run make", "stream": True})
        )
        request = await one.pending()
        await one.answer(request, {"decision": "allow"})
        said = {event.type: event.data for event in parse_stream((await asking).content)}
        assert said["permission_request"]["request_id"] == request["request_id"]
        assert said["permission_request"]["suggestions"] == [{"tool": "Bash", "content": "make"}]
        assert said["permission_request"]["expires_at"] == request["expires_at"]
        assert said["resolved"]["resolution"] == "allowed"
        assert said["done"]["response"] == "Done."


async def test_nobody_who_answers_in_time_is_a_denial() -> None:
    async with talk() as one:
        turn_id = await one.ask("run make", permission_timeout_s=0.05)
        await one.ended(turn_id)
        assert "ran make" not in await one.results(turn_id)
        (kept,) = (await one.client.get(f"{one.path}/permissions?pending=false")).json()[
            "permissions"
        ]
        assert kept["resolution"] == "expired"
        late = await one.answer(kept, {"decision": "allow"})
        assert (late.status_code, late.json()["request"]["resolution"]) == (409, "expired")


@pytest.mark.parametrize("how", ["session", "query", "config"])
async def test_with_deny_nobody_is_asked(how: str) -> None:
    config = SupervisorConfig() if how == "config" else ASKS
    start = {"on_permission": "deny"} if how == "session" else {}
    fields = {"on_permission": "deny"} if how == "query" else {}
    async with talk(config, **start) as one:
        reply = await one.client.post(f"{one.path}/query", json={"prompt": "run make", **fields})
        assert reply.status_code == 200
        assert "ran make" not in await one.results(reply.json()["turn_id"])
        assert len(reply.json()["permission_denials"]) == 1
        turn = await one.client.get(f"{one.path}/turns/{reply.json()['turn_id']}")
        assert turn.json()["on_permission"] == "deny"


async def test_a_query_without_a_conversation_asks_only_if_told_to() -> None:
    async with talk() as one:
        reply = await one.client.post("/query", json={"prompt": "run make"})
        assert reply.json()["permission_denials"]
        accepted = await one.client.post(
            "/query?wait=false", json={"prompt": "run make", "on_permission": "ask"}
        )
        assert accepted.status_code == 202
        once = Talk(one.world, one.client, f"/session/{accepted.json()['session_id']}")
        await once.answer(await once.pending(), {"decision": "allow"})
        turn_id = accepted.json()["turn_id"]
        await once.ended(turn_id)
        assert await once.results(turn_id) == ["ran make"]


async def test_an_interrupt_takes_the_request_back() -> None:
    async with talk() as one:
        turn_id = await one.ask("run make")
        request = await one.pending()
        await one.client.post(f"{one.path}/interrupt")
        assert (await one.ended(turn_id))["outcome"] == "interrupted"
        late = await one.answer(request, {"decision": "allow"})
        assert (late.status_code, late.json()["request"]["resolution"]) == (409, "cancelled")


async def test_a_crash_loses_the_request_with_its_turn() -> None:
    async with talk() as one:
        turn_id = await one.ask("run make")
        request = await one.pending()
        one.world.agent.processes[-1].crash()
        assert (await one.ended(turn_id))["outcome"] == "lost"
        looked = await one.client.get(f"{one.path}/permissions/{request['request_id']}")
        assert looked.json()["resolution"] == "lost"
        late = await one.answer(request, {"decision": "allow"})
        assert (late.status_code, late.json()["code"]) == (409, "request_over")


# -- questions -------------------------------------------------------------------------------


async def test_a_question_waits_for_its_answers() -> None:
    async with talk() as one:
        turn_id = await one.ask("ask")
        request = await one.pending("questions")
        assert [asked["question"] for asked in request["questions"]] == [
            "Which database?",
            "Which checks?",
        ]
        assert request["questions"][0]["options"][0] == {
            "label": "PostgreSQL",
            "description": "A server.",
        }
        answers = {"Which database?": "DuckDB", "Which checks?": ["lint", "types"]}
        answered = await one.answer(request, {"answers": answers}, "questions")
        assert answered.status_code == 200, answered.text
        assert answered.json()["resolution"] == "answered"
        assert answered.json()["answers"] == {
            "Which database?": ["DuckDB"],
            "Which checks?": ["lint", "types"],
        }
        assert (await one.ended(turn_id))["response"] == "I see."
        assert "DuckDB" in str(await one.results(turn_id))
        again = await one.answer(request, {"answers": answers}, "questions")
        assert (again.status_code, again.json()["request"]["kind"]) == (409, "question")


@pytest.mark.parametrize(
    "answers",
    [
        {"Which database?": "SQLite"},
        {"Which database?": "SQLite", "Which checks?": "lint", "Which?": "x"},
        {"Which database?": ["SQLite", "PostgreSQL"], "Which checks?": "lint"},
        {"Which database?": "  ", "Which checks?": "lint"},
    ],
)
async def test_answers_that_do_not_fit_are_refused_and_change_nothing(
    answers: dict[str, Any],
) -> None:
    async with talk() as one:
        await one.ask("ask")
        request = await one.pending("questions")
        refused = await one.answer(request, {"answers": answers}, "questions")
        assert refused.status_code == 400
        assert refused.json()["errors"][0]["field"] == "answers"
        assert (await one.pending("questions"))["resolution"] is None


async def test_a_question_can_be_left_without_an_answer() -> None:
    async with talk() as one:
        turn_id = await one.ask("ask")
        request = await one.pending("questions")
        denied = await one.answer(
            request, {"decision": "deny", "message": "Ask later."}, "questions"
        )
        assert denied.json()["resolution"] == "denied"
        assert denied.json()["answers"] is None
        assert (await one.ended(turn_id))["outcome"] == "completed"


async def test_a_question_is_no_permission_and_the_other_way_round() -> None:
    async with talk() as one:
        await one.ask("ask")
        request = await one.pending("questions")
        assert (await one.client.get(f"{one.path}/permissions")).json()["count"] == 0
        for reply in (
            await one.answer(request, {"decision": "allow"}, "permissions"),
            await one.client.get(f"{one.path}/permissions/{request['request_id']}"),
        ):
            assert (reply.status_code, reply.json()["code"]) == (404, "request_not_found")


# -- what is not there -----------------------------------------------------------------------


@pytest.mark.parametrize("request_id", ["nothing", "00000000-0000-4000-8000-000000000000", "%2e"])
async def test_an_unknown_request_is_a_404(request_id: str) -> None:
    async with talk() as one:
        for kind, body in (
            ("permissions", {"decision": "allow"}),
            ("questions", {"answers": {"a": "b"}}),
        ):
            path = f"{one.path}/{kind}/{request_id}"
            for reply in (await one.client.get(path), await one.client.post(path, json=body)):
                assert (reply.status_code, reply.json()["code"]) == (404, "request_not_found")
