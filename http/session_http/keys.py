"""Who is calling: the one place where a request becomes a principal.

There are no keys yet, so every caller is `LOCAL`, and the server refuses to listen beyond this
machine unless it is told to. Whatever comes later, keys or tokens, is another function of the type
`Authenticate`; the handlers already pass the owner on with every request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from starlette.requests import HTTPConnection

from session_supervisor.spec import LOCAL_OWNER


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller.

    Attributes:
        owner: Whose sessions the caller sees, and who owns those that it starts.
        roles: What it may do beyond its own sessions.
        limits: Bounds of its own, by name.
    """

    owner: str
    roles: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


Authenticate: TypeAlias = Callable[[HTTPConnection], Principal]
"""Tells who calls, or raises `problems.ProblemError` with 401 or 403."""

LOCAL = Principal(owner=LOCAL_OWNER)
"""Everybody, where nobody tells callers apart."""


def authenticate(_request: HTTPConnection) -> Principal:
    """Return who calls: anybody who can reach the server is `LOCAL`."""
    return LOCAL
