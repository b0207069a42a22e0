"""What `bench.chaos` checks in the end: each way in which a promise can be broken is found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from bench import chaos_checks
from bench.chaos_checks import (
    LEFT_MEMORY,
    MORE_DESCRIPTORS,
    MORE_MEMORY,
    MORE_TASKS,
    PER_CLI_DESCRIPTORS,
    PER_SESSION_TASKS,
    ROUND,
    Checks,
)
from bench.chaos_client import Heard
from bench.chaos_world import Vitals

from tests.bench.chaos_run import LOG, NEW, OldRun


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos_checks, "SETTLE_S", 0.05)
    monkeypatch.setattr(chaos_checks, "CLOSED_S", 0.05)


def test_where_all_is_well_nothing_is_found() -> None:
    assert asyncio.run(OldRun().checked()) == set()


ONE_END = "an acknowledged prompt has one recorded end"
THE_ANSWER = "the log is the answer"
ANNOUNCED = "what was announced stays"
MESSAGES = "messages are the turns"
CLOSED = "closed is gone"


def no_record(run: OldRun) -> None:
    run.conversation.told[0].turn_id = "t0"
    run.conversation.told[0].outcome = None


def no_end(run: OldRun) -> None:
    del run.api.log[4]


def another_end(run: OldRun) -> None:
    run.api.log.insert(5, Heard(id=5, data=LOG[4].data))


def run_twice(run: OldRun) -> None:
    run.api.turns[1]["prompt"] += " Remember w1."
    run.api.messages[2]["content"] += " Remember w1."


def text_lost(run: OldRun) -> None:
    del run.api.log[3]


def text_not_withdrawn(run: OldRun) -> None:
    del run.api.log[2]


def another_answer(run: OldRun) -> None:
    run.api.log[4] = Heard(id=5, data={**LOG[4].data, "response": "abc"})


def announced_otherwise(run: OldRun) -> None:
    run.conversation.told[1].outcome = "completed"


def announced_more(run: OldRun) -> None:
    run.conversation.told[1].response = "cd"


def id_again(run: OldRun) -> None:
    run.conversation.witness.hear(5, "text of t0: something else")


def messages_swapped(run: OldRun) -> None:
    run.api.messages.reverse()


def message_lost(run: OldRun) -> None:
    run.api.messages.pop()


def message_twice(run: OldRun) -> None:
    run.api.messages.append(run.api.messages[-1])


def message_of_another_outcome(run: OldRun) -> None:
    run.api.messages[1]["outcome"] = "lost"


def transcript_changed(run: OldRun) -> None:
    run.conversation.read([("t1.user", "Remember something else.")])


def never_ends(run: OldRun) -> None:
    run.api.turns[1]["phase"] = "running"


def forgotten(run: OldRun) -> None:
    run.api.known = "Nothing."


def knows_another(run: OldRun) -> None:
    run.api.known = "Remember w1. Remember w3."


def told_by_another(run: OldRun) -> None:
    run.api.turns[1]["prompt"] += " Remember intruder."
    run.api.messages[2]["content"] += " Remember intruder."


def gone(run: OldRun) -> None:
    run.api.listed.clear()


def still_there(run: OldRun) -> None:
    run.conversation.closing = run.conversation.closed = True
    run.conversation.over = "its client closed it"


def not_closed(run: OldRun) -> None:
    run.api.deaf = True


def one_too_many(run: OldRun) -> None:
    run.api.listed.append("unknown")


def our_mistake(run: OldRun) -> None:
    run.api.broken.add("/session/s/query")


def process_left(run: OldRun) -> None:
    run.vitals = replace(NEW, clis=1)


@pytest.mark.parametrize(
    ("tamper", "promise"),
    [
        (no_record, ONE_END),
        (no_end, ONE_END),
        (another_end, ONE_END),
        (run_twice, "no prompt runs twice"),
        (text_lost, THE_ANSWER),
        (text_not_withdrawn, THE_ANSWER),
        (another_answer, THE_ANSWER),
        (announced_otherwise, ANNOUNCED),
        (announced_more, ANNOUNCED),
        (id_again, "no id means two things"),
        (messages_swapped, MESSAGES),
        (message_lost, MESSAGES),
        (message_twice, MESSAGES),
        (message_of_another_outcome, MESSAGES),
        (transcript_changed, "a transcript only grows"),
        (never_ends, "every turn ends"),
        (forgotten, "contexts are whole"),
        (knows_another, "contexts are apart"),
        (told_by_another, "others see nothing"),
        (gone, "a session stays until it is closed"),
        (still_there, CLOSED),
        (not_closed, CLOSED),
        (process_left, CLOSED),
        (one_too_many, "a key stands for one session"),
        (our_mistake, "nothing is answered 500"),
    ],
)
def test_a_promise_that_was_broken_is_named(tamper: Callable[[OldRun], None], promise: str) -> None:
    run = OldRun()
    tamper(run)
    assert promise in asyncio.run(run.checked())


def test_processes_that_stand_ready_are_nobodys() -> None:
    run = OldRun()
    run.vitals = replace(NEW, clis=3, pooled=3)
    assert asyncio.run(run.checked()) == set()


def test_processes_beyond_those_that_stand_ready_are_left_behind() -> None:
    run = OldRun()
    run.vitals = replace(NEW, clis=4, pooled=3)
    assert {CLOSED, "no process is left"} <= asyncio.run(run.checked())


def test_a_session_whose_start_was_not_answered_may_be_unknown() -> None:
    run = OldRun()
    one_too_many(run)
    run.record.unanswered_starts = 1
    assert asyncio.run(run.checked()) == set()


@pytest.mark.parametrize(
    ("most", "too_much", "promise"),
    [
        (
            replace(NEW, tasks=NEW.tasks + MORE_TASKS),
            replace(NEW, tasks=NEW.tasks + MORE_TASKS + 1),
            "no task leaks",
        ),
        (
            replace(NEW, descriptors=NEW.descriptors + MORE_DESCRIPTORS),
            replace(NEW, descriptors=NEW.descriptors + MORE_DESCRIPTORS + 1),
            "no descriptor leaks",
        ),
        (
            replace(NEW, uss=NEW.uss + MORE_MEMORY),
            replace(NEW, uss=NEW.uss + MORE_MEMORY + 1),
            "no memory leaks",
        ),
    ],
)
def test_what_belongs_to_nobody_is_a_leak(most: Vitals, too_much: Vitals, promise: str) -> None:
    run = OldRun()
    checks = Checks(run.api, run.look, run.record, [run.talker])
    checks.of_vitals(most, NEW, when="now", sessions=0)
    assert run.broken() == set()
    checks.of_vitals(too_much, NEW, when="now", sessions=0)
    assert run.broken() == {promise}


@pytest.mark.parametrize(
    ("after", "promise"),
    [
        (replace(NEW, tasks=NEW.tasks + ROUND), "no task leaks"),
        (replace(NEW, descriptors=NEW.descriptors + ROUND), "no descriptor leaks"),
        (replace(NEW, uss=NEW.uss + LEFT_MEMORY + 1), "no memory leaks"),
        (replace(NEW, clis=1), "no process is left"),
    ],
)
def test_what_a_session_leaves_is_a_leak(after: Vitals, promise: str) -> None:
    run = OldRun()
    checks = Checks(run.api, run.look, run.record, [run.talker])
    checks.of_what_is_left(NEW, NEW)
    assert run.broken() == set()
    checks.of_what_is_left(after, NEW)
    assert run.broken() == {promise}


def test_what_more_processes_take_that_stand_ready_is_no_leak() -> None:
    run = OldRun()
    checks = Checks(run.api, run.look, run.record, [run.talker])
    ready = replace(NEW, clis=2, pooled=2)
    after = replace(
        ready,
        tasks=NEW.tasks + 2 * PER_SESSION_TASKS,
        descriptors=NEW.descriptors + 2 * PER_CLI_DESCRIPTORS,
    )
    checks.of_what_is_left(after, NEW)
    checks.of_vitals(after, NEW, when="now", sessions=0)
    assert run.broken() == set()
    checks.of_what_is_left(replace(after, tasks=after.tasks + ROUND), NEW)
    assert run.broken() == {"no task leaks"}
