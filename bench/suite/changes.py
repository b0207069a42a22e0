"""The settings of our server that only we set: each with what else it could be.

A change is made in a process of its own, before anything runs in it: nothing here is an option of
the server, and what is measured is the server's code as it is.
"""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeAlias

from session_http import accept, collector, connection, listen, logs, serve

LoadName: TypeAlias = Literal["streams", "stored", "requests", "downloads", "uploads", "storm"]


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


def _buffer(high: int) -> Callable[[], None]:
    return _connections(lambda transport: transport.set_write_buffer_limits(high=high))


def _nagle(transport: Any) -> None:
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)


def _log_access() -> None:
    logs.configure(form="json", level="info")


CHANGES: Mapping[str, Change] = {
    "asyncio's event loop": Change(
        ("streams", "stored", "requests", "storm"), setting(serve, "_loop_factory", lambda: None)
    ),
    "collector: Python's thresholds": Change(
        ("streams",), setting(collector, "YOUNG", gc.get_threshold())
    ),
    "collector: ten times as rarely": Change(
        ("streams",), setting(collector, "YOUNG", (collector.YOUNG[0] * 10, *collector.YOUNG[1:]))
    ),
    "threads switched after 1 ms": Change(("stored",), lambda: sys.setswitchinterval(0.001)),
    "threads switched after 20 ms": Change(("stored",), lambda: sys.setswitchinterval(0.02)),
    "Nagle's algorithm": Change(("streams",), _connections(_nagle)),
    "access log to a file": Change(("requests",), _log_access),
    "write buffer 16 KiB": Change(("downloads",), _buffer(16 * 2**10)),
    "write buffer 1 MiB": Change(("downloads",), _buffer(2**20)),
    "reads of 16 KiB": Change(("uploads",), setting(connection, "MOST_READ", 16 * 2**10)),
    "reads of 256 KiB": Change(("uploads",), setting(connection, "MOST_READ", 256 * 2**10)),
    "1 accepted in a step": Change(("storm",), setting(accept, "AT_ONCE", 1)),
    "128 accepted in a step": Change(("storm",), setting(accept, "AT_ONCE", 128)),
    "backlog 128": Change(("storm",), setting(listen, "BACKLOG", 128)),
}
"""By what the report calls them."""
