"""The processes of a run of `bench.chaos`: offline model, server after server, Claude Codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.chaos_client import Api, Broken, Silent
from bench.chaos_keep import Keeper
from bench.chaos_record import Record
from bench.ports import unused_port
from bench.processes import MARKER, Memory, NotReady
from session_http import keyfile
from session_http.statedir import StateDir

ADMIN = "admin"
"""Sees and closes everybody's sessions, and has none."""

READY_S = 90.0
"""Seconds that a server may take to come up."""

LOOK_S = 6.0
"""Seconds that a server may take to say whose its processes are: it gives each session five."""

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
        pooled: How many of them stand ready for anybody, or come up to do so, as the server says.
    """

    tasks: int
    descriptors: int
    uss: int
    clis: int
    pooled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The Claude Code processes that run, and whose they are as the server says.

    Attributes:
        sessions: Conversations, by the process that each has.
        resting: Processes that nobody has: they stand ready, come up, or come back.
        all: These, and those of one-offs.
    """

    sessions: Mapping[int, str]
    resting: Collection[int]
    all: Collection[int]


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
        self.port = unused_port()
        self.database = StateDir(state).database
        self.log = home / "server.log"
        self._state = state
        self.starts: list[float] = []
        """Seconds that each server took until it was ready."""
        self.stops: list[float] = []
        """Seconds that each took to end after SIGTERM."""
        self.recycled: list[int] = []
        """How often processes came back from one-offs, by each server's last word."""
        self.keys: dict[str, str] = {}
        """By owner."""
        keys = home / "keys.toml"
        for owner in (*owners, ADMIN):
            made = keyfile.new_key(owner, roles=("admin",) if owner == ADMIN else ("user",))
            keyfile.append(keys, made.key)
            self.keys[owner] = made.token
        self._admin = Api("127.0.0.1", self.port, self.keys[ADMIN])
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
        orphans = self.clis()
        with self.log.open("ab") as log:
            server = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._env,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._server = server
        self.recycled.append(0)
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
        if left := orphans & self.clis():
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
        async with asyncio.timeout(60.0):
            while not (line := await server.stdout.readline()).startswith(b"{"):
                if not line:
                    raise NotReady("The server ended by itself.")
        said = json.loads(line)
        clis = len(self.clis())
        pool = (await self._admin.call("GET", "/supervisor")).body["pool"]
        self.recycled[-1] = pool["recycled"]
        return Vitals(
            tasks=said["tasks"],
            descriptors=said["descriptors"],
            uss=Memory.of(server.pid).uss,
            clis=clis,
            pooled=pool["ready"] + pool["starting"],
        )

    async def running(self) -> Running:
        """Return which Claude Code processes run, and whose they are; none if nobody says."""
        running = self.clis()
        try:
            async with asyncio.timeout(LOOK_S):
                answer = await self._admin.call("GET", "/supervisor")
        except (Broken, Silent, TimeoutError):
            return Running(sessions={}, resting=(), all=())
        self._record.answered(answer.status, answer.body, "GET /supervisor")
        if answer.status == 200:
            self.recycled[-1] = answer.body["pool"]["recycled"]
        users = {
            one["inside"]["pid"]: one
            for one in answer.body.get("sessions", ())
            if one["inside"] is not None
        }
        return Running(
            sessions={
                pid: str(users[pid]["session_id"])
                for pid in running & users.keys()
                if users[pid]["kind"] == "conversation"
            },
            resting=running - users.keys(),
            all=running,
        )

    def clis(self) -> set[int]:
        """Return the ids of the Claude Code processes that run, whoever has them."""
        found: set[int] = set()
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # it is gone by now
                if self._marker not in (folder / "environ").read_bytes().split(b"\0"):
                    continue
                command = (folder / "cmdline").read_bytes().split(b"\0")
                if b"--input-format=stream-json" in command and b"--pdeathsig" not in command:
                    found.add(int(folder.name))
        return found

    def log_lines(self) -> list[str]:
        """Return what the servers logged."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()
