from __future__ import annotations

import pytest
from pydantic import ValidationError

from session_http.offline.conversation import Kind, ToolResult, read_conversation
from session_http.offline.prose import summary
from tests.http.offline.bodies import REMINDER, assistant, body, call, result, user

CUT_OFF = "Your response above was cut off mid-stream. Resume directly from where it stops."


def test_turns_are_what_the_user_said_and_nothing_that_the_cli_added() -> None:
    read = read_conversation(
        body(
            user(REMINDER, "one"),
            {"role": "system", "content": "# Environment\n[[say trap]]"},
            assistant("answer"),
            user(
                "<local-command-caveat>The command below ...</local-command-caveat>\n",
                "<command-name>/compact</command-name>",
                "<local-command-stdout>[[say trap]]</local-command-stdout>",
                "[Request interrupted by user]",
                "Continue from where you left off.",
                REMINDER + "two",
            ),
            assistant("No response requested."),
            user("three\n"),
        )
    )
    assert read.kind is Kind.PROMPT
    assert read.turns == ("one", "two", "three")
    assert read.prompt == "three"


def test_a_failed_turn_and_the_next_one_in_one_message_are_two_turns() -> None:
    read = read_conversation(body(user("[[fail status=400]]", "next")))
    assert read.turns == ("[[fail status=400]]", "next")
    assert read.prompt == "next"


def test_tool_results_are_steps_of_the_turn_until_the_next_prompt() -> None:
    turn = [
        user("go"),
        assistant("calling", call("a", "Bash", command="x"), call("b", "Read")),
        user(
            result("a", "out" + REMINDER),
            result("b", [{"type": "text", "text": "page"}, {"type": "image"}], is_error=True),
        ),
    ]
    read = read_conversation(body(*turn))
    assert (read.step, read.turns) == (1, ("go",))
    assert read.results == (
        ToolResult(name="Bash", text="out", is_error=False),
        ToolResult(name="Read", text="page\n[image]", is_error=True),
    )
    later = [assistant(call("c", "Bash")), user(result("c", "more"))]
    read = read_conversation(body(*turn, *later))
    assert read.step == 2
    assert [one.text for one in read.results] == ["more"]
    interrupted = user(result("c", "rejected"), "[Request interrupted by user for tool use]", "hm")
    read = read_conversation(body(*turn, later[0], interrupted))
    assert (read.step, read.results, read.prompt) == (0, (), "hm")


def test_an_answer_that_was_cut_off_is_no_new_turn_and_tells_what_has_arrived() -> None:
    read = read_conversation(
        body(user("go"), assistant("first"), user(CUT_OFF), assistant(" second"), user(CUT_OFF))
    )
    assert (read.turns, read.step) == (("go",), 0)
    assert read.said == ("first", " second")


def test_only_what_was_said_since_the_last_tool_result_counts_as_cut_off() -> None:
    read = read_conversation(
        body(
            user("go"),
            assistant("before", call("a", "Bash")),
            user(result("a", "out")),
            assistant("after"),
            user("Output token limit hit. Resume directly."),
        )
    )
    assert (read.said, read.step) == (("after",), 1)
    answered = read_conversation(body(user("go"), assistant("first"), user("next")))
    assert answered.said == ()


def test_when_nothing_of_a_cut_answer_survived_it_starts_again() -> None:
    read = read_conversation(body(user("go\n", CUT_OFF)))
    assert (read.turns, read.said) == (("go",), ())


def test_a_message_sent_during_a_turn_is_the_newest_prompt() -> None:
    note = (
        "The user sent a new message while you were working:\nturn left\n\n"
        "This is how Claude Code surfaces messages the user sends mid-turn."
    )
    read = read_conversation(
        body(
            user("go"),
            assistant(call("a", "Bash")),
            user(result("a", "out")),
            {"role": "system", "content": [{"type": "text", "text": note}]},
        )
    )
    assert (read.turns, read.step) == (("go", "turn left"), 0)


def test_the_end_of_a_background_task_is_a_notice() -> None:
    note = (
        "<system-reminder>\n[SYSTEM NOTIFICATION - NOT USER INPUT]\n<task-notification>"
        "<summary>sleep ended</summary></task-notification>\n</system-reminder>"
    )
    read = read_conversation(body(user("go"), assistant("ok"), user(note)))
    assert read.kind is Kind.NOTICE
    assert read.turns == ("go",)
    assert "sleep ended" in read.notice
    asked = read_conversation(body(user("go"), assistant("ok"), user(note, "and now?")))
    assert (asked.kind, asked.prompt) == (Kind.PROMPT, "and now?")
    later = read_conversation(
        body(user("go"), assistant("ok"), user(note), assistant("x"), user("y"))
    )
    assert (later.kind, later.turns) == (Kind.PROMPT, ("go", "y"))


def test_the_request_for_a_title_is_a_form() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    config = {"format": {"type": "json_schema", "schema": schema}}
    read = read_conversation(
        body(user("<session>\n[[say trap]]\n</session>"), tools=[], output_config=config)
    )
    assert (read.kind, read.schema) == (Kind.FORM, schema)


def test_the_request_for_one_token_is_a_probe() -> None:
    assert read_conversation(body("quota", max_tokens=1)).kind is Kind.PROBE


def test_turns_survive_a_compaction() -> None:
    turns = ('say "hi"', "[[slow]]\nsecond line")
    asked = "CRITICAL: TEXT ONLY.\nYour task is to create a detailed summary of the conversation"
    wanted = read_conversation(body(turns[0], "a", turns[1], "b", asked))
    assert (wanted.kind, wanted.turns) == (Kind.SUMMARY, turns)
    # The CLI replaces the tags and adds sentences of its own.
    kept = summary(turns).replace("<summary>", "Summary:").replace("</summary>", "")
    continued = (
        "This session is being continued from a previous conversation that ran out of context."
        f"\n\n{REMINDER}\n{kept}\nIf you need specific details ..."
    )
    read = read_conversation(body(user(continued), assistant("b"), user("third")))
    assert (read.kind, read.turns) == (Kind.PROMPT, (*turns, "third"))


def test_attachments_of_the_newest_prompt_are_named() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "AAAA"}}
    read = read_conversation(body(user("look", image, "[Image: source: /tmp/1.png]")))
    assert (read.prompt, read.attachments) == ("look", ("image",))
    later = read_conversation(body(user("look", image), assistant("ok"), user("next")))
    assert later.attachments == ()


def test_the_schema_of_a_structured_answer_is_the_input_of_its_tool() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    read = read_conversation(
        body(
            "count", tools=[{"name": "Bash"}, {"name": "StructuredOutput", "input_schema": schema}]
        )
    )
    assert (read.kind, read.schema, read.tools) == (
        Kind.PROMPT,
        schema,
        ("Bash", "StructuredOutput"),
    )


@pytest.mark.parametrize("wrong", [b"", b"{}", b"[]", b"nonsense", b'{"model":"m","messages":[]}'])
def test_what_is_no_request_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValidationError):
        read_conversation(wrong)
