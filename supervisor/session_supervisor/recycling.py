"""How a process comes back from a one-off: proven to be as it was when it came up, or stopped.

The one-off has its answer by then, and its directory with all that it left there: that is moved to
another one, and the process keeps the empty one that it works in. Then the agent brings the process
back to how it was and proves that, and it is looked for whatever the one-off has left running. At
the first doubt the process is stopped; each reason has a name, and is counted.

All that takes a moment, in which the process still has the one-off's slot. Where somebody of
another kind comes to wait for just that, it gives way. It begins a little later where another
process stands ready, for whoever asks next: their first word is not to wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from session_supervisor.agents.port import Exit, Tree
from session_supervisor.errors import AgentGone, CannotRenew, NoWorkspace
from session_supervisor.latch import Latch
from session_supervisor.seats import Coming, Seat
from session_supervisor.spares import Spare, Unfit
from session_supervisor.stock import Stock, now
from session_supervisor.timers import is_due
from session_supervisor.workspaces import SPARE

logger = logging.getLogger(__name__)

RESPITE_S = 0.1
"""Seconds that a renewal waits where another process stands ready. Who has one answer often asks
for the next at once, and beside the renewal, which takes both cores of a small machine, Claude Code
would come to its first word a third later."""


async def take_back(stock: Stock, seat: Seat, spare: Spare) -> Exit:
    """Have a process stand ready again, or stop it.

    Args:
        stock: Where it stands.
        seat: How the one-off came to it.
        spare: The process.

    Returns:
        How it ended for the one-off.
    """
    moved = False
    coming = stock.returning[spare.name] = Coming(kind=spare.kind)
    seat.uncount()
    held = {spare.process.conversation}
    try:
        try:
            _see_renewable(stock, spare)
            stock.slots.works(seat.session_id)  # it rested for its session, if at all
            stock.slots.rests(seat.session_id, coming.make_room, first=True)
            await _rest(stock, spare, coming)
            # First: the process looks into its directory again as it begins anew.
            stored = await _vacate(stock, seat, spare)
            moved = True
            await _renew(stock, spare, coming, stored)
            _see_untouched(stock, spare)
        finally:
            del stock.returning[spare.name]
            coming.over.set()
            # Also where somebody takes it at once, so that one more may be missing.
            stock.bell.ring()
        stock.offer(spare, holder=seat.session_id, awaited_by=coming.awaited_by)
    except Exception as error:
        # Contains whatever fails here: a process of which nothing is known must not live on.
        if not isinstance(error, Unfit):
            logger.exception("a process could not be taken back (pid %s)", spare.process.pid)
        stock.counts.retired[error.reason if isinstance(error, Unfit) else "failed"] += 1
        try:
            return await spare.process.stop()
        finally:
            if moved:  # else all of it is still the one-off's
                await stock.erase(spare, {*held, spare.process.conversation})
            stock.bell.ring()
    stock.counts.recycled += 1
    return Exit(returncode=0, cause="It was stopped.")


def _see_renewable(stock: Stock, spare: Spare) -> None:
    """See that a process is worth the while, and that nothing speaks against it.

    Raises:
        Unfit: Something does.
    """
    policy, process = stock.policy, spare.process
    spare.uses += 1
    if stock.closed:
        raise Unfit("closed")
    if process.exit is not None:
        raise Unfit("died")
    if spare.uses >= policy.max_uses:
        raise Unfit("uses")
    if is_due(spare.started_at + policy.max_age_s, now()):
        raise Unfit("age")
    if (stain := process.stain) is not None:
        raise Unfit(stain)
    if not stock.is_welcome(spare):
        raise Unfit("surplus")


async def _rest(stock: Stock, spare: Spare, coming: Coming) -> None:
    """Let who asks next have the processor to themselves, unless they need just this process.

    Raises:
        Unfit: Nobody will need it any more.
    """
    if not stock.stands_ready(spare.kind):
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(RESPITE_S):
            await coming.wanted.wait()
    if stock.closed:
        raise Unfit("closed")


async def _vacate(stock: Stock, seat: Seat, spare: Spare) -> Latch:
    """Have a session move out of a process's directory, with all that it has there.

    Returns:
        What is set once that is stored.

    Raises:
        Unfit: It stays there.
    """
    home: Path | None = None
    try:
        home = await stock.workspaces.allot(f"{SPARE}{uuid4()}")
        await stock.workspaces.empty(spare.directory, home)
    except (OSError, NoWorkspace) as error:
        if home is not None:
            stock.workspaces.discard(home)
        raise Unfit("workspace") from error
    return seat.adopt(home)


async def _renew(stock: Stock, spare: Spare, coming: Coming, stored: Latch) -> None:
    """Bring a process back to how it was, while it is stored that the session is elsewhere.

    Raises:
        Unfit: That is not proven.
    """
    policy, process = stock.policy, spare.process
    time_limit = asyncio.timeout(policy.renew_s)
    under_way = True
    gave_way = False

    def give_way() -> None:
        nonlocal gave_way
        awaited = coming.awaited_by is not None
        if under_way and not awaited and not stock.is_welcome(spare):
            gave_way = True
            time_limit.reschedule(now())

    try:
        async with time_limit:
            coming.on_room_wanted = give_way
            if coming.room_wanted:
                give_way()
            await process.renew()
            tree = await process.leftovers()
            # Else two records would name one directory.
            await stored.wait()
    except TimeoutError as error:
        raise Unfit("gave way" if gave_way else "too slow") from error
    except CannotRenew as error:
        raise Unfit(error.reason) from error
    except AgentGone as error:
        raise Unfit("died") from error
    finally:
        under_way = False
        coming.on_room_wanted = None  # which knows of it in turn
    _see_alone(spare, tree)
    if spare.new_bytes is None:
        spare.new_bytes = tree.pss_bytes
    if tree.pss_bytes > spare.new_bytes + policy.max_growth_bytes:
        raise Unfit("memory")


def _see_alone(spare: Spare, tree: Tree) -> None:
    """See that nothing runs that a process has started.

    Raises:
        Unfit: Something does.
    """
    # Also where the process itself was not found: whoever cannot look has found nothing out.
    if len(tree.members) != (0 if spare.process.pid is None else 1):
        raise Unfit("left running")


def _see_untouched(stock: Stock, spare: Spare) -> None:
    """See that a process and its directory are as they were when it came up.

    Raises:
        Unfit: They are not.
    """
    try:
        signature = stock.workspaces.sign(spare.directory)
    except OSError as error:
        raise Unfit("workspace") from error
    if signature != spare.signature:
        raise Unfit("workspace")
    if not spare.process.untouched:
        raise Unfit("touched")
    spare.alive_at = now()
