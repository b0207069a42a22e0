"""`ClaudeAgent` and programs that misbehave in ways in which the real CLI cannot be made to."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shlex
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from claude_agent_sdk import InMemorySessionStore

from session_supervisor.agents.claude import ClaudeAgent, ClaudeProcess, StopTimes
from session_supervisor.agents.claude import process as process_module
from session_supervisor.agents.claude.orphans import Sweeper
from session_supervisor.agents.claude.translate import Translator
from session_supervisor.agents.port import (
    AgentMessage,
    Binding,
    Fingerprint,
    TurnBegan,
    TurnEnded,
)
from session_supervisor.errors import AgentGone, AgentMissing, AgentStartFailed, ResumeNotFound
from session_supervisor.spec import Prompt
from tests.support.own_time import OwnTime

pytestmark = pytest.mark.anyio

FINGERPRINT = Fingerprint(owner="local", cwd="/tmp")
PATIENCE_S = 30.0
"""What a busy machine may take, and less than the minute for which the stand-in sleeps."""
QUICK = StopTimes(interrupt=0.3, leave=0.3, terminate=0.3)

FakeAgent = Callable[..., ClaudeAgent]
Scratches = Callable[[], list[str]]


@pytest.fixture
def fake(tmp_path: Path) -> FakeAgent:
    def make(*manners: str, max_line: int = 2**20, **how: Any) -> ClaudeAgent:
        script = Path(__file__).with_name("fake_cli.py")
        path = tmp_path / "claude"
        words = [sys.executable, str(script), ",".join(manners)]
        path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        path.chmod(0o755)
        return ClaudeAgent(cli_path=path, stop_times=QUICK, max_line=max_line, **how)

    return make


@pytest.fixture
def scratches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratches:
    """Return what lists the scratch directories that there are."""
    folder = tmp_path / "scratches"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    # All are in one directory, which goes with the last one.
    return lambda: [str(one) for one in folder.glob("*/*")] or os.listdir(folder)


@dataclass
class Heard:
    process: ClaudeProcess
    messages: list[AgentMessage] = field(default_factory=list[AgentMessage])
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> None:
        async for message in self.process.messages():
            self.messages.append(message)
        self.over.set()

    async def until(self, kind: type[AgentMessage], times: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while sum(isinstance(one, kind) for one in self.messages) < times:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def talking(agent: ClaudeAgent, resume: str | None = None) -> AsyncGenerator[Heard]:
    process = await agent.spawn(FINGERPRINT, resume=resume)
    heard = Heard(process)
    reader = asyncio.create_task(heard.read())
    try:
        yield heard
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await process.stop()
            await reader
    assert not alive(process.pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def prompt(prompt_id: str = "p") -> Prompt:
    return Prompt(prompt_id=prompt_id, text="hello")


@pytest.mark.skipif(sys.platform == "win32", reason="niceness is Unix's")
async def test_a_process_goes_after_ours_for_the_processor_where_that_is_wanted(
    fake: FakeAgent,
) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    for agent, by in ((fake(), 0), (fake(niceness=3), 3)):
        async with talking(agent) as heard:
            assert os.getpriority(os.PRIO_PROCESS, heard.process.pid) == min(ours + by, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours


@pytest.mark.parametrize(
    ("manners", "told"),
    [
        ("complains,fails", "exit status 3"),
        ("complains,exits", "by itself"),
        ("complains,leaves", "by itself"),
        ("complains,garbles", "not JSON"),
        ("complains,refuses", "No, I will not"),
    ],
)
async def test_a_program_that_does_not_come_up_is_told_with_its_last_words(
    fake: FakeAgent, manners: str, told: str
) -> None:
    began = time.monotonic()
    with pytest.raises(AgentStartFailed, match=told) as failure:
        await fake(manners).spawn(FINGERPRINT)
    assert not isinstance(failure.value, AgentMissing)
    assert failure.value.stderr == "I cannot work like this."
    assert "I cannot work like this." in str(failure.value)
    assert time.monotonic() - began < PATIENCE_S


@pytest.mark.parametrize("manners", ["silent", "silent,ignores-term"])
async def test_a_start_that_takes_too_long_is_given_up_and_leaves_nothing(
    fake: FakeAgent, manners: str
) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await fake(manners).spawn(FINGERPRINT)
    assert time.monotonic() - began < PATIENCE_S


async def test_a_start_that_is_cancelled_twice_leaves_nothing(fake: FakeAgent) -> None:
    agent = fake("silent,ignores-term")
    spawning = asyncio.create_task(agent.spawn(FINGERPRINT))
    await asyncio.sleep(0.3)
    spawning.cancel()
    await asyncio.sleep(0)
    spawning.cancel()
    await asyncio.wait([spawning])
    assert spawning.cancelled()
    await agent.aclose()


async def test_a_directory_that_is_gone_is_told_and_where_it_was_only_to_the_operator(
    fake: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AgentStartFailed, match="gone, or its path leads elsewhere") as failure:
        await fake("").spawn(Fingerprint(owner="local", cwd="/nowhere"))
    assert "/" not in str(failure.value)
    assert "/nowhere" in caplog.text


async def test_a_program_that_is_gone_is_told_and_where_it_was_only_to_the_operator(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(AgentMissing, match="operator must look") as failure:
        await ClaudeAgent(cli_path="/nowhere/claude").spawn(FINGERPRINT)
    assert "/" not in str(failure.value)
    assert "/nowhere/claude" in caplog.text


async def test_what_is_no_program_is_told(tmp_path: Path) -> None:
    path = tmp_path / "claude"
    path.write_text("This is no program.")
    path.chmod(0o755)
    with pytest.raises(AgentStartFailed):
        await ClaudeAgent(cli_path=path).spawn(FINGERPRINT)


@contextmanager
def starving() -> Generator[None]:
    """Leave no descriptor to be had."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_without_descriptors_nothing_is_started_and_later_it_is(
    fake: FakeAgent, scratches: Scratches
) -> None:
    agent = fake("")
    with starving(), pytest.raises(AgentStartFailed, match=r"file descriptors \(limit 3\)"):
        await agent.spawn(FINGERPRINT)
    assert not scratches()
    async with talking(agent) as heard:
        await heard.process.probe()


@pytest.mark.parametrize("occasion", ["spawn", "stop", "aclose"])
async def test_a_scratch_directory_that_could_not_be_removed_is_removed_later(
    fake: FakeAgent, scratches: Scratches, occasion: str
) -> None:
    agent = fake("")
    first, second = [await agent.spawn(FINGERPRINT) for _ in range(2)]
    with patch.object(shutil, "rmtree"):  # it does nothing, and says nothing
        await first.stop()
    assert len(scratches()) == 2
    if occasion == "spawn":
        third = await agent.spawn(FINGERPRINT)
        assert len(scratches()) == 2
        await third.stop()
        await second.stop()
    elif occasion == "stop":
        await second.stop()
    else:
        with patch.object(shutil, "rmtree"):
            await second.stop()
        await agent.aclose()
    assert not scratches()


async def test_a_process_is_stopped_also_if_what_it_left_cannot_be_looked_for(
    fake: FakeAgent, scratches: Scratches, caplog: pytest.LogCaptureFixture
) -> None:
    agent = fake("")
    process = await agent.spawn(FINGERPRINT)
    too_many = OSError(errno.EMFILE, "Too many open files")
    with patch.object(Sweeper, "_sweep", side_effect=too_many):
        await process.stop()
    assert not scratches()
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert "Too many open files" in record.getMessage()
    with patch.object(Sweeper, "_sweep") as sweep:
        await agent.aclose()
        await agent.aclose()
    sweep.assert_awaited_once()


async def test_a_failed_resume_is_only_not_found_if_the_program_says_so(fake: FakeAgent) -> None:
    with pytest.raises(AgentStartFailed):
        await fake("complains,fails").spawn(FINGERPRINT, resume="x")
    agent = fake("fails")
    script = agent._cli_path  # pyright: ignore[reportPrivateUsage]
    assert isinstance(script, Path)
    script.write_text("#!/bin/sh\necho 'No conversation found with session ID: x' >&2\nexit 1\n")
    with pytest.raises(ResumeNotFound, match="'x'"):
        await agent.spawn(FINGERPRINT, resume="x")


async def test_what_nobody_has_heard_of_is_a_sign_of_life(fake: FakeAgent) -> None:
    async with talking(fake("")) as heard:
        await heard.process.send(prompt())
        await heard.until(TurnEnded)


@pytest.mark.parametrize(
    ("manners", "cause"),
    [("garbles-later", "not JSON"), ("shouts", "50000 bytes"), ("closes", "closed its output")],
)
async def test_a_program_that_cannot_be_read_any_more_is_killed_and_the_stream_ends(
    fake: FakeAgent, manners: str, cause: str
) -> None:
    async with talking(fake(manners, max_line=50_000)) as heard:
        await heard.process.send(prompt())
        async with asyncio.timeout(PATIENCE_S):
            await heard.over.wait()
        ended = heard.process.exit
        assert ended is not None
        assert ended.returncode == -9
        assert cause in ended.cause
        assert (await heard.process.stop()).cause == ended.cause
        with pytest.raises(AgentGone, match=cause):
            await heard.process.probe()


@pytest.mark.parametrize(("manners", "complete"), [("", True), ("garbles-later", False)])
async def test_of_what_could_not_be_read_the_copy_is_not_said_to_be_complete(
    fake: FakeAgent, tmp_path: Path, manners: str, complete: bool
) -> None:
    agent = fake(manners, config_dir=tmp_path, transcripts=InMemorySessionStore())
    async with talking(agent, resume="s") as heard:
        if manners:
            await heard.process.send(prompt())
            await heard.over.wait()
    known = agent._complete  # pyright: ignore[reportPrivateUsage]
    assert ("s" in known) is complete


async def test_a_mistake_of_ours_in_reading_it_ends_the_process_and_not_the_server(
    fake: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    with patch.object(Translator, "feed", side_effect=ZeroDivisionError):
        async with talking(fake("")) as heard:
            await heard.process.send(prompt())
            async with asyncio.timeout(PATIENCE_S):
                await heard.over.wait()
            ended = heard.process.exit
            assert ended is not None
            assert "ZeroDivisionError" in ended.cause
    assert "ZeroDivisionError" in caplog.text


async def test_a_request_that_is_refused_was_answered(fake: FakeAgent) -> None:
    async with talking(fake("grumbles")) as heard:
        await heard.process.probe()
        await heard.process.interrupt()


async def test_a_program_that_heeds_nothing_is_stopped_in_bounded_time(fake: FakeAgent) -> None:
    async with talking(fake("stays,deaf,ignores-eof,ignores-term")) as heard:
        await heard.process.send(prompt())
        await heard.until(TurnBegan)
        spent = OwnTime()
        ended = await heard.process.stop()
        assert spent.seconds < QUICK.interrupt + QUICK.leave + QUICK.terminate + 1
        assert ended.returncode == -9


async def test_an_interrupt_waits_for_a_prompt_that_is_taken_up_late(fake: FakeAgent) -> None:
    """As Claude Code does on a busy machine; one that was sent before would go by unheeded."""
    async with talking(fake("begins-late,stays,heeds")) as heard:
        await heard.process.send(prompt())
        async with asyncio.timeout(PATIENCE_S):
            await heard.process.interrupt()
        await heard.until(TurnEnded)
        (ended,) = (one for one in heard.messages if isinstance(one, TurnEnded))
        assert ended.interrupted


async def test_an_interrupt_that_a_turn_of_its_own_has_met_is_told_again_for_the_prompt(
    fake: FakeAgent,
) -> None:
    """The prompt is taken up while the interrupt is answered: of the two one has met it."""
    async with talking(fake("begins-alone,heeds")) as heard:
        await heard.until(TurnBegan)
        await heard.process.send(prompt())
        async with asyncio.timeout(PATIENCE_S):
            await heard.process.interrupt()
        await heard.until(TurnEnded, times=2)
        ended = [one for one in heard.messages if isinstance(one, TurnEnded)]
        assert [one.interrupted for one in ended] == [False, True]


async def test_an_interrupt_of_a_prompt_that_is_never_taken_up_ends(
    fake: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_TAKE_UP_S", 0.2)
    async with talking(fake("mute")) as heard:
        await heard.process.send(prompt())
        async with asyncio.timeout(PATIENCE_S):
            await heard.process.interrupt()


async def test_a_program_that_nobody_listens_to_waits_and_is_stopped(fake: FakeAgent) -> None:
    process = await fake("floods").spawn(FINGERPRINT)
    await process.send(prompt())
    await asyncio.sleep(0.5)
    async with asyncio.timeout(PATIENCE_S):
        await process.stop()
    assert not alive(process.pid)


async def test_a_reader_who_lags_behind_gets_everything(fake: FakeAgent) -> None:
    async with talking(fake("floods")) as heard:
        await heard.process.send(prompt())
        time.sleep(0.3)  # noqa: ASYNC251  # so that more than it can hold is there at once
        await heard.until(TurnEnded)
        assert len(heard.messages) > 5000


async def test_a_reader_who_leaves_does_not_hold_the_program_up(fake: FakeAgent) -> None:
    process = await fake("floods").spawn(FINGERPRINT)
    stream = process.messages()
    await process.send(prompt())
    async with asyncio.timeout(PATIENCE_S):
        await anext(stream)
        await asyncio.sleep(0.5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.probe(), 0.2)  # the program waits for the reader
        assert isinstance(stream, AsyncGenerator)
        await stream.aclose()
        await process.probe()
        await process.stop()


async def test_a_stream_that_is_read_only_after_the_end_ends(fake: FakeAgent) -> None:
    process = await fake("").spawn(FINGERPRINT)
    await process.stop()
    async with asyncio.timeout(PATIENCE_S):
        assert [message async for message in process.messages()] == []


async def test_standard_error_is_heard_by_the_session_that_is_bound(fake: FakeAgent) -> None:
    lines: list[str] = []
    agent = fake("complains")
    process = await agent.spawn(FINGERPRINT)
    process.bind(Binding(session_id="a", on_stderr=lines.append))
    ended = await process.stop()
    assert ended.stderr == "I cannot work like this."
    assert lines in ([], ["I cannot work like this."])  # it may have spoken before


async def test_closing_the_agent_stops_what_nobody_has_stopped(fake: FakeAgent) -> None:
    agent = fake("")
    processes = [await agent.spawn(FINGERPRINT) for _ in range(3)]
    await processes[0].stop()
    await agent.aclose()
    assert not any(alive(process.pid) for process in processes)
    await agent.aclose()


async def test_a_program_that_would_not_heed_the_limits_of_files_is_not_used(
    fake: FakeAgent,
) -> None:
    with pytest.raises(AgentStartFailed, match="on_failure"):
        await fake("old").spawn(FINGERPRINT)


async def test_permissions_are_not_bypassed_any_more_when_the_operator_has_changed_its_mind(
    tmp_path: Path,
) -> None:
    # As a session asks that was begun, and is kept, from before.
    kept = Fingerprint(owner="o", cwd=str(tmp_path), permission_mode="bypassPermissions")
    with pytest.raises(AgentStartFailed, match="has not allowed bypassPermissions"):
        await ClaudeAgent().spawn(kept)
