from datetime import UTC, datetime

import pytest

from session_supervisor.clock import Clock
from session_supervisor.config import Retention
from session_supervisor.errors import TurnNotFound
from session_supervisor.events import Event, Text
from session_supervisor.results import Origin, Outcome, Phase
from session_supervisor.turns import Ledger, SecondEnd, Turn
from tests.support.virtual_time import virtual

END = Event(1, "t", datetime(2026, 1, 1, tzinfo=UTC), Text(content=""))


class Time:
    now_s = 100.0


def ledger(retention: Retention | None = None) -> Ledger:
    clock = Clock(monotonic=lambda: Time.now_s, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    return Ledger("s", clock=clock, retention=retention or Retention())


def accept(book: Ledger, turn_id: str, prompt: str = "p") -> Turn:
    return book.accept(turn_id, origin=Origin.USER, prompt=prompt, first_seq=1)


@virtual()
async def test_a_turn_ends_once() -> None:
    book = ledger()
    turn = accept(book, "a")
    book.end(turn, Outcome.COMPLETED)
    with pytest.raises(SecondEnd):
        book.end(turn, Outcome.LOST)


@virtual()
async def test_an_end_is_seen_when_it_is_announced() -> None:
    book = ledger()
    turn = accept(book, "a")
    assert turn.record().phase is Phase.QUEUED
    book.start(turn)
    book.end(turn, Outcome.COMPLETED)
    assert turn.record().phase is Phase.RUNNING
    assert turn.record().result is None
    book.announce(turn, END)
    assert turn.record().phase is Phase.ENDED
    assert turn.record().result == turn.result


@virtual()
async def test_a_turn_costs_the_difference_to_what_the_conversation_has_cost() -> None:
    book = ledger()
    assert [round(book.charge(total), 6) for total in (0.5, 0.5, 0.8)] == [0.5, 0.0, 0.3]
    assert book.charge(0.1) == 0.1, "a conversation that began anew counts from zero"
    assert round(book.total_cost_usd, 6) == 0.9


@virtual()
async def test_the_oldest_ended_turns_are_forgotten_and_never_an_open_one() -> None:
    book = ledger(Retention(turns=2))
    open_turn = accept(book, "open")
    for turn_id in ("a", "b", "c"):
        turn = accept(book, turn_id)
        book.end(turn, Outcome.COMPLETED)
        book.announce(turn, END)
    assert [record.turn_id for record in book.records()] == ["open", "b", "c"]
    assert book.open() == (open_turn,)
    with pytest.raises(TurnNotFound):
        book.get("a")


@virtual()
async def test_turns_are_forgotten_by_their_size_too() -> None:
    book = ledger(Retention(turn_bytes=100))
    for turn_id in ("a", "b"):
        turn = accept(book, turn_id, prompt="x" * 80)
        book.end(turn, Outcome.COMPLETED)
        book.announce(turn, END)
    assert [record.turn_id for record in book.records()] == ["b"]


def end(book: Ledger, turn_id: str, *, prompt: str = "", text: str = "") -> None:
    turn = accept(book, turn_id, prompt=prompt)
    turn.answer.confirm(text, last_seq=0)
    book.end(turn, Outcome.COMPLETED)
    book.announce(turn, END)


def kept(book: Ledger) -> list[str]:
    return [record.turn_id for record in book.records()]


@virtual()
async def test_what_is_kept_by_size_is_prompts_and_answers_and_always_the_last() -> None:
    book = ledger(Retention(turn_bytes=100))
    end(book, "a", prompt="x" * 25, text="y" * 25)
    end(book, "b", text="y" * 50)
    assert kept(book) == ["a", "b"], "just as much as there may be"
    end(book, "c", text="y")
    assert kept(book) == ["b", "c"]
    end(book, "d", prompt="x" * 49)
    assert kept(book) == ["b", "c", "d"], "what was dropped does not count any more"
    end(book, "e", prompt="x" * 1000)
    assert kept(book) == ["e"]


@virtual()
async def test_a_turn_that_was_put_back_has_not_started() -> None:
    book = ledger()
    turn = accept(book, "a")
    book.start(turn)
    book.put_back(turn)
    assert (turn.record().phase, turn.record().started_at) == (Phase.QUEUED, None)
    Time.now_s += 5.0
    result = book.end(turn, Outcome.INTERRUPTED)
    assert (result.queued_ms, result.duration_ms) == (5000, 5000)
