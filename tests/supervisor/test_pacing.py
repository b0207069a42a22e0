"""While the upstream takes no requests, nobody is let in vain; on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_supervisor import Session, Usage
from session_supervisor.agents.port import UpstreamLimit
from session_supervisor.agents.scripted import Conversation, Fail, Pause, Say, ScriptedAgent, Step
from session_supervisor.clock import Clock
from session_supervisor.errors import Failure, FailureCode, TurnFailed, UpstreamLimited
from session_supervisor.events import RateLimit
from session_supervisor.pacing import LONGEST_S, UNKNOWN_S, Pacing
from session_supervisor.spec import Prompt
from tests.support.sessions import supervising
from tests.support.virtual_time import virtual

LIMITED = Failure(code=FailureCode.RATE_LIMITED, message="Too much.", retryable=True)


def of_day() -> datetime:
    return datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=asyncio.get_running_loop().time())


def clock() -> Clock:
    return Clock(now=of_day)


def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    del conversation
    what, _, seconds = prompt.text.partition(" ")
    match what:
        case "limit":
            resets_at = of_day() + timedelta(seconds=float(seconds)) if seconds else None
            yield UpstreamLimit(rejected=True, resets_at=resets_at, kind="five_hour")
            yield Fail(LIMITED)
        case "warn":
            yield UpstreamLimit(rejected=False, resets_at=of_day() + timedelta(seconds=100.0))
        case "wait":
            yield Pause(float(seconds))
        case _:
            pass
    yield Say("here")


async def limited(session: Session, prompt: str = "limit 100") -> None:
    with pytest.raises(TurnFailed):
        await (await session.query(prompt)).result()


@virtual()
async def test_new_turns_are_refused_until_the_limit_is_counted_anew() -> None:
    async with supervising(ScriptedAgent(script), clock=clock()) as supervisor:
        session = await supervisor.start(owner="alice")
        other = await supervisor.start(owner="alice")
        await limited(session)
        for wait_s in (100.0, 60.0, 1.0):
            await asyncio.sleep(100.0 - wait_s - asyncio.get_running_loop().time())
            for one in (session, other):
                with pytest.raises(UpstreamLimited) as refused:
                    await one.query("a")
                assert refused.value.retry_after == pytest.approx(wait_s)
            with pytest.raises(UpstreamLimited):
                await supervisor.query("a", owner="alice")
            with pytest.raises(UpstreamLimited):
                await session.compact()
        assert supervisor.usage("alice") == Usage(sessions=2, turns=0)
        await asyncio.sleep(1.0)
        await (await session.query("a")).result()
        await (await supervisor.query("a", owner="alice")).result()


@virtual()
async def test_it_is_told_and_others_are_not_slowed() -> None:
    async with supervising(ScriptedAgent(script), clock=clock()) as supervisor:
        session = await supervisor.start(owner="alice")
        await limited(session)
        (told,) = [
            event.body
            for event in await session.events().read()
            if isinstance(event.body, RateLimit)
        ]
        assert told.rejected
        assert told.kind == "five_hour"
        await (await supervisor.query("a", owner="bob")).result()


@virtual()
async def test_a_turn_that_succeeds_shows_that_the_upstream_takes_requests_again() -> None:
    async with supervising(ScriptedAgent(script), clock=clock()) as supervisor:
        session = await supervisor.start(owner="alice")
        other = await supervisor.start(owner="alice")
        running = await other.query("wait 30")
        await limited(session)
        with pytest.raises(UpstreamLimited):
            await session.query("a")
        await running.result()
        await (await session.query("a")).result()


@virtual()
async def test_a_turn_that_fails_or_is_interrupted_shows_nothing() -> None:
    async with supervising(ScriptedAgent(script), clock=clock()) as supervisor:
        session = await supervisor.start(owner="alice")
        other = await supervisor.start(owner="alice")
        running = await other.query("wait 30")
        await asyncio.sleep(1.0)
        await limited(session)
        await other.interrupt()
        await running.wait()
        with pytest.raises(UpstreamLimited):
            await session.query("a")


@virtual()
async def test_a_warning_slows_nothing() -> None:
    async with supervising(ScriptedAgent(script), clock=clock()) as supervisor:
        session = await supervisor.start(owner="alice")
        await (await session.query("warn")).result()
        await (await session.query("a")).result()


@virtual()
async def test_where_nobody_says_how_long_it_is_a_while() -> None:
    async with supervising(ScriptedAgent(script), clock=clock()) as supervisor:
        session = await supervisor.start(owner="alice")
        await limited(session, "limit")
        with pytest.raises(UpstreamLimited) as refused:
            await session.query("a")
        assert refused.value.retry_after == pytest.approx(UNKNOWN_S)
        await asyncio.sleep(UNKNOWN_S)
        await session.query("a")


@virtual()
async def test_what_was_accepted_before_runs() -> None:
    async with supervising(ScriptedAgent(script), clock=clock()) as supervisor:
        session = await supervisor.start(owner="alice")
        first = await session.query("limit 100")
        second = await session.query("a")
        with pytest.raises(TurnFailed):
            await first.result()
        assert (await second.result()).text == "here"
        await session.query("a")


LIMITS = st.lists(
    st.tuples(
        st.sampled_from(("rejected", "warned", "succeeded")),
        st.sampled_from(("five_hour", "seven_day", None)),
        st.one_of(st.none(), st.floats(-1e3, 1e7)),
        st.floats(0.0, 1e4),
    ),
    max_size=12,
)


@given(heard=LIMITS)
def test_the_time_to_wait_is_that_of_the_longest_limit_heard_since_a_success(
    heard: list[tuple[str, str | None, float | None, float]],
) -> None:
    at = 0.0
    start = datetime(2000, 1, 1, tzinfo=UTC)
    pacing = Pacing(Clock(monotonic=lambda: at, now=lambda: start + timedelta(seconds=at)))
    until: dict[str | None, float] = {}
    for what, kind, left_s, after_s in heard:
        if what == "succeeded":
            pacing.succeeded("alice")
            until.clear()
        else:
            resets_at = None if left_s is None else start + timedelta(seconds=at + left_s)
            rejected = what == "rejected"
            pacing.hear("alice", UpstreamLimit(rejected=rejected, resets_at=resets_at, kind=kind))
            if rejected:
                wait_s = UNKNOWN_S if left_s is None else min(left_s, LONGEST_S)
                until[kind] = at + wait_s
        at += after_s
        left = max(until.values(), default=0.0) - at
        pacing.check("bob")
        if left > 1e-3:
            with pytest.raises(UpstreamLimited) as refused:
                pacing.check("alice")
            assert refused.value.retry_after == pytest.approx(left, abs=1e-3)
        elif left < -1e-3:
            pacing.check("alice")
            until.clear()
