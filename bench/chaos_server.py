"""The server that `bench.chaos` torments: the command `serve`, made to lose patience in seconds.

Its time limits are made for real models and machines: a process that was stopped is only found
after half a minute, a crashed one is given up after three restarts in a minute. Here both happen
all the time. SIGUSR1 makes it print what only it can know.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from session_http import cli, parts
from session_http.sources import Configuration
from session_supervisor import RestartPolicy, SupervisorConfig, Watchdogs

IMPATIENT = Watchdogs(
    start_s=20.0,
    first_byte_s=5.0,
    progress_s=4.0,
    silence_s=1.5,
    probe_s=2.0,
    interrupt_s=3.0,
    store_s=10.0,
)

GENEROUS = RestartPolicy(base_delay_s=0.05, max_delay_s=1.0, max_restarts=12)

OPTIONS = (
    *("--host", "127.0.0.1", "--max-live", "4", "--idle-timeout", "4", "--turn-timeout", "45"),
    *("--drain-timeout", "1", "--log-format", "json"),
)

_configured = parts.supervisor_config


def _impatient(configuration: Configuration, *, workspace: Path) -> SupervisorConfig:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _say)
    given = _configured(configuration, workspace=workspace)
    return replace(given, watchdogs=IMPATIENT, restarts=GENEROUS)


def _say() -> None:
    known = {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }
    print(json.dumps(known), flush=True)


if __name__ == "__main__":
    parts.supervisor_config = _impatient
    sys.exit(cli.main(["serve", *OPTIONS, *sys.argv[1:]]))
