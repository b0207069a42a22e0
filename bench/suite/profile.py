"""Where processor time goes: py-spy beside the server, while a load is on it that is not measured.

A sampling profiler that reads the other process's memory: nothing is built into the server. It does
stop it for each sample, so what is measured is another round.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.suite.results import Hot, Profile

RATE = 200
"""Samples in a second."""

MOST = 20
"""Functions that are kept of each order."""

NOT_ALLOWED = (
    "the kernel does not let it look into the server. Run as root, or give the container the right "
    "to trace (docker run --cap-add SYS_PTRACE)."
)


class NoProfile(Exception):
    """There is no profile; the message says why."""


def profiler() -> str:
    """Return where py-spy is.

    Raises:
        NoProfile: It is not installed.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which("py-spy", path=path)
    if found is None:
        raise NoProfile("--profile needs py-spy, which is not installed: pip install py-spy.")
    return found


async def record(pid: int, seconds: float, load: str) -> Profile:
    """Profile a process for some time.

    Args:
        pid: Which.
        seconds: How long.
        load: What is on it meanwhile, in words.

    Raises:
        NoProfile: It cannot be.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        spying = await asyncio.create_subprocess_exec(
            *(profiler(), "record", "--pid", str(pid), "--format", "raw", "--function"),
            *("--rate", str(RATE), "--duration", str(max(round(seconds), 1)), "--output", str(raw)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            said, _ = await spying.communicate()
        finally:
            if spying.returncode is None:
                spying.kill()
                await spying.wait()
        if spying.returncode or not raw.exists():
            raise NoProfile(f"no profile of {load}: {_why(said.decode(errors='replace'))}")
        return read(raw.read_text(encoding="utf-8").splitlines(), seconds, load)


def _why(said: str) -> str:
    if "ermission" in said or "not permitted" in said.lower():
        return NOT_ALLOWED
    lines = [line.strip() for line in said.splitlines() if "rror" in line]
    return lines[0] if lines else "py-spy does not say why."


def read(lines: Iterable[str], seconds: float, load: str) -> Profile:
    """Read folded stacks: functions from the outermost to the one that runs, and a number.

    Raises:
        NoProfile: There are none: the server had nothing to do.
    """
    own, total = Counter[str](), Counter[str]()
    samples = 0
    for line in lines:
        stack, _, number = line.rpartition(" ")
        if not number.isdigit():
            continue
        frames = [one for one in stack.split(";") if not one.startswith(("process ", "thread "))]
        if not frames:
            continue
        samples += int(number)
        own[frames[-1]] += int(number)
        for frame in set(frames):
            total[frame] += int(number)
    if not samples:
        raise NoProfile(f"no profile of {load}: the server was never seen running.")
    kept = dict.fromkeys(
        [
            *(name for name, _ in own.most_common(MOST)),
            *(name for name, _ in total.most_common(MOST)),
        ]
    )
    functions = [
        Hot(
            name=frame.partition(" (")[0],
            where=_short(frame.partition(" (")[2].rstrip(")")),
            own=own[frame] / samples,
            total=total[frame] / samples,
        )
        for frame in kept
    ]
    functions.sort(key=lambda one: (-one.own, -one.total))
    return Profile(load=load, samples=samples, seconds=seconds, functions=functions)


def _short(where: str) -> str:
    """Return a place in source without the folders of this machine."""
    parts = Path(where.partition(":")[0]).parts
    for root in ("session_supervisor", "session_http", "bench", "site-packages"):
        if root in parts:
            below = parts[parts.index(root) + (root == "site-packages") :]
            return "/".join(below)
    return "/".join(parts[-2:])
