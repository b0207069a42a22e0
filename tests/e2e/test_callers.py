"""Many callers, rude callers, slow callers: everybody gets one answer, and nobody harms others."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.server import Server
from tests.e2e.sse import Client, Event, Streamed, answer, lines, parse, streamed, text_of

pytestmark = pytest.mark.e2e

CALLERS = 20
BOUND_S = 90.0
PACED = "[[slow tokens=20 delay_ms=10]]"
WORDS = " ".join(f"w{number}" for number in range(20))

Errors = dict[int, set[str]]
"""The errors that a caller may get: which code with which status."""

WHILE_OPEN: Errors = {429: {"queue_full"}}
WHEN_CLOSED: Errors = {
    404: {"session_not_found"},
    409: {"session_closed", "closed"},
    429: {"queue_full"},
}


def refused(response: httpx.Response, allowed: Errors) -> None:
    body = answer(response, response.status_code)
    assert response.status_code in allowed, body
    assert body["code"] in allowed[response.status_code], body
    assert ("retry-after" in response.headers) is (response.status_code == 429)


def asks(client: Client, path: str, allowed: Errors, prompt: str) -> None:
    response = client.http.post(f"{path}/query", json={"prompt": prompt})
    if response.status_code != 200:
        refused(response, allowed)
        return
    body = answer(response, 200)
    assert body["outcome"] in ("completed", "interrupted")
    if prompt == PACED:
        assert WORDS.startswith(body["response"])
        assert (body["response"] == WORDS) is (body["outcome"] == "completed")


def streams(client: Client, path: str, allowed: Errors) -> None:
    body = {"prompt": PACED, "stream": True}
    with client.http.stream("POST", f"{path}/query", json=body) as response:
        if response.status_code != 200:
            response.read()
            refused(response, allowed)
            return
        got = Streamed(events=tuple(streamed(response)))
    assert got.text == got.end["response"]
    if got.end["type"] == "done":
        assert (got.text == WORDS) is (got.end["outcome"] == "completed")
    else:
        assert got.end["code"] in allowed.get(409, ()), got.end


def interrupts(client: Client, path: str, allowed: Errors, *, queued: bool) -> None:
    response = client.http.post(f"{path}/interrupt", json={"queued": queued})
    if response.status_code != 200:
        refused(response, allowed)
        return
    outcome = answer(response, 200)["outcome"]
    assert outcome in ("interrupted", "nothing_running", "escalated")


def looks(client: Client, path: str, allowed: Errors) -> None:
    response = client.http.get(path)
    if response.status_code != 200:
        refused(response, allowed)


def closes(client: Client, path: str, allowed: Errors) -> None:
    response = client.http.delete(path)
    if response.status_code != 200:
        refused(response, allowed)


def crowd(server: Server, calls: list[Callable[[Client], None]]) -> None:
    """Make all calls at once, each from a client of its own; every one must come to an end."""
    together = Barrier(len(calls))

    def caller(call: Callable[[Client], None]) -> float:
        with server.client() as client:
            together.wait()
            began = time.monotonic()
            call(client)
            return time.monotonic() - began

    with ThreadPoolExecutor(len(calls)) as pool:
        assert max(pool.map(caller, calls)) < BOUND_S


@pytest.mark.parametrize("seed", range(2))
def test_twenty_callers_of_one_session_that_is_closed_meanwhile_get_one_answer_each(
    server: Server, client: Client, seed: int
) -> None:
    chance = random.Random(seed)
    path = f"/session/{client.post('/session/start')['session_id']}"
    client.ask(path, "[[say Ready.]]")
    others = client.get("/sessions")["active_sessions"]
    calls = [call(chance, path, WHEN_CLOSED) for _ in range(CALLERS - 2)]
    for _ in range(2):
        calls.insert(chance.randrange(len(calls)), later(chance, closes, path))
    crowd(server, calls)
    client.get(path, expect=404)
    others.remove(path[9:])
    assert client.get("/sessions")["active_sessions"] == others


@pytest.mark.parametrize("seed", [10])
def test_twenty_callers_of_one_session_get_one_answer_each_and_it_works_on(
    server: Server, client: Client, conversation: str, seed: int
) -> None:
    chance = random.Random(seed)
    before = len(client.get(f"{conversation}/turns")["turns"])
    crowd(server, [call(chance, conversation, WHILE_OPEN) for _ in range(CALLERS)])
    assert client.ask(conversation, "[[say At rest.]]") == "At rest."
    turns = client.get(f"{conversation}/turns")["turns"][before:]
    assert {turn["phase"] for turn in turns} == {"ended"}
    assert {turn["outcome"] for turn in turns} <= {"completed", "interrupted"}
    one_turn_at_a_time(events_until(client, conversation, turns[-1]["turn_id"]))


def call(chance: random.Random, path: str, allowed: Errors) -> Callable[[Client], None]:
    """Choose what a caller does."""
    pause = chance.uniform(0, 0.6)
    queued = chance.random() < 0.3
    kind = chance.choices(("ask", "short", "stream", "interrupt", "look"), (4, 2, 4, 3, 1))[0]

    def run(client: Client) -> None:
        time.sleep(pause)  # the callers' own pace
        match kind:
            case "ask":
                asks(client, path, allowed, PACED)
            case "short":
                asks(client, path, allowed, "Hello?")
            case "stream":
                streams(client, path, allowed)
            case "interrupt":
                interrupts(client, path, allowed, queued=queued)
            case _:
                looks(client, path, allowed)

    return run


def later(
    chance: random.Random, do: Callable[[Client, str, Errors], None], path: str
) -> Callable[[Client], None]:
    pause = chance.uniform(0.1, 0.8)

    def run(client: Client) -> None:
        time.sleep(pause)
        do(client, path, WHEN_CLOSED)

    return run


def events_until(client: Client, path: str, turn_id: str) -> list[Event]:
    """Return all that a session said until the end of a turn."""
    events: list[Event] = []
    with client.http.stream("GET", f"{path}/events") as log:
        for event in streamed(log):
            events.append(event)
            if event.type in ("done", "error") and event.data["turn_id"] == turn_id:
                break
    return events


def one_turn_at_a_time(events: list[Event]) -> None:
    """Check a session's log: each turn ends once, and only one runs at any moment."""
    running: str | None = None
    accepted: list[str] = []
    ended: list[str] = []
    for event in events:
        turn_id: str | None = event.data.get("turn_id")
        match event.type:
            case "turn" if event.data["phase"] == "accepted":
                assert turn_id is not None
                accepted.append(turn_id)
            case "turn":
                assert running is None
                running = turn_id
            case "text" | "discard" | "tool_use" | "result":
                assert turn_id == running
            case "done" | "error":
                assert turn_id is not None
                ended.append(turn_id)
                running = None if running == turn_id else running
            case _:
                pass
    assert sorted(ended) == sorted(accepted), "each turn has exactly one end"


# -- clients that go away, and clients that do not read ------------------------------------------


def wait_for_end(client: Client, path: str, turn_id: str) -> dict[str, Any]:
    """Return how a turn ended that nobody else waits for."""
    return events_until(client, path, turn_id)[-1].data


def test_a_client_that_leaves_its_stream_does_not_stop_the_turn(
    server: Server, client: Client, conversation: str
) -> None:
    with server.client() as leaving, leaving.open(conversation, PACED) as events:
        turn_id = next(events).data["turn_id"]
        next(event for event in events if event.type == "text")
    end = wait_for_end(client, conversation, turn_id)
    assert (end["outcome"], end["response"]) == ("completed", WORDS)


def test_a_client_that_does_not_wait_for_its_answer_does_not_stop_the_turn(
    server: Server, client: Client, conversation: str
) -> None:
    before = client.get(f"{conversation}/turns")["count"]
    with raw(server, conversation, b'{"prompt": "%s"}' % PACED.encode()):
        while len(turns := client.get(f"{conversation}/turns")["turns"]) == before:
            continue
    end = wait_for_end(client, conversation, turns[-1]["turn_id"])
    assert (end["outcome"], end["response"]) == ("completed", WORDS)


@pytest.mark.parametrize("size", [5_000_000, 12_000_000])
def test_a_client_that_does_not_read_delays_nobody_and_is_told_if_it_missed_anything(
    server: Server, client: Client, conversation: str, size: int
) -> None:
    """Either size is more than the buffers on the way hold; the larger one also than the log."""
    body = b'{"prompt": "[[big bytes=%d]]", "stream": true}' % size
    before = client.get(f"{conversation}/turns")["count"]
    with raw(server, conversation, body, buffer=65_536) as slow:
        while len(turns := client.get(f"{conversation}/turns")["turns"]) == before:
            continue
        # It reads nothing, and yet the turn goes on to its end, and the next one runs.
        while (turn := client.turn(turns[-1]))["phase"] != "ended":
            continue
        assert turn["outcome"] == "completed"
        assert len(turn["response"]) == size
        assert client.ask(conversation, "[[say Not delayed.]]") == "Not delayed."
        received = list(streamed_raw(slow))
    assert received[-1].type == "done"
    assert received[-1].data["response"] == turn["response"]
    gaps = [event for event in received if event.type == "gap"]
    assert (text_of(received) == turn["response"]) is (not gaps)
    assert bool(gaps) is (size > 8_000_000)


def raw(server: Server, path: str, body: bytes, *, buffer: int | None = None) -> socket.socket:
    """Send a query, and leave the answer to the caller."""
    address = urlsplit(server.url)
    peer = socket.socket(socket.AF_INET)
    peer.settimeout(90)
    if buffer is not None:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    peer.connect(("127.0.0.1", address.port))
    peer.sendall(
        f"POST {path}/query HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return peer


def streamed_raw(peer: socket.socket) -> Iterator[Event]:
    """Yield the events that a socket receives."""
    received = iter(lambda: peer.recv(1 << 20), b"")
    whole = lines(received)
    while next(whole) != "\r":
        continue
    return parse(whole)
