"""What a server costs with all that it started: processor time and memory of process trees.

Processes that have ended count through those who waited for them, as the kernel adds it up. What a
process leaves running that its parent did not wait for is lost to these accounts; so is nothing of
the servers here, which wait for what they start. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Memory

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

QUIET = 0.05
"""Share of one processor below which a tree counts as having nothing left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A process and its descendants at a moment.

    Attributes:
        processes: How many.
        cpu_s: Processor seconds that they, and those of them that have ended, have had.
        pss: Memory, bytes: their own, and their share of what they have in common with others.
    """

    processes: int
    cpu_s: float
    pss: int


def tree_of(root: int, *, memory: bool = True) -> Tree:
    """Measure a process and all its descendants; what ends meanwhile is left out."""
    pids = descendants(root)
    cpu_s, pss = 0.0, 0
    for pid in pids:
        with contextlib.suppress(OSError):
            cpu_s += _cpu_s(pid)
            pss += Memory.of(pid).pss if memory else 0
    return Tree(processes=len(pids), cpu_s=cpu_s, pss=pss)


def descendants(root: int) -> list[int]:
    """Return a process's id, and those of all that descend from it."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return found


async def until_quiet(root: int, *, within_s: float = 8.0, every_s: float = 0.25) -> bool:
    """Wait until a tree does nothing any more: what work leaves to be done belongs to its price.

    Returns:
        Whether it became quiet in time.
    """
    before = tree_of(root, memory=False).cpu_s
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    calm = 0
    while loop.time() < deadline:
        await asyncio.sleep(every_s)
        after = tree_of(root, memory=False).cpu_s
        calm = calm + 1 if after - before <= QUIET * every_s + _TICK_S else 0
        before = after
        if calm == 2:
            return True
    return False


def has_ended(pid: int) -> bool:
    """Whether a process is no more, or nobody has waited for it yet."""
    try:
        return _stat(pid)[0] == "Z"
    except OSError:
        return True


def _cpu_s(pid: int) -> float:
    fields = _stat(pid)
    return sum(int(fields[n]) for n in (11, 12, 13, 14)) * _TICK_S


def _parents() -> Mapping[int, int]:
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(folder.name)] = int(_stat(int(folder.name))[1])
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields behind the name, which may hold anything: state, parent, and so on."""
    return (
        Path(f"/proc/{pid}/stat")
        .read_text(encoding="utf-8", errors="replace")
        .rpartition(")")[2]
        .split()
    )
