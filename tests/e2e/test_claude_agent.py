"""`ClaudeAgent` with the real CLI: what goes beyond the port's conformance suite."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from session_http.offline import OfflineModel
from session_supervisor.agents.claude import ClaudeAgent, ClaudeProcess, tools
from session_supervisor.agents.claude.launch import MARKER, tied_to_us
from session_supervisor.agents.port import (
    AgentMessage,
    BackgroundWork,
    Fingerprint,
    Initialized,
    TextDelta,
    ToolFinished,
    ToolStarted,
    TurnBegan,
    TurnEnded,
    UpstreamRetry,
)
from session_supervisor.errors import AgentStartFailed, FailureCode
from session_supervisor.spec import Prompt
from tests.supervisor.agents.conformance import HeardTurn, heard_turns

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

SLEEP = "python3 -c 'import time; time.sleep(60)'"
TAG = "CLAUDE_AGENT_TEST"


def bash(command: str, **more: bool) -> str:
    return f"[[tool Bash {json.dumps({'command': command, 'description': 'd', **more})}]]"


@dataclass
class World:
    """An agent on the offline model, with directories of its own."""

    model: OfflineModel
    folder: Path
    tag: str = field(default_factory=lambda: str(uuid.uuid4()))

    def agent(self, env: dict[str, str] | None = None, **how: object) -> ClaudeAgent:
        settings = {**self.model.environment(), "CLAUDE_CODE_MAX_RETRIES": "1", TAG: self.tag}
        return ClaudeAgent(
            env={**settings, **(env or {})},
            config_dir=self.folder / "config",
            **how,  # type: ignore[arg-type]
        )

    @property
    def cwd(self) -> Path:
        path = self.folder / "cwd"
        path.mkdir(exist_ok=True)
        return path

    def fingerprint(self, *allowed: str) -> Fingerprint:
        return Fingerprint(owner="local", cwd=str(self.cwd), allowed_tools=allowed or None)

    def left(self) -> list[int]:
        """Processes of this world, children of children included."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self.has(pid)]

    def has(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"{TAG}={self.tag}".encode() in environment.split(b"\0")

    async def gone(self) -> None:
        async with asyncio.timeout(60):
            while self.left():  # noqa: ASYNC110  # nothing tells of the end of a process
                await asyncio.sleep(0.02)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with OfflineModel() as model:
        yield World(model, tmp_path)


@dataclass
class Talk:
    process: ClaudeProcess
    heard: list[AgentMessage] = field(default_factory=list[AgentMessage])

    @property
    def turns(self) -> list[HeardTurn]:
        return heard_turns(self.heard)

    async def read(self) -> None:
        async for message in self.process.messages():
            self.heard.append(message)

    async def send(self, text: str) -> str:
        prompt_id = str(uuid.uuid4())
        await self.process.send(Prompt(prompt_id=prompt_id, text=text))
        return prompt_id

    async def ask(self, text: str) -> HeardTurn:
        return await self.answer_to(await self.send(text))

    async def answer_to(self, prompt_id: str) -> HeardTurn:
        def answered() -> bool:
            return any(turn.ended and prompt_id in turn.ended.prompt_ids for turn in self.turns)

        await self.until(answered)
        return next(
            turn for turn in self.turns if turn.ended and prompt_id in turn.ended.prompt_ids
        )

    async def heard_one(self, kind: type[AgentMessage], count: int = 1) -> None:
        await self.until(lambda: sum(isinstance(one, kind) for one in self.heard) >= count)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def talking(
    agent: ClaudeAgent, fingerprint: Fingerprint, *, resume: str | None = None
) -> AsyncGenerator[Talk]:
    talk = Talk(await agent.spawn(fingerprint, resume=resume))
    reader = asyncio.create_task(talk.read())
    try:
        yield talk
    finally:
        await talk.process.stop()
        async with asyncio.timeout(60):
            await reader


def tools_of(talk: Talk) -> tuple[str, ...]:
    return next(message.tools for message in talk.heard if isinstance(message, Initialized))


@pytest.mark.parametrize("prompt", ["/clear", "/cost", "@/etc/passwd", "!touch x", "#remember"])
async def test_a_prompt_is_mere_text(world: World, prompt: str) -> None:
    async with talking(world.agent(), world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        turn = await talk.ask(prompt)
        assert f'You said: "{prompt}"' in turn.blocks[0]
        assert "marzipan" in turn.blocks[0]
        assert "root:" not in turn.blocks[0]
    assert world.model.requests[-1].prompt == prompt


async def test_named_tools_are_all_there_is_and_run_without_asking(world: World) -> None:
    async with talking(world.agent(), world.fingerprint("Bash", "Agent")) as talk:
        turn = await talk.ask(bash("touch made"))
        assert sorted(tools_of(talk)) == ["Bash", "Task"]
        assert not turn.of(ToolFinished)[0].is_error
        assert turn.end.permission_denials == ()
    assert (world.cwd / "made").exists()


async def test_without_named_tools_there_are_the_documented_ones_and_nobody_is_asked(
    world: World,
) -> None:
    async with talking(world.agent(extra_tools=["NotebookEdit"]), world.fingerprint()) as talk:
        turn = await talk.ask(bash("touch made") + " [[say after]]")
        assert sorted(tools_of(talk)) == sorted([*tools.DEFAULT_TOOLS, "NotebookEdit"])
        assert turn.of(ToolFinished)[0].is_error
        (denied,) = turn.end.permission_denials
        assert isinstance(denied, dict)
        assert denied["tool_name"] == "Bash"
        assert turn.blocks == ["after"]
        assert turn.end.failure is None
    assert not (world.cwd / "made").exists()


@pytest.mark.parametrize("name", tools.known())
async def test_every_tool_that_may_be_named_exists(world: World, name: str) -> None:
    # A question can be asked only where somebody can answer.
    fingerprint = replace(world.fingerprint(name), asks=name == "AskUserQuestion")
    async with talking(world.agent(), fingerprint) as talk:
        await talk.ask("[[say hello]]")
        assert tools_of(talk) == (tools.documented_name(name),)


async def test_edits_can_be_accepted_beforehand(world: World) -> None:
    fingerprint = replace(world.fingerprint(), permission_mode="acceptEdits")
    write = {"file_path": str(world.cwd / "made"), "content": "x"}
    async with talking(world.agent(), fingerprint) as talk:
        turn = await talk.ask(f"[[tool Write {json.dumps(write)}]]")
        assert not turn.of(ToolFinished)[0].is_error
    assert (world.cwd / "made").read_text() == "x"


async def test_names_of_the_documentation_mean_models_of_today(world: World) -> None:
    fingerprint = replace(world.fingerprint(), model="claude-3-opus-20240229")
    async with talking(world.agent(), fingerprint) as talk:
        await talk.ask("[[say hello]]")
    assert "opus" in world.model.requests[-1].model
    assert "20240229" not in world.model.requests[-1].model


async def test_an_unknown_model_is_a_failure_and_not_an_answer(world: World) -> None:
    fingerprint = replace(world.fingerprint(), model="no-such-model-9")
    async with talking(world.agent(), fingerprint) as talk:
        turn = await talk.ask("hello")
        assert turn.end.failure is not None
        assert turn.end.failure.code is FailureCode.MODEL_NOT_FOUND
        assert "no-such-model-9" in turn.end.failure.message
        assert turn.blocks == []


async def test_a_limit_of_round_trips_ends_the_turn(world: World) -> None:
    fingerprint = replace(world.fingerprint("Bash"), max_turns=1)
    async with talking(world.agent(), fingerprint) as talk:
        turn = await talk.ask(bash("echo 1") + "[[say never]]")
        assert turn.end.failure is not None
        assert turn.end.failure.code is FailureCode.MAX_TURNS


async def test_without_a_credential_the_turn_says_so(world: World, tmp_path: Path) -> None:
    agent = world.agent({"ANTHROPIC_API_KEY": "", "HOME": str(tmp_path)})
    async with talking(agent, world.fingerprint()) as talk:
        turn = await talk.ask("hello")
        assert turn.end.failure is not None
        assert turn.end.failure.code is FailureCode.AUTHENTICATION_FAILED


async def test_an_upstream_that_cannot_be_reached_fails_the_turn(world: World) -> None:
    agent = world.agent({"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"})
    async with talking(agent, world.fingerprint()) as talk:
        turn = await talk.ask("hello")
        assert turn.of(UpstreamRetry)
        assert turn.end.failure is not None
        assert turn.end.failure.code is FailureCode.UPSTREAM_ERROR
        assert turn.end.failure.retryable


async def test_a_system_prompt_of_any_length_replaces_the_cli_s_own(world: World) -> None:
    sizes: list[object] = []
    for prompt in (None, "Be brief.", "x" * 400_000):
        fingerprint = replace(world.fingerprint("Read"), system_prompt=prompt)
        async with talking(world.agent(), fingerprint) as talk:
            turn = await talk.ask("[[say hello]]")
            assert turn.blocks == ["hello"]
            sizes.append(turn.end.usage["input_tokens"])
    own, short, long = sizes
    assert isinstance(own, int)
    assert isinstance(short, int)
    assert isinstance(long, int)
    assert short < own < 100_000 < long


async def test_a_project_s_settings_run_nothing(world: World) -> None:
    settings = world.cwd / ".claude" / "settings.json"
    settings.parent.mkdir()
    command = {"type": "command", "command": f"touch {world.cwd}/hooked"}
    hooks = {"UserPromptSubmit": [{"hooks": [command]}], "SessionStart": [{"hooks": [command]}]}
    settings.write_text(json.dumps({"hooks": hooks}))
    async with talking(world.agent(), world.fingerprint()) as talk:
        await talk.ask("[[say hello]]")
    assert not (world.cwd / "hooked").exists()


async def test_what_the_cli_says_when_it_does_not_start_is_told(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("the CLI refuses this only to root")
    fingerprint = replace(world.fingerprint(), permission_mode="bypassPermissions")
    agent = world.agent({"IS_SANDBOX": ""}, allow_bypass_permissions=True)
    with pytest.raises(AgentStartFailed, match="root"):
        await agent.spawn(fingerprint)
    await world.gone()


async def test_an_interrupt_reaches_a_prompt_that_waits_behind_a_turn_of_the_agent_s_own(
    world: World,
) -> None:
    async with talking(world.agent(), world.fingerprint("Bash")) as talk:
        await talk.ask(bash("sleep 0.5", run_in_background=True) + " [[say started]]")
        await talk.until(lambda: BackgroundWork(pending=0) in talk.heard)
        prompt_id = await talk.send("[[slow tokens=100 delay_ms=100]]")
        await talk.process.interrupt()
        assert (await talk.answer_to(prompt_id)).end.interrupted
        assert (await talk.ask("[[say clean]]")).blocks == ["clean"]


async def test_an_interrupt_ends_a_turn_whose_upstream_is_being_retried(world: World) -> None:
    agent = world.agent({"CLAUDE_CODE_MAX_RETRIES": "10"})
    async with talking(agent, world.fingerprint()) as talk:
        prompt_id = await talk.send("[[fail status=529]]")
        await talk.heard_one(UpstreamRetry)
        began = time.monotonic()
        await talk.process.interrupt()
        turn = await talk.answer_to(prompt_id)
        assert turn.end.interrupted
        assert turn.end.failure is None
        assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("prompt", "sign"),
    [
        (None, None),
        ("[[slow tokens=2000 delay_ms=100]]", TextDelta),
        ("[[hang before]]", TurnBegan),
        ("[[hang mid after=2]] [[slow tokens=9 delay_ms=1]]", TextDelta),
        (bash(SLEEP), ToolStarted),
        (bash(f"trap '' TERM; {SLEEP}"), ToolStarted),
        (bash(SLEEP, run_in_background=True), TurnEnded),
        (bash("(sleep 300 & disown); setsid sleep 301 & echo"), TurnEnded),
    ],
    ids=["idle", "streaming", "silent", "stalled", "tool", "stubborn", "background", "disowned"],
)
async def test_stop_is_quick_and_leaves_neither_processes_nor_files(
    world: World, tmp_path: Path, prompt: str | None, sign: type[AgentMessage] | None
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    agent = world.agent({"CLAUDE_CODE_TMPDIR": str(scratch)})
    async with talking(agent, world.fingerprint("Bash")) as talk:
        if prompt is not None and sign is not None:
            await talk.send(prompt)
            await talk.heard_one(sign)
            await asyncio.sleep(0.5)
        assert world.left()
        assert len(list(scratch.iterdir())) == 1
        began = time.monotonic()
        ended = await talk.process.stop()
        assert time.monotonic() - began < 30
        assert ended.returncode is not None
        assert world.left() == []
        assert list(scratch.iterdir()) == []


async def test_a_killed_process_s_tools_are_gone_after_stop(world: World) -> None:
    async with talking(world.agent(), world.fingerprint("Bash")) as talk:
        await talk.send(bash(SLEEP))
        await talk.heard_one(ToolStarted)
        await asyncio.sleep(0.5)
        os.kill(talk.process.pid, signal.SIGKILL)
        ended = await talk.process.stop()
        assert world.left() == []
        assert ended.returncode == -9


async def test_many_are_stopped_at_once(world: World) -> None:
    agent = world.agent()
    processes = [await agent.spawn(world.fingerprint()) for _ in range(5)]
    await agent.aclose()
    assert world.left() == []
    assert all(process.exit is not None for process in processes)


async def test_a_conversation_goes_on_in_another_directory(world: World, tmp_path: Path) -> None:
    agent = world.agent()
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
    (said,) = [one for one in talk.heard if isinstance(one, Initialized)]
    elsewhere = replace(world.fingerprint(), cwd=tempfile.mkdtemp(dir=tmp_path))
    async with talking(agent, elsewhere, resume=said.agent_session_id) as again:
        assert "marzipan" in (await again.ask("What did I say?")).blocks[0]


async def test_when_the_server_is_killed_its_sessions_die_with_it(
    world: World, tmp_path: Path
) -> None:
    if tied_to_us(["x"]) == ["x"]:
        pytest.skip("no setpriv on this machine")
    code = (
        "import asyncio, os, signal, sys\n"
        "from session_supervisor.agents.claude import ClaudeAgent\n"
        "from session_supervisor.agents.port import Fingerprint, ToolStarted\n"
        "from session_supervisor.spec import Prompt\n"
        "async def main(cwd, prompt):\n"
        "    one = Fingerprint(owner='local', cwd=cwd, allowed_tools=('Bash',))\n"
        "    process = await ClaudeAgent().spawn(one)\n"
        "    await process.send(Prompt(prompt_id='p', text=prompt))\n"
        "    async for message in process.messages():\n"
        "        if isinstance(message, ToolStarted):\n"
        "            await asyncio.sleep(0.5)\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main(*sys.argv[1:]))\n"
    )
    env = {
        **os.environ,
        **world.model.environment(),
        TAG: world.tag,
        "CLAUDE_CONFIG_DIR": str(tmp_path / "config"),
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-c", code, str(world.cwd), bash(SLEEP)]
    server = await asyncio.to_thread(subprocess.run, command, env=env, check=False)
    assert server.returncode == -signal.SIGKILL
    await world.gone()


async def test_what_a_session_starts_carries_the_marker_of_its_process_alone(world: World) -> None:
    agent = world.agent()
    values: list[str] = []
    for _ in range(2):
        async with talking(agent, world.fingerprint("Bash")) as talk:
            turn = await talk.ask(bash(f"echo ${MARKER}; echo $CLAUDECODE"))
            values.append(str(turn.of(ToolFinished)[0].content).split("\n")[0])
    assert all(uuid.UUID(value) for value in values)
    assert values[0] != values[1]
