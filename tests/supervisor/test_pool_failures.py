"""What goes wrong with processes that stand ready, and what it costs who would have had them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from session_supervisor import Outcome, SessionSpec
from session_supervisor.agents.port import Fingerprint, Member, Tree
from session_supervisor.agents.scripted import Start
from session_supervisor.agents.scripted.process import ScriptedProcess
from session_supervisor.errors import AgentError, CannotRenew
from session_supervisor.seats import COME_UP_S, RETURN_S
from session_supervisor.stock import AGAIN_S
from tests.supervisor.test_pool import (
    START_S,
    agent_of,
    ask,
    pool_of,
    pooling,
    renewing_takes,
)
from tests.support.virtual_time import virtual

MIB = 2**20


def leaving(monkeypatch: pytest.MonkeyPatch, *trees: Tree) -> None:
    """Have processes find these one after another, and from then on the last."""
    rest = list(trees)

    async def leftovers(_: ScriptedProcess) -> Tree:
        return rest.pop(0) if len(rest) > 1 else rest[0]

    monkeypatch.setattr(ScriptedProcess, "leftovers", leftovers)
    monkeypatch.setattr(ScriptedProcess, "pid", 1)


def tree(mib: int, *names: str) -> Tree:
    members = [Member(pid=1, parent=0, name="cli", pss_bytes=mib * MIB)]
    members += [Member(pid=2, parent=1, name=name, pss_bytes=0) for name in names]
    return Tree(members=tuple(members))


@virtual()
async def test_one_that_has_grown_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    leaving(monkeypatch, tree(100), tree(140), tree(150), tree(151))
    async with pooling(agent_of(), max_growth_bytes=50 * MIB) as supervisor:
        for _ in range(2):
            await ask(supervisor)
            await asyncio.sleep(2)
        assert pool_of(supervisor).retired == {}
        await ask(supervisor)
        await asyncio.sleep(0.1)
        assert pool_of(supervisor).retired == {"memory": 1}


@virtual()
@pytest.mark.parametrize("found", [tree(100, "sleep"), Tree()], ids=["a child", "not even itself"])
async def test_one_that_is_not_alone_is_stopped(
    monkeypatch: pytest.MonkeyPatch, found: Tree
) -> None:
    leaving(monkeypatch, tree(100), found)
    async with pooling(agent_of()) as supervisor:
        await ask(supervisor)
        await asyncio.sleep(0.1)
        assert pool_of(supervisor).retired == {"left running": 1}
        assert pool_of(supervisor).recycled == 0


@virtual()
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("a mistake"), "failed"),
        (OSError("no descriptor"), "failed"),
        (CannotRenew("model or mode"), "model or mode"),
    ],
)
async def test_one_that_cannot_be_renewed_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
) -> None:
    async def renew(_: ScriptedProcess) -> None:
        raise error

    agent = agent_of()
    monkeypatch.setattr(ScriptedProcess, "renew", renew)
    async with pooling(agent) as supervisor:
        result, _ = await ask(supervisor)
        assert result.outcome is Outcome.COMPLETED
        await asyncio.sleep(0.1)
        assert pool_of(supervisor).retired == {reason: 1}
        assert agent.processes[0].exit is not None
        monkeypatch.undo()
        await asyncio.sleep(2)
        _, took = await ask(supervisor)
        assert took == 0.0, "another one has come up in its place"
    assert ("could not be taken back" in caplog.text) == (reason == "failed")


@virtual()
async def test_one_that_hangs_as_it_is_renewed_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooling(agent_of(), renew_s=3.0) as supervisor:
        original = ScriptedProcess.renew

        async def renew(process: ScriptedProcess) -> None:
            process.freeze()
            await original(process)

        monkeypatch.setattr(ScriptedProcess, "renew", renew)
        await ask(supervisor)
        await asyncio.sleep(4)
        assert pool_of(supervisor).retired == {"too slow": 1}


@virtual()
async def test_one_that_is_renewed_gives_way_to_who_is_of_another_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewing = asyncio.Event()

    async def renew(_: ScriptedProcess) -> None:
        renewing.set()
        await asyncio.sleep(100)

    monkeypatch.setattr(ScriptedProcess, "renew", renew)
    async with pooling(agent_of(), max_live=1, renew_s=50.0) as supervisor:
        await ask(supervisor, owner="ann")
        await renewing.wait()
        _, took = await ask(supervisor, owner="ben")
        assert took == START_S, "it waited for nothing but its own start"
        assert pool_of(supervisor).retired["gave way"] == 1


@virtual()
async def test_who_is_of_the_same_kind_waits_for_one_that_is_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewing_takes(monkeypatch, 0.05)
    agent = agent_of()
    async with pooling(agent, max_live=1) as supervisor:
        await ask(supervisor)
        _, took = await ask(supervisor)
        assert took == pytest.approx(0.05)
        assert agent.spawned == 1


@virtual()
@pytest.mark.parametrize("renewal_s", [0.1, 3.0])
async def test_who_comes_as_one_is_renewed_waits_for_that_but_not_long(
    monkeypatch: pytest.MonkeyPatch, renewal_s: float
) -> None:
    renewing_takes(monkeypatch, renewal_s)
    agent = agent_of()
    async with pooling(agent) as supervisor:
        await ask(supervisor)
        _, took = await ask(supervisor)
        assert took == pytest.approx(0.1 if renewal_s < 1 else RETURN_S + START_S)
        assert agent.spawned == 2, "who asks again at once may do so once more"


@virtual()
@pytest.mark.parametrize("how", ["freeze", "crash"])
async def test_one_that_hangs_or_died_is_found_where_it_is_handed_out(how: str) -> None:
    agent = agent_of()
    async with pooling(agent, probe_s=60.0, answer_s=2.0) as supervisor:
        await ask(supervisor)
        await asyncio.sleep(5)
        getattr(agent.processes[0], how)()
        result, took = await ask(supervisor)
        assert result.outcome is Outcome.COMPLETED
        assert took == pytest.approx(START_S + (2.0 if how == "freeze" else 0.0), abs=0.1)
        pool = pool_of(supervisor)
        assert pool.retired == {"health" if how == "freeze" else "died": 1}
        assert (pool.hits, pool.misses) == (0, 2), "a start is a miss, whatever stood ready"


@virtual()
@pytest.mark.parametrize("after_s", [0.0, 1.0, 2.0, 2.3, 2.6])
async def test_who_gives_up_as_one_is_handed_out_leaves_nothing(after_s: float) -> None:
    agent = agent_of(stop_s=0.5)
    async with pooling(agent, max_live=1, probe_s=60.0, answer_s=2.0) as supervisor:
        await ask(supervisor)
        await asyncio.sleep(5)
        agent.processes[0].freeze()
        turn = await supervisor.query("hello")
        await asyncio.sleep(after_s)
        await supervisor.close(turn.session_id)
        _, took = await ask(supervisor)
        assert took < 6.0
        assert agent.most_live == 1, "its slot was free before it was gone"


@virtual()
async def test_a_start_ahead_of_time_that_hangs_keeps_nobody_for_good() -> None:
    agent = agent_of()
    async with pooling(agent, recycle=False) as supervisor:
        agent.starts += [Start(delay_s=START_S), Start(delay_s=START_S), Start(hangs=True)]
        for _ in range(2):
            await ask(supervisor)
        await asyncio.sleep(1)
        assert pool_of(supervisor).starting == 1
        result, took = await ask(supervisor)
        assert result.outcome is Outcome.COMPLETED
        assert took == pytest.approx(COME_UP_S + START_S)
        assert pool_of(supervisor).retired["gave way"] == 1
        await asyncio.sleep(100)
        assert pool_of(supervisor).ready, "and the pool goes on"


@virtual()
async def test_nothing_stands_ready_for_an_owner_who_is_gone() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        await ask(supervisor, owner="ann")
        await ask(supervisor, owner="ben")
        await asyncio.sleep(2)
        running = await supervisor.query("slow", owner="ann")
        other = asyncio.create_task(ask(supervisor, owner="ann"))
        await asyncio.sleep(1)
        await other
        await asyncio.sleep(1)
        supervisor.forget_owner("ann")
        assert (await running.result()).outcome is Outcome.COMPLETED
        await asyncio.sleep(2)
        live = [one.fingerprint.owner for one in agent.processes if one.exit is None]
        assert live == ["ben"]
        assert pool_of(supervisor).retired == {"owner": 1, "surplus": 1}
        await ask(supervisor, owner="ann")
        await asyncio.sleep(1)
        assert pool_of(supervisor).ready == 2, "who asks again is as good as new"


@virtual()
async def test_a_drain_in_the_middle_of_a_renewal_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewing = asyncio.Event()
    renewing_takes(monkeypatch, 1.0, begun=renewing)
    agent = agent_of()
    async with pooling(agent) as supervisor:
        await ask(supervisor)
        await renewing.wait()
        await supervisor.drain(10.0)
        assert agent.live == 0
        assert pool_of(supervisor).retired == {"closed": 1}


@virtual()
async def test_a_drain_as_one_comes_up_leaves_nothing() -> None:
    agent = agent_of()
    async with pooling(agent, recycle=False) as supervisor:
        for _ in range(2):
            await ask(supervisor)
        await asyncio.sleep(0.2)
        assert pool_of(supervisor).starting == 1
        await supervisor.drain(10.0)
        assert agent.live == 0


@virtual()
async def test_each_mode_and_model_is_told_and_nothing_else_is_shared() -> None:
    agent = agent_of()
    async with pooling(agent) as supervisor:
        await ask(supervisor)
        for spec in (
            SessionSpec(model="m"),
            SessionSpec(permission_mode="acceptEdits"),
            SessionSpec(permission_mode="acceptEdits", model="n"),
            SessionSpec(title="t", metadata={"a": "b"}, idle_timeout_s=1.0, expiry_s=2.0),
        ):
            await asyncio.sleep(1)
            await ask(supervisor, spec=spec)
        assert agent.spawned == 1
        different: list[dict[str, Any]] = [
            {"allowed_tools": ("Read",)},
            {"permission_mode": "bypassPermissions"},
            {"permission_mode": "plan"},
            {"model": "unheard-of"},
            {"system_prompt": "s"},
            {"max_turns": 3},
            {"max_budget_usd": 1.0},
            {"output_schema": {"type": "object"}},
            {"mcp_servers": ("words",)},
            {"thinking": True},
            {"thinking": False},
            {"on_permission": "ask"},
        ]
        for given in different:
            await asyncio.sleep(1)
            before = agent.spawned
            turn = await supervisor.query("{}", SessionSpec(**given))
            _ = await turn.wait()
            assert agent.spawned > before, given


async def doubtful(_: ScriptedProcess) -> None:
    """Have a process stopped that its one-off has left already."""
    raise CannotRenew("not reset")


@virtual()
async def test_what_cannot_be_erased_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_of()
    forget, refused = agent.forget, 0

    async def refusing(fingerprint: Fingerprint, conversation: str) -> None:
        nonlocal refused
        if refused < 2:
            refused += 1
            raise AgentError("The disk does not do as it is told.")
        await forget(fingerprint, conversation)
        erased.append(conversation)

    erased: list[str] = []
    monkeypatch.setattr(agent, "forget", refusing)
    monkeypatch.setattr(ScriptedProcess, "renew", doubtful)
    async with pooling(agent) as supervisor:
        await ask(supervisor)
        await asyncio.sleep(1.5 * AGAIN_S)
        assert (refused, erased) == (2, [])
        await asyncio.sleep(AGAIN_S)
        assert len(erased) == 1


@virtual()
async def test_who_is_closed_tries_to_erase_once_more_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = agent_of()
    tried: list[str] = []

    async def refusing(_: Fingerprint, conversation: str) -> None:
        tried.append(conversation)
        raise AgentError("The disk does not do as it is told.")

    monkeypatch.setattr(agent, "forget", refusing)
    monkeypatch.setattr(ScriptedProcess, "renew", doubtful)
    async with pooling(agent) as supervisor:
        await ask(supervisor)
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < AGAIN_S
    assert len(tried) == 2
