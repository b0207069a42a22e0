"""Forks, budgets and summing up with the real CLI, under a supervisor."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from session_http.offline import OfflineModel
from session_supervisor import Outcome, Quota, Session, SessionSpec, Supervisor, SupervisorConfig
from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.errors import BudgetExceeded, FailureCode
from session_supervisor.results import TurnResult
from tests.e2e.test_claude_agent import bash

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    config = SupervisorConfig(workspace=tmp_path / "sessions")
    async with OfflineModel() as model:
        agent = ClaudeAgent(env=model.environment(), config_dir=tmp_path / "config")
        async with Supervisor(agent, config=config) as supervisor:
            yield supervisor


async def asked(session: Session, prompt: str) -> TurnResult:
    return await (await session.query(prompt)).result()


async def test_a_fork_diverges_and_costs_its_own(supervisor: Supervisor) -> None:
    original = await supervisor.start()
    first = await asked(original, "The first word is marzipan.")
    second = await asked(original, "The second word is trombone.")
    whole = await supervisor.fork(original.session_id)
    early = await supervisor.fork(original.session_id, turn_id=first.turn_id)
    told = await asked(whole, "The third word is nougat.")
    assert "marzipan" in told.text
    assert "trombone" in told.text
    # What was said before is in its context, and was paid for by the original.
    cost = second.accounting.total_cost_usd
    assert 0.0 < told.accounting.total_cost_usd < 2 * cost
    told = await asked(early, "And now?")
    assert "marzipan" in told.text
    assert "trombone" not in told.text
    assert 0.0 < told.accounting.total_cost_usd < 2 * cost
    told = await asked(original, "And here?")
    assert "trombone" in told.text
    assert "nougat" not in told.text


async def test_a_fork_begins_with_the_files_if_that_is_wanted(supervisor: Supervisor) -> None:
    spec = SessionSpec(allowed_tools=("Bash", "Read"))
    original = await supervisor.start(spec)
    await asked(original, bash("echo mine > note"))
    without = await supervisor.fork(original.session_id)
    fork = await supervisor.fork(original.session_id, copy_workspace=True)
    await asked(fork, bash("echo more >> note"))
    assert original.workspace is not None
    assert without.workspace is not None
    assert fork.workspace is not None
    assert (fork.workspace / "note").read_text() == "mine\nmore\n"
    assert (original.workspace / "note").read_text() == "mine\n"
    assert not (without.workspace / "note").exists()


async def test_a_budget_stops_in_the_middle_of_a_turn_and_then_all_others(
    supervisor: Supervisor,
) -> None:
    price = (await (await supervisor.query("How much?")).result()).accounting.total_cost_usd
    session = await supervisor.start(SessionSpec(max_budget_usd=1.5 * price), owner="ada")
    assert (await asked(session, "One.")).outcome is Outcome.COMPLETED
    ended = await (await session.query("Two.")).wait()
    assert ended.failure is not None
    assert ended.failure.code is FailureCode.BUDGET
    with pytest.raises(BudgetExceeded):
        await session.query("Three.")
    fork = await supervisor.fork(session.session_id)
    assert (await asked(fork, "Three.")).outcome is Outcome.COMPLETED, "it has its own"
    with pytest.raises(BudgetExceeded):
        await fork.query("Four.", quota=Quota(budget_usd=2 * price))


async def test_a_conversation_is_summed_up_and_goes_on(supervisor: Supervisor) -> None:
    session = await supervisor.start()
    await asked(session, "The first word is marzipan.")
    ended = await (await session.compact()).result()
    assert ended.outcome is Outcome.COMPLETED
    assert ended.accounting.total_cost_usd > 0.0
    assert (await asked(session, "And now?")).outcome is Outcome.COMPLETED
