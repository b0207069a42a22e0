"""A process starts in the directory that was looked at, whatever becomes of its path meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from session_supervisor.agents.claude import workdir
from session_supervisor.agents.claude.workdir import held, is_resolved


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path.resolve()
    (top / "own").mkdir()
    (top / "other").mkdir()
    (top / "file").touch()
    (top / "link").symlink_to("own")
    (top / "up").symlink_to(".")
    return top


def where(inside: str) -> str:
    return subprocess.run(
        ["pwd", "-P"], cwd=inside, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_path_is_resolved_if_no_link_is_on_its_way(top: Path) -> None:
    assert is_resolved(str(top / "own"))
    assert is_resolved(f"{top}/own/")
    assert not is_resolved(str(top / "link"))
    assert not is_resolved(str(top / "up/own"))


def test_a_child_starts_in_it(top: Path) -> None:
    with held(str(top / "own")) as inside:
        assert where(inside) == str(top / "own")


@pytest.mark.skipif(sys.platform != "linux", reason="without /proc the path is all there is")
def test_a_link_that_takes_its_place_meanwhile_leads_nobody_astray(top: Path) -> None:
    with held(str(top / "own")) as inside:
        (top / "own").rename(top / "moved")
        (top / "own").symlink_to(top / "other")
        assert where(inside) == str(top / "moved")


@pytest.mark.parametrize("path", ["link", "up/own", "file", "nowhere", "own/../link", "file/x"])
def test_every_path_that_is_not_that_of_a_directory_is_refused_alike(top: Path, path: str) -> None:
    with pytest.raises(NotADirectoryError) as refusal, held(str(top / path)):
        pass
    assert refusal.value.strerror == workdir.MOVED


def test_one_that_was_removed_while_it_is_held_is_refused_by_the_system(top: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    with held(str(top / "own")) as inside:
        (top / "own").rmdir()
        with pytest.raises(OSError, match="No such file"):
            subprocess.run(["pwd", "-P"], cwd=f"{inside}/x", check=True)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == descriptors


def test_where_there_is_no_proc_the_path_is_looked_at(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with held(str(top / "own")) as inside:
        assert inside == str(top / "own")
    for path in ("link", "up/own", "file", "nowhere"):
        with pytest.raises(NotADirectoryError), held(str(top / path)):
            pass
