"""The `serve` command as a process of its own: clean environment, own home, own temporary files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import MARKER as RUN
from tests.e2e.sse import Client

ROOT = Path(__file__).parents[2]
OFFLINE = ("--offline", "--port=0")

PATIENCE_S = 90.0
"""Seconds in which whatever must happen has happened, on a machine that has other work too."""

SHARED = (*OFFLINE, "--no-pool")
"""For a server that several tests have: what one test leaves in the pool would be the next one's,
and no process may outlive the test that it was started in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server.

    Attributes:
        url: Where it listens.
        folder: Holds its home, its temporary files and its log.
        process: Itself.
        marker: Entry of the environment of everything that it started, and of itself.
    """

    url: str
    folder: Path
    process: subprocess.Popen[str]
    marker: bytes

    @property
    def temporary(self) -> Path:
        """Where it and its sessions keep temporary files."""
        return self.folder / "tmp"

    @property
    def scratch(self) -> list[Path]:
        """What is in the directories for what lives no longer than a process."""
        return [*self.folder.glob("state/tmp/*"), *self.folder.glob("state/offline/tmp/*")]

    def client(self) -> Client:
        """Return a client; use it as a context manager."""
        return Client(self.url)

    def marked(self) -> dict[int, str]:
        """Return the command lines of all processes that it started, and its own, by id."""
        return {
            pid: read_proc(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")[:200]
            for pid in pids()
            if self.marker in read_proc(pid, "environ").split(b"\0")
        }

    def clis(self) -> set[int]:
        """Return the ids of its Claude Code processes."""
        return {
            pid
            for pid, command in self.marked().items()
            if "--input-format=stream-json" in command and "setpriv" not in command
        }

    def log(self) -> str:
        """Return what it wrote to standard error so far."""
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """Stop it by SIGTERM, and check that it ends well."""
        self.process.send_signal(signal.SIGTERM)
        self.ends_well()

    def ends_well(self) -> None:
        """Wait for its end: status 0, no process, no temporary file, no traceback in its log."""
        assert self.process.wait(PATIENCE_S) == 0, self.log()[-2000:]
        eventually(lambda: not self.marked(), "no process is left")
        left = [*self.temporary.glob("session-supervisor-*"), *self.scratch]
        assert not left, f"the server leaves temporary files behind: {left}"
        assert "Traceback" not in self.log(), self.log()[-4000:]


@contextmanager
def running_server(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, files: int | None = None
) -> Generator[Server]:
    """Run `session-supervisor serve` for a while.

    Stopped at the end, unless the test has done so; it must end well. Another one in the same
    folder goes on with its sessions.

    Args:
        folder: Holds its home, its state, its temporary files and its log.
        arguments: Of the command.
        env: More variables of its environment.
        files: Most file descriptors that it may have; None: as many as we.
    """
    home, temporary = folder / "home", folder / "tmp"
    home.mkdir(parents=True, exist_ok=True)
    temporary.mkdir(exist_ok=True)
    coverage = {name: value for name, value in os.environ.items() if name.startswith("COV")}
    environment = {
        **coverage,
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        "PYTHONPATH": f"{ROOT / 'http'}{os.pathsep}{ROOT / 'supervisor'}",
        "SESSION_SUPERVISOR_STATE_DIR": str(folder / "state"),
        RUN: os.environ[RUN],
        **(env or {}),
    }
    with (
        (folder / "stderr").open("w") as stderr,
        subprocess.Popen(
            [
                *(() if files is None else ("prlimit", f"--nofile={files}:{files}")),
                *(sys.executable, "-m", "session_http", "serve", *arguments),
            ],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            server = Server(
                url=_address(process, folder),
                folder=folder,
                process=process,
                # Nobody else has this directory, and sessions inherit the variable.
                marker=f"TMPDIR={temporary}".encode(),
            )
            yield server
            if process.poll() is None:
                server.stop()
        finally:
            if process.poll() is None:
                process.kill()


def _address(process: subprocess.Popen[str], folder: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Listening on "):
            return line.split()[2]
    raise AssertionError(f"the server did not start: {(folder / 'stderr').read_text()[-2000:]}")


def eventually(condition: Callable[[], object], what: str, *, within_s: float = PATIENCE_S) -> None:
    """Wait until a condition of the operating system's holds, which nobody announces."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def pids() -> set[int]:
    """Return the ids of all processes."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def read_proc(pid: int, name: str) -> bytes:
    """Return a file of /proc; nothing if the process is gone."""
    with suppress(OSError):
        return Path("/proc", str(pid), name).read_bytes()
    return b""
