"""How a process starts, and what it says in a turn."""

from __future__ import annotations

import asyncio

import pytest

from session_supervisor.agents.port import (
    BackgroundWork,
    Initialized,
    TextBlock,
    TextDelta,
    TextWithdrawn,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
    TurnBegan,
    TurnEnded,
    UpstreamRetry,
)
from session_supervisor.errors import AgentMissing, InvalidSpec, ResumeNotFound
from session_supervisor.spec import SessionSpec
from tests.supervisor.agents.conformance.harness import AgentHarness, contract
from tests.supervisor.agents.conformance.talk import talking

GIANT = 3 * 2**20
"""Characters: more than any default buffer on the way; the SDK's is 1 MiB."""


class Starting:
    """`check` and `spawn`."""

    def test_a_plain_spec_is_accepted(self, harness: AgentHarness) -> None:
        harness.agent.check(SessionSpec())
        harness.agent.check(SessionSpec(allowed_tools=(harness.known_tool,)))

    def test_an_unknown_tool_is_refused_and_both_field_and_tool_are_named(
        self, harness: AgentHarness
    ) -> None:
        with pytest.raises(InvalidSpec, match=harness.unknown_tool) as refusal:
            harness.agent.check(
                SessionSpec(allowed_tools=(harness.known_tool, harness.unknown_tool))
            )
        assert refusal.value.field == "allowed_tools"

    @contract
    async def test_a_spawned_process_is_ready_for_a_prompt(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            assert talk.process.exit is None
            await talk.probe()
            assert (await talk.ask(harness.prompts.say("ready"))).blocks == ["ready"]

    @contract
    async def test_a_missing_program_is_told_from_one_that_fails(
        self, harness: AgentHarness
    ) -> None:
        with pytest.raises(AgentMissing):
            await harness.without_program().spawn(harness.fingerprint())

    @contract
    async def test_a_conversation_that_the_agent_does_not_know_is_not_resumed(
        self, harness: AgentHarness
    ) -> None:
        with pytest.raises(ResumeNotFound):
            await harness.agent.spawn(
                harness.fingerprint(), resume="00000000-0000-4000-8000-000000000000"
            )

    @contract
    async def test_cancelling_a_spawn_at_any_moment_leaves_no_process(
        self, harness: AgentHarness
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await (await harness.agent.spawn(harness.fingerprint())).stop()
        took = loop.time() - began
        for share in (0.0, 0.1, 0.3, 0.6, 0.9):
            spawning = asyncio.create_task(harness.agent.spawn(harness.fingerprint()))
            await asyncio.sleep(share * took)
            spawning.cancel()
            await asyncio.wait([spawning])
            if not spawning.cancelled():  # it was ready before it was cancelled
                await spawning.result().stop()
            await harness.none_left()

    @contract
    async def test_processes_of_one_agent_live_and_die_apart(self, harness: AgentHarness) -> None:
        say = harness.prompts.say
        async with talking(harness) as one, talking(harness) as other:
            await one.ask(say("one"))
            await other.ask(say("other"))
            assert one.agent_session_id != other.agent_session_id
            harness.crash(one.process)
            await one.until_over()
            assert (await other.ask(say("alive"))).blocks == ["alive"]


class Turns:
    """What a turn is, and what is said in it."""

    @contract
    async def test_a_prompt_is_answered_by_one_turn_that_carries_its_id(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            prompt_id = await talk.send(harness.prompts.say("hello"))
            turn = await talk.answer_to(prompt_id)
            assert turn.began.prompt_ids == (prompt_id,)
            assert turn.end.prompt_ids == (prompt_id,)
            assert not turn.end.interrupted
            assert turn.end.failure is None
            assert turn.end.num_turns == 1
            assert turn.blocks == ["hello"]
            assert await talk.quiet() == []
            assert len(talk.turns) == 1

    @contract
    async def test_with_every_turn_the_process_says_who_it_is(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            for count in (1, 2):
                await talk.ask(harness.prompts.say("hello"))
                said = await talk.until_said(Initialized, times=count)
                assert said.agent_session_id
                assert said.model
                assert harness.known_tool in said.tools
                await talk.quiet()

    @contract
    async def test_deltas_concatenate_to_the_block_that_confirms_them(
        self, harness: AgentHarness
    ) -> None:
        text = "Deltas are provisional; grüße, 你好, 👋. " * 20
        async with talking(harness) as talk:
            turn = await talk.ask(harness.prompts.say(text.strip()))
            assert "".join(delta.text for delta in turn.of(TextDelta)) == text.strip()
            assert [block.text for block in turn.of(TextBlock)] == [text.strip()]

    @contract
    async def test_text_is_streamed_while_it_is_made(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            await talk.send(harness.prompts.slow)
            await talk.until_said(TextDelta, times=3)
            assert not [message for message in talk.heard if isinstance(message, TurnEnded)]

    @contract
    async def test_several_blocks_stay_apart(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            turn = await talk.ask(harness.prompts.blocks(["first", "second", "third"]))
            assert turn.blocks == ["first", "second", "third"]

    @contract
    async def test_text_that_the_upstream_broke_off_is_withdrawn(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            turn = await talk.ask(harness.prompts.cut)
            assert turn.of(TextWithdrawn)
            assert turn.blocks == [harness.prompts.cut_text]
            assert turn.end.failure is None

    @contract
    async def test_a_retry_of_the_upstream_is_reported_and_the_answer_comes(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            turn = await talk.ask(harness.prompts.retry)
            retry = turn.of(UpstreamRetry)[0]
            assert 1 <= retry.attempt <= retry.max_attempts
            assert turn.end.failure is None
            assert turn.blocks

    @contract
    async def test_the_prose_of_an_error_is_in_the_failure_and_never_text(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            turn = await talk.ask(harness.prompts.fail)
            assert turn.end.failure is not None
            assert turn.end.failure.code == harness.prompts.fail_code
            assert turn.end.failure.message
            assert turn.of(TextDelta) == []
            assert turn.of(TextBlock) == []
            assert (await talk.ask(harness.prompts.say("again"))).blocks == ["again"]

    @contract
    async def test_thinking_is_not_text(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            turn = await talk.ask(harness.prompts.think)
            thought = "".join(delta.text for delta in turn.of(ThinkingDelta))
            assert thought
            assert turn.blocks
            assert thought not in "".join(turn.blocks)

    @contract
    async def test_a_tool_starts_and_gives_its_result(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            turn = await talk.ask(harness.prompts.tool)
            (started,) = turn.of(ToolStarted)
            (finished,) = turn.of(ToolFinished)
            assert started.name == harness.prompts.tool_name
            assert started.tool_use_id == finished.tool_use_id
            assert harness.prompts.tool_result in str(finished.content)
            assert not finished.is_error
            assert turn.end.num_turns == 2
            assert turn.blocks

    @contract
    async def test_a_giant_message_arrives_whole(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            (block,) = (await talk.ask(harness.prompts.giant(GIANT))).blocks
            assert len(block) == GIANT

    @contract
    async def test_prompts_sent_without_waiting_are_each_answered_once(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            sent = [await talk.send(harness.prompts.say(f"answer {n}")) for n in range(4)]
            for prompt_id in sent:
                await talk.answer_to(prompt_id)
            assert await talk.quiet() == []

    @contract
    async def test_a_turn_that_the_agent_began_by_itself_answers_no_prompt(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask(harness.prompts.alone)

            def own() -> TurnEnded | None:
                ended = [turn.ended for turn in talk.turns if not turn.began.prompt_ids]
                return ended[0] if ended else None

            assert (await talk.until(own)).prompt_ids == ()
            work = [each.pending for each in talk.heard if isinstance(each, BackgroundWork)]
            assert max(work) > 0
            assert work[-1] == 0

    @contract
    async def test_a_prompt_is_answered_also_when_the_agent_began_a_turn_by_itself(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask(harness.prompts.alone)
            await talk.until_said(TurnBegan, times=2)
            prompt_id = await talk.send(harness.prompts.say("after all"))
            assert "after all" in (await talk.answer_to(prompt_id)).blocks

    @contract
    async def test_earlier_prompts_are_remembered(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            await talk.ask("The first word is marzipan.")
            await talk.ask("The second word is trombone.")
            answer = "\n".join((await talk.ask(harness.prompts.quote)).blocks)
            assert "marzipan" in answer
            assert "trombone" in answer
