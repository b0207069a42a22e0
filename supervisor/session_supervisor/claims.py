"""A caller's key for its work, so that a retry finds the work that was begun and begins none.

What a key stands for is stored together with the work itself, all or none. While that is under way
the key is held: whoever comes with the same one waits, and then finds the work, or may try itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from session_supervisor.clock import Clock
from session_supervisor.errors import ClaimConflict, Unavailable
from session_supervisor.latch import Latch
from session_supervisor.stores.port import Store
from session_supervisor.stores.records import Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimKey:
    """A key for a piece of work.

    Attributes:
        key: What the caller names the work; two owners may choose the same one.
        digest: Of all that is asked, so that other work under the same key is noticed.
    """

    key: str
    digest: str


class Hold:
    """The right to begin what a key stands for; given up by `release`."""

    def __init__(self, claims: Claims, owner: str, wanted: ClaimKey) -> None:
        self._claims = claims
        self._owner = owner
        self._wanted = wanted
        self._kept = False

    def claim(self, session_id: str, turn_id: str | None) -> Claim:
        """Return what is to be stored along with the work.

        Args:
            session_id: Where the work is.
            turn_id: Which it is; None for the session itself.
        """
        now = self._claims.clock.now()
        return Claim(
            owner=self._owner,
            key=self._wanted.key,
            digest=self._wanted.digest,
            session_id=session_id,
            turn_id=turn_id,
            claimed_at=now,
            expires_at=now + timedelta(seconds=self._claims.valid_s),
        )

    def release(self) -> None:
        """Let the next one look: the work is stored, or was not begun. Again does no harm."""
        if not self._kept:
            self._claims.release(self._owner, self._wanted.key, self)

    def keep(self) -> Callable[[], None]:
        """Hold on, though `release` be called, until what this returns is called."""
        self._kept = True

        def over() -> None:
            self._kept = False
            self.release()

        return over


class Claims:
    """Keys that are in use.

    Args:
        store: Keeps what they stand for.
        clock: What time it is.
        valid_s: Seconds that a key stands for its work.
        wait_s: Seconds to wait for work under the same key that is just being begun.
    """

    def __init__(self, store: Store, *, clock: Clock, valid_s: float, wait_s: float = 30.0) -> None:
        self.clock = clock
        self.valid_s = valid_s
        self._wait_s = wait_s
        self._store = store
        self._held: dict[tuple[str, str], tuple[Hold, Latch]] = {}

    async def take(self, owner: str, wanted: ClaimKey) -> Claim | Hold:
        """Return what a key stands for or, if that is nothing, the right to begin it.

        Args:
            owner: Whose key it is.
            wanted: The key.

        Raises:
            ClaimConflict: It stands for something else.
            Unavailable: The store is slow to begin what it stands for.
        """
        name = (owner, wanted.key)
        time_limit = asyncio.timeout(self._wait_s)
        try:
            async with time_limit:
                while (held := self._held.get(name)) is not None:
                    await held[1].wait()
        except TimeoutError as error:
            if not time_limit.expired():
                raise
            raise Unavailable from error
        hold = Hold(self, owner, wanted)
        self._held[name] = hold, Latch()
        try:
            found = await self._store.claim(owner, wanted.key, now=self.clock.now())
            if found is None:
                return hold
        except BaseException:
            hold.release()
            raise
        hold.release()
        _check(found, wanted)
        return found

    async def find(self, owner: str, wanted: ClaimKey) -> Claim | None:
        """Return what a key stands for, or None; work that is just being begun is not waited for.

        Args:
            owner: Whose key it is.
            wanted: The key.

        Raises:
            ClaimConflict: It stands for something else.
        """
        found = await self._store.claim(owner, wanted.key, now=self.clock.now())
        if found is not None:
            _check(found, wanted)
        return found

    def release(self, owner: str, key: str, hold: Hold) -> None:
        """Give up a hold, if it is still held."""
        held = self._held.get((owner, key))
        if held is not None and held[0] is hold:
            del self._held[owner, key]
            held[1].set()


def _check(found: Claim, wanted: ClaimKey) -> None:
    if found.digest != wanted.digest:
        raise ClaimConflict(wanted.key)
