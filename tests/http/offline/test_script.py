from __future__ import annotations

import json
from typing import Any

import pytest

from session_http.offline.conversation import Conversation, read_conversation
from session_http.offline.directives import Cut, Fail, Hang, parse_directives
from session_http.offline.reply import Block, Pacing, Reply, Text, Thinking, ToolUse
from session_http.offline.script import plan
from tests.http.offline.bodies import assistant, body, call, result, user

CUT_OFF = "Your response above was cut off mid-stream."


def conversation(*messages: dict[str, Any] | str, **fields: Any) -> Conversation:
    return read_conversation(body(*messages, **fields))


def shown(blocks: tuple[Block, ...]) -> list[Any]:
    """Blocks in short: a string for text, a tuple for thinking, a dict for a tool call."""
    return [
        {block.name: block.input}
        if isinstance(block, ToolUse)
        else ("".join(block.pieces),)
        if isinstance(block, Thinking)
        else "".join(block.pieces)
        for block in blocks
    ]


def text(reply: Reply) -> str:
    return "".join(
        piece for block in reply.blocks if isinstance(block, Text) for piece in block.pieces
    )


def after_tool(prompt: str, output: str = "out", name: str = "Bash") -> Conversation:
    return conversation(user(prompt), assistant(call("a", name)), user(result("a", output)))


def test_the_first_answer_quotes_the_prompt() -> None:
    reply = plan(conversation("My  number\nis 42"))
    assert text(reply) == (
        'You said: "My number is 42"\n\nThat is the first thing you said in this conversation.'
    )
    assert reply.stop_reason == "end_turn"
    assert reply.fault is None


def test_later_answers_quote_the_earlier_turns_in_order() -> None:
    reply = plan(conversation("one", "x", "two", "y", "three"))
    assert text(reply) == 'You said: "three"\n\nBefore that, you said:\n1. "one"\n2. "two"'


def test_long_memories_are_quoted_in_bounds() -> None:
    turns = [part for number in range(60) for part in (f"turn {number}", "x")]
    answer = text(plan(conversation(*turns, "y" * 3000)))
    assert "(10 more turns before these)" in answer
    assert '11. "turn 10"' in answer
    assert '60. "turn 59"' in answer
    assert '"turn 9"' not in answer
    assert "y" * 2000 + '..."' in answer


def test_attachments_are_mentioned() -> None:
    image = {"type": "image", "source": "..."}
    assert "It came with: image." in text(plan(conversation(user("look", image))))


def test_the_same_request_gets_the_same_answer() -> None:
    made = [plan(conversation("a", "b", "c [[think d]]")) for _ in range(2)]
    assert made[0] == made[1]


def test_pieces_together_are_the_exact_text() -> None:
    exact = "  two  blanks,\n\n\ttabs and an end \n"
    assert shown(plan(conversation(f"[[say {exact}]]")).blocks) == [exact]


def test_the_default_answer_can_have_a_given_number_of_deltas() -> None:
    for tokens in (3, 200):
        (block,) = plan(conversation("hello"), pacing=Pacing(tokens=tokens)).blocks
        assert isinstance(block, Text)
        assert len(block.pieces) == tokens


def test_the_pace_of_the_prompt_wins() -> None:
    pacing = Pacing(delay_s=1)
    assert plan(conversation("hello"), pacing=pacing).delay_s == 1
    reply = plan(conversation("[[slow tokens=3 delay_ms=20]]"), pacing=pacing)
    assert (text(reply), reply.delay_s) == ("w0 w1 w2", 0.02)


def test_text_thinking_and_tools_are_blocks_in_their_order() -> None:
    prompt = '[[think hm]] [[say a]] [[tool Bash {"command": "x"}]] [[and Read]] [[say b]]'
    reply = plan(conversation(prompt))
    assert shown(reply.blocks) == [("hm",), "a", {"Bash": {"command": "x"}}, {"Read": {}}]
    assert reply.stop_reason == "tool_use"
    reply = plan(after_tool(prompt))
    assert (shown(reply.blocks), reply.stop_reason) == (["b"], "end_turn")


def test_tools_in_sequence_are_one_request_each_and_then_the_result_is_quoted() -> None:
    prompt = "[[tool Bash]] [[tool Read]]"
    first = [user(prompt), assistant(call("a", "Bash")), user(result("a", "one"))]
    second = [assistant(call("b", "Read")), user(result("b", "two", is_error=True))]
    assert shown(plan(conversation(prompt)).blocks) == [{"Bash": {}}]
    assert shown(plan(conversation(*first)).blocks) == [{"Read": {}}]
    reply = plan(conversation(*first, *second))
    assert (shown(reply.blocks), reply.stop_reason) == (["Read failed:\ntwo"], "end_turn")
    # A result more than the script knows of does not start it again.
    reply = plan(conversation(*first, *second, *second))
    assert shown(reply.blocks) == ["Read failed:\ntwo"]


def test_the_result_can_be_quoted_beside_own_text() -> None:
    reply = plan(after_tool("[[tool Bash]] [[say It said]] [[result]]"))
    assert shown(reply.blocks) == ["It said", "Bash answered:\nout"]


def test_only_thinking_goes_on_with_the_default_answer() -> None:
    assert shown(plan(conversation("[[think hm]]")).blocks)[0] == ("hm",)
    assert "You said" in text(plan(conversation("[[think hm]]")))


def test_directives_of_earlier_turns_are_only_quoted() -> None:
    reply = plan(conversation("[[fail status=400]]", "x", "still there?"))
    assert reply.fault is None
    assert '1. "[[fail status=400]]"' in text(reply)


def test_directives_in_tool_results_do_nothing() -> None:
    assert shown(plan(after_tool("[[tool Bash]]", "[[say trap]] [[cut]]")).blocks) == [
        "Bash answered:\n[[say trap]] [[cut]]"
    ]


def test_faults_take_their_tries_one_after_the_other() -> None:
    asked = conversation("[[fail status=529 times=2]] [[cut after=3 times=1]] hello")
    faults = [plan(asked, attempt=attempt).fault for attempt in range(4)]
    overloaded = Fail(status=529, times=2)
    assert faults == [overloaded, overloaded, Cut(after=3, times=1), None]
    assert "hello" in text(plan(asked, attempt=3))


def test_a_fault_without_times_lasts_for_ever() -> None:
    assert plan(conversation("[[hang before]]"), attempt=99).fault == Hang(where="before")


def test_a_fault_behind_a_tool_waits_for_the_tools_result() -> None:
    prompt = "[[tool Bash]] [[fail status=500]]"
    assert plan(conversation(prompt)).fault is None
    assert plan(after_tool(prompt)).fault == Fail(status=500)
    assert plan(after_tool("[[fail status=500]] [[tool Bash]]")).fault is None


def test_a_cut_answer_goes_on_where_it_stopped() -> None:
    prompt = "[[think hm]] [[say one two]] [[say three four]] [[tool Bash]]"
    cut = conversation(user(prompt), assistant("one two"), user(CUT_OFF))
    assert shown(plan(cut, attempt=1).blocks) == ["three four", {"Bash": {}}]
    inside = conversation(user(prompt), assistant("one two", "three"), user(CUT_OFF))
    assert shown(plan(inside, attempt=1).blocks) == [" four", {"Bash": {}}]
    nothing = conversation(user(prompt, CUT_OFF))
    assert shown(plan(nothing, attempt=1).blocks)[:2] == [("hm",), "one two"]
    everything = conversation(user("[[say all]]"), assistant("all"), user(CUT_OFF))
    assert shown(plan(everything, attempt=1).blocks) == ["That is all."]
    foreign = conversation(user("[[say all]]"), assistant("other"), user(CUT_OFF))
    assert shown(plan(foreign, attempt=1).blocks) == ["all"]


def test_a_stop_ends_the_answer_early_and_the_rest_follows() -> None:
    prompt = "[[say one two three]] [[tool Bash]] [[say never]]"
    stopping = "[[stop reason=max_tokens after=2 times=1]]" + prompt
    reply = plan(conversation(stopping))
    assert (shown(reply.blocks), reply.stop_reason) == (["one two"], "max_tokens")
    rest = conversation(
        user(stopping), assistant("one two"), user("Output token limit hit. Go on.")
    )
    reply = plan(rest, attempt=1)
    assert (shown(reply.blocks), reply.stop_reason) == ([" three", {"Bash": {}}], "tool_use")
    late = "[[stop reason=max_tokens after=4]]" + prompt
    assert shown(plan(conversation(late)).blocks) == ["one two three", {"Bash": {}}]


def test_usage_is_about_a_quarter_of_the_characters_unless_given() -> None:
    asked = conversation("[[say 12345678]]")
    reply = plan(asked)
    assert (reply.input_tokens, reply.output_tokens) == (asked.size // 4, 2)
    reply = plan(conversation("[[usage input=0 output=7 cache_read=3 cache_write=4]]"))
    assert (reply.input_tokens, reply.output_tokens) == (0, 7)
    assert (reply.cache_read, reply.cache_write) == (3, 4)


def test_headers_are_passed_on() -> None:
    assert plan(conversation("[[header a=1 b=2]]")).headers == (("a", "1"), ("b", "2"))


def test_big_answers_have_their_size() -> None:
    reply = plan(conversation("[[big bytes=10000]]"))
    assert len(text(reply)) == 10000
    assert len(shown(reply.blocks)) == 1


def test_a_wrong_directive_is_a_bad_request_that_says_why() -> None:
    fault = plan(conversation("[[slow bogus=1]]")).fault
    assert isinstance(fault, Fail)
    assert fault.status == 400
    assert "bogus" in (fault.message or "")


def test_a_form_is_filled() -> None:
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "kind": {"enum": ["a", "b"]},
            "fixed": {"const": 3},
            "count": {"type": "integer"},
            "flag": {"type": "boolean"},
            "list": {"type": "array"},
            "inner": {"type": "object"},
            "any": {},
        },
    }
    config = {"format": {"type": "json_schema", "schema": schema}}
    asked = conversation("<session>\nFix the [[cut]] bug\n</session>", output_config=config)
    reply = plan(asked, pacing=Pacing(tokens=500, delay_s=1))
    assert json.loads(text(reply)) == {
        "title": "Fix the bug",
        "kind": "a",
        "fixed": 3,
        "count": 0,
        "flag": False,
        "list": [],
        "inner": {},
        "any": None,
    }
    assert (reply.fault, reply.delay_s) == (None, 0)


def test_a_structured_answer_ends_with_its_tool() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    tools = [{"name": "StructuredOutput", "input_schema": schema}]
    filled = {"StructuredOutput": {"title": "give me one"}}
    reply = plan(conversation("give me one", tools=tools))
    assert shown(reply.blocks)[-1] == filled
    assert reply.stop_reason == "tool_use"
    enforced = conversation(
        user("[[say x]] give me one"),
        assistant("x"),
        user("[structured-output-enforce] You MUST call it"),
        tools=tools,
    )
    assert shown(plan(enforced, attempt=1).blocks) == [filled]
    given = [assistant(call("a", "StructuredOutput")), user(result("a", "fine"))]
    reply = plan(conversation(user("give"), *given, tools=tools))
    assert reply.stop_reason == "end_turn"
    stopped = plan(conversation("[[stop reason=end_turn]]", tools=tools))
    assert stopped.stop_reason == "end_turn"


def test_probe_summary_and_notice_have_answers_of_their_own() -> None:
    assert text(plan(conversation("quota", max_tokens=1))) == "OK"
    asked = "Your task is to create a detailed summary of the conversation so far"
    assert '- the user said: "one"' in text(plan(conversation("one", "x", asked)))
    note = "<task-notification><summary>it ended</summary></task-notification>"
    told = conversation("[[cut]]", "x", user(f"<system-reminder>{note}</system-reminder>"))
    reply = plan(told)
    assert (text(reply), reply.fault) == ('I was told: "it ended"', None)


@pytest.mark.parametrize("step", [0, 1])
def test_chance_faults_meet_any_step(step: int) -> None:
    asked = after_tool("hello") if step else conversation("hello")
    reply = plan(asked, chance=parse_directives("[[cut after=2]]"))
    assert reply.fault == Cut(after=2)
    assert "hello" in text(reply)


def test_a_tool_drawn_by_chance_is_called_once_and_hides_no_memory() -> None:
    chance = parse_directives("[[tool Bash]]")
    reply = plan(conversation("hello"), chance=chance)
    assert (shown(reply.blocks), reply.stop_reason) == ([{"Bash": {}}], "tool_use")
    reply = plan(after_tool("hello"), chance=chance)
    assert text(reply).startswith("Bash answered:\nout\n\nYou said: ")
    assert reply.stop_reason == "end_turn"


def test_thinking_drawn_by_chance_comes_before_the_answer() -> None:
    blocks = plan(conversation("hello"), chance=parse_directives("[[think hm]]")).blocks
    assert [type(block) for block in blocks] == [Thinking, Text]


def test_chance_leaves_a_prompt_with_directives_alone() -> None:
    assert plan(conversation("[[say x]]"), chance=parse_directives("[[cut]]")).fault is None
