"""What is done to server, processes, store and disk in a run of `bench.chaos`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import random
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping

from bench.chaos_conversation import Bag
from bench.chaos_record import Record
from bench.chaos_world import World
from bench.disk import SmallDisk

_PIDFD_GETFD = 438
"""Number of the system call, on every architecture."""

GARBAGE = (
    b"\x00\xff\xfenot JSON at all\n",
    b'{"type": "assistant", "message": {"content": [{"type": "te\n',
    b'{"type": "no_such_type", "n": 1}\n',
    b'{"type": "result"}\n',
    b"[1, 2, 3]\n",
    b"null\n",
    b"\n\n\n",
    b"x" * 60_000 + b"\n",
)
"""What a Claude Code never says."""

LONG_S = 60.0
"""Length of a run, in seconds, from which on the store may be locked for longer than is waited."""


class Faults:
    """Injects faults one after the other, until it is told to stop, and heals all of it.

    Args:
        world: What they happen to.
        record: Where they are noted.
        disk: The disk of the store; None if it cannot be filled.
        chance: Decides.
        seconds: Length of the run.
    """

    def __init__(
        self,
        world: World,
        record: Record,
        disk: SmallDisk | None,
        chance: random.Random,
        seconds: float,
    ) -> None:
        self._world = world
        self._record = record
        self._disk = disk
        self._chance = chance
        self._stopped: set[int] = set()
        self._known: Mapping[str, Callable[[], Awaitable[bool]]] = {
            "Claude Code: kill -9": self._kill_cli,
            "Claude Code: SIGSTOP": self._stop_cli,
            "Claude Code: garbage": self._garbage,
            "Claude Code at rest: kill -9": self._kill_resting,
            "Claude Code at rest: SIGSTOP": self._stop_resting,
            "server: kill -9": self._kill_server,
            "server: SIGTERM and another": self._deploy,
            "store: stalls": self._stall,
            **({} if disk is None else {"disk: full": self._fill}),
            **(
                {"store: locked for longer than is waited": self._lock} if seconds >= LONG_S else {}
            ),
        }
        self._pace_s = min(2.0, seconds / (2 * len(self._known)))

    async def inject(self, over: asyncio.Event) -> None:
        """Inject faults until it is over."""
        kinds = Bag(tuple(self._known), self._chance)
        try:
            while not over.is_set():
                kind = kinds.draw()
                for _ in range(20):  # perhaps no process runs just now
                    if over.is_set() or await self._known[kind]():
                        break
                    await asyncio.sleep(0.1)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pace_s * self._chance.uniform(0.5, 1.5)):
                        await over.wait()
        finally:
            self._wake()

    # -- Claude Code -----------------------------------------------------------------------

    async def _pick(self, kind: str, *, resting: bool = False) -> int | None:
        """Return a process, and note the fault as its session's or, where it has none, as all's."""
        running = await self._world.running()
        among = running.resting if resting else running.all
        if not among:
            return None
        pid = self._chance.choice(sorted(among))
        self._record.inject(kind, running.sessions.get(pid))
        return pid

    async def _kill_cli(self) -> bool:
        pid = await self._pick("Claude Code: kill -9")
        return pid is not None and _signal(pid, signal.SIGKILL)

    async def _stop_cli(self) -> bool:
        return self._stop(await self._pick("Claude Code: SIGSTOP"))

    async def _kill_resting(self) -> bool:
        pid = await self._pick("Claude Code at rest: kill -9", resting=True)
        return pid is not None and _signal(pid, signal.SIGKILL)

    async def _stop_resting(self) -> bool:
        return self._stop(await self._pick("Claude Code at rest: SIGSTOP", resting=True))

    def _stop(self, pid: int | None) -> bool:
        """Stop a process, to go on by itself or not before the end."""
        if pid is None or not _signal(pid, signal.SIGSTOP):
            return False
        if self._chance.random() < 0.5:
            loop = asyncio.get_running_loop()
            loop.call_later(self._chance.uniform(0.3, 2.0), _signal, pid, signal.SIGCONT)
        else:
            self._stopped.add(pid)
        return True

    async def _garbage(self) -> bool:
        running = await self._world.running()
        if not running.all:
            return False
        pid = self._chance.choice(sorted(running.all))
        try:
            spoken = _descriptor_of(pid, 1)
        except OSError:  # it ended by now, or that is not allowed here
            return False
        self._record.inject("Claude Code: garbage", running.sessions.get(pid))
        try:
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionError):
                os.write(spoken, self._chance.choice(GARBAGE))
        finally:
            os.close(spoken)
        return True

    def _wake(self) -> None:
        for pid in self._stopped & self._world.clis():
            _signal(pid, signal.SIGCONT)

    # -- the server ------------------------------------------------------------------------

    async def _kill_server(self) -> bool:
        self._record.inject("server: kill -9")
        await self._world.kill()
        await asyncio.sleep(self._chance.choice((0.0, 0.0, 0.3)))
        await self._world.start()
        return True

    async def _deploy(self) -> bool:
        self._record.inject("server: SIGTERM and another")
        await self._world.stop()
        await self._world.start()
        return True

    # -- the store -------------------------------------------------------------------------

    async def _stall(self) -> bool:
        self._record.inject("store: stalls")
        return await self._held(self._chance.uniform(0.5, 2.5))

    async def _lock(self) -> bool:
        self._record.inject("store: locked for longer than is waited")
        return await self._held(7.0)

    async def _held(self, seconds: float) -> bool:
        """Hold the lock for writers, as a program would that copies the file."""
        database = sqlite3.connect(self._world.database, timeout=0.2, isolation_level=None)
        try:
            for _ in range(50):
                with contextlib.suppress(sqlite3.OperationalError):
                    database.execute("BEGIN IMMEDIATE")
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(seconds)
            if database.in_transaction:
                database.execute("ROLLBACK")
        finally:
            database.close()
        return True

    async def _fill(self) -> bool:
        assert self._disk is not None
        self._record.inject("disk: full")
        self._record.full_at = math.inf
        with self._disk.full():
            await asyncio.sleep(self._chance.uniform(0.5, 2.0))
        self._record.full_at = time.monotonic()
        return True


def _descriptor_of(pid: int, number: int) -> int:
    """Return a descriptor of our own for what another process has open under a number."""
    process = os.pidfd_open(pid)
    try:
        found: int = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, number, 0)
        if found < 0:
            raise OSError(ctypes.get_errno(), "the descriptor cannot be had")
        return found
    finally:
        os.close(process)


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
