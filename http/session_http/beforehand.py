"""What a process takes for itself sooner or later, taken as it begins.

It is little and has a bound. But it would come one by one over the first hour, and whoever watches
a server's memory could not tell it from a leak.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

NAMES = 45_000
"""More than CPython's table of interned strings has places left: two thirds of 65,536 can be taken,
and our modules take most of them."""


_M_ARENA_MAX = -8


def share_one_heap() -> None:
    """Have the threads that are started from now on share the first one's heap.

    By itself the GNU C library gives each its own, where what one has freed is no use to another;
    so they need not wait for each other, which Python's have to anyway.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def start_threads() -> None:
    """Start all threads that `asyncio.to_thread` may use on the running loop.

    By itself it starts another whenever all are busy by chance. There are as many as it would
    allow itself.
    """
    count = min(32, (os.cpu_count() or 1) + 4)
    executor = ThreadPoolExecutor(count, thread_name_prefix="worker")
    together = threading.Barrier(count + 1)
    for _ in range(count):
        executor.submit(together.wait)
    together.wait()
    asyncio.get_running_loop().set_default_executor(executor)


def make_room_for_names() -> None:
    """Have CPython renew its table of interned strings, for which it takes a larger one.

    To be called when all modules are there. Each part of a path is a name, those of every session
    are new, and the place of one that is gone is not used again until the table is full of such
    places and is renewed.
    """
    if sys.version_info[:2] == (3, 12):  # whose first releases keep every name for ever
        return
    for number in range(NAMES):
        sys.intern(f"a name that nobody has: {number}")
