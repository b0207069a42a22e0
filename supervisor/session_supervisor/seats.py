"""How a session comes to a process of the pool, or starts one, and the process back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from uuid import uuid4

from session_supervisor.agents.port import (
    AgentMessage,
    AgentProcess,
    Binding,
    ContextUsage,
    Exit,
    Fingerprint,
    Tree,
)
from session_supervisor.asks import Decision
from session_supervisor.errors import AgentGone
from session_supervisor.latch import Latch
from session_supervisor.spares import PoolableProcess, Spare, Unfit
from session_supervisor.spec import PermissionMode, Prompt
from session_supervisor.workspaces import SPARE

if TYPE_CHECKING:
    from session_supervisor.stock import Stock


RETURN_S = 0.5
"""Seconds to wait for a process that comes back: less than a start takes."""

COME_UP_S = 5.0
"""Seconds to wait for one that comes up: some times what a start takes."""


@dataclass(slots=True, eq=False, kw_only=True)
class Coming:
    """A process that comes up before anybody needs it, or comes back."""

    kind: str
    task: asyncio.Task[None] | None = None
    over: Latch = field(default_factory=Latch)
    up: bool = False
    awaited_by: Seat | None = None
    wanted: Latch = field(default_factory=Latch)
    """Set once it is to make haste."""
    late: bool = False
    """Whether somebody has waited for it in vain."""
    room_wanted: bool = False
    on_room_wanted: Callable[[], None] | None = None

    def make_room(self) -> None:
        """Make haste, because somebody waits for its slot."""
        self.room_wanted = True
        self.wanted.set()
        if self.on_room_wanted is not None:
            self.on_room_wanted()

    def give_up(self) -> None:
        """Have it come up no more."""
        assert self.task is not None, "it is set before anybody else has their turn"
        self.task.cancel()


class Seat:
    """How one session comes to one process, and the process back. Made by `Pool.seat`.

    First `claim`, then the session takes its slot; as a context manager it waits until the session
    may start a process, or has one; `spawn` returns that. At the end `release`.
    """

    def __init__(
        self,
        stock: Stock,
        session_id: str,
        fingerprint: Fingerprint,
        *,
        kind: str | None,
        resume: str | None,
        adopt: Callable[[Path], None],
        store: Callable[[], Latch],
        take_back: Callable[[Seat, Spare], Awaitable[Exit]],
    ) -> None:
        self.session_id = session_id
        self.fingerprint = fingerprint
        self.kind = kind
        self.spare: Spare | None = None
        self.counted = False
        self._stock = stock
        self._resume = resume
        self._adopt = adopt
        self._store = store
        self._take_back = take_back
        self._ending: Spare | None = None
        self._started = False

    def claim(self) -> None:
        """Take a process that stands ready, with its slot, if there is one."""
        self._stock.claim(self)

    def release(self) -> None:
        """Let the pool have what was not used; before the session's slot is given back."""
        stock = self._stock
        stock.wanting.pop(self.session_id, None)
        self.uncount()
        spare, self.spare = self.spare, None
        ending = spare or self._ending
        if ending is not None and stock.slots.has(self.session_id):
            # It is taken until the process is gone.
            stock.slots.hand_over(self.session_id, ending.name, owner="")
        if spare is not None:
            # Not back into the pool: it may have been told of another model already.
            stock.counts.retired["not used"] += 1
            _ = stock.begin(stock.dispose(spare))

    def uncount(self) -> None:
        """Note that its process is not in use any more."""
        if self.counted and self.kind is not None:
            self.counted = False
            lent = self._stock.lent
            lent[self.kind] -= 1
            if not lent[self.kind]:
                del lent[self.kind]

    def adopt(self, directory: Path) -> Latch:
        """Have the session be somewhere else; return what is set once that is stored."""
        self._adopt(directory)
        return self._store()

    async def __aenter__(self) -> Self:
        stock = self._stock
        while True:
            stock.wanting.pop(self.session_id, None)
            if self.spare is None:
                stock.take(self)
            if self.spare is not None:
                if await self._fits(self.spare):
                    return self
            elif (coming := stock.awaited(self)) is not None:
                try:
                    async with asyncio.timeout(RETURN_S if coming.task is None else COME_UP_S):
                        await coming.over.wait()
                except TimeoutError:
                    coming.late = True
                    if coming.task is not None:
                        coming.give_up()
                finally:
                    coming.awaited_by = None
            elif await stock.starts.enter(self):
                self._started = True
                return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._started:
            self._started = False
            self._stock.starts.leave()
            self._stock.bell.ring()

    async def _fits(self, spare: Spare) -> bool:
        stock = self._stock
        try:
            await stock.check(spare, self.fingerprint)
        except Unfit as unfit:
            await self._refuse(spare, unfit.reason)
            return False
        return True

    async def _refuse(self, spare: Spare, reason: str) -> None:
        """Do without a process; it has the session's slot until it is gone."""
        stock = self._stock
        self.spare, self._ending = None, spare
        stock.counts.retired[reason] += 1
        await asyncio.shield(stock.begin(stock.dispose(spare)))
        self._ending = None

    def _moves(self, spare: Spare) -> bool:
        """Have the session move where a process works, with what was put into its own directory."""
        try:
            self._stock.workspaces.move(Path(self.fingerprint.cwd), spare.directory)
        except OSError:
            return False
        self._stock.counts.hits += 1
        # It is stored with the first prompt.
        self._adopt(spare.directory)
        return True

    async def spawn(self) -> AgentProcess:
        """Return the process, started if need be.

        Raises:
            AgentError: It did not come up.
        """
        stock = self._stock
        if self.spare is not None and not self._moves(self.spare):
            await self._refuse(self.spare, "workspace")
        spare, self.spare = self.spare, None
        if spare is None:
            if self.kind is None:
                return await stock.agent.spawn(self.fingerprint, resume=self._resume)
            stock.counts.misses += 1
            if not stock.comes_back(self.fingerprint):
                return await stock.agent.spawn(self.fingerprint)
            try:
                name = f"{SPARE}{uuid4()}"
                directory = Path(self.fingerprint.cwd)
                spare = await stock.spawn(name, self.kind, self.fingerprint, directory)
            except OSError:
                return await stock.agent.spawn(self.fingerprint)
        return Lease(self, spare) if stock.comes_back(self.fingerprint) else spare.process

    async def give_back(self, spare: Spare) -> Exit:
        """Have a process come back to the pool, or end it; say how it ended for the session."""
        return await self._take_back(self, spare)

    def keep(self, task: asyncio.Future[Exit]) -> None:
        """Have the pool outwait something."""
        self._stock.keep(task)


class Lease:
    """A process that a one-off has, until it comes back: the port `AgentProcess`."""

    def __init__(self, seat: Seat, spare: Spare) -> None:
        self._seat = seat
        self._spare = spare
        self._process: PoolableProcess = spare.process
        self._pid = spare.process.pid
        self._over: Exit | None = None
        self._stopping: asyncio.Future[Exit] | None = None

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._pid

    @property
    def exit(self) -> Exit | None:
        """How it ended; None while it lives, and is this one-off's."""
        return self._over or (None if self._stopping is not None else self._process.exit)

    def bind(self, binding: Binding) -> None:
        """Tie it to a session."""
        self._live().bind(binding)

    def messages(self) -> AsyncIterator[AgentMessage]:
        """Return the stream of what it says to this one-off."""
        return self._process.messages()

    async def send(self, prompt: Prompt) -> None:
        """See the port."""
        await self._live().send(prompt)

    async def interrupt(self) -> None:
        """See the port."""
        await self._live().interrupt()

    async def answer(self, request_id: str, decision: Decision) -> None:
        """See the port."""
        await self._live().answer(request_id, decision)

    async def configure(
        self, *, model: str | None = None, permission_mode: PermissionMode | None = None
    ) -> None:
        """See the port."""
        await self._live().configure(model=model, permission_mode=permission_mode)

    async def context(self) -> ContextUsage | None:
        """See the port."""
        return await self._live().context()

    async def probe(self) -> None:
        """See the port."""
        await self._live().probe()

    async def tree(self) -> Tree:
        """See the port."""
        return Tree() if self._over is not None else await self._process.tree()

    async def stop(self) -> Exit:
        """Give it back, or end it: to the one-off it is gone in either case."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop())
            self._seat.keep(self._stopping)
        # A caller that is cancelled must not leave half a process: the task goes on, it is bounded.
        return await asyncio.shield(self._stopping)

    async def _stop(self) -> Exit:
        self._over = await self._seat.give_back(self._spare)
        return self._over

    def _live(self) -> AgentProcess:
        if self._stopping is not None:
            raise AgentGone("The process is not this session's any more.")
        return self._process
