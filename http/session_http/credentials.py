"""Whether there is a credential with which sessions reach the model.

The HTTP layer only needs to know yes or no, so that `/health` can say it and work that could not
succeed is refused at once. Who embeds the server and knows gives `Assumed`; `Watched` looks,
not too often, until it has found one. The answer may differ from owner to owner.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from session_supervisor.spec import LOCAL_OWNER

logger = logging.getLogger(__name__)

_MOST_OWNERS = 1_000
"""Owners whose state is kept; one that was forgotten is looked for again."""

HOW_TO_LOG_IN = (
    "The server has no Claude credential. Set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN, or run "
    "`claude auth login` as the user that runs the server; a login is noticed within seconds. "
    "To try the server without one: session-supervisor serve --offline."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialState:
    """What is known of the credential.

    Attributes:
        authenticated: Whether there is one.
        offline: Whether it is for the offline model, so that no real one is needed.
        hint: What to do where there is none, for people.
        source: Where it was found, for people; never the credential itself.
    """

    authenticated: bool
    offline: bool = False
    hint: str = HOW_TO_LOG_IN
    source: str = ""


class Credentials(Protocol):
    """Says whether sessions can reach the model."""

    async def state(self, owner: str = LOCAL_OWNER) -> CredentialState:
        """Return what is known now. It is asked with every request, so it answers fast.

        Args:
            owner: Whose sessions it is about.
        """
        ...


class Assumed:
    """A credential that whoever runs the server vouches for.

    Args:
        offline: Whether sessions talk to the offline model.
    """

    def __init__(self, *, offline: bool = False) -> None:
        self._state = CredentialState(authenticated=True, offline=offline)

    async def state(self, owner: str = LOCAL_OWNER) -> CredentialState:
        """Return that there is one."""
        return self._state


@dataclass(slots=True)
class _Seen:
    """What is known of one owner's."""

    state: CredentialState = CredentialState(authenticated=False)
    looked_at: float | None = None
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Watched:
    """A credential that is looked for until it is found.

    Once found it counts as found: that the upstream refuses it is the error of a turn.

    Args:
        look: Says what there is now for an owner; may take a while, and may fail.
        interval_s: Seconds between two looks while there is none.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        look: Callable[[str], Awaitable[CredentialState]],
        *,
        interval_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._interval_s = interval_s
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    async def state(self, owner: str = LOCAL_OWNER) -> CredentialState:
        """Return whether there is one, after a look if the last one is long enough ago."""
        seen = self._seen.setdefault(owner, _Seen())
        self._seen.move_to_end(owner)
        if len(self._seen) > _MOST_OWNERS:
            self._seen.popitem(last=False)
        if self._is_due(seen):
            # Everybody who asks meanwhile waits for the same look.
            async with seen.looking:
                if self._is_due(seen):
                    await self._look_now(owner, seen)
        return seen.state

    def _is_due(self, seen: _Seen) -> bool:
        if seen.state.authenticated:
            return False
        return seen.looked_at is None or self._clock() - seen.looked_at >= self._interval_s

    async def _look_now(self, owner: str, seen: _Seen) -> None:
        try:
            seen.state = await self._look(owner)
        except Exception:  # whatever the look runs into: not found, and the log says why
            logger.warning("looking for a Claude credential failed", exc_info=True)
        finally:
            seen.looked_at = self._clock()
