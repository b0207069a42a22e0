"""What needs a human, what can be changed while a process lives, and what a prompt may carry."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from session_supervisor.agents.port import (
    AskWithdrawn,
    Fingerprint,
    Forks,
    Initialized,
    PermissionAsked,
    QuestionAsked,
    ToolFinished,
    ToolStarted,
)
from session_supervisor.asks import Allow, Answers, Deny, Rule
from session_supervisor.errors import AgentGone, FailureCode, ResumeNotFound
from session_supervisor.spec import JsonObject
from tests.supervisor.agents.conformance.harness import AgentHarness, contract
from tests.supervisor.agents.conformance.talk import HeardTurn, Talk, talking

SCHEMA: JsonObject = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}


def result(turn: HeardTurn) -> ToolFinished:
    (finished,) = turn.of(ToolFinished)
    return finished


async def asked(talk: Talk, word: str, *, times: int = 1) -> tuple[str, PermissionAsked]:
    prompt_id = await talk.send(talk.harness.prompts.permission(word))
    return prompt_id, await talk.until_said(PermissionAsked, times=times)


class Asking:
    """`PermissionAsked`, `QuestionAsked`, `AskWithdrawn` and `answer`."""

    @contract
    async def test_a_call_that_needs_a_permission_waits_until_it_is_allowed(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id, request = await asked(talk, "marzipan")
            started = await talk.until_said(ToolStarted)
            assert request.tool == started.name == harness.prompts.permission_tool
            assert request.tool_use_id == started.tool_use_id
            assert request.input == started.input
            assert await talk.quiet() == []
            await talk.process.answer(request.request_id, Allow())
            turn = await talk.answer_to(prompt_id)
            assert not result(turn).is_error
            assert "marzipan" in str(result(turn).content)
            assert turn.end.failure is None
            assert turn.end.permission_denials == ()
            assert turn.of(AskWithdrawn) == []

    @contract
    async def test_a_call_that_is_denied_does_not_run_and_the_turn_goes_on(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id, request = await asked(talk, "marzipan")
            await talk.process.answer(request.request_id, Deny(message="Not with me."))
            turn = await talk.answer_to(prompt_id)
            assert result(turn).is_error
            assert "Not with me." in str(result(turn).content)
            assert not turn.end.interrupted
            assert turn.end.failure is None
            assert turn.blocks
            assert len(turn.end.permission_denials) == 1

    @contract
    async def test_a_denial_can_end_the_turn_and_the_next_is_clean(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id, request = await asked(talk, "marzipan")
            await talk.process.answer(request.request_id, Deny(end_turn=True))
            turn = await talk.answer_to(prompt_id)
            assert turn.end.interrupted
            assert turn.blocks == []
            assert (await talk.ask(harness.prompts.say("clean"))).blocks == ["clean"]

    @contract
    async def test_a_call_runs_with_the_input_that_a_human_gave_it(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id, request = await asked(talk, "marzipan")
            given = harness.prompts.permission_input("nougat")
            await talk.process.answer(request.request_id, Allow(updated_input=given))
            turn = await talk.answer_to(prompt_id)
            assert "nougat" in str(result(turn).content)
            assert "marzipan" not in str(result(turn).content)

    @contract
    async def test_a_rule_holds_from_now_on_and_in_processes_that_are_started_with_it(
        self, harness: AgentHarness
    ) -> None:
        rule = Rule(tool=harness.prompts.permission_tool)
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id, request = await asked(talk, "marzipan")
            await talk.process.answer(request.request_id, Allow(remember=(rule,)))
            await talk.answer_to(prompt_id)
            again = await talk.ask(harness.prompts.permission("nougat"))
            assert not result(again).is_error
        async with talking(
            harness, resume=talk.agent_session_id, as_=replace(harness.asking(), rules=(rule,))
        ) as talk:
            assert not result(await talk.ask(harness.prompts.permission("nougat"))).is_error
            assert not [each for each in talk.heard if isinstance(each, PermissionAsked)]
        async with talking(harness, resume=talk.agent_session_id, as_=harness.asking()) as talk:
            _, request = await asked(talk, "nougat")
            await talk.process.answer(request.request_id, Deny())

    @contract
    async def test_each_request_has_an_id_of_its_own_and_is_answered_once(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id, first = await asked(talk, "marzipan")
            await talk.process.answer(first.request_id, Allow())
            await talk.process.answer(first.request_id, Deny(end_turn=True))
            assert not result(await talk.answer_to(prompt_id)).is_error
            prompt_id, second = await asked(talk, "nougat", times=2)
            assert first.request_id != second.request_id
            await talk.process.answer(first.request_id, Allow())
            await talk.process.answer("never asked", Allow())
            assert await talk.quiet() == []
            await talk.process.answer(second.request_id, Deny())
            assert result(await talk.answer_to(prompt_id)).is_error

    @contract
    async def test_where_nobody_is_asked_the_agent_denies_by_itself(
        self, harness: AgentHarness
    ) -> None:
        fingerprint = replace(harness.asking(), asks=False)
        async with talking(harness, as_=fingerprint) as talk:
            turn = await talk.ask(harness.prompts.permission("marzipan"))
            assert result(turn).is_error
            assert len(turn.end.permission_denials) == 1
            await talk.ask(harness.prompts.question)
            requests = PermissionAsked | QuestionAsked
            assert not [each for each in talk.heard if isinstance(each, requests)]

    @contract
    async def test_a_question_waits_for_its_answers(self, harness: AgentHarness) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id = await talk.send(harness.prompts.question)
            request = await talk.until_said(QuestionAsked)
            one, other = request.questions
            assert one.question
            assert one.header
            assert len(one.options) == 2
            assert one.multi_select
            assert not other.multi_select
            assert one.options[0].label
            assert one.options[0].description
            assert await talk.quiet() == []
            both = tuple(option.label for option in one.options)
            answers = {one.question: both, other.question: ("None of the two.",)}
            await talk.process.answer(request.request_id, Answers(answers=answers))
            turn = await talk.answer_to(prompt_id)
            content = str(result(turn).content)
            assert all(text in content for text in (*both, "None of the two."))
            assert turn.end.permission_denials == ()
            assert not [each for each in talk.heard if isinstance(each, PermissionAsked)]

    @contract
    async def test_a_question_can_be_left_without_an_answer(self, harness: AgentHarness) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id = await talk.send(harness.prompts.question)
            request = await talk.until_said(QuestionAsked)
            await talk.process.answer(request.request_id, Deny(message="Who knows."))
            turn = await talk.answer_to(prompt_id)
            assert result(turn).is_error
            assert "Who knows." in str(result(turn).content)
            assert turn.end.failure is None

    @contract
    async def test_an_interrupt_takes_requests_back_and_the_next_turn_is_clean(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id, request = await asked(talk, "marzipan")
            await talk.interrupt()
            turn = await talk.answer_to(prompt_id)
            assert turn.end.interrupted
            assert turn.of(AskWithdrawn) == [AskWithdrawn(request.request_id)]
            await talk.process.answer(request.request_id, Allow())
            assert await talk.quiet() == []
            prompt_id = await talk.send(harness.prompts.question)
            question = await talk.until_said(QuestionAsked)
            await talk.interrupt()
            assert (await talk.answer_to(prompt_id)).end.interrupted
            assert AskWithdrawn(question.request_id) in talk.heard
            assert (await talk.ask(harness.prompts.say("clean"))).blocks == ["clean"]

    @contract
    async def test_a_process_that_waits_for_a_human_answers_probes(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            prompt_id, request = await asked(talk, "marzipan")
            await talk.probe()
            await talk.process.context()
            await talk.process.answer(request.request_id, Allow())
            assert not result(await talk.answer_to(prompt_id)).is_error

    @contract
    async def test_when_a_process_dies_that_waits_for_a_human_nothing_hangs(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            _, request = await asked(talk, "marzipan")
            harness.crash(talk.process)
            await talk.until_over()
            for late in (request.request_id, "never asked"):
                async with asyncio.timeout(harness.patience_s):
                    with pytest.raises(AgentGone):
                        await talk.process.answer(late, Allow())

    @contract
    async def test_a_process_that_waits_for_a_human_is_stopped(self, harness: AgentHarness) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            await asked(talk, "marzipan")
            await talk.stop()
            await harness.none_left()


class Changing:
    """`configure` and `context`; the limits and the form of answers; commands."""

    @contract
    async def test_another_model_is_in_force_from_the_next_turn(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.ask(harness.prompts.say("one"))
            before = await talk.until_said(Initialized)
            await talk.process.configure(model=harness.other_model)
            await talk.ask(harness.prompts.say("two"))
            after = await talk.until_said(Initialized, times=2)
            assert after.model != before.model
            assert harness.other_model in after.model

    @contract
    async def test_another_permission_mode_is_in_force_from_the_next_turn(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness, as_=harness.asking()) as talk:
            await talk.process.configure(permission_mode="acceptEdits")
            edited = await talk.ask(harness.prompts.edit)
            assert not result(edited).is_error
            await talk.process.configure(permission_mode="default")
            await talk.send(harness.prompts.edit)
            request = await talk.until_said(PermissionAsked)
            await talk.process.answer(request.request_id, Deny())

    @contract
    async def test_a_process_that_has_ended_can_be_told_nothing(
        self, harness: AgentHarness
    ) -> None:
        async with talking(harness) as talk:
            await talk.stop()
            with pytest.raises(AgentGone):
                await talk.process.configure(model=harness.other_model)
            with pytest.raises(AgentGone):
                await talk.process.context()

    @contract
    async def test_the_context_fills(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            await talk.ask(harness.prompts.say("hello"))
            before = await talk.process.context()
            await talk.ask(harness.prompts.say("word " * 2000))
            after = await talk.process.context()
            assert before is not None
            assert after is not None
            assert before.tokens < after.tokens < after.max_tokens

    @contract
    async def test_a_command_is_no_text_and_its_turn_ends(self, harness: AgentHarness) -> None:
        async with talking(harness) as talk:
            await talk.ask("The word is marzipan.")
            turn = await talk.answer_to(await talk.send("/compact", command=True))
            assert turn.end.failure is None
            assert not turn.end.interrupted
            answer = "\n".join((await talk.ask(harness.prompts.quote)).blocks)
            assert "/compact" not in answer
            assert "marzipan" in answer

    @contract
    async def test_an_answer_has_the_form_that_was_asked_for(self, harness: AgentHarness) -> None:
        fingerprint = replace(harness.fingerprint(), output_schema=SCHEMA)
        async with talking(harness, as_=fingerprint) as talk:
            turn = await talk.ask(harness.prompts.form)
            assert turn.end.failure is None
            assert isinstance(turn.end.structured_output, dict)
            assert isinstance(turn.end.structured_output["answer"], str)
            turn = await talk.answer_to(await talk.send("/compact", command=True))
            assert turn.end.failure is None

    @contract
    async def test_an_answer_that_has_not_the_form_is_a_failure(
        self, harness: AgentHarness
    ) -> None:
        fingerprint = replace(harness.fingerprint(), output_schema=SCHEMA)
        async with talking(harness, as_=fingerprint) as talk:
            turn = await talk.ask(harness.prompts.no_form)
            assert turn.end.failure is not None
            assert turn.end.failure.code is FailureCode.NO_STRUCTURED_OUTPUT
            assert turn.end.structured_output is None

    @contract
    async def test_a_budget_stops(self, harness: AgentHarness) -> None:
        fingerprint = replace(harness.fingerprint(), max_budget_usd=0.000_001)
        async with talking(harness, as_=fingerprint) as talk:
            turn = await talk.ask(harness.prompts.tool)
            assert turn.end.failure is not None
            assert turn.end.failure.code is FailureCode.BUDGET


class Forking:
    """`Forks`."""

    @staticmethod
    def _agent(harness: AgentHarness) -> Forks:
        assert isinstance(harness.agent, Forks)
        return harness.agent

    async def _quoted(self, harness: AgentHarness, agent_session_id: str, as_: Fingerprint) -> str:
        async with talking(harness, resume=agent_session_id, as_=as_) as talk:
            return "\n".join((await talk.ask(harness.prompts.quote)).blocks)

    @contract
    async def test_a_fork_goes_on_from_where_it_was_made_and_the_original_does_not_know(
        self, harness: AgentHarness
    ) -> None:
        agent, into = self._agent(harness), harness.elsewhere()
        async with talking(harness) as talk:
            first = await talk.ask("The first word is marzipan.")
            second = await talk.ask("The second word is trombone.")
        original, as_ = talk.agent_session_id, harness.fingerprint()
        assert first.end.anchor is not None
        whole = await agent.fork(as_, original, into=into)
        early = await agent.fork(as_, original, into=into, anchor=first.end.anchor)
        assert len({original, whole, early}) == 3
        async with talking(harness, resume=whole, as_=into) as copy:
            third = await copy.ask("The third word is nougat.")
            assert third.end.cost_usd < second.end.cost_usd, "it counts from zero"
        told = await self._quoted(harness, whole, into)
        assert "marzipan" in told
        assert "trombone" in told
        assert "nougat" in told
        told = await self._quoted(harness, early, into)
        assert "marzipan" in told
        assert "trombone" not in told
        told = await self._quoted(harness, original, as_)
        assert "trombone" in told
        assert "nougat" not in told

    @contract
    async def test_a_fork_can_be_made_where_a_turn_was_interrupted_and_of_a_fork(
        self, harness: AgentHarness
    ) -> None:
        agent, as_ = self._agent(harness), harness.fingerprint()
        async with talking(harness) as talk:
            await talk.ask("The first word is marzipan.")
            prompt_id = await talk.send(harness.prompts.slow_tool)
            await talk.until_said(ToolStarted)
            await talk.interrupt()
            interrupted = await talk.answer_to(prompt_id)
            await talk.ask("The second word is trombone.")
        fork = await agent.fork(as_, talk.agent_session_id, into=as_, anchor=interrupted.end.anchor)
        again = await agent.fork(as_, fork, into=as_)
        told = await self._quoted(harness, again, as_)
        assert "marzipan" in told
        assert "trombone" not in told

    @contract
    async def test_what_is_not_known_is_not_forked(self, harness: AgentHarness) -> None:
        agent, as_ = self._agent(harness), harness.fingerprint()
        nobody = "00000000-0000-4000-8000-000000000000"
        with pytest.raises(ResumeNotFound):
            await agent.fork(as_, nobody, into=as_)
        async with talking(harness) as talk:
            await talk.ask("The first word is marzipan.")
        for nowhere in (nobody, "nowhere"):
            with pytest.raises(ResumeNotFound):
                await agent.fork(as_, talk.agent_session_id, into=as_, anchor=nowhere)
