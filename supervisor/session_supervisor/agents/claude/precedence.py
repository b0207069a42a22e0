"""Who goes first when all want the processor: we, before the processes that we start.

Where Claude Code has taken every core, a server that wakes up for a request waits for its turn
among processes that are all as nice as it is. The kernel looks in one of two places, and does not
say in which: the niceness of each process, as usual in a container or a service; or, where it
groups processes by their session, as on a plain machine, the niceness of such a group (`autogroup`
in `man 7 sched`), and that of a process counts only beside others of its group. Each Claude Code is
a session of its own, so both are set. Only ever downwards, only what we have started, and relative
to what we have ourselves: that needs no right, and nothing of ours is changed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

NICEST = 19
"""The kernel's last; what is more counts as that."""


def lower(pid: int, by: int) -> bool:
    """Have a process, and what it starts from now on, go after us.

    As far as the system lets us: that it does not is no failure, for everything works without.

    Args:
        pid: A process that we have started, in a session of its own.
        by: By how much it is nicer than we are, 0 to 19. Where both want a core, 3 leaves it half
            of what we have, 10 a tenth.

    Returns:
        Whether that is all. False: to be tried again later, because the kernel lets those without
        privileges change the niceness of one group in a tenth of a second, all users together.
    """
    if by <= 0 or sys.platform == "win32":
        return True
    with contextlib.suppress(OSError):  # it has ended, or the system has other rules
        # Its process group, because of a process it would be the first thread alone.
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PGRP, pid, min(ours + by, NICEST))
    try:
        our_group, ours = _group("self")
        its_group, _ = _group(pid)
        if its_group != our_group:
            _autogroup(pid).write_text(str(min(ours + by, NICEST)), encoding="ascii")
    except BlockingIOError:
        return False
    except OSError:  # there are no such groups here, or it has ended
        pass
    return True


def _autogroup(pid: int | str) -> Path:
    return Path(f"/proc/{pid}/autogroup")


def _group(pid: int | str) -> tuple[str, int]:
    """Return the name of a process's group and its niceness: `/autogroup-12 nice 0`, or nothing."""
    words = _autogroup(pid).read_text(encoding="ascii").split()
    return (words[0], int(words[-1])) if words else ("", 0)
