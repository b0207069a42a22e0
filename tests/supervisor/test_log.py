"""The log: what readers see, when, and what the store has by then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_supervisor import log as log_room
from session_supervisor.clock import Clock
from session_supervisor.config import Retention
from session_supervisor.errors import Fenced
from session_supervisor.events import Event, Gap, Text
from session_supervisor.log import EventLog
from session_supervisor.stores.memory import MemoryStore
from session_supervisor.stores.records import Batch
from tests.supervisor.stores.conformance import session
from tests.support.virtual_time import run, virtual


async def log_on(store: MemoryStore, *, reserved: int = 0) -> EventLog:
    """Return a log in whose first events `reserved` more may be shown before they are stored."""
    lease = await store.create(session("s"))
    log = EventLog("s", store, lease=lease, clock=Clock())
    if reserved:
        await log.commit(session=session("s"), reserve=reserved)
    return log


async def stored(store: MemoryStore) -> Sequence[Event]:
    return await store.read("s", after=0, limit=100_000)


@virtual()
async def test_what_is_published_is_seen_at_once_and_stored_with_the_next_commit() -> None:
    store = MemoryStore()
    log = await log_on(store, reserved=1)
    log.publish(Text(content="a"), "t")
    (event,) = await log.cursor().read_nowait()
    assert await stored(store) == ()
    (second,) = await log.commit((Text(content="b"), "t"))
    assert list(await stored(store)) == [event, second]
    assert [event.seq, second.seq] == [1, 2]


@virtual()
async def test_what_cannot_be_stored_is_seen_by_nobody() -> None:
    store = MemoryStore()
    log = await log_on(store)
    await store.acquire("s")
    with pytest.raises(Fenced):
        await log.commit((Text(content="x"), "t"))
    assert log.last_seq == 0
    assert await log.cursor().read_nowait() == ()


class SlowStore(MemoryStore):
    """A store that takes a second."""

    async def commit(self, session_id: str, *, fence: int, expected_seq: int, batch: Batch) -> None:
        await asyncio.sleep(1)
        await super().commit(session_id, fence=fence, expected_seq=expected_seq, batch=batch)


@virtual()
async def test_what_is_committed_is_seen_only_after_it_was_stored() -> None:
    log = await log_on(SlowStore())
    reader = asyncio.create_task(log.cursor().read())
    await log.commit((Text(content="x"), "t"))
    assert asyncio.get_running_loop().time() == 1.0
    assert [event.seq for event in await reader] == [1]


@virtual()
async def test_a_reader_waits_for_more_and_ends_with_the_log() -> None:
    log = await log_on(MemoryStore(), reserved=9)
    seen: list[int] = []

    async def read() -> None:
        seen.extend([event.seq async for event in log.cursor()])

    reader = asyncio.create_task(read())
    for _ in range(3):
        await asyncio.sleep(1)
        log.publish(Text(content="x"))
        log.tell()
    log.close()
    await reader
    assert seen == [1, 2, 3]
    assert [event.seq async for event in log.cursor(2)] == [3]


@virtual()
async def test_all_who_wait_hear_of_the_same_event() -> None:
    log = await log_on(MemoryStore())
    for _ in range(2):
        readers = [log.cursor(log.last_seq) for _ in range(3)]
        reading = [asyncio.get_running_loop().create_task(reader.read()) for reader in readers]
        await asyncio.sleep(1)
        (event,) = await log.commit((Text(content="x"), "t"))
        assert [list(events) for events in await asyncio.gather(*reading)] == [[event]] * 3


@virtual()
async def test_a_reader_that_stopped_waiting_leaves_nothing() -> None:
    log = await log_on(MemoryStore(), reserved=9)
    cursor = log.cursor()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await cursor.read()
    log.publish(Text(content="x"))
    assert [event.seq for event in await cursor.read()] == [1]


@virtual()
async def test_readers_are_told_once_of_what_was_said_together() -> None:
    log = await log_on(MemoryStore(), reserved=9)
    cursor, heard = log.cursor(), list[int]()

    def hear() -> None:
        batch = cursor.at_hand()
        heard.append(len(batch))
        cursor.skip(batch)

    cursor.notify(hear)
    for _ in range(3):
        log.publish(Text(content="x"))
    assert heard == []
    log.tell()
    assert (heard, cursor.after, cursor.at_hand()) == ([3], 3, ())
    log.publish(Text(content="x"))
    log.tell()
    assert heard == [3], "it has not asked for more"
    cursor.notify(hear)
    cursor.leave(hear)
    await log.commit((Text(content="x"), "t"))
    assert heard == [3]


@virtual()
async def test_what_the_store_must_be_asked_for_is_not_at_hand() -> None:
    log = await log_on(MemoryStore())
    for _ in range(3):
        await log.commit((Text(content="x"), "t"))
    log.forget()
    cursor = log.cursor()
    assert cursor.at_hand() == ()
    await log.commit((Text(content="x"), "t"))
    assert cursor.at_hand() == (), "there are some in between"
    assert len(await cursor.read()) == 4


@virtual()
async def test_dropped_events_are_announced_to_whoever_missed_them() -> None:
    store = MemoryStore(Retention(events=10))
    log = await log_on(store, reserved=9_999)
    for _ in range(log_room.RECENT_EVENTS + 100):
        log.publish(Text(content="x"))
    await log.commit()
    first, *rest = await log.cursor(5).read(limit=3)
    assert isinstance(first.body, Gap)
    assert first.body.after == 5
    assert first.body.before == rest[0].seq
    assert [event.seq for event in rest] == list(range(rest[0].seq, rest[0].seq + 3))


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("publish"), st.integers(1, 40)),
            st.tuples(st.just("commit"), st.integers(0, 5)),
            st.tuples(st.just("read"), st.integers(1, 50)),
        ),
        max_size=40,
    ),
    st.integers(1, 30),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_a_reader_gets_every_event_once_in_order_or_is_told_of_the_gap(
    steps: list[tuple[str, int]], retained: int, after: int, reserve: int
) -> None:
    async def main() -> None:
        log = await log_on(MemoryStore(Retention(events=retained)), reserved=reserve)
        cursor = log.cursor(after)
        expected = after + 1
        got: list[Event] = []
        for step, count in [*steps, ("commit", 1), ("read", 10_000)]:
            if step == "publish":
                for _ in range(count):
                    log.publish(Text(content="x" * 3000))
            elif step == "commit":
                await log.commit(*[(Text(content="y"), "t")] * count, reserve=reserve)
            else:
                got.extend(await cursor.read_nowait(count))
        for event in got:
            if isinstance(event.body, Gap):
                assert event.body.after == expected - 1
                assert event.body.before > expected
                expected = event.body.before
            else:
                assert event.seq == expected
                expected += 1
        assert cursor.after == max(after, log.last_seq) or len(got) >= 10_000

    run(main)


@virtual()
async def test_no_number_is_shown_that_another_event_could_have() -> None:
    store = MemoryStore()
    log = await log_on(store, reserved=2)
    for text in "abc":
        log.publish(Text(content=text), "t")
    assert [event.seq for event in await log.cursor().read_nowait()] == [1, 2]
    assert log.unseen
    assert log.unstored == 3
    # The program is killed here, and another goes on with the log.
    after = EventLog("s", store, lease=await store.acquire("s"), clock=Clock())
    await after.commit((Text(content="x"), "t"))
    gap, event = await after.cursor(1).read_nowait()
    assert isinstance(gap.body, Gap)
    assert (gap.body.after, gap.body.before) == (1, 3)
    assert event.seq == 3


@virtual()
async def test_what_could_not_be_shown_comes_with_the_next_commit_in_order() -> None:
    log = await log_on(MemoryStore())
    log.publish(Text(content="a"), "t")
    assert log.last_seq == 0
    assert log.next_seq == 2
    (second,) = await log.commit((Text(content="b"), "t"))
    assert second.seq == 2
    bodies = [event.body for event in await log.cursor().read_nowait()]
    assert bodies == [Text(content="a"), Text(content="b")]


@virtual()
async def test_a_log_that_keeps_nothing_at_hand_is_read_from_the_store() -> None:
    log = await log_on(MemoryStore(), reserved=5)
    log.publish(Text(content="a"), "t")
    log.forget()
    assert len(await log.cursor().read_nowait()) == 1, "what is not stored must stay"
    await log.commit()
    log.forget()
    cursor = log.cursor()
    assert [event.seq for event in await cursor.read_nowait()] == [1]
    await log.commit((Text(content="b"), "t"))
    assert [event.seq for event in await cursor.read()] == [2]
