"""`Idempotency-Key`: however often a request is sent, the work is done once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from session_http.credentials import CredentialState
from session_supervisor import Supervisor, SupervisorConfig
from session_supervisor.agents.scripted import (
    Conversation,
    Fail,
    Pause,
    Say,
    ScriptedAgent,
    Step,
)
from session_supervisor.errors import Failure, FailureCode
from session_supervisor.spec import Prompt
from session_supervisor.stores.sqlite import SqliteStore
from tests.http.contract import Said, judged, parse_stream
from tests.http.keyring import Keys
from tests.http.servers import World, eventually, in_process, world

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "a key of mine"}


class Answering:
    """A script that counts; `slow` waits until it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
        self.asked.append(prompt.text)
        match prompt.text:
            case "slow":
                yield Say("a b ", deltas=2)
                yield Pause(0.1)
                yield Say("c", deltas=1)
            case "fail":
                yield Fail(Failure(code=FailureCode.OVERLOADED, message="It failed."))
            case _:
                yield Say("a b c", deltas=3)


@dataclass(frozen=True, slots=True)
class Api:
    world: World
    client: httpx.AsyncClient
    asked: list[str]

    async def start(self) -> str:
        response = await self.client.post("/session/start")
        return f"/session/{response.json()['session_id']}"


@asynccontextmanager
async def api(**options: Any) -> AsyncGenerator[Api]:
    script = Answering()
    async with (
        world(script, **options) as one,
        in_process(one.app, hooks=judged()) as client,
    ):
        yield Api(one, client, script.asked)


async def ask(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    body.setdefault("prompt", "hi")
    return await client.post(path, json=body, headers=KEY)


async def follow(
    client: httpx.AsyncClient, path: str, prompt: str = "hi", after: int | None = None
) -> list[Said]:
    headers = KEY if after is None else {**KEY, "Last-Event-ID": str(after)}
    body = {"prompt": prompt, "stream": True}
    response = await client.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return parse_stream(response.content)


def text_of(said: Iterable[Said]) -> str:
    return "".join(one.data["content"] for one in said if one.type == "text")


def told(said: Iterable[Said]) -> tuple[object, ...]:
    """Return all that a stream told; how text was cut depends on how fast it was read."""
    said = list(said)
    return text_of(said), [one for one in said if one.type != "text"]


@pytest.mark.parametrize("conversation", [False, True])
async def test_a_retry_gets_the_first_ones_answer(conversation: bool) -> None:
    async with api() as one:
        path = f"{await one.start()}/query" if conversation else "/query"
        first = await ask(one.client, path)
        assert (await ask(one.client, path)).json() == first.json()
        # How it is to be answered is no part of what is asked.
        said = await follow(one.client, path)
        assert (said[0].type, said[-1].type) == ("turn", "done")
        assert text_of(said) == said[-1].data["response"] == first.json()["response"]
        assert said[-1].data["turn_id"] == first.json()["turn_id"]
        assert one.asked == ["hi"]


@pytest.mark.parametrize("path", ["/query", "/session/start", "{session}/query"])
async def test_of_many_at_once_one_is_carried_out(path: str) -> None:
    async with api() as one:
        path = path.format(session=await one.start())
        field = "initial_prompt" if path.endswith("start") else "prompt"
        replies = await asyncio.gather(
            *(one.client.post(path, json={field: "slow"}, headers=KEY) for _ in range(5))
        )
        assert {reply.status_code for reply in replies} == {200}
        assert (
            len({(reply.json()["session_id"], reply.json()["turn_id"]) for reply in replies}) == 1
        )
        assert one.asked == ["slow"]


async def test_a_retry_of_a_start_gets_the_same_session() -> None:
    async with api() as one:
        first, again = [await one.client.post("/session/start", headers=KEY) for _ in range(2)]
        assert first.json() == again.json()
        assert (await one.client.get("/sessions")).json()["count"] == 1


async def test_a_start_without_its_first_prompt_is_completed_by_the_retry() -> None:
    """As after a crash between the two."""
    async with api() as one:
        supervisor = one.world.supervisor
        ordinary = supervisor.start

        async def cut_short(*args: Any, **kwargs: Any) -> Any:
            await ordinary(*args, **kwargs)
            raise ZeroDivisionError

        supervisor.start = cut_short  # type: ignore[method-assign]
        body = {"initial_prompt": "hi"}
        broken = await one.client.post("/session/start", json=body, headers=KEY)
        assert broken.status_code == 500
        supervisor.start = ordinary  # type: ignore[method-assign]
        (session,) = supervisor.list()
        retried = (await one.client.post("/session/start", json=body, headers=KEY)).json()
        assert (retried["session_id"], retried["initial_response"]) == (session.session_id, "a b c")


async def test_another_request_under_the_same_key_is_a_conflict() -> None:
    async with api() as one:
        path, other = await one.start(), await one.start()
        await ask(one.client, f"{path}/query")
        for where, body in (
            (f"{path}/query", {"prompt": "bye"}),
            (f"{path}/query", {"prompt": "hi", "timeout_s": 9}),
            (f"{other}/query", {"prompt": "hi"}),
            ("/query", {"prompt": "hi"}),
            ("/session/start", {"initial_prompt": "hi"}),
            ("/session/start", {}),
        ):
            response = await one.client.post(where, json=body, headers=KEY)
            assert (response.status_code, response.json()["code"]) == (409, "idempotency_conflict")
        assert one.asked == ["hi"]
        same = await one.client.post(
            f"{path}/query", json={"prompt": "hi", "timeout_s": None}, headers=KEY
        )
        assert same.status_code == 200, "null is as if it were not there"


async def test_owners_do_not_share_keys(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.add("ann")
    keys.add("bob")
    async with api(authenticate=keys.ring.authenticate) as one:
        replies = [
            await one.client.post("/query", json={"prompt": "hi"}, headers={**KEY, **keys.of(name)})
            for name in ("ann", "bob", "ann")
        ]
        turns = [reply.json()["turn_id"] for reply in replies]
        assert turns[0] == turns[2] != turns[1]


async def test_a_failed_turn_fails_its_retries_and_is_not_done_again() -> None:
    async with api() as one:
        first = await ask(one.client, "/query", prompt="fail")
        again = await ask(one.client, "/query", prompt="fail")
        assert first.status_code == again.status_code == 502
        assert first.json() == again.json()
        assert one.asked == ["fail"]


async def test_what_is_no_longer_kept_is_told_and_not_done_again() -> None:
    async with api() as one:
        body = {"initial_prompt": "fail"}
        first = await one.client.post("/session/start", json=body, headers=KEY)
        assert first.status_code == 502, "and its session is closed again"
        response = await one.client.post("/session/start", json=body, headers=KEY)
        assert (response.status_code, response.json()["code"]) == (409, "idempotency_conflict")
        assert "no longer kept" in response.json()["detail"]
        assert one.asked == ["fail"]


async def test_what_was_refused_was_not_begun() -> None:
    class Changing:
        found = False

        async def state(self, _owner: str) -> CredentialState:
            return CredentialState(authenticated=self.found, hint="Log in.")

    credentials = Changing()
    async with api(credentials=credentials) as one:
        assert (await ask(one.client, "/query")).status_code == 503
        credentials.found = True
        assert (await ask(one.client, "/query")).status_code == 200
        credentials.found = False  # what has been done can be had without it
        assert (await ask(one.client, "/query")).status_code == 200
        assert one.asked == ["hi"]


async def test_a_retry_costs_no_quota(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.add("ann", max_turns=1, max_sessions=1)
    async with api(authenticate=keys.ring.authenticate) as one:
        one.client.headers.update(keys.of("ann"))
        path = await one.start()
        first = asyncio.create_task(ask(one.client, f"{path}/query", prompt="slow"))
        await eventually(lambda: one.asked == ["slow"])
        again = await ask(one.client, f"{path}/query", prompt="slow")
        assert again.json() == (await first).json()


@pytest.mark.parametrize("key", ["", "é", "a\tb", "x" * 256])
async def test_a_key_that_cannot_be_one_is_a_400(key: str) -> None:
    async with api() as one:
        headers = {b"Idempotency-Key": key.encode("latin-1")}
        for path in ("/query", "/session/start", f"{await one.start()}/query"):
            body = {} if path.endswith("start") else {"prompt": "hi"}
            response = await one.client.post(path, json=body, headers=headers)
            assert response.status_code == 400
            assert response.json()["errors"][0]["field"] == "Idempotency-Key"
        assert one.asked == []


# -- going on with a stream --------------------------------------------------------------------


@pytest.mark.parametrize("conversation", [False, True])
async def test_a_stream_goes_on_behind_any_of_its_events(conversation: bool) -> None:
    async with api() as one:
        path = f"{await one.start()}/query" if conversation else "/query"
        whole = await follow(one.client, path, "slow")
        for n, event in enumerate(whole[:-1]):
            assert event.id is not None
            rest = await follow(one.client, path, "slow", after=event.id)
            assert told(rest) == told(whole[n + 1 :])
        headers = {**KEY, "Last-Event-ID": str(whole[-1].id)}
        body = {"prompt": "slow", "stream": True}
        over = await one.client.post(path, json=body, headers=headers)
        assert (over.status_code, over.content) == (204, b"")
        assert one.asked == ["slow"]
        assert one.world.app.open_streams == 0


async def test_a_stream_goes_on_while_its_turn_runs() -> None:
    async with api() as one:
        path = f"{await one.start()}/query"
        first = asyncio.create_task(follow(one.client, path, "slow"))
        await eventually(lambda: one.asked == ["slow"])
        session = one.world.supervisor.list()[0]
        (turn,) = await session.turns()
        rest = await follow(one.client, path, "slow", after=turn.first_seq)
        assert told(rest) == told((await first)[1:])


async def test_other_turns_of_the_session_are_not_in_the_stream() -> None:
    async with api() as one:
        path = f"{await one.start()}/query"
        await one.client.post(path, json={"prompt": "before"})
        whole = await follow(one.client, path)
        await one.client.post(path, json={"prompt": "after"})
        rest = await follow(one.client, path, after=1)
        assert told(rest) == told(whole), "from before its beginning"
        last = one.world.supervisor.list()[0].snapshot().last_seq
        body = {"prompt": "hi", "stream": True}
        over = await one.client.post(path, params={"after": last}, json=body, headers=KEY)
        assert over.status_code == 204, "from behind its end"


@pytest.mark.parametrize("how", [{"params": {"after": 3}}, {"headers": {"Last-Event-ID": "3"}}])
async def test_only_what_was_begun_under_a_key_can_go_on(how: dict[str, Any]) -> None:
    field = "after" if "params" in how else "Last-Event-ID"
    async with api() as one:
        path = f"{await one.start()}/query"
        with_key: dict[str, Any] = {**how, "headers": {**KEY, **how.get("headers", {})}}
        requests: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
            (how, {"prompt": "hi", "stream": True}),  # no key
            (with_key, {"prompt": "hi", "stream": True}),  # a key that stands for nothing
            (with_key, {"prompt": "hi"}),  # no stream
        )
        for options, body in requests:
            response = await one.client.post(path, json=body, **options)
            assert (response.status_code, response.json()["errors"][0]["field"]) == (400, field)
        turns = await one.client.get(path.replace("/query", "/turns"))
        assert turns.json()["count"] == 0, "nothing was begun"


@pytest.mark.parametrize("after", ["x", "-1", "999", "9" * 20, "1.0"])
async def test_an_id_that_was_never_sent_is_a_400(after: str) -> None:
    async with api() as one:
        await ask(one.client, "/query")
        body = {"prompt": "hi", "stream": True}
        hows: list[dict[str, Any]] = [
            {"headers": {**KEY, "Last-Event-ID": after}},
            {"headers": KEY, "params": {"after": after}},
        ]
        for options in hows:
            response = await one.client.post("/query", json=body, **options)
            assert response.status_code == 400, response.text
        assert one.world.app.open_streams == 0


async def test_an_empty_id_is_what_a_browser_sends_before_the_first_event() -> None:
    async with api() as one:
        response = await one.client.post(
            "/query", json={"prompt": "hi", "stream": True}, headers={"Last-Event-ID": ""}
        )
        assert response.status_code == 200


# -- on a store that outlives the server -------------------------------------------------------


async def test_a_key_holds_after_a_restart(tmp_path: Path) -> None:
    config = SupervisorConfig(workspace=tmp_path / "work")
    asked: dict[str, list[Said]] = {}
    body = {"prompt": "slow", "stream": True}
    async with api(store=SqliteStore(tmp_path / "state.db"), config=config) as one:
        path = f"{await one.start()}/query"
        for where in (path, "/query"):
            headers = {"Idempotency-Key": where}
            response = await one.client.post(where, json=body, headers=headers)
            asked[where] = parse_stream(response.content)
    async with api(store=SqliteStore(tmp_path / "state.db"), config=config) as one:
        for where, whole in asked.items():
            for n, event in enumerate(whole[:-1]):
                headers = {"Idempotency-Key": where, "Last-Event-ID": str(event.id)}
                response = await one.client.post(where, json=body, headers=headers)
                assert told(parse_stream(response.content)) == told(whole[n + 1 :])
            plain = await one.client.post(
                where, json={"prompt": "slow"}, headers={"Idempotency-Key": where}
            )
            assert plain.json()["response"] == whole[-1].data["response"] == text_of(whole)
        assert one.asked == []


async def test_a_key_holds_for_as_long_as_the_operator_says() -> None:
    async with api(config=SupervisorConfig(claim_s=0.05)) as one:
        first = await ask(one.client, "/query")
        await asyncio.sleep(0.06)
        second = await ask(one.client, "/query", prompt="something else")
        assert second.status_code == 200
        assert second.json()["turn_id"] != first.json()["turn_id"]


async def test_the_library_says_whether_a_key_stands_for_something() -> None:
    from session_supervisor import ClaimKey
    from session_supervisor.errors import ClaimConflict

    key = ClaimKey(key="k", digest="d")
    async with Supervisor(ScriptedAgent()) as supervisor:
        assert not await supervisor.claimed(key)
        turn = await supervisor.query("hi", claim=key)
        await turn.result()
        assert await supervisor.claimed(key)
        assert not await supervisor.claimed(key, owner="somebody else")
        with pytest.raises(ClaimConflict):
            await supervisor.claimed(ClaimKey(key="k", digest="another"))
