"""Hypercorn on uvloop, configured and guarded as it was measured to need it; signals; drain.

What happens when the server is told to stop, in this order: it takes no new work and is not ready;
running turns get the drain budget, and what still runs then is interrupted; every stream ends with
a terminal event, and every request that waits is answered; Hypercorn closes its connections; the
program ends. A second signal cuts that short, a third ends it on the spot.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import hypercorn.protocol
from hypercorn.asyncio import serve as hypercorn_serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol.h11 import H11Protocol

from session_http.app import App
from session_http.listen import BACKLOG
from session_supervisor import Supervisor

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_FILES = 65_536
"""File descriptors to ask for: out of them, a server can accept and start nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTimes:
    """How long stopping may take, in seconds.

    Attributes:
        drain_s: That running turns may still take before they are interrupted.
        flush_s: For answers and the ends of streams to get out, once every turn has ended.
        close_s: For Hypercorn to close its connections.
        hurry_s: For processes to end after a second signal, before the program just exits.
    """

    drain_s: float = 10.0
    flush_s: float = 2.0
    close_s: float = 4.0
    hurry_s: float = 8.0


class Stop:
    """The wish that the server stop, and how urgent it is."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.urgent = asyncio.Event()

    def ask(self) -> None:
        """Ask once more: to stop, then to hurry, then to exit on the spot."""
        if self.urgent.is_set():
            # Processes that we started die with us, where the system can see to it.
            os._exit(1)
        elif self.wanted.is_set():
            self.urgent.set()
        else:
            self.wanted.set()


@contextmanager
def stopped_by_signals(stop: Stop) -> Generator[None]:
    """Let SIGTERM and SIGINT ask for the stop, while the context is open."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.ask)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def serve(
    app: App,
    supervisor: Supervisor,
    sockets: Sequence[socket.socket],
    *,
    stop: Stop,
    times: StopTimes | None = None,
) -> None:
    """Serve until asked to stop, then drain the supervisor, and return when all is closed.

    Args:
        app: What to serve.
        supervisor: Its sessions; drained, not closed.
        sockets: Where to listen; closed in the end.
        stop: Asks for the end.
        times: How long that may take.
    """
    times = times or StopTimes()
    drained = asyncio.Event()

    async def shutdown() -> None:
        await stop.wanted.wait()
        # A failure here must not keep Hypercorn from closing.
        try:
            await _drain(app, supervisor, stop, times)
        finally:
            drained.set()

    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(_quiet_about_clients)
    # In a task of its own: awaited directly, its shutdown ends the caller with CancelledError.
    server = asyncio.create_task(
        hypercorn_serve(cast(Any, app), _configuration(sockets), shutdown_trigger=shutdown),
        name="hypercorn",
    )
    closing = asyncio.create_task(drained.wait(), name="hypercorn watchdog")
    try:
        await asyncio.wait({server, closing}, return_when=asyncio.FIRST_COMPLETED)
        # On Python 3.12 and newer, without uvloop, Hypercorn waits for connections without end.
        await asyncio.wait({server}, timeout=times.close_s)
    finally:
        for task in (server, closing):
            task.cancel()
        await asyncio.wait({server, closing}, timeout=1.0)
        for one in sockets:
            one.close()
        loop.set_exception_handler(handler)
    if server.done() and not server.cancelled() and (error := server.exception()) is not None:
        raise error


async def _drain(app: App, supervisor: Supervisor, stop: Stop, times: StopTimes) -> None:
    """End every turn and session, and let everybody who waits have the answer."""
    logger.info("stopping: running turns have %g s to end", times.drain_s)
    draining = asyncio.create_task(supervisor.drain(times.drain_s), name="drain")
    urgent = asyncio.create_task(stop.urgent.wait(), name="second signal")
    try:
        await asyncio.wait({draining, urgent}, return_when=asyncio.FIRST_COMPLETED)
        if stop.urgent.is_set():
            logger.info("stopping at once")
            asyncio.get_running_loop().call_later(times.hurry_s, os._exit, 1)
            await supervisor.drain(0.0)
        await draining
    finally:
        for task in (draining, urgent):
            task.cancel()
        await asyncio.wait({draining, urgent})
    answered = asyncio.create_task(app.all_answered(), name="answers")
    hurry = asyncio.create_task(stop.urgent.wait(), name="second signal")
    await asyncio.wait(
        {answered, hurry}, timeout=times.flush_s, return_when=asyncio.FIRST_COMPLETED
    )
    for task in (answered, hurry):
        task.cancel()
    await asyncio.wait({answered, hurry})
    if app.open_requests:
        logger.warning("%d requests are left unanswered", app.open_requests)


# -- Hypercorn -------------------------------------------------------------------------------


class _GuardedProtocol(H11Protocol):
    """Hypercorn's HTTP/1.1, with two things mended that no setting reaches."""

    async def _check_protocol(self, event: object) -> None:
        """Stay with HTTP/1.1, also where the client offers or assumes HTTP/2.

        Over HTTP/2, Hypercorn does not hold back for a client that reads nothing: its buffers grow
        by hundreds of megabytes a second. A client that offers the change, as Java's does by
        default, is answered in HTTP/1.1.
        """

    async def handle(self, event: Event) -> None:
        """Let go of a connection when its client does.

        Hypercorn keeps one that was idle until `keep_alive_timeout`, with its file descriptor.
        """
        await super().handle(event)
        if isinstance(event, Closed):
            await self.send(Updated(idle=False))


def _quiet_about_clients(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what nobody handled, except that a client is gone.

    Hypercorn does not expect the kernel to give a connection up (`TCP_USER_TIMEOUT`), and fails
    while it closes it.
    """
    error: object = context.get("exception")
    if "transport" in context and _is_connection_error(error):
        logger.debug("a connection ended: %r", error)
    else:
        loop.default_exception_handler(context)


def _is_connection_error(error: object) -> bool:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return all(_is_connection_error(one) for one in group.exceptions)
    return isinstance(error, OSError)


def _configuration(sockets: Sequence[socket.socket]) -> Config:
    class Configuration(Config):
        def create_sockets(self) -> Sockets:
            return Sockets([], list(sockets), [])

    setattr(hypercorn.protocol, "H11Protocol", _GuardedProtocol)  # noqa: B010  (it is not exported)
    config = Configuration()
    config.errorlog = logging.getLogger("hypercorn.error")
    config.errorlog.setLevel(logging.WARNING)
    config.accesslog = None
    config.backlog = BACKLOG
    config.alpn_protocols = ["http/1.1"]
    config.include_server_header = False
    # The 1,000th request of a connection would close it, whatever else happens on it.
    config.keep_alive_max_requests = 1 << 31
    # Longer than the usual 60 s of proxies: who closes first must not be us.
    config.keep_alive_timeout = 75.0
    config.graceful_timeout = 1.0
    return config


# -- the process -----------------------------------------------------------------------------


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a program's coroutine on uvloop, or on asyncio's own loop where there is no uvloop."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # Windows, PyPy
        return None
    return uvloop.new_event_loop


def raise_file_limit() -> int | None:
    """Allow this process as many open files as it may have; return how many that is."""
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has a further limit that it does not tell
        return soft
    return wanted
