from datetime import UTC, datetime

import pytest

from session_supervisor.clock import Clock
from session_supervisor.events import Event, Text
from session_supervisor.results import Origin, Outcome, Phase
from session_supervisor.turns import Ledger, SecondEnd, Turn
from tests.support.virtual_time import virtual

END = Event(1, "t", datetime(2026, 1, 1, tzinfo=UTC), Text(content=""))


class Time:
    now_s = 100.0


def ledger() -> Ledger:
    clock = Clock(monotonic=lambda: Time.now_s, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    return Ledger("s", clock=clock)


def accept(book: Ledger, turn_id: str, prompt: str = "p") -> Turn:
    return book.accept(turn_id, origin=Origin.USER, prompt=prompt, first_seq=1)


@virtual()
async def test_a_turn_ends_once() -> None:
    book = ledger()
    turn = accept(book, "a")
    book.end(turn, Outcome.COMPLETED, last_seq=1)
    with pytest.raises(SecondEnd):
        book.end(turn, Outcome.LOST, last_seq=1)


@virtual()
async def test_an_end_is_seen_when_it_is_announced() -> None:
    book = ledger()
    turn = accept(book, "a")
    assert turn.record().phase is Phase.QUEUED
    book.start(turn)
    book.end(turn, Outcome.COMPLETED, last_seq=1)
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
async def test_the_store_is_told_of_every_change_once() -> None:
    book = ledger()
    turn = accept(book, "a")
    (queued,) = book.take_changed()
    assert queued.phase is Phase.QUEUED
    assert book.take_changed() == ()
    book.start(turn)
    (running,) = book.take_changed()
    assert running.phase is Phase.RUNNING
    book.put_back(turn)
    (queued,) = book.take_changed()
    assert queued.phase is Phase.QUEUED
    book.end(turn, Outcome.COMPLETED, last_seq=7)
    (ended,) = book.take_changed()
    assert (ended.phase, ended.result, ended.last_seq) == (Phase.ENDED, turn.result, 7)


@virtual()
async def test_a_turn_that_has_ended_is_the_stores() -> None:
    book = ledger()
    turn = accept(book, "a")
    assert book.find("a") is turn
    book.end(turn, Outcome.COMPLETED, last_seq=1)
    assert book.find("a") is turn
    book.announce(turn, END)
    assert book.find("a") is None
    assert turn.record() == Turn.restored(turn.stored()).record()


@virtual()
async def test_a_turn_that_was_put_back_has_not_started() -> None:
    book = ledger()
    turn = accept(book, "a")
    book.start(turn)
    book.put_back(turn)
    assert (turn.record().phase, turn.record().started_at) == (Phase.QUEUED, None)
    Time.now_s += 5.0
    result = book.end(turn, Outcome.INTERRUPTED, last_seq=1)
    assert (result.queued_ms, result.duration_ms) == (5000, 5000)
