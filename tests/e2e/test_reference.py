"""Every row of the user's API reference, over real HTTP, with the real CLI on the offline model."""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.server import OFFLINE, Server, running_server
from tests.e2e.sse import Client, Event, Streamed, answer, streamed
from tests.support.trees import below

pytestmark = pytest.mark.e2e

NOWHERE = f"/session/{uuid.UUID(int=0)}"
FIRST = "That is the first thing you said in this conversation."
SLOW = "[[slow tokens=400 delay_ms=50]]"

REFERENCE_PATHS = {
    "/health",
    "/query",
    "/session/start",
    "/session/{session_id}/query",
    "/session/{session_id}/interrupt",
    "/session/{session_id}",
    "/sessions",
}


def call(tool: str, **fields: object) -> str:
    return f"[[tool {tool} {json.dumps(fields)}]]"


def bash(command: str) -> str:
    return call("Bash", command=command, description="a test")


def moment(text: str) -> datetime:
    """Read a time, which must be RFC 3339 in UTC."""
    assert text.endswith("Z"), text
    return datetime.fromisoformat(text)


def first_text(events: Iterator[Event]) -> Event:
    return next(event for event in events if event.type == "text")


# -- health and status -----------------------------------------------------------------------


def test_health_has_the_documented_fields_and_says_that_the_model_is_offline(
    client: Client,
) -> None:
    body = client.get("/health")
    assert body["status"] == "healthy"
    assert body["authenticated"] is True
    assert body["offline"] is True
    assert type(body["active_sessions"]) is int
    assert abs(datetime.now(UTC) - moment(body["timestamp"])) < timedelta(minutes=1)


def test_the_index_names_every_endpoint_of_the_reference(client: Client) -> None:
    body = client.get("/")
    assert isinstance(body["name"], str)
    assert isinstance(body["version"], str)
    assert set(body["endpoints"]) >= REFERENCE_PATHS


def test_localhost_is_both_loopback_addresses(server: Server) -> None:
    port = urlsplit(server.url).port
    for host in ("127.0.0.1", "[::1]"):
        with Client(f"http://{host}:{port}") as client:
            assert client.get("/health")["status"] == "healthy"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_pages_load_nothing_from_elsewhere(client: Client, path: str) -> None:
    page = client.http.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for attribute in ("src=", "href="):
        for reference in page.text.split(attribute)[1:]:
            target = reference.lstrip("\"'").split(reference[:1])[0]
            if target.startswith("data:"):
                continue
            assert not urlsplit(target).netloc, f"{path} loads {target}"
            assert client.http.get(target).status_code == 200


def test_the_description_has_every_operation_of_the_reference(client: Client) -> None:
    body = client.get("/openapi.json")
    assert body["openapi"].startswith("3.1")
    assert set(body["paths"]) >= REFERENCE_PATHS


# -- what cannot be asked ----------------------------------------------------------------------

INVALID: dict[str, tuple[str, str, object, int, str]] = {
    "no prompt": ("POST", "/query", {}, 400, "prompt"),
    "an empty prompt": ("POST", "/query", {"prompt": ""}, 400, "prompt"),
    "a blank prompt": ("POST", "/query", {"prompt": " \n"}, 400, "prompt"),
    "a prompt that is no text": ("POST", "/query", {"prompt": 5}, 400, "prompt"),
    "a null prompt": ("POST", "/query", {"prompt": None}, 400, "prompt"),
    "a stream that is no boolean": (
        "POST",
        "/query",
        {"prompt": "x", "stream": "yes"},
        400,
        "stream",
    ),
    "a model that is no text": ("POST", "/query", {"prompt": "x", "model": 1}, 400, "model"),
    "tools that are no list": (
        "POST",
        "/query",
        {"prompt": "x", "allowed_tools": "Read"},
        400,
        "allowed_tools",
    ),
    "an unknown tool": (
        "POST",
        "/query",
        {"prompt": "x", "allowed_tools": ["Read", "Teleport"]},
        400,
        "Teleport",
    ),
    "an unknown tool of a session": (
        "POST",
        "/session/start",
        {"allowed_tools": ["Teleport"]},
        400,
        "Teleport",
    ),
    "an unknown permission mode": (
        "POST",
        "/query",
        {"prompt": "x", "permission_mode": "yolo"},
        400,
        "permission_mode",
    ),
    "bypassing permissions": (
        "POST",
        "/query",
        {"prompt": "x", "permission_mode": "bypassPermissions"},
        403,
        "bypassPermissions",
    ),
    "a session that bypasses permissions": (
        "POST",
        "/session/start",
        {"permission_mode": "bypassPermissions"},
        403,
        "bypassPermissions",
    ),
    "an unknown field": ("POST", "/query", {"prompt": "x", "promt": "y"}, 400, "promt"),
    "an unknown field of a session": ("POST", "/session/start", {"prompt": "y"}, 400, "prompt"),
    "an empty first prompt": (
        "POST",
        "/session/start",
        {"initial_prompt": " "},
        400,
        "initial_prompt",
    ),
    "a list for a body": ("POST", "/query", ["prompt"], 400, "object"),
    "no body": ("POST", "/query", None, 400, ""),
    "an unknown session's query": ("POST", f"{NOWHERE}/query", {"prompt": "x"}, 404, ""),
    "an unknown session's interrupt": ("POST", f"{NOWHERE}/interrupt", None, 404, ""),
    "an unknown session": ("GET", NOWHERE, None, 404, ""),
    "an unknown session's end": ("DELETE", NOWHERE, None, 404, ""),
    "an unknown session's turns": ("GET", f"{NOWHERE}/turns", None, 404, ""),
    "an unknown session's events": ("GET", f"{NOWHERE}/events", None, 404, ""),
    "a session id that is none": ("GET", "/session/not-a-uuid", None, 404, ""),
    "an unknown path": ("GET", "/nowhere", None, 404, "/nowhere"),
    "a path with a slash too many": ("GET", "/health/", None, 404, ""),
    "a wrong method": ("GET", "/query", None, 405, "POST"),
    "another wrong method": ("PUT", NOWHERE, None, 405, ""),
}


@pytest.mark.parametrize("what", INVALID)
def test_what_cannot_be_served_is_a_json_error_that_says_why(client: Client, what: str) -> None:
    method, path, body, status, named = INVALID[what]
    response = client.http.request(method, path, json=body)
    assert response.headers["content-type"] == "application/json"
    assert named in answer(response, status)["detail"]


def test_a_body_that_is_not_json_is_an_error_of_the_documented_shape(client: Client) -> None:
    as_json = {"content-type": "application/json"}
    assert answer(client.http.post("/query", content=b"{oops", headers=as_json), 400)
    as_text = {"content-type": "text/plain"}
    assert answer(client.http.post("/query", content=b'{"prompt": "x"}', headers=as_text), 415)
    too_long = b'{"prompt": "' + b"x" * (11 * 2**20) + b'"}'
    assert answer(client.http.post("/query", content=too_long, headers=as_json), 413)


# -- one-off queries ---------------------------------------------------------------------------


def test_a_one_off_query_is_answered_as_documented_and_belongs_to_no_conversation(
    client: Client,
) -> None:
    before = client.get("/sessions")
    began = time.monotonic()
    body = client.post("/query", prompt="What is a stoat?", model="claude-3-5-sonnet-20241022")
    took = (time.monotonic() - began) * 1000
    assert '"What is a stoat?"' in body["response"]
    assert FIRST in body["response"]
    assert type(body["duration_ms"]) is int
    assert 0 < body["duration_ms"] <= took
    assert body["num_turns"] == 1
    assert type(body["total_cost_usd"]) is float
    assert body["total_cost_usd"] > 0
    # Neither listed nor counted, but readable.
    assert client.get("/sessions") == before
    assert client.get("/health")["active_sessions"] == before["count"]
    turn = client.turn(body)
    assert turn["response"] == body["response"]
    assert turn["outcome"] == body["outcome"] == "completed"
    assert client.get(f"/session/{body['session_id']}")["active"] is False


def test_a_streamed_one_off_query_says_what_a_minimal_client_needs(client: Client) -> None:
    with client.open(
        "", f"[[slow tokens=5 delay_ms=1]] {bash('echo hi')} [[say Ünd — \u2028.]]"
    ) as events:
        got = Streamed(events=tuple(events))
    # All that the reference promises: text events, and one done.
    text = "".join(event.data["content"] for event in got.of("text"))
    assert text == "w0 w1 w2 w3 w4\n\nÜnd — \u2028."
    assert got.end["type"] == "done"
    assert got.end["response"] == text
    assert client.turn(got.end)["response"] == text
    assert got.end["num_turns"] == 2


def test_an_answer_is_all_text_of_the_turn_around_its_tools(client: Client) -> None:
    prompt = f"[[say Before.]] {bash('echo between')} [[say After.]] [[say The end.]]"
    body = client.post("/query", prompt=prompt, allowed_tools=["Bash"])
    assert body["response"] == "Before.\n\nAfter.\n\nThe end."
    assert body["num_turns"] == 2


# -- conversations -----------------------------------------------------------------------------


def test_a_one_off_query_waits_for_what_its_subagents_find(client: Client) -> None:
    found = "the subagent found the number 4711"
    prompt = call(
        "Task", description="look", prompt=f"[[say {found}]]", subagent_type="general-purpose"
    )
    body = client.post("/query", prompt=prompt, allowed_tools=["Task"])
    assert found in str(body["response"])


def test_a_conversation_lives_as_documented_from_start_to_delete(client: Client) -> None:
    started = client.post(
        "/session/start",
        initial_prompt="What is a ferret?",
        model="claude-3-opus-20240229",
        allowed_tools=["Read"],
        permission_mode="default",
    )
    session_id = started["session_id"]
    path = f"/session/{session_id}"
    assert str(uuid.UUID(session_id)) == session_id
    assert started["status"] == "started"
    assert '"What is a ferret?"' in started["initial_response"]
    created = moment(started["created_at"])
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=1)

    body = client.get(path)
    assert body["session_id"] == session_id
    assert moment(body["created_at"]) == created
    assert body["active"] is True
    assert body["model"] == "claude-3-opus-20240229"
    listed = client.get("/sessions")
    assert session_id in listed["active_sessions"]
    assert listed["count"] == len(listed["active_sessions"])
    assert client.get("/health")["active_sessions"] == listed["count"]

    reply = client.post(f"{path}/query", prompt="And a polecat?")
    assert reply["session_id"] == session_id
    assert type(reply["duration_ms"]) is int
    assert '"And a polecat?"' in reply["response"]
    assert '1. "What is a ferret?"' in reply["response"], "it remembers"

    closed = client.delete(path)
    assert (closed["status"], closed["session_id"]) == ("closed", session_id)
    client.get(path, expect=404)
    client.post(f"{path}/query", prompt="Are you there?", expect=404)
    client.post(f"{path}/interrupt", expect=404)
    client.delete(path, expect=404)
    client.turn(started, expect=404)
    assert session_id not in client.get("/sessions")["active_sessions"]


def test_a_session_that_starts_without_a_prompt_takes_its_first_by_query(client: Client) -> None:
    started = answer(client.http.post("/session/start"), 200)
    path = f"/session/{started['session_id']}"
    assert started["initial_response"] is None
    assert started["status"] == "started"
    try:
        assert FIRST in client.ask(path, "Hello?")
    finally:
        client.delete(path)


def test_a_session_that_is_deleted_in_a_turn_answers_that_turn_with_an_error(
    client: Client,
) -> None:
    path = f"/session/{client.post('/session/start')['session_id']}"
    with client.open(path, SLOW) as events, ThreadPoolExecutor(1) as pool:
        first_text(events)
        queued = pool.submit(client.http.post, f"{path}/query", json={"prompt": "And me?"})
        with client.http.stream("GET", f"{path}/events") as log:
            next(event for event in streamed(log) if event.data.get("position") == 1)
        client.delete(path)
        end = list(events)[-1]
        assert (end.type, end.data["code"]) == ("error", "closed")
        assert answer(queued.result(), 409)["code"] == "closed"


# -- streaming ---------------------------------------------------------------------------------


def test_a_stream_has_the_bytes_of_server_sent_events(server: Server, conversation: str) -> None:
    """By a raw socket: what a browser's `EventSource` or a line-based script would see."""
    body = b'{"prompt": "[[say Hello there]]", "stream": true}'
    address = urlsplit(server.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 0), timeout=90) as peer:
        peer.sendall(
            f"POST {conversation}/query HTTP/1.0\r\nHost: localhost\r\nContent-Type: "
            f"application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        received = b"".join(iter(lambda: peer.recv(65536), b""))
    head, _, stream = received.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
    assert b"content-type: text/event-stream" in head.lower()
    assert b"\r" not in stream
    assert stream.endswith(b"}\n\n")
    blocks = stream.decode().split("\n\n")[:-1]
    assert blocks[0].startswith("retry: ")
    for block in blocks[1:]:
        number, data = block.split("\n")
        assert int(number.removeprefix("id: ")) > 0
        assert json.loads(data.removeprefix("data: "))["type"]
    assert [b.split("\n")[1] for b in blocks if '"type":"text"' in b.replace(": ", ":")]


def test_text_arrives_as_the_model_writes_it(client: Client, conversation: str) -> None:
    # Pieces that come while somebody is busy are one: how many there are is the machine's.
    with client.open(conversation, "[[slow tokens=30 delay_ms=80]]") as events:
        began = next(event for event in events if event.type == "text")
        assert began.data["content"].startswith("w0")
        assert "w29" not in began.data["content"]
        assert client.get(f"{conversation}/turns/{began.data['turn_id']}")["phase"] == "running"
        rest = Streamed(events=(began, *events))
    assert len(rest.of("text")) >= 5, "not whole blocks"
    assert rest.text == " ".join(f"w{number}" for number in range(30))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        pytest.param("[[say One.]] [[say Two.]]", "One.\n\nTwo.", id="blocks"),
        pytest.param("[[think Hm.]] [[say Well.]]", "Well.", id="thinking"),
        pytest.param(f"[[say A]] {bash('ls')} [[say B]]", "A\n\nB", id="tool"),
        pytest.param("[[say \U0001f980 für \x85 \u2028 \\n \\\\ {}]]", None, id="unicode"),
        pytest.param("[[big bytes=300000]]", None, id="long"),
    ],
)
def test_stream_response_and_turn_agree(
    client: Client, conversation: str, prompt: str, text: str | None
) -> None:
    got = client.stream(conversation, prompt)
    reply = client.post(f"{conversation}/query", prompt=prompt)
    turn = client.turn(got.end)
    assert got.end["type"] == "done"
    assert got.text == got.end["response"] == turn["response"] == reply["response"]
    assert client.turn(reply)["response"] == reply["response"]
    assert text is None or got.text == text
    assert got.types[:2] == ["turn", "turn"]
    assert got.types[-2] == "result"
    assert (turn["outcome"], turn["phase"]) == ("completed", "ended")


# -- interrupt ---------------------------------------------------------------------------------


def test_interrupt_ends_a_stream_with_what_there_was(client: Client, conversation: str) -> None:
    with client.open(conversation, SLOW) as events:
        began = [first_text(events)]
        stopped = client.post(f"{conversation}/interrupt")
        rest = list(events)
    session_id = conversation.rpartition("/")[2]
    assert (stopped["status"], stopped["session_id"]) == ("interrupted", session_id)
    assert stopped["outcome"] == "interrupted"
    got = Streamed(events=(*began, *rest))
    assert (got.end["type"], got.end["outcome"]) == ("done", "interrupted")
    assert got.text == got.end["response"] == client.turn(got.end)["response"]
    assert got.text.startswith("w0")
    assert "w399" not in got.text
    assert SLOW in client.ask(conversation, "What did I say?"), "the next query knows of it"


def test_an_interrupted_request_answers_what_there_was_and_queued_turns_stay(
    client: Client, conversation: str
) -> None:
    with ThreadPoolExecutor(2) as pool, client.http.stream("GET", f"{conversation}/events") as log:
        events = streamed(log)
        running = pool.submit(client.post, f"{conversation}/query", prompt=SLOW + "Y")
        turn_id = next(
            event.data["turn_id"]
            for event in events
            if event.type == "turn" and client.turn(event.data)["prompt"] == SLOW + "Y"
        )
        next(e for e in events if e.type == "text" and e.data["turn_id"] == turn_id)
        waiting = pool.submit(client.post, f"{conversation}/query", prompt="[[say My turn.]]")
        next(e for e in events if e.type == "turn" and e.data["turn_id"] != turn_id)
        stopped = client.post(f"{conversation}/interrupt", turn_id=turn_id)
        assert stopped["turn_ids"] == [turn_id]
        reply = running.result()
        assert waiting.result()["response"] == "My turn."
    assert (reply["outcome"], reply["turn_id"]) == ("interrupted", turn_id)
    assert reply["response"].startswith("w0")
    assert reply["response"] == client.turn(reply)["response"]


def test_interrupt_with_queued_takes_waiting_turns_out(client: Client, conversation: str) -> None:
    with (
        client.open(conversation, SLOW) as first,
        client.open(conversation, "[[say Me?]]") as next_,
    ):
        first_text(first)
        assert next(next_).data["phase"] == "accepted"
        assert len(client.post(f"{conversation}/interrupt", queued=True)["turn_ids"]) == 2
        assert list(first)[-1].data["outcome"] == "interrupted"
        end = list(next_)[-1].data
    assert (end["type"], end["outcome"], end["response"]) == ("done", "interrupted", "")


def test_interrupting_what_does_not_run_does_no_harm(client: Client, conversation: str) -> None:
    stopped = answer(client.http.post(f"{conversation}/interrupt"), 200)
    assert stopped["status"] == "interrupted"
    assert stopped["outcome"] == "nothing_running"
    client.post(f"{conversation}/interrupt", turn_id=str(uuid.uuid4()), expect=404)
    assert client.ask(conversation, "[[say Still here.]]") == "Still here."


# -- models ------------------------------------------------------------------------------------


def test_an_unknown_model_is_an_error_and_never_an_answer(client: Client) -> None:
    body = client.post("/query", prompt="Hello?", model="no-such-model", expect=502)
    assert body["code"] == "model_not_found"
    assert client.turn(body)["outcome"] == "failed"
    assert client.turn(body)["response"] == ""


def test_a_session_of_an_unknown_model_is_refused_and_streams_an_error(client: Client) -> None:
    with client.session(model="no-such-model") as path:
        got = client.stream(path, "Hello?")
        assert (got.end["type"], got.end["code"]) == ("error", "model_not_found")
        assert not got.of("text")
        assert client.get(path)["active"] is True
        listed = client.get("/sessions")["active_sessions"]
        body = client.post("/session/start", initial_prompt="?", model="no-such-model", expect=502)
        assert body["code"] == "model_not_found"
        assert client.get("/sessions")["active_sessions"] == listed, "no session stays behind"


# -- tools and permissions -----------------------------------------------------------------------


def test_only_the_named_tools_exist_and_they_run_without_asking(
    client: Client, server: Server
) -> None:
    """The permission mode is `default`, which would ask for a Bash command that writes."""
    mine, not_mine = f"{uuid.uuid4()}.txt", f"{uuid.uuid4()}.txt"
    with client.session(allowed_tools=["Bash"]) as path:
        got = client.stream(path, bash(f"echo hello > {mine} && cat {mine}") + " [[result]]")
        assert "hello" in got.text
        assert got.of("result")[0].data["permission_denials"] == []
        assert below(server.folder, mine)
        prompt = call("Write", file_path=not_mine, content="no") + " [[result]]"
        got = client.stream(path, prompt)
        assert [event.data["is_error"] for event in got.of("tool_result")] == [True]
        assert "No such tool" in got.text
        assert not below(server.folder, not_mine)


def test_where_nobody_is_asked_the_default_mode_denies_what_would_need_it_and_lists_it(
    client: Client, server: Server
) -> None:
    name = f"{uuid.uuid4()}.txt"
    once = client.post("/query", prompt=f"{bash(f'touch {name}')} [[say I tried.]]")
    assert once["response"] == "I tried."
    assert [one["tool_name"] for one in once["permission_denials"]] == ["Bash"]
    with client.session(on_permission="deny") as path:
        for prompt, tool in (
            (call("Write", file_path=name, content="no"), "Write"),
            (bash(f"touch {name}"), "Bash"),
        ):
            got = client.stream(path, f"{prompt} [[say I tried.]]")
            assert got.end["response"] == "I tried.", "the turn goes on"
            (denied,) = client.turn(got.end)["permission_denials"]
            assert denied["tool_name"] == tool
            assert got.of("result")[0].data["permission_denials"] == [denied]
        assert not below(server.folder, name)
        # What needs no asking runs, also the tools that the CLI has only when they are named.
        assert "failed" not in client.ask(path, call("Glob", pattern="*") + " [[result]]")
        assert "failed" not in client.ask(path, call("Grep", pattern="x") + " [[result]]")


def test_accept_edits_writes_files_without_asking(client: Client, server: Server) -> None:
    name = f"{uuid.uuid4()}.txt"
    body = client.post(
        "/query",
        prompt=call("Write", file_path=name, content="Hello World") + " [[say Written.]]",
        permission_mode="acceptEdits",
    )
    assert body["response"] == "Written."
    assert client.turn(body)["permission_denials"] == []
    (file,) = below(server.folder, name)
    assert file.read_text() == "Hello World"


def test_plan_mode_executes_nothing(client: Client, server: Server) -> None:
    name = f"{uuid.uuid4()}.txt"
    body = client.post(
        "/query",
        prompt=f"{bash(f'touch {name}')} [[say Planned.]]",
        permission_mode="plan",
    )
    assert body["response"] == "Planned."
    assert not below(server.folder, name)


# -- without a credential ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_credential(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """No key, no login, not offline; and the port comes from the environment."""
    with running_server(tmp_path_factory.mktemp("bare"), env={"PORT": "0"}) as server:
        yield server


def test_without_a_credential_the_server_says_so_and_refuses_work(
    without_credential: Server,
) -> None:
    assert not without_credential.url.endswith(":3000")
    with without_credential.client() as client:
        health = client.get("/health")
        assert (health["status"], health["authenticated"]) == ("healthy", False)
        assert health["offline"] is False
        for path, fields in (
            ("/query", {"prompt": "Hello?"}),
            ("/query", {"prompt": "Hello?", "stream": True}),
            ("/session/start", {"initial_prompt": "Hello?"}),
            ("/session/start", {}),
        ):
            response: httpx.Response = client.http.post(path, json=fields)
            body = answer(response, 503)
            assert body["code"] == "not_authenticated"
            assert int(response.headers["retry-after"]) > 0
            assert "--offline" in body["detail"]
        assert client.get("/sessions")["count"] == 0
        assert not without_credential.clis()


def test_a_host_that_others_can_reach_is_refused_without_keys(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="--no-auth"),
        running_server(tmp_path, *OFFLINE, "--host=0.0.0.0"),
    ):
        pass
