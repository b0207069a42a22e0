"""Who goes first for the processor, with processes of this machine and its own rules."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from session_supervisor.agents.claude import precedence
from session_supervisor.agents.claude.program import Program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

THREADS = (
    "import sys, threading\n"
    "for _ in range(2): threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    "print(flush=True); sys.stdin.read()"
)


@contextmanager
def running(code: str = THREADS, *, leads: bool = True) -> Generator[int]:
    """Run some Python that prints a line and reads to its end; return its process id."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=leads,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def niceness(pid: int) -> Sequence[int]:
    """Return how nice each thread is."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in tasks]


def group(pid: int | str = "self") -> int:
    """Return how nice a process's scheduling group is."""
    try:
        text = Path(f"/proc/{pid}/autogroup").read_text(encoding="ascii")
    except OSError:
        text = ""
    if not text:
        pytest.skip("the kernel has no groups by session here")
    return int(text.split()[-1])


def lowered(pid: int, by: int) -> bool:
    """Lower it, as soon as the kernel lets us."""
    while not precedence.lower(pid, by):
        pass
    return True


def test_all_of_a_process_goes_after_us_and_we_stay_as_we_are() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with running() as pid:
        lowered(pid, 5)
        assert niceness(pid) == [min(ours + 5, 19)] * 3
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours


def test_its_scheduling_group_does_and_ours_stays() -> None:
    ours = group()
    with running() as pid:
        lowered(pid, 5)
        assert group(pid) == min(ours + 5, 19)
    assert group() == ours


def test_it_is_relative_to_us_and_ends_at_the_last() -> None:
    # A process that is nicer than others, as a service may be told to be, and its child.
    code = (
        "import json, os, subprocess, sys\n"
        "from session_supervisor.agents.claude.precedence import lower\n"
        "os.nice(12 - os.getpriority(os.PRIO_PROCESS, 0))\n"
        "found = []\n"
        "for by in 0, 3, 19:\n"
        "    child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "    while not lower(child.pid, by): pass\n"
        "    found.append(os.getpriority(os.PRIO_PROCESS, child.pid))\n"
        "    child.kill(), child.wait()\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout) == [12, 15, 19]


def test_a_process_of_our_own_session_does_not_take_our_group_with_it() -> None:
    ours = group()
    with running(leads=False) as pid:
        assert lowered(pid, 5)
        assert group() == ours
        assert group(pid) == ours


def test_nothing_is_done_for_nothing() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with running() as pid:
        assert precedence.lower(pid, 0)
        assert niceness(pid) == [ours] * 3


def test_a_process_that_is_gone_is_no_failure() -> None:
    with running() as pid:
        pass
    assert precedence.lower(pid, 5)


def test_a_system_that_forbids_it_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    monkeypatch.setattr(Path, "write_text", forbidden)
    with running() as pid:
        assert precedence.lower(pid, 5)


def test_the_kernel_may_want_to_be_asked_later(monkeypatch: pytest.MonkeyPatch) -> None:
    group()

    def busy(*_: object, **__: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(Path, "write_text", busy)
    with running() as pid:
        assert not precedence.lower(pid, 5)


@pytest.mark.anyio
async def test_a_program_is_lowered_until_the_kernel_lets_us_and_no_longer_than_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    enough = asyncio.Event()

    def lower(pid: int, by: int) -> bool:
        asked.append(pid)
        if len(asked) == 3:
            enough.set()
        return by == 2 and len(asked) == 3

    monkeypatch.setattr(precedence, "lower", lower)
    monkeypatch.setattr("session_supervisor.agents.claude.program._LOWER_AGAIN_S", 0.001)
    program = await Program.start(["/bin/sleep", "60"], cwd="/", env=os.environ)
    try:
        program.go_after_us(2)
        async with asyncio.timeout(10):
            await enough.wait()
        await asyncio.sleep(0.02)
        assert asked == [program.pid] * 3
    finally:
        await program.kill()
    program.go_after_us(1)
    assert len(asked) == 3
