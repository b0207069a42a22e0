"""An owner never has more than its quota, and gets back whatever it no longer has; virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from session_supervisor import (
    Outcome,
    Quota,
    RestartPolicy,
    SessionSpec,
    Supervisor,
    Usage,
)
from session_supervisor.agents.scripted import (
    BeginAlone,
    Crash,
    Hang,
    Pause,
    Say,
    ScriptedAgent,
    Start,
    by_prompt,
)
from session_supervisor.errors import (
    AgentMissing,
    Draining,
    InvalidSpec,
    MailboxFull,
    NoWorkspace,
    QuotaExceeded,
    Refused,
    SessionClosed,
)
from session_supervisor.workspaces import Workspaces
from tests.support.sessions import ImaginaryDirectories, supervising
from tests.support.virtual_time import virtual

NOTHING = Usage(sessions=0, turns=0)
ONE = Quota(sessions=1, turns=1)


def agent() -> ScriptedAgent:
    return ScriptedAgent(
        by_prompt(
            {
                "slow": [Say("one two", deltas=2, every_s=1.0)],
                "crash": [Say("o", confirmed=False), Crash()],
                "hang": [Hang()],
                "job": [BeginAlone(1.0, [Pause(5.0), Say("by itself")]), Say("started")],
            }
        )
    )


@virtual()
async def test_many_at_once_keep_within_the_quota() -> None:
    async with supervising(agent()) as supervisor:
        quota = Quota(sessions=3, turns=2)
        found = await asyncio.gather(
            *(supervisor.start(owner="a", quota=quota) for _ in range(10)), return_exceptions=True
        )
        sessions = [one for one in found if not isinstance(one, BaseException)]
        assert len(sessions) == 3
        assert sum(isinstance(one, QuotaExceeded) for one in found) == 7
        turns = await asyncio.gather(
            *(session.query("slow", quota=quota) for session in sessions),
            *(supervisor.query("slow", owner="a", quota=quota) for _ in range(10)),
            return_exceptions=True,
        )
        assert sum(not isinstance(one, BaseException) for one in turns) == 2
        assert sum(isinstance(one, QuotaExceeded) for one in turns) == 11
        assert supervisor.usage("a") == Usage(sessions=3, turns=2)
    assert supervisor.usage("a") == NOTHING


@virtual()
async def test_owners_do_not_count_for_each_other() -> None:
    async with supervising(agent()) as supervisor:
        for owner in ("a", "b"):
            session = await supervisor.start(owner=owner, quota=ONE)
            await session.query("slow", quota=ONE)
        assert supervisor.usage("a") == supervisor.usage("b") == Usage(sessions=1, turns=1)


@virtual()
async def test_a_queued_turn_counts_and_an_ended_one_does_not() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(owner="a")
        quota = Quota(turns=2)
        first = await session.query("slow", quota=quota)
        second = await session.query("slow", quota=quota)
        with pytest.raises(QuotaExceeded) as caught:
            await session.query("slow", quota=quota)
        assert "2 turns" in str(caught.value)
        await first.wait()
        # Whoever sees the end may ask at once.
        third = await session.query("slow", quota=quota)
        await second.wait()
        await third.wait()
        assert supervisor.usage("a") == Usage(sessions=1, turns=0)


@virtual()
async def test_a_one_off_is_a_turn_and_no_session() -> None:
    async with supervising(agent()) as supervisor:
        turn = await supervisor.query("slow", owner="a", quota=ONE)
        assert supervisor.usage("a") == Usage(sessions=0, turns=1)
        await turn.wait()
        assert supervisor.usage("a") == NOTHING


@virtual()
async def test_what_the_agent_begins_by_itself_does_not_count() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(owner="a")
        await (await session.query("job", quota=ONE)).wait()
        await asyncio.sleep(2)
        assert len(await session.turns()) == 2
        assert supervisor.usage("a").turns == 0


@virtual()
@pytest.mark.parametrize("prompt", ["slow", "crash", "hang"])
async def test_a_turn_is_given_back_however_it_ends(prompt: str) -> None:
    async with supervising(agent(), restarts=RestartPolicy(max_restarts=0)) as supervisor:
        session = await supervisor.start(owner="a")
        turn = await session.query(prompt, quota=ONE, timeout_s=30.0)
        assert supervisor.usage("a").turns == 1
        await turn.wait()
        assert supervisor.usage("a").turns == 0


@virtual()
async def test_interrupt_and_close_give_back_what_they_end() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(owner="a")
        for _ in range(3):
            await session.query("slow")
        assert supervisor.usage("a").turns == 3
        await session.interrupt(queued=True)
        assert supervisor.usage("a").turns == 0
        await session.query("slow")
        await session.query("slow")
        await supervisor.close(session.session_id)
        assert supervisor.usage("a") == NOTHING


@virtual()
async def test_closing_makes_room_for_another_at_once() -> None:
    async with supervising(agent()) as supervisor:
        for _ in range(3):
            session = await supervisor.start(owner="a", quota=ONE)
            await supervisor.close(session.session_id, owner="a")


@virtual()
async def test_a_session_that_failed_does_not_count() -> None:
    one = agent()
    async with supervising(one, restarts=RestartPolicy(max_restarts=0)) as supervisor:
        one.starts.append(Start(error=AgentMissing("there is no program")))
        session = await supervisor.start(owner="a", quota=ONE)
        turn = await session.query("slow", quota=ONE)
        assert (await turn.wait()).outcome is Outcome.FAILED
        assert supervisor.usage("a") == NOTHING
        await supervisor.start(owner="a", quota=ONE)


@virtual()
async def test_what_is_refused_is_given_back() -> None:
    async with supervising(agent(), max_queued=1) as supervisor:
        session = await supervisor.start(owner="a")
        first = await session.query("slow")
        await asyncio.sleep(0.5)
        await session.query("slow")
        with pytest.raises(MailboxFull):
            await session.query("slow")
        assert supervisor.usage("a").turns == 2
        with pytest.raises(InvalidSpec):
            await session.query("slow", turn_id=first.turn_id)
        with pytest.raises(InvalidSpec):
            await supervisor.query(" ", owner="a")
        assert supervisor.usage("a").turns == 2
        await session.close()
        with pytest.raises(SessionClosed):
            await session.query("slow")
        assert supervisor.usage("a") == NOTHING


@virtual()
async def test_a_caller_that_gives_up_waiting_leaves_its_turn_counted() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(owner="a")
        asking = asyncio.ensure_future(session.query("slow", quota=ONE))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert supervisor.usage("a").turns == 1
        with pytest.raises(QuotaExceeded):
            await session.query("slow", quota=ONE)
        await asyncio.sleep(10)
        assert supervisor.usage("a").turns == 0
        assert len(await session.turns()) == 1


@virtual()
async def test_draining_gives_everything_back() -> None:
    async with supervising(agent()) as supervisor:
        session = await supervisor.start(owner="a")
        await session.query("slow")
        await session.query("hang")
        await supervisor.query("slow", owner="a")
        await supervisor.drain(1.0)
        assert supervisor.usage("a") == NOTHING
        for refused in (supervisor.start(owner="a"), supervisor.query("slow", owner="a")):
            with pytest.raises(Draining):
                await refused
        with pytest.raises(Refused):
            await session.query("slow")
        assert supervisor.usage("a") == NOTHING


class Held(ImaginaryDirectories):
    """Directories that take their time, and then perhaps cannot be made."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self._fails = fails

    async def allot(self, session_id: str) -> Path:
        self.asked.set()
        await self.go_on.wait()
        if self._fails:
            raise NoWorkspace("the disk is full")
        return await super().allot(session_id)


@virtual()
@pytest.mark.parametrize("way", ["fails", "cancelled", "drained"])
async def test_what_did_not_come_to_be_is_given_back(way: str) -> None:
    directories = Held(fails=way == "fails")
    workspaces: Workspaces = directories
    async with Supervisor(agent(), workspaces=workspaces) as supervisor:
        starting: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(supervisor.start(SessionSpec(), owner="a", quota=ONE)),
            asyncio.ensure_future(supervisor.query("slow", owner="a", quota=ONE)),
        ]
        await directories.asked.wait()
        await asyncio.sleep(0)
        # Counted before there is anything, so that a second one at the same time is refused.
        assert supervisor.usage("a") == Usage(sessions=1, turns=1)
        if way == "cancelled":
            for one in starting:
                one.cancel()
        elif way == "drained":
            await supervisor.drain(0.0)
        directories.go_on.set()
        ends = await asyncio.gather(*starting, return_exceptions=True)
        assert all(isinstance(one, (Refused, asyncio.CancelledError)) for one in ends)
        assert supervisor.usage("a") == NOTHING


@virtual()
async def test_another_limit_holds_from_the_next_request_on() -> None:
    async with supervising(agent()) as supervisor:
        for _ in range(3):
            await supervisor.start(owner="a", quota=Quota(sessions=3))
        with pytest.raises(QuotaExceeded):
            await supervisor.start(owner="a", quota=Quota(sessions=1))
        await supervisor.start(owner="a", quota=Quota(sessions=4))
        await supervisor.start(owner="a")
        with pytest.raises(QuotaExceeded):
            await supervisor.start(owner="b", quota=Quota(sessions=0))
