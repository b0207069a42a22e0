"""The processes of a run of `bench.chaos`: offline model, server after server, Claude Codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.chaos_keep import Keeper
from bench.chaos_record import Record
from bench.processes import MARKER, Memory, NotReady
from session_http import keyfile
from session_http.statedir import StateDir

ADMIN = "admin"
"""Sees and closes everybody's sessions, and has none."""

READY_S = 30.0
"""Seconds that a server may take to come up."""

END_S = 15.0
"""Seconds within which it has to be gone after SIGTERM; it promises less than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """What a server takes.

    Attributes:
        tasks: Asyncio tasks.
        descriptors: Open files.
        uss: Its own memory, bytes.
        clis: Claude Code processes.
    """

    tasks: int
    descriptors: int
    uss: int
    clis: int


class World:
    """Starts, kills and looks at the processes.

    Args:
        record: Where what should not be is noted.
        home: The user's home, and the place of the server's log.
        state: The state directory.
        upstream: Environment that leads to the offline model.
        owners: Who has sessions; there is an admin besides.
    """

    def __init__(
        self,
        record: Record,
        home: Path,
        state: Path,
        upstream: Mapping[str, str],
        owners: Sequence[str],
    ) -> None:
        self.port = _free_port()
        self.database = StateDir(state).database
        self.log = home / "server.log"
        self._state = state
        self.starts: list[float] = []
        """Seconds that each server took until it was ready."""
        self.stops: list[float] = []
        """Seconds that each took to end after SIGTERM."""
        self.keys: dict[str, str] = {}
        """By owner."""
        keys = home / "keys.toml"
        for owner in (*owners, ADMIN):
            made = keyfile.new_key(owner, roles=("admin",) if owner == ADMIN else ("user",))
            keyfile.append(keys, made.key)
            self.keys[owner] = made.token
        self._record = record
        self._command = (
            *(sys.executable, "-m", "bench.chaos_server", "--state-dir", str(state)),
            *("--port", str(self.port), "--keys", str(keys), "--env-passthrough", MARKER),
            *("--env-passthrough", "CLAUDE_CODE_MAX_RETRIES"),
        )
        self._env = {**os.environ, **upstream, "CLAUDE_CODE_MAX_RETRIES": "2"}
        self._marker = f"{MARKER}={os.environ[MARKER]}".encode()
        self._server: asyncio.subprocess.Process | None = None

    def keeper(self, directory: Path) -> Keeper:
        """Return what keeps something of sessions in a directory."""
        return Keeper(directory, state=self._state, database=self.database, log=self.log)

    async def start(self) -> None:
        """Start a server, and return when it is ready.

        Raises:
            NotReady: It did not come up.
        """
        began = time.monotonic()
        orphans = set(self.clis())
        with self.log.open("ab") as log:
            server = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._env,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._server = server
        assert server.stdout is not None
        line = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while line := await server.stdout.readline():
                    if line.startswith(b"Listening"):
                        break
        if not line.startswith(b"Listening"):
            await self.kill()
            words = self.log.read_text(errors="replace")[-3000:]
            raise NotReady(f"The server did not come up within {READY_S:g} s. {words}")
        self.starts.append(time.monotonic() - began)
        if left := orphans & set(self.clis()):
            self._record.violate(
                "no process is left", f"a new server left {sorted(left)} of the one before it"
            )

    async def kill(self) -> None:
        """Kill the server on the spot."""
        if self._server is not None and self._server.returncode is None:
            self._server.kill()
            await self._server.wait()

    async def stop(self) -> None:
        """Tell the server to end; it must do so well, in time, and leave nothing."""
        server = self._server
        assert server is not None
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(END_S):
                await server.wait()
        except TimeoutError:
            self._record.violate("SIGTERM ends the server", f"it was there after {END_S:g} s")
            await self.kill()
            return
        self.stops.append(time.monotonic() - began)
        if server.returncode:
            self._record.violate(
                "SIGTERM ends the server", f"its exit status is {server.returncode}"
            )
        if left := self.clis():
            self._record.violate("no process is left", f"the server left {sorted(left)} behind")

    async def vitals(self) -> Vitals:
        """Ask the server and the kernel what it takes now."""
        server = self._server
        assert server is not None
        assert server.stdout is not None
        server.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(10.0):
            while not (line := await server.stdout.readline()).startswith(b"{"):
                if not line:
                    raise NotReady("The server ended by itself.")
        said = json.loads(line)
        return Vitals(
            tasks=said["tasks"],
            descriptors=said["descriptors"],
            uss=Memory.of(server.pid).uss,
            clis=len(self.clis()),
        )

    def clis(self) -> dict[int, str]:
        """Return the sessions of the Claude Code processes that run, by process id."""
        found: dict[int, str] = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # it is gone by now
                if self._marker not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                command = (folder / "cmdline").read_bytes().split(b"\0")
                if b"--input-format=stream-json" in command and b"--pdeathsig" not in command:
                    found[int(folder.name)] = os.readlink(folder / "cwd").rpartition("/")[2]
        return found

    def running(self) -> Collection[str]:
        """Return the sessions that have a Claude Code process."""
        return set(self.clis().values())

    def log_lines(self) -> list[str]:
        """Return what the servers logged."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
