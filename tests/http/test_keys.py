"""Who may call: keys are asked for before anything is told, and hold until they are revoked."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from session_http import keyfile
from session_http.examples import examples
from session_http.frames import CHUNK
from session_http.keyfile import KeyFileError, Role
from session_http.keys import ANONYMOUS, KeyRing, NoKey, Principal
from session_http.operations import OPERATIONS
from session_http.problems import ProblemError
from session_http.rates import WINDOW_S
from session_http.reading import Source
from session_http.settings import HttpSettings
from session_http.sse import StreamSettings
from session_supervisor import Quota
from session_supervisor.agents.scripted import Pause, Say, ScriptedAgent, by_prompt
from tests.http.contract import Said, judged, parse_stream
from tests.http.exchange import Exchange, exchanging
from tests.http.keyring import Keys
from tests.http.servers import World, eventually, in_process, on_hypercorn, world

pytestmark = pytest.mark.anyio

OPEN = [row.path.replace("{name}", "docs.js") for row in OPERATIONS if row.open is not None]
CLOSED = [row for row in OPERATIONS if row.open is None]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    world: World
    client: httpx.AsyncClient
    keys: Keys


@asynccontextmanager
async def served(keys: Keys, *, settings: HttpSettings | None = None) -> AsyncGenerator[Served]:
    agent = ScriptedAgent(
        by_prompt({"slow": [Say("one", deltas=1), Pause(30.0)], "fast": [Say("done")]})
    )
    async with (
        world(agent=agent, settings=settings, authenticate=keys.ring.authenticate) as one,
        in_process(one.app, hooks=judged()) as client,
    ):
        yield Served(world=one, client=client, keys=keys)


def connection(*headers: tuple[str, str]) -> HTTPConnection:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return HTTPConnection({"type": "http", "headers": raw})


def refusal(ring: KeyRing, *headers: tuple[str, str]) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        ring.authenticate(connection(*headers))
    return caught.value


# -- the ring --------------------------------------------------------------------------------


def test_a_key_says_who_calls_in_either_header(keys: Keys) -> None:
    token = keys.add("ann", roles=("user", "admin"), max_sessions=3, max_turns=2).token
    key_id = keys.made["ann"].key.id
    for headers in (
        [("authorization", f"Bearer {token}")],
        [("authorization", f"bearer  {token} ")],
        [("x-api-key", token)],
        [("x-api-key", token), ("authorization", f"Bearer {token}")],
        [("x-api-key", token), ("authorization", "Basic dXNlcjpwYXNz")],
        [("x-api-key", token), ("authorization", "Bearer ")],
    ):
        assert keys.ring.authenticate(connection(*headers)) == Principal(
            owner="ann",
            roles=frozenset({"user", "admin"}),
            limits=Quota(sessions=3, turns=2),
            key_id=key_id,
        )


def test_what_is_no_key_is_refused(keys: Keys) -> None:
    token = keys.add("ann").token
    other = keys.add("bob").token
    key_id = keys.made["ann"].key.id
    for wrong in (
        "x",
        token[:-1],
        f"{token}x",
        token[:-1] + ("a" if token[-1] != "a" else "b"),
        f"ssk_{key_id}_{other.rpartition('_')[2]}"[: len(token)],
        f"ssk_{key_id}_",
        f"ssk_none_{'a' * 43}",
        token.upper(),
        "\xff" * 60,
        "a" * 100_000,
        keys.made["ann"].key.hash,
    ):
        found = refusal(keys.ring, ("authorization", f"Bearer {wrong}"))
        assert not isinstance(found, NoKey)
        assert (found.problem.status, found.problem.code) == (401, "unauthorized")
        assert found.problem.headers["www-authenticate"] == "Bearer"
        assert wrong not in found.problem.detail


def test_two_different_keys_are_refused_and_not_chosen_from(keys: Keys) -> None:
    ann, bob = keys.add("ann").token, keys.add("bob").token
    for headers in (
        [("x-api-key", ann), ("authorization", f"Bearer {bob}")],
        [("x-api-key", ann), ("x-api-key", bob)],
        [("x-api-key", ann), ("authorization", "Bearer wrong")],
    ):
        found = refusal(keys.ring, *headers)
        assert found.problem.status == 401
        assert "two different keys" in found.problem.detail


def test_no_key_at_all_is_another_error_than_a_wrong_one(keys: Keys) -> None:
    keys.add("ann")
    for headers in ([], [("authorization", "Basic abc")], [("x-api-key", "")]):
        found = refusal(keys.ring, *headers)
        assert isinstance(found, NoKey)
        assert "Authorization: Bearer" in found.problem.detail


def test_keys_come_from_the_file_and_from_the_environment(tmp_path: Path) -> None:
    made = [keyfile.new_key(owner) for owner in ("ann", "bob")]
    file = tmp_path / "keys.toml"
    keyfile.append(file, made[0].key)
    ring = KeyRing(file=file, inline=keyfile.render(made[1].key))
    assert len(ring) == 2
    owners = [ring.authenticate(connection(("x-api-key", one.token))).owner for one in made]
    assert owners == ["ann", "bob"]
    with pytest.raises(KeyFileError, match=r"SESSION_SUPERVISOR_API_KEYS.*two keys"):
        KeyRing(file=file, inline=keyfile.render(made[0].key))
    with pytest.raises(KeyFileError, match="SESSION_SUPERVISOR_API_KEYS: key 1"):
        KeyRing(inline="[[keys]]")


def test_a_ring_without_keys_lets_nobody_in_and_says_so(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        keys.ring.reload()
    assert "no API key" in caplog.text
    assert refusal(keys.ring, ("x-api-key", f"ssk_a_{'a' * 43}")).problem.status == 401


def test_a_reload_takes_new_keys_and_limits_and_drops_old_keys(keys: Keys) -> None:
    ann = keys.add("ann")
    bob = keys.add("bob")
    before = keys.ring.authenticate(connection(("x-api-key", ann.token)))
    changed = ann.key.model_copy(update={"max_turns": 7})
    keys.rewrite(changed)
    after = keys.ring.authenticate(connection(("x-api-key", ann.token)))
    assert after.limits == Quota(turns=7)
    assert before.validity is after.validity
    assert refusal(keys.ring, ("x-api-key", bob.token)).problem.status == 401


@pytest.mark.parametrize("change", ["gone", "owner", "hash"])
def test_whoever_must_know_hears_that_a_key_was_revoked(keys: Keys, change: str) -> None:
    ann, other = keys.add("ann"), keys.add("bob")
    validity = keys.ring.authenticate(connection(("x-api-key", ann.token))).validity
    assert validity is not None
    told: list[str] = []
    validity.watch(lambda: told.append("revoked"))
    keys.rewrite(ann.key.model_copy(update={"max_turns": 1}), other.key)
    assert (validity.holds, told) == (True, [])
    match change:
        case "gone":
            keys.rewrite(other.key)
        case "owner":
            keys.rewrite(ann.key.model_copy(update={"owner": "carl"}), other.key)
        case _:
            new_hash = keyfile.new_key("ann").key.hash
            keys.rewrite(ann.key.model_copy(update={"hash": new_hash}), other.key)
    assert (validity.holds, told) == (False, ["revoked"])


def test_whoever_must_know_hears_of_an_owner_who_has_no_key_any_more(keys: Keys) -> None:
    ann, again, bob = keys.add("ann"), keys.add("ann"), keys.add("bob")
    told: list[str] = []
    keys.ring.on_owner_gone = told.append
    keys.rewrite(ann.key, bob.key)
    assert told == [], "another key of hers holds"
    keys.rewrite(again.key, bob.key)
    assert told == []
    keys.rewrite(bob.key)
    keys.rewrite(bob.key)
    assert told == ["ann"]


def test_a_file_that_is_broken_or_gone_leaves_the_keys_that_there_were(keys: Keys) -> None:
    ann = keys.add("ann")
    principal = keys.ring.authenticate(connection(("x-api-key", ann.token)))
    for break_it in (lambda: keys.file.write_text("[[keys"), keys.file.unlink):
        break_it()
        with pytest.raises(KeyFileError):
            keys.ring.reload()
        assert keys.ring.authenticate(connection(("x-api-key", ann.token))) == principal
        assert principal.validity is not None
        assert principal.validity.holds


def test_requests_of_one_key_are_limited_and_a_reload_forgets_none(keys: Keys) -> None:
    ann, bob = keys.add("ann", requests_per_minute=2), keys.add("bob")
    for _ in range(2):
        keys.ring.authenticate(connection(("x-api-key", ann.token)))
    for _ in range(2):
        problem = refusal(keys.ring, ("x-api-key", ann.token)).problem
        assert (problem.status, problem.code) == (429, "too_many_requests")
        assert problem.retry_after is not None
        assert WINDOW_S - 5 < problem.retry_after <= WINDOW_S
        keys.ring.reload()
    keys.ring.authenticate(connection(("x-api-key", bob.token)))
    keys.rewrite(ann.key.model_copy(update={"requests_per_minute": 3}))
    keys.ring.authenticate(connection(("x-api-key", ann.token)))
    assert refusal(keys.ring, ("x-api-key", ann.token)).problem.status == 429
    keys.rewrite(ann.key.model_copy(update={"requests_per_minute": None}))
    for _ in range(10):
        keys.ring.authenticate(connection(("x-api-key", ann.token)))


# -- the application -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "HEAD", "BREW"])
async def test_without_a_key_nobody_learns_what_there_is(keys: Keys, method: str) -> None:
    keys.add("ann")
    paths = [re.sub(r"{\w+}", "s", row.path) for row in CLOSED]
    async with served(keys) as one:
        answers = set[tuple[int, bytes]]()
        for path in (*paths, "/nothing", "/session/s/nothing", "/assets", "/docs/"):
            response = await one.client.request(method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            answers.add((response.status_code, response.content))
    assert len(answers) == 1
    assert answers.pop()[0] == 401


@pytest.mark.parametrize("path", OPEN)
async def test_open_paths_need_no_key_but_take_no_wrong_one(keys: Keys, path: str) -> None:
    keys.add("ann")
    async with served(keys) as one:
        assert (await one.client.get(path)).status_code == 200
        assert (await one.client.get(path, headers=keys.of("ann"))).status_code == 200
        assert (await one.client.get(path, headers={"x-api-key": "wrong"})).status_code == 401
    async with served(keys, settings=HttpSettings(open_paths=frozenset())) as one:
        assert (await one.client.get(path)).status_code == 401
        assert (await one.client.get(path, headers=keys.of("ann"))).status_code == 200


async def test_each_kind_of_open_path_opens_only_its_own(keys: Keys) -> None:
    async with served(keys, settings=HttpSettings(open_paths=frozenset({"health"}))) as one:
        statuses = {
            path: (await one.client.get(path)).status_code
            for path in ("/health", "/ready", "/", "/docs", "/openapi.json")
        }
    assert statuses == {"/health": 200, "/ready": 200, "/": 401, "/docs": 401, "/openapi.json": 401}


async def test_a_key_in_the_query_string_is_none(keys: Keys) -> None:
    token = keys.add("ann").token
    async with served(keys) as one:
        for name in ("api_key", "key", "token", "access_token", "x-api-key"):
            response = await one.client.get("/sessions", params={name: token})
            assert response.status_code == 401
            assert token not in response.text


async def test_a_body_is_not_read_before_the_key() -> None:
    exchange = Exchange("POST", "/query", {"prompt": "fast"})
    received: list[Any] = []
    before: list[int] = []

    async def receive() -> Any:
        message = await exchange.receive()
        received.append(message)
        return message

    def nobody(_connection: HTTPConnection) -> Principal:
        before.append(len(received))
        raise NoKey

    async with world(authenticate=nobody) as one:
        await one.app(exchange.scope, receive, exchange.send)
    assert before == [0]
    assert exchange.sent[0][1]["status"] == 401


async def test_a_server_without_a_key_for_somebody_counts_nothing_for_them(keys: Keys) -> None:
    keys.add("ann")
    keys.add("bob")
    async with served(keys) as one:
        for _ in range(2):
            await one.client.post("/session/start", headers=keys.of("ann"))
        counts = [
            (await one.client.get("/health", headers=headers)).json()["active_sessions"]
            for headers in ({}, keys.of("ann"), keys.of("bob"))
        ]
    assert counts == [0, 2, 0]
    assert ANONYMOUS.owner == ""


async def test_a_key_reaches_no_log_and_no_answer(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    token = keys.add("ann", requests_per_minute=20).token
    secret = token.rpartition("_")[2]
    with caplog.at_level(logging.DEBUG):
        async with served(keys) as one:
            for headers in (
                {"x-api-key": token},
                {"authorization": f"Bearer {token}x"},
                {"x-api-key": token, "authorization": "Bearer other"},
            ):
                for path in ("/health", "/sessions", "/nothing", "/session/x"):
                    response = await one.client.get(path, headers=headers)
                    assert secret not in response.text
            principal = keys.ring.authenticate(connection(("x-api-key", token)))
            assert secret not in repr(principal)
            assert secret not in repr(keys.ring)
    assert secret not in caplog.text
    assert keys.made["ann"].key.hash[7:] not in caplog.text


# -- roles and limits ------------------------------------------------------------------------


@pytest.mark.parametrize("roles", [("admin",), ("user",), ("user", "admin")])
async def test_a_role_is_needed_for_what_it_is_for(keys: Keys, roles: tuple[Role, ...]) -> None:
    keys.add("ann", roles=roles)
    async with served(keys) as one:
        for row in CLOSED:
            path = re.sub(r"{\w+}", "s", row.path)
            body: Any = None if row.source is Source.QUERY else {}
            if row.source is Source.BODY:
                body = examples()[row.takes] | ({"prompt": "fast"} if row.begins else {})
            response = await one.client.request(row.method, path, json=body, headers=keys.of("ann"))
            if row.role is not None and row.role not in roles:
                assert (response.status_code, response.json()["code"]) == (403, "not_allowed")
            else:
                assert response.status_code != 403


async def test_an_admin_looks_after_sessions_and_does_not_read_them(keys: Keys) -> None:
    keys.add("ann")
    keys.add("root", roles=("user", "admin"))
    async with served(keys) as one:
        client, root = one.client, keys.of("root")
        reply = await client.post("/session/start", headers=keys.of("ann"))
        session = f"/session/{reply.json()['session_id']}"
        asking = asyncio.create_task(
            client.post(f"{session}/query", json={"prompt": "slow"}, headers=keys.of("ann"))
        )
        await eventually(lambda: one.world.agent.live == 1)
        sessions = (await client.get("/sessions", headers=root)).json()
        assert sessions["count"] == 0
        for owner in ("ann", "*"):
            listed = (await client.get(f"/sessions?owner={owner}", headers=root)).json()
            assert listed["active_sessions"] == [reply.json()["session_id"]]
        assert (await client.get("/sessions?owner=bob", headers=root)).json()["count"] == 0
        assert (await client.get(session, headers=root)).json()["owner"] == "ann"
        for method, path in (
            ("GET", "/turns"),
            ("GET", "/turns/t"),
            ("GET", "/events"),
            ("POST", "/query"),
        ):
            body = {"prompt": "fast"} if method == "POST" else None
            response = await client.request(method, f"{session}{path}", json=body, headers=root)
            assert (response.status_code, response.json()["code"]) == (404, "session_not_found")
        found = one.world.supervisor.get(reply.json()["session_id"])

        async def asked() -> bool:
            return bool(await found.turns())

        await eventually(asked)
        interrupted = await client.post(f"{session}/interrupt", headers=root)
        assert interrupted.status_code == 200
        assert (await asking).json()["outcome"] == "interrupted"
        assert (await client.delete(session, headers=root)).status_code == 200
        assert (await client.get(session, headers=keys.of("ann"))).status_code == 404


async def test_only_an_admin_may_ask_for_others_sessions(keys: Keys) -> None:
    keys.add("ann")
    async with served(keys) as one:
        for owner, status in (("ann", 200), ("bob", 403), ("*", 403), ("", 403)):
            response = await one.client.get(f"/sessions?owner={owner}", headers=keys.of("ann"))
            assert response.status_code == status


async def test_an_owner_has_no_more_sessions_and_turns_than_its_key_allows(keys: Keys) -> None:
    keys.add("ann", max_sessions=1, max_turns=1)
    async with served(keys) as one:
        client, ann = one.client, keys.of("ann")
        first = await client.post("/session/start", headers=ann)
        again = await client.post("/session/start", headers=ann)
        assert (again.status_code, again.json()["code"]) == (429, "quota_exceeded")
        assert int(again.headers["retry-after"]) >= 1
        session = f"/session/{first.json()['session_id']}"
        asking = asyncio.create_task(
            client.post(f"{session}/query", json={"prompt": "slow"}, headers=ann)
        )
        await eventually(lambda: one.world.supervisor.usage("ann").turns == 1)
        for path in (f"{session}/query", "/query"):
            for stream in (False, True):
                body = {"prompt": "fast", "stream": stream}
                response = await client.post(path, json=body, headers=ann)
                assert (response.status_code, response.json()["code"]) == (429, "quota_exceeded")
        assert one.world.app.open_streams == 0
        await client.delete(session, headers=ann)
        assert (await asking).status_code == 409
        begun = await client.post("/session/start", json={"initial_prompt": "fast"}, headers=ann)
        assert begun.status_code == 200


async def test_a_first_message_beyond_the_quota_leaves_no_session(keys: Keys) -> None:
    keys.add("ann", max_turns=0)
    async with served(keys) as one:
        response = await one.client.post(
            "/session/start", json={"initial_prompt": "fast"}, headers=keys.of("ann")
        )
        assert response.json()["code"] == "quota_exceeded"
        assert one.world.supervisor.list() == ()


async def test_too_many_requests_say_when_to_come_back(keys: Keys) -> None:
    keys.add("ann", requests_per_minute=2)
    async with served(keys) as one:
        statuses = [
            (await one.client.get(path, headers=keys.of("ann"))).status_code
            for path in ("/sessions", "/nothing", "/health")
        ]
        assert statuses == [200, 404, 429]
        response = await one.client.get("/sessions", headers=keys.of("ann"))
    assert 55 <= int(response.headers["retry-after"]) <= 60


# -- a key that is revoked -------------------------------------------------------------------


async def test_the_streams_of_a_revoked_key_end_and_say_why(keys: Keys) -> None:
    ann, bob = keys.add("ann"), keys.add("bob")
    async with served(keys) as one:
        reply = await one.client.post("/session/start", headers=keys.of("ann"))
        session = f"/session/{reply.json()['session_id']}"
        other = await one.client.post("/session/start", headers=keys.of("bob"))
        async with (
            _reading(one, ann.token, "POST", f"{session}/query", _ask("slow")) as turn,
            _reading(one, ann.token, "GET", f"{session}/events") as all_events,
            _reading(
                one, bob.token, "GET", f"/session/{other.json()['session_id']}/events"
            ) as bobs,
        ):
            await turn.until("text")
            await all_events.until("text")
            keys.rewrite(bob.key)
            for stream in (turn, all_events):
                last = await stream.until("error")
                assert (last.data["code"], last.data["retryable"]) == ("unauthorized", False)
                assert last.data["session_id"] == reply.json()["session_id"]
                assert last.id is None
                await eventually(partial(getattr, stream, "complete"))
                assert stream.said[-1] == last
            assert "turn_id" in (await turn.until("error")).data
            assert not bobs.complete
            assert one.world.app.open_streams == 1
        # The turn itself goes on.
        assert one.world.supervisor.usage("ann").turns == 1
        assert (await one.client.get(session, headers=keys.of("ann"))).status_code == 401


def _ask(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "stream": True}


@asynccontextmanager
async def _reading(
    one: Served, token: str, method: str, path: str, body: object = None
) -> AsyncGenerator[Exchange]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"].append((b"x-api-key", token.encode()))
        await one.world.app(scope, receive, send)

    async with exchanging(app, method, path, body) as exchange:
        yield exchange


async def test_what_is_being_sent_is_sent_to_its_end(keys: Keys) -> None:
    """A client gets whole events, and then the reason."""
    ann = keys.add("ann")
    long = "x" * 300_000
    agent = ScriptedAgent(by_prompt({"long": [Say(long, deltas=1), Say("more"), Pause(30.0)]}))
    async with world(agent=agent, authenticate=keys.ring.authenticate) as one:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["headers"].append((b"x-api-key", ann.token.encode()))

            async def revoke_in_the_middle(message: Any) -> None:
                if len(message.get("body", b"")) == CHUNK:
                    keys.rewrite()
                    await asyncio.sleep(0.01)
                await send(message)

            await one.app(scope, receive, revoke_in_the_middle)

        async with exchanging(app, "POST", "/query", _ask("long")) as stream:
            last = await stream.until("error")
            await eventually(lambda: stream.complete)
    assert last.data["code"] == "unauthorized"
    assert [said.data["content"] for said in stream.said if said.type == "text"] == [long]
    assert stream.said[-1] == last


async def test_a_client_that_reads_nothing_is_not_waited_for(keys: Keys) -> None:
    ann = keys.add("ann")
    settings = HttpSettings(streams=StreamSettings(send_timeout_s=0.1))
    agent = ScriptedAgent(by_prompt({"slow": [Say("one"), Pause(30.0)]}))
    async with world(agent=agent, settings=settings, authenticate=keys.ring.authenticate) as one:
        here = Served(world=one, client=httpx.AsyncClient(), keys=keys)
        async with _reading(here, ann.token, "POST", "/query", _ask("slow")) as stream:
            await stream.until("text")
            stream.reads.clear()
            keys.rewrite()
            await eventually(lambda: one.app.open_streams == 0)
        await here.client.aclose()


async def test_an_answer_that_comes_after_the_key_was_revoked_is_not_given(keys: Keys) -> None:
    keys.add("ann")
    async with served(keys) as one:
        asking = asyncio.create_task(
            one.client.post("/query", json={"prompt": "slow"}, headers=keys.of("ann"))
        )
        await eventually(lambda: bool(one.world.supervisor.snapshot().sessions))
        keys.rewrite()
        (session,) = one.world.supervisor.snapshot().sessions
        await one.world.supervisor.get(session.session_id).interrupt()
        response = await asking
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")


async def test_streams_of_revoked_keys_end_on_a_real_connection(keys: Keys) -> None:
    keys.add("ann")
    agent = ScriptedAgent(by_prompt({"slow": [Say("one"), Pause(30.0)]}))
    async with (
        world(agent=agent, authenticate=keys.ring.authenticate) as one,
        on_hypercorn(one) as address,
        httpx.AsyncClient(base_url=address.url, timeout=60) as client,
        client.stream("POST", "/query", json=_ask("slow"), headers=keys.of("ann")) as response,
    ):
        raw = b""
        async for piece in response.aiter_bytes():
            raw += piece
            if b"one" in raw:
                keys.rewrite()
    said: list[Said] = parse_stream(raw)
    assert said[-1].data["code"] == "unauthorized"


async def test_the_description_says_what_the_server_asks_for(keys: Keys) -> None:
    async with served(keys) as one:
        described = (await one.client.get("/openapi.json")).json()
    assert set(described["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    for row in OPERATIONS:
        if not row.described:
            continue
        operation = described["paths"][row.path][row.method.lower()]
        assert ({} in operation["security"]) is (row.open is not None)
        assert {"401", "403", "429"} <= set(operation["responses"])
    async with world() as open_to_all, in_process(open_to_all.app) as client:
        text = json.dumps((await client.get("/openapi.json")).json())
    assert "security" not in text
    assert "too_many_requests" not in text
