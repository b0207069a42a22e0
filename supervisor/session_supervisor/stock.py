"""The processes that stand ready, and who wants one.

What is kept here is only ever changed between two waits, so that a process is in one hand at any
moment: it comes up, it stands ready, somebody has it, or it is being stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from session_supervisor.agents.port import Agent, Fingerprint, Forgets, Pools
from session_supervisor.demand import Changes, Demand, shares
from session_supervisor.errors import AgentError
from session_supervisor.latch import Latch
from session_supervisor.seats import Coming, Seat
from session_supervisor.spares import (
    Counts,
    PoolableProcess,
    Spare,
    Unfit,
    changes,
    differs,
    suits,
)
from session_supervisor.timers import Wakeup, is_due

if TYPE_CHECKING:
    from session_supervisor.config import PoolPolicy
    from session_supervisor.slots import Slots
    from session_supervisor.starts import Starts
    from session_supervisor.workspaces import ReusableWorkspaces

logger = logging.getLogger(__name__)

AGAIN_S = 10.0
"""Seconds after which erasing is tried again."""

FRESH_S = 1.0
"""Seconds after a sign of life for which a process is believed to live."""


class Stock:
    """See the module.

    Args:
        agent: Starts processes.
        policy: How many, and for how long.
        slots: Room for them.
        starts: Who may start one just now.
        workspaces: Directories for them.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        policy: PoolPolicy,
        slots: Slots,
        starts: Starts,
        workspaces: ReusableWorkspaces,
    ) -> None:
        assert isinstance(agent, Pools), "the supervisor has looked"
        self.agent = agent
        self.pools: Pools = agent
        self.policy = policy
        self.slots = slots
        self.starts = starts
        self.workspaces = workspaces
        self.demand = Demand()
        self.changes = Changes()
        self.patterns: dict[str, Fingerprint] = {}
        """What the last session of each kind wanted: the next may want the same."""
        # In the order in which they came to rest, so that the last is taken first.
        self.ready: dict[str, Spare] = {}
        self.coming: dict[str, Coming] = {}
        self.returning: dict[str, Coming] = {}
        """Those that are being renewed."""
        self.wanting: dict[str, Seat] = {}
        """Those who have no slot yet, by session."""
        self.lent = Counter[str]()
        """How many of each kind are in use, and are to come back."""
        self.counts = Counts()
        self.bell = Wakeup()
        self._over = Latch()
        self._tasks: set[asyncio.Future[Any]] = set()

    # -- starting ------------------------------------------------------------------------

    async def spawn(self, name: str, kind: str, fingerprint: Fingerprint, directory: Path) -> Spare:
        """Start a process that may be handed out more than once.

        Raises:
            AgentError: It did not come up.
            OSError: Its directory is not as it must be.
        """
        signature = self.workspaces.sign(directory)
        circumstances = await self.pools.circumstances(fingerprint)
        process = await self.agent.spawn(fingerprint)
        assert isinstance(process, PoolableProcess), "an agent that pools has such processes"
        spare = Spare(
            name=name,
            kind=kind,
            fingerprint=fingerprint,
            directory=directory,
            signature=signature,
            circumstances=circumstances,
            process=process,
            started_at=now(),
            alive_at=now(),
        )
        _ = self.begin(_weigh(spare))
        return spare

    # -- handing out ---------------------------------------------------------------------

    def comes_back(self, fingerprint: Fingerprint) -> bool:
        """Whether a process of that kind may serve more than one session."""
        return self.policy.recycle and not fingerprint.background and not self.closed

    def claim(self, seat: Seat) -> None:
        """Note that somebody wants a process, and give it one that stands ready."""
        if seat.kind is None:
            return
        in_use: int | None = None
        if self.comes_back(seat.fingerprint):
            self.lent[seat.kind] += 1
            seat.counted = True
            # Who asks again at once finds the last one still being renewed: with one more there
            # is one that stands ready. Not one for each: they are ready before the next answer is.
            renewing = any(one.kind == seat.kind for one in self.returning.values())
            in_use = self.lent[seat.kind] + renewing
        self.demand.note(seat.kind, now(), in_use=in_use)
        self.patterns[seat.kind] = seat.fingerprint
        spare = self._best(seat)
        if spare is None:
            self.wanting[seat.session_id] = seat
        else:
            del self.ready[spare.name]
            self.slots.hand_over(spare.name, seat.session_id, owner=seat.fingerprint.owner)
            seat.spare = spare
        self.bell.ring()

    def take(self, seat: Seat) -> None:
        """Give somebody who has a slot a process that has come to rest since."""
        spare = self._best(seat) if seat.kind is not None else None
        if spare is not None:
            del self.ready[spare.name]
            self.slots.give_back(spare.name)
            seat.spare = spare

    def _best(self, seat: Seat) -> Spare | None:
        """Return the process that somebody gets: one that need not be changed, and rests least."""
        suited = [
            one for one in reversed(self.ready.values()) if suits(one, seat.kind, seat.fingerprint)
        ]
        return min(suited, key=lambda one: differs(one, seat.fingerprint), default=None)

    def awaited(self, seat: Seat) -> Coming | None:
        """Return a process that comes back or up, and is to be this one's, if it does."""
        for name, coming in (*self.returning.items(), *self.coming.items()):
            if coming.kind == seat.kind and coming.awaited_by is None and not coming.late:
                coming.awaited_by = seat
                coming.wanted.set()
                self.starts.keep_spare(name)
                return coming
        return None

    async def check(self, spare: Spare, wanted: Fingerprint) -> None:
        """See that a process can be handed out, and have it as it is wanted.

        Raises:
            Unfit: It cannot.
        """
        policy, process = self.policy, spare.process
        if process.exit is not None:
            raise Unfit("died")
        if is_due(spare.started_at + policy.max_age_s, now()):
            raise Unfit("age")
        if not process.untouched:
            raise Unfit("touched")
        try:
            if self.workspaces.sign(spare.directory) != spare.signature:
                raise Unfit("workspace")
            if await self.pools.circumstances(spare.fingerprint) != spare.circumstances:
                self._note_changed(spare)
                raise Unfit("changed")
            if now() >= spare.started_at + FRESH_S:  # one that has only just come up shows nothing
                self.changes.settle(spare.kind)
            async with asyncio.timeout(policy.answer_s):
                if now() >= spare.alive_at + FRESH_S:
                    await process.probe()
                model, mode = changes(spare, wanted)
                if model is not None or mode is not None:
                    await process.configure(model=model, permission_mode=mode)
        except OSError as error:
            raise Unfit("health" if isinstance(error, TimeoutError) else "workspace") from error
        except Unfit:
            raise
        except Exception as error:  # whatever the adapter raises, the process is no use
            logger.warning("a process that stood ready cannot be used: %s", error)
            raise Unfit("health") from error
        if not process.untouched:
            raise Unfit("touched")

    def _note_changed(self, spare: Spare) -> None:
        self.changes.note(spare.kind, now(), started_at=spare.started_at)
        if self.changes.is_hopeless(spare.kind, now()):
            self.demand.forget(spare.kind)
            self.patterns.pop(spare.kind, None)

    # -- standing ready ------------------------------------------------------------------

    def shares(self) -> dict[str, int]:
        """Return how many are to stand ready of each kind."""
        wanted = self.demand.wanted(now())
        owners = {kind: self.patterns[kind].owner for kind in wanted}
        # Half of what there may be at the most: who comes with another kind must not have to stop
        # one each time, which is the one that rests least, whosesoever it is.
        most = min(self.policy.max_pooled, (self.slots.most + 1) // 2)
        return shares(wanted, most, owners)

    def is_welcome(self, spare: Spare) -> bool:
        """Whether anybody wants one more of its kind."""
        if any(isinstance(one, Seat) and one.kind == spare.kind for one in self.starts.waiting):
            return True
        if self.slots.waiting:
            return self._next_in_line(spare) is not None
        return not self._abound(spare)

    def _abound(self, spare: Spare) -> bool:
        """Whether as many of its kind stand ready as are wanted."""
        there = sum(one.kind == spare.kind for one in self.ready.values())
        return there >= self.shares().get(spare.kind, 0)

    def _next_in_line(self, spare: Spare) -> Seat | None:
        """Return who waits for room and gets the next, if a process suits just that one.

        Who stands before others of the kind gets the next slot, whatever their kind.
        """
        seat = self.wanting.get(self.slots.next_waiting() or "")
        return seat if seat is not None and suits(spare, seat.kind, seat.fingerprint) else None

    def offer(self, spare: Spare, *, holder: str, awaited_by: Seat | None) -> None:
        """Give a process to who waits for one, or have it stand ready.

        Args:
            spare: The process.
            holder: Who has its slot.
            awaited_by: Who waits for just this one.

        Raises:
            Unfit: Nobody wants it, and it did not stand ready before.
        """
        if self.closed:
            return self._refuse(spare, holder, "closed")
        waiting = [one for one in self.starts.waiting if isinstance(one, Seat)]
        for seat in (awaited_by, *waiting):
            if (
                seat is not None
                and seat.spare is None
                and suits(spare, seat.kind, seat.fingerprint)
            ):
                seat.spare = spare
                self.starts.excuse(seat)
                self.slots.give_back(holder)
                return None
        if self.slots.waiting:
            seat = self._next_in_line(spare)
            if seat is None:
                return self._refuse(spare, holder, "gave way")
            del self.wanting[seat.session_id]
            seat.spare = spare
            self.slots.hand_over(holder, seat.session_id, owner=seat.fingerprint.owner)
            return None
        if self._abound(spare):
            return self._refuse(spare, holder, "surplus")
        if holder != spare.name:
            self.slots.hand_over(holder, spare.name, owner="")
            self.slots.lives(spare.name, spare.process.tree)
        self.ready[spare.name] = spare
        self.slots.rests(spare.name, lambda: self.leave(spare, "gave way"), first=True)
        self.bell.ring()
        return None

    def _refuse(self, spare: Spare, holder: str, reason: str) -> None:
        if holder != spare.name:
            raise Unfit(reason)
        self.ready[spare.name] = spare
        self.leave(spare, reason)

    def stands_ready(self, kind: str) -> bool:
        """Whether there is a process of a kind that anybody may have at once."""
        return any(one.kind == kind for one in self.ready.values())

    # -- letting go ----------------------------------------------------------------------

    def leave(self, spare: Spare, reason: str) -> None:
        """Stop a process that stands ready; nothing happens to one that is being stopped already.

        It has its slot until it is gone, and whoever has the slots may ask for it meanwhile.
        """
        if self.ready.pop(spare.name, None) is None:
            return
        self.counts.retired[reason] += 1
        _ = self.begin(self.dispose(spare))

    def forget_owner(self, owner: str) -> None:
        """Stop what stands ready for an owner or comes up to do so, and what is yet to come back.

        From then on it is as if the owner had never asked for anything.
        """
        for kind in [kind for kind, one in self.patterns.items() if one.owner == owner]:
            del self.patterns[kind]
            self.demand.forget(kind)
        for spare in [one for one in self.ready.values() if one.fingerprint.owner == owner]:
            self.leave(spare, "owner")
        for coming in tuple(self.coming.values()):
            if coming.kind not in self.patterns and coming.awaited_by is None:
                coming.give_up()

    async def dispose(self, spare: Spare) -> None:
        """Stop a process, and leave nothing of it; then whoever has its name has its slot back."""
        conversation = spare.process.conversation
        try:
            await spare.process.stop()
        except Exception:  # contains the adapter's failure, which stops nobody else
            logger.exception("an agent process could not be stopped (pid %s)", spare.process.pid)
        if self.slots.has(spare.name):
            self.slots.give_back(spare.name)
        self.bell.ring()
        await self.erase(spare, {conversation})

    async def erase(self, spare: Spare, conversations: Collection[str | None]) -> None:
        """Remove what a process has left that has ended, and that is no session's.

        What cannot be removed now is tried again from time to time, until the pool is closed.

        Args:
            spare: The process.
            conversations: What it has talked of in its directory.
        """
        left = await self._erased(spare, {one for one in conversations if one is not None})
        if left is not None:
            _ = self.begin(self._erase_later(spare, left))

    async def _erase_later(self, spare: Spare, left: Collection[str] | None) -> None:
        while left is not None and not self.closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._over.wait()
            left = await self._erased(spare, left)

    async def _erased(self, spare: Spare, conversations: Collection[str]) -> Collection[str] | None:
        """Erase what can be; return the conversations that are left, None if nothing at all is."""
        gone = await self.remove(spare.directory)
        left = {one for one in conversations if not await self._forgotten(spare, one)}
        return None if gone and not left else left

    async def _forgotten(self, spare: Spare, conversation: str) -> bool:
        if isinstance(self.agent, Forgets):
            try:
                await self.agent.forget(spare.fingerprint, conversation)
            except AgentError:
                logger.debug("it is in the log, and tried again", exc_info=True)
                return False
        return True

    async def remove(self, directory: Path | None) -> bool:
        """Remove a directory that is no session's; return whether it could be."""
        if directory is not None:
            try:
                await self.workspaces.release(directory)
            except OSError:
                logger.debug("it is in the log, and swept at the next start", exc_info=True)
                return False
        return True

    # -- the end -------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether nobody may be given a process any more."""
        return self._over.is_set()

    def close(self) -> None:
        """Give nobody a process any more."""
        self._over.set()
        for coming in self.returning.values():
            coming.wanted.set()
        self.bell.ring()

    # -- what goes on by itself ----------------------------------------------------------

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something that ends by itself, also when whoever wanted it does not wait."""
        task = asyncio.get_running_loop().create_task(work, name="pool")
        self.keep(task)
        return task

    def keep(self, task: asyncio.Future[Any]) -> None:
        """Outwait something when the pool is closed."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def outwait(self) -> None:
        """Return when nothing goes on any more."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _weigh(spare: Spare) -> None:
    """Look what memory a process takes while it is new."""
    try:
        tree = await spare.process.leftovers()
    except (AgentError, OSError):
        return  # its first use is what it is measured by
    if spare.new_bytes is None:
        spare.new_bytes = tree.pss_bytes


def now() -> float:
    """Return the loop's time, seconds."""
    return asyncio.get_running_loop().time()
