"""The terminal client's parts, one by one; tests/e2e runs it at a terminal for real."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from examples import chat as client
from examples.chat import Chat, Event, Follower, Inbox, Leave, Refused, Server, Terminal

TURN = "t1"


class Spoken:
    """What a server was asked, and answers."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self.asked: list[httpx.Request] = []

        def handle(request: httpx.Request) -> httpx.Response:
            self.asked.append(request)
            return answer(request)

        self.server = Server("http://test", None)
        self.server.http = httpx.Client(
            transport=httpx.MockTransport(handle), base_url="http://test"
        )

    def chat(self, inbox: Inbox) -> Chat:
        follower = Follower(self.server, "s1", 0, inbox)
        return Chat(server=self.server, terminal=Terminal(), inbox=inbox, follower=follower)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    made = Inbox()
    yield made
    made.close()


def never(_request: httpx.Request) -> httpx.Response:
    raise AssertionError("nothing is to be asked")


def event(number: int, kind: str, **data: Any) -> Event:
    return Event(number, {"type": kind, "turn_id": TURN, **data})


def started(chat: Chat) -> None:
    chat.turn_id = TURN
    chat.show(event(1, "turn", phase="accepted", origin="user"))
    chat.show(event(2, "turn", phase="started", origin="user"))


def done(number: int, response: str) -> Event:
    return event(
        number, "done", outcome="completed", response=response, duration_ms=1, total_cost_usd=0.0
    )


# -- events --------------------------------------------------------------------------------------


def test_an_answer_that_was_shown_whole_is_not_shown_again(
    inbox: Inbox, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Spoken(never).chat(inbox)
    started(chat)
    chat.show(event(3, "text", content="one "))
    chat.show(event(4, "text", content="two"))
    chat.show(done(5, "one two"))
    assert capsys.readouterr().out == "one two\n(completed, 0.0 s, $0.0000)\n"
    assert chat.turn_id is None


def test_what_is_withdrawn_does_not_count_for_the_answer(
    inbox: Inbox, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Spoken(never).chat(inbox)
    started(chat)
    for number, content in ((3, "kept "), (4, "void "), (5, "void")):
        chat.show(event(number, "text", content=content))
    chat.show(event(6, "discard", after=3))
    chat.show(event(7, "text", content="good"))
    chat.show(done(8, "kept good"))
    said = capsys.readouterr().out
    assert said.count("good") == 1
    assert "(the model broke off" in said
    assert "(the whole answer:)" not in said


def test_an_answer_of_which_something_was_missed_is_shown_whole(
    inbox: Inbox, capsys: pytest.CaptureFixture[str]
) -> None:
    running = {"phase": "running", "error": None}
    chat = Spoken(lambda _: httpx.Response(200, json=running)).chat(inbox)
    started(chat)
    chat.show(event(3, "text", content="one "))
    chat.show(Event(9, {"type": "gap", "after": 3, "before": 9}))
    chat.show(event(10, "text", content="three"))
    assert chat.turn_id == TURN
    chat.show(done(11, "one two three"))
    said = capsys.readouterr().out
    assert said.endswith("(the whole answer:)\none two three\n(completed, 0.0 s, $0.0000)\n")


def test_a_turn_that_ended_among_what_was_missed_is_over(
    inbox: Inbox, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = {
        "turn_id": TURN,
        "phase": "ended",
        "outcome": "failed",
        "response": "so far",
        "error": {"code": "crashed", "message": "It died.", "retryable": True},
        "duration_ms": 1,
        "total_cost_usd": None,
    }
    chat = Spoken(lambda _: httpx.Response(200, json=ended)).chat(inbox)
    started(chat)
    chat.show(Event(9, {"type": "gap", "after": 2, "before": 9}))
    assert chat.turn_id is None
    said = capsys.readouterr().out
    assert "so far" in said
    assert "It died. [crashed]" in said


def test_events_of_types_that_nobody_knows_are_passed_over(
    inbox: Inbox, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Spoken(never).chat(inbox)
    for kind in ("result", "bye", "from the future"):
        chat.show(event(1, kind, after=1))
    assert capsys.readouterr().out == ""


def test_a_stream_gives_every_event_once_whatever_is_sent_again(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "pauses", lambda: iter(lambda: 0.0, 1.0))
    asked_after: list[str] = []

    def stream(*numbers: int) -> httpx.Response:
        lines = [f'id: {number}\ndata: {{"type": "text", "n": {number}}}\n' for number in numbers]
        return httpx.Response(200, text="retry: 1\n\n" + "\n".join([*lines, ": ping\n"]) + "\n")

    answers: Iterator[httpx.Response | Exception] = iter(
        [
            stream(1, 2, 2, 1, 3),
            httpx.ConnectError("gone"),
            httpx.Response(503, json={"code": "draining", "detail": "Later."}),
            stream(2, 3, 4),
            httpx.Response(204),
        ]
    )

    def answer(request: httpx.Request) -> httpx.Response:
        asked_after.append(request.headers["last-event-id"])
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    Follower(Spoken(answer).server, "s1", 0, inbox).run()
    had: list[object] = []
    while (item := inbox.get_nowait()) is not None:
        had.append(item.id if isinstance(item, Event) else item)
    assert [item for item in had if isinstance(item, int)] == [1, 2, 3, 4]
    assert asked_after == ["0", "3", "3", "3", "4"]
    assert client.CONNECTED in had
    assert isinstance(had[-1], Leave)


def test_a_stream_that_is_refused_for_good_ends(inbox: Inbox) -> None:
    gone = httpx.Response(404, json={"code": "session_not_found", "detail": "There is no session."})
    Follower(Spoken(lambda _: gone).server, "s1", 0, inbox).run()
    with pytest.raises(Leave, match="There is no session"):
        Spoken(never).chat(inbox).take(inbox.get())


# -- requests ------------------------------------------------------------------------------------


def test_a_request_is_sent_again_under_the_same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "pauses", lambda: iter(lambda: 0.0, 1.0))
    answers: Iterator[httpx.Response | Exception] = iter(
        [
            httpx.ReadError("cut"),
            httpx.Response(503, json={"code": "draining", "detail": "Later."}),
            httpx.Response(502, text="<html>a proxy says so</html>"),
            httpx.Response(202, json={"turn_id": TURN}),
        ]
    )

    def answer(_request: httpx.Request) -> httpx.Response:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    spoken, said = Spoken(answer), list[str]()
    spoken.server.on_trouble = said.append
    assert spoken.server.post("/session/s1/query", {"prompt": "Hi."}) == {"turn_id": TURN}
    assert len(spoken.asked) == 4
    assert len({request.headers["idempotency-key"] for request in spoken.asked}) == 1
    assert len(said) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(400, "invalid_request"), (404, "session_not_found"), (502, "crashed")]
)
def test_a_refusal_is_not_asked_again(status: int, code: str) -> None:
    answer = httpx.Response(status, json={"code": code, "detail": "No."})
    spoken = Spoken(lambda _: answer)
    with pytest.raises(Refused, match=r"No\."):
        spoken.server.get("/health")
    assert len(spoken.asked) == 1


def test_a_decision_that_came_second_says_what_was_first(
    inbox: Inbox, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {
        "resolution": None,
        "tool": "Bash",
        "input": {"command": "ls"},
        "suggestions": [],
        "expires_at": None,
    }

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=asked)
        assert json.loads(request.content) == {
            "decision": "allow",
            "remember": [{"tool": "Bash"}],
        }
        over = {"code": "request_over", "detail": "Over.", "request": {"resolution": "denied"}}
        return httpx.Response(409, json=over)

    chat = Spoken(answer).chat(inbox)

    def always(*_: object) -> str:
        return "s"

    monkeypatch.setattr(chat.terminal, "ask", always)
    chat.ask_permission("r1")
    assert "(it was denied before)" in capsys.readouterr().out


# -- at the terminal -----------------------------------------------------------------------------


def test_the_second_ctrl_c_of_a_turn_leaves(inbox: Inbox) -> None:
    chat = Spoken(never).chat(inbox)
    with pytest.raises(KeyboardInterrupt):
        chat.on_signal(signal.SIGINT, None)
    chat.turn_id = TURN
    chat.on_signal(signal.SIGINT, None)
    assert chat.inbox.get() == client.INTERRUPT
    with pytest.raises(KeyboardInterrupt):
        chat.on_signal(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("line", "several", "chosen"),
    [
        ("2", False, ["two"]),
        ("0", False, ["0"]),
        ("4", False, ["4"]),
        ("1, 3,1", True, ["one", "three"]),
        ("1,9", True, ["1,9"]),
        ("one, two", True, ["one, two"]),
        ("1, 2", False, ["1, 2"]),
        ("", True, []),
        ("  ", False, []),
    ],
)
def test_answers_are_picked_by_number_or_are_words(
    line: str, several: bool, chosen: list[str]
) -> None:
    assert client.picked(line, ["one", "two", "three"], several) == chosen


def test_what_is_to_be_allowed_is_shown_whole() -> None:
    command = "\n".join(f"echo {number}" for number in range(100)) + "; rm -rf ~" + "x" * 1000
    assert client.in_full({"command": command}).replace("\n    ", "\n").strip() == command
    assert "background: true" in client.in_full({"command": "ls", "background": True})
    assert client.in_full({"command": "rm x\rls \x1b[8m"}) == r"    rm x\u000dls \u001b[8m"


def test_nothing_that_drives_a_terminal_is_printable() -> None:
    every = "".join(map(chr, range(0x100))) + "\u202e\u2066\r\n\U0001f980"
    left = client.printable(every)
    assert {char for char in left if ord(char) < 0x20} == {"\n", "\t"}
    assert not {"\x1b", "\x9b", "\x7f", "\u202e", "\u2066"} & set(left)
    assert "\U0001f980" in left
