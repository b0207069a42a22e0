"""What the CLI notes of private directories does not outlive them, and what it notes else does."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest

from session_supervisor.agents.claude import places
from session_supervisor.agents.claude.places import forget_gone
from session_supervisor.agents.claude.transcripts import Conversation


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / ".claude"
    folder.mkdir()
    return folder


def note(file: Path, *noted: Path | str) -> dict[str, Any]:
    """Have the CLI's file note directories, as it does."""
    state = {"userID": "käthe", "projects": {str(one): {"lastCost": 0.5} for one in noted}, "n": 1}
    file.write_text(json.dumps(state, indent=2, ensure_ascii=False), encoding="utf-8")
    file.chmod(0o600)
    return state


def places_in(file: Path) -> list[str]:
    return [*json.loads(file.read_text(encoding="utf-8"))["projects"]]


def test_a_conversation_that_is_erased_takes_the_note_of_its_directory_along(
    tmp_path: Path, config: Path
) -> None:
    there, gone, before = (tmp_path / f"process-{uuid4()}" for _ in range(3))
    there.mkdir()
    file = config / ".claude.json"
    state = note(file, there, gone, before, "/srv/ann/gone", tmp_path / "gone")
    Conversation(str(config), cwd=str(gone), agent_session_id=str(uuid4())).erase()
    assert places_in(file) == [str(there), "/srv/ann/gone", str(tmp_path / "gone")]
    left = json.loads(file.read_text(encoding="utf-8"))
    assert {**left, "projects": {}} == {**state, "projects": {}}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(config) == [file.name]


def test_the_file_beside_the_directory_is_the_one_where_none_was_given(
    tmp_path: Path, config: Path
) -> None:
    gone = tmp_path / str(uuid4())
    note(tmp_path / ".claude.json", gone)
    forget_gone(str(config), str(gone))
    assert places_in(tmp_path / ".claude.json") == []


def test_a_directory_that_a_caller_chose_stays_noted(tmp_path: Path, config: Path) -> None:
    file = config / ".claude.json"
    note(file, tmp_path / "mine", tmp_path / str(uuid4()))
    before = file.read_bytes()
    forget_gone(str(config), str(tmp_path / "mine"))
    assert file.read_bytes() == before


def test_what_the_cli_has_locked_is_left_to_the_next(tmp_path: Path, config: Path) -> None:
    gone, next_one = tmp_path / str(uuid4()), tmp_path / str(uuid4())
    file = config / ".claude.json"
    note(file, gone)
    lock = config / ".claude.json.lock"
    lock.mkdir()
    with patch.object(places, "_LOCK_PAUSE_S", 0.0):
        forget_gone(str(config), str(gone))
    assert places_in(file) == [str(gone)]
    assert lock.is_dir(), "it is the CLI's"
    lock.rmdir()
    forget_gone(str(config), str(next_one))
    assert places_in(file) == []


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"projects": []}', None])
def test_a_file_that_is_not_as_expected_is_left_alone(
    tmp_path: Path, config: Path, content: bytes | None
) -> None:
    file = config / ".claude.json"
    if content is not None:
        file.write_bytes(content)
    forget_gone(str(config), str(tmp_path / str(uuid4())))
    assert (file.read_bytes() if file.exists() else None) == content


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, config: Path) -> None:
    gone = tmp_path / str(uuid4())
    file = config / ".claude.json"
    note(file, gone)
    before = file.read_bytes()
    with patch.object(os, "replace", side_effect=OSError("disk full")):
        forget_gone(str(config), str(gone))
    assert file.read_bytes() == before
    assert os.listdir(config) == [file.name]
