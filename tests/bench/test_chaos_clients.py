"""What the clients of `bench.chaos` notice by themselves, while they read and ask."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from bench.chaos_client import Answer, Heard, Opened
from bench.chaos_conversation import Told
from bench.chaos_record import Reading
from bench.chaos_retry import Retrying
from bench.chaos_visits import Visitor, check_foreign, check_oneoff

from tests.bench.chaos_run import GONE, LOG, Books, OldRun


def reading(run: OldRun) -> Reading:
    return Reading(run.conversation.witness, turn_id="t1")


def text(number: int, content: str) -> Heard:
    return Heard(id=number, data={"type": "text", "content": content, "turn_id": "t1"})


def test_a_turn_reads_as_its_answer() -> None:
    run = OldRun()
    mine = reading(run)
    for heard in LOG[:5]:
        mine.take(heard)
    assert mine.end is not None
    assert mine.text == mine.end["response"] == "ab"
    assert run.broken() == set()


def test_text_may_come_in_other_pieces() -> None:
    run = OldRun()
    first, second = reading(run), reading(run)
    for heard in (text(1, "a"), text(2, "b"), text(3, "c")):
        first.take(heard)
    for heard in (text(2, "ab"), text(3, "c")):
        second.take(heard)
    assert run.broken() == set()


def test_an_id_that_means_something_else_to_another_reader_is_found() -> None:
    run = OldRun()
    reading(run).take(text(1, "a"))
    reading(run).take(text(1, "b"))
    assert run.broken() == {"no id means two things"}


def test_an_id_that_is_of_another_turn_later_is_found() -> None:
    run = OldRun()
    reading(run).take(text(3, "a"))
    other = Reading(run.conversation.witness, turn_id="t2")
    other.take(Heard(id=3, data={"type": "text", "content": "a", "turn_id": "t2"}))
    assert run.broken() == {"no id means two things"}


@pytest.mark.parametrize("second", [1, 2])
def test_ids_that_do_not_increase_are_found(second: int) -> None:
    run = OldRun()
    mine = reading(run)
    mine.take(text(2, "a"))
    mine.take(Heard(id=second, data={"type": "thinking", "content": "x", "turn_id": "t1"}))
    assert "ids increase" in run.broken()


def test_who_goes_on_reading_keeps_what_he_had() -> None:
    run = OldRun()
    mine = reading(run)
    mine.take(text(1, "a"))
    onward = mine.onward()
    onward.take(text(2, "b"))
    assert (mine.text, onward.text, onward.last_id) == ("a", "ab", 2)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=200, body={}),
        Answer(status=403, body={"code": "not_allowed"}),
        Answer(status=404, body={"code": "turn_not_found"}),
    ],
)
def test_whoever_sees_anything_of_anothers_session_is_found(answer: Answer) -> None:
    run = OldRun()
    check_foreign(run.record, "GET /session/s", GONE)
    assert run.broken() == set()
    check_foreign(run.record, "GET /session/s", answer)
    assert run.broken() == {"others see nothing"}


@pytest.mark.parametrize(("running", "found"), [((8,), []), ((7, 8), ["closed is gone"])])
def test_a_process_that_outlives_its_session_is_found(
    running: tuple[int, ...], found: list[str]
) -> None:
    run = OldRun()
    visitor = Visitor(run.record, (), lambda: running, random.Random(1))
    asyncio.run(visitor.close(run.conversation))
    assert run.conversation.closed
    assert sorted(run.broken()) == found


ALONE = "a one-off is by itself"


def of_a_oneoff(response: str, outcome: str = "completed") -> Answer:
    return Answer(status=200, body={"response": response, "outcome": outcome})


@pytest.mark.parametrize(
    "answer",
    [
        of_a_oneoff("You said: Remember mine."),
        of_a_oneoff("", "failed"),
        Answer(status=503, body={"code": "draining"}),
    ],
)
def test_a_oneoff_knows_what_it_was_told(answer: Answer) -> None:
    run = OldRun()
    check_oneoff(run.record, "mine", answer)
    assert run.broken() == set()


@pytest.mark.parametrize(
    ("answer", "promise"),
    [
        (of_a_oneoff("You said: Remember mine. Before that: Remember yours."), ALONE),
        (of_a_oneoff("You said: Remember yours."), ALONE),
        (of_a_oneoff("Hello."), ALONE),
        (of_a_oneoff("Remember yours.", "failed"), ALONE),
        (Answer(status=502, body={"detail": "Failed at: Remember yours."}), ALONE),
        (GONE, "answers are those of the API"),
    ],
)
def test_a_oneoff_that_knows_of_anything_else_is_found(answer: Answer, promise: str) -> None:
    run = OldRun()
    check_oneoff(run.record, "mine", answer)
    assert run.broken() == {promise}


def test_a_full_disk_takes_no_file_and_the_oneoff_may_say_so() -> None:
    run = OldRun()
    check_oneoff(run.record, "mine", of_a_oneoff("Glob answered:\nNo files found"), no_file=True)
    assert run.broken() == set()
    check_oneoff(run.record, "mine", of_a_oneoff("Remember yours.txt"), no_file=True)
    assert run.broken() == {ALONE}


def test_a_file_that_is_gone_without_a_full_disk_is_found() -> None:
    run = OldRun()
    check_oneoff(run.record, "mine", of_a_oneoff("Glob answered:\nNo files found"))
    assert run.broken() == {ALONE}


class Recycling(Books):
    """One process answers all one-offs, and is cleared in between, or not."""

    def __init__(self, *, clears: bool) -> None:
        super().__init__()
        self.clears = clears
        self.told: list[str] = []

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Quote what it was told."""
        assert (method, path) == ("POST", "/query")
        assert body is not None
        if self.clears:
            self.told.clear()
        self.told.append(str(body["prompt"]))
        return of_a_oneoff(" ".join(self.told))


@pytest.mark.parametrize(("clears", "found"), [(True, []), (False, [ALONE])])
def test_a_process_that_keeps_something_of_a_oneoff_is_found(
    clears: bool, found: list[str]
) -> None:
    run = OldRun()
    run.conversation.api = Recycling(clears=clears)
    visitor = Visitor(run.record, (), tuple, random.Random(1))
    asyncio.run(visitor.ask_oneoffs(run.conversation))
    assert run.record.oneoffs >= 2
    assert sorted(run.broken()) == found


@pytest.mark.parametrize(
    ("answer", "promise"),
    [
        (GONE, "a session stays until it is closed"),
        (Answer(status=409, body={"code": "closed"}), "a session stays until it is closed"),
        (
            Answer(status=409, body={"code": "session_failed", "detail": "It is not known."}),
            "only crashes end a session",
        ),
        (Answer(status=500, body={"code": "internal"}), "nothing is answered 500"),
    ],
)
def test_a_session_that_ends_by_itself_is_found(answer: Answer, promise: str) -> None:
    run = OldRun()
    run.conversation.note(answer, "a query")
    assert run.broken() == {promise}


def test_a_session_may_end_that_crashed_too_often_or_was_closed() -> None:
    run = OldRun()
    detail = "Session 's' has failed: It crashed too often. The last time: ..."
    crashed = Answer(status=409, body={"code": "session_failed", "detail": detail})
    run.conversation.note(crashed, "a query")
    assert run.conversation.over
    run.conversation.closing = True
    run.conversation.note(GONE, "a query")
    assert run.broken() == set()


class Keeper(Books):
    """Answers queries under keys, by the book or not."""

    def __init__(self, *, forgets: bool, minds: bool, changes: bool) -> None:
        super().__init__()
        self._forgets = forgets
        self._minds = minds
        self._changes = changes
        self._known: dict[str, tuple[str, object]] = {}
        self._numbers = count(1)

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        narrow: bool = False,
    ) -> AsyncGenerator[Opened]:
        """Answer a query."""
        key, prompt = (headers or {})["idempotency-key"], (body or {})["prompt"]
        fresh = (f"t{next(self._numbers)}", prompt)
        turn_id, known = fresh if self._forgets else self._known.setdefault(key, fresh)
        if known != prompt and self._minds:
            answer = Answer(status=409, body={"code": "busy"})
            yield Opened(answer=answer, events=aiter_of())
            return
        response = f"{next(self._numbers)}" if self._changes else "ab"
        said: dict[str, Any] = {"outcome": "completed", "response": response, "turn_id": turn_id}
        if (body or {}).get("stream"):
            yield Opened(
                answer=Answer(status=200, body={}),
                events=aiter_of(
                    Heard(id=1, data={"type": "turn", "turn_id": turn_id}),
                    Heard(id=2, data={"type": "text", "content": response, "turn_id": turn_id}),
                    Heard(id=3, data={"type": "done", **said}),
                ),
            )
        else:
            yield Opened(answer=Answer(status=200, body=said), events=aiter_of())


async def aiter_of(*events: Heard) -> AsyncGenerator[Heard]:
    for heard in events:
        yield heard


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("forgets", "minds", "changes", "promise"),
    [
        (False, True, False, None),
        (True, True, False, "a key stands for one turn"),
        (False, False, False, "a key stands for one turn"),
        (False, True, True, "what was announced stays"),
    ],
)
def test_a_key_that_does_not_stand_for_one_turn_is_found(
    seed: int, forgets: bool, minds: bool, changes: bool, promise: str | None
) -> None:
    run = OldRun()
    run.conversation.api = Keeper(forgets=forgets, minds=minds, changes=changes)
    told = Told(word="w3")
    asyncio.run(Retrying(run.conversation, told, "Remember w3.", random.Random(seed)).ask())
    if promise is None:
        assert run.broken() == set()
        assert told.outcome == "completed"
    else:
        assert promise in run.broken()
