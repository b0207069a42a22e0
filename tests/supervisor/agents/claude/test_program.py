"""A program that speaks lines of JSON, with small programs that speak them well or badly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from session_supervisor.agents.claude.launch import tied_to_us
from session_supervisor.agents.claude.program import Garbled, Program
from session_supervisor.errors import AgentGone
from session_supervisor.spec import JsonObject

pytestmark = pytest.mark.anyio

LIMIT = 2**20
PATIENCE_S = 30.0
"""What a busy machine may take, and less than what sleeps here for a minute."""


@asynccontextmanager
async def running(script: str, *, stderr_lines: int = 100) -> AsyncGenerator[Program]:
    """Run a shell script, and make an end of it."""
    program = await Program.start(
        ["/bin/sh", "-c", script], cwd="/tmp", env=os.environ, stderr_lines=stderr_lines
    )
    try:
        yield program
    finally:
        await program.kill()


async def frames(program: Program, limit: int = LIMIT) -> list[JsonObject]:
    async with asyncio.timeout(PATIENCE_S):
        return [frame async for frame in program.frames(limit=limit)]


async def test_every_line_is_a_frame_and_what_is_no_object_is_skipped() -> None:
    async with running(
        """echo '{"a": 1}'; echo '[Debug] hm'; echo; printf ' {"b": 2}\\r\\n'"""
    ) as it:
        assert await frames(it) == [{"a": 1}, {"b": 2}]
        assert await it.wait(PATIENCE_S)
        assert it.returncode == 0


async def test_a_frame_may_be_long_and_come_in_pieces() -> None:
    code = (
        "import sys, time\n"
        "for piece in ('{\"a\": \"', 'x' * 300_000, 'é', '\"}\\n{\"b\"', ': 2}\\n'):\n"
        "    sys.stdout.write(piece); sys.stdout.flush(); time.sleep(0.01)"
    )
    async with running(f"exec {sys.executable} -X utf8 -c {json_quoted(code)}") as it:
        assert await frames(it) == [{"a": "x" * 300_000 + "é"}, {"b": 2}]


def json_quoted(code: str) -> str:
    return "'" + code.replace("'", "'\\''") + "'"


async def test_a_line_that_was_cut_off_by_the_end_is_dropped() -> None:
    async with running("""echo '{"a": 1}'; printf '{"b": '""") as it:
        assert await frames(it) == [{"a": 1}]


@pytest.mark.parametrize(
    "script",
    ["echo '{\"a\": '", "head -c 3000 /dev/zero | tr '\\0' x; exec sleep 60", "echo '{]}'"],
)
async def test_garbage_is_told(script: str) -> None:
    async with running(f"echo '{{}}'; {script}") as it:
        with pytest.raises(Garbled):
            await frames(it, limit=2000)


async def test_what_is_written_is_read() -> None:
    async with running("exec cat") as it:
        text = json.dumps({"a": "x" * 500_000}).encode() + b"\n"
        async with asyncio.timeout(PATIENCE_S):
            _, read = await asyncio.gather(it.write(text * 3), first_of(it, 3))
        assert len(read) == 3
        it.close_input()
        assert await it.wait(PATIENCE_S)


async def first_of(program: Program, count: int) -> list[JsonObject]:
    read: list[JsonObject] = []
    async for frame in program.frames(limit=LIMIT):
        read.append(frame)
        if len(read) == count:
            break
    return read


async def test_a_writer_waits_for_a_program_that_does_not_read_and_learns_of_its_death() -> None:
    async with running("exec sleep 60") as it:
        writing = asyncio.create_task(it.write(b"x" * 1_000_000))
        await asyncio.sleep(0.1)
        assert not writing.done()
        it.signal(signal.SIGKILL)
        with pytest.raises(AgentGone):
            await writing
        with pytest.raises(AgentGone):
            await it.write(b"more")


async def test_writing_after_the_input_was_closed_is_refused() -> None:
    async with running("exec sleep 60") as it:
        it.close_input()
        it.close_input()
        with pytest.raises(AgentGone):
            await it.write(b"x")


async def test_the_last_lines_of_standard_error_are_kept_and_all_are_heard() -> None:
    script = "i=0; while [ $i -lt 50 ]; do echo line $i >&2; i=$((i+1)); done; printf last >&2"
    async with running(script, stderr_lines=3) as it:
        heard: list[str] = []
        it.on_stderr = heard.append
        await it.wait()
        await it.kill()
        assert it.stderr == "line 47\nline 48\nline 49\nlast"
        assert heard[-1] == "line 49"


async def test_a_listener_that_fails_takes_nothing_down() -> None:
    def fail(_line: str) -> None:
        raise RuntimeError

    async with running("sleep 0.1; echo oh >&2; echo '{}'") as it:
        it.on_stderr = fail
        assert await frames(it) == [{}]
        await it.kill()
        assert it.stderr == "oh"


async def test_an_end_is_noticed_also_while_a_grandchild_holds_the_pipes() -> None:
    async with running("sleep 60 & echo '{\"child\": '$!'}'; exit 3") as it:
        began = time.monotonic()
        (frame,) = await frames(it)
        assert await it.wait(PATIENCE_S)
        assert it.returncode == 3
        assert time.monotonic() - began < PATIENCE_S
        child = frame["child"]
        assert isinstance(child, int)
        os.kill(child, signal.SIGKILL)


async def test_signals_reach_it_and_are_harmless_when_it_has_ended() -> None:
    async with running("exec sleep 60") as it:
        assert not await it.wait(0.05)
        it.signal(signal.SIGTERM)
        assert await it.wait(PATIENCE_S)
        assert it.returncode == -signal.SIGTERM
        it.signal(signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_stopped_program_is_seen_to_be_stopped() -> None:
    async with running("exec sleep 60") as it:
        assert not it.is_stopped()
        it.signal(signal.SIGSTOP)
        while not it.is_stopped():  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
        it.signal(signal.SIGCONT)


async def test_it_has_a_session_of_its_own() -> None:
    async with running("exec sleep 60") as it:
        assert os.getsid(it.pid) == it.pid


FREED = """
import asyncio, gc, weakref
import uvloop
from session_supervisor.agents.claude.program import Program
from session_supervisor.errors import AgentGone

async def ended(killed):
    program = await Program.start(["/bin/sh", "-c", "exec cat"], cwd="/tmp", env={})
    pid, gone = program.pid, weakref.ref(program)
    if killed:
        await program.kill()
    else:
        program.close_input()
        assert await program.wait(5)
    await asyncio.sleep(1)  # for a while, what its children print is still taken
    program.close_input()
    assert (program.pid, program.returncode) == (pid, -9 if killed else 0)
    try:
        await program.write(b"x")
    except AgentGone:
        return gone
    raise AssertionError("it took what was written")

async def main():
    for killed in (False, True):
        gone = await ended(killed)
        await asyncio.sleep(0.1)
        assert gone() is None, "only the collector will free it"

gc.disable()
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


def test_what_has_ended_is_freed_without_the_collector() -> None:
    """On the server's event loop, whose transports never let go of their protocol."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", FREED], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_what_cannot_be_started_is_told() -> None:
    with pytest.raises(OSError, match="nowhere"):
        await Program.start(["/bin/sh"], cwd="/nowhere", env={})
    with pytest.raises(OSError, match="no-such"):
        await Program.start(["/no-such-program"], cwd="/tmp", env={})


STARVING = """
import asyncio, os, resource, sys
import uvloop
from session_supervisor.agents.claude.credentials import find_credential
from session_supervisor.agents.claude.program import Program
from session_supervisor.errors import AgentStartFailed

def count():
    return len(os.listdir("/proc/self/fd"))

async def start():
    program = await Program.start(["/bin/true"], cwd="/", env={})
    await program.kill()

async def main():
    await start()
    before = count()
    for left in range(1, 6):
        taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(64 - left - count() + 1)]
        try:
            await start()
        except AgentStartFailed as error:
            assert "file descriptors (limit 64)" in str(error), error
        else:
            raise AssertionError(f"started with {left} left")
        credential = await find_credential({}, cli_path="/bin/true")
        assert not credential.found
        assert "file descriptors (limit 64)" in credential.detail, credential
        for fd in taken:
            os.close(fd)
        await asyncio.sleep(0.05)
        assert count() == before, (left, before, count())
    await start()

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
{"uvloop": uvloop.run, "asyncio": asyncio.run}[sys.argv[1]](main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_without_descriptors_a_start_is_refused_and_loses_none(loop: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, "-c", STARVING, loop], env=env, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a feature of Linux")
def test_it_dies_with_us_however_we_die(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import asyncio, os, pathlib, signal\n"
        "from session_supervisor.agents.claude.launch import tied_to_us\n"
        "from session_supervisor.agents.claude.program import Program\n"
        "async def main():\n"
        "    it = await Program.start(tied_to_us(['/bin/sleep', '60']), cwd='/', env=os.environ)\n"
        "    await asyncio.sleep(0.2)\n"
        f"    pathlib.Path({str(pid_file)!r}).write_text(str(it.pid))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    if tied_to_us(["x"]) == ["x"]:
        pytest.skip("no setpriv on this machine")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert parent.returncode == -signal.SIGKILL
    pid = int(pid_file.read_text())
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # whoever adopted it may take its time
