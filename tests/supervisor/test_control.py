"""What a handle on a session adds to what it is asked: policies, checks, commands; virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from session_supervisor import OnBusy, Outcome, Session, Settings, State
from session_supervisor.agents.scripted import (
    Conversation,
    Pause,
    Say,
    ScriptedAgent,
    Step,
    UseTool,
)
from session_supervisor.errors import (
    Busy,
    InvalidSpec,
    NotAllowed,
    NotQueued,
    SessionClosed,
    TurnNotFound,
)
from session_supervisor.results import Origin
from session_supervisor.spec import Attachment, OnPermission, Prompt, SessionSpec
from tests.support.sessions import supervising
from tests.support.virtual_time import virtual

IMAGE = Attachment(media_type="image/png", data="aGk=", name="hi.png")


class Strict(ScriptedAgent):
    """Allows no session to do without asking."""

    def check(self, spec: SessionSpec) -> None:
        super().check(spec)
        if spec.permission_mode == "bypassPermissions":
            raise NotAllowed("permission_mode", "the operator has not allowed it")


def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    match prompt.text:
        case "slow":
            yield Pause(10.0)
        case "ask":
            yield UseTool("Bash", asks=True)
        case _:
            pass
    yield Say(f"{prompt.text} after {len(conversation.earlier)}")


async def denied(session: Session, **more: Any) -> float:
    """Return the seconds after which a tool call was denied for want of a human."""
    began = asyncio.get_running_loop().time()
    result = await (await session.query("ask", **more)).result()
    assert result.accounting.permission_denials
    return asyncio.get_running_loop().time() - began


# -- queries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "of_session", "of_query", "asked"),
    [
        ("deny", None, None, False),
        ("ask", None, None, True),
        ("ask", "deny", None, False),
        ("deny", "ask", None, True),
        ("ask", "ask", "deny", False),
        ("deny", "deny", "ask", True),
    ],
)
@virtual()
async def test_a_human_is_asked_as_the_query_the_session_or_the_configuration_says(
    configured: OnPermission,
    of_session: OnPermission | None,
    of_query: OnPermission | None,
    *,
    asked: bool,
) -> None:
    async with supervising(ScriptedAgent(script), on_permission=configured) as supervisor:
        session = await supervisor.start(SessionSpec(on_permission=of_session))
        await session.query("ask", on_permission=of_query)
        await asyncio.sleep(1.0)
        assert (session.state is State.WAITING) is asked
        assert len(session.snapshot().pending) == asked


@virtual()
async def test_the_time_to_answer_is_the_query_s_the_session_s_or_the_configured() -> None:
    more: dict[str, Any] = {"on_permission": "ask", "permission_timeout_s": 30.0}
    async with supervising(ScriptedAgent(script), **more) as supervisor:
        session = await supervisor.start()
        assert await denied(session) == pytest.approx(30.0)
        session = await supervisor.start(SessionSpec(permission_timeout_s=20.0))
        assert await denied(session) == pytest.approx(20.0)
        assert await denied(session, permission_timeout_s=10.0) == pytest.approx(10.0)


@virtual()
async def test_a_one_off_asks_only_if_it_is_wanted() -> None:
    async with supervising(ScriptedAgent(script), on_permission="ask") as supervisor:
        result = await (await supervisor.query("ask")).result()
        assert result.accounting.permission_denials
        spec = SessionSpec(on_permission="ask", permission_timeout_s=5.0)
        turn = await supervisor.query("ask", spec)
        await asyncio.sleep(1.0)
        assert supervisor.get(turn.session_id).state is State.WAITING
        await turn.result()


@pytest.mark.parametrize(
    "wrong",
    [{"timeout_s": 0.0}, {"permission_timeout_s": 0.0}, {"permission_timeout_s": float("nan")}],
)
@virtual()
async def test_what_is_no_time_limit_is_refused(wrong: dict[str, float]) -> None:
    (field,) = wrong
    async with supervising(ScriptedAgent(script)) as supervisor:
        session = await supervisor.start()
        with pytest.raises(InvalidSpec, match=field):
            await session.query("a", **wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@virtual()
async def test_what_goes_with_a_prompt_reaches_the_agent() -> None:
    agent = ScriptedAgent(script)
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        turn = await session.query("look", attachments=[IMAGE])
        await turn.result()
        once = await supervisor.query("look", attachments=[IMAGE])
        await once.result()
        sent = [process.sent[-1].attachments for process in agent.processes]
        assert sent == [(IMAGE,), (IMAGE,)]
        kept = await session.turns()
        assert kept[0].attachments == (Attachment(media_type="image/png", data="", name="hi.png"),)


@virtual()
async def test_a_query_waits_is_refused_or_comes_first() -> None:
    async with supervising(ScriptedAgent(script)) as supervisor:
        session = await supervisor.start()
        free = await session.query("a", on_busy=OnBusy.REJECT)
        await free.result()
        running = await session.query("slow")
        with pytest.raises(Busy):
            await session.query("b", on_busy=OnBusy.REJECT)
        waiting = await session.query("c")
        first = await session.query("d", on_busy=OnBusy.INTERRUPT)
        assert (waiting.position, first.position) == (1, 1)
        assert (await running.wait()).outcome is Outcome.INTERRUPTED
        assert (await first.result()).text == "d after 2"
        assert (await waiting.result()).text == "c after 3"
        assert supervisor.usage(session.owner).turns == 0


# -- turns that wait ---------------------------------------------------------------------------


@virtual()
async def test_a_turn_that_waits_can_be_taken_out() -> None:
    async with supervising(ScriptedAgent(script)) as supervisor:
        session = await supervisor.start()
        running, waiting = await session.query("slow"), await session.query("a")
        await session.withdraw(waiting.turn_id)
        assert (await waiting.wait()).outcome is Outcome.INTERRUPTED
        for turn in (running, waiting):
            with pytest.raises(NotQueued):
                await session.withdraw(turn.turn_id)
        with pytest.raises(TurnNotFound):
            await session.withdraw("nobody")
        await session.close()
        with pytest.raises(SessionClosed):
            await session.withdraw(running.turn_id)


# -- settings ----------------------------------------------------------------------------------


@virtual()
async def test_what_is_changed_is_in_force_and_shown() -> None:
    agent = ScriptedAgent(script)
    async with supervising(agent) as supervisor:
        session = await supervisor.start(SessionSpec(model="sonnet", title="t"))
        await (await session.query("a")).result()
        changed = await session.configure(model="opus", permission_mode="plan", metadata={"a": "b"})
        assert changed == Settings(
            model="opus", permission_mode="plan", title="t", metadata={"a": "b"}
        )
        assert await session.configure() == changed
        found = session.snapshot()
        assert (found.model, found.permission_mode) == ("opus", "plan")
        assert (found.title, found.metadata) == ("t", {"a": "b"})
        assert session.spec.model == "opus"
        await (await session.query("b")).result()
        assert agent.processes[-1].fingerprint.model == "opus"
        assert (await session.configure(title="")).title is None


@virtual()
async def test_what_the_agent_cannot_do_is_refused_and_changes_nothing() -> None:
    async with supervising(Strict(script)) as supervisor:
        session = await supervisor.start(SessionSpec(model="sonnet"))
        before = session.spec
        with pytest.raises(NotAllowed):
            await session.configure(model="opus", permission_mode="bypassPermissions")
        assert session.spec == before
        await session.close()
        with pytest.raises(SessionClosed):
            await session.configure(title="late")


# -- compaction --------------------------------------------------------------------------------


@virtual()
async def test_a_conversation_can_be_summed_up() -> None:
    agent = ScriptedAgent(script)
    async with supervising(agent) as supervisor:
        session = await supervisor.start()
        await (await session.query("/compact")).result()
        turn = await session.compact(instructions="keep the names")
        result = await turn.result()
        assert result.outcome is Outcome.COMPLETED
        assert result.origin is Origin.USER
        plain, command = agent.processes[-1].sent
        assert not plain.command, "what a person writes is never a command"
        assert (command.text, command.command) == ("/compact keep the names", True)
        assert (await (await session.compact()).result()).outcome is Outcome.COMPLETED
        assert agent.processes[-1].sent[-1].text == "/compact"
