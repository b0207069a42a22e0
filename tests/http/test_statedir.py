"""The state directory: who has it, what is made of it, and what a killed server leaves."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from session_http import check, statedir
from session_http.findings import Finding
from session_http.sources import load
from session_http.statedir import Lock, StateDir, StateError
from session_supervisor.stores.sqlite import SqliteStore, schema
from tests.http.test_cli import ROOT, ends, listens, running, says

pytestmark = pytest.mark.anyio

Spoil = Callable[[Path], None]

OFFLINE = ("serve", "--offline", "--port=0")

HOLDER = """
    import asyncio, sys
    from pathlib import Path
    from session_http.statedir import Lock, StateDir
    state = StateDir(Path(sys.argv[1]))
    state.prepare()
    assert asyncio.run(Lock(state.path).acquire(0, asyncio.Event()))
    print("has it", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(directory: Path) -> Generator[subprocess.Popen[str]]:
    """Let another process have a directory."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(directory)]
    path = f"{ROOT / 'http'}:{ROOT / 'supervisor'}"
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    made = StateDir(tmp_path / "a" / "state")
    made.prepare()
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The lock


async def test_one_server_at_a_time_has_it_and_the_next_one_when_it_lets_go(
    state: StateDir,
) -> None:
    first, second, never = Lock(state.path), Lock(state.path), asyncio.Event()
    assert await first.acquire(0, never)
    with pytest.raises(StateError) as refused:
        await second.acquire(0, never)
    assert f"process {os.getpid()}" in str(refused.value)
    assert "--state-dir" in str(refused.value)
    waiting = asyncio.create_task(second.acquire(30, never))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    first.release()
    assert await asyncio.wait_for(waiting, 60)
    assert statedir.is_locked(state.path)
    second.release()
    assert not statedir.is_locked(state.path)


async def test_who_waits_for_it_can_give_up(state: StateDir) -> None:
    first, second, given_up = Lock(state.path), Lock(state.path), asyncio.Event()
    assert await first.acquire(0, asyncio.Event())
    waiting = asyncio.create_task(second.acquire(30, given_up))
    await asyncio.sleep(0.05)
    given_up.set()
    assert not await asyncio.wait_for(waiting, 60)
    first.release()
    assert not statedir.is_locked(state.path)


async def test_a_killed_server_has_it_no_more(state: StateDir) -> None:
    lock = Lock(state.path)
    with holder(state.path) as process:
        with pytest.raises(StateError, match=f"process {process.pid}, .*after 0.1 s"):
            await lock.acquire(0.1, asyncio.Event())
        process.kill()
        process.wait()
        assert await lock.acquire(5, asyncio.Event())
    lock.release()


def test_a_lock_that_says_nothing_useful_is_still_one(state: StateDir) -> None:
    with holder(state.path):
        (state.path / "lock").write_text("who knows")
        assert statedir.holder_in(state.path) == "an unknown process"
        (state.path / "lock").write_text("17 elsewhere")
        assert statedir.holder_in(state.path) == "process 17 on elsewhere"


# The directory


def test_all_of_it_is_this_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = StateDir(tmp_path / "state")
        state.prepare()
        state.make_database()
    finally:
        os.umask(before)
    assert mode(state.path) == 0o700
    assert mode(state.database) == 0o600
    for one in (state.workspaces, state.processes, state.scratch):
        assert mode(one) == 0o700
    # What an operator has decided on stays as it is.
    state.path.chmod(0o750)
    state.prepare()
    assert mode(state.path) == 0o750


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Make room there"),
        (errno.EROFS, "Mount it"),
        (errno.EACCES, "may write to with --state-dir"),
    ],
)
def test_what_stands_in_the_way_is_said_with_what_to_do(
    number: int, advice: str, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fails)
    with pytest.raises(StateError) as refused:
        state.prepare()
    for words in (str(state.path), os.strerror(number), advice):
        assert words in str(refused.value)


async def test_a_full_disk_is_noticed_with_the_lock(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lock = Lock(state.path)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StateError, match="Make room"):
        await lock.acquire(0, asyncio.Event())
    assert not statedir.is_locked(state.path)


def test_what_a_killed_server_had_for_a_while_is_removed(state: StateDir) -> None:
    (state.scratch / "claude-x").mkdir()
    (state.scratch / "claude-x" / "file").write_text("")
    (state.scratch / "a-file").write_text("")
    state.empty_scratch()
    assert not list(state.scratch.iterdir())
    mine, nobodys = str(uuid.uuid4()), str(uuid.uuid4())
    for name in (mine, nobodys, "an operators own"):
        (state.workspaces / name).mkdir()
    assert state.unknown_workspaces({mine}) == [state.workspaces / nobodys]


@pytest.mark.parametrize("emptied", [False, True], ids=["gone", "empty"])
def test_what_sessions_wrote_outlives_their_database(state: StateDir, emptied: bool) -> None:
    """Who moves a damaged one away, as the server says, may put a backup in its place."""
    directory = state.workspaces / str(uuid.uuid4())
    directory.mkdir()
    (directory / "work").write_text("of days")
    state.make_database().write_bytes(b"SQLite format 3\0")
    assert state.set_workspaces_aside() is None
    if emptied:
        state.database.write_bytes(b"")
    else:
        state.database.unlink()
    aside = state.set_workspaces_aside()
    assert aside is not None
    assert aside.parent == state.path
    assert (aside / directory.name / "work").read_text() == "of days"
    assert list(state.workspaces.iterdir()) == []
    assert mode(state.workspaces) == 0o700
    assert state.set_workspaces_aside() is None, "there is nothing in it"


def test_a_server_without_its_database_removes_nothing_of_its_sessions(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state" / "offline")
    state.prepare()
    directory = state.workspaces / str(uuid.uuid4())
    directory.mkdir()
    with running(tmp_path, *OFFLINE, f"--state-dir={tmp_path / 'state'}") as process:
        says(process, "private directories are kept")
        listens(process)
        process.terminate()
        status, _ = ends(process)
    assert status == 0
    assert [one.name for one in state.path.glob("workspaces-*/*")] == [directory.name]


def test_a_temporary_one_ends_with_its_server_or_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, running_, other, link = (
        tmp_path / f"session-supervisor-{name}" for name in ("left", "running", "other", "link")
    )
    StateDir(left).prepare()
    (left / "lock").write_text("1\n")
    other.mkdir()  # no server's, or one that has not come so far
    link.symlink_to(left)
    with holder(running_), statedir.temporary() as state:
        state.prepare()
        assert statedir.is_locked(state.path)
        assert mode(state.path) == 0o700
        assert set(tmp_path.iterdir()) == {state.path, running_, other, link}
    assert not state.path.exists()


# The server


def test_a_second_server_refuses_to_share_it(tmp_path: Path) -> None:
    given = (*OFFLINE, f"--state-dir={tmp_path / 'state'}", "--lock-wait=0.2")
    with (
        holder(tmp_path / "state" / "offline") as first,
        running(tmp_path, *given) as process,
    ):
        status, printed = ends(process)
    assert status == 1
    assert re.search(rf"is in use by another server, process {first.pid}\b", printed)
    assert "Traceback" not in printed


def test_a_server_that_waits_for_another_can_be_told_to_stop(tmp_path: Path) -> None:
    given = (*OFFLINE, f"--state-dir={tmp_path / 'state'}", "--lock-wait=60")
    with holder(tmp_path / "state" / "offline"), running(tmp_path, *given) as process:
        assert process.stdout is not None
        assert "waiting up to 60 s" in process.stdout.readline()
        process.terminate()
        status, printed = ends(process)
    assert (status, printed) == (0, "")


def damaged(database: Path) -> None:
    database.write_bytes(b"SQLite format 3\0" + b"\xff" * 8_000)


def foreign(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE somebodys (x)")


def newer(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        schema.prepare(connection, database)
        connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")


def no_file(database: Path) -> None:
    database.mkdir()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damaged, "Restore a backup"),
        (foreign, "another program"),
        (newer, "newer version"),
        (no_file, "cannot be"),
    ],
)
def test_a_database_that_cannot_be_used_is_said_at_the_start_and_left_as_it_is(
    spoil: Spoil, said: str, tmp_path: Path
) -> None:
    state = StateDir(tmp_path / "state" / "offline")
    state.prepare()
    spoil(state.database)
    before = state.database.read_bytes() if state.database.is_file() else b""
    with running(tmp_path, *OFFLINE, f"--state-dir={tmp_path / 'state'}") as process:
        status, printed = ends(process)
    assert status == 1
    assert said in printed
    assert str(state.path) in printed
    assert "Traceback" not in printed
    if before:
        assert state.database.read_bytes() == before


def test_a_state_directory_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with running(tmp_path, *OFFLINE, f"--state-dir={tmp_path / 'file'}") as process:
        status, printed = ends(process)
    assert status == 1
    assert f"{tmp_path / 'file'}" in printed
    assert "--store memory" in printed
    assert "Traceback" not in printed


# What `check` says of it


def looked_at(directory: Path) -> dict[str, Finding]:
    return {one.name: one for one in check.state(load({"state_dir": str(directory)}))}


async def test_the_check_looks_and_changes_nothing(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    looks = looked_at(state.path)
    assert "none yet" in looks["sessions"].detail
    assert not state.path.exists()
    state.prepare()
    store = SqliteStore(state.make_database())
    running_ = looked_at(state.path)["sessions"]
    await store.aclose()
    before = set(state.path.iterdir())
    looks = looked_at(state.path)
    assert looks["sessions"].detail == running_.detail
    assert f"0 are in {state.database}" in looks["sessions"].detail
    assert looks["state space"].status in ("ok", "warn")
    assert set(state.path.iterdir()) == before


@pytest.mark.parametrize("spoil", [damaged, foreign, newer])
def test_the_check_fails_where_the_start_would(spoil: Spoil, state: StateDir) -> None:
    spoil(state.database)
    assert looked_at(state.path)["sessions"].status == "fail"


def test_the_check_says_who_has_it(state: StateDir) -> None:
    with holder(state.path) as process:
        found = looked_at(state.path)["state lock"]
    assert found.status == "warn"
    assert f"process {process.pid}" in found.detail
    assert "state lock" not in looked_at(state.path)


def test_nothing_is_looked_for_where_nothing_is_kept() -> None:
    (found,) = check.state(load({"store": "memory"}))
    assert found.status == "ok"
