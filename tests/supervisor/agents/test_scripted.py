"""`ScriptedAgent`: it conforms to the port, and does what its script says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_supervisor.agents.port import (
    Agent,
    AgentMessage,
    AgentProcess,
    BackgroundWork,
    Binding,
    Exit,
    Fingerprint,
    Initialized,
    PermissionAsked,
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
from session_supervisor.agents.scripted import (
    Absorb,
    AskQuestions,
    BeginAlone,
    Complain,
    Conversation,
    Crash,
    Fail,
    Freeze,
    Give,
    Hang,
    IgnoreInterrupts,
    Manners,
    Pause,
    Say,
    Script,
    ScriptedAgent,
    ScriptedProcess,
    Start,
    Step,
    UseTool,
    by_prompt,
    echo,
)
from session_supervisor.asks import Allow, Choice, Deny, Question, Rule
from session_supervisor.errors import (
    AgentGone,
    AgentMissing,
    AgentStartFailed,
    CannotChange,
    Failure,
    FailureCode,
    ResumeNotFound,
)
from session_supervisor.spec import JsonObject, Prompt
from tests.supervisor.agents.conformance import (
    AgentConformance,
    AgentHarness,
    Prompts,
    Talk,
    talking,
)
from tests.support.virtual_time import Deadlock, run, virtual

FINGERPRINT = Fingerprint(owner="local", cwd="/nowhere")
OVERLOADED = Failure(code=FailureCode.OVERLOADED, message="Too many want an answer.")


QUESTIONS = (
    Question(
        question="Which?",
        header="one",
        options=(Choice(label="red", description="as blood"), Choice(label="blue")),
        multi_select=True,
    ),
    Question(question="How many?", header="other", options=(Choice(label="1"), Choice(label="2"))),
)


def obedient(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
    """Do as the prompt says: what to do, a colon, with what."""
    what, _, argument = prompt.text.partition(":")
    match what:
        case "say":
            yield Say(argument, deltas=7, every_s=0.01)
        case "blocks":
            for block in argument.split("|"):
                yield Say(block, deltas=2)
        case "giant":
            yield Say("x" * int(argument), deltas=500)
        case "slow":
            yield Say("all in its own good time " * 100, deltas=300, every_s=0.1)
        case "think":
            yield ThinkingDelta("hm, ")
            yield ThinkingDelta("so")
            yield Say("I have thought.")
        case "tool":
            yield UseTool("Bash", result="the output", seconds=float(argument))
            yield Say("It ran.")
        case "hang":
            yield Hang()
        case "cut":
            yield Say("all of", confirmed=False, deltas=3, every_s=0.1)
            yield TextWithdrawn()
            yield Say("all of it", deltas=3)
        case "retry":
            yield UpstreamRetry(attempt=1, max_attempts=10, delay_s=0.5, status=529)
            yield Pause(0.5)
            yield Say("At last.")
        case "fail":
            yield Fail(OVERLOADED)
        case "permission":
            given: JsonObject = {"command": f"echo {argument}"}
            yield UseTool("Bash", input=given, asks=True, result=lambda ran: ran["command"])
            yield Say("Well.")
        case "question":
            yield AskQuestions(QUESTIONS)
            yield Say("I see.")
        case "edit":
            yield UseTool("Write", input={"file_path": "/a"}, asks=True)
        case "form":
            yield Give({"answer": "yes"})
        case "alone":
            yield BeginAlone(3.0, [Say("It is done.", deltas=3, every_s=0.1)])
            yield Say("It runs in the background.")
        case _:
            yield from echo(prompt, conversation)


class ScriptedHarness(AgentHarness):
    patience_s = 300.0
    stop_s = 3.0
    quiet_s = 1.0

    def __init__(self, agent: ScriptedAgent) -> None:
        self.scripted = agent
        prompts = Prompts(
            say=lambda text: f"say:{text}",
            blocks=lambda blocks: "blocks:" + "|".join(blocks),
            quote="What did I say?",
            slow="slow",
            think="think",
            tool="tool:0.5",
            tool_name="Bash",
            tool_result="the output",
            slow_tool="tool:30",
            hang="hang",
            cut="cut",
            cut_text="all of it",
            retry="retry",
            fail="fail",
            fail_code=FailureCode.OVERLOADED,
            giant=lambda size: f"giant:{size}",
            alone="alone",
            permission=lambda word: f"permission:{word}",
            permission_tool="Bash",
            permission_input=lambda word: {"command": f"echo {word}"},
            question="question",
            edit="edit",
            form="form",
            no_form="say:no form",
        )
        super().__init__(agent, prompts)

    def run(self, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        run(test)

    def fingerprint(self) -> Fingerprint:
        return FINGERPRINT

    def without_program(self) -> Agent:
        return ScriptedAgent(start=Start(error=AgentMissing("There is no such program.")))

    def crash(self, process: AgentProcess) -> None:
        _scripted(process).crash()

    def freeze(self, process: AgentProcess) -> None:
        _scripted(process).freeze()

    def thaw(self, process: AgentProcess) -> None:
        _scripted(process).thaw()

    def live(self) -> int:
        return self.scripted.live


def _scripted(process: AgentProcess) -> ScriptedProcess:
    assert isinstance(process, ScriptedProcess)
    return process


class TestConformance(AgentConformance):
    @pytest.fixture
    def harness(self) -> AgentHarness:
        return ScriptedHarness(
            ScriptedAgent(
                obedient, start=Start(delay_s=1.0), manners=Manners(stop_s=2.0, pickup_s=0.1)
            )
        )


class TestConformanceWithoutDelays(AgentConformance):
    """The same, where everything that needs no time happens at once."""

    @pytest.fixture
    def harness(self) -> AgentHarness:
        return ScriptedHarness(ScriptedAgent(obedient))


@asynccontextmanager
async def talk_to(
    agent: ScriptedAgent, *, resume: str | None = None
) -> AsyncGenerator[tuple[Talk, ScriptedProcess]]:
    async with talking(ScriptedHarness(agent), resume=resume) as talk:
        yield talk, _scripted(talk.process)


def scripted(*steps: Step, **others: Sequence[Step]) -> Script:
    """Return a script that plays these steps for the prompt "go", and others for others."""
    return by_prompt({"go": steps, **others})


@virtual()
async def test_steps_happen_in_their_order_at_their_time() -> None:
    loop = asyncio.get_running_loop()
    agent = ScriptedAgent(
        scripted(
            Pause(1.0),
            ThinkingDelta("hm"),
            Say("abcdef", deltas=3, every_s=0.5),
            UseTool("Bash", input={"command": "ls"}, result="a b", seconds=4.0),
            Say("done", deltas=0),
        ),
        start=Start(delay_s=2.0),
        manners=Manners(turn_cost_usd=0.25),
    )
    process = await agent.spawn(FINGERPRINT)
    await process.send(Prompt(prompt_id="p", text="go"))
    heard: list[tuple[float, AgentMessage]] = []
    async for message in process.messages():
        heard.append((loop.time(), message))
        if isinstance(message, TurnEnded):
            break
    tool = "conversation-1-tool-1"
    assert heard == [
        (2.0, TurnBegan(prompt_ids=("p",))),
        (
            2.0,
            Initialized(
                agent_session_id="conversation-1",
                model="scripted",
                tools=Manners().tools,
                version="scripted",
            ),
        ),
        (3.0, ThinkingDelta("hm")),
        (3.5, TextDelta("ab")),
        (4.0, TextDelta("cd")),
        (4.5, TextDelta("ef")),
        (4.5, TextBlock("abcdef")),
        (4.5, ToolStarted(tool_use_id=tool, name="Bash", input={"command": "ls"})),
        (8.5, ToolFinished(tool_use_id=tool, content="a b")),
        (8.5, TextBlock("done")),
        (
            8.5,
            TurnEnded(
                prompt_ids=("p",),
                num_turns=2,
                cost_usd=0.25,
                usage={"input_tokens": 1, "output_tokens": 3},
                stop_reason="end_turn",
                anchor="conversation-1-turn-1",
            ),
        ),
    ]
    await process.stop()


@virtual()
async def test_a_script_knows_the_conversation() -> None:
    seen: list[Conversation] = []

    def script(prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
        seen.append(conversation)
        return [Say(prompt.text)]

    async with talk_to(ScriptedAgent(script)) as (talk, process):
        await talk.ask("one")
        await talk.ask("two")
    assert [each.earlier for each in seen] == [(), ("one",)]
    assert [each.cost_usd for each in seen] == [0.0, 0.01]
    assert {each.agent_session_id for each in seen} == {process.agent_session_id}
    assert {each.fingerprint for each in seen} == {FINGERPRINT}


@virtual()
async def test_a_script_that_raises_is_a_crash_with_its_cause() -> None:
    def script(_prompt: Prompt, _conversation: Conversation) -> Iterable[Step]:
        yield Say("so far")
        raise ValueError("a mistake in the script")

    async with talk_to(ScriptedAgent(script)) as (talk, _):
        await talk.send("go")
        exit_ = await talk.until_over()
    assert exit_.returncode == 1
    assert "a mistake in the script" in exit_.cause
    assert "Traceback" in exit_.stderr


@virtual()
async def test_what_it_complains_of_is_heard_line_by_line_and_kept_for_its_end() -> None:
    lines: list[str] = []
    agent = ScriptedAgent(scripted(Complain("one\ntwo"), Crash(returncode=3, stderr="three")))
    async with talk_to(agent) as (talk, process):
        process.bind(Binding(session_id="s", on_stderr=lines.append))
        await talk.send("go")
        exit_ = await talk.until_over()
    assert lines == ["one", "two", "three"]
    assert exit_.stderr == "one\ntwo\nthree"
    assert exit_.returncode == 3


@virtual()
async def test_a_prompt_whose_crash_is_not_remembered_is_absent_after_the_resume() -> None:
    agent = ScriptedAgent(scripted(Crash(remembered=False), die=[Crash()]))
    async with talk_to(agent) as (talk, _):
        await talk.ask("hello")
        await talk.send("go")
        await talk.until_over()
    async with talk_to(agent, resume=talk.agent_session_id) as (talk, _):
        await talk.send("die")
        await talk.until_over()
    async with talk_to(agent, resume=talk.agent_session_id) as (talk, _):
        assert (await talk.ask("?")).blocks[-1] == "Earlier you said: hello; die"


@virtual()
async def test_a_conversation_that_remembers_nothing_cannot_be_resumed() -> None:
    agent = ScriptedAgent(scripted(Crash(remembered=False)))
    async with talk_to(agent) as (talk, process):
        await talk.send("go")
        await talk.until_over()
    with pytest.raises(ResumeNotFound):
        await agent.spawn(FINGERPRINT, resume=process.agent_session_id)


@virtual()
async def test_a_prompt_is_not_remembered_before_it_is_taken_up() -> None:
    agent = ScriptedAgent(manners=Manners(pickup_s=0.2))
    async with talk_to(agent) as (talk, process):
        await talk.send("hello")
        await asyncio.sleep(0.1)
        process.crash()
        await talk.until_over()
    assert talk.heard == []
    with pytest.raises(ResumeNotFound):
        await agent.spawn(FINGERPRINT, resume=process.agent_session_id)
    assert agent.live == 0


@virtual()
async def test_a_conversation_can_be_lost() -> None:
    agent = ScriptedAgent()
    async with talk_to(agent) as (talk, _):
        await talk.ask("hello")
    agent.lose(talk.agent_session_id)
    with pytest.raises(ResumeNotFound):
        await agent.spawn(FINGERPRINT, resume=talk.agent_session_id)


@virtual()
async def test_a_resumed_conversation_can_get_a_new_id_and_each_of_them_leads_to_it() -> None:
    agent = ScriptedAgent(manners=Manners(new_id_on_resume=True))
    async with talk_to(agent) as (first, _):
        await first.ask("one")
    async with talk_to(agent, resume=first.agent_session_id) as (second, _):
        await second.ask("two")
    assert second.agent_session_id != first.agent_session_id
    for each in (first, second):
        async with talk_to(agent, resume=each.agent_session_id) as (talk, _):
            assert "one; two" in (await talk.ask("three")).blocks[-1]


@virtual()
async def test_a_prompt_sent_during_a_turn_of_its_own_runs_after_it() -> None:
    agent = ScriptedAgent(scripted(BeginAlone(1.0, [Pause(5.0), Say("mine")]), Say("yours")))
    async with talk_to(agent) as (talk, _):
        await talk.ask("go")
        assert [each.pending for each in talk.heard if isinstance(each, BackgroundWork)] == [1]
        await asyncio.sleep(2.0)
        await talk.ask("hello")
        assert [turn.blocks[0] for turn in talk.turns] == ["yours", "mine", "You said: hello"]


@virtual()
async def test_turns_of_its_own_come_in_the_order_in_which_they_are_due() -> None:
    agent = ScriptedAgent(
        scripted(
            BeginAlone(3.0, [Say("third")], background=False),
            BeginAlone(1.0, [Say("first")], background=False),
            BeginAlone(1.0, [Say("second")], background=False),
        )
    )
    async with talk_to(agent) as (talk, _):
        await talk.ask("go")
        await talk.until_said(TurnEnded, times=4)
        assert [turn.blocks for turn in talk.turns[1:]] == [["first"], ["second"], ["third"]]
        assert not [each for each in talk.heard if isinstance(each, BackgroundWork)]


@virtual()
async def test_a_turn_of_its_own_can_absorb_a_prompt_that_waits() -> None:
    agent = ScriptedAgent(scripted(BeginAlone(1.0, [Pause(5.0), Absorb(), Say("both")])))
    async with talk_to(agent) as (talk, _):
        await talk.ask("go")
        await asyncio.sleep(2.0)
        turn = await talk.ask("hello")
        assert turn.began.prompt_ids == ()
        assert turn.blocks == ["both"]


@virtual()
async def test_prompts_that_wait_together_can_be_merged_into_one_turn() -> None:
    agent = ScriptedAgent(scripted(Pause(1.0)), manners=Manners(merge_queued=True))
    async with talk_to(agent) as (talk, _):
        sent = [await talk.send(text) for text in ("go", "one", "two")]
        turn = await talk.answer_to(sent[2])
        assert turn.began.prompt_ids == (sent[1], sent[2])
        assert turn.blocks[0] == "You said: one\ntwo"


@virtual()
async def test_a_prompt_id_that_was_seen_before_is_skipped() -> None:
    async with talk_to(ScriptedAgent()) as (talk, process):
        prompt = Prompt(prompt_id="again", text="hello")
        await process.send(prompt)
        await process.send(prompt)
        await talk.answer_to("again")
        assert await talk.quiet() == []
        assert process.sent == [prompt, prompt]


@virtual()
async def test_a_frozen_step_stands_still_until_it_is_thawed() -> None:
    agent = ScriptedAgent(scripted(Say("before"), Freeze(), Say("after")))
    async with talk_to(agent) as (talk, process):
        prompt_id = await talk.send("go")
        await talk.until_said(TextBlock)
        await asyncio.sleep(1000.0)
        assert process.frozen
        interrupting = asyncio.create_task(process.interrupt())
        await asyncio.sleep(1000.0)
        assert not interrupting.done()
        interrupting.cancel()
        await asyncio.wait([interrupting])
        process.thaw()
        assert (await talk.answer_to(prompt_id)).blocks == ["before", "after"]


@virtual()
async def test_stop_kills_what_is_frozen() -> None:
    async with talk_to(ScriptedAgent(manners=Manners(stop_s=2.5))) as (talk, process):
        process.freeze()
        assert (await talk.stop()).returncode == -9
        assert asyncio.get_running_loop().time() == 2.5


@virtual()
async def test_stop_interrupts_the_turn_that_runs() -> None:
    agent = ScriptedAgent(scripted(Pause(60.0)), manners=Manners(stop_s=1.0))
    async with talk_to(agent) as (talk, _):
        await talk.send("go")
        await talk.until_said(TurnBegan)
        assert (await talk.stop()).returncode == 0
        assert talk.turns[0].end.interrupted


@virtual()
async def test_interrupts_can_be_ignored_until_the_end_of_the_turn() -> None:
    agent = ScriptedAgent(
        scripted(IgnoreInterrupts(), Pause(5.0), Say("regardless"), hang=[Hang()])
    )
    async with talk_to(agent) as (talk, process):
        prompt_id = await talk.send("go")
        await talk.until_said(TurnBegan)
        await talk.interrupt()
        turn = await talk.answer_to(prompt_id)
        assert turn.blocks == ["regardless"]
        assert not turn.end.interrupted
        assert process.interrupts == 1
        prompt_id = await talk.send("hang")
        await talk.interrupt()
        assert (await talk.answer_to(prompt_id)).end.interrupted


@virtual()
async def test_starts_go_as_they_were_told_and_then_as_usual() -> None:
    agent = ScriptedAgent()
    agent.starts += [
        Start(error=AgentStartFailed("no")),
        Start(error=AgentMissing("none")),
        Start(hangs=True),
        Start(delay_s=3.0),
    ]
    with pytest.raises(AgentStartFailed, match="no"):
        await agent.spawn(FINGERPRINT)
    with pytest.raises(AgentMissing):
        await agent.spawn(FINGERPRINT)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(100.0):
            await agent.spawn(FINGERPRINT)
    assert agent.live == 0
    await (await agent.spawn(FINGERPRINT)).stop()
    assert asyncio.get_running_loop().time() == 103.0
    await (await agent.spawn(FINGERPRINT)).stop()
    assert asyncio.get_running_loop().time() == 103.0
    assert agent.spawned == 5
    assert len(agent.processes) == 2


@virtual()
async def test_it_counts_the_living_and_notices_two_writers_of_one_conversation() -> None:
    agent = ScriptedAgent()
    async with talk_to(agent) as (one, _):
        await one.ask("hello")
        assert (agent.live, agent.most_live, agent.forks) == (1, 1, 0)
        async with talk_to(agent, resume=one.agent_session_id):
            assert (agent.live, agent.most_live, agent.forks) == (2, 2, 1)
    async with talk_to(agent, resume=one.agent_session_id):
        assert (agent.live, agent.most_live, agent.forks) == (1, 2, 1)
    assert agent.live == 0


@virtual()
async def test_giving_up_waiting_for_a_message_loses_none() -> None:
    agent = ScriptedAgent(scripted(Say("abcdef", deltas=6, every_s=1.0)))
    process = await agent.spawn(FINGERPRINT)
    messages = process.messages()
    await process.send(Prompt(prompt_id="p", text="go"))
    heard: list[AgentMessage] = []
    while not heard or not isinstance(heard[-1], TurnEnded):
        try:
            async with asyncio.timeout(0.3):
                heard.append(await anext(messages))
        except TimeoutError:
            continue
    assert [each.text for each in heard if isinstance(each, TextDelta)] == list("abcdef")
    with pytest.raises(RuntimeError, match="one reader"):
        process.messages()
    await process.stop()
    with pytest.raises(StopAsyncIteration):
        await anext(messages)


@virtual()
async def test_a_long_burst_leaves_the_event_loop_to_others_and_takes_no_task() -> None:
    agent = ScriptedAgent(scripted(Say("x" * 10_000, deltas=10_000)))
    async with talk_to(agent) as (talk, _):
        prompt_id = await talk.send("go")
        rounds = 0
        while not any(isinstance(message, TurnEnded) for message in talk.heard):
            await asyncio.sleep(0)
            rounds += 1
            assert len(asyncio.all_tasks()) == 2
        assert rounds > 100
        await talk.answer_to(prompt_id)


def test_a_hang_that_nobody_guards_against_is_a_deadlock() -> None:
    async def main() -> None:
        process = await ScriptedAgent(scripted(Hang())).spawn(FINGERPRINT)
        await process.send(Prompt(prompt_id="p", text="go"))
        async for _ in process.messages():
            pass

    with pytest.raises(Deadlock, match="in _next"):
        run(main)


STEPS = st.sampled_from(
    [
        Say("some text", deltas=3, every_s=0.5),
        Say("at once", deltas=2),
        Say("broken off", confirmed=False),
        TextWithdrawn(),
        Pause(1.0),
        UseTool("Bash", seconds=1.0),
        BeginAlone(1.0, [Say("alone", deltas=2, every_s=0.5)]),
        Absorb(),
        IgnoreInterrupts(),
        Hang(),
        Freeze(),
        Fail(OVERLOADED),
        Crash(),
        Crash(remembered=False),
    ]
)
ACTS = st.sampled_from(["send", "interrupt", "probe", "freeze", "thaw", "crash", "stop", "wait"])


@given(st.lists(st.lists(STEPS, max_size=4), min_size=1, max_size=4), st.lists(ACTS, max_size=20))
def test_whatever_happens_the_stream_is_grammatical_and_everybody_gets_an_answer(
    scripts: list[list[Step]], acts: list[str]
) -> None:
    def script(_prompt: Prompt, conversation: Conversation) -> Iterable[Step]:
        yield from scripts[len(conversation.earlier) % len(scripts)]
        yield TextWithdrawn()  # a turn does not leave text unconfirmed

    async def main() -> list[AgentMessage]:
        agent = ScriptedAgent(script, manners=Manners(stop_s=1.0))
        requests: list[asyncio.Task[Any]] = []
        async with talk_to(agent) as (talk, process):
            doings: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
                "send": lambda: talk.send("go"),
                "interrupt": process.interrupt,
                "probe": process.probe,
                "stop": process.stop,
                "wait": lambda: asyncio.sleep(0.7),
            }
            for act in acts:
                if act in doings:
                    requests.append(asyncio.create_task(doings[act]()))
                    await asyncio.sleep(0.3 if act == "wait" else 0)
                else:
                    getattr(process, act)()
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert {type(each) for each in answers} <= {type(None), str, Exit, AgentGone}
        assert agent.live == 0
        return talk.heard

    assert [type(each) for each in run(main)] == [type(each) for each in run(main)]


def writes(name: str = "Write", **given: str) -> UseTool:
    return UseTool(name, input={**given}, asks=True, result="written")


@pytest.mark.parametrize(
    ("changes", "step", "asked"),
    [
        ({}, writes(), True),
        ({"allowed_tools": ("Write",)}, writes(), False),
        ({"allowed_tools": ("Read",)}, writes(), True),
        ({"permission_mode": "bypassPermissions"}, writes("Bash"), False),
        ({"permission_mode": "acceptEdits"}, writes(), False),
        ({"permission_mode": "acceptEdits"}, writes("Bash"), True),
        ({"rules": (Rule(tool="Write"),)}, writes(), False),
        ({"rules": (Rule(tool="Write", content="/a"),)}, writes(file_path="/a"), False),
        ({"rules": (Rule(tool="Write", content="/a"),)}, writes(file_path="/b"), True),
        ({"rules": (Rule(tool="Bash", content="ls"),)}, writes("Bash", command="ls"), False),
        ({}, UseTool("Write", result="written"), False),
    ],
)
def test_a_tool_asks_unless_something_says_that_it_may_run(
    changes: dict[str, Any], step: UseTool, asked: bool
) -> None:
    async def main() -> None:
        agent = ScriptedAgent(scripted(step))
        process = await agent.spawn(replace(FINGERPRINT, asks=True, **changes))
        await process.send(Prompt(prompt_id="p", text="go"))
        stream = process.messages()
        heard: list[AgentMessage] = []
        while not heard or not isinstance(heard[-1], TurnEnded):
            heard.append(await anext(stream))
            if isinstance(heard[-1], PermissionAsked):
                await process.answer(heard[-1].request_id, Allow())
        assert any(isinstance(one, PermissionAsked) for one in heard) is asked
        assert [one.content for one in heard if isinstance(one, ToolFinished)] == ["written"]
        await process.stop()

    run(main)


@virtual()
async def test_what_its_manners_say_cannot_be_changed_while_it_lives() -> None:
    agent = ScriptedAgent(manners=Manners(cannot_change=("bypassPermissions", "model")))
    process = await agent.spawn(FINGERPRINT)
    for changes in ({"model": "other"}, {"permission_mode": "bypassPermissions"}):
        with pytest.raises(CannotChange):
            await process.configure(**changes)  # type: ignore[arg-type]  # one of each
    await process.configure(permission_mode="plan")
    assert process.fingerprint == replace(FINGERPRINT, permission_mode="plan")
    await process.stop()


@virtual()
async def test_a_request_of_the_script_s_own_is_said_as_it_is_and_its_answer_is_noted() -> None:
    raw = PermissionAsked(request_id="r", tool="Bash", tool_use_id="t", input={})
    agent = ScriptedAgent(scripted(raw, Say("on")))
    process = await agent.spawn(FINGERPRINT)
    await process.send(Prompt(prompt_id="p", text="go"))
    stream = process.messages()
    heard: list[AgentMessage] = []
    while not heard or not isinstance(heard[-1], TurnEnded):
        heard.append(await anext(stream))
    assert raw in heard
    await process.answer("r", Deny())
    assert process.answers == [("r", Deny())]
    await process.stop()


@virtual()
async def test_compacting_empties_the_context() -> None:
    agent = ScriptedAgent()
    process = await agent.spawn(FINGERPRINT)
    stream = process.messages()
    tokens: list[int] = []
    for number, text in enumerate(("x" * 400, "/compact", "x" * 40)):
        command = text == "/compact"
        await process.send(Prompt(prompt_id=str(number), text=text, command=command))
        while not isinstance(await anext(stream), TurnEnded):
            pass
        tokens.append((await process.context()).tokens)
    assert tokens == [100, 0, 10]
    await process.stop()
