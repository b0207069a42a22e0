"""Streams that break off with their server, and go on under the next one on the same store."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from session_supervisor import SupervisorConfig
from session_supervisor.agents.scripted import Hang, Pause, Say, ScriptedAgent, by_prompt
from session_supervisor.stores.sqlite import SqliteStore
from tests.http.contract import Said, judged, parse_stream
from tests.http.servers import PATIENCE_S, World, eventually, in_process, world

pytestmark = pytest.mark.anyio


def agent() -> ScriptedAgent:
    return ScriptedAgent(
        by_prompt(
            {
                "fast": [Say("one two three", deltas=6)],
                "hang": [
                    Say("one two ", deltas=4),
                    Pause(0.3),
                    Say("three ", confirmed=False),
                    Hang(),
                ],
            }
        )
    )


@asynccontextmanager
async def served(
    directory: Path, file: str = "state.db", by: ScriptedAgent | None = None, **config: Any
) -> AsyncGenerator[tuple[World, httpx.AsyncClient]]:
    async with (
        world(
            agent=by or agent(),
            store=SqliteStore(directory / file),
            config=SupervisorConfig(workspace=directory / "work", **config),
        ) as one,
        in_process(one.app, hooks=judged()) as client,
    ):
        yield one, client


def kill(directory: Path) -> None:
    """Keep the store as it is at this moment, as a killed server would leave it."""
    with (
        closing(sqlite3.connect(directory / "state.db")) as now,
        closing(sqlite3.connect(directory / "killed.db")) as kept,
    ):
        now.backup(kept)


async def start(client: httpx.AsyncClient) -> str:
    return f"/session/{(await client.post('/session/start')).json()['session_id']}"


async def events(world: World, client: httpx.AsyncClient, path: str, after: int) -> list[Said]:
    """Return what there is to read now; the stream ends with its server."""
    cursor = world.supervisor.get(path.rpartition("/")[2]).events(after)
    found: list[Said] = []
    while batch := await cursor.read_nowait():
        found += [Said(id=one.seq, data={"type": one.body.type, **body_of(one)}) for one in batch]
    return found


def body_of(event: Any) -> dict[str, Any]:
    return {name: getattr(event.body, name) for name in event.body.__dataclass_fields__}


def text_of(said: Iterable[Said]) -> str:
    return "".join(one.data["content"] for one in said if one.type == "text")


async def ended(client: httpx.AsyncClient, path: str, after: int | None = None) -> list[Said]:
    """Read a session's stream to its end; it is to be closed."""
    params = {} if after is None else {"after": after}
    return parse_stream((await client.get(f"{path}/events", params=params)).content)


async def test_a_stream_goes_on_behind_every_id_after_a_restart(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        path = await start(client)
        response = await client.post(f"{path}/query", json={"prompt": "fast", "stream": True})
        whole = parse_stream(response.content)
    answer = whole[-1].data["response"]
    async with served(tmp_path) as (one, client):
        reading = {
            after: asyncio.create_task(ended(client, path, after))
            for after in range((whole[-1].id or 0) + 1)
        }
        await eventually(lambda: one.app.open_streams == len(reading))
        await one.supervisor.drain(0.0)
        for after, task in reading.items():
            said = await task
            ids = [event.id for event in said[:-1]]
            assert ids == sorted(set(ids), key=lambda number: number or 0)
            assert all((number or 0) > after for number in ids)
            assert (said[-1].type, said[-1].id) == ("bye", None)
            assert said[-1].data["after"] == (ids[-1] if ids else after)
            assert not any(event.type == "gap" for event in said)
            if after < (whole[-1].id or 0):
                done = next(event for event in said if event.type == "done")
                assert done.data["response"] == answer
            assert answer.endswith(text_of(said))
        assert text_of(await reading[0]) == answer


async def test_a_drained_session_says_bye_and_never_that_it_is_over(tmp_path: Path) -> None:
    """A 204 would keep a browser from coming back to the next server."""
    async with served(tmp_path) as (one, client):
        path = await start(client)
        await client.post(f"{path}/query", json={"prompt": "fast"})
        await one.supervisor.drain(0.0)
        last = one.supervisor.get(path.rpartition("/")[2]).snapshot().last_seq
        (said,) = await ended(client, path, last)
        assert (said.type, said.data["after"]) == ("bye", last)


async def test_a_turn_that_waits_for_the_next_server_is_a_503_that_names_it(tmp_path: Path) -> None:
    by = agent()
    async with served(tmp_path, by=by) as (one, client):
        path = await start(client)
        asking = [
            asyncio.create_task(client.post(f"{path}/query", json={"prompt": prompt, **how}))
            for prompt, how in (
                ("hang", {}),
                ("fast", {}),
                ("fast", {"stream": True}),
            )
        ]
        session = one.supervisor.get(path.rpartition("/")[2])

        async def all_are_there() -> bool:
            turns = await session.turns()
            return len(turns) == 3 and turns[0].text != ""

        await eventually(all_are_there)
        await one.supervisor.drain(0.0)
        interrupted, waits, streamed = [await task for task in asking]
        assert (interrupted.status_code, interrupted.json()["outcome"]) == (200, "interrupted")
        problem = waits.json()
        assert (waits.status_code, problem["code"]) == (503, "draining")
        assert waits.headers["retry-after"] == "5"
        assert f"/session/{problem['session_id']}" == path
        bye = parse_stream(streamed.content)[-1]
        assert bye.type == "bye"
    async with served(tmp_path, by=by) as (one, client):
        for turn_id in (problem["turn_id"], bye.data["turn_id"]):
            turn = await one.supervisor.get(path.rpartition("/")[2]).turn(turn_id)
            async with asyncio.timeout(PATIENCE_S):
                assert (await turn.result()).text == "one two three"
            found = (await client.get(f"{path}/turns/{turn_id}")).json()
            assert (found["outcome"], found["response"]) == ("completed", "one two three")


async def test_a_start_that_waits_for_the_next_server_is_there_for_its_retry(
    tmp_path: Path,
) -> None:
    by, key = agent(), {"Idempotency-Key": "k"}
    body = {"initial_prompt": "fast"}
    async with served(tmp_path, by=by, max_live=1) as (one, client):
        busy = await one.supervisor.start()
        hanging = await busy.query("hang")
        await eventually(lambda: hanging.record().text != "")
        starting = asyncio.create_task(client.post("/session/start", json=body, headers=key))
        await eventually(lambda: one.supervisor.usage("local").turns == 2)
        await one.supervisor.drain(0.0)
        waits = await starting
        problem = waits.json()
        assert (waits.status_code, problem["code"]) == (503, "draining")
    async with served(tmp_path, by=by) as (_, client):
        started = (await client.post("/session/start", json=body, headers=key)).json()
        assert started["session_id"] == problem["session_id"]
        assert started["turn_id"] == problem["turn_id"]
        assert started["initial_response"] == "one two three"


async def test_what_a_kill_lost_is_a_gap_and_no_id_comes_twice(tmp_path: Path) -> None:
    async with served(tmp_path) as (one, client):
        path = await start(client)
        session = one.supervisor.get(path.rpartition("/")[2])
        turn = await session.query("hang")
        await eventually(lambda: "three" in turn.record().text)
        kill(tmp_path)
        before = await events(one, client, path, 0)
        await session.interrupt()
    shown = {event.id: event for event in before}
    async with served(tmp_path, "killed.db") as (one, client):
        turn = await one.supervisor.get(path.rpartition("/")[2]).turn(turn.turn_id)
        assert (await turn.wait()).outcome == "lost"
        for after in [0, *shown]:
            said = await events(one, client, path, after or 0)
            for event in said:
                if event.type != "gap" and event.id in shown:
                    assert event.data == shown[event.id].data, "an id that means two things"
            end = next(event for event in said if event.type == "error")
            assert end.data["outcome"] == "lost"
            lost = [event for event in said if event.type == "gap"]
            assert lost, "what was reserved and may have been shown is gone"
            assert lost[0].data["after"] >= (after or 0)
        last = one.supervisor.get(path.rpartition("/")[2]).snapshot().last_seq
        assert last > max(number or 0 for number in shown)
        never = await client.get(f"{path}/events", params={"after": last + 1})
        assert never.status_code == 400
        await client.delete(path)


async def test_a_key_attaches_to_a_turn_that_a_kill_cut_off(tmp_path: Path) -> None:
    key = {"Idempotency-Key": "k"}
    async with served(tmp_path) as (one, client):
        path = await start(client)
        asking = asyncio.create_task(
            client.post(f"{path}/query", json={"prompt": "hang"}, headers=key)
        )
        session = one.supervisor.get(path.rpartition("/")[2])

        async def speaks() -> bool:
            return any("three" in turn.text for turn in await session.turns())

        await eventually(speaks)
        kill(tmp_path)
        await session.interrupt()
        await asking
    by = agent()
    async with served(tmp_path, "killed.db", by) as (_, client):
        response = await client.post(f"{path}/query", json={"prompt": "hang"}, headers=key)
        assert (response.status_code, response.json()["code"]) == (502, "crashed")
        body = {"prompt": "hang", "stream": True}
        said = parse_stream((await client.post(f"{path}/query", json=body, headers=key)).content)
        assert (said[-1].type, said[-1].data["outcome"]) == ("error", "lost")
        assert by.spawned == 0, "nothing was done again"
