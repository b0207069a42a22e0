"""A program at a terminal of its own, typed to and read as a person would."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# Makes the terminal the one that Ctrl-C is typed at, and becomes the program.
_BECOME = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """What stands on it, and what is typed."""

    def __init__(self, fd: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._fd = fd
        self._raw = b""
        self._read_to = 0

    @property
    def raw(self) -> str:
        """All that was written, with colours."""
        return self._raw.decode(errors="replace")

    @property
    def text(self) -> str:
        """All that was written, without colours."""
        return _CODES.sub("", self.raw).replace("\r\n", "\n")

    def type(self, line: str) -> None:
        """Type a line."""
        self.press(f"{line}\r")

    def press(self, keys: str) -> None:
        """Type characters, and no more, when the program does nothing but wait, as a person would.

        Between the writing of a prompt and the waiting for a key, `input()` with readline notices
        no signal until there is a key.
        """
        self._rest()
        os.write(self._fd, keys.encode())

    def _rest(self) -> None:
        """Wait until the program's main thread sleeps, for five seconds at most: it may never."""
        pid, asleep, deadline = self.process.pid, 0, time.monotonic() + 5.0
        while asleep < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            state = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(") ")[2][:1]
            asleep = asleep + 1 if state == "S" else 0

    def until(self, pattern: str, *, within_s: float = 90.0) -> str:
        """Wait for something to be written; return all since the last that was waited for."""
        deadline = time.monotonic() + within_s
        while True:
            found = re.search(pattern, self.text[self._read_to :], re.DOTALL)
            if found is not None:
                seen = found.string[: found.end()]
                self._read_to += found.end()
                return seen
            left = deadline - time.monotonic()
            if left <= 0 or not self._more(left):
                raise AssertionError(f"{pattern!r} is not in\n{self.text[self._read_to :]}")

    def ends(self, *, within_s: float = 90.0) -> int:
        """Wait for the end of the program; return its exit status."""
        deadline = time.monotonic() + within_s
        while self._more(max(deadline - time.monotonic(), 0.0)):
            pass
        return self.process.wait(60)

    def _more(self, within_s: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], within_s)
        if not ready:
            return False
        with suppress(OSError):  # how a terminal says that nobody writes to it any more
            piece = os.read(self._fd, 65536)
            self._raw += piece
            return bool(piece)
        return False


@contextmanager
def at_a_terminal(
    command: Sequence[str], *, cwd: str | os.PathLike[str], env: Mapping[str, str]
) -> Generator[Terminal]:
    """Run a program at a terminal; it is ended if it has not by itself."""
    ours, its = pty.openpty()
    try:
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 400, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-c", _BECOME, *command],
            stdin=its,
            stdout=its,
            stderr=its,
            cwd=cwd,
            env={**env, "TERM": "dumb"},
            start_new_session=True,
        )
    finally:
        os.close(its)
    with process:
        try:
            yield Terminal(ours, process)
        finally:
            process.kill()
            os.close(ours)
