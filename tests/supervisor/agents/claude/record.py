"""Writes `recorded/*.jsonl` anew: what the real CLI prints in each situation, on the offline model.

Run it after an update of claude-agent-sdk, and read the differences:

    PYTHONPATH=.:supervisor:http python -m tests.supervisor.agents.claude.record [NAME ...]
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pydantic import JsonValue

from session_http.offline import Kind, OfflineModel, app
from session_http.offline.conversation import Conversation
from session_http.offline.reply import Reply, ToolUse
from session_http.offline.script import plan
from session_supervisor.agents.claude import ClaudeAgent, ClaudeProcess, agent
from session_supervisor.agents.claude.translate import Translator
from session_supervisor.agents.port import AgentMessage, Fingerprint, TextDelta, ToolStarted
from session_supervisor.spec import JsonObject, Prompt

FOLDER = Path(__file__).with_name("recorded")

A = "00000000-0000-4000-8000-00000000000a"
B = "00000000-0000-4000-8000-00000000000b"

_KEPT = {
    "type",
    "subtype",
    "event",
    "message",
    "error",
    "parent_tool_use_id",
    "user_message_uuid",
    "user_message_uuids",
    "status",
    "session_id",
    "model",
    "tools",
    "claude_code_version",
    "tasks",
    "attempt",
    "max_retries",
    "retry_delay_ms",
    "error_status",
    "is_error",
    "num_turns",
    "result",
    "errors",
    "stop_reason",
    "total_cost_usd",
    "terminal_reason",
    "api_error_status",
    "permission_denials",
    "origin",
    "rate_limit_info",
    "task_id",
    "command_uuid",
    "state",
}
"""Of each frame; the rest is long, or differs each time, and nothing depends on it."""


@dataclass
class Stage:
    """One process, and what it has printed."""

    process: ClaudeProcess
    frames: list[JsonObject]
    messages: list[AgentMessage] = field(default_factory=list[AgentMessage])

    async def ask(self, text: str, prompt_id: str = A) -> None:
        await self.process.send(Prompt(prompt_id=prompt_id, text=text))

    async def results(self, count: int = 1) -> None:
        await self.until(lambda: sum(one["type"] == "result" for one in self.frames) >= count)

    async def said(self, kind: type[AgentMessage], count: int = 1) -> None:
        await self.until(lambda: sum(isinstance(one, kind) for one in self.messages) >= count)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110  # frames come from a real process
                await asyncio.sleep(0.01)


def asking(text: str) -> Callable[[Stage], Awaitable[None]]:
    async def play(stage: Stage) -> None:
        await stage.ask(text)
        await stage.results()

    return play


async def interrupted_text(stage: Stage) -> None:
    await stage.ask("[[slow tokens=100 delay_ms=100]]")
    await stage.said(TextDelta, 3)
    await stage.process.interrupt()
    await stage.results()


async def interrupted_tool(stage: Stage) -> None:
    await stage.ask(bash("python3 -c 'import time; time.sleep(30)'"))
    await stage.said(ToolStarted)
    await asyncio.sleep(0.5)
    await stage.process.interrupt()
    await stage.results()


async def background(stage: Stage) -> None:
    await stage.ask(bash("sleep 0.5; echo late", run_in_background=True) + " [[say started]]")
    await stage.results(2)


async def taken_in(stage: Stage) -> None:
    """A prompt arrives while a turn of the agent's own runs a tool."""
    await stage.ask(bash("sleep 0.3", run_in_background=True) + " [[say started]]")
    await stage.said(ToolStarted, 2)
    await stage.ask("[[say yours]]", B)
    await stage.results(2)


def with_a_tool(conversation: Conversation, **how: Any) -> Reply:
    """Use a tool where the offline model has no directive to do so: in the agent's own turns."""
    if conversation.kind is Kind.NOTICE and not conversation.results:
        call = ToolUse(name="Bash", input={"command": "sleep 1; echo tool"})
        return Reply(blocks=(call,), stop_reason="tool_use", input_tokens=1, output_tokens=1)
    return plan(conversation, **how)


def bash(command: str, **more: JsonValue) -> str:
    return f"[[tool Bash {json.dumps({'command': command, 'description': 'd', **more})}]]"


_SUBAGENT = json.dumps(
    {
        "description": "sub",
        "prompt": bash("echo below") + " [[say I am below]]",
        "subagent_type": "general-purpose",
        "run_in_background": False,
    }
)

SCENES: Mapping[str, Callable[[Stage], Awaitable[None]]] = {
    "plain": asking("[[say one]] [[say two]]"),
    "thinking": asking("[[think hm]] [[say so]]"),
    "tool": asking("[[say before]] " + bash("echo hi") + " [[say after]]"),
    "tool_denied": asking(bash("touch x") + " [[say after]]"),
    "cut_in_first_block": asking("[[slow tokens=4 delay_ms=50]] [[cut after=2 times=1]]"),
    "cut_in_second_block": asking("[[say one]] [[say two]] [[cut block=2 after=1 times=1]]"),
    "cut_after_tool_call": asking("[[cut after=99 times=1]] " + bash("echo hi") + " [[say after]]"),
    "failed_mid_stream": asking(
        "[[slow tokens=4 delay_ms=50]] [[fail status=529 after=2 times=1]]"
    ),
    "interrupted_text": interrupted_text,
    "interrupted_tool": interrupted_tool,
    "background": background,
    "taken_in": taken_in,
    "subagent": asking(f"[[tool Task {_SUBAGENT}]] [[say after]]"),
    "error_400": asking("[[fail status=400]]"),
    "error_401": asking("[[fail status=401]]"),
    "error_404": asking("[[fail status=404]]"),
    "error_429": asking("[[fail status=429 retry_after=0]]"),
    "error_500": asking("[[fail status=500]]"),
    "error_529": asking("[[fail status=529]]"),
    "refusal": asking("[[say no]] [[stop reason=refusal]]"),
    "max_tokens": asking("[[say much]] [[stop reason=max_tokens]]"),
    "max_turns": asking(bash("echo 1") + bash("echo 2") + bash("echo 3") + " [[say after]]"),
}


async def record(name: str, config: str, cwd: str) -> None:
    frames: list[JsonObject] = []

    class Recorder(Translator):
        def feed(self, frame: JsonObject) -> list[AgentMessage]:
            frames.append(frame)
            return super().feed(frame)

    async with OfflineModel() as model:
        env = {**model.environment(), "CLAUDE_CODE_MAX_RETRIES": "1"}
        with patch.object(agent, "Translator", Recorder), patch.object(app, "plan", with_a_tool):
            process = await ClaudeAgent(env=env, config_dir=config).spawn(
                Fingerprint(
                    owner="local",
                    cwd=cwd,
                    allowed_tools=None if name == "tool_denied" else ("Bash", "Task"),
                    max_turns=2 if name == "max_turns" else None,
                )
            )
            stage = Stage(process, frames)

            async def read() -> None:
                async for message in process.messages():
                    stage.messages.append(message)

            reader = asyncio.create_task(read())
            try:
                await SCENES[name](stage)
            finally:
                played = list(frames)
                await process.stop()
                await reader
    lines = [json.dumps(_trimmed(frame)) for frame in played]
    FOLDER.joinpath(f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def _trimmed(frame: JsonObject) -> JsonObject:
    kept = {key: value for key, value in frame.items() if key in _KEPT}
    message = kept.get("message")
    if isinstance(message, dict):
        kept["message"] = {key: message[key] for key in ("model", "content") if key in message}
    event = kept.get("event")
    if isinstance(event, dict) and event.get("type") == "message_start":
        kept["event"] = {"type": "message_start"}
    return kept


async def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or SCENES:
        with tempfile.TemporaryDirectory() as config, tempfile.TemporaryDirectory() as cwd:
            await record(name, config, cwd)
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
