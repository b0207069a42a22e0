"""What a process takes for itself as it begins, and nothing of the kind later."""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from session_http.beforehand import make_room_for_names, start_threads

ROOT = Path(__file__).parents[2]

HEAPS = """
import ctypes, os, threading
from session_http.beforehand import share_one_heap

share_one_heap()
held = []
threads = [threading.Thread(target=lambda: held.append(bytearray(10_000))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library = ctypes.CDLL(None)
library.fdopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(library.fdopen(os.dup(1), b"w"))
library.malloc_info(0, file)
library.fclose(file)
"""


@pytest.mark.anyio
async def test_work_in_threads_starts_no_more_of_them() -> None:
    def workers() -> int:
        return sum(one.name.startswith("worker_") for one in threading.enumerate())

    start_threads()
    there = workers()
    assert there >= 5
    together = threading.Barrier(there)
    await asyncio.gather(*(asyncio.to_thread(together.wait) for _ in range(there)))
    await asyncio.gather(*(asyncio.to_thread(lambda: None) for _ in range(10 * there)))
    assert workers() == there
    await asyncio.get_running_loop().shutdown_default_executor()


def test_no_name_is_left_that_room_was_made_with() -> None:
    make_room_for_names()
    before = sys.getallocatedblocks()
    make_room_for_names()
    assert sys.getallocatedblocks() - before < 1_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the GNU C library's heaps")
def test_threads_share_one_heap() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAPS],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "http")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("<heap nr=") == 1
