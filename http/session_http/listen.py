"""The sockets that the server listens on."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from collections.abc import Iterable, Sequence

BACKLOG = 2048
"""Connections that may wait to be accepted: with 100, a thousand at once take five seconds."""


class CannotListen(Exception):
    """An address cannot be listened on; the message says which and why."""


def addresses(host: str) -> tuple[str, ...]:
    """Return the addresses that a host name stands for.

    `localhost` is always both loopback addresses, whatever the machine's hosts file says.

    Raises:
        CannotListen: Nobody knows the name.
    """
    if host == "localhost":
        return ("127.0.0.1", "::1")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # the latter for labels that are too long
        raise CannotListen(f"The host {host!r} is not known: {error}.") from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_loopback(found: Iterable[str]) -> bool:
    """Whether all of these addresses can be reached from this machine only."""
    return all(ipaddress.ip_address(one.partition("%")[0]).is_loopback for one in found)


def open_sockets(
    host: str, port: int, *, unread_s: float | None = None
) -> tuple[socket.socket, ...]:
    """Return listening sockets on all addresses of a host, on one port.

    Args:
        host: A name or an address.
        port: The port; 0 takes any that is free.
        unread_s: Seconds that a peer may leave unread or unacknowledged what was sent before
            the kernel drops the connection (Linux); None leaves it to the kernel's patience.

    Raises:
        CannotListen: The port is taken, or may not be used, or there is no such address.
    """
    found = addresses(host)
    opened: list[socket.socket] = []
    try:
        for address in found:
            listener = _listen(address, port, unread_s, required=len(found) == 1 or not opened)
            if listener is not None:
                opened.append(listener)
                port = listener.getsockname()[1]
    except BaseException:
        close_all(opened)
        raise
    return tuple(opened)


def close_all(sockets: Iterable[socket.socket]) -> None:
    """Close them."""
    for one in sockets:
        one.close()


def urls(
    host: str, sockets: Sequence[socket.socket], *, encrypted: bool = False
) -> tuple[str, ...]:
    """Return under which addresses the server can be reached.

    Args:
        host: What it was told to listen on.
        sockets: What it listens on.
        encrypted: Whether it speaks TLS.
    """
    port = sockets[0].getsockname()[1]
    scheme = "https" if encrypted else "http"
    names = ["localhost"] if host == "localhost" else [str(one.getsockname()[0]) for one in sockets]
    return tuple(
        f"{scheme}://[{name}]:{port}" if ":" in name else f"{scheme}://{name}:{port}"
        for name in names
    )


def _listen(
    address: str, port: int, unread_s: float | None, *, required: bool
) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, small
        # events wait 40 ms for the acknowledgement of the one before.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        if not required:  # a machine without IPv6
            return None
        raise CannotListen(f"{address} cannot be listened on: {error}.") from error
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and address != "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if unread_s is not None and sys.platform == "linux":
            # Inherited by every connection. Without it one whose client reads nothing keeps its
            # buffers for as long as the client likes, also after the application dropped it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(unread_s * 1000))
        listener.setblocking(False)
        try:
            listener.bind((address, port))
        except OSError as error:
            if not required and error.errno != errno.EADDRINUSE:
                listener.close()
                return None
            raise
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(_why(address, port, error)) from error
    return listener


def _why(address: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} of {address} is in use. Stop what uses it, or choose another with "
            "--port or the PORT variable."
        )
    return f"Port {port} of {address} cannot be listened on: {error.strerror}."
