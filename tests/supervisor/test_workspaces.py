"""Directories that are one session's after another's, on the real file system."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from session_supervisor.workspaces import SPARE, PrivateDirectories

pytestmark = pytest.mark.anyio


@pytest.fixture
async def directories(tmp_path: Path) -> AsyncIterator[PrivateDirectories]:
    directories = PrivateDirectories(tmp_path / "root")
    yield directories
    await directories.aclose()


async def test_a_directory_is_known_from_another_one_at_its_place(
    directories: PrivateDirectories,
) -> None:
    directory = await directories.allot(f"{SPARE}1")
    before = directories.sign(directory)
    assert directories.sign(directory) == before
    moved = directory.with_name("moved")
    directory.rename(moved)
    directory.mkdir(mode=0o700)
    assert directories.sign(directory) != before
    directory.rmdir()
    directory.symlink_to(moved)
    with pytest.raises(OSError, match="not as it was"):
        directories.sign(directory)


@pytest.mark.parametrize("what", ["file", "mode"])
async def test_a_directory_that_was_used_is_not_as_it_was(
    directories: PrivateDirectories, what: str
) -> None:
    directory = await directories.allot(f"{SPARE}1")
    before = directories.sign(directory)
    if what == "mode":
        directory.chmod(0o755)
        assert directories.sign(directory) != before
    else:
        (directory / ".hidden").touch()
        with pytest.raises(OSError, match="not as it was"):
            directories.sign(directory)


async def test_what_is_in_a_directory_moves_as_it_is(directories: PrivateDirectories) -> None:
    one, other = await directories.allot(f"{SPARE}1"), await directories.allot(f"{SPARE}2")
    (one / "sub").mkdir()
    (one / "sub" / "file").write_text("text")
    (one / ".link").symlink_to("/nowhere")
    before = os.lstat(one)
    await directories.empty(one, other)
    assert os.listdir(one) == []
    assert os.lstat(one).st_ino == before.st_ino
    assert (other / "sub" / "file").read_text() == "text"
    assert os.readlink(other / ".link") == "/nowhere"


async def test_what_cannot_be_moved_stays_whole(directories: PrivateDirectories) -> None:
    one, other = await directories.allot(f"{SPARE}1"), await directories.allot(f"{SPARE}2")
    for name in "abc":
        (one / name).mkdir()
    (other / "b" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        await directories.empty(one, other)
    assert sorted(os.listdir(one)) == ["a", "b", "c"]


async def test_what_a_killed_server_left_for_processes_is_swept_and_nothing_else(
    tmp_path: Path,
) -> None:
    killed = PrivateDirectories(tmp_path / "root")
    known = await killed.allot(f"{SPARE}known")
    _ = await killed.allot(f"{SPARE}left")
    whose = await killed.allot(f"{SPARE}whose")
    (whose / "file").write_text("of a session that another store may know")
    other = await killed.allot("a-session-that-nobody-knows")
    await killed.aclose()
    directories = PrivateDirectories(tmp_path / "root")
    await directories.sweep([known])
    assert sorted(os.listdir(tmp_path / "root")) == sorted([known.name, whose.name, other.name])
    await directories.aclose()


async def test_what_another_server_has_is_not_swept(tmp_path: Path) -> None:
    one, other = PrivateDirectories(tmp_path / "root"), PrivateDirectories(tmp_path / "root")
    directory = await one.allot(f"{SPARE}1")
    for _ in range(2):
        await other.sweep([])
        assert directory.is_dir()
    await other.aclose()
    third = PrivateDirectories(tmp_path / "root")
    await third.sweep([])
    assert directory.is_dir()
    await one.aclose()
    await third.sweep([])
    assert not directory.exists()
    await third.aclose()


async def test_what_is_moved_leaves_nothing_behind(directories: PrivateDirectories) -> None:
    one, other = await directories.allot("1"), await directories.allot(f"{SPARE}2")
    (one / "sub").mkdir()
    (one / "sub" / "file").write_text("text")
    directories.move(one, other)
    assert not one.exists()
    assert (other / "sub" / "file").read_text() == "text"


async def test_what_is_not_empty_is_not_discarded(directories: PrivateDirectories) -> None:
    directory = await directories.allot(f"{SPARE}1")
    (directory / "file").touch()
    directories.discard(directory)
    assert (directory / "file").exists()
    (directory / "file").unlink()
    directories.discard(directory)
    assert not directory.exists()
