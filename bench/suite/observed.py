"""Our server, which lets itself be looked into: how many tasks it has, and by a profiler.

It is the command as it is. SIGUSR2 makes it write the number of its tasks to a file, from the main
thread and without one more; and it tells the kernel that all processes of its user may trace it,
which a profiler that is not its parent needs without root (Yama). Nobody starts a real server so.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

TASKS_FILE = "SUPERVISOR_BENCH_TASKS"
"""Variable of the environment with the file's path."""

_PR_SET_PTRACER = 0x59616D61
_ANYBODY = ctypes.c_ulong(-1)


def main() -> None:
    """Run the command, whose arguments are this program's."""
    path = os.environ.pop(TASKS_FILE, None)
    if path is not None:
        signal.signal(signal.SIGUSR2, lambda _number, _frame: _tell(Path(path)))
    with contextlib.suppress(OSError, AttributeError):  # another C library: a profiler needs root
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
    sys.argv[0] = "session-supervisor"
    runpy.run_module("session_http", run_name="__main__")


def _tell(path: Path) -> None:
    try:
        number = len(asyncio.all_tasks())
    except RuntimeError:  # the loop does not run now
        return
    path.write_text(str(number), encoding="ascii")


if __name__ == "__main__":
    main()
