"""Who may start a process just now: so many at once, and sessions before the pool.

Starting is bound by the processor, so more starts at once than cores make all of them late. A
session waits for its turn, first come, first served. A start that no session waits for yet, a
*spare* one, is begun only while no session starts one, and is told to give up its place where a
session would have to wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Starts:
    """So many starts at once. As a context manager, one of them, waited for."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._under_way = 0
        self._waiting: dict[object, asyncio.Future[bool]] = {}
        self._spare: dict[object, Callable[[], None]] = {}

    @property
    def under_way(self) -> int:
        """Starts under way, spare ones included."""
        return self._under_way

    @property
    def waiting(self) -> tuple[object, ...]:
        """Who waits, in order."""
        return tuple(self._waiting)

    async def __aenter__(self) -> Self:
        await self.enter(object())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    async def enter(self, ticket: object) -> bool:
        """Wait until one may start; then `leave` has to follow.

        Args:
            ticket: Who waits.

        Returns:
            False: it needs no start any more, as `excuse` said; nothing has to follow.
        """
        if self._under_way < self._bound and not self._waiting:
            self._under_way += 1
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = turn
        self._make_way()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.result():
                self.leave()
            raise
        finally:
            self._waiting.pop(ticket, None)

    def excuse(self, ticket: object) -> None:
        """Let somebody go on who waits, without a start."""
        turn = self._waiting.pop(ticket, None)
        if turn is not None and not turn.done():
            turn.set_result(False)

    def leave(self) -> None:
        """Note that a start is over."""
        self._under_way -= 1
        while self._waiting and self._under_way < self._bound:
            turn = self._waiting.pop(next(iter(self._waiting)))
            if not turn.done():
                self._under_way += 1
                turn.set_result(True)

    def begin_spare(self, ticket: object, give_up: Callable[[], None]) -> bool:
        """Begin a start that nobody waits for, if there is room for it.

        Args:
            ticket: Which.
            give_up: Called once if a session wants the place; `end_spare` follows all the same.

        Returns:
            Whether it may; then `end_spare` has to follow.
        """
        if self._waiting or self._under_way > len(self._spare) or self._under_way >= self._bound:
            return False
        self._under_way += 1
        self._spare[ticket] = give_up
        return True

    def keep_spare(self, ticket: object) -> None:
        """Let a spare start be: a session waits for what comes of it."""
        self._spare.pop(ticket, None)

    def end_spare(self, ticket: object) -> None:
        """Note that a spare start is over, or was given up."""
        self._spare.pop(ticket, None)
        self.leave()

    def _make_way(self) -> None:
        if self._spare:
            # The latest: it has come the least far.
            _, give_up = self._spare.popitem()
            give_up()
