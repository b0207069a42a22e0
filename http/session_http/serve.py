"""Serving the application until a signal says otherwise, and the drain.

HTTP/1.1 and the ASGI side of a request are Hypercorn's, on uvloop. What stands between them and the
network is ours, since Hypercorn has no bounds there: `accept` takes connections, `connection`
moves their bytes and watches the time, `http1` and `http2` guard the protocols. Nothing of
Hypercorn is changed for others who use it in the same process.


What happens when the server is told to stop, in this order: it takes no new work and is not ready;
running turns get the drain budget, and what still runs then is interrupted; every stream ends with
a terminal event, and every request that waits is answered, also one whose body has not come; the
connections are closed; the program ends. A second signal cuts that short, a third ends it on the
spot.
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

from session_http.accept import Acceptor, connections_for
from session_http.app import App
from session_http.tls import Tls
from session_http.wire import ConnectionLimits, hypercorn_settings
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
        close_s: For connections to be closed, before they are cut.
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
    tls: Tls | None = None,
    http2: bool = True,
    max_connections: int | None = None,
    limits: ConnectionLimits | None = None,
) -> None:
    """Serve until asked to stop, then drain the supervisor, and return when all is closed.

    Args:
        app: What to serve.
        supervisor: Its sessions; drained, not closed.
        sockets: Where to listen; closed in the end.
        stop: Asks for the end.
        times: How long that may take.
        tls: A certificate that was loaded; None: connections are not encrypted.
        http2: Whether clients may use HTTP/2.
        max_connections: Connections at the same time, further ones are turned away; None: as
            many as the limit of open files leaves room for.
        limits: How long things may take on a connection.
    """
    times = times or StopTimes()
    if max_connections is None:
        max_connections = connections_for(file_limit())
    acceptor = Acceptor(
        app,
        hypercorn_settings(),
        limits or ConnectionLimits(),
        most=max_connections,
        tls=tls,
        http2=http2,
    )
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(_quiet_about_clients)
    try:
        async with asyncio.TaskGroup() as group:
            accepting = [group.create_task(acceptor.accept(one, group)) for one in sockets]
            try:
                await stop.wanted.wait()
                await _drain(app, supervisor, stop, times)
            finally:
                for task in accepting:
                    task.cancel()
                await acceptor.close(times.close_s)
    finally:
        for one in sockets:
            one.close()
        loop.set_exception_handler(handler)


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
    app.give_up_bodies()
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


def _quiet_about_clients(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what nobody handled, except that a client is gone.

    uvloop reports that the kernel gave a connection up (`TCP_USER_TIMEOUT`).
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


def file_limit() -> int | None:
    """Return how many open files this process may have; None where nobody says."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


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
