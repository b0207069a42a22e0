"""A process that may be one session's after another's, and what has to agree for that."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from session_supervisor.agents.port import AgentProcess, Fingerprint, Renews
from session_supervisor.spec import PermissionMode

STARTED_IN: frozenset[PermissionMode] = frozenset({"bypassPermissions", "plan"})
"""Modes that a process has to be started in. The end of plan mode is told to the model, and be it
the next session's."""

LONGEST = 64 * 1024
"""Characters of a kind that is still remembered: a caller can ask for many kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSnapshot:
    """A pool at one moment, and what it has done since it was opened.

    Attributes:
        ready: Processes that stand ready.
        starting: Processes that come up to do so.
        hits: Sessions and one-offs that found a process.
        misses: Those that had to start one, and could have been spared that.
        started: Processes that came up before anybody needed them.
        recycled: How often a process came back from a one-off.
        retired: How often a process was stopped, by why.
    """

    ready: int
    starting: int
    hits: int
    misses: int
    started: int
    recycled: int
    retired: Mapping[str, int]


@dataclass(slots=True)
class Counts:
    """What a pool has done; see `PoolSnapshot`."""

    hits: int = 0
    misses: int = 0
    started: int = 0
    recycled: int = 0
    retired: Counter[str] = field(default_factory=Counter[str])


@runtime_checkable
class PoolableProcess(AgentProcess, Renews, Protocol):
    """A process that can be handed out more than once."""


@dataclass(slots=True, eq=False, kw_only=True)
class Spare:
    """A process that was in the pool, or may come to be.

    Attributes:
        name: Who has its slot while no session has.
        kind: As `kind_of` says.
        fingerprint: What it was started with.
        directory: Where it was, and works.
        signature: Tells that directory from any other at its place, and that it is empty.
        circumstances: What else it was started with, as the agent names it.
        process: The process.
        started_at: Loop time of its start, seconds.
        alive_at: When it last gave a sign of life.
        uses: One-offs that it has served.
        new_bytes: The memory that it took when it was new, as `Renews.leftovers` counts it.
        probing: Whether it is being probed.
    """

    name: str
    kind: str
    fingerprint: Fingerprint
    directory: Path
    signature: Hashable
    circumstances: str
    process: PoolableProcess
    started_at: float
    alive_at: float
    uses: int = 0
    new_bytes: int | None = None
    probing: bool = False


class Unfit(Exception):
    """A process cannot be handed out, or does not come back."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def kind_of(fingerprint: Fingerprint, *, told_model: bool = True) -> str | None:
    """Return a name for all that sessions must agree in to have one process after another.

    Args:
        fingerprint: Of one of them.
        told_model: Whether a process can be told of its model.

    Returns:
        None: that is too long to be remembered.
    """
    if len(fingerprint.system_prompt or "") > LONGEST:
        return None
    mode = fingerprint.permission_mode
    kept: PermissionMode = mode if mode in STARTED_IN else "default"
    model = None if told_model else fingerprint.model
    same = replace(fingerprint, cwd="", model=model, permission_mode=kept)
    spelled = json.dumps(asdict(same), sort_keys=True, default=str)
    if len(spelled) > LONGEST:
        return None
    return hashlib.blake2b(spelled.encode(), digest_size=16).hexdigest()


def suits(spare: Spare, kind: str | None, wanted: Fingerprint) -> bool:
    """Whether somebody can have a process, changed if need be."""
    # There is a way to another model, but none back to the agent's own.
    can_change = wanted.model is not None or spare.fingerprint.model is None
    return spare.kind == kind and can_change


def changes(spare: Spare, wanted: Fingerprint) -> tuple[str | None, PermissionMode | None]:
    """Return which model and mode a process has to be told."""
    has = spare.fingerprint
    return (
        None if has.model == wanted.model else wanted.model,
        None if has.permission_mode == wanted.permission_mode else wanted.permission_mode,
    )


def differs(spare: Spare, wanted: Fingerprint) -> int:
    """Return in how many ways a process has to be changed."""
    return sum(change is not None for change in changes(spare, wanted))
