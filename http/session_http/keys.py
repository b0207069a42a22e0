"""Who is calling: the one place where a request becomes a principal.

Without keys every caller is `LOCAL`. With keys a `KeyRing` tells callers apart; an application may
bring another function of the type `Authenticate`. The handlers pass the owner and its limits on
with every request, and nothing below them knows of keys.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from starlette.requests import HTTPConnection

from session_http import keyfile
from session_http.keyfile import Key, Role
from session_http.problems import ProblemError, refuse
from session_http.rates import Rate
from session_supervisor import Quota
from session_supervisor.spec import LOCAL_OWNER

logger = logging.getLogger(__name__)

ENVIRONMENT = "SESSION_SUPERVISOR_API_KEYS"
"""Where keys given inline come from, for messages."""

SEND_ONE = "Send `Authorization: Bearer KEY` or `X-API-Key: KEY`."

_NOBODY = bytes(32)
"""Stands for the hash of a key that does not exist."""


class Validity:
    """Whether a key still holds; tells those who must know at once that it does not."""

    def __init__(self) -> None:
        self._listeners: set[Callable[[], None]] = set()
        self.holds = True

    def end(self) -> None:
        """Say that the key was revoked."""
        self.holds = False
        for listener in tuple(self._listeners):
            listener()

    def watch(self, listener: Callable[[], None]) -> None:
        """Call `listener` when the key is revoked."""
        self._listeners.add(listener)

    def unwatch(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        self._listeners.discard(listener)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A caller.

    Attributes:
        owner: Whose sessions the caller sees, and who owns those that it starts.
        roles: `user`: may have sessions. `admin`: may find, interrupt and close everybody's.
        limits: What its owner may have at once.
        key_id: The key that it has shown, by its public part; None: it has shown none.
        validity: Whether it may go on; None: always.
    """

    owner: str
    roles: frozenset[Role] = frozenset({"user"})
    limits: Quota = field(default_factory=Quota)
    key_id: str | None = None
    validity: Validity | None = field(default=None, compare=False, repr=False)


Authenticate: TypeAlias = Callable[[HTTPConnection], Principal]
"""Tells who calls, or raises `NoKey` or another `problems.ProblemError`."""

LOCAL = Principal(owner=LOCAL_OWNER, roles=frozenset({"user", "admin"}))
"""Everybody, where nobody tells callers apart."""

ANONYMOUS = Principal(owner="", roles=frozenset())
"""Who looks at an open path without a key: nobody's sessions are its own."""


def anybody(_request: HTTPConnection) -> Principal:
    """Return who calls: anybody who can reach the server is `LOCAL`."""
    return LOCAL


class NoKey(ProblemError):
    """The request carries no key at all, which only open paths allow."""

    def __init__(self) -> None:
        super().__init__(_unauthorized(f"This server needs a key. {SEND_ONE}").problem)


@dataclass(slots=True, kw_only=True)
class _Entry:
    digest: bytes
    principal: Principal
    validity: Validity
    rate: Rate | None


class KeyRing:
    """The keys that hold now.

    Args:
        file: The key file; None: there is none.
        inline: The same content given directly; None: nothing.

    Raises:
        KeyFileError: They cannot be read or used.
    """

    def __init__(self, *, file: Path | None = None, inline: str | None = None) -> None:
        self._file = file
        self._inline = inline
        self._entries: dict[str, _Entry] = {}
        self.on_owner_gone: Callable[[str], None] | None = None
        """Hears of an owner who has no key any more."""
        self.reload()

    def __len__(self) -> int:
        return len(self._entries)

    def reload(self) -> None:
        """Read the keys again. New limits hold at once, and so does the end of a revoked key.

        Raises:
            KeyFileError: They cannot be read or used; those read before go on to hold.
        """
        keys: tuple[Key, ...] = ()
        if self._file is not None:
            keys += keyfile.load(self._file)
        if self._inline is not None:
            keys += keyfile.parse(self._inline, source=ENVIRONMENT)
        keyfile.refuse_duplicates(keys, source=f"{self._file} and {ENVIRONMENT}")
        if not keys:
            logger.warning("There is no API key, so every request that needs one is refused.")
        before = self._entries
        self._entries = {key.id: _entry(key, before.get(key.id)) for key in keys}
        for key_id, entry in before.items():
            now = self._entries.get(key_id)
            if now is None or now.validity is not entry.validity:
                entry.validity.end()
        if self.on_owner_gone is not None:
            owners, stay = (
                {one.principal.owner for one in entries.values()}
                for entries in (before, self._entries)
            )
            for owner in sorted(owners - stay):
                self.on_owner_gone(owner)

    def authenticate(self, connection: HTTPConnection) -> Principal:
        """Return who calls, and count the request.

        Raises:
            ProblemError: It has no key, a wrong one, or has asked too often.
        """
        token = _token(connection.scope["headers"])
        if token is None:
            raise NoKey
        entry = self._entries.get(keyfile.id_of(token) or "")
        expected = _NOBODY if entry is None else entry.digest
        # Also for a key that does not exist, so that nobody can tell from the time which ids do.
        same = hmac.compare_digest(keyfile.digest_of(token), expected)
        if entry is None or not same:
            raise _unauthorized("The key is wrong, or was revoked.")
        if entry.rate is not None and (wait_s := entry.rate.take()):
            raise refuse(
                "too_many_requests",
                f"This key may be used {entry.rate.limit} times a minute. Try again later.",
                retry_after=wait_s,
            )
        return entry.principal


def check_validity(principal: Principal) -> None:
    """Refuse to answer whoever may not go on.

    Raises:
        ProblemError: Its key was revoked since it asked.
    """
    if principal.validity is not None and not principal.validity.holds:
        raise _unauthorized("The key was revoked while the request ran; what it began goes on.")


def _entry(key: Key, before: _Entry | None) -> _Entry:
    if before is not None and (before.digest, before.principal.owner) != (key.digest, key.owner):
        before = None
    validity = Validity() if before is None else before.validity
    rate = None if before is None else before.rate
    if key.requests_per_minute is None:
        rate = None
    elif rate is None:
        rate = Rate(key.requests_per_minute)
    else:
        rate.limit = key.requests_per_minute
    return _Entry(
        digest=key.digest,
        principal=Principal(
            owner=key.owner,
            roles=frozenset(key.roles),
            limits=Quota(sessions=key.max_sessions, turns=key.max_turns, budget_usd=key.budget_usd),
            key_id=key.id,
            validity=validity,
        ),
        validity=validity,
        rate=rate,
    )


def _token(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the key that a request carries; other schemes than Bearer are not for us.

    It runs for every request, so it goes through the headers once, as they came.
    """
    tokens: set[str] = set()
    for name, value in headers:
        if name == b"x-api-key":
            tokens.add(value.decode("latin-1").strip())
        elif name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                tokens.add(token.strip())
    tokens.discard("")
    if len(tokens) > 1:
        raise _unauthorized(f"The request carries two different keys. {SEND_ONE}")
    return tokens.pop() if tokens else None


def _unauthorized(detail: str) -> ProblemError:
    return refuse("unauthorized", detail, headers={"www-authenticate": "Bearer"})
