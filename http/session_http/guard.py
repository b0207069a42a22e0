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


def check_origin(method: str, headers: Headers, trusted: Collection[str] | None) -> None:
    """Refuse a request that is addressed to, or comes from a page of, a foreign host.

    Args:
        method: Of the request.
        headers: Of the request.
        trusted: Host names, lower case, that are not foreign; None: whatever the request is
            addressed to, which leaves only pages of other hosts to be refused.

    Raises:
        ProblemError: It is foreign.
    """
    host = _host_name(f"//{headers.get('host', '')}")
    if trusted is None:
        trusted = frozenset({host})
    # What cannot be understood has an empty name, which nobody can be trusted by.
    elif not host or host not in trusted:
        raise refuse(
            "untrusted_origin",
            f"This server is not known as {host!r}. Use localhost, or start it with "
            "--trusted-host NAME.",
        )
    origin = headers.get("origin")
    if origin is None or method in _HARMLESS:
        return
    page = _host_name(origin)
    if not page or page not in trusted:
        raise refuse(
            "untrusted_origin",
            f"A page of {origin[:200]!r} may not use this server. Start it with --trusted-host "
            "NAME to allow it.",
        )


def _host_name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:  # brackets or a port that are none
        return ""
