"""The upstream fails in every way: a typed error in bounded time, and the session goes on."""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from session_http.problems import KINDS
from tests.e2e.sse import Client, Event, Streamed, streamed, text_of
from tests.e2e.world import UPSTREAM_HANGS, World, running_world

pytestmark = pytest.mark.e2e

BOUND_S = 60.0
ONCE = '[[tool Bash {"command": "echo x >> once; wc -l < once", "description": "d"}]]'
TOOL = '[[tool Bash {"command": "echo ran", "description": "d"}]]'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("world"), watchdogs=UPSTREAM_HANGS) as world:
        yield world


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with world.client() as client:
        yield client


@pytest.fixture(scope="module")
def conversation(world: World) -> Iterator[str]:
    """Path of a session that tests share: none depends on what others said in it."""
    fields = {"initial_prompt": "[[say Ready.]]", "allowed_tools": ["Bash"]}
    with world.client() as client, client.session(**fields) as path:
        yield path


@contextmanager
def survived(client: Client, world: World, path: str) -> Generator[None]:
    """See a session through a failure: it still knows what it was told before."""
    word = uuid.uuid4().hex
    client.ask(path, f"Remember {word}.")
    began = time.monotonic()
    yield
    assert time.monotonic() - began < BOUND_S
    assert client.get(path)["active"] is True
    assert word in client.ask(path, "What did I say?"), "the next query has the context"
    assert time.monotonic() - began < 2 * BOUND_S
    assert world.inspect(path).restarts == 0, "no process had to die for it"


def replayed(client: Client, path: str, turn: dict[str, object]) -> str:
    """Return the text of a turn as the session's log has it."""
    events: list[Event] = []
    with client.http.stream("GET", f"{path}/events") as log:
        for event in streamed(log):
            if event.data.get("turn_id") == turn["turn_id"]:
                events.append(event)
                if event.type in ("done", "error"):
                    break
    return text_of(events)


def agrees(client: Client, path: str, got: Streamed) -> str:
    """Return a turn's text, which must be the same wherever it can be read."""
    turn = client.turn(got.end)
    assert got.text == got.end["response"] == turn["response"] == replayed(client, path, turn)
    return got.text


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "code", "retryable"),
    [
        ("status=429 retry_after=0", "rate_limited", True),
        ("status=529", "overloaded", True),
        ("status=500", "upstream_error", True),
        ("status=401", "authentication_failed", False),
        ("status=403", "authentication_failed", False),
        ("status=400", "upstream_invalid_request", False),
        ('status=400 message="Your credit balance is too low"', "billing", False),
        ("status=404", "model_not_found", False),
        ("status=413", "context_full", False),
        ('status=400 message="prompt is too long: 9 tokens > 8 maximum"', "context_full", False),
        ('status=400 message="image exceeds 5 MB maximum"', "upstream_invalid_request", False),
    ],
)
def test_an_error_of_the_upstream_is_a_typed_error_of_the_turn(
    world: World, client: Client, conversation: str, failure: str, code: str, retryable: bool
) -> None:
    path = conversation
    with survived(client, world, path):
        prompt = f"[[fail {failure}]] [[say No.]]"
        body = client.post(f"{path}/query", prompt=prompt, expect=KINDS[code].status)
        assert body["code"] == code
        turn = client.turn(body)
        assert (turn["outcome"], turn["response"]) == ("failed", "")
        assert (turn["error"]["code"], turn["error"]["retryable"]) == (code, retryable)


def test_an_upstream_error_ends_a_stream_with_one_error_event(
    world: World, client: Client, conversation: str
) -> None:
    path = conversation
    with survived(client, world, path):
        got = client.stream(path, "[[fail status=529]]")
        assert (got.end["type"], got.end["code"]) == ("error", "overloaded")
        assert agrees(client, path, got) == ""
        assert "retrying" in got.types


def test_a_failure_that_passes_shows_as_a_retry_and_not_as_a_failure(
    world: World, client: Client, conversation: str
) -> None:
    path = conversation
    with survived(client, world, path):
        got = client.stream(path, "[[fail status=529 times=1]] [[say At last.]]")
        (retrying,) = got.of("retrying")
        assert (retrying.data["attempt"], retrying.data["status"]) == (1, 529)
        assert agrees(client, path, got) == "At last."


def test_an_upstream_that_cannot_be_reached_is_a_typed_error(tmp_path: Path) -> None:
    nowhere = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}
    with (
        running_world(tmp_path, watchdogs=UPSTREAM_HANGS, env=nowhere) as world,
        world.client() as client,
    ):
        body = client.post("/query", prompt="Hello?", expect=502)
        assert body["code"] == "upstream_error"


# -- hangs -------------------------------------------------------------------------------------


def test_a_hang_before_the_headers_is_given_up_and_siblings_do_not_notice(
    world: World, client: Client, conversation: str
) -> None:
    path = conversation
    with survived(client, world, path), client.session(initial_prompt="Hello.") as sibling:
        with client.open(path, "[[hang before]]") as events:
            turn = next(events)
            assert turn.type == "turn"
            assert client.ask(sibling, "[[say Unhurt.]]") == "Unhurt."
            assert client.turn(turn.data)["phase"] == "running", (
                "nobody waits for it to be given up"
            )
            got = Streamed(events=(turn, *events))
        assert (got.end["type"], got.end["code"]) == ("error", "stalled")
        assert agrees(client, path, got) == ""
        assert world.snapshot(sibling).restarts == 0


def test_a_hang_in_mid_stream_is_given_up_and_what_was_said_is_kept(
    world: World, client: Client, conversation: str
) -> None:
    path = conversation
    with survived(client, world, path):
        got = client.stream(path, "[[slow tokens=9 delay_ms=10]] [[hang mid after=4]]")
        assert (got.end["type"], got.end["code"]) == ("error", "stalled")
        assert agrees(client, path, got) == "w0 w1 w2 w3"


def test_a_hanging_turn_can_be_interrupted_and_has_a_time_limit(
    world: World, client: Client, conversation: str
) -> None:
    path = conversation
    with survived(client, world, path):
        with client.open(path, "[[slow tokens=9 delay_ms=10]] [[hang mid after=4]]") as events:
            while next(events).type != "text":
                continue
            assert client.post(f"{path}/interrupt")["outcome"] == "interrupted"
            assert list(events)[-1].data["outcome"] == "interrupted"
        body = client.post(f"{path}/query", prompt="[[hang before]]", timeout_s=0.5, expect=504)
        assert body["code"] == "timeout"


# -- cut streams -------------------------------------------------------------------------------

SLOW = "[[slow tokens=8 delay_ms=20]]"
WORDS = "w0 w1 w2 w3 w4 w5 w6 w7"


@pytest.mark.parametrize(
    ("prompt", "text", "withdrawn"),
    [
        pytest.param(f"{SLOW} [[cut after=4 times=1]]", WORDS, True, id="in the first block"),
        pytest.param(
            f"[[say First.]] {SLOW} [[cut block=2 after=4 times=1]]",
            f"First.\n\n{WORDS}",
            True,
            id="in the second block",
        ),
        pytest.param(
            f"[[say Before.]] {TOOL} {SLOW} [[cut after=4 times=1]]",
            f"Before.\n\n{WORDS}",
            True,
            id="after a tool",
        ),
        pytest.param(
            f"[[say Before.]] [[cut block=2 after=1 times=1]] {ONCE} [[result]]",
            None,
            False,
            id="around a tool call",
        ),
        pytest.param(
            f"{SLOW} [[fail status=529 after=4 times=1]]", WORDS, True, id="by an error event"
        ),
        pytest.param(f"{SLOW} [[cut after=0 times=1]]", WORDS, False, id="before any text"),
    ],
)
def test_a_text_that_was_cut_and_retried_reads_right_in_stream_response_and_log(
    world: World, client: Client, conversation: str, prompt: str, text: str | None, withdrawn: bool
) -> None:
    path = conversation
    with survived(client, world, path):
        got = client.stream(path, prompt)
        assert got.end["type"] == "done", got.end
        assert bool(got.of("discard")) is withdrawn
        said = agrees(client, path, got)
        if text is None:
            # The tool has run once, however often its call was begun.
            assert said == "Before.\n\nBash answered:\n1"
            assert len(got.of("tool_use")) == len(got.of("tool_result")) == 1
        else:
            assert said == text


def test_a_stream_that_is_always_cut_ends_in_an_error_that_has_no_void_text(
    world: World, client: Client, conversation: str
) -> None:
    path = conversation
    with survived(client, world, path):
        got = client.stream(path, f"[[say Whole.]] {SLOW} [[cut block=2 after=4]]")
        assert (got.end["type"], got.end["code"]) == ("error", "upstream_error")
        assert agrees(client, path, got).startswith("Whole.")
        assert "API Error" not in got.text
        body = client.post(f"{path}/query", prompt=f"{SLOW} [[cut after=4]]", expect=502)
        assert body["code"] == "upstream_error"
        assert client.turn(body)["response"] == ""
