"""A session that begins with what another knows.

While its conversation is copied nothing may work on it. So the original is asked to keep still: it
has no process then, and gets none, however much it is asked. It goes on by itself afterwards.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from session_supervisor.copying import Stopped, TooMuch, copy_tree
from session_supervisor.core import SessionCore
from session_supervisor.errors import (
    Draining,
    InvalidSpec,
    NothingToFork,
    NoWorkspace,
    SessionClosed,
    TurnNotFound,
)
from session_supervisor.latch import Latch
from session_supervisor.lifecycle import State
from session_supervisor.messages import KeepStill
from session_supervisor.shielding import to_the_end
from session_supervisor.spec import SessionKind, SessionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """What is to be copied.

    Attributes:
        source: The session whose context it is.
        turn_id: The last turn of it that the copy knows; None: all.
        copy_workspace: Whether its files are copied, too.
    """

    source: SessionCore
    turn_id: str | None = None
    copy_workspace: bool = False


def spec_of_fork(
    source: SessionCore, *, title: str | None, metadata: Mapping[str, str] | None
) -> SessionSpec:
    """Return what is wanted of a copy: what is in force in the original.

    Args:
        source: The original.
        title: What its owner calls the copy; None: as the original.
        metadata: What its owner notes about it; None: what is noted about the original.
    """
    return replace(
        source.spec,
        title=source.title if title is None else title or None,
        metadata=dict(source.metadata if metadata is None else metadata),
    )


def check_fork(fork: Fork) -> None:
    """Refuse what can be seen not to be possible without asking the session.

    Raises:
        SessionClosed: It has ended.
        NothingToFork: It has no context.
        InvalidSpec: It has no directory of its own to copy.
    """
    source = fork.source
    if source.kind is SessionKind.ONEOFF or has_ended(source):
        raise SessionClosed(source.session_id)
    if source.agent_session_id is None or not source.has_context:
        raise NothingToFork(source.session_id)
    if fork.copy_workspace and not source.private:
        raise InvalidSpec(
            "copy_workspace",
            "the session works in a directory that was chosen for it, and its fork does, too",
        )


def has_ended(core: SessionCore) -> bool:
    """Whether a session has ended, or is about to."""
    return core.state in (State.CLOSING, State.CLOSED)


@asynccontextmanager
async def kept_still(core: SessionCore) -> AsyncGenerator[None, None]:
    """Have a session without a process, while the context is open.

    Raises:
        Busy: It has something to do.
        NothingToFork: It has no context.
        Refused: It takes no messages.
    """
    message = KeepStill(over=Latch())
    core.mailbox.offer_control(message)
    try:
        await message.reply.wait()
        yield
    finally:
        message.over.set()
        core.wakeup.ring()


async def anchor_of(fork: Fork) -> str | None:
    """Return the place in the conversation up to which it is copied; None: the whole.

    Raises:
        TurnNotFound: The session has no such turn, or no longer keeps it.
        NothingToFork: The turn has no place in the conversation, as one that never ran.
    """
    if fork.turn_id is None:
        return None
    source = fork.source
    turn = await source.store.turn(source.session_id, fork.turn_id)
    if turn is None:
        raise TurnNotFound(fork.turn_id)
    anchor = None if turn.result is None else turn.result.accounting.anchor
    if anchor is None:
        raise NothingToFork(source.session_id)
    return anchor


async def copy_files(
    source: Path,
    target: Path,
    *,
    max_bytes: int,
    max_files: int,
    draining: Callable[[], bool],
) -> None:
    """Copy a session's files for another. Cancelled, it ends soon, and nothing is written after.

    Args:
        source: The directory of the one.
        target: Of the other.
        max_bytes: Most that all files may hold.
        max_files: Most files.
        draining: Whether to give up.

    Raises:
        InvalidSpec: There is more.
        NoWorkspace: Something cannot be read, or written.
        Draining: It was given up.
    """
    cancelled = threading.Event()

    async def copy() -> None:
        await asyncio.to_thread(
            copy_tree,
            source,
            target,
            max_bytes=max_bytes,
            max_files=max_files,
            stopped=lambda: cancelled.is_set() or draining(),
        )

    copying = asyncio.ensure_future(copy())
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        cancelled.set()
        # The directory is not to be removed while somebody writes to it.
        await to_the_end(_over(copying))
        raise
    except TooMuch as error:
        raise InvalidSpec(
            "copy_workspace", f"the session's directory holds {error}, too much to copy"
        ) from error
    except Stopped:
        raise Draining from None
    except OSError as error:
        raise NoWorkspace(error.strerror or type(error).__name__) from error


async def _over(work: asyncio.Future[None]) -> None:
    await asyncio.wait({work})
    if not work.cancelled():
        work.exception()  # nobody wants to know
