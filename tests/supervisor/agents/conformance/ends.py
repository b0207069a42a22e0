"""How a turn and a process end, and what remains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from session_supervisor.agents.port import (
    TextDelta,
    ToolStarted,
    TurnBegan,
)
from session_supervisor.errors import AgentGone
from session_supervisor.spec import Prompt
from tests.supervisor.agents.conformance.harness import AgentHarness, contract
from tests.supervisor.agents.conformance.talk import Talk, talking


class Interrupts:
    """`interrupt` and `probe`."""

    async def _interrupted(self, talk: Talk, prompt_id: str) -> None:
        await talk.interrupt()
        turn = await talk.answer_to(prompt_id)
        assert turn.end.interrupted
        assert turn.end.failure is None
        assert await talk.quiet() == []
        await talk.probe()
        after = await talk.ask(talk.harness.prompts.say("clean"))
        assert after.blocks == ["clean"]
        assert not after.end.interrupted

    @contract
    async def test_an_interrupt_ends_a_turn_that_streams_and_the_next_is_clean(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            prompt_id = await talk.send(harness.prompts.slow)
            await talk.until_said(TextDelta, times=2)
            await self._interrupted(talk, prompt_id)

    @contract
    async def test_an_interrupt_ends_a_turn_that_runs_a_tool_and_the_next_is_clean(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            prompt_id = await talk.send(harness.prompts.slow_tool)
            await talk.until_said(ToolStarted)
            await self._interrupted(talk, prompt_id)

    @contract
    async def test_an_interrupt_ends_a_turn_that_hangs_and_the_next_is_clean(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            prompt_id = await talk.send(harness.prompts.hang)
            await talk.until_said(TurnBegan)
            await talk.quiet()
            await self._interrupted(talk, prompt_id)

    @contract
    async def test_an_interrupt_ends_also_a_turn_that_was_only_just_asked_for(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask(harness.prompts.say("warm"))
            await self._interrupted(talk, await talk.send(harness.prompts.slow))

    @contract
    async def test_interrupts_at_once_end_one_turn_and_spare_the_next(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            prompt_id = await talk.send(harness.prompts.slow)
            await talk.until_said(TextDelta)
            await asyncio.gather(*(talk.interrupt() for _ in range(3)))
            assert (await talk.answer_to(prompt_id)).end.interrupted
            assert (await talk.ask(harness.prompts.say("clean"))).blocks == ["clean"]

    @contract
    async def test_an_interrupt_of_an_idle_process_is_acknowledged_and_nothing_follows(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.interrupt()
            await talk.ask(harness.prompts.say("hello"))
            await talk.quiet()
            await talk.interrupt()
            assert await talk.quiet() == []
            assert (await talk.ask(harness.prompts.say("clean"))).blocks == ["clean"]

    @contract
    async def test_a_process_answers_probes_idle_and_busy_and_while_its_upstream_hangs(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.probe()
            for busy in (harness.prompts.slow, harness.prompts.slow_tool, harness.prompts.hang):
                prompt_id = await talk.send(busy)
                await talk.until(lambda: (talk.turns and talk.turns[-1].ended is None) or None)
                await talk.quiet()
                await talk.probe()
                await talk.interrupt()
                await talk.answer_to(prompt_id)

    @contract
    async def test_a_frozen_process_answers_no_probe_and_once_thawed_goes_on(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            harness.freeze(talk.process)
            prompt_id = await talk.send(harness.prompts.say("at last"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.0):
                    await talk.process.probe()
            assert talk.heard == []
            assert talk.process.exit is None
            harness.thaw(talk.process)
            assert (await talk.answer_to(prompt_id)).blocks == ["at last"]
            await talk.probe()


class Ends:
    """How a process ends, and what remains."""

    async def _refuses_everything(self, talk: Talk) -> None:
        requests: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: talk.send("is anybody there?"),
            talk.interrupt,
            talk.probe,
        ]
        for request in requests:
            with pytest.raises(AgentGone):
                await request()

    @contract
    async def test_when_an_idle_process_dies_the_stream_ends_and_exit_says_how(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask(harness.prompts.say("hello"))
            harness.crash(talk.process)
            assert (await talk.until_over()).returncode == -9
            await self._refuses_everything(talk)

    @contract
    async def test_when_a_process_dies_in_a_turn_the_stream_ends_without_the_turn_s_end(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.send(harness.prompts.slow)
            await talk.until_said(TextDelta)
            harness.crash(talk.process)
            assert (await talk.until_over()).returncode == -9
            assert [turn.ended for turn in talk.turns] == [None]
            await self._refuses_everything(talk)

    @contract
    async def test_requests_that_a_process_owes_an_answer_when_it_dies_are_refused(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.send(harness.prompts.slow)
            await talk.until_said(TextDelta)
            harness.freeze(talk.process)
            owed = [asyncio.create_task(talk.probe()), asyncio.create_task(talk.interrupt())]
            await talk.quiet()
            assert not any(request.done() for request in owed)
            harness.crash(talk.process)
            answers = await asyncio.gather(*owed, return_exceptions=True)
            assert [type(answer) for answer in answers] == [AgentGone, AgentGone]

    @contract
    async def test_an_idle_process_is_stopped_and_refuses_all_that_follows(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask(harness.prompts.say("hello"))
            assert await talk.stop() == await talk.until_over()
            await harness.none_left()
            await self._refuses_everything(talk)

    @contract
    async def test_a_process_that_never_got_a_prompt_is_stopped(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.stop()
            assert talk.turns == []

    @contract
    async def test_a_process_that_nobody_ever_read_is_stopped(self, harness: AgentHarness) -> None:
        process = await harness.agent.spawn(harness.fingerprint())
        await process.send(Prompt(prompt_id="unread", text=harness.prompts.slow))
        await asyncio.sleep(harness.quiet_s)
        async with asyncio.timeout(harness.stop_s):
            assert await process.stop() == process.exit

    @contract
    async def test_a_process_is_stopped_in_a_turn_however_that_stands(
        self, harness: AgentHarness
    ) -> None:
        for busy in (harness.prompts.slow, harness.prompts.slow_tool, harness.prompts.hang):
            async with talking(harness) as talk:
                await talk.send(busy)
                await talk.until_said(TurnBegan)
                await talk.quiet()
                await talk.stop()
                await harness.none_left()

    @contract
    async def test_a_frozen_process_is_stopped_idle_and_in_a_turn(
        self, harness: AgentHarness
    ) -> None:
        for busy in (False, True):
            async with talking(harness) as talk:
                if busy:
                    await talk.send(harness.prompts.slow_tool)
                    await talk.until_said(ToolStarted)
                harness.freeze(talk.process)
                await talk.stop()
                await talk.until_over()
                await harness.none_left()

    @contract
    async def test_a_process_with_work_in_the_background_is_stopped(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask(harness.prompts.alone)
            await talk.stop()
            await harness.none_left()

    @contract
    async def test_stop_by_several_at_once_and_again_gives_all_the_same_answer(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.send(harness.prompts.slow)
            await talk.until_said(TextDelta)
            exits = await asyncio.gather(*(talk.stop() for _ in range(3)))
            exits.append(await talk.stop())
            assert exits == [await talk.until_over()] * 4

    @contract
    async def test_one_who_gives_up_waiting_for_stop_keeps_nobody_from_it(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.send(harness.prompts.slow)
            await talk.until_said(TextDelta)
            first = asyncio.create_task(talk.stop())
            second = asyncio.create_task(talk.stop())
            await asyncio.sleep(0)
            first.cancel()
            assert await second == await talk.until_over()
            await asyncio.wait([first])

    @contract
    async def test_stop_of_a_process_that_died_says_how_it_died(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            harness.crash(talk.process)
            died = await talk.until_over()
            assert died.returncode == -9
            assert (await talk.stop()).returncode == -9

    @contract
    async def test_a_process_that_dies_while_it_is_stopped_ends_once(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            stopping = asyncio.create_task(talk.stop())
            await asyncio.sleep(0)
            harness.crash(talk.process)
            assert await stopping == await talk.until_over()
            await talk.quiet()
            assert await talk.stop() == talk.process.exit == await stopping

    @contract
    async def test_nothing_is_heard_after_stop_has_returned(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            await talk.send(harness.prompts.slow)
            await talk.until_said(TextDelta)
            await talk.stop()
            await talk.until_over()
            assert await talk.quiet() == []


class Resumption:
    """Conversations that outlive their processes."""

    async def _goes_on(self, harness: AgentHarness, before: Talk) -> None:
        async with talking(harness, resume=before.agent_session_id) as talk:
            turn = await talk.ask(harness.prompts.quote)
            assert "marzipan" in "\n".join(turn.blocks)
            assert len([each for each in talk.turns if each.began.prompt_ids]) == 1
            assert turn.end.cost_usd >= _cost(before)

    @contract
    async def test_a_conversation_goes_on_after_a_stop_and_its_cost_with_it(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask("Remember marzipan.")
        await self._goes_on(harness, talk)

    @contract
    async def test_a_conversation_goes_on_after_a_crash(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            await talk.ask("Remember marzipan.")
            harness.crash(talk.process)
            await talk.until_over()
        await self._goes_on(harness, talk)

    @contract
    async def test_a_conversation_goes_on_after_a_crash_in_a_turn(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask("Remember marzipan.")
            await talk.send(harness.prompts.slow)
            await talk.until_said(TextDelta, times=3)
            harness.crash(talk.process)
            await talk.until_over()
        await self._goes_on(harness, talk)

    @contract
    async def test_a_conversation_can_be_resumed_again_and_again(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask("Remember marzipan.")
        for _ in range(2):
            async with talking(harness, resume=talk.agent_session_id) as again:
                await again.ask(harness.prompts.say("hello"))
            await self._goes_on(harness, again)


def _cost(talk: Talk) -> float:
    return [turn.end.cost_usd for turn in talk.turns if turn.ended is not None][-1]
