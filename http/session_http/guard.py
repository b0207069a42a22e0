"""Keeps browsers from being used against a server that asks nobody for a key.

A page on any web site can make the browser that shows it send requests to this machine. Some it may
send without asking (they then carry the site's `Origin`), and by letting its own host name point
to 127.0.0.1 it can pass for this server altogether (they then carry the site's name as `Host`).
Claude Code runs commands, so neither may start a turn.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from session_http.problems import refuse

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""How this machine calls itself."""

_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})


def check_host(headers: Headers, trusted: Collection[str] | None) -> None:
    """Refuse a request that is addressed to a foreign host.

    Args:
        headers: Of the request.
        trusted: Host names, lower case, that are not foreign; None: none is.

    Raises:
        ProblemError: It is foreign.
    """
    if trusted is None:
        return
    host = _host_name(f"//{headers.get('host', '')}")
    # What cannot be understood has an empty name, which nobody can be trusted by.
    if not host or host not in trusted:
        raise refuse(
            "untrusted_origin",
            f"This server is not known as {host!r}. Use localhost, or start it with "
            "--trusted-host NAME.",
        )


def check_page(
    method: str,
    headers: Headers,
    trusted: Collection[str] | None,
    origins: Collection[str] = (),
) -> None:
    """Refuse a request that a page of a foreign host has a browser send.

    Only for requests without a key: a page that knows one was given it.

    Args:
        method: Of the request.
        headers: Of the request.
        trusted: Host names, lower case, that are not foreign; None: only the one that the request
            is addressed to.
        origins: Origins whose pages may use the server all the same.

    Raises:
        ProblemError: It is foreign.
    """
    origin = headers.get("origin")
    if origin is None or method in _HARMLESS or origin in origins:
        return
    if trusted is None:
        trusted = (_host_name(f"//{headers.get('host', '')}"),)
    page = _host_name(origin)
    if not page or page not in trusted:
        raise refuse(
            "untrusted_origin",
            f"A page of {origin[:200]!r} may not use this server. Start it with --trusted-host "
            "NAME, or with its origin among the CORS origins, to allow it.",
        )


def _host_name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:  # brackets or a port that are none
        return ""
