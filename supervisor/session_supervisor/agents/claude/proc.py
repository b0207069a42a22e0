"""What /proc says of processes: whose children they are, what they carry, what memory they take.

The shells of the CLI's tools have sessions of their own, and a disowned child has no parent any
more: neither process groups nor the process tree find them. What they cannot help having is the
environment that they were started with, and in it our marker. A child that is started with an empty
one still has the limits of its parent, so that the marker is in one of these, too (`tag`): the time
that a process may take at real-time priority, which nobody means to limit to some thousand years.
It passes through fork, exec and setsid, and only who means to get rid of it does.

Everything here blocks, for some milliseconds: call it in a thread. Without /proc there is nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from session_supervisor.agents.claude.launch import MARKER

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing of the process that was looked at."""

_ENTRY = f"{MARKER}=".encode()
_LIMIT = b"Max realtime timeout"
_PROC = Path("/proc")

_KERNEL_THREAD = 0x00200000
"""`PF_KTHREAD` among a process's flags: it has no environment."""

_PIECE = 64 * 1024
"""Bytes that are read at once: most files here are shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One that lives.

    Attributes:
        parent: Id of its parent.
        name: What the kernel calls it, at most 15 bytes.
        started: When it was started, in ticks since the machine was. Along with its id it names
            it: ids are used again.
        marker: The marker in its environment, empty for none.
        tag: Its limit that may hold a marker, in microseconds; 0 for none.
    """

    parent: int
    started: int
    name: str = ""
    marker: str = ""
    tag: int = 0


def look(pid: int) -> Process | None:
    """Return what there is of one process, None if it has ended; a zombie has.

    Raises:
        OSError: There is no file descriptor to look with.
    """
    stat = _read(pid, "stat")
    # The name in parentheses may hold anything. After it: state, parent, and 17 others.
    head, _, rest = stat.rpartition(b")")
    fields = rest.split()
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    # One of the kernel's own was started by nobody, and half of a machine's are such.
    carries = not int(fields[6]) & _KERNEL_THREAD
    return Process(
        parent=int(fields[1]),
        started=int(fields[19]),
        name=head.partition(b"(")[2].decode(errors="replace"),
        marker=_marker(pid) if carries else "",
        tag=_tag(pid) if carries else 0,
    )


def tag(pid: int, marker: str) -> bool:
    """Have a process, and all that it starts from now on, carry a marker also in its limits.

    Args:
        pid: A child of ours, just started.
        marker: Which.

    Returns:
        Whether it does: a limit of ours may be lower already, and some containers forbid it.
    """
    if sys.platform == "linux":
        import resource

        limit = tag_of(marker)
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(pid, resource.RLIMIT_RTTIME, (limit, limit))
            return True
    return False


def tag_of(marker: str) -> int:
    """Return the limit that stands for a marker, in microseconds."""
    digest = hashlib.blake2b(marker.encode(), digest_size=8).digest()
    return 1 << 60 | int.from_bytes(digest) >> 4


def everybody() -> dict[int, Process]:
    """Return every process of the machine but our own.

    Raises:
        OSError: There is no file descriptor to look with.
    """
    try:
        names = os.listdir(_PROC)
    except FileNotFoundError:
        return {}
    ours = os.getpid()
    found = ((pid, look(pid)) for pid in map(int, filter(str.isdigit, names)) if pid != ours)
    return {pid: process for pid, process in found if process is not None}


def family(
    processes: Mapping[int, Process],
    *,
    markers: Collection[str] = (),
    roots: Collection[int] = (),
) -> list[int]:
    """Return the ids of some processes and of all that descend from them, parents first.

    Args:
        processes: All that there are.
        markers: Those that carry one of these, in their environment or their limits.
        roots: Those with one of these ids.
    """
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found = dict.fromkeys(pid for pid in roots if pid in processes)
    tags = {tag_of(marker) for marker in markers}
    found |= dict.fromkeys(
        pid for pid, one in processes.items() if one.marker in markers or one.tag in tags
    )
    waiting = list(found)
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found[pid] = None
                waiting.append(pid)
    return list(found)


def the_same(processes: Mapping[int, Process], known: Mapping[int, int]) -> list[int]:
    """Return those ids that still mean what they did.

    Args:
        processes: All that there are.
        known: Ids, and when those that had them were started.
    """
    return [pid for pid, at in known.items() if pid in processes and processes[pid].started == at]


def memory(pid: int) -> int:
    """Return the memory that a process takes, in bytes; 0 if it has ended.

    Shared pages count in part (PSS), or not at all where the kernel does not tell.

    Raises:
        OSError: There is no file descriptor to look with.
    """
    for line in _read(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return own_memory(pid)


def own_memory(pid: int) -> int:
    """Return the memory that a process has for itself, in bytes; 0 if it has ended.

    It takes microseconds, where `memory` takes milliseconds: the kernel has it at hand.

    Raises:
        OSError: There is no file descriptor to look with.
    """
    sizes = _read(pid, "statm").split()
    if len(sizes) < 3:
        return 0
    return max(0, int(sizes[1]) - int(sizes[2])) * os.sysconf("SC_PAGE_SIZE")


def _marker(pid: int) -> str:
    environ = _read(pid, "environ")
    if _ENTRY not in environ:
        return ""
    entries = (one for one in environ.split(b"\0") if one.startswith(_ENTRY))
    return next(entries, _ENTRY)[len(_ENTRY) :].decode(errors="replace")


def _tag(pid: int) -> int:
    limits = _read(pid, "limits")
    at = limits.find(_LIMIT)
    fields = limits[at + len(_LIMIT) :].split(maxsplit=2)
    return int(fields[1]) if at >= 0 and len(fields) == 3 and fields[1].isdigit() else 0


def _read(pid: int, name: str) -> bytes:
    # Not by way of `Path` and a file object, which take longer than all that the kernel does.
    try:
        fd = os.open(f"{_PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces: list[bytes] = []
            while piece := os.read(fd, _PIECE):
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise
        return b""  # gone, or not ours
