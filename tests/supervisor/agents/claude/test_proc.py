"""What is known of processes, and that one is not taken for another."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from session_supervisor.agents.claude import census, proc
from session_supervisor.agents.claude.census import Census
from session_supervisor.agents.claude.launch import MARKER
from session_supervisor.agents.claude.proc import Process
from session_supervisor.agents.port import Tree

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


MINE = str(uuid.uuid4())
"""A marker that no other process of the machine has, also where this file runs twice."""


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A shell that carries our marker, and has one child, which carries none."""
    with subprocess.Popen(
        ["/bin/sh", "-c", "env -u $NAME sleep 60 & echo; wait"],
        env={**os.environ, MARKER: MINE, "NAME": MARKER},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not any(
            one.parent == process.pid and one.name == "sleep" for one in proc.everybody().values()
        ):
            time.sleep(0.01)
        yield process
        os.killpg(process.pid, 9)


def test_a_process_is_known_by_its_parent_its_start_and_its_marker(
    parent: subprocess.Popen[bytes],
) -> None:
    one = proc.look(parent.pid)
    assert one is not None
    assert one.parent == os.getpid()
    assert one.marker == MINE
    us = proc.look(os.getpid())
    assert us is not None
    assert us.started <= one.started
    assert os.getpid() not in proc.everybody()


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_RTTIME)[1] != resource.RLIM_INFINITY,
    reason="this process has the limit already",
)
def test_a_tag_passes_to_all_that_is_started_from_then_on_and_nothing_else_does() -> None:
    # It speaks when what stood between is gone.
    command = "read _; orphan=$(sleep 60 >/dev/null & echo $!); echo $orphan; read _"
    empty = ["/usr/bin/env", "-i", "/bin/sh", "-c", command]
    with subprocess.Popen(
        empty, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert proc.tag(process.pid, MINE)
            process.stdin.write(b"\n")
            process.stdin.flush()
            orphan = int(process.stdout.readline())
            everybody = proc.everybody()
            assert everybody[orphan].parent != process.pid
            assert everybody[orphan].marker == ""
            assert {*proc.family(everybody, markers=[MINE])} == {process.pid, orphan}
            assert proc.family(everybody, markers=[str(uuid.uuid4())]) == []
            assert proc.family(everybody) == []
        finally:
            os.killpg(process.pid, 9)


def test_what_cannot_be_tagged_is_no_failure() -> None:
    assert not proc.tag(2**22 + 1, "m")


def test_tags_are_limits_that_nothing_ever_reaches() -> None:
    tags = {proc.tag_of(str(n)) for n in range(1000)}
    assert len(tags) == 1000
    assert min(tags) >= 2**60
    assert max(tags) < 2**61


def test_a_zombie_is_nobody() -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}").exists()
        assert proc.look(process.pid) is None
        assert proc.memory(process.pid) == 0


def test_a_family_has_descendants_without_the_marker() -> None:
    processes = {
        pid: Process(parent=parent, started=pid, marker=marker)
        for pid, parent, marker in [
            (1, 0, ""),
            (2, 1, "a"),
            (3, 2, ""),
            (4, 3, "b"),
            (5, 1, "a"),
            (6, 1, ""),
        ]
    }
    assert proc.family(processes, markers=["a"]) == [2, 5, 3, 4]
    assert proc.family(processes, markers=["b"]) == [4]
    assert proc.family(processes, roots=[3, 99]) == [3, 4]
    assert proc.family(processes) == []
    assert proc.the_same(processes, {3: 3, 4: 5, 99: 99}) == [3]


async def test_a_census_counts_processes_and_their_memory(
    parent: subprocess.Popen[bytes],
) -> None:
    tree = await Census().tree(MINE, parent.pid)
    assert tree.pids[0] == parent.pid
    assert len(tree.pids) == 2
    assert tree.pss_bytes == pytest.approx(sum(map(proc.memory, tree.pids)), rel=0.5)
    assert tree.pss_bytes > 0
    assert (await Census().tree(MINE, None)).pids == tree.pids
    assert await Census().tree(str(uuid.uuid4()), None) == Tree()
    first, second = tree.members
    assert (first.name, second.name) == ("sh", "sleep")
    assert (first.parent, second.parent) == (os.getpid(), parent.pid)
    assert 0 < second.pss_bytes < tree.pss_bytes


async def test_what_is_left_is_looked_for_anew_each_time(parent: subprocess.Popen[bytes]) -> None:
    one = Census()
    with patch.object(proc, "everybody", wraps=proc.everybody) as looks:
        first, second = await asyncio.gather(
            *(one.leftovers(MINE, parent.pid) for _ in range(2)),
        )
    assert looks.call_count == 2, "one may have begun before what is looked for was there"
    assert first.pids == second.pids == (await one.tree(MINE, parent.pid)).pids
    assert all(0 < member.pss_bytes < 10_000_000 for member in first.members)


@pytest.mark.skipif(not Path("/proc/2/stat").exists(), reason="shows no kernel threads")
def test_the_kernel_s_own_are_not_looked_into() -> None:
    with patch.object(os, "open", wraps=os.open) as opened:
        found = proc.look(2)
    if found is not None and found.name == "kthreadd":
        assert [call.args[0] for call in opened.call_args_list] == ["/proc/2/stat"]
        assert (found.marker, found.tag) == ("", 0)


async def test_a_look_that_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(census, "_LOOK_S", 0.01)
    let_go = threading.Event()

    def stuck() -> dict[int, Process]:
        let_go.wait()
        return {}

    with patch.object(proc, "everybody", stuck):
        assert await Census().tree("m", 1) == Tree()
        let_go.set()
    assert "cannot be counted" in caplog.text


async def test_who_asks_together_shares_one_look(parent: subprocess.Popen[bytes]) -> None:
    shared = Census()
    with patch.object(proc, "everybody", wraps=proc.everybody) as looks:
        trees = await asyncio.gather(*(shared.tree(MINE, parent.pid) for _ in range(10)))
        assert looks.call_count == 1
        assert {tree.pids[0] for tree in trees} == {parent.pid}
        await shared.tree(MINE, parent.pid)
        assert looks.call_count == 2


async def test_a_census_without_descriptors_finds_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    too_many = OSError(errno.EMFILE, "Too many open files")
    with patch.object(os, "open", side_effect=too_many):
        assert await Census().tree("m", 1) == Tree()
        with pytest.raises(OSError, match="Too many"):
            await Census().leftovers("m", 1)
    assert "cannot be counted" in caplog.text


def test_memory_is_told_also_where_the_kernel_does_not_tell_all_of_it(
    parent: subprocess.Popen[bytes],
) -> None:
    opened = os.open

    def denied(path: str, flags: int) -> int:
        if path.endswith("/smaps_rollup"):
            raise PermissionError
        return opened(path, flags)

    with patch.object(os, "open", denied):
        assert 0 < proc.memory(parent.pid) < 10_000_000
