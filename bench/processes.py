"""Processes of a run: started in a clean environment, measured, and gone at its end. Linux only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from session_supervisor.agents.claude.precedence import lower

MARKER = "SUPERVISOR_BENCH_RUN"
"""Environment variable, by whose value everything that a run started can be found."""

READY_S = 90.0
"""Seconds that a process may take until it says that it is ready."""

GOES_AFTER_US = 3
"""By how much what is measured goes after the client for the processor: where it has taken every
core, an answer that is there already must not count as late because the client waits for a turn."""

STOP_S = 60.0
"""Seconds that it may take to end when it is told to."""

_KEPT = ("PATH", "PYTHONPATH", "LANG", "TMPDIR", "VIRTUAL_ENV")


class NotReady(Exception):
    """A process did not come up; the message has its last words."""


class LeftBehind(Exception):
    """Processes of the run were still there at its end, and were killed."""


@contextmanager
def clean_surroundings() -> Generator[Path]:
    """Give this process and its children a small environment and an empty home, for a while.

    Nothing of the user's is read or changed: no login, no settings, no transcripts. In the end no
    process that was started meanwhile is left.

    Returns:
        The home, which also takes whatever else the run writes.

    Raises:
        LeftBehind: Some were; they were killed.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(
        prefix="session-supervisor-bench-", ignore_cleanup_errors=True
    ) as home:
        marker = str(uuid.uuid4())
        os.environ.clear()
        os.environ.update({name: before[name] for name in _KEPT if name in before})
        os.environ.update({"HOME": home, MARKER: marker})
        try:
            yield Path(home)
        finally:
            os.environ.clear()
            os.environ.update(before)
            left = _marked(marker)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if left:
            raise LeftBehind(f"The run left {len(left)} processes, which were killed: {left}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A process that serves.

    Attributes:
        pid: Its process id.
        url: Where it listens.
    """

    pid: int
    url: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.rpartition("//")[2].rpartition(":")
        return host, int(port)


@asynccontextmanager
async def serving(
    module: str, arguments: Sequence[str] = (), *, env: Mapping[str, str] | None = None
) -> AsyncGenerator[Server]:
    """Run a Python module that prints the URL which it serves, until the context ends.

    Args:
        module: Its name.
        arguments: Its arguments.
        env: Further environment.

    Raises:
        NotReady: It ended, or named no URL in time.
    """
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *_ended_with_us(),
            *(sys.executable, "-m", module, *arguments),
            env={**os.environ, **(env or {})},
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        async with _stopped_in_the_end(process):
            lower(process.pid, GOES_AFTER_US)
            assert process.stdout is not None
            try:
                async with asyncio.timeout(READY_S):
                    url = await _first_url(process.stdout)
            except TimeoutError:
                url = None
            if url is None:
                log.seek(0)
                words = log.read().decode(errors="replace")[-2000:]
                raise NotReady(f"{module} named no URL within {READY_S:g} s. {words}")
            yield Server(pid=process.pid, url=url)


def _ended_with_us() -> Sequence[str]:
    """Return what has a program ended where this one is killed and cannot do it any more."""
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "TERM", "--") if setpriv else ()


@asynccontextmanager
async def _stopped_in_the_end(process: asyncio.subprocess.Process) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def cpu_s(pid: int) -> float:
    """Return the processor time that a process's threads have had, in seconds.

    From the scheduler's accounts, in nanoseconds: the usual ones count in hundredths of a second.
    """
    spent = 0
    for account in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            spent += int(account.read_text(encoding="ascii").split()[0])
    return spent / 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory of a process, in bytes.

    Attributes:
        uss: What would be freed if it ended (unique set size).
        pss: That and its share of what it has in common with others (proportional set size).
        own: What it has taken for itself (anonymous memory): not its program's and its libraries'
            files, which count to `uss` or not as others have them open too.
    """

    uss: int
    pss: int
    own: int

    @classmethod
    def of(cls, pid: int | str = "self") -> Memory:
        """Measure a process."""
        sizes: dict[str, int] = {}
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        for line in rollup.splitlines()[1:]:
            name, _, size = line.partition(":")
            sizes[name] = int(size.split()[0]) * 1024
        return cls(
            uss=sizes["Private_Clean"] + sizes["Private_Dirty"],
            pss=sizes["Pss"],
            own=sizes["Anonymous"],
        )


async def _first_url(lines: asyncio.StreamReader) -> str | None:
    async for line in lines:
        for word in line.decode().split():
            if word.startswith("http://"):
                return word
    return None


def _marked(marker: str) -> list[int]:
    wanted = f"{MARKER}={marker}".encode()
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found
