"""The terminal client, at a terminal, against the real server and the real CLI."""

from __future__ import annotations

import json
import os
import re
import sys
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.relay import Relay
from tests.e2e.server import OFFLINE, ROOT, Server, running_server
from tests.e2e.sse import Client
from tests.e2e.terminal import CTRL_C, CTRL_D, Terminal, at_a_terminal
from tests.http.keyring import Keys
from tests.support.trees import below

pytestmark = [pytest.mark.e2e]

CHAT = str(ROOT / "examples" / "chat.py")
END = r"\((?:completed|interrupted), [^)]*\)\n"
PROMPT = r"\n> "


@contextmanager
def chatting(
    folder: Path, url: str, *options: str, env: dict[str, str] | None = None
) -> Generator[Terminal]:
    """Run the client; it is at its prompt then, if it is to get there."""
    folder.mkdir(exist_ok=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "SESSION_SUPERVISOR_TEST_RUN")
    }
    environment = {**kept, "HOME": str(folder), "LANG": "C.UTF-8", **(env or {})}
    command = [sys.executable, CHAT, "--url", url, *options]
    with at_a_terminal(command, cwd=folder, env=environment) as terminal:
        yield terminal


@pytest.fixture(autouse=True)
def _no_session_stays(server: Server) -> Generator[None]:
    with server.client() as client:
        before = set(client.get("/sessions")["active_sessions"])
        yield
        for session_id in set(client.get("/sessions")["active_sessions"]) - before:
            client.delete(f"/session/{session_id}")


@pytest.fixture
def chat(tmp_path: Path, server: Server) -> Generator[Terminal]:
    """The client in a new session."""
    with chatting(tmp_path / "chat", server.url) as terminal:
        terminal.until(r"can be typed\.\n> ")
        yield terminal


def leave(terminal: Terminal) -> str:
    """Leave the client; return the id of its session."""
    terminal.type("/quit")
    last = terminal.until(r"--session [0-9a-f-]{36}")
    assert terminal.ends() == 0
    return last.rpartition(" ")[2]


def session_in(terminal: Terminal) -> str:
    """Ask the client which session it is in."""
    terminal.type("/session")
    found = re.search(r"[0-9a-f-]{36}", terminal.until(r"[0-9a-f-]{36}, \w+, [^\n]*\n> "))
    assert found is not None
    return found[0]


def bash(command: str) -> str:
    return call("Bash", command=command)


def call(tool: str, **given: object) -> str:
    return f"[[tool {tool} {json.dumps(given)}]]"


# -- talking -----------------------------------------------------------------------------------


def test_a_conversation_streams_and_remembers(chat: Terminal) -> None:
    chat.type("My name is Ada.")
    assert "That is the first thing you said" in chat.until(END)
    chat.until("> ")
    chat.type("What is my name?")
    assert '1. "My name is Ada."' in chat.until(END)
    chat.until("> ")
    chat.type("[[say One]] \\")
    chat.until(r"\. ")
    chat.type("[[say Two]]")
    assert "\nOne\n\nTwo\n" in chat.until(END)
    chat.until("> ")
    chat.press(CTRL_D)
    assert chat.ends() == 0


def test_text_is_there_as_soon_as_it_is_written(chat: Terminal) -> None:
    chat.type("[[slow tokens=12 delay_ms=300]]")
    chat.until("w1 w2")
    assert "w11" not in chat.text, "it is there with the rest"
    assert chat.until(END).startswith(" w3 w4 w5 w6 w7 w8 w9 w10 w11\n")


def test_thinking_and_tools_are_dimmed_and_answers_are_not(chat: Terminal) -> None:
    chat.type(f"[[think Let me see.]] {bash('echo $((40 + 2))')} [[say I saw it.]]")
    chat.until(END)
    raw = chat.raw.replace("\r\n", "\n").replace("\x1b[0m\x1b[2;3m", "")  # as if it came at once
    for dimmed in ("Let me see.", "* Bash", "    echo $((40 + 2))", "    42"):
        assert re.search(rf"\x1b\[2[;\d]*m{re.escape(dimmed)}\x1b\[0m", raw), dimmed
    assert "\nI saw it.\n" in raw


def test_what_could_drive_the_terminal_is_left_out(chat: Terminal, server: Server) -> None:
    command = r"printf '\033]0;owned\007\033[2J\302\233 \342\200\256 plain'"
    chat.type(f"{bash(command)}")
    chat.until(END)
    assert "\x1b]" not in chat.raw
    assert "\x1b[2J" not in chat.raw
    assert not {"\x07", "\x9b", "\u202e"} & set(chat.raw)
    assert "]0;owned[2J" in chat.text


def test_a_failed_turn_says_why_and_the_conversation_goes_on(chat: Terminal) -> None:
    chat.type("[[fail status=400]]")
    chat.until(r"\[upstream_invalid_request\]\n")
    chat.until("> ")
    chat.type("[[say Still here.]]")
    chat.until(rf"\nStill here\.\n{END}")


def test_what_the_model_withdraws_does_not_count(chat: Terminal) -> None:
    chat.type("[[slow tokens=12 delay_ms=20]] [[cut after=5 times=1]]")
    said = chat.until(END)
    *_, last = re.split(r"\(the model broke off and begins again[^)]*\)", said)
    assert "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11" in last
    assert "(the whole answer:)" not in said


# -- interrupting --------------------------------------------------------------------------------


def test_ctrl_c_stops_the_turn_and_the_conversation_goes_on(chat: Terminal) -> None:
    chat.type("[[slow tokens=1000 delay_ms=50]]")
    chat.until("w3")
    chat.press(CTRL_C)
    assert "(interrupted," in chat.until(END)
    chat.until("> ")
    chat.type("[[say And now this.]]")
    chat.until(rf"\nAnd now this\.\n{END}")


def test_ctrl_c_twice_leaves_where_nothing_runs(chat: Terminal) -> None:
    chat.press(CTRL_C)
    chat.until(r"Ctrl-C again, or /quit, leaves\)\n> ")
    chat.type("[[say Not yet.]]")
    chat.until(END + "> ")
    chat.press(CTRL_C)
    chat.until(r"leaves\)\n> ")
    chat.press(CTRL_C)
    chat.until("Go on with: chat.py --session")
    assert chat.ends() == 0


def test_ctrl_c_twice_leaves_a_turn_whose_server_does_not_answer(
    tmp_path: Path, server: Server
) -> None:
    with Relay(server.url) as relay, chatting(tmp_path / "chat", relay.url) as chat:
        chat.until("> ")
        chat.type("[[slow tokens=400 delay_ms=50]]")
        chat.until("w3")
        relay.cut(refuse=True)
        chat.until("coming back")
        chat.press(CTRL_C)
        chat.until("Ctrl-C again leaves")
        chat.press(CTRL_C)
        chat.until("Go on with")
        assert chat.ends() == 0


# -- coming back -----------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words of slow answers, less what the client says itself."""
    return re.findall(r"\bw\d+", re.sub(r"\((?!w\d)[^)]*\)", "", text))


def test_a_lost_connection_loses_and_doubles_nothing(tmp_path: Path, server: Server) -> None:
    with Relay(server.url) as relay, chatting(tmp_path / "chat", relay.url) as chat:
        chat.until("> ")
        chat.type("[[slow tokens=160 delay_ms=50]]")
        said = chat.until("w5")
        for _ in range(3):
            relay.cut()
            said += chat.until(r"connected again\)\n.*?w\d+")
        relay.cut(refuse=True)
        said += chat.until("coming back")
        relay.mend()
        said += chat.until(END)
        assert words(said) == [f"w{number}" for number in range(160)]
        assert "(the whole answer:)" not in said


def test_a_prompt_that_does_not_arrive_is_sent_again_and_asked_once(
    tmp_path: Path, server: Server
) -> None:
    with Relay(server.url) as relay, chatting(tmp_path / "chat", relay.url) as chat:
        chat.until("> ")
        relay.cut(refuse=True)
        chat.type("Are you there?")
        chat.until("trying again")
        relay.mend()
        chat.until(END)
        session_id = leave(chat)
    with server.client() as client:
        assert len(client.get(f"/session/{session_id}/turns")["turns"]) == 1


def test_the_conversation_goes_on_when_the_server_was_restarted(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    with (
        running_server(folder, *OFFLINE) as first,
        Relay(first.url) as relay,
        chatting(tmp_path / "chat", relay.url) as chat,
    ):
        chat.until("> ")
        chat.type("My name is Ada.")
        chat.until(END)
        chat.until("> ")
        first.stop()
        chat.type("What is my name?")
        chat.until("trying again")
        with running_server(folder, *OFFLINE) as second:
            relay.lead_to(second.url)
            said = chat.until(END)
            assert '1. "My name is Ada."' in said
            leave(chat)


def test_a_turn_that_a_killed_server_lost_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    with (
        running_server(folder, *OFFLINE) as first,
        Relay(first.url) as relay,
        chatting(tmp_path / "chat", relay.url) as chat,
    ):
        chat.until("> ")
        chat.type("[[slow tokens=1000 delay_ms=50]]")
        chat.until("w5")
        first.process.kill()
        first.process.wait()
        chat.until("coming back")
        with running_server(folder, *OFFLINE) as second:
            relay.lead_to(second.url)
            chat.until(r"The server went away .*?\[crashed\]\n.*?> ")
            chat.type("[[say On we go.]]")
            chat.until(rf"\nOn we go\.\n{END}")
            leave(chat)


# -- approvals and questions -----------------------------------------------------------------------


@pytest.fixture
def made(server: Server) -> str:
    """A name that no file has yet."""
    return f"{uuid.uuid4()}.txt"


def test_a_tool_call_is_allowed(chat: Terminal, server: Server, made: str) -> None:
    chat.type(f"{bash(f'echo yes > {made}')} [[say Done.]]")
    assert f"echo yes > {made}" in chat.until(r"allow\? \[a/s/e/d/q\] ")
    assert not below(server.folder, made)
    chat.type("")
    chat.until(r"allow\? \[a/s/e/d/q\] ")
    chat.type("what?")
    chat.until(r"allow\? \[a/s/e/d/q\] ")
    assert not below(server.folder, made), "only an answer is an answer"
    chat.type("a")
    chat.until(rf"\nDone\.\n{END}")
    assert [file.read_text() for file in below(server.folder, made)] == ["yes\n"]


def test_a_tool_call_is_edited(chat: Terminal, server: Server, made: str) -> None:
    chat.type(f"{bash(f'echo no > {made}')} [[say Done.]]")
    chat.until(r"allow\? \[a/s/e/d/q\] ")
    chat.type("e")
    chat.until("command: ")
    chat.type(f"echo edited > {made}")
    chat.until(END)
    assert [file.read_text() for file in below(server.folder, made)] == ["edited\n"]
    chat.until("> ")
    chat.type(call("Write", file_path=f"{made}-2", content="no"))
    chat.until(r"allow\? \[a/s/e/d/q\] ")
    chat.type("e")
    chat.until("as JSON: ")
    chat.type("{not json")
    chat.until(r"no JSON.*?allow\? \[a/s/e/d/q\] ")
    chat.type("e")
    chat.until("as JSON: ")
    chat.type(json.dumps({"file_path": f"{made}-2", "content": "as I say"}))
    chat.until(END)
    assert [file.read_text() for file in below(server.folder, f"{made}-2")] == ["as I say"]


def test_a_tool_call_is_denied_with_a_message_and_the_turn_goes_on(
    chat: Terminal, server: Server, made: str
) -> None:
    chat.type(f"{bash(f'echo no > {made}')} [[result]]")
    chat.until(r"allow\? \[a/s/e/d/q\] ")
    chat.type("d")
    chat.until(r"why\?[^\n]*empty\) ")
    chat.type("Not on a Friday.")
    assert chat.until(END).count("Not on a Friday.") >= 2, "its echo, and what the model was told"
    assert not below(server.folder, made)


def test_a_tool_call_is_denied_and_ends_the_turn(chat: Terminal, server: Server, made: str) -> None:
    chat.type(f"{bash(f'echo no > {made}')} [[say I go on.]]")
    chat.until(r"allow\? \[a/s/e/d/q\] ")
    chat.type("q")
    chat.until(r"empty\) ")
    chat.type("")
    said = chat.until(END)
    assert "(interrupted," in said
    assert "I go on." not in said
    assert not below(server.folder, made)


def test_a_tool_call_is_always_allowed_in_the_session(
    chat: Terminal, server: Server, made: str
) -> None:
    prompt = f"{bash(f'touch {made}')} [[say Done.]]"
    chat.type(prompt)
    chat.until(r"allow\? \[a/s/e/d/q\] ")
    chat.type("s")
    chat.until(END)
    chat.until("> ")
    chat.type(prompt)
    assert "allow?" not in chat.until(END)
    assert below(server.folder, made)


def test_ctrl_c_at_a_request_interrupts_the_turn(chat: Terminal, server: Server, made: str) -> None:
    chat.type(f"{bash(f'echo no > {made}')} [[say Never.]]")
    chat.until(r"allow\? \[a/s/e/d/q\] ")
    chat.press(CTRL_C)
    assert "(interrupted," in chat.until(END)
    assert not below(server.folder, made)


def test_a_request_that_somebody_else_answers_is_asked_no_more(
    chat: Terminal, server: Server, client: Client, made: str
) -> None:
    session_id = session_in(chat)
    chat.type(f"{bash(f'echo yes > {made}')} [[say Done.]]")
    chat.until(r"allow\? \[a/s/e/d/q\] ")
    (waiting,) = client.get(f"/session/{session_id}/permissions")["permissions"]
    client.post(f"/session/{session_id}/permissions/{waiting['request_id']}", decision="allow")
    chat.until(r"no answer is needed any more")
    chat.until(rf"\nDone\.\n{END}")


ASKED = call(
    "AskUserQuestion",
    questions=[
        {
            "question": "Which database?",
            "header": "Database",
            "multiSelect": False,
            "options": [
                {"label": "PostgreSQL", "description": "a server"},
                {"label": "SQLite", "description": "a file"},
            ],
        },
        {
            "question": "Which colours?",
            "header": "Colours",
            "multiSelect": True,
            "options": [
                {"label": "Red", "description": ""},
                {"label": "Green", "description": ""},
                {"label": "Blue", "description": ""},
            ],
        },
    ],
)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("2", "1,3"), ("SQLite", "Red, Blue")),
        (("something of my own", "green, and a bit of grey"), None),
    ],
)
def test_questions_are_answered_by_number_or_in_words(
    chat: Terminal, typed: tuple[str, str], told: tuple[str, str] | None
) -> None:
    chat.type(f"{ASKED} [[result]]")
    shown = chat.until("answer: ")
    assert "Which database?" in shown
    assert "  2. SQLite  a file\n" in shown
    chat.type(typed[0])
    assert "  3. Blue\n" in chat.until("answer: ")
    chat.type(typed[1])
    said = chat.until(END)
    for answer in told or typed:
        assert answer in said.partition(typed[1])[2]


def test_a_question_without_an_answer_does_not_hold_the_turn(chat: Terminal) -> None:
    chat.type(f"{ASKED} [[say Then not.]]")
    chat.until("answer: ")
    chat.type("")
    chat.until("answer: ")
    chat.type("")
    chat.until(rf"Then not\.\n{END}")


# -- commands --------------------------------------------------------------------------------------


def test_the_commands(chat: Terminal, server: Server, tmp_path: Path) -> None:
    def command(line: str) -> str:
        chat.type(line)
        return chat.until(PROMPT)

    assert "/compact" in command("/help")
    assert "There is no /nonsense" in command("/nonsense")
    assert "model: opus" in command("/model opus")
    assert "model: opus" in command("/model")
    assert "permission_mode: acceptEdits" in command("/mode acceptEdits")
    assert "permission_mode" in command("/mode nonsense")
    assert "(none)" in command("/files")
    chat.type(call("Write", file_path="out/report.md", content="# It works\n"))
    chat.until(END + "> ")
    assert "out/report.md  11 bytes" in command("/files")
    assert "saved as report.md" in command("/files out/report.md")
    assert (tmp_path / "chat" / "report.md").read_text() == "# It works\n"
    assert "here already" in command("/files out/report.md")
    assert "There is no" in command("/files ../secret")
    assert "There is no file" in command("/files nothing")
    assert re.search(r"\$0\.\d{4}", command("/cost"))


def test_a_fork_goes_its_own_way(chat: Terminal, server: Server) -> None:
    chat.type("My name is Ada.")
    chat.until(END + "> ")
    first = session_in(chat)
    chat.type("/fork another way")
    second = chat.until(r"This is now [0-9a-f-]{36}").rpartition(" ")[2]
    chat.until("> ")
    chat.type("What is my name?")
    assert '1. "My name is Ada."' in chat.until(END)
    chat.until("> ")
    assert leave(chat) == second != first
    with server.client() as client:
        assert client.get(f"/session/{second}")["title"] == "another way"
        assert len(client.get(f"/session/{first}/turns")["turns"]) == 1


def test_a_conversation_is_summed_up(chat: Terminal) -> None:
    chat.type("/compact")
    chat.until(PROMPT)
    chat.type("My name is Ada.")
    chat.until(END + "> ")
    chat.type("/compact")
    chat.until(END + "> ")
    chat.type("[[say Still here.]]")
    chat.until(rf"\nStill here\.\n{END}")


# -- which session, and who ------------------------------------------------------------------------


def test_one_goes_on_with_a_session_also_in_the_middle_of_a_turn(
    tmp_path: Path, server: Server
) -> None:
    with chatting(tmp_path / "chat", server.url) as chat:
        chat.until("> ")
        chat.type("My name is Ada.")
        chat.until(END + "> ")
        session_id = leave(chat)
    with server.client() as client:
        made = f"{uuid.uuid4()}.txt"
        prompt = f"[[slow tokens=5 delay_ms=20]] {bash(f'touch {made}')} [[say Made.]]"
        client.http.post(
            f"/session/{session_id}/query", params={"wait": "false"}, json={"prompt": prompt}
        )
        with chatting(tmp_path / "chat", server.url, "--session", session_id) as chat:
            assert "> My name is Ada.\n" in chat.until("w0 w1 w2 w3 w4")
            chat.until(r"allow\? \[a/s/e/d/q\] ")
            chat.type("a")
            chat.until(rf"Made\.\n{END}")
            chat.until("> ")
            chat.type("What did I say?")
            assert '1. "My name is Ada."' in chat.until(END)
            assert leave(chat) == session_id


def test_a_session_that_somebody_ends_is_over(chat: Terminal, client: Client) -> None:
    session_id = session_in(chat)
    chat.type("[[slow tokens=400 delay_ms=50]]")
    chat.until("w3")
    client.delete(f"/session/{session_id}")
    chat.until(r"\[closed\]")
    chat.until("> ")
    chat.type("")
    chat.until("The session has ended")
    assert chat.ends() == 1


def test_there_is_no_chat_where_there_is_no_server_or_no_such_session(
    tmp_path: Path, server: Server
) -> None:
    for url, options, why in (
        ("http://127.0.0.1:9", (), "cannot be reached"),
        (server.url, ("--session", str(uuid.uuid4())), "There is no session"),
        (server.url, ("--mode", "nonsense"), "permission_mode"),
    ):
        with chatting(tmp_path / "chat", url, *options) as chat:
            chat.until(why)
            if options:
                assert chat.ends() == 1
            else:  # it tries again until somebody has had enough
                chat.press(CTRL_C)
                assert chat.ends() == 1


def test_a_key_comes_from_the_environment_or_an_option(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    keys = Keys(folder)
    key = keys.add("ada").token
    with running_server(folder, *OFFLINE, f"--keys={keys.file}") as server:
        for options, env in (((), {"CHAT_KEY": key}), (("--key", key), {})):
            with chatting(tmp_path / "chat", server.url, *options, env=env) as chat:
                chat.until(r"can be typed\.\n> ")
                leave(chat)
        with chatting(tmp_path / "chat", server.url) as chat:
            chat.until("key")
            assert chat.ends() == 1
