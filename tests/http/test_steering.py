"""A session is steered over HTTP: set up, changed, forked, restarted and summed up."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from session_http.attachments import AttachmentLimits
from session_http.schemas import CHANGEABLE, FIXED, PIXEL_EXAMPLE
from session_http.settings import HttpSettings
from session_http.sse import StreamSettings
from session_supervisor import RestartPolicy, SupervisorConfig
from session_supervisor.agents.scripted import (
    Conversation,
    Crash,
    Give,
    Hang,
    Say,
    Step,
    UseTool,
    echo,
)
from session_supervisor.spec import Prompt
from tests.http.contract import parse_stream
from tests.http.keyring import Keys
from tests.http.servers import eventually, in_process, world
from tests.http.test_api import Api, api

pytestmark = pytest.mark.anyio

NEVER = "00000000-0000-4000-8000-000000000000"


def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    match prompt.text.split():
        case ["hang"]:
            yield Say("Partial", confirmed=False)
            yield Hang()
        case ["die"]:
            yield Crash()
        case ["long"]:
            yield UseTool("Read", input={"path": "a" * 500}, result="b" * 5000)
            yield Say("Read.")
        case ["give"]:
            yield Give({"answer": 42})
            yield Say("It is 42.")
        case _:
            yield from echo(prompt, conversation)


async def post(one: Api, path: str, **body: Any) -> Any:
    response = await one.client.post(path, json=body)
    assert response.status_code in (200, 202), response.text
    return response.json()


async def hangs(one: Api, path: str) -> str:
    """Have a turn run that never ends, and return its id."""
    turn_id: str = (await post(one, f"{path}/query?wait=false", prompt="hang"))["turn_id"]

    async def runs() -> bool:
        reply = await one.client.get(f"{path}/turns/{turn_id}")
        return bool(reply.json()["response"] == "Partial")

    await eventually(runs)
    return turn_id


async def ended(one: Api, path: str, turn_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def over() -> bool:
        found.update((await one.client.get(f"{path}/turns/{turn_id}")).json())
        return bool(found["phase"] == "ended")

    await eventually(over)
    return found


# -- not waiting -------------------------------------------------------------------------------


async def test_who_does_not_wait_gets_the_ids_and_looks_the_answer_up() -> None:
    async with api(script=script) as one:
        accepted = await one.client.post("/query?wait=false", json={"prompt": "hi"})
        assert accepted.status_code == 202
        found = accepted.json()
        assert (found["status"], found["position"]) == ("accepted", 0)
        turn = await ended(one, f"/session/{found['session_id']}", found["turn_id"])
        assert turn["outcome"] == "completed"


async def test_a_start_without_waiting_keeps_its_session_whatever_happens() -> None:
    async with api(script=script) as one:
        found = await post(one, "/session/start?wait=false", initial_prompt="die")
        path = f"/session/{found['session_id']}"
        assert (await ended(one, path, found["turn_id"]))["outcome"] == "lost"
        assert (await one.client.get(path)).json()["active"]
        started = await one.client.post("/session/start?wait=false")
        assert (started.status_code, started.json()["status"]) == (200, "started")


async def test_the_position_counts_what_is_in_front() -> None:
    async with api(script=script) as one:
        path = await one.start()
        await hangs(one, path)
        for position in (1, 2):
            found = await post(one, f"{path}/query?wait=false", prompt="hi")
            assert found["position"] == position


async def test_a_retry_that_does_not_wait_is_attached() -> None:
    async with api(script=script) as one:
        path = await one.start()
        key = {"idempotency-key": "k"}
        body = {"prompt": "hang"}
        replies = [
            await one.client.post(f"{path}/query?wait=false", json=body, headers=key)
            for _ in range(3)
        ]
        assert [reply.status_code for reply in replies] == [202] * 3
        assert len({reply.json()["turn_id"] for reply in replies}) == 1
        assert [reply.json()["position"] for reply in replies] == [0, None, None]
        assert (await one.client.get(f"{path}/turns")).json()["count"] == 1


@pytest.mark.parametrize(
    ("query", "body"),
    [("wait=no", {}), ("wait=", {}), ("wait=False", {}), ("wait=false", {"stream": True})],
)
async def test_wait_is_true_or_false_and_no_stream(query: str, body: dict[str, Any]) -> None:
    async with api(script=script) as one:
        for path in ("/query", f"{await one.start()}/query"):
            refused = await one.client.post(f"{path}?{query}", json={"prompt": "hi", **body})
            assert refused.status_code == 400
            assert refused.json()["errors"][0]["field"] == "wait"
        assert not one.world.agent.processes


# -- a busy session ----------------------------------------------------------------------------


async def test_who_would_not_wait_is_told_that_it_is_busy() -> None:
    async with api(script=script) as one:
        path = await one.start()
        await hangs(one, path)
        refused = await one.client.post(f"{path}/query", json={"prompt": "hi", "on_busy": "reject"})
        assert (refused.status_code, refused.json()["code"]) == (409, "busy")
        assert (await one.client.get(f"{path}/turns")).json()["count"] == 1


async def test_who_interrupts_comes_next() -> None:
    async with api(script=script) as one:
        path = await one.start()
        first = await hangs(one, path)
        waiting = await post(one, f"{path}/query?wait=false", prompt="second")
        reply = await post(one, f"{path}/query", prompt="third", on_busy="interrupt")
        assert reply["outcome"] == "completed"
        assert (await ended(one, path, first))["outcome"] == "interrupted"
        second = await ended(one, path, waiting["turn_id"])
        third = await ended(one, path, reply["turn_id"])
        assert second["outcome"] == "completed"
        assert third["started_at"] <= second["started_at"]


async def test_a_turn_that_waits_can_be_taken_out() -> None:
    async with api(script=script) as one:
        path = await one.start()
        running = await hangs(one, path)
        waiting = (await post(one, f"{path}/query?wait=false", prompt="hi"))["turn_id"]
        reply = await one.client.delete(f"{path}/turns/{waiting}")
        assert (reply.status_code, reply.json()["status"]) == (200, "withdrawn")
        turn = await ended(one, path, waiting)
        assert (turn["outcome"], turn["started_at"]) == ("interrupted", None)
        for turn_id in (running, waiting):
            refused = await one.client.delete(f"{path}/turns/{turn_id}")
            assert (refused.status_code, refused.json()["code"]) == (409, "not_queued")
        unknown = await one.client.delete(f"{path}/turns/{NEVER}")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "turn_not_found")


# -- PATCH -------------------------------------------------------------------------------------


async def test_what_can_change_is_changed_and_the_rest_stays() -> None:
    async with api(script=script) as one:
        path = await one.start(title="Old", metadata={"a": "1"}, model="sonnet")
        before = (await one.client.get(path)).json()
        assert (before["title"], before["metadata"], before["model"]) == (
            "Old",
            {"a": "1"},
            "sonnet",
        )
        changed = await one.client.patch(
            path, json={"model": "haiku", "permission_mode": "acceptEdits", "title": "New"}
        )
        assert changed.status_code == 200
        expected = {"model": "haiku", "permission_mode": "acceptEdits", "title": "New"}
        assert changed.json() == {**before, **expected}
        assert (await one.client.get(path)).json() == changed.json()
        again = await one.client.patch(path, json={"metadata": {"b": "2"}, "title": ""})
        assert (again.json()["metadata"], again.json()["title"]) == ({"b": "2"}, None)
        unchanged = await one.client.patch(path, json={})
        assert unchanged.json() == again.json()


@pytest.mark.parametrize("field", [*FIXED, "on_permission", "owner", "nonsense"])
async def test_what_cannot_change_is_a_400_that_says_why(field: str) -> None:
    async with api(script=script) as one:
        path = await one.start()
        before = (await one.client.get(path)).json()
        refused = await one.client.patch(path, json={"title": "New", field: 1})
        assert refused.status_code == 400
        (error,) = refused.json()["errors"]
        assert error["field"] == field
        assert ("cannot be changed" in error["message"]) is (field != "nonsense")
        assert (await one.client.get(path)).json() == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"permission_mode": "yolo"}, 400),
        ({"model": ""}, 400),
        ({"title": "x" * 201}, 400),
        ({"title": "\0"}, 400),
        ({"metadata": {"a": 1}}, 400),
        ({"metadata": {str(n): "" for n in range(33)}}, 400),
    ],
)
async def test_a_change_that_is_refused_changes_nothing(body: dict[str, Any], status: int) -> None:
    async with api(script=script) as one:
        path = await one.start()
        before = (await one.client.get(path)).json()
        refused = await one.client.patch(path, json={"title": "New"} | body)
        assert refused.status_code == status
        assert (await one.client.get(path)).json() == before


@pytest.mark.parametrize("field", [*FIXED, *CHANGEABLE])
async def test_a_query_says_where_a_session_is_set_up(field: str) -> None:
    async with api(script=script) as one:
        path = await one.start()
        refused = await one.client.post(f"{path}/query", json={"prompt": "hi", field: 1})
        assert refused.status_code == 400
        (error,) = refused.json()["errors"]
        assert (error["field"], "/session/start" in error["message"]) == (field, True)
        assert ("PATCH" in error["message"]) is (field in CHANGEABLE)


# -- forks, restarts, summaries ----------------------------------------------------------------


async def test_a_fork_goes_its_own_way() -> None:
    async with api(script=script) as one:
        path = await one.start(initial_prompt="one", title="Original")
        before = (await one.client.get(path)).json()
        forked = await post(one, f"{path}/fork", title="Copy")
        assert forked["forked_from"] == path.rpartition("/")[2]
        assert forked["forked_after"] is None
        copy = f"/session/{forked['session_id']}"
        assert copy != path
        assert (await one.client.get(copy)).json()["title"] == "Copy"
        # But for its process, which it may have given up for the copy to be made.
        assert (await one.client.get(path)).json() == before | {"state": "hibernated"}
        heard = await post(one, f"{copy}/query", prompt="two")
        session = one.world.supervisor.get(forked["session_id"])
        assert heard["outcome"] == "completed"
        assert session.snapshot().forked_from == (forked["forked_from"], None)
        assert (await one.client.get(f"{path}/turns")).json()["count"] == 1
        assert (await one.client.get("/sessions")).json()["count"] == 2


async def test_a_fork_up_to_a_turn() -> None:
    async with api(script=script) as one:
        path = await one.start()
        first = await post(one, f"{path}/query", prompt="one")
        await post(one, f"{path}/query", prompt="two")
        forked = await post(one, f"{path}/fork", turn_id=first["turn_id"])
        assert forked["forked_after"] == first["turn_id"]
        refused = await one.client.post(f"{path}/fork", json={"turn_id": NEVER})
        assert (refused.status_code, refused.json()["code"]) == (404, "turn_not_found")


async def test_what_cannot_be_forked_says_why() -> None:
    async with api(script=script) as one:
        path = await one.start()
        empty = await one.client.post(f"{path}/fork")
        assert (empty.status_code, empty.json()["code"]) == (409, "nothing_to_fork")
        await hangs(one, path)
        busy = await one.client.post(f"{path}/fork")
        assert (busy.status_code, busy.json()["code"]) == (409, "busy")
        assert (await one.client.get("/sessions")).json()["count"] == 1


async def test_a_fork_under_a_key_is_made_once() -> None:
    async with api(script=script) as one:
        path = await one.start(initial_prompt="one")
        key = {"idempotency-key": "k"}
        replies = [await one.client.post(f"{path}/fork", headers=key) for _ in range(3)]
        assert len({reply.json()["session_id"] for reply in replies}) == 1
        other = await one.client.post(f"{path}/fork", json={"title": "x"}, headers=key)
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
        assert (await one.client.get("/sessions")).json()["count"] == 2


async def test_a_session_that_failed_can_try_again() -> None:
    config = SupervisorConfig(restarts=RestartPolicy(max_restarts=0))
    async with api(script=script, config=config) as one:
        path = await one.start()
        refused = await one.client.post(f"{path}/restart")
        assert (refused.status_code, refused.json()["code"]) == (409, "not_failed")
        await one.client.post(f"{path}/query", json={"prompt": "die"})
        assert (await one.client.get(path)).json()["state"] == "failed"
        restarted = await one.client.post(f"{path}/restart")
        assert restarted.status_code == 200
        assert (await one.client.get(path)).json()["active"]
        assert (await post(one, f"{path}/query", prompt="hi"))["outcome"] == "completed"


async def test_a_conversation_is_summed_up() -> None:
    async with api(script=script) as one:
        path = await one.start(initial_prompt="one")
        done = await post(one, f"{path}/compact", instructions="Keep names.")
        assert done["outcome"] == "completed"
        key = {"idempotency-key": "k"}
        replies = [
            await one.client.post(f"{path}/compact?wait=false", headers=key) for _ in range(2)
        ]
        assert [reply.status_code for reply in replies] == [202] * 2
        assert len({reply.json()["turn_id"] for reply in replies}) == 1


# -- what a session is set up with -------------------------------------------------------------


async def test_all_that_is_set_up_reaches_the_session() -> None:
    async with api(script=script) as one:
        schema = {"type": "object"}
        path = await one.start(
            system_prompt="Be terse.",
            max_turns=3,
            max_budget_usd=1.5,
            output_schema=schema,
            thinking=True,
            on_permission="ask",
            permission_timeout_s=5,
        )
        spec = one.world.supervisor.get(path.rpartition("/")[2]).spec
        assert (spec.system_prompt, spec.max_turns, spec.max_budget_usd) == ("Be terse.", 3, 1.5)
        assert (spec.output_schema, spec.thinking) == (schema, True)
        assert (spec.on_permission, spec.permission_timeout_s) == ("ask", 5)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"system_prompt": ""}, "system_prompt"),
        ({"system_prompt": "\0"}, "system_prompt"),
        ({"system_prompt": "ä" * 60_000}, "system_prompt"),
        ({"max_turns": 0}, "max_turns"),
        ({"max_budget_usd": 0}, "max_budget_usd"),
        ({"max_budget_usd": True}, "max_budget_usd"),
        ({"output_schema": True}, "output_schema"),
        ({"output_schema": {"description": "x" * 70_000}}, "output_schema"),
        ({"permission_timeout_s": 0}, "permission_timeout_s"),
        ({"on_permission": "allow"}, "on_permission"),
        ({"attachments": [{"data": "AAAA"}]}, "attachments[0].data"),
        (
            {"attachments": [{"data": PIXEL_EXAMPLE, "media_type": "image/gif"}]},
            "attachments[0].media_type",
        ),
        ({"attachments": [{"data": PIXEL_EXAMPLE, "path": "/etc/passwd"}]}, "attachments[0].path"),
    ],
)
async def test_what_cannot_be_is_a_400_before_anything_begins(
    body: dict[str, Any], field: str
) -> None:
    async with api(script=script) as one:
        for path, prompt in (("/query", "prompt"), ("/session/start", "initial_prompt")):
            refused = await one.client.post(path, json={prompt: "hi"} | body)
            assert refused.status_code == 400, refused.text
            assert [error["field"] for error in refused.json()["errors"]] == [field]
        assert not one.world.agent.processes
        assert not one.world.supervisor.snapshot().sessions


async def test_an_answer_of_a_schema_is_json() -> None:
    async with api(script=script) as one:
        schema = {"type": "object", "properties": {"answer": {"type": "integer"}}}
        reply = await post(one, "/query", prompt="give", output_schema=schema)
        assert reply["structured_output"] == {"answer": 42}
        path = f"/session/{reply['session_id']}/turns/{reply['turn_id']}"
        assert (await one.client.get(path)).json()["structured_output"] == {"answer": 42}
        stream = await one.client.post(
            "/query", json={"prompt": "give", "output_schema": schema, "stream": True}
        )
        assert parse_stream(stream.content)[-1].data["structured_output"] == {"answer": 42}


async def test_attachments_reach_the_agent_and_are_shown_without_their_bytes() -> None:
    seen: list[Any] = []

    def look(prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
        seen.append(prompt.attachments)
        yield Say("A pixel.")

    attachment = {"data": PIXEL_EXAMPLE, "name": "pixel.png", "media_type": "image/png"}
    async with api(script=look) as one:
        path = await one.start(initial_prompt="look", attachments=[attachment])
        for where in ("/query", f"{path}/query"):
            reply = await post(one, where, prompt="look", attachments=[attachment] * 2)
            turn = f"/session/{reply['session_id']}/turns/{reply['turn_id']}"
            shown = (await one.client.get(turn)).json()["attachments"]
            assert shown == [{"media_type": "image/png", "name": "pixel.png"}] * 2
        assert [len(attachments) for attachments in seen] == [1, 2, 2]
        assert all(a.data == PIXEL_EXAMPLE for attachments in seen for a in attachments)


async def test_attachments_have_limits_that_the_operator_sets() -> None:
    settings = HttpSettings(attachments=AttachmentLimits(count=1, size=20))
    async with api(script=script, settings=settings) as one:
        small = {"data": "JVBERi0="}
        await post(one, "/query", prompt="hi", attachments=[small])
        for attachments in ([small] * 2, [{"data": PIXEL_EXAMPLE}]):
            refused = await one.client.post(
                "/query", json={"prompt": "hi", "attachments": attachments}
            )
            assert refused.status_code == 400


async def test_attachments_need_a_prompt() -> None:
    async with api(script=script) as one:
        refused = await one.client.post(
            "/session/start", json={"attachments": [{"data": PIXEL_EXAMPLE}]}
        )
        assert refused.json()["errors"][0]["field"] == "attachments"


# -- events, whole -----------------------------------------------------------------------------


async def test_a_long_event_is_cut_and_can_be_had_whole() -> None:
    settings = HttpSettings(streams=StreamSettings(max_tool_output_bytes=1000))
    async with api(script=script, settings=settings) as one:
        body = {"prompt": "long", "stream": True}
        said = parse_stream((await one.client.post("/query", json=body)).content)
        events = {one.type: one for one in said}
        assert events["tool_use"].data["input"] == {"path": "a" * 500}
        cut = events["tool_result"].data
        assert cut["truncated"] is True
        assert len(cut["content"]) == 1000
        whole = (await one.client.get(cut["full"])).json()
        assert (whole["id"], whole["event"]["content"]) == (events["tool_result"].id, "b" * 5000)
        del cut["truncated"], cut["full"], cut["content"], whole["event"]["content"]
        assert whole["event"] == cut


@pytest.mark.parametrize("event_id", ["0", "999", "-1", "1.0", "x", "9" * 30, "²"])
async def test_an_event_that_never_was_is_a_404(event_id: str) -> None:
    async with api(script=script) as one:
        path = await one.start(initial_prompt="hi")
        reply = await one.client.get(f"{path}/events/{event_id}")
        assert (reply.status_code, reply.json()["code"]) == (404, "event_not_found")


# -- money -------------------------------------------------------------------------------------


async def test_a_session_that_has_spent_its_budget_gets_a_403() -> None:
    async with api(script=script) as one:
        path = await one.start(max_budget_usd=0.000001)
        await one.client.post(f"{path}/query", json={"prompt": "hi"})
        spent = (await one.client.get(path)).json()["total_cost_usd"]
        assert spent > 0
        refused = await one.client.post(f"{path}/query", json={"prompt": "hi"})
        assert (refused.status_code, refused.json()["code"]) == (403, "budget_exceeded")
        assert (await one.client.get(path)).json()["total_cost_usd"] == spent


async def test_an_owner_that_has_spent_its_budget_gets_a_403_also_for_what_is_gone(
    tmp_path: Path,
) -> None:
    keys = Keys(tmp_path)
    keys.add("ann", budget_usd=0.000001)
    keys.add("bob")
    async with (
        world(script, authenticate=keys.ring.authenticate) as one,
        in_process(one.app) as client,
    ):
        ann, bob = keys.of("ann"), keys.of("bob")
        started = await client.post("/session/start", json={"initial_prompt": "hi"}, headers=ann)
        assert started.status_code == 200
        await client.delete(f"/session/{started.json()['session_id']}", headers=ann)
        refused = await client.post("/query", json={"prompt": "hi"}, headers=ann)
        assert (refused.status_code, refused.json()["code"]) == (403, "budget_exceeded")
        assert (await client.post("/query", json={"prompt": "hi"}, headers=bob)).status_code == 200


# -- who looks ---------------------------------------------------------------------------------


async def test_what_an_owner_has_noted_is_not_shown_to_an_admin(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.add("ann")
    keys.add("root", roles=("user", "admin"))
    async with (
        world(script, authenticate=keys.ring.authenticate) as one,
        in_process(one.app) as client,
    ):
        body = {"title": "Secret plan", "metadata": {"a": "b"}}
        started = await client.post("/session/start", json=body, headers=keys.of("ann"))
        path = f"/session/{started.json()['session_id']}"
        mine = (await client.get(path, headers=keys.of("ann"))).json()
        assert (mine["title"], mine["metadata"]) == ("Secret plan", {"a": "b"})
        seen = (await client.get(path, headers=keys.of("root"))).json()
        assert (seen["title"], seen["metadata"]) == (None, {})
        for method, where in (("PATCH", path), ("POST", f"{path}/fork")):
            reply = await client.request(
                method, where, json={"title": "x"}, headers=keys.of("root")
            )
            assert reply.status_code == 404
