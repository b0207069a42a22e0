"""What can be read of a session that was closed, or is damaged, over HTTP."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import httpx
import pytest

from session_http import parts
from session_http.sources import load
from session_supervisor import Retention, SupervisorConfig
from session_supervisor.agents.scripted import ScriptedAgent, echo
from session_supervisor.stores.sqlite import SqliteStore
from tests.http.contract import judged
from tests.http.servers import in_process, world


async def start(client: httpx.AsyncClient) -> str:
    reply = await client.post("/session/start", json={"initial_prompt": "hi"})
    return f"/session/{reply.json()['session_id']}"


@pytest.mark.anyio
async def test_what_a_closed_session_said_can_be_read_and_nothing_else_be_done() -> None:
    config = SupervisorConfig(retention=Retention(closed_s=1000.0))
    async with world(config=config) as one, in_process(one.app, hooks=judged()) as client:
        path = await start(client)
        turns = (await client.get(f"{path}/turns")).json()
        messages = (await client.get(f"{path}/messages")).json()
        assert (await client.delete(path)).status_code == 200
        (turn,) = turns["turns"]
        assert (await client.get(f"{path}/turns")).json() == turns
        assert (await client.get(f"{path}/messages")).json() == messages
        assert (await client.get(f"{path}/turns/{turn['turn_id']}")).status_code == 200
        stream = await client.get(f"{path}/events")
        assert '"done"' in stream.text
        assert (await client.get(f"{path}/events?after=1000")).status_code == 400
        for method, place, body in (
            ("GET", path, None),
            ("DELETE", path, None),
            ("GET", f"{path}/inspect", None),
            ("POST", f"{path}/query", {"prompt": "hi"}),
            ("POST", f"{path}/wake", None),
            ("POST", f"{path}/hibernate", None),
            ("POST", f"{path}/interrupt", {}),
        ):
            response = await client.request(method, place, json=body)
            assert (method, place, response.status_code) == (method, place, 404)
            assert response.json()["code"] == "session_not_found"
        assert (await client.get("/sessions?state=closed")).json()["count"] == 0


@pytest.mark.anyio
async def test_a_transcript_is_read_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not whole for each page: a long one would take its length squared."""
    async with world() as one, in_process(one.app, hooks=judged()) as client:
        path = await start(client)
        for _ in range(20):
            await client.post(f"{path}/query", json={"prompt": "hi"})
        store = one.supervisor.get(path.rpartition("/")[2])._core.store  # pyright: ignore[reportPrivateUsage]
        read = 0
        told = store.told

        async def counted(session_id: str, *, after: int, limit: int) -> object:
            nonlocal read
            found = await told(session_id, after=after, limit=limit)
            read += len(found)
            return found

        async def refused(session_id: str) -> object:
            raise AssertionError(f"all turns of {session_id} were read")

        monkeypatch.setattr(store, "told", counted)
        monkeypatch.setattr(store, "turns", refused)
        after, ids = "", list[str]()
        while True:
            reply = await client.get(
                f"{path}/messages", params={"limit": 3, **({"after": after} if after else {})}
            )
            page = reply.json()
            ids += [message["id"] for message in page["messages"]]
            after = ids[-1]
            if not page["has_more"]:
                break
        assert len(ids) == len(set(ids)) == 42
        assert read <= 14 * 4


@pytest.mark.anyio
async def test_a_damaged_session_is_a_500_that_says_so_and_others_work(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    agent = ScriptedAgent(echo)
    async with (
        world(agent=agent, store=SqliteStore(path)) as one,
        in_process(one.app) as client,
    ):
        bad, events, good = [await start(client) for _ in range(3)]
    with sqlite3.connect(path) as db:
        for table, damaged in (("sessions", bad), ("runs", events)):
            where = f"session_id = '{damaged.rpartition('/')[2]}'"
            db.execute(f"UPDATE {table} SET record = x'7b' WHERE {where}")
    db.close()
    async with (
        world(agent=agent, store=SqliteStore(path)) as one,
        in_process(one.app, hooks=judged()) as client,
    ):
        for place in (bad, f"{bad}/turns", f"{bad}/messages", f"{bad}/events"):
            response = await client.get(place)
            assert (response.status_code, response.json()["code"]) == (500, "session_spoiled")
        assert "is damaged" in (await client.get(f"{events}/events")).text
        assert (await client.get(f"{events}/turns")).json()["count"] == 1
        assert (await client.post(f"{events}/query", json={"prompt": "hi"})).status_code == 200
        assert (await client.post(f"{good}/query", json={"prompt": "hi"})).status_code == 200


def test_what_an_operator_sets_is_what_is_kept(tmp_path: Path) -> None:
    options = {
        "keep_closed": 60,
        "retention_age": 3600,
        "max_state_size": "10MiB",
        "keep_idempotency_keys": 120,
    }
    config = parts.supervisor_config(load(options), workspace=tmp_path)
    kept = config.retention
    assert (kept.closed_s, kept.age_s, kept.state_bytes) == (60, 3600, 10 * 2**20)
    assert config.claim_s == 120
    default = parts.supervisor_config(load({}), workspace=tmp_path)
    assert default.retention == Retention()
    assert default.claim_s == SupervisorConfig().claim_s
