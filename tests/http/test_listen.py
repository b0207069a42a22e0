"""The server listens where it is told, and on `localhost` by both of its addresses."""

from __future__ import annotations

import socket

import pytest

from session_http.listen import (
    CannotListen,
    addresses,
    close_all,
    is_loopback,
    open_sockets,
    urls,
)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_name_that_cannot_be_one_is_said_so() -> None:
    with pytest.raises(CannotListen, match="is not known"):
        addresses("x" * 64 + ".example")


def test_small_answers_are_not_held_back() -> None:
    # asyncio looks at the protocol that a socket was made with, or leaves Nagle's algorithm on
    sockets = open_sockets("127.0.0.1", 0)
    try:
        assert [one.proto for one in sockets] == [socket.IPPROTO_TCP]
    finally:
        close_all(sockets)


def test_localhost_is_both_loopback_addresses_on_one_port() -> None:
    sockets = open_sockets("localhost", 0)
    try:
        names = [one.getsockname()[:2] for one in sockets]
        port = names[0][1]
        assert names == [("127.0.0.1", port), ("::1", port)][: 1 + has_ipv6()]
        assert urls("localhost", sockets) == (f"http://localhost:{port}",)
        for host, _ in names:
            socket.create_connection((host, port), timeout=60).close()
    finally:
        close_all(sockets)


def test_a_port_in_use_is_said_so_and_nothing_stays_open() -> None:
    (first,) = open_sockets("127.0.0.1", 0)
    try:
        with pytest.raises(CannotListen, match=r"in use.*--port"):
            open_sockets("localhost", first.getsockname()[1])
    finally:
        first.close()


def test_an_unknown_host_is_said_so() -> None:
    with pytest.raises(CannotListen, match="not known"):
        open_sockets("no-such-host.invalid", 0)


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_what_can_be_reached_from_other_machines_is_known(host: str, local: bool) -> None:
    assert is_loopback(addresses(host)) is local


def test_an_address_is_shown_as_it_must_be_typed() -> None:
    (listener,) = open_sockets("127.0.0.1", 0)
    with listener:
        assert urls("127.0.0.1", (listener,)) == (f"http://127.0.0.1:{listener.getsockname()[1]}",)
