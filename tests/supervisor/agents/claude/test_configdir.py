"""Where the CLI keeps its files: one place for all, or one for each owner."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from session_supervisor.agents.claude import configdir


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_it_is_the_cli_s_own_choice_one_for_all_or_one_for_each(tmp_path: Path) -> None:
    assert configdir.of(None, "ada") is None
    assert configdir.of(tmp_path, "ada") == configdir.of(str(tmp_path), "ben") == str(tmp_path)
    assert configdir.of(lambda owner: tmp_path / owner, "ada") == str(tmp_path / "ada")
    assert configdir.of("relative", "ada") == os.path.abspath("relative")


def test_all_that_is_made_is_this_user_s_alone_and_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o755)
    umask = os.umask(0)
    try:
        configdir.make(str(tmp_path / "state/owners/ada/claude"))
        configdir.make(str(tmp_path / "state/owners/ada/claude"))
    finally:
        os.umask(umask)
    assert mode(tmp_path / "state") == 0o755
    for made in ("owners", "owners/ada", "owners/ada/claude"):
        assert mode(tmp_path / "state" / made) == 0o700


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        configdir.make(str(tmp_path / "file"))
    with pytest.raises(OSError, match="file"):
        configdir.make(str(tmp_path / "file/claude"))
