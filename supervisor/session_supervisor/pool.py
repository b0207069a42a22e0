"""Processes that are up before anybody needs them, and those that come back from one-offs.

A process that stands ready is the next session's of the same *kind*: with an equal fingerprint, but
for the model and the permission mode, which can be changed, and for the working directory. Each
process was started in an empty directory of its own, which becomes that of the session that takes
it. So only sessions with a private directory take part, and only with their first process.

Owner, configuration directory, credential and program are the same, or the process is not handed
out: the owner is in the fingerprint, and the *circumstances* of its start are compared with those
of the moment. What is not as it was, is too old or does not answer is stopped instead.

A one-off's process comes back if the agent proves that it is as it was when it came up. What the
one-off has left in the directory is moved to another one, which becomes the session's. Whoever
waits for a process of that kind gets it at once; nobody of another kind ever waits for one that
rests.

The pool has no room of its own. It takes a slot only where nobody would miss it, is the first that
is asked to give it up, and starts a process only while no session does.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from session_supervisor.agents.port import Agent, Fingerprint
from session_supervisor.config import PoolPolicy
from session_supervisor.latch import Latch
from session_supervisor.recycling import take_back
from session_supervisor.seats import Coming, Seat
from session_supervisor.slots import Slots
from session_supervisor.spares import PoolSnapshot, Spare, kind_of
from session_supervisor.starts import Starts
from session_supervisor.stock import Stock, now
from session_supervisor.timers import is_due
from session_supervisor.workspaces import SPARE, ReusableWorkspaces

logger = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Seconds after which a process is started that there was no room for."""

FAILED_S = 30.0
"""Seconds after which a kind is tried again whose process did not come up."""


class Pool:
    """See the module.

    Args:
        agent: Starts processes.
        policy: How many, and for how long.
        slots: Room for them.
        starts: Who may start one just now.
        workspaces: Directories for them.
        start_s: Seconds that a process has to come up.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        policy: PoolPolicy,
        slots: Slots,
        starts: Starts,
        workspaces: ReusableWorkspaces,
        start_s: float,
    ) -> None:
        self._stock = Stock(agent, policy=policy, slots=slots, starts=starts, workspaces=workspaces)
        self._policy = policy
        self._start_s = start_s
        self._failed: dict[str, float] = {}

    def snapshot(self) -> PoolSnapshot:
        """Return what it looks like now."""
        stock = self._stock
        counts = stock.counts
        return PoolSnapshot(
            ready=len(stock.ready),
            starting=len(stock.coming),
            hits=counts.hits,
            misses=counts.misses,
            started=counts.started,
            recycled=counts.recycled,
            retired=dict(counts.retired),
        )

    def seat(
        self,
        session_id: str,
        fingerprint: Fingerprint,
        *,
        private: bool,
        resume: str | None,
        adopt: Callable[[Path], None],
        store: Callable[[], Latch],
    ) -> Seat:
        """Return the way to a process for a session.

        Args:
            session_id: Whose.
            fingerprint: What it is to be started with.
            private: Whether its directory is its own.
            resume: The conversation to go on with, if any.
            adopt: Called with the session's directory when that is another one from now on: with
                the process that it gets, and when a one-off's process comes back.
            store: Has that stored; what it returns is set then.
        """
        stock = self._stock
        fresh = private and resume is None and not fingerprint.rules and not stock.closed
        if fresh:
            fingerprint = stock.pools.spelled_out(fingerprint)
            try:
                # It may be the second process of a session whose first left something there.
                stock.workspaces.sign(Path(fingerprint.cwd))
            except OSError:
                fresh = False
        return Seat(
            stock,
            session_id,
            fingerprint,
            kind=self._kind_of(fingerprint) if fresh else None,
            resume=resume,
            adopt=adopt,
            store=store,
            take_back=partial(take_back, stock),
        )

    def _kind_of(self, fingerprint: Fingerprint) -> str | None:
        model = fingerprint.model
        told = model is None or self._stock.pools.can_be_told(model)
        kind = kind_of(fingerprint, told_model=told)
        hopeless = kind is not None and self._stock.changes.is_hopeless(kind, now())
        return None if hopeless else kind

    def forget_owner(self, owner: str) -> None:
        """Stop the processes that stand ready for an owner; those at work do not come back."""
        self._stock.forget_owner(owner)

    async def run(self) -> None:
        """Keep the processes that are wanted, until it is closed."""
        stock = self._stock
        while not stock.closed:
            try:
                due = self._tend()
            except Exception:  # a pool that fails takes nobody with it: all start cold
                logger.exception("the pool of agent processes could not be looked after")
                due = now() + FAILED_S
            await stock.bell.wait(due)

    def close(self) -> None:
        """Stop all that nobody has taken, and take nothing back any more."""
        stock = self._stock
        stock.close()
        for spare in tuple(stock.ready.values()):
            stock.leave(spare, "closed")
        for coming in tuple(stock.coming.values()):
            coming.give_up()

    async def aclose(self) -> None:
        """Close it; returns when nothing of it is left."""
        self.close()
        await self._stock.outwait()

    # -- keeping -------------------------------------------------------------------------

    def _tend(self) -> float | None:
        """Let go of what is not wanted, look after the rest, and start what is missing.

        Returns:
            When to do so again; None: when something happens.
        """
        stock, policy, time = self._stock, self._policy, now()
        wanted = stock.shares()
        for kind in [kind for kind in stock.patterns if kind not in wanted]:
            del stock.patterns[kind]
        for kind in [kind for kind in self._failed if kind not in wanted]:
            del self._failed[kind]
        kept = Counter[str]()
        for spare in reversed(tuple(stock.ready.values())):
            kept[spare.kind] += 1
            if spare.process.exit is not None:
                stock.leave(spare, "died")
            elif is_due(spare.started_at + policy.max_age_s, time):
                stock.leave(spare, "age")
            elif kept[spare.kind] > wanted.get(spare.kind, 0):
                stock.leave(spare, "surplus")
            elif is_due(spare.alive_at + policy.probe_s, time) and not spare.probing:
                spare.probing = True
                _ = stock.begin(self._probe(spare))
        due = [stock.demand.next_change()]
        due += (one.started_at + policy.max_age_s for one in stock.ready.values())
        due += (one.alive_at + policy.probe_s for one in stock.ready.values() if not one.probing)
        due.append(self._fill(wanted))
        return min((at for at in due if at is not None), default=None)

    def _fill(self, wanted: Mapping[str, int]) -> float | None:
        """Start what is missing, one at a time; return when to try again what cannot be now."""
        stock, time = self._stock, now()
        there = Counter(one.kind for one in stock.ready.values())
        there.update(one.kind for one in (*stock.coming.values(), *stock.returning.values()))
        later: float | None = None
        for kind, count in wanted.items():
            pattern = stock.patterns.get(kind)
            if pattern is None or there[kind] + stock.lent[kind] >= count:
                continue
            again = self._failed.get(kind, -FAILED_S) + FAILED_S
            if not is_due(again, time):
                later = min(later or again, again)
                continue
            if not stock.coming:
                self._start(kind, pattern)
            return time + AGAIN_S
        return later

    async def _probe(self, spare: Spare) -> None:
        try:
            async with asyncio.timeout(self._policy.answer_s):
                await spare.process.probe()
        except Exception:  # whatever the adapter raises, the process is no use
            if self._stock.ready.get(spare.name) is spare:
                self._stock.leave(spare, "health")
        else:
            spare.alive_at = now()
        finally:
            spare.probing = False
            self._stock.bell.ring()

    # -- starting ------------------------------------------------------------------------

    def _start(self, kind: str, pattern: Fingerprint) -> None:
        stock = self._stock
        name = f"{SPARE}{uuid4()}"
        coming = Coming(kind=kind)
        if not stock.starts.begin_spare(name, coming.give_up):
            return
        if not stock.slots.take_spare(name, coming.give_up):
            stock.starts.end_spare(name)
            return
        stock.coming[name] = coming
        coming.task = stock.begin(self._come_up(name, coming, pattern))
        # Not in the task itself: one that is cancelled before its first step never runs.
        coming.task.add_done_callback(lambda _: self._came_up(name, coming))

    async def _come_up(self, name: str, coming: Coming, pattern: Fingerprint) -> None:
        stock = self._stock
        directory: Path | None = None
        try:
            async with asyncio.timeout(self._start_s):
                directory = await stock.workspaces.allot(name)
                fingerprint = replace(pattern, cwd=str(directory))
                spare = await stock.spawn(name, coming.kind, fingerprint, directory)
        except asyncio.CancelledError:
            stock.counts.retired["gave way"] += 1
            await stock.remove(directory)
        except Exception as error:  # whatever the adapter raises, sessions start by themselves
            logger.warning("a process could not be started ahead of time: %r", error)
            self._failed[coming.kind] = now()
            await stock.remove(directory)
        else:
            coming.up = True
            stock.counts.started += 1
            stock.coming.pop(name, None)
            # From now on it is asked to leave in another way.
            stock.slots.works(name)
            stock.slots.lives(name, spare.process.tree)
            stock.offer(spare, holder=name, awaited_by=coming.awaited_by)

    def _came_up(self, name: str, coming: Coming) -> None:
        stock = self._stock
        stock.coming.pop(name, None)
        if not coming.up:
            stock.slots.give_back(name)
        stock.starts.end_spare(name)
        coming.over.set()
        stock.bell.ring()
