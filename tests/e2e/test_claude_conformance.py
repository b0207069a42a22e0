"""`ClaudeAgent` conforms to the port, with the real CLI on the offline model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from session_supervisor.agents.claude import ClaudeAgent
from session_supervisor.agents.port import Agent, AgentProcess, Fingerprint
from session_supervisor.errors import FailureCode
from tests.e2e.offline import offline_model
from tests.supervisor.agents.conformance import AgentConformance, AgentHarness, Prompts

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

TAG = "CONFORMANCE_TEST"


def bash(command: str, **more: bool) -> str:
    return f"[[tool Bash {json.dumps({'command': command, 'description': 'd', **more})}]]"


def question(text: str, *, several: bool) -> dict[str, object]:
    options = [{"label": label, "description": f"as {label}"} for label in ("red", "blue")]
    return {"question": text, "header": "h", "options": options, "multiSelect": several}


QUESTIONS = [question("Which?", several=True), question("How many?", several=False)]

PROMPTS = Prompts(
    say=lambda text: f"[[say {text}]]",
    blocks=lambda blocks: " ".join(f"[[say {block}]]" for block in blocks),
    quote="What did I say?",
    slow="[[slow tokens=200 delay_ms=100]]",
    think="[[think Let me see.]] [[say That is it.]]",
    tool=bash("echo the output") + " [[say It ran.]]",
    tool_name="Bash",
    tool_result="the output",
    slow_tool=bash("python3 -c 'import time; time.sleep(30)'"),
    hang="[[hang before]]",
    cut="[[slow tokens=4 delay_ms=50]] [[cut after=3 times=1]]",
    cut_text="w0 w1 w2 w3",
    retry="[[fail status=529 times=1]] [[say At last.]]",
    fail="[[fail status=400]]",
    fail_code=FailureCode.UPSTREAM_REFUSED,
    giant=lambda size: f"[[big bytes={size}]]",
    alone=bash("sleep 1", run_in_background=True) + " [[say It runs.]]",
    permission=lambda word: bash(f"echo {word} > made; cat made") + " [[say Well.]]",
    permission_tool="Bash",
    permission_input=lambda word: {"command": f"echo {word} > made; cat made"},
    question=f"[[tool AskUserQuestion {json.dumps({'questions': QUESTIONS})}]] [[say I see.]]",
    edit=f"[[tool Write {json.dumps({'file_path': 'made', 'content': 'x'})}]]",
    form="Is it so?",
    no_form="[[say no form]] [[stop reason=end_turn]]",
)


class ClaudeHarness(AgentHarness):
    patience_s = 30.0
    stop_s = 8.0
    quiet_s = 0.5

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self._tag = f"{TAG}={uuid.uuid4()}"
        self._cwd = folder / "cwd"
        self._cwd.mkdir()
        name, _, value = self._tag.partition("=")
        agent = ClaudeAgent(
            # IS_SANDBOX: also root may then bypass permissions, which slow tools would need.
            env={**env, name: value, "IS_SANDBOX": "1"},
            config_dir=folder / "config",
            allow_bypass_permissions=True,
        )
        super().__init__(agent, PROMPTS)

    def run(self, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run(test())

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(owner="local", cwd=str(self._cwd), permission_mode="bypassPermissions")

    def elsewhere(self) -> Fingerprint:
        folder = self._cwd.with_name("elsewhere")
        folder.mkdir(exist_ok=True)
        return replace(self.fingerprint(), cwd=str(folder))

    def without_program(self) -> Agent:
        return ClaudeAgent(cli_path="/nowhere/claude", allow_bypass_permissions=True)

    def crash(self, process: AgentProcess) -> None:
        self._signal(process, signal.SIGKILL)

    def freeze(self, process: AgentProcess) -> None:
        self._signal(process, signal.SIGSTOP)

    def thaw(self, process: AgentProcess) -> None:
        self._signal(process, signal.SIGCONT)

    def live(self) -> int:
        return sum(self._is_tagged(pid) for pid in os.listdir("/proc") if pid.isdigit())

    def _is_tagged(self, pid: str) -> bool:
        try:
            environment = Path("/proc", pid, "environ").read_bytes()
        except OSError:
            return False
        return self._tag.encode() in environment.split(b"\0")

    @staticmethod
    def _signal(process: AgentProcess, number: signal.Signals) -> None:
        assert process.pid is not None
        os.kill(process.pid, number)


@pytest.fixture(scope="module")
def model() -> Iterator[dict[str, str]]:
    with offline_model() as env:
        yield env


class TestClaudeConformance(AgentConformance):
    @pytest.fixture
    def harness(self, model: dict[str, str], tmp_path: Path) -> AgentHarness:
        return ClaudeHarness(model, tmp_path)
