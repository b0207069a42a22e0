"""What carries the marker is found and killed, wherever it has run to."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from session_supervisor.agents.claude import orphans, proc
from session_supervisor.agents.claude.launch import MARKER
from session_supervisor.agents.claude.orphans import Sweeper, marked

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


@pytest.fixture
def marker() -> Iterator[str]:
    value = str(uuid.uuid4())
    yield value
    orphans.kill_marked([value])


def start(marker: str, script: str) -> None:
    """Run a script whose shell is reaped; its children may live."""
    env = {**os.environ, MARKER: marker}
    subprocess.run(["/bin/sh", "-c", script], env=env, check=True, stdout=subprocess.DEVNULL)


def wait_for(marker: str, count: int) -> list[int]:
    deadline = time.monotonic() + 30
    while len(found := marked([marker])) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


async def test_disowned_children_in_other_sessions_are_found_and_killed(marker: str) -> None:
    start(marker, "setsid sleep 60 & (sleep 61 &) ; trap '' TERM; sleep 62 &")
    wait_for(marker, 3)
    await Sweeper().sweep(marker)
    assert marked([marker]) == []


async def test_a_child_without_an_environment_goes_along_with_its_parent(marker: str) -> None:
    start(marker, "(env -i sleep 60; true) &")
    found = wait_for(marker, 2)
    await Sweeper().sweep(marker)
    assert not [pid for pid in found if proc.look(pid) is not None]


async def test_others_are_spared(marker: str) -> None:
    other = str(uuid.uuid4())
    start(other, "sleep 60 &")
    (pid,) = wait_for(other, 1)
    await Sweeper().sweep(marker)
    assert marked([other]) == [pid]
    await Sweeper().sweep(other)
    assert marked([other]) == []


async def test_sweeps_at_the_same_time_share_their_scans() -> None:
    markers = [str(uuid.uuid4()) for _ in range(50)]
    for marker in markers[::10]:
        start(marker, "sleep 60 &")
    sweeper = Sweeper()
    with patch.object(orphans, "kill_marked", wraps=orphans.kill_marked) as scans:
        await asyncio.gather(*(sweeper.sweep(marker) for marker in markers))
    assert marked(markers) == []
    assert scans.call_count <= 6


async def test_without_descriptors_a_sweep_waits_for_some_and_then_finds(marker: str) -> None:
    start(marker, "sleep 60 &")
    wait_for(marker, 1)
    none_left = OSError(errno.EMFILE, "Too many open files")
    look = os.listdir
    answers = iter([none_left, none_left])

    def starved(path: str) -> list[str]:
        error = next(answers, None) if path == "/proc" else None
        if error is not None:
            raise error
        return look(path)

    with patch.object(os, "listdir", starved):
        await Sweeper().sweep(marker)
    assert marked([marker]) == []


async def test_who_cannot_look_does_not_say_that_nothing_is_there(
    marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "_PAUSES_S", (0.001, 0.001))
    too_many = OSError(errno.ENFILE, "Too many open files in system")
    with patch.object(os, "open", side_effect=too_many):
        with pytest.raises(OSError, match="in system"):
            marked([marker])
        with pytest.raises(OSError, match="in system"):
            await Sweeper().sweep(marker)
    with patch.object(os, "open", side_effect=PermissionError):
        assert marked([marker]) == []


async def test_a_sweep_that_is_cancelled_leaves_the_others_theirs(marker: str) -> None:
    start(marker, "sleep 60 &")
    wait_for(marker, 1)
    sweeper = Sweeper()
    sweeps = [asyncio.create_task(sweeper.sweep(each)) for each in ("a", "b", marker, "c")]
    await asyncio.sleep(0)
    sweeps[0].cancel()
    await asyncio.wait(sweeps[:1])
    await asyncio.sleep(0)
    sweeps[1].cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(*sweeps[2:])
    assert marked([marker]) == []
