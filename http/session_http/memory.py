"""How much memory can be had: what the machine has left, and what its control groups leave us.

A container or a unit has a limit of its own, and so may whatever it is in: the least counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60
"""From here on a limit is none; version 1 writes a huge number for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How a version of control groups calls things."""

    folder: str
    limit: str
    used: str
    reclaimable: str


_V1 = _Kind(
    folder="memory",
    limit="memory.limit_in_bytes",
    used="memory.usage_in_bytes",
    reclaimable="total_inactive_file",
)
_V2 = _Kind(folder="", limit="memory.max", used="memory.current", reclaimable="inactive_file")


def available_memory(
    proc: Path = Path("/proc"), mounted: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the bytes that can be had without swapping; None where nobody says.

    Args:
        proc: What the kernel tells of the machine and of this process.
        mounted: Where control groups are.
    """
    return min((*_machine(proc), *_groups(proc, mounted)), default=None)


def _machine(proc: Path) -> Iterator[int]:
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _groups(proc: Path, mounted: Path) -> Iterator[int]:
    for line in _lines(proc / "self" / "cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            kind = _V2
        elif "memory" in controllers.split(","):
            kind = _V1
        else:
            continue
        top = mounted / kind.folder
        # In a container the path may be the host's: then only the top is there, and ours.
        group = top if ".." in Path(path).parts else top / path.lstrip("/")
        for one in (group, *group.parents):
            if not one.is_relative_to(top):
                break
            left = _left(one, kind)
            if left is not None:
                yield left


def _left(group: Path, kind: _Kind) -> int | None:
    try:
        limit, used = (int("".join(_lines(group / name))) for name in (kind.limit, kind.used))
    except ValueError:  # there is no such file, or it says `max`
        return None
    if limit >= _UNLIMITED:
        return None
    # The cache of files counts as used, and yet makes room.
    stat = dict(line.split(" ", 1) for line in _lines(group / "memory.stat"))
    return max(0, limit - used + int(stat.get(kind.reclaimable, 0)))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
