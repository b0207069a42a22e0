"""The real Claude Code CLI talks to the offline model, and shows what its directives promise.

What the CLI makes of each fault is asserted in detail: it is what the supervisor builds upon.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import claude_agent_sdk
import pytest
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    Message,
    PermissionResultAllow,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolPermissionContext,
    UserMessage,
)

from session_http.offline import Kind, OfflineModel

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

CUT_OFF = "Your response above was cut off mid-stream."


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the SDK has shown of one turn."""

    messages: Sequence[Message]

    @property
    def result(self) -> ResultMessage:
        last = self.messages[-1]
        assert isinstance(last, ResultMessage)
        return last

    @property
    def texts(self) -> list[str]:
        """The text blocks, as the answer has them."""
        return [
            block.text
            for message in self.messages
            if isinstance(message, AssistantMessage)
            for block in message.content
            if isinstance(block, TextBlock)
        ]

    @property
    def deltas(self) -> list[str]:
        """The text deltas, as they came."""
        return [
            message.event["delta"]["text"]
            for message in self.messages
            if isinstance(message, StreamEvent)
            and message.event.get("delta", {}).get("type") == "text_delta"
        ]

    @property
    def retries(self) -> list[int | None]:
        """The HTTP status of each failure after which the CLI tried again."""
        return [
            message.data["error_status"]
            for message in self.messages
            if isinstance(message, SystemMessage) and message.subtype == "api_retry"
        ]

    @property
    def injected(self) -> list[str]:
        """The text that the CLI itself said to the model as the user."""
        return [
            block.text
            for message in self.messages
            if isinstance(message, UserMessage) and not isinstance(message.content, str)
            for block in message.content
            if isinstance(block, TextBlock)
        ]


@dataclass(frozen=True, kw_only=True)
class Session:
    """A live CLI on an offline model."""

    model: OfflineModel
    client: ClaudeSDKClient
    folder: Path

    async def ask(self, prompt: str, *, seconds: float = 60) -> Turn:
        with anyio.fail_after(seconds):
            await self.client.query(prompt)
            return Turn(messages=[message async for message in self.client.receive_response()])


@asynccontextmanager
async def session(folder: Path, *, path: str = "", **options: Any) -> AsyncGenerator[Session]:
    """Run a CLI in a clean environment, and see to it that nothing of it is left."""
    mark = uuid.uuid4().hex
    async with OfflineModel() as model:
        environment = {
            **model.environment(),
            "ANTHROPIC_BASE_URL": model.base_url + path,
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CLAUDE_CONFIG_DIR": str(folder / "config"),
            "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
            "OFFLINE_TEST_MARK": mark,
            # So that the suite's own check for processes left behind knows them, too.
            "SESSION_SUPERVISOR_TEST_RUN": os.environ.get("SESSION_SUPERVISOR_TEST_RUN", ""),
            **options.pop("env", {}),
        }
        workspace = folder / "workspace"
        workspace.mkdir()
        client = ClaudeSDKClient(
            ClaudeAgentOptions(
                cli_path=_clean_cli(folder, environment),
                cwd=workspace,
                include_partial_messages=True,
                max_buffer_size=1 << 26,
                stderr=lambda line: None,
                **options,
            )
        )
        async with client:
            yield Session(model=model, client=client, folder=workspace)
    with anyio.fail_after(60):
        while _marked(mark):  # noqa: ASYNC110 - processes have no event here
            await anyio.sleep(0.05)


def _clean_cli(folder: Path, environment: dict[str, str]) -> Path:
    """A script that starts the CLI with this environment and no other variable."""
    bundled = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
    cli = str(bundled) if bundled.exists() else shutil.which("claude")
    assert cli, "the SDK has no bundled CLI here, and there is none on the PATH"
    settings = " ".join(f"'{name}={value}'" for name, value in environment.items())
    script = folder / "claude"
    script.write_text(f"#!/bin/sh\nexec env -i {settings} '{cli}' \"$@\"\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def _marked(mark: str) -> list[str]:
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_text(errors="replace"):
                found.append(process.name)
        except OSError:
            continue  # it has just ended
    return found


async def test_it_remembers_and_streams(tmp_path: Path) -> None:
    async with session(tmp_path, path="/s/TOKEN") as cli:
        await cli.ask("My number is 42")
        slow = await cli.ask("[[slow tokens=12 delay_ms=20]]")
        assert slow.deltas == ["w0", *(f" w{number}" for number in range(1, 12))]
        recalled = await cli.ask("What did I say?")
        (text,) = recalled.texts
        assert text == (
            'You said: "What did I say?"\n\nBefore that, you said:\n1. "My number is 42"\n'
            '2. "[[slow tokens=12 delay_ms=20]]"'
        )
        assert "".join(recalled.deltas) == recalled.result.result == text
        assert (recalled.result.total_cost_usd or 0) > 0
    assert {record.path for record in cli.model.requests} == {"/s/TOKEN/v1/messages"}
    assert [record.fault for record in cli.model.requests] == [None, None, None]


async def test_it_uses_tools(tmp_path: Path) -> None:
    async with session(tmp_path, allowed_tools=["Bash", "Read", "Write"]) as cli:
        turn = await cli.ask('[[say before]] [[tool Bash {"command": "echo $((6*7))"}]]')
        assert turn.texts == ["before", "Bash answered:\n42"]
        target = cli.folder / "note.txt"
        turn = await cli.ask(
            f'[[tool Write {{"file_path": "{target}", "content": "kept"}}]]'
            f'[[tool Read {{"file_path": "{target}"}}]] [[think Done.]] [[say read]] [[result]]'
        )
        assert target.read_text() == "kept"
        assert turn.texts == ["read", "Read answered:\n1\tkept"]
        thoughts = [
            block.thinking
            for message in turn.messages
            if isinstance(message, AssistantMessage)
            for block in message.content
            if isinstance(block, ThinkingBlock)
        ]
        assert thoughts == ["Done."]
        turn = await cli.ask(
            '[[tool Bash {"command": "echo a"}]] [[and Bash {"command": "echo b; exit 3"}]]'
        )
        assert turn.texts == ["Bash answered:\na\n\nBash failed:\nExit code 3\nb"]


async def test_it_asks_a_human(tmp_path: Path) -> None:
    async def answer(
        tool: str, arguments: dict[str, Any], context: ToolPermissionContext
    ) -> PermissionResultAllow:
        assert tool == "AskUserQuestion"
        (question,) = arguments["questions"]
        return PermissionResultAllow(
            updated_input={**arguments, "answers": {question["question"]: "Red"}}
        )

    async with session(tmp_path, can_use_tool=answer) as cli:
        turn = await cli.ask(
            '[[tool AskUserQuestion {"questions": [{"question": "Which?", "header": "Colour", '
            '"multiSelect": false, "options": [{"label": "Red", "description": "r"}, '
            '{"label": "Blue", "description": "b"}]}]}]]'
        )
        assert '"Which?"="Red"' in turn.texts[0]


async def test_it_gives_structured_output(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["title", "n"],
    }
    form = {"type": "json_schema", "schema": schema}
    async with session(tmp_path, output_format=form) as cli:
        turn = await cli.ask("Name three rivers")
        assert turn.result.structured_output == {"title": "Name three rivers", "n": 0}


async def test_a_cut_in_the_first_block_is_retried_from_the_start(tmp_path: Path) -> None:
    async with session(tmp_path) as cli:
        turn = await cli.ask("[[slow tokens=8 delay_ms=5]] [[cut after=4 times=1]]")
        assert turn.retries == [None]
        assert turn.deltas[:5] == ["w0", " w1", " w2", " w3", "w0"]
        assert turn.texts == ["w0 w1 w2 w3 w4 w5 w6 w7"]
        assert not turn.result.is_error
        # The CLI closes the cut block and message itself, so that only the retry tells.
        kinds = [m.event["type"] for m in turn.messages if isinstance(m, StreamEvent)]
        cut = kinds.index("message_stop")
        assert kinds[cut - 1] == "content_block_stop"
        assert kinds[cut + 1] == "message_start"


async def test_a_cut_after_a_finished_block_is_continued(tmp_path: Path) -> None:
    async with session(tmp_path, allowed_tools=["Bash"]) as cli:
        turn = await cli.ask(
            "[[say first block]] [[slow tokens=6 delay_ms=5]] [[cut block=2 after=3 times=1]]"
        )
        assert turn.retries == []
        assert turn.injected[0].startswith(CUT_OFF)
        assert turn.texts == ["first block", "w0 w1 w2 w3 w4 w5"]
        assert turn.deltas == ["first", " block", "w0", " w1", " w2", *turn.deltas[5:]]
        assert "".join(turn.deltas[5:]) == "w0 w1 w2 w3 w4 w5"
        turn = await cli.ask(
            '[[cut block=2 after=1 times=1]] [[say a]] [[tool Bash {"command": "echo ran"}]]'
        )
        assert turn.texts == ["a", "Bash answered:\nran"]
        # With a finished tool call before the cut, the CLI runs it and reports the loss as text.
        turn = await cli.ask(
            '[[cut block=2 after=1 times=1]] [[tool Bash {"command": "echo ran"}]]'
            '[[and Bash {"command": "echo lost"}]]'
        )
        assert turn.texts[0].startswith("API Error: Connection lost mid-response.")
        assert turn.texts[1:] == ["Bash answered:\nran"]
        assert not turn.result.is_error
        assert "[[say a]]" in (await cli.ask("recall")).texts[0]
        assert CUT_OFF not in (await cli.ask("recall")).texts[0]


async def test_an_output_limit_is_continued(tmp_path: Path) -> None:
    async with session(tmp_path) as cli:
        turn = await cli.ask("[[say one two three]] [[stop reason=max_tokens after=2 times=1]]")
        assert turn.texts == ["one two", " three"]
        refused = await cli.ask("[[say no]] [[stop reason=refusal times=1]]")
        assert refused.texts == ["no", "That is all."]


@pytest.mark.parametrize("status", [401, 429, 500, 529])
async def test_a_passing_failure_is_retried(tmp_path: Path, status: int) -> None:
    async with session(tmp_path) as cli:
        turn = await cli.ask(f"hello [[fail status={status} times=1 retry_after=0.1]]")
        assert turn.retries == [status]
        assert not turn.result.is_error
        assert "hello" in turn.texts[0]


async def test_lasting_failures_end_the_turn_and_spare_the_next(tmp_path: Path) -> None:
    async with session(tmp_path, env={"CLAUDE_CODE_MAX_RETRIES": "1"}) as cli:
        for status, tries in ((400, 0), (403, 0), (404, 0), (401, 1), (429, 1), (500, 1), (529, 1)):
            turn = await cli.ask(f"[[fail status={status} retry_after=0.1]]")
            assert turn.retries == [status] * tries
            assert turn.result.is_error
            assert turn.result.subtype == "success"
            assert turn.result.terminal_reason == "api_error"
            assert turn.result.api_error_status == status
        turn = await cli.ask("still there?")
        assert "7. " in turn.texts[0]
        assert not turn.result.is_error
        turn = await cli.ask("[[cut]]")
        assert turn.retries == [None]
        assert turn.result.terminal_reason == "api_error"
        assert turn.result.api_error_status is None


async def test_a_failure_in_mid_stream_is_answered_without_a_stream(tmp_path: Path) -> None:
    async with session(tmp_path) as cli:
        turn = await cli.ask("[[slow tokens=8 delay_ms=5]] [[fail status=529 after=3 times=1]]")
        # No retry is announced and no delta comes again: the block alone tells the answer.
        assert turn.retries == []
        assert turn.deltas == ["w0", " w1", " w2"]
        assert turn.texts == ["w0 w1 w2 w3 w4 w5 w6 w7"]
    assert [record.stream for record in cli.model.requests] == [True, False]


async def test_an_unknown_model_ends_the_turn(tmp_path: Path) -> None:
    async with session(tmp_path, model="no-such-model") as cli:
        turn = await cli.ask("hello")
        assert turn.result.is_error
        assert turn.result.api_error_status == 404


@pytest.mark.parametrize("prompt", ["[[hang before]]", "[[slow tokens=3]] [[hang mid after=2]]"])
async def test_a_hang_lasts_until_it_is_interrupted(tmp_path: Path, prompt: str) -> None:
    async with session(tmp_path) as cli:
        await cli.client.query(prompt)
        with anyio.fail_after(60):
            while not cli.model.requests:  # noqa: ASYNC110 - the record has no event
                await anyio.sleep(0.01)
        await anyio.sleep(0.5)
        await cli.client.interrupt()
        with anyio.fail_after(60):
            turn = Turn(messages=[m async for m in cli.client.receive_response()])
        assert turn.result.terminal_reason == "aborted_streaming"
        assert f'1. "{prompt}"' in (await cli.ask("next")).texts[0]


async def test_a_big_answer_arrives_whole(tmp_path: Path) -> None:
    async with session(tmp_path) as cli:
        turn = await cli.ask("[[big bytes=2000000]]")
        assert [len(text) for text in turn.texts] == [2_000_000]


async def test_memory_survives_a_compaction(tmp_path: Path) -> None:
    async with session(tmp_path) as cli:
        await cli.ask("My number is 42")
        await cli.ask("/compact")
        turn = await cli.ask("What did I say?")
        assert '1. "My number is 42"' in turn.texts[0]


async def test_the_request_for_a_title_disturbs_nothing(tmp_path: Path) -> None:
    traffic = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": ""}
    async with session(tmp_path, env=traffic) as cli:
        turn = await cli.ask("hello [[fail status=529 times=1]]")
        assert turn.retries == [529]
    kinds = {record.kind for record in cli.model.requests}
    assert kinds == {Kind.FORM, Kind.PROMPT}


async def test_the_end_of_a_background_task_is_answered(tmp_path: Path) -> None:
    async with session(tmp_path, allowed_tools=["Bash"]) as cli:
        turn = await cli.ask(
            '[[tool Bash {"command": "sleep 0.5; echo over", "run_in_background": true}]]'
            "[[say started]]"
        )
        assert turn.texts == ["started"]
        with anyio.fail_after(60):
            own = Turn(messages=[m async for m in cli.client.receive_response()])
        assert own.texts[0].startswith('I was told: "Background command')
    assert cli.model.requests[-1].kind is Kind.NOTICE
