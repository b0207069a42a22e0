"""Scratch directories go, and those that cannot go are not tried for ever."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from session_supervisor.agents.claude.scratch import Scratches, written

# ruff: noqa: ASYNC240

pytestmark = pytest.mark.anyio


async def test_one_is_this_user_s_alone_and_is_removed_with_what_is_in_it(tmp_path: Path) -> None:
    scratches = Scratches()
    scratch = scratches.make(str(tmp_path))
    for one in (Path(scratch), Path(scratch).parent):
        assert one.stat().st_mode & 0o777 == 0o700
    assert written("Text.", scratch, "name") == f"{scratch}/name"
    assert Path(scratch, "name").read_text() == "Text."
    assert written(None, scratch, "other") is None
    await scratches.remove(scratch)
    assert not list(tmp_path.iterdir())


async def test_all_lie_in_one_directory_that_holds_nothing_else(tmp_path: Path) -> None:
    scratches = Scratches()
    first, second = scratches.make(str(tmp_path)), scratches.make(str(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert sorted(map(str, folder.iterdir())) == sorted((first, second))
    await scratches.remove(first)
    third = scratches.make(str(tmp_path))
    assert Path(third).parent == folder
    await scratches.remove(second, third)
    assert not list(tmp_path.iterdir())
    await scratches.remove(scratches.make(str(tmp_path)))
    assert not list(tmp_path.iterdir())


async def test_one_that_stays_is_removed_along_with_the_next(tmp_path: Path) -> None:
    scratches = Scratches()
    first, second = scratches.make(str(tmp_path)), scratches.make(str(tmp_path))
    with patch.object(shutil, "rmtree"):
        scratches.remove_now(first)
    assert Path(first).exists()
    await scratches.remove(second)
    assert not list(tmp_path.iterdir())


async def test_one_that_never_goes_is_given_up_and_the_operator_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scratches = Scratches()
    stuck = scratches.make(str(tmp_path))
    with patch.object(shutil, "rmtree") as tries:
        await scratches.remove(stuck)
        for _ in range(20):
            await scratches.remove()
    assert tries.call_count == 5
    assert caplog.text.count(stuck) == 1


async def test_however_many_stay_each_removal_takes_but_some_of_them_along(tmp_path: Path) -> None:
    scratches = Scratches()
    with patch.object(shutil, "rmtree"):
        for _ in range(100):
            scratches.remove_now(scratches.make(str(tmp_path)))
    with patch.object(shutil, "rmtree", wraps=shutil.rmtree) as tries:
        await scratches.remove(scratches.make(str(tmp_path)))
        assert tries.call_count == 21
        for _ in range(4):
            await scratches.remove()
    assert not list(tmp_path.iterdir())
