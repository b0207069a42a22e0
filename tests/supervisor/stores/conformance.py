"""What every adapter of the Store port must do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from session_supervisor.asks import (
    Allow,
    Answers,
    Choice,
    Decision,
    Deny,
    Question,
    Request,
    RequestKind,
    Resolution,
    Rule,
)
from session_supervisor.config import Retention
from session_supervisor.errors import (
    AlreadyExists,
    ClaimTaken,
    Fenced,
    SequenceConflict,
    UnknownSession,
)
from session_supervisor.events import Body, Discard, Done, Event, Result, Text, Thinking, ToolResult
from session_supervisor.lifecycle import State
from session_supervisor.results import Accounting, Origin, Outcome, Phase, TurnRecord, TurnResult
from session_supervisor.spec import Attachment, SessionKind, SessionSpec
from session_supervisor.stores.port import Store
from session_supervisor.stores.records import Batch, Claim, Found, SessionRecord

AT = datetime(2026, 1, 1, 12, 30, 15, 123457, tzinfo=UTC)


def run_of(first: int, count: int) -> list[Event]:
    return [
        Event(seq, "turn", AT, Text(content=f"piece {seq}")) for seq in range(first, first + count)
    ]


def session(session_id: str = "a", owner: str = "alice") -> SessionRecord:
    return SessionRecord(
        session_id=session_id,
        owner=owner,
        kind=SessionKind.CONVERSATION,
        spec=SessionSpec(model="sonnet", allowed_tools=("Read",)),
        cwd="/somewhere",
        private=True,
        created_at=AT,
        active_at=AT,
    )


def turn(turn_id: str, phase: Phase = Phase.QUEUED, text: str = "") -> TurnRecord:
    result = TurnResult(
        session_id="a",
        turn_id=turn_id,
        origin=Origin.USER,
        outcome=Outcome.COMPLETED,
        text=text,
        accounting=Accounting(usage={"in": [1, None]}, permission_denials=({"tool": "Bash"},)),
    )
    return TurnRecord(
        session_id="a",
        turn_id=turn_id,
        origin=Origin.USER,
        prompt="why?",
        phase=phase,
        text=text,
        accepted_at=AT,
        first_seq=1,
        result=result if phase is Phase.ENDED else None,
    )


def claim(key: str, *, owner: str = "alice", session_id: str = "a", hour: int = 0) -> Claim:
    at = AT + timedelta(hours=hour)
    return Claim(
        owner=owner,
        key=key,
        digest="d",
        session_id=session_id,
        turn_id="t",
        claimed_at=at,
        expires_at=at + timedelta(hours=24),
    )


def request(
    request_id: str, decision: Decision | None = None, resolution: Resolution | None = None
) -> Request:
    return Request(
        request_id=request_id,
        session_id="a",
        turn_id="t",
        kind=RequestKind.QUESTION,
        tool="AskUserQuestion",
        tool_use_id="u",
        input={"deep": [1.5, None, "\ud83d"]},
        suggestions=(Rule(tool="Bash", content="make"), Rule(tool="Read")),
        questions=(Question(question="why?", options=(Choice(label="so"),), multi_select=True),),
        asked_at=AT,
        expires_at=AT + timedelta(seconds=0.5),
        resolution=resolution,
        decision=decision,
        resolved_at=None if resolution is None else AT,
    )


async def add(
    store: Store, fence: int, expected_seq: int, events: Sequence[Event], *, to: str = "a"
) -> None:
    await store.commit(to, fence=fence, expected_seq=expected_seq, batch=Batch(events=events))


@pytest.mark.anyio
class StoreConformance:
    """Subclass it with a `make_store`."""

    async def make_store(self, retention: Retention | None = None) -> Store:
        raise NotImplementedError

    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        store = await self.make_store()
        yield store
        await store.aclose()

    # -- sessions that begin with something --------------------------------------------------

    async def test_a_session_is_created_with_all_that_it_begins_with(self, store: Store) -> None:
        begun = turn("t", Phase.RUNNING)
        first = Batch(events=run_of(1, 2), turns=[begun], claims=[claim("k")], reserve=10)
        lease = await store.create(session(), first=first)
        assert lease.last_seq == 2
        assert list(await store.read("a", after=0, limit=9)) == first.events
        assert await store.turn("a", "t") == begun
        assert await store.claim("alice", "k", now=AT) == claim("k")
        await add(store, lease.fence, 2, run_of(3, 1))
        await store.commit(
            "a", fence=lease.fence, expected_seq=3, batch=Batch(reserve=5, session=session())
        )
        (found,) = await store.take_over()
        assert isinstance(found, Found)
        assert (found.session, found.lease.last_seq) == (session(), 8)
        assert found.open_turns == [begun]

    async def test_what_was_reserved_with_a_session_is_given_to_nobody_else(
        self, store: Store
    ) -> None:
        await store.create(session(), first=Batch(events=run_of(1, 2), reserve=10))
        assert (await store.acquire("a")).last_seq == 12

    async def test_a_session_is_created_with_all_or_not_at_all(self, store: Store) -> None:
        await store.create(session("b"), first=Batch(claims=[claim("k", session_id="b")]))
        taken = Batch(events=run_of(1, 1), turns=[turn("t")], claims=[claim("k")])
        with pytest.raises(ClaimTaken):
            await store.create(session(), first=taken)
        for events in (run_of(2, 1), [*run_of(1, 1), *run_of(3, 1)]):
            with pytest.raises(SequenceConflict):
                await store.create(session(), first=Batch(events=events, turns=[turn("t")]))
        assert await store.turn("a", "t") is None
        with pytest.raises(UnknownSession):
            await store.acquire("a")
        lease = await store.create(session(), first=Batch(events=run_of(1, 1)))
        with pytest.raises(AlreadyExists):
            await store.create(session(), first=Batch(events=run_of(1, 3)))
        await add(store, lease.fence, 1, run_of(2, 1))
        assert list(await store.read("a", after=0, limit=9)) == run_of(1, 2)

    # -- logs ------------------------------------------------------------------------------

    async def test_what_was_committed_is_read_in_order(self, store: Store) -> None:
        lease = await store.create(session())
        assert lease.last_seq == 0
        await add(store, lease.fence, 0, run_of(1, 3))
        await add(store, lease.fence, 3, run_of(4, 2))
        assert list(await store.read("a", after=0, limit=100)) == run_of(1, 5)

    async def test_every_kind_of_event_comes_back_as_it_was(self, store: Store) -> None:
        bodies: tuple[Body, ...] = (
            Text(content="half of \ud83d"),
            Text(content=""),
            Thinking(content="hm\x00"),
            Text(content="\ude00 and more \U0001f600"),
            Discard(after=3),
            ToolResult(tool_use_id="x", content=[{"deep": [1.5, None, True]}], is_error=True),
            Result(num_turns=2, total_cost_usd=0.1, usage={"a": 1}, permission_denials=({},)),
            Done(
                outcome=Outcome.COMPLETED,
                response="é \ud83d",
                duration_ms=1,
                num_turns=2,
                total_cost_usd=0.1,
            ),
        )
        events = [
            Event(seq, None if seq == 5 else "turn", AT + timedelta(microseconds=seq), body)
            for seq, body in enumerate(bodies, start=1)
        ]
        lease = await store.create(session())
        await add(store, lease.fence, 0, events)
        assert list(await store.read("a", after=0, limit=100)) == events

    async def test_reading_begins_behind_a_number_and_keeps_a_limit(self, store: Store) -> None:
        lease = await store.create(session())
        await add(store, lease.fence, 0, run_of(1, 10))
        assert list(await store.read("a", after=4, limit=3)) == run_of(5, 3)
        assert list(await store.read("a", after=10, limit=3)) == []

    async def test_an_unknown_session_is_empty(self, store: Store) -> None:
        assert list(await store.read("nobody", after=0, limit=10)) == []
        assert list(await store.turns("nobody")) == []
        with pytest.raises(UnknownSession):
            await store.acquire("nobody")

    async def test_sessions_do_not_mix(self, store: Store) -> None:
        for name in ("a", "b"):
            lease = await store.create(session(name))
            await add(store, lease.fence, 0, run_of(1, 1), to=name)
        await store.erase("a")
        assert list(await store.read("a", after=0, limit=10)) == []
        assert list(await store.read("b", after=0, limit=10)) == run_of(1, 1)
        assert [one.session.session_id for one in await take_over(store)] == ["b"]

    async def test_an_older_fence_cannot_write(self, store: Store) -> None:
        old = await store.create(session())
        await add(store, old.fence, 0, run_of(1, 1))
        new = await store.acquire("a")
        assert new.fence > old.fence
        assert new.last_seq == 1
        with pytest.raises(Fenced):
            await add(store, old.fence, 1, run_of(2, 1))
        await add(store, new.fence, 1, run_of(2, 1))
        assert list(await store.read("a", after=0, limit=10)) == run_of(1, 2)

    async def test_an_erased_session_cannot_be_written(self, store: Store) -> None:
        lease = await store.create(session())
        await store.erase("a")
        with pytest.raises(Fenced):
            await add(store, lease.fence, 0, run_of(1, 1))

    @pytest.mark.parametrize(
        ("expected_seq", "first"), [(0, 1), (1, 2), (3, 4), (2, 4), (2, 2), (2, 1)]
    )
    async def test_a_log_is_only_extended_from_its_end(
        self, store: Store, expected_seq: int, first: int
    ) -> None:
        lease = await store.create(session())
        await add(store, lease.fence, 0, run_of(1, 2))
        with pytest.raises(SequenceConflict):
            await add(store, lease.fence, expected_seq, run_of(first, 2))
        assert list(await store.read("a", after=0, limit=10)) == run_of(1, 2)

    # -- reserved numbers --------------------------------------------------------------------

    async def test_reserved_numbers_are_never_given_again(self, store: Store) -> None:
        lease = await store.create(session())
        batch = Batch(events=run_of(1, 2), reserve=100)
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
        lease = await store.acquire("a")
        assert lease.last_seq == 102
        await add(store, lease.fence, 102, run_of(103, 2))
        assert list(await store.read("a", after=0, limit=10)) == run_of(1, 2)
        assert list(await store.read("a", after=2, limit=10)) == run_of(103, 2)
        assert list(await store.read("a", after=50, limit=10)) == run_of(103, 2)
        assert (await store.acquire("a")).last_seq == 104

    async def test_a_writer_may_use_what_it_reserved(self, store: Store) -> None:
        lease = await store.create(session())
        batch = Batch(events=run_of(1, 2), reserve=100)
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
        await add(store, lease.fence, 2, run_of(3, 2))
        assert list(await store.read("a", after=0, limit=10)) == run_of(1, 4)
        assert (await store.acquire("a")).last_seq == 4

    async def test_whoever_takes_over_goes_on_with_every_session(self, store: Store) -> None:
        first = await store.create(session("b"))
        await store.create(session("a"))
        batch = Batch(
            events=run_of(1, 1),
            turns=[turn("t1", Phase.ENDED), turn("t2", Phase.RUNNING), turn("t3")],
            reserve=9,
        )
        await store.commit("b", fence=first.fence, expected_seq=0, batch=batch)
        b, a = await take_over(store)
        assert b.session == session("b")
        assert b.lease.last_seq == 10
        assert list(b.open_turns) == [turn("t2", Phase.RUNNING), turn("t3")]
        assert a.session == session("a")
        assert a.lease.last_seq == 0
        assert list(a.open_turns) == []
        with pytest.raises(Fenced):
            await add(store, first.fence, 1, run_of(2, 1), to="b")
        await add(store, b.lease.fence, 10, run_of(11, 1), to="b")
        assert (await store.acquire("b")).last_seq == 11

    # -- sessions and turns ------------------------------------------------------------------

    async def test_sessions_come_back_in_order_as_they_are_now(self, store: Store) -> None:
        first, second = session("b"), session("a")
        lease = await store.create(first)
        await store.create(second)
        changed = replace(
            first,
            state=State.FAILED,
            agent_session_id="theirs",
            metadata={"k": "v"},
            total_cost_usd=0.25,
        )
        batch = Batch(session=changed)
        await store.commit("b", fence=lease.fence, expected_seq=0, batch=batch)
        assert [found.session for found in await take_over(store)] == [changed, second]

    async def test_a_session_is_created_once(self, store: Store) -> None:
        await store.create(session())
        with pytest.raises(AlreadyExists):
            await store.create(session())

    async def test_turns_keep_their_place_when_they_change(self, store: Store) -> None:
        lease = await store.create(session())
        batch = Batch(turns=[turn("t1"), turn("t2")])
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
        ended = turn("t1", Phase.ENDED, "because \ud83d")
        batch = Batch(turns=[ended, turn("t3")])
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
        assert list(await store.turns("a")) == [ended, turn("t2"), turn("t3")]
        assert await store.turn("a", "t1") == ended
        assert await store.turn("a", "t9") is None
        assert await store.turn("b", "t1") is None

    async def test_a_refused_commit_leaves_nothing(self, store: Store) -> None:
        lease = await store.create(session())
        with pytest.raises(SequenceConflict):
            await store.commit(
                "a",
                fence=lease.fence,
                expected_seq=7,
                batch=Batch(events=run_of(8, 1), turns=[turn("t")], claims=[claim("k")]),
            )
        assert list(await store.turns("a")) == []
        assert await store.claim("alice", "k", now=AT) is None

    async def test_what_goes_with_a_prompt_comes_back_with_it(self, store: Store) -> None:
        asked = replace(
            turn("t"),
            attachments=(Attachment(media_type="image/png", data="aGk=", name="hi"),),
            command=True,
            on_permission="ask",
            permission_timeout_s=2.5,
        )
        lease = await store.create(session())
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=Batch(turns=[asked]))
        assert await store.turn("a", "t") == asked
        (found,) = await store.take_over()
        assert isinstance(found, Found)
        assert list(found.open_turns) == [asked]

    # -- what needs a human --------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("decision", "resolution"),
        [
            (None, Resolution.LOST),
            (Allow(), Resolution.ALLOWED),
            (Allow(updated_input={}, remember=(Rule(tool="Bash"),)), Resolution.ALLOWED),
            (Deny(), Resolution.DENIED),
            (Deny(message="no \ud83d", end_turn=True), Resolution.DENIED),
            (Answers(answers={"why?": ("so", "because")}), Resolution.ANSWERED),
        ],
    )
    async def test_every_answer_comes_back_as_it_was(
        self, store: Store, decision: Decision | None, resolution: Resolution
    ) -> None:
        lease = await store.create(session())
        over = request("r", decision, resolution)
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=Batch(requests=[over]))
        assert await store.request("a", "r") == over
        assert list(await store.requests("a")) == [over]

    async def test_requests_keep_their_place_when_they_are_answered(self, store: Store) -> None:
        lease = await store.create(session())
        await store.create(session("b"))
        batch = Batch(requests=[request("r2"), request("r1")])
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
        over = request("r2", Allow(), Resolution.ALLOWED)
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=Batch(requests=[over]))
        assert list(await store.requests("a")) == [over, request("r1")]
        assert await store.request("a", "r9") is None
        assert await store.request("b", "r1") is None
        first, second = await store.take_over()
        assert isinstance(first, Found)
        assert isinstance(second, Found)
        assert list(first.open_requests) == [request("r1")]
        assert list(second.open_requests) == []
        await store.erase("a")
        assert list(await store.requests("a")) == []
        assert await store.request("a", "r1") is None

    async def test_a_refused_commit_leaves_no_request(self, store: Store) -> None:
        lease = await store.create(session())
        with pytest.raises(SequenceConflict):
            await store.commit(
                "a", fence=lease.fence, expected_seq=7, batch=Batch(requests=[request("r")])
            )
        assert list(await store.requests("a")) == []

    # -- claims --------------------------------------------------------------------------------

    async def test_a_key_stands_for_one_piece_of_work_of_one_owner(self, store: Store) -> None:
        await store.create(session("a"), first=Batch(claims=[claim("k")]))
        assert await store.claim("alice", "k", now=AT) == claim("k")
        assert await store.claim("bob", "k", now=AT) is None
        with pytest.raises(ClaimTaken):
            await store.create(session("b"), first=Batch(claims=[claim("k", session_id="b")]))
        assert [one.session.session_id for one in await take_over(store)] == ["a"]
        await store.create(
            session("b"), first=Batch(claims=[claim("k", owner="bob", session_id="b")])
        )

    async def test_a_key_outlives_its_session_until_it_expires(self, store: Store) -> None:
        lease = await store.create(
            session(), first=Batch(claims=[claim("k"), claim("other", hour=1)])
        )
        assert await store.claim("alice", "k", now=AT + timedelta(hours=24)) is None
        batch = Batch(claims=[claim("k", hour=24)])
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
        assert await store.claim("alice", "k", now=AT + timedelta(hours=25)) is not None
        await store.erase("a")
        assert await store.claim("alice", "other", now=AT) is not None, "a retry is not new work"
        await store.create(session("b"), first=Batch(claims=[claim("third", session_id="b")]))
        await store.erase("b", claims=True)
        assert await store.claim("alice", "third", now=AT) is None
        assert await store.claim("alice", "other", now=AT) is not None

    # -- retention -----------------------------------------------------------------------------

    async def test_retention_drops_the_oldest_events(self) -> None:
        store = await self.make_store(Retention(events=3))
        lease = await store.create(session())
        for seq in range(1, 11):
            body = Text(content=f"{seq}") if seq % 2 else Discard(after=0)
            await add(store, lease.fence, seq - 1, [Event(seq, "turn", AT, body)])
        kept = [event.seq for event in await store.read("a", after=0, limit=10)]
        assert kept == [8, 9, 10]
        await store.aclose()

    async def test_retention_drops_the_oldest_ended_turns(self) -> None:
        store = await self.make_store(Retention(turns=2))
        lease = await store.create(session())
        turns = [turn("open"), *(turn(f"t{n}", Phase.ENDED) for n in range(5))]
        for one in turns:
            await store.commit("a", fence=lease.fence, expected_seq=0, batch=Batch(turns=[one]))
        assert [one.turn_id for one in await store.turns("a")] == ["open", "t3", "t4"]
        await store.aclose()

    async def test_what_is_kept_by_size_is_prompts_and_answers_and_always_the_last(self) -> None:
        store = await self.make_store(Retention(turn_bytes=108))
        lease = await store.create(session())

        async def end(turn_id: str, length: int) -> None:
            one = turn(turn_id, Phase.ENDED, "y" * length)  # and a prompt of 4
            await store.commit("a", fence=lease.fence, expected_seq=0, batch=Batch(turns=[one]))

        async def kept() -> list[str]:
            return [one.turn_id for one in await store.turns("a")]

        await end("a", 50)
        await end("b", 50)
        assert await kept() == ["a", "b"], "just as much as there may be"
        await end("c", 1)
        assert await kept() == ["b", "c"]
        await end("d", 40)
        assert await kept() == ["b", "c", "d"], "what was dropped does not count any more"
        await end("e", 1000)
        assert await kept() == ["e"]
        await store.aclose()

    async def test_retention_drops_the_oldest_requests_that_are_over(self) -> None:
        store = await self.make_store(Retention(requests=2))
        lease = await store.create(session())
        over = [request(f"r{n}", Deny(), Resolution.DENIED) for n in range(5)]
        for one in [request("open"), *over]:
            await store.commit("a", fence=lease.fence, expected_seq=0, batch=Batch(requests=[one]))
        assert [one.request_id for one in await store.requests("a")] == ["open", "r3", "r4"]
        await store.aclose()

    async def test_what_was_asked_is_kept_by_its_size_and_always_the_last(self) -> None:
        store = await self.make_store(Retention(request_bytes=1_000))
        lease = await store.create(session())

        async def kept(one: Request) -> list[str]:
            await store.commit("a", fence=lease.fence, expected_seq=0, batch=Batch(requests=[one]))
            return [one.request_id for one in await store.requests("a")]

        small = request("a", None, Resolution.LOST)
        assert await kept(small) == ["a"]
        assert await kept(replace(small, request_id="b")) == ["a", "b"]
        assert await kept(replace(small, request_id="c", input={"x": "y" * 2_000})) == ["c"]
        edited = Allow(updated_input={"x": "y" * 2_000})
        assert await kept(replace(small, request_id="d", decision=edited)) == ["d"]
        await store.aclose()

    # -- what ended, and what is dropped of all --------------------------------------------------

    async def test_turns_are_told_in_the_order_of_their_ends(self, store: Store) -> None:
        lease = await store.create(session())
        waited, began, taken_out, running = (
            ended("waited", last_seq=9),
            ended("began", last_seq=7),
            replace(ended("taken-out", last_seq=8), started_at=None),
            replace(turn("running", Phase.RUNNING), started_at=AT),
        )
        batch = Batch(turns=[waited, began, taken_out, running])
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
        assert list(await store.told("a", after=0, limit=9)) == [began, waited]
        assert list(await store.told("a", after=0, limit=1)) == [began]
        assert list(await store.told("a", after=7, limit=9)) == [waited]
        assert list(await store.told("a", after=9, limit=9)) == []
        assert list(await store.told("b", after=0, limit=9)) == []

    async def test_what_is_old_goes_whoever_has_it_and_what_is_open_stays(self) -> None:
        store = await self.make_store(Retention(age_s=3600.0))
        for name in ("a", "b"):
            await talk(store, name, turns=3, hours=1)
        lease = await store.create(session("open"))
        opened = replace(turn("open", Phase.RUNNING), started_at=AT)
        batch = Batch(events=run_of(1, 9), turns=[opened])
        await store.commit("open", fence=lease.fence, expected_seq=0, batch=batch)
        await trim(store, hours=2.5)
        for name in ("a", "b"):
            assert [one.turn_id for one in await store.turns(name)] == ["t2"]
            assert [one.seq for one in await store.read(name, after=0, limit=99)] == [5, 6]
        assert [one.turn_id for one in await store.turns("open")] == ["open"]
        assert list(await store.read("open", after=0, limit=99)) == run_of(1, 9)
        await trim(store, hours=100)
        assert list(await store.turns("a")) == []
        assert [one.seq for one in await store.read("a", after=0, limit=99)] == [6], "the newest"
        assert len(await take_over(store)) == 3, "no session goes"
        await store.aclose()

    async def test_what_is_too_much_goes_from_who_was_used_least_recently(self) -> None:
        size = 200_000
        store = await self.make_store(Retention(state_bytes=11 * size // 2 + 30_000))
        for name, hour in (("old", 2), ("older", 1), ("new", 3)):
            await talk(store, name, turns=4, size=size // 2, active=hour)
        await trim(store, hours=9)
        kept = {
            name: [one.turn_id for one in await store.turns(name)]
            for name in ("old", "older", "new")
        }
        # An answer is kept twice: in its turn, and in its events.
        assert kept["new"] == ["t0", "t1", "t2", "t3"]
        assert kept["old"] == ["t3"]
        assert kept["older"] == []
        assert [one.seq for one in await store.read("older", after=0, limit=99)] == [8]
        assert [one.seq for one in await store.read("new", after=0, limit=99)] == list(range(1, 9))
        await store.aclose()

    async def test_what_a_turn_asked_goes_with_it(self) -> None:
        store = await self.make_store(Retention(age_s=3600.0))
        lease = await store.create(session())
        asked = [
            replace(request(name, None, Resolution.LOST), turn_id=turn_id)
            for name, turn_id in (("r1", "t1"), ("r2", "t2"), ("r3", None))
        ]
        turns = [ended(f"t{n}", last_seq=n, hours=n) for n in (1, 2)]
        batch = Batch(events=run_of(1, 3), turns=turns, requests=asked)
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
        await trim(store, hours=2.5)
        assert [one.turn_id for one in await store.turns("a")] == ["t2"]
        assert [one.request_id for one in await store.requests("a")] == ["r2", "r3"]
        await store.aclose()

    # -- what was spent --------------------------------------------------------------------

    async def test_what_sessions_cost_is_summed_up_for_their_owners(self, store: Store) -> None:
        assert dict(await store.spending()) == {}
        owners = {"a": "alice", "b": "alice", "c": "bob"}
        for name, owner in owners.items():
            record = session(name, owner)
            lease = await store.create(record)
            for n, usd in enumerate((0.1, 0.1, 0.3)):  # the second turn cost nothing
                batch = Batch(events=run_of(n + 1, 1), session=replace(record, total_cost_usd=usd))
                await store.commit(name, fence=lease.fence, expected_seq=n, batch=batch)
        assert dict(await store.spending()) == {"alice": 0.6, "bob": 0.3}

    async def test_what_was_spent_is_not_forgotten_with_its_session(self, store: Store) -> None:
        for cost in (0.25, 0.5):
            record = session()
            lease = await store.create(record)
            batch = Batch(session=replace(record, total_cost_usd=cost))
            await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
            await store.erase("a")
        assert dict(await store.spending()) == {"alice": 0.75}

    async def test_what_is_refused_was_not_spent(self, store: Store) -> None:
        lease = await store.create(session())
        batch = Batch(session=replace(session(), total_cost_usd=1.0))
        with pytest.raises(Fenced):
            await store.commit("a", fence=lease.fence + 1, expected_seq=0, batch=batch)
        with pytest.raises(SequenceConflict):
            await store.commit("a", fence=lease.fence, expected_seq=7, batch=batch)
        assert dict(await store.spending()) == {}

    async def test_what_a_session_had_cost_before_it_was_kept_was_not_spent_here(
        self, store: Store
    ) -> None:
        record = replace(session(), total_cost_usd=1.0)
        lease = await store.create(record)
        batch = Batch(session=replace(record, total_cost_usd=1.5))
        await store.commit("a", fence=lease.fence, expected_seq=0, batch=batch)
        assert dict(await store.spending()) == {"alice": 0.5}

    async def test_what_ended_just_now_stays_however_much_there_is(self) -> None:
        store = await self.make_store(Retention(state_bytes=1))
        await talk(store, "a", turns=2, hours=1)
        await trim(store, hours=1.01)
        assert [one.turn_id for one in await store.turns("a")] == ["t1"]
        assert [one.seq for one in await store.read("a", after=0, limit=99)] == [3, 4]
        await store.aclose()


def ended(turn_id: str, *, last_seq: int, hours: float = 0, size: int = 1) -> TurnRecord:
    at = AT + timedelta(hours=hours)
    return replace(
        turn(turn_id, Phase.ENDED, "y" * size), last_seq=last_seq, started_at=AT, ended_at=at
    )


async def talk(
    store: Store, name: str, *, turns: int, hours: float = 0, size: int = 1, active: float = 0
) -> None:
    """Keep a session with ended turns of two events each, some hours apart."""
    record = replace(session(name), active_at=AT + timedelta(hours=active))
    lease = await store.create(record)
    for n in range(turns):
        at = AT + timedelta(hours=n * hours)
        events = [
            Event(2 * n + 1, f"t{n}", at, Text(content="y" * size)),
            Event(2 * n + 2, f"t{n}", at, Discard(after=0)),
        ]
        one = ended(f"t{n}", last_seq=2 * n + 2, hours=n * hours, size=size)
        batch = Batch(events=events, turns=[one], session=record)
        await store.commit(name, fence=lease.fence, expected_seq=2 * n, batch=batch)


async def trim(store: Store, *, hours: float) -> None:
    for _ in range(1_000):
        if not await store.trim(now=AT + timedelta(hours=hours)):
            return
    raise AssertionError("it has no end")


async def take_over(store: Store) -> list[Found]:
    """Take over sessions of which none is damaged."""
    found = await store.take_over()
    sound = [one for one in found if isinstance(one, Found)]
    assert len(sound) == len(found)
    return sound
