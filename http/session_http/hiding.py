"""Keeps the server's own memory and environment from what runs as the same user.

A session's shell is such a program: without this it reads the server's variables, and with them
its credentials and keys, in `/proc`, or takes the server over with a debugger.
"""

from __future__ import annotations

import ctypes
import sys

_PR_SET_DUMPABLE = 4


def hide_environment() -> bool:
    """Keep other programs of this user out of this process; return whether that was possible.

    On Linux the process becomes "not dumpable": others without privileges may neither trace it nor
    read its `/proc/PID/environ`, `mem` or `fd`, and it leaves no core dump. Programs that it starts
    can be looked at as ever, and nothing is kept from root. Elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return False
    result: int = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return result == 0
