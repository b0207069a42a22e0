"""What holds for every test: nothing that a test started or opened outlives it.

A leak in a test is a leak in the product or a mistake in the test, and either is found most easily
where it happens. The checks read /proc; where there is none (macOS) they check nothing.
"""

import gc
import os
import signal
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

PROC = Path("/proc")
# Every process that the tests start inherits this, and keeps it when its parent is gone: it tells
# our left-behind processes from those of another run on the same machine.
MARKER = "SESSION_SUPERVISOR_TEST_RUN"
CLI = b"_bundled/claude"  # claude_agent_sdk runs the CLI from its own wheel, under this path
GRACE = 60.0  # seconds that an ended test's processes and sockets have to be gone on a busy machine
FAILED = pytest.StashKey[bool]()

os.environ[MARKER] = f"{os.getpid()}-{uuid.uuid4()}"

# How long an example takes, to make or to run, says more about the machine than about the example.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# `--hypothesis-profile=long` looks further, where a test does not say itself how far.
settings.register_profile("long", PATIENT, max_examples=1_000)
settings.register_profile("usual", PATIENT)
settings.load_profile("usual")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The library is asyncio underneath; trio is not promised."""
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_the_suite() -> Generator[None]:
    yield
    left = _settle(lambda: {pid: _command(pid) for pid in _pids() if _is_ours(pid)})
    for pid in left:
        _kill(pid)
    assert not left, f"the suite leaves processes behind: {left}"


@pytest.fixture(autouse=True)
def no_cli_outlives_a_test() -> Generator[None]:
    before = _pids()
    yield

    def clis() -> dict[int, str]:
        return {
            pid: _command(pid)
            for pid in _pids() - before
            if CLI in _read(pid, "cmdline") and _is_ours(pid)
        }

    left = _settle(clis)
    for pid in left:
        _kill(pid)
    assert not left, f"the test leaves Claude Code processes behind: {left}"


@pytest.fixture(autouse=True)
def no_file_descriptor_outlives_a_test(request: pytest.FixtureRequest) -> Generator[None]:
    before = _descriptors()
    yield
    # A failed test's traceback keeps its frames alive, and with them all that they had opened.
    if request.node.stash.get(FAILED, False):
        return

    def opened() -> dict[int, str]:
        now = _descriptors()
        if len(now) <= len(before):
            return {}
        gc.collect()  # what only a reference cycle holds open is no leak, and may warn for itself
        now = _descriptors()
        more = {fd: target for fd, target in now.items() if before.get(fd) != target}
        return more if len(now) > len(before) else {}

    left = _settle(opened)
    assert not left, f"the test leaves file descriptors open: {left}"


def _settle(remaining: Callable[[], dict[int, str]]) -> dict[int, str]:
    """Ask until nothing remains, for GRACE seconds at most; what remains then."""
    deadline = time.monotonic() + GRACE
    while (left := remaining()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _pids() -> set[int]:
    return {int(name) for name in os.listdir(PROC) if name.isdigit()} if PROC.is_dir() else set()


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:  # gone in the meantime, or another user's
        return b""


def _command(pid: int) -> str:
    command = _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return command[:200] or "(a zombie: ended, and nobody awaited it)"


def _parent(pid: int) -> int:
    # The name in parentheses may hold spaces and parentheses itself; after it: state, parent.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def _descends_from_us(pid: int) -> bool:
    us = os.getpid()
    while pid > 1:
        pid = _parent(pid)
        if pid == us:
            return True
    return False


def _is_ours(pid: int) -> bool:
    marked = f"{MARKER}={os.environ[MARKER]}".encode() in _read(pid, "environ").split(b"\0")
    return marked or _descends_from_us(pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it ended by itself, later than it should have
        os.kill(pid, signal.SIGKILL)


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    if PROC.is_dir():
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the one that listed the directory
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found
