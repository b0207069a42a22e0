"""Looking at sessions: transcripts, lists in pages, what they do, and the whole tree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from session_http.schemas import ProcessExit
from session_supervisor import RestartPolicy, SupervisorConfig
from session_supervisor.agents.port import Exit
from session_supervisor.agents.scripted import (
    BeginAlone,
    Crash,
    Fail,
    Hang,
    Say,
    ScriptedAgent,
    by_prompt,
)
from session_supervisor.errors import Failure, FailureCode
from tests.http.contract import judged
from tests.http.keyring import Keys
from tests.http.servers import World, eventually, in_process, world

pytestmark = pytest.mark.anyio

OVERLOADED = Failure(code=FailureCode.OVERLOADED, message="It failed.")


@asynccontextmanager
async def served(**options: Any) -> AsyncGenerator[tuple[World, httpx.AsyncClient]]:
    agent = ScriptedAgent(
        by_prompt(
            {
                "hi": [Say("hello")],
                "hang": [Say("so far", confirmed=False), Hang()],
                "fail": [Say("so far", confirmed=False), Fail(OVERLOADED)],
                "die": [Crash()],
                "later": [Say("I will"), BeginAlone(0.05, [Say("I did")])],
            }
        )
    )
    async with world(agent=agent, **options) as one, in_process(one.app, hooks=judged()) as client:
        yield one, client


async def start(client: httpx.AsyncClient, **body: Any) -> str:
    return f"/session/{(await client.post('/session/start', json=body)).json()['session_id']}"


async def transcript(client: httpx.AsyncClient, path: str, **params: Any) -> list[tuple[str, str]]:
    reply = (await client.get(f"{path}/messages", params=params)).json()
    return [(message["role"], message["content"]) for message in reply["messages"]]


# -- the transcript ------------------------------------------------------------------------------


async def test_a_transcript_has_prompts_and_answers_in_order() -> None:
    async with served() as (one, client):
        path = await start(client, initial_prompt="hi")
        await client.post(f"{path}/query", json={"prompt": "fail"})
        await client.post(f"{path}/query", json={"prompt": "later"})

        async def did() -> bool:
            return ("assistant", "I did") in await transcript(client, path)

        await eventually(did)
        asking = asyncio.create_task(client.post(f"{path}/query", json={"prompt": "hang"}))
        waiting = asyncio.create_task(client.post(f"{path}/query", json={"prompt": "hi"}))
        session = one.supervisor.get(path.rpartition("/")[2])

        async def all_are_there() -> bool:
            return [turn.text for turn in await session.turns()][-2:] == ["so far", ""]

        await eventually(all_are_there)
        before = [
            ("user", "hi"),
            ("assistant", "hello"),
            ("user", "fail"),
            ("assistant", "so far"),
            ("user", "later"),
            ("assistant", "I will"),
            ("assistant", "I did"),
            ("user", "hang"),
        ]
        assert await transcript(client, path) == before, "no answer that is not whole yet"
        await client.post(f"{path}/interrupt")
        await asyncio.gather(asking, waiting)
        after = [("assistant", "so far"), ("user", "hi"), ("assistant", "hello")]
        assert await transcript(client, path) == [*before, *after]
        reply = (await client.get(f"{path}/messages")).json()
        outcomes = [message["outcome"] for message in reply["messages"]]
        assert outcomes[1::2][:2] == ["completed", "failed"]
        assert outcomes[8] == "interrupted"


async def test_what_the_model_never_saw_is_not_in_the_transcript() -> None:
    async with served() as (_, client):
        path = await start(client)
        asking = [
            asyncio.create_task(client.post(f"{path}/query", json={"prompt": prompt}))
            for prompt in ("hang", "hi")
        ]

        async def both_are_there() -> bool:
            turns = (await client.get(f"{path}/turns")).json()["turns"]
            return [turn["phase"] for turn in turns] == ["running", "queued"]

        await eventually(both_are_there)
        await client.post(f"{path}/interrupt", json={"queued": True})
        await asyncio.gather(*asking)
        assert [content for _, content in await transcript(client, path)][::2] == ["hang"]
        assert (await client.get(f"{path}/turns")).json()["count"] == 2


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7])
async def test_a_transcript_can_be_read_in_pages(limit: int) -> None:
    async with served() as (_, client):
        path = await start(client)
        for _ in range(3):
            await client.post(f"{path}/query", json={"prompt": "hi"})
        whole = (await client.get(f"{path}/messages")).json()
        assert (len(whole["messages"]), whole["has_more"]) == (6, False)
        found: list[Any] = []
        params: dict[str, Any] = {"limit": limit}
        while True:
            page = (await client.get(f"{path}/messages", params=params)).json()
            found += page["messages"]
            assert len(page["messages"]) <= limit
            assert page["has_more"] is (len(found) < 6)
            if not page["has_more"]:
                break
            params["after"] = found[-1]["id"]
        assert found == whole["messages"]
        params["after"] = found[-1]["id"]
        assert await transcript(client, path, **params) == [], "until there is more"
        await client.post(f"{path}/query", json={"prompt": "hi"})
        assert ("user", "hi") in await transcript(client, path, **params)


@pytest.mark.parametrize(
    "params", [{"after": "x"}, {"after": ""}, {"limit": 0}, {"limit": 1001}, {"limit": "x"}]
)
async def test_a_page_that_cannot_be_is_a_400(params: dict[str, Any]) -> None:
    async with served() as (_, client):
        path = await start(client, initial_prompt="hi")
        response = await client.get(f"{path}/messages", params=params)
        assert response.status_code == 400
        assert response.json()["errors"][0]["field"] == next(iter(params))


# -- lists of sessions -----------------------------------------------------------------------------


async def test_sessions_can_be_listed_in_pages_while_they_come_and_go() -> None:
    async with served() as (_, client):
        ids = [(await start(client)).rpartition("/")[2] for _ in range(5)]
        everything = (await client.get("/sessions")).json()
        assert everything == {"active_sessions": ids, "count": 5, "next_cursor": None}
        first = (await client.get("/sessions", params={"limit": 2})).json()
        assert (first["active_sessions"], first["count"]) == (ids[:2], 5)
        await client.delete(f"/session/{ids[1]}")  # the one that the cursor was made from
        params = {"limit": 2, "cursor": first["next_cursor"]}
        second = (await client.get("/sessions", params=params)).json()
        assert second["active_sessions"] == ids[2:4]
        ids.append((await start(client)).rpartition("/")[2])
        params["cursor"] = second["next_cursor"]
        third = (await client.get("/sessions", params=params)).json()
        assert (third["active_sessions"], third["next_cursor"]) == (ids[4:], None)


async def test_sessions_can_be_listed_by_state() -> None:
    config = SupervisorConfig(restarts=RestartPolicy(max_restarts=0))
    async with served(config=config) as (_, client):
        idle, asleep, failed = [await start(client, initial_prompt="hi") for _ in range(3)]
        assert (await client.post(f"{asleep}/hibernate")).json()["state"] == "hibernating"
        await client.post(f"{failed}/query", json={"prompt": "die"})
        await client.post("/query", json={"prompt": "hi"})  # its session is not listed

        async def in_state(state: str) -> list[str]:
            reply = (await client.get("/sessions", params={"state": state})).json()
            assert reply["count"] == len(reply["active_sessions"])
            return [f"/session/{session_id}" for session_id in reply["active_sessions"]]

        async def is_asleep() -> bool:
            return await in_state("hibernated") == [asleep]

        await eventually(is_asleep)
        assert await in_state("idle") == [idle]
        assert await in_state("failed") == [failed]
        assert await in_state("closed") == []
        assert (await client.get(asleep)).json()["active"] is True
        unfiltered = (await client.get("/sessions")).json()["active_sessions"]
        assert [f"/session/{session_id}" for session_id in unfiltered] == [idle, asleep]


@pytest.mark.parametrize("cursor", ["x", "é", "", "====", "YQ", "MjAyNi0wMS0wMVQwMDowMDowMCB4"])
async def test_a_cursor_of_nobodys_is_a_400(cursor: str) -> None:
    async with served() as (_, client):
        response = await client.get("/sessions", params={"cursor": cursor})
        assert response.status_code == 400
        assert response.json()["errors"][0]["field"] == "cursor"


async def test_a_state_that_there_is_not_is_a_400_that_lists_them() -> None:
    async with served() as (_, client):
        response = await client.get("/sessions", params={"state": "asleep"})
        assert response.status_code == 400
        assert "'hibernated'" in response.json()["detail"]


# -- rest ----------------------------------------------------------------------------------------


async def test_a_session_can_be_sent_to_sleep_and_woken() -> None:
    async with served() as (one, client):
        path = await start(client, initial_prompt="hi")
        session = one.supervisor.get(path.rpartition("/")[2])
        await client.post(f"{path}/hibernate")
        await eventually(lambda: session.state == "hibernated")
        assert one.agent.live == 0
        woken = (await client.post(f"{path}/wake")).json()
        assert woken["state"] == "starting"
        await eventually(lambda: session.state == "idle")
        assert (await client.post(f"{path}/wake")).json()["state"] == "idle"
        closed = (await client.delete(path)).json()
        assert (closed["exit"]["code"], closed["exit"]["signal"]) == (0, None)


async def test_a_session_may_say_when_it_is_to_rest_and_to_end() -> None:
    async with served() as (one, client):
        rests = await start(client, initial_prompt="hi", idle_timeout_s=0.02)
        ends = await start(client, initial_prompt="hi", expiry_s=0.02)
        session = one.supervisor.get(rests.rpartition("/")[2])
        await eventually(lambda: session.state == "hibernated")
        other = one.supervisor.get(ends.rpartition("/")[2])
        await eventually(lambda: other.state == "closed")
        for limit in ("idle_timeout_s", "expiry_s"):
            response = await client.post("/session/start", json={limit: 0})
            assert response.status_code == 400


@pytest.mark.parametrize(
    ("returncode", "code", "signal"),
    [(0, 0, None), (3, 3, None), (-15, None, "SIGTERM"), (-9, None, "SIGKILL"), (None, None, None)],
)
def test_a_process_ends_by_itself_or_by_a_signal(
    returncode: int | None, code: int | None, signal: str | None
) -> None:
    found = ProcessExit.of(Exit(returncode=returncode, cause="why"))
    assert found == ProcessExit(code=code, signal=signal, cause="why")


# -- inside --------------------------------------------------------------------------------------


async def test_a_session_can_be_inspected_in_the_middle_of_a_turn_and_after_its_end() -> None:
    async with served() as (_, client):
        path = await start(client)
        asking = asyncio.create_task(client.post(f"{path}/query", json={"prompt": "hang"}))

        async def waits_for_the_model() -> bool:
            found = (await client.get(f"{path}/inspect")).json()
            return (found["state"], found["waiting_for"]) == ("running", "the model")

        await eventually(waits_for_the_model)
        found = (await client.get(f"{path}/inspect")).json()
        (turn,) = (await client.get(f"{path}/turns")).json()["turns"]
        assert (found["turn_id"], found["turn_origin"]) == (turn["turn_id"], "user")
        assert found["next_timer_s"] > 0
        assert (found["processes"], found["pss_bytes"]) == ([], 0), "it has none of its own"
        waits = asyncio.create_task(client.post(f"{path}/query", json={"prompt": "hi"}))

        async def one_waits() -> bool:
            found = (await client.get(f"{path}/inspect")).json()
            return bool(found["lanes"] == {"control": 0, "work": 1})

        await eventually(one_waits)
        assert (await client.get("/supervisor")).json()["sessions"][0]["inside"][
            "state"
        ] == "running"
        await client.post(f"{path}/interrupt")
        await asyncio.gather(asking, waits)
        once = (await client.post("/query", json={"prompt": "hi"})).json()
        ended = f"/session/{once['session_id']}/inspect"

        async def is_closed() -> bool:
            found = (await client.get(ended)).json()
            return (found["state"], found["waiting_for"]) == ("closed", None)

        await eventually(is_closed)


async def test_an_admin_sees_the_whole_tree_and_nobody_else_does(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.add("ann")
    keys.add("root", roles=("admin",))
    async with served(authenticate=keys.ring.authenticate) as (_, client):
        ann, root = keys.of("ann"), keys.of("root")
        reply = await client.post("/session/start", json={"initial_prompt": "hi"}, headers=ann)
        await client.post("/query", json={"prompt": "hi"}, headers=ann)
        refused = await client.get("/supervisor", headers=ann)
        assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
        tree = (await client.get("/supervisor", headers=root)).json()
        assert (tree["active"], tree["draining"]) == (1, False)
        assert [session["kind"] for session in tree["sessions"]] == ["conversation", "oneoff"]
        session = tree["sessions"][0]
        assert (session["owner"], session["state"]) == ("ann", "idle")
        assert session["inside"]["state"] == "idle"
        await client.post(f"/session/{session['session_id']}/hibernate", headers=ann)

        async def nothing_goes_on() -> bool:
            sessions = (await client.get("/supervisor", headers=root)).json()["sessions"]
            return [one["inside"] for one in sessions] == [None, None]

        await eventually(nothing_goes_on)
        assert session["session_id"] == reply.json()["session_id"]
        inspected = await client.get(f"/session/{session['session_id']}/inspect", headers=root)
        assert inspected.status_code == 200


async def test_without_keys_whoever_reaches_the_server_sees_the_tree() -> None:
    async with served() as (_, client):
        assert (await client.get("/supervisor")).json()["sessions"] == []
