"""Going on with a session from what is stored of it, after its actor ended by a fault.

What was acknowledged is in the store; what was only in memory, the store may have or not. So what
is in memory is made to agree with the store: turns whose end it has are announced, those that it
does not have are forgotten, and the others are as it knows them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from session_supervisor import events
from session_supervisor.core import SessionCore
from session_supervisor.errors import Spoiled
from session_supervisor.lifecycle import State
from session_supervisor.messages import Interrupt
from session_supervisor.results import Outcome, Phase, TurnRecord
from session_supervisor.stores.port import Store

logger = logging.getLogger(__name__)


async def text_of(store: Store, turn: TurnRecord) -> str:
    """Return what a turn had answered, as far as it is stored.

    Raises:
        StoreError: The store failed.
    """
    if turn.phase is Phase.QUEUED:
        return ""
    pieces: list[tuple[int, str]] = []
    after = turn.first_seq - 1
    while batch := await store.read(turn.session_id, after=after, limit=1_000):
        for event in batch:
            if event.turn_id != turn.turn_id:
                continue
            if isinstance(event.body, events.Text):
                pieces.append((event.seq, event.body.content))
            elif isinstance(event.body, events.Discard):
                discard_after = event.body.after
                pieces = [piece for piece in pieces if piece[0] <= discard_after]
        after = batch[-1].seq
    return "".join(text for _, text in pieces)


async def text_left(store: Store, turn: TurnRecord) -> str:
    """Return what a turn had answered, as far as it is stored and can be read.

    Raises:
        StoreError: The store failed.
    """
    try:
        return await text_of(store, turn)
    except Spoiled:
        # Its events say so to whoever reads them; it ends without them.
        logger.exception(
            "what turn %s said cannot be read",
            turn.turn_id,
            extra={"session_id": turn.session_id, "turn_id": turn.turn_id},
        )
        return ""


async def revive(core: SessionCore, *, refused: Collection[str], within_s: float) -> None:
    """Bring a session back to what is stored of it. Its next actor finds it asleep.

    Args:
        core: The session; nothing of it runs.
        refused: Turns whose callers were told that there will be none.
        within_s: Seconds that the store may take.

    Raises:
        StoreError: The store failed.
        TimeoutError: The store took too long.
    """
    async with asyncio.timeout(within_s):
        lease = await core.store.acquire(core.session_id)
        records = await core.store.turns(core.session_id)
        requests = await core.store.requests(core.session_id)
        texts = {
            record.turn_id: await text_left(core.store, record)
            for record in records
            if record.phase is not Phase.ENDED
        }
    core.log.resume(lease)
    core.ledger.go_back(records, texts, lambda: core.account.take_turn(None))
    core.requests.restore([one for one in requests if one.resolution is None])
    # What kept the store from storing may have kept the agent as well: where no turn completed,
    # it need not know of the conversation, and a fresh one forgets nothing that was announced.
    core.has_context = core.forked_from is not None or any(
        record.result is not None and record.result.outcome is Outcome.COMPLETED
        for record in records
    )
    core.stored = None
    core.move(State.HIBERNATED if core.failure is None else State.FAILED)
    core.mailbox.reopen()
    for turn_id in refused:
        if core.ledger.find(turn_id) is not None:
            core.mailbox.offer_control(Interrupt(turn_id=turn_id), always=True)
