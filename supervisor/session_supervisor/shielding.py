"""Await what must not be left half done, however often one is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end, and only then let a cancellation of the caller through.

    An anyio scope shields from anyio's cancellations alone; `asyncio.Task.cancel` reaches the next
    `await` in any case. So the work has a task of its own, which the caller outwaits.

    Args:
        work: What to do. It must end by itself, in bounded time.

    Raises:
        asyncio.CancelledError: The caller was cancelled; the work is done.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception:
                break  # the work's own, which `result` raises
    if cancelled is not None and not task.cancelled():
        task.exception()  # retrieved: the cancellation is what the caller hears of
        raise cancelled
    return task.result()
