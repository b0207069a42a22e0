"""A running program that speaks lines of JSON: start it, write to it, read it, see it end.

It knows nothing of Claude. It is not `asyncio.subprocess`, because that says a process has
ended only when everything that inherited its pipes has ended too, so that one stray grandchild
would hide a crash for as long as it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from session_supervisor.agents.claude import precedence
from session_supervisor.errors import AgentGone, AgentStartFailed
from session_supervisor.spec import JsonObject

_log = logging.getLogger(__name__)

_CHUNK = 64 * 1024
"""Bytes to read at once."""

_DRAIN_S = 0.5
"""Seconds to go on reading what a process that has ended left in its pipes."""

_KILL_S = 5.0
"""Seconds that a killed process has to be gone."""

_DESCRIPTORS = 12
"""Descriptors that starting a program takes for a moment, with a few to spare."""

_LOWER_AGAIN_S = 0.1
"""Seconds until the kernel, which did not let us have a program go after us, may do so."""

_LINE_LIMIT = 4096
"""Characters of one line of standard error that are kept."""


class Garbled(Exception):
    """The program printed what nobody can read; nothing after it can be trusted."""


class Program(asyncio.SubprocessProtocol):
    """One process with pipes on its standard streams. Make it with `start`.

    Attributes:
        on_stderr: Hears each line of standard error.
        sent: The signals that we have sent it.
    """

    on_stderr: Callable[[str], None] | None
    sent: set[signal.Signals]

    def __init__(self, *, stderr_lines: int) -> None:
        self.on_stderr = None
        self.sent = set()
        # Each knows the other, so this lets go of it in the end: what was a program is freed then.
        self._transport: asyncio.SubprocessTransport | None = None
        self._pid = 0
        self._returncode: int | None = None
        self._stdout = asyncio.StreamReader(limit=_CHUNK)
        self._stderr: deque[str] = deque(maxlen=stderr_lines)
        self._partial = b""
        self._open = {1, 2}
        self._silent = asyncio.Event()
        self._exited = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def start(
        cls, command: Sequence[str], *, cwd: str, env: Mapping[str, str], stderr_lines: int = 100
    ) -> Program:
        """Start it, in a session of its own: a Ctrl-C in our terminal is ours alone.

        Args:
            command: The program's path and its arguments.
            cwd: Its working directory.
            env: All of its environment.
            stderr_lines: How much of its standard error to keep, lines.

        Raises:
            AgentStartFailed: There are too few file descriptors left.
            OSError: It cannot be started.
        """
        require_descriptors()
        program = cls(stderr_lines=stderr_lines)
        loop = asyncio.get_running_loop()
        await loop.subprocess_exec(
            lambda: program, *command, cwd=cwd, env=dict(env), start_new_session=True
        )
        return program

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._returncode

    @property
    def stderr(self) -> str:
        """The last lines of its standard error."""
        rest = self._partial.decode(errors="replace").rstrip()
        return "\n".join([*self._stderr, rest] if rest else self._stderr)

    def forget_stderr(self) -> None:
        """Drop what it has printed to standard error, and tell nobody of what it will."""
        self._stderr.clear()
        self._partial = b""
        self.on_stderr = None

    async def write(self, data: bytes) -> None:
        """Write to its standard input, as fast as it reads.

        A cancelled write is complete all the same: the bytes are already on their way.

        Raises:
            AgentGone: It has ended, or closed its standard input.
        """
        if self._exited.is_set() or (pipe := self._stdin).is_closing():
            raise AgentGone("The process has ended, or takes no more input.")
        pipe.write(data)
        await self._writable.wait()
        if pipe.is_closing():
            raise AgentGone("The process ended while it was written to.")

    def close_input(self) -> None:
        """End its standard input."""
        if self._transport is not None and not self._stdin.is_closing():
            self._stdin.close()

    async def frames(self, *, limit: int) -> AsyncIterator[JsonObject]:
        """Yield every JSON object that it prints, one a line, until its end.

        Lines that do not begin with a brace are skipped; some builds print diagnostics.

        Args:
            limit: Longest line, bytes.

        Raises:
            Garbled: A line is too long or is not JSON.
        """
        pieces: list[bytes] = []
        size = 0
        while chunk := await self._stdout.read(_CHUNK):
            *lines, rest = chunk.split(b"\n")
            for ending in lines:
                line = b"".join([*pieces, ending])
                pieces.clear()
                size = 0
                if line.lstrip().startswith(b"{"):
                    yield _parsed(line)
            pieces.append(rest)
            size += len(rest)
            if size > limit:
                raise Garbled(f"It printed a line of more than {limit} bytes.")

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; return whether it has ended within that many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._exited.wait()
        return self._exited.is_set()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if not self._exited.is_set():
            self.sent.add(number)
            # Not by way of the transport, which would reap it behind the event loop's back.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def go_after_us(self, by: int) -> None:
        """Let the processor be ours, and others', before it is its own or its children's.

        Args:
            by: By how much it is nicer than we are; 0 leaves it as it is.
        """
        # Until it is reaped its process id is nobody else's.
        if not self._exited.is_set() and not precedence.lower(self.pid, by):
            asyncio.get_running_loop().call_later(_LOWER_AGAIN_S, self.go_after_us, by)

    async def kill(self) -> None:
        """Kill it at once; return when it is gone and all that it printed is here.

        Only a process that waits for the kernel, for a disk that is away, does not die of it. It
        will when it wakes up, and is not waited for.
        """
        self.signal(signal.SIGKILL)
        if await self.wait(_KILL_S):
            await self._silent.wait()
        self._release()

    def _release(self) -> None:
        """Close what is left of the pipes."""
        for fd in tuple(self._open):
            self._close_output(fd)
        if self._transport is not None:
            self._transport.close()
            if self._exited.is_set():  # else its end is still to come
                self._transport = None

    def is_stopped(self) -> bool:
        """Whether it is known to be stopped (SIGSTOP), so that asking it politely is vain."""
        return self._state() in ("T", "t")

    def is_at_work(self) -> bool:
        """Whether it lives and is not stopped, as far as the kernel says so.

        The kernel knows it before we hear of it.
        """
        return self._state() not in ("T", "t", "Z", "X")

    def _state(self) -> str:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return ""
        return stat.rpartition(")")[2].strip()[:1]

    # What follows is called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of the process that was started."""
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self._pid = self._transport.get_pid()
        self._stdout.set_transport(self._pipe(1))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Take what it printed."""
        if fd == 1:
            if fd in self._open:
                self._stdout.feed_data(data)
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-_LINE_LIMIT:]
        for raw in lines:
            if line := raw.decode(errors="replace").rstrip()[:_LINE_LIMIT]:
                self._stderr.append(line)
                self._tell(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Note that it closed one of its streams."""
        if fd == 0:
            self._writable.set()
        else:
            self._close_output(fd)

    def process_exited(self) -> None:
        """Note its end. The pipes may stay open, in the hands of its children."""
        self._returncode = self._running.get_returncode()
        self._exited.set()
        self._writable.set()
        asyncio.get_running_loop().call_later(_DRAIN_S, self._release)

    def pause_writing(self) -> None:
        """Hold writers: its input is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self._writable.set()

    def _tell(self, line: str) -> None:
        try:
            if self.on_stderr is not None:
                self.on_stderr(line)
        except Exception:
            # The listener's failure: the program goes on, and others with it in this event loop.
            _log.exception("A listener to standard error failed")

    def _close_output(self, fd: int) -> None:
        self._open.discard(fd)
        if fd == 1:
            self._stdout.feed_eof()
        if not self._open:
            self._silent.set()

    @property
    def _running(self) -> asyncio.SubprocessTransport:
        assert self._transport is not None, "made with start()"
        return self._transport

    @property
    def _stdin(self) -> asyncio.WriteTransport:
        return cast("asyncio.WriteTransport", self._pipe(0))

    def _pipe(self, fd: int) -> asyncio.BaseTransport:
        pipe = self._running.get_pipe_transport(fd)
        assert pipe is not None, "all three streams are pipes"
        return pipe


def require_descriptors() -> None:
    """Make sure that there are enough file descriptors left to start a program.

    Call it right before: uvloop loses the pipes of a program for good when it runs out of
    descriptors while it starts it, so that a server that did would never recover.

    Raises:
        AgentStartFailed: There are too few.
        OSError: They cannot be had for another reason.
    """
    if sys.platform == "win32":
        return
    import resource

    taken: list[int] = []
    try:
        taken.append(os.open(os.devnull, os.O_RDONLY))
        while len(taken) < _DESCRIPTORS:
            taken.append(os.dup(taken[0]))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise AgentStartFailed(
            f"The server has run out of file descriptors (limit {limit}). Close streams or "
            "sessions, or raise the limit (ulimit -n), and try again."
        ) from error
    finally:
        for fd in taken:
            os.close(fd)


def _parsed(line: bytes) -> JsonObject:
    try:
        frame: JsonObject = json.loads(line)
    except ValueError as error:
        raise Garbled(f"It printed a line that is not JSON: {line[:200]!r} ({error})") from None
    return frame
