"""What of a session's directory a fork begins with, on a real file system."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from session_supervisor import Session, Supervisor, SupervisorConfig
from session_supervisor.agents.scripted import ScriptedAgent
from session_supervisor.copying import DEEPEST, Stopped, TooMuch, copy_tree
from session_supervisor.errors import InvalidSpec, NoWorkspace

MANY = 1 << 30


def copied(
    source: Path,
    target: Path,
    *,
    max_bytes: int = MANY,
    max_files: int = MANY,
    stopped: Callable[[], bool] = lambda: False,
) -> Path:
    target.mkdir()
    copy_tree(source, target, max_bytes=max_bytes, max_files=max_files, stopped=stopped)
    return target


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    (made / "deep" / "deeper").mkdir(parents=True)
    (made / "a.txt").write_text("a")
    (made / "deep" / "deeper" / "b.bin").write_bytes(bytes(range(256)) * 9_000)
    return made


def test_files_are_copied_with_their_times_and_permissions(source: Path, tmp_path: Path) -> None:
    script = source / "deep" / "run"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o4750)
    os.utime(script, ns=(1, 2_000_000_001))
    os.utime(source / "deep", ns=(1, 3_000_000_001))
    target = copied(source, tmp_path / "target")
    assert (target / "a.txt").read_text() == "a"
    assert (target / "deep" / "deeper" / "b.bin").read_bytes() == bytes(range(256)) * 9_000
    found = (target / "deep" / "run").stat()
    assert stat.S_IMODE(found.st_mode) == 0o750, "whoever runs it, runs it as itself"
    assert found.st_mtime_ns == 2_000_000_001
    assert (target / "deep").stat().st_mtime_ns == 3_000_000_001


def test_what_is_written_to_a_copy_the_original_does_not_have(source: Path, tmp_path: Path) -> None:
    os.link(source / "a.txt", source / "same.txt")
    target = copied(source, tmp_path / "target")
    (target / "a.txt").write_text("changed")
    assert (source / "a.txt").read_text() == "a"
    assert (target / "same.txt").read_text() == "a"


def test_links_stay_links_and_are_not_followed(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    (source / "out").symlink_to(secret)
    (source / "key").symlink_to(secret / "key")
    (source / "nowhere").symlink_to("no-such-file")
    (source / "round").symlink_to(".")
    target = copied(source, tmp_path / "target")
    for name in ("out", "key", "nowhere", "round"):
        assert (target / name).is_symlink()
        assert os.readlink(target / name) == os.readlink(source / name)
    found = [
        Path(folder, name).read_bytes()
        for folder, _, names in os.walk(target)
        for name in names
        if not Path(folder, name).is_symlink()
    ]
    assert b"secret" not in found


def test_what_is_no_file_is_left_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(source / "pipe")
    monkeypatch.chdir(source)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        target = copied(source, tmp_path / "target")
    assert sorted(os.listdir(target)) == ["a.txt", "deep"]


def test_there_is_a_bound_on_all_of_it(source: Path, tmp_path: Path) -> None:
    with pytest.raises(TooMuch, match="MiB"):
        copied(source, tmp_path / "few-bytes", max_bytes=256 * 9_000)
    with pytest.raises(TooMuch, match="files"):
        copied(source, tmp_path / "few-files", max_files=3)
    copied(source, tmp_path / "enough", max_bytes=256 * 9_000 + 1, max_files=4)
    deepest = source
    for _ in range(DEEPEST):
        deepest = deepest / "d"
        deepest.mkdir()
    with pytest.raises(TooMuch, match="directories"):
        copied(source, tmp_path / "too-deep")


def test_a_file_that_is_long_but_empty_counts_as_long(source: Path, tmp_path: Path) -> None:
    with (source / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TooMuch, match="MiB"):
        copied(source, tmp_path / "target", max_bytes=64 << 20)


def test_it_can_be_stopped(source: Path, tmp_path: Path) -> None:
    looked = iter([False] * 3 + [True])
    with pytest.raises(Stopped):
        copied(source, tmp_path / "target", stopped=lambda: next(looked))


def test_what_is_exchanged_meanwhile_leads_nowhere(source: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "b.bin").write_text("secret")
    exchanged = threading.Event()

    def stopped() -> bool:
        # Somebody puts a link where a directory was, after that was looked at.
        if (tmp_path / "target" / "deep").exists() and not exchanged.is_set():
            exchanged.set()
            (source / "deep" / "deeper").rename(tmp_path / "away")
            (source / "deep" / "deeper").symlink_to(secret)
        return False

    with pytest.raises(OSError):  # noqa: PT011  (which one is the system's business)
        copied(source, tmp_path / "target", stopped=stopped)
    assert exchanged.is_set()
    assert not (tmp_path / "target" / "deep" / "deeper" / "b.bin").exists()


# -- as a fork has it --------------------------------------------------------------------------


async def at_rest(supervisor: Supervisor) -> Session:
    session = await supervisor.start()
    await (await session.query("a")).result()
    assert session.workspace is not None
    (session.workspace / "note").write_text("mine")
    return session


@pytest.mark.anyio
async def test_a_fork_begins_with_the_files_if_that_is_wanted(tmp_path: Path) -> None:
    config = SupervisorConfig(workspace=tmp_path)
    async with Supervisor(ScriptedAgent(), config=config) as supervisor:
        session = await at_rest(supervisor)
        without = await supervisor.fork(session.session_id)
        with_them = await supervisor.fork(session.session_id, copy_workspace=True)
        assert without.workspace is not None
        assert with_them.workspace is not None
        assert not list(without.workspace.iterdir())
        assert (with_them.workspace / "note").read_text() == "mine"


@pytest.mark.anyio
async def test_files_that_cannot_be_copied_leave_nothing(tmp_path: Path) -> None:
    config = SupervisorConfig(workspace=tmp_path, max_copy_bytes=3)
    async with Supervisor(ScriptedAgent(), config=config) as supervisor:
        session = await at_rest(supervisor)
        assert session.workspace is not None
        with pytest.raises(InvalidSpec, match="copy_workspace"):
            await supervisor.fork(session.session_id, copy_workspace=True)
        (session.workspace / "note").unlink()
        await supervisor.fork(session.session_id, copy_workspace=True)
        assert len(os.listdir(tmp_path)) == 2
        assert supervisor.usage(session.owner).sessions == 2


@pytest.mark.anyio
async def test_whoever_gives_up_a_long_copy_is_not_kept_waiting(tmp_path: Path) -> None:
    config = SupervisorConfig(workspace=tmp_path, max_copy_bytes=1 << 50)
    async with Supervisor(ScriptedAgent(), config=config) as supervisor:
        session = await at_rest(supervisor)
        assert session.workspace is not None
        with (session.workspace / "long").open("wb") as file:
            file.truncate(1 << 42)
        forking = asyncio.ensure_future(supervisor.fork(session.session_id, copy_workspace=True))
        while len(os.listdir(tmp_path)) == 1:  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0.001)
        forking.cancel()
        async with asyncio.timeout(60.0):
            await asyncio.wait({forking})
        assert forking.cancelled()
        assert os.listdir(tmp_path) == [session.session_id]
        await (await session.query("b")).result()


@pytest.mark.anyio
async def test_a_directory_that_cannot_be_read_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SupervisorConfig(workspace=tmp_path)
    async with Supervisor(ScriptedAgent(), config=config) as supervisor:
        session = await at_rest(supervisor)
        assert session.workspace is not None
        (session.workspace / "link").symlink_to("note")

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "readlink", refuse)
        with pytest.raises(NoWorkspace, match="Permission denied"):
            await supervisor.fork(session.session_id, copy_workspace=True)
        monkeypatch.undo()
        assert os.listdir(tmp_path) == [session.session_id]
