"""The settings of our server that only we set: each with what else it could be.

A change is made in a process of its own, before anything runs in it: nothing here is an option of
the server, and what is measured is the server's code as it is.
"""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeAlias

import h2.settings

from session_http import accept, collector, connection, http2, listen, logs, serve

LoadName: TypeAlias = Literal[
    "streams", "slow", "stored", "requests", "downloads", "uploads", "http2", "storm"
]


@dataclass(frozen=True, slots=True)
class Change:
    """One setting, other than it is.

    Attributes:
        loads: Those that it may matter for.
        make: Makes it, in this process.
    """

    loads: tuple[LoadName, ...]
    make: Callable[[], None]


def setting(module: ModuleType, name: str, value: object) -> Callable[[], None]:
    """Return what gives a module's name another value, in this process.

    Raises:
        AttributeError: The module has no such name, so that nothing would be changed.
    """
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name}: what is changed must be there")
    return lambda: setattr(module, name, value)


def _connections(tell: Callable[[Any], None]) -> Callable[[], None]:
    """Return what has each connection's transport told something when it is made."""

    class Told(connection.Connection):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            tell(self._transport)

    return setting(accept, "Connection", Told)


def _buffer(high: int, low: int | None = None) -> Callable[[], None]:
    """Return what sets the marks of what a client has not read: where to wait, and go on again."""
    return _connections(lambda transport: transport.set_write_buffer_limits(high=high, low=low))


def _window(size: int) -> Callable[[], None]:
    """Return what sets how much of one body may be on its way over HTTP/2."""

    class Wider(http2.Http2):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            before = self._h2.local_settings
            initial = {h2.settings.SettingCodes(code): value for code, value in before.items()}
            initial[h2.settings.SettingCodes.INITIAL_WINDOW_SIZE] = size
            self._h2.local_settings = h2.settings.Settings(client=False, initial_values=initial)

    return setting(connection, "Http2", Wider)


def _thresholds(*values: int) -> Callable[[], None]:
    """Return what has Python look for garbage by itself, as the collector does not let it."""

    @contextmanager
    def by_itself() -> Generator[None]:
        before = gc.get_threshold()
        gc.set_threshold(*values)
        try:
            yield
        finally:
            gc.set_threshold(*before)

    return setting(collector, "calm_collector", by_itself)


def _nagle(transport: Any) -> None:
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


def _log_access() -> None:
    logs.configure(form="json", level="info")


CHANGES: Mapping[str, Change] = {
    "asyncio's event loop": Change(
        ("streams", "stored", "requests", "storm"), setting(serve, "_loop_factory", lambda: None)
    ),
    "collector: Python's own": Change(("streams",), _thresholds(*gc.get_threshold())),
    "collector: new objects a tenth as often": Change(
        ("streams",), setting(collector, "YOUNG", (collector.YOUNG[0] * 10, *collector.YOUNG[1:]))
    ),
    "threads switched after 1 ms": Change(("stored",), lambda: sys.setswitchinterval(0.001)),
    "threads switched after 20 ms": Change(("stored",), lambda: sys.setswitchinterval(0.02)),
    "Nagle's algorithm": Change(("streams",), _connections(_nagle)),
    "access log to a file": Change(("requests",), _log_access),
    "write buffer 16 KiB": Change(("downloads",), _buffer(16 * 2**10)),
    "write buffer 1 MiB": Change(("downloads",), _buffer(2**20)),
    "slow readers: wait above 16 KiB": Change(("slow",), _buffer(16 * 2**10)),
    "slow readers: wait above 256 KiB": Change(("slow",), _buffer(256 * 2**10)),
    "slow readers: go on when all is read": Change(("slow",), _buffer(64 * 2**10, 0)),
    "slow readers: go on below 48 KiB": Change(("slow",), _buffer(64 * 2**10, 48 * 2**10)),
    "HTTP/2: window of a stream 1 MiB": Change(("http2",), _window(2**20)),
    "HTTP/2: window of a connection 64 KiB": Change(
        ("http2",), setting(http2, "CONNECTION_WINDOW", 2**16 - 1)
    ),
    "HTTP/2: window of a connection 16 MiB": Change(
        ("http2",), setting(http2, "CONNECTION_WINDOW", 2**24)
    ),
    "HTTP/2: 64 KiB understood at once": Change(("http2",), setting(http2, "READ", 2**16)),
    "reads of 16 KiB": Change(("uploads",), setting(connection, "MOST_READ", 16 * 2**10)),
    "reads of 256 KiB": Change(("uploads",), setting(connection, "MOST_READ", 256 * 2**10)),
    "1 accepted in a step": Change(("storm",), setting(accept, "AT_ONCE", 1)),
    "128 accepted in a step": Change(("storm",), setting(accept, "AT_ONCE", 128)),
    "backlog 128": Change(("storm",), setting(listen, "BACKLOG", 128)),
}
"""By what the report calls them."""
