"""Two owners on one server: whatever the API can do, one cannot do it to the other.

Made from the table of operations, so that a new one is tried as well: with the other's ids each
must answer, to the byte, as with ids that nobody ever had, and must change and count nothing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from session_http.examples import examples
from session_http.operations import OPERATIONS, Operation
from session_http.reading import Source
from session_supervisor.agents.scripted import Say, ScriptedAgent, UseTool, by_prompt
from session_supervisor.asks import Request
from tests.http.contract import judged
from tests.http.keyring import Keys
from tests.http.servers import PATIENCE_S, World, eventually, on_hypercorn, world

pytestmark = pytest.mark.anyio

OF_A_SESSION = [row for row in OPERATIONS if "{session_id}" in row.path]
OF_NONE = [
    row for row in OPERATIONS if "{session_id}" not in row.path and row.source is Source.QUERY
]
NEVER = "00000000-0000-4000-8000-000000000000"
CHANGES = frozenset({"x-request-id", "server-timing", "date"})
"""Headers that differ from answer to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoOwners:
    """Ann has a session with an ended, a running and a queued turn, and a one-off; Bob has none.

    The running turn waits for somebody to allow a tool call.
    """

    world: World
    client: httpx.AsyncClient
    keys: Keys
    session_id: str
    request_id: str
    ids: Mapping[str, list[str]]

    async def facts(self) -> object:
        """Return everything that must not change."""
        supervisor = self.world.supervisor
        sessions = [one for one in supervisor.snapshot().sessions if one.owner == "ann"]
        return (
            sessions,
            [await supervisor.get(one.session_id).turns() for one in sessions],
            [await supervisor.get(one.session_id).requests() for one in sessions],
            supervisor.usage("ann"),
            supervisor.usage("bob"),
            self.world.app.open_streams,
        )

    async def ask(self, row: Operation, ids: Mapping[str, str]) -> httpx.Response:
        # A body that is valid, so that nothing but the owner can be in its way.
        body = None if row.source is Source.QUERY else examples()[row.takes]
        path = re.sub(r"{(\w+)}", lambda found: ids[found[1]], row.path)
        return await self.client.request(row.method, path, json=body, headers=self.keys.of("bob"))


@asynccontextmanager
async def two_owners(directory: Path) -> AsyncGenerator[TwoOwners]:
    keys = Keys(directory)
    keys.add("ann")
    keys.add("bob")
    asks = UseTool("Bash", input={"command": "ls"}, asks=True)
    agent = ScriptedAgent(by_prompt({"slow": [Say("one"), asks], "fast": [Say("done")]}))
    async with (
        world(agent=agent, authenticate=keys.ring.authenticate) as one,
        on_hypercorn(one) as address,
        httpx.AsyncClient(base_url=address.url, event_hooks=judged(), timeout=PATIENCE_S) as client,
    ):
        ann = keys.of("ann")
        reply = await client.post("/session/start", json={"initial_prompt": "fast"}, headers=ann)
        session = one.supervisor.get(reply.json()["session_id"])
        one_off = await client.post("/query", json={"prompt": "fast"}, headers=ann)
        await session.query("slow", on_permission="ask")
        await session.query("slow")
        found: list[Request] = []

        async def asked() -> bool:
            found[:] = await session.requests(pending=True)
            return bool(found)

        await eventually(asked)
        yield TwoOwners(
            world=one,
            client=client,
            keys=keys,
            session_id=session.session_id,
            request_id=found[0].request_id,
            ids={
                session.session_id: [turn.turn_id for turn in (await session.turns())],
                one_off.json()["session_id"]: [one_off.json()["turn_id"]],
            },
        )


def told(response: httpx.Response, session_id: str) -> tuple[object, ...]:
    """Return all of an answer but what always differs, and the id that was asked for."""
    headers = {name: value for name, value in response.headers.items() if name not in CHANGES}
    return (
        response.status_code,
        sorted(headers.items()),
        response.content.replace(session_id.encode(), NEVER.encode()),
    )


@pytest.mark.parametrize("row", OF_A_SESSION, ids=lambda row: f"{row.method} {row.path}")
async def test_anothers_session_is_one_that_never_was(row: Operation, tmp_path: Path) -> None:
    async with two_owners(tmp_path) as both:
        before = await both.facts()
        never = {"session_id": NEVER, "turn_id": NEVER, "request_id": NEVER}
        never |= {"event_id": "1", "path": "a"}
        expected = told(await both.ask(row, never), NEVER)
        assert expected[0] == 404
        for session_id, turn_ids in both.ids.items():
            for turn_id in (NEVER, *turn_ids):
                for request_id in (NEVER, both.request_id):
                    ids = {"session_id": session_id, "turn_id": turn_id, "request_id": request_id}
                    response = await both.ask(row, never | ids)
                    assert told(response, session_id) == expected
        assert await both.facts() == before


async def test_the_owner_itself_does_reach_them(tmp_path: Path) -> None:
    """Or the test above would prove nothing."""
    async with two_owners(tmp_path) as both:
        for row in OF_A_SESSION:
            if row.method != "GET" or row.gives is None:
                continue
            for session_id, turn_ids in both.ids.items():
                # The one-off has ended, with its files, and nobody was asked anything in it.
                here = "{request_id}" in row.path or "/files" in row.path
                if here and (session_id != both.session_id or "/questions" in row.path):
                    continue
                path = row.path.format(
                    session_id=session_id,
                    turn_id=turn_ids[0],
                    request_id=both.request_id,
                    event_id=1,
                )
                response = await both.client.get(path, headers=both.keys.of("ann"))
                assert response.status_code == 200


@pytest.mark.parametrize("row", OF_NONE, ids=lambda row: f"{row.method} {row.path}")
async def test_nothing_else_shows_or_counts_what_another_has(
    row: Operation, tmp_path: Path
) -> None:
    async with two_owners(tmp_path) as both:
        before = await both.facts()
        for query in ("", "?owner=ann", "?owner=*", "?owner=bob"):
            path = f"{row.path}{query}"
            response = await both.client.get(path, headers=both.keys.of("bob"))
            for session_id, turn_ids in both.ids.items():
                assert session_id not in response.text
                assert not any(turn_id in response.text for turn_id in turn_ids)
            if response.status_code == 200 and row.gives is not None:
                counted = {"count", "active_sessions"} & set(response.json())
                assert all(response.json()[name] in (0, []) for name in counted)
        assert await both.facts() == before


async def test_what_one_begins_is_its_own(tmp_path: Path) -> None:
    async with two_owners(tmp_path) as both:
        ann = both.world.supervisor.usage("ann")
        bob = both.keys.of("bob")
        reply = (await both.client.post("/session/start", headers=bob)).json()
        listed = (await both.client.get("/sessions", headers=bob)).json()
        assert (listed["active_sessions"], listed["count"]) == ([reply["session_id"]], 1)
        listed = await both.client.get("/sessions", headers=both.keys.of("ann"))
        assert listed.json()["active_sessions"] == [both.session_id]
        assert both.world.supervisor.usage("ann") == ann
        closed = await both.client.delete(
            f"/session/{reply['session_id']}", headers=both.keys.of("ann")
        )
        assert closed.status_code == 404


async def test_two_keys_of_one_owner_share_its_sessions(tmp_path: Path) -> None:
    async with two_owners(tmp_path) as both:
        both.keys.add("ann", name="ann's other key")
        path = f"/session/{both.session_id}"
        response = await both.client.get(path, headers=both.keys.of("ann's other key"))
    assert response.status_code == 200
