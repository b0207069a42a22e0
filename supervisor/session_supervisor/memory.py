"""What memory agent processes may take together, and what they take.

A process is measured from time to time; one that was not measured yet counts as much as is usual.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from session_supervisor.config import MemoryPolicy

NO_LIMIT = 1 << 60
"""Version 1 of the kernel's control groups says so much where there is no limit, or more."""


class Memory:
    """What live sessions take, against a budget.

    Args:
        budget_bytes: Most that all of them may take.
        process_bytes: What one counts as before it was measured.
    """

    def __init__(self, budget_bytes: int, process_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._process_bytes = process_bytes
        self._measured: dict[str, int] = {}

    @property
    def processes(self) -> int:
        """How many there is room for, if each takes what is expected of one."""
        return self.budget_bytes // self._process_bytes

    def measured(self, session_id: str, size_bytes: int) -> None:
        """Note what a session's processes take."""
        self._measured[session_id] = size_bytes

    def knows(self, session_id: str) -> bool:
        """Return whether a session's processes were measured."""
        return session_id in self._measured

    def forget(self, session_id: str) -> None:
        """Note that a session has none any more."""
        self._measured.pop(session_id, None)

    def hand_over(self, holder: str, to: str) -> None:
        """Note that the processes of one are another's now."""
        if holder in self._measured:
            self._measured[to] = self._measured.pop(holder)

    def used_bytes(self, sessions: Collection[str]) -> int:
        """Return what sessions take together."""
        return sum(self._measured.get(one, self._process_bytes) for one in sessions)

    def suffices(self, sessions: Collection[str], more: int) -> bool:
        """Return whether so many more may live beside these; one may in any case."""
        if len(sessions) + more <= 1:
            return True
        return self.used_bytes(sessions) + more * self._process_bytes <= self.budget_bytes


def memory_of(policy: MemoryPolicy) -> Memory | None:
    """Return an empty account as the policy says; None where no limit is known."""
    budget_bytes = policy.budget_bytes
    if budget_bytes is None:
        limit_bytes = machine_limit()
        if limit_bytes is None:
            return None
        budget_bytes = int(limit_bytes * policy.share)
    return Memory(budget_bytes, policy.process_bytes)


def machine_limit(root: Path = Path("/")) -> int | None:
    """Return the memory that this process may use, in bytes; None where that is not known.

    It is what the machine has or, where that is less, what a control group around us may use.

    Args:
        root: Where `/proc` and `/sys` are.
    """
    limits = [_installed(root / "proc/meminfo")]
    groups = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            limits += _up(groups, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _up(groups / "memory", path, "memory.limit_in_bytes")
    return min((limit for limit in limits if limit is not None), default=None)


def _up(mount: Path, path: str, name: str) -> list[int | None]:
    """Return the limits of a control group and of all that it is in."""
    # In a container the path may be the host's, while the mount shows the container's own group.
    within = Path(path.lstrip("/"))
    return [_number(mount / part / name) for part in (within, *within.parents)]


def _number(path: Path) -> int | None:
    for line in _lines(path):
        if line.isdigit() and int(line) < NO_LIMIT:
            return int(line)
    return None


def _installed(path: Path) -> int | None:
    for line in _lines(path):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
