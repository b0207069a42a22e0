"""The manifest: what it lists is ended, gently at first, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from session_supervisor.agents.claude import manifest, proc
from session_supervisor.agents.claude.launch import MARKER
from session_supervisor.agents.claude.manifest import Manifest

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(script: str, **env: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()  # it is what it will be
        return process

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def change(folder: Path, **fields: Any) -> None:
    (path,) = folder.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


async def test_what_is_listed_gets_time_to_leave(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_GENTLE_S", 60.0)  # however busy the machine is
    # The child says that all is there: one that is only about to come would not be counted.
    trap = f"sleep 0.2; touch {tmp_path}/left; exit 0"
    process = start(f"trap '{trap}' TERM; sh -c 'echo; exec sleep 60' & wait")
    listed = Manifest(tmp_path / "processes")
    await listed.enter("a", scratch="", pid=process.pid)
    assert await Manifest(tmp_path / "processes").recover() >= 2
    assert process.wait(30) == 0
    assert (tmp_path / "left").exists()
    assert not os.listdir(tmp_path / "processes")


async def test_what_does_not_leave_is_killed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_GENTLE_S", 0.1)
    process = start("trap '' TERM; echo; while :; do sleep 60; done")
    listed = Manifest(tmp_path)
    await listed.enter("a", scratch="", pid=process.pid)
    assert await listed.recover() >= 1
    assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("fields", [{"started": 1}, {"boot": "another"}, {"pid": 0}])
async def test_an_id_that_is_somebody_elses_by_now_is_spared(
    start: Start, tmp_path: Path, fields: dict[str, Any]
) -> None:
    process = start("echo; sleep 60")
    listed = Manifest(tmp_path)
    await listed.enter("a", scratch="", pid=process.pid)
    change(tmp_path, **fields)
    await listed.enter("b", scratch="")
    assert await listed.recover() == 0
    assert proc.look(process.pid) is not None
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"marker": "other"}', '{"pid": "x"}', "[]"])
async def test_a_damaged_list_still_has_the_markers(
    start: Start, tmp_path: Path, content: str
) -> None:
    marker = str(uuid.uuid4())
    process = start(f"export {MARKER}={marker}; sh -c 'sleep 60 & echo'")  # disowned
    listed = Manifest(tmp_path)
    await listed.enter(marker, scratch="")
    (tmp_path / f"{marker}.json").write_text(content)
    assert process.wait(30) == 0
    assert await listed.recover() == 1
    assert not proc.family(proc.everybody(), markers=[marker])


async def test_scratch_directories_go_along(tmp_path: Path) -> None:
    listed = Manifest(tmp_path / "processes")
    for folder in ("claude-x", "precious"):
        scratch = tmp_path / folder / "one"
        (scratch / "below").mkdir(parents=True)
        await listed.enter(folder, scratch=str(scratch))
    (tmp_path / "processes" / "half.new").touch()
    assert await listed.recover() == 0
    assert sorted(os.listdir(tmp_path)) == ["precious", "processes"]
    assert os.listdir(tmp_path / "precious") == ["one"]
    assert not os.listdir(tmp_path / "processes")


async def test_a_process_is_struck(tmp_path: Path) -> None:
    listed = Manifest(tmp_path)
    await listed.enter("a", scratch="")
    await listed.leave("a")
    await listed.leave("a")
    await listed.enter("b", scratch="")
    listed.leave_now("b")
    assert not os.listdir(tmp_path)


async def test_nothing_was_left_where_nothing_was_listed(tmp_path: Path) -> None:
    assert await Manifest(tmp_path / "none").recover() == 0
    assert not (tmp_path / "none").exists()


async def test_a_list_that_cannot_be_written_costs_no_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    listed = Manifest(tmp_path / "file" / "processes")
    await listed.enter("a", scratch="")
    assert "cannot be listed" in caplog.text


async def test_what_could_not_be_listed_is_ended_too_and_only_that(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    here, there = Manifest(tmp_path / "processes"), Manifest(tmp_path / "other" / "processes")
    mine = start("echo; exec sleep 60", **{MARKER: here.new_marker()})
    theirs = start("echo; exec sleep 60", **{MARKER: there.new_marker()})
    nobodys = start("echo; exec sleep 60", **{MARKER: str(uuid.uuid4())})
    os.kill(mine.pid, signal.SIGSTOP)  # it does not heed the SIGTERM that it got when we died
    assert await Manifest(tmp_path / "processes").recover() == 1
    assert mine.wait(30) in (-signal.SIGTERM, -signal.SIGKILL)
    assert proc.look(theirs.pid) is not None
    assert proc.look(nobodys.pid) is not None


async def test_a_recovery_does_not_hold_the_loop_up(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_GENTLE_S", 60.0)  # however busy the machine is
    asked, may_leave, left = (tmp_path / name for name in ("asked", "may_leave", "left"))
    leave = f"touch {asked}; until [ -e {may_leave} ]; do sleep 0.05; done; touch {left}; exit"
    process = start(f"trap '{leave}' TERM; echo; sleep 60 & wait")
    listed = Manifest(tmp_path / "processes")
    await listed.enter("a", scratch="", pid=process.pid)
    recovering = asyncio.create_task(listed.recover())
    # Nobody lets it leave but this loop: one that is held up would see it killed.
    while not asked.exists():  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0.01)
    may_leave.touch()
    assert await recovering >= 1
    assert left.exists()
