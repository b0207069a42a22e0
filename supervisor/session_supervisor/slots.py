"""Room for processes: so many at once, in so much memory; who rests longest makes room for others.

A session that wants a process takes a slot, and waits for one if there is none. The next goes to
the owner who has the fewest and, among equals, to whoever came first: one owner's hundred sessions
keep nobody waiting for long. While there is too little room for those who wait, or too little
memory for those who live, sessions that rest are asked to give up their process, the least recently
used first, and no more of them than it takes. Where none rests, those that have had their process
for some turns while others waited let these have one, and wait themselves.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable

from session_supervisor.agents.port import Tree
from session_supervisor.memory import Memory

PATIENCE_S = 30.0
"""Seconds that somebody waits before those who always have something to do make room, too."""


class Slots:
    """So many processes, of any number of sessions.

    Args:
        bound: Most processes.
        memory: What they may take together; None: as much as they like.
    """

    def __init__(self, bound: int, memory: Memory | None = None) -> None:
        self._bound = bound
        self._memory = memory
        # Ordered, so that what is measured first does not depend on hashes.
        self._holders: dict[str, Callable[[], Awaitable[Tree]] | None] = {}
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._since: dict[str, float] = {}
        self._owners: dict[str, str] = {}
        """Of those who have a slot, or wait for one."""
        self._resting: OrderedDict[str, Callable[[], None]] = OrderedDict()
        self._leaving: set[str] = set()

    @property
    def taken(self) -> int:
        """Slots that are held."""
        return len(self._holders)

    @property
    def waiting(self) -> int:
        """Sessions that wait for one."""
        return len(self._waiting)

    @property
    def memory_bytes(self) -> int | None:
        """What the processes take; None where nobody looks."""
        return None if self._memory is None else self._memory.used_bytes(self._holders)

    @property
    def memory_budget_bytes(self) -> int | None:
        """What they may take; None where that is not limited."""
        return None if self._memory is None else self._memory.budget_bytes

    @property
    def memory_full(self) -> bool:
        """Whether what is busy leaves no memory for one more, though all others gave theirs up.

        What a process will take that was not measured yet is a guess, and nobody is refused for it.
        """
        memory = self._memory
        if memory is None:
            return False
        busy = [one for one in self._stay() if one not in self._resting and memory.knows(one)]
        return not memory.suffices(busy, 1)

    @property
    def most(self) -> int:
        """How many processes there may be, as far as that can be said before they are measured."""
        memory = self._memory
        return self._bound if memory is None else min(self._bound, max(1, memory.processes))

    def waits(self, session_id: str) -> bool:
        """Return whether a session waits for one."""
        return session_id in self._waiting

    async def take(self, session_id: str, *, owner: str) -> None:
        """Take a slot, once there is one.

        Args:
            session_id: Who takes it; a session has one at most.
            owner: Whose session it is.
        """
        if session_id in self._holders:  # it was handed over to it
            return
        self._owners[session_id] = owner
        if not self._waiting and self._room:
            self._holders[session_id] = None
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting[session_id], self._since[session_id] = turn, loop.time()
        self._share_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(session_id)
            raise
        finally:
            self._waiting.pop(session_id, None)
            self._since.pop(session_id, None)
            if session_id not in self._holders:
                self._owners.pop(session_id, None)

    def take_spare(self, spare: str, leave: Callable[[], None]) -> bool:
        """Take a slot for a process that no session needs yet, if nobody would miss it.

        It rests, and is the first to be asked to leave.

        Args:
            spare: Names it, as a session is named.
            leave: Called if it is to go.
        """
        if self._waiting or not self._room:
            return False
        self._holders[spare] = None
        self._owners[spare] = ""
        self._resting[spare] = leave
        self._resting.move_to_end(spare, last=False)
        return True

    def has(self, session_id: str) -> bool:
        """Return whether somebody has a slot."""
        return session_id in self._holders

    def next_waiting(self) -> str | None:
        """Return who gets the next slot, of those who wait."""
        return self._next() if self._waiting else None

    def hand_over(self, holder: str, to: str, *, owner: str) -> None:
        """Let somebody have the slot of another, and what lives in it.

        Args:
            holder: Who has it.
            to: Who gets it; it may wait for one.
            owner: Whose that is.
        """
        look = self._holders.pop(holder)
        self._owners.pop(holder, None)
        self._resting.pop(holder, None)
        self._leaving.discard(holder)
        self._holders[to] = look
        self._owners[to] = owner
        if self._memory is not None:
            self._memory.hand_over(holder, to)
        turn = self._waiting.pop(to, None)
        if turn is not None and not turn.done():
            turn.set_result(None)

    def lives(self, session_id: str, look: Callable[[], Awaitable[Tree]]) -> None:
        """Note that a process is up, and how it is looked at."""
        if session_id in self._holders:
            self._holders[session_id] = look

    def give_back(self, session_id: str) -> None:
        """Give a slot back: its process is gone."""
        self._holders.pop(session_id, None)
        self._owners.pop(session_id, None)
        self._resting.pop(session_id, None)
        self._leaving.discard(session_id)
        if self._memory is not None:
            self._memory.forget(session_id)
        self._share_out()

    def rests(self, session_id: str, leave: Callable[[], None], *, first: bool = False) -> None:
        """Note that a session has nothing to do for its process.

        Args:
            session_id: Which.
            leave: Called if it is to give its process up; it may find that it works again.
            first: Whether it is asked before all that rest already: no session needs it.
        """
        if session_id not in self._resting and session_id not in self._leaving:
            self._resting[session_id] = leave
            if first:
                self._resting.move_to_end(session_id, last=False)
            self._make_room()

    def works(self, session_id: str) -> None:
        """Note that a session needs its process, also if it was asked to leave."""
        self._resting.pop(session_id, None)
        if session_id in self._leaving:
            self._leaving.discard(session_id)
            self._make_room()

    def yields(self, session_id: str) -> bool:
        """Return whether a session is to give its process up though it has more to do.

        It is taken to do so. Of those who wait for long each is let in by one.

        Args:
            session_id: A session that is between two turns.
        """
        long_ago = asyncio.get_running_loop().time() - PATIENCE_S
        impatient = sum(self._since[one] <= long_ago for one in self._waiting)
        if impatient <= len(self._leaving):
            return False
        self._resting.pop(session_id, None)
        self._leaving.add(session_id)
        return True

    async def measure(self) -> None:
        """Look what memory the processes take, and act on it."""
        if self._memory is None:
            return
        looks = {one: look for one, look in self._holders.items() if look is not None}
        # All at the same time, so that an agent may answer all of them with one look.
        trees = await asyncio.gather(*(look() for look in looks.values()))
        for (session_id, look), tree in zip(looks.items(), trees, strict=True):
            # Meanwhile it may have been given back, and taken anew.
            if tree.pids and self._holders.get(session_id) is look:
                self._memory.measured(session_id, tree.pss_bytes)
        self._share_out()

    @property
    def _room(self) -> bool:
        """Whether there is room for one more."""
        return len(self._holders) < self._bound and (
            self._memory is None or self._memory.suffices(self._holders, 1)
        )

    def _stay(self) -> list[str]:
        """Return who has a slot and was not asked to leave it."""
        return [one for one in self._holders if one not in self._leaving]

    def _share_out(self) -> None:
        while self._waiting and self._room:
            session_id = self._next()
            turn = self._waiting.pop(session_id)
            if not turn.done():
                self._holders[session_id] = None
                turn.set_result(None)
        self._make_room()

    def _next(self) -> str:
        """Return who gets the next slot, of those who wait."""
        has = Counter(self._owners[one] for one in self._holders)
        # The first of the smallest: those who wait stand in the order in which they came.
        return min(self._waiting, key=lambda one: has[self._owners[one]])

    def _make_room(self) -> None:
        while self._resting and self._too_many():
            session_id, leave = self._resting.popitem(last=False)
            self._leaving.add(session_id)
            leave()

    def _too_many(self) -> bool:
        """Whether there is too little room for those who stay and those who wait."""
        waiting = len(self._waiting)
        if len(self._holders) - len(self._leaving) + waiting > self._bound:
            return True
        return self._memory is not None and not self._memory.suffices(self._stay(), waiting)
