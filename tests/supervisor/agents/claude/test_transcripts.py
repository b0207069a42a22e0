"""Where transcripts are written back to, and that it is nowhere else."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from unittest.mock import patch

import pytest
from claude_agent_sdk import project_key_for_directory

from session_supervisor.agents.claude.transcripts import Conversation

ID = "12345678-1234-4234-8234-123456789abc"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "config" / "projects" / project_key_for_directory(tmp_path)


@pytest.fixture
def conversation(tmp_path: Path) -> Conversation:
    return Conversation(str(tmp_path / "config"), cwd=str(tmp_path), agent_session_id=ID)


def everything(tmp_path: Path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())


def test_it_is_written_for_this_user_alone(folder: Path, conversation: Conversation) -> None:
    assert not conversation.is_here()
    assert conversation.files() == []
    conversation.write(
        [{"type": "user", "text": "\u00e4\ud800"}],
        {"subagents/agent-1": [{"type": "agent_metadata", "n": 1}, {"type": "x"}]},
    )
    assert conversation.is_here()
    main = folder / f"{ID}.jsonl"
    assert json.loads(main.read_bytes()) == {"type": "user", "text": "\u00e4\ud800"}
    below = folder / ID / "subagents"
    assert json.loads((below / "agent-1.jsonl").read_bytes()) == {"type": "x"}
    assert json.loads((below / "agent-1.meta.json").read_bytes()) == {"n": 1}
    assert conversation.files() == [str(main), str(below / "agent-1.jsonl")]
    for path in (main, *below.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "subpath", ["../x", "a/../../x", "/x", "", "a//x", ".x", "a/.", "a\\x", "a\0x", "C:x"]
)
def test_no_subpath_leads_elsewhere(
    tmp_path: Path, folder: Path, conversation: Conversation, subpath: str
) -> None:
    conversation.write([{"type": "user"}], {subpath: [{"type": "x"}]})
    main = folder / f"{ID}.jsonl"
    assert everything(tmp_path) == [str(main.relative_to(tmp_path))]


@pytest.mark.parametrize("name", ["../../x", "x", "", "*", f"{ID}/x"])
def test_what_is_no_id_names_no_file(tmp_path: Path, folder: Path, name: str) -> None:
    other = Conversation(str(tmp_path / "config"), cwd=str(tmp_path), agent_session_id=name)
    folder.mkdir(parents=True)
    (folder / "x.jsonl").touch()
    (tmp_path / "config" / "todos").mkdir()
    (tmp_path / "config" / "todos" / "x-agent.json").touch()
    before = everything(tmp_path)
    assert not other.is_here()
    assert not other.can_be_here
    other.erase()
    assert everything(tmp_path) == before


def test_a_write_that_fails_leaves_nothing_that_the_cli_would_take(
    tmp_path: Path, conversation: Conversation
) -> None:
    full = patch.object(os, "fsync", side_effect=OSError("disk full"))
    with full, pytest.raises(OSError, match="disk full"):
        conversation.write([{"type": "user"}], {})
    assert everything(tmp_path) == []
    assert not conversation.is_here()


def test_all_of_it_is_erased_and_nothing_of_others(tmp_path: Path, folder: Path) -> None:
    config = tmp_path / "config"
    ids = [ID, ID.replace("1", "2")]
    for one in ids:
        Conversation(str(config), cwd=str(tmp_path), agent_session_id=one).write(
            [{"type": "user"}], {"subagents/agent-1": [{"type": "x"}]}
        )
        for kept in (
            f"file-history/{one}/a@v1",
            f"session-env/{one}/hook",
            f"tasks/{one}/1.json",
            f"debug/{one}.txt",
            f"todos/{one}-agent-{one}.json",
        ):
            (config / kept).parent.mkdir(parents=True, exist_ok=True)
            (config / kept).touch()
    before = everything(tmp_path)
    first, second = (
        Conversation(str(config), cwd=str(tmp_path), agent_session_id=one) for one in ids
    )
    first.erase()
    assert everything(tmp_path) == [path for path in before if ids[1] in path]
    second.erase()
    second.erase()
    assert everything(tmp_path) == []
    assert not folder.exists()


def test_erasing_many_leaves_no_pattern_of_each_in_memory(tmp_path: Path) -> None:
    (tmp_path / "todos").mkdir()

    def erase(number: int) -> None:
        name = f"{ID[:-4]}{number:04}"
        (tmp_path / "todos" / f"{name}-agent-{name}.json").touch()
        Conversation(str(tmp_path), cwd="/nowhere", agent_session_id=name).erase()

    erase(0)
    with patch.object(re, "compile", side_effect=AssertionError("a pattern of its own")):
        erase(1)
    assert everything(tmp_path) == []


def test_what_a_full_disk_kept_out_is_mended_from_the_copy(
    folder: Path, conversation: Conversation
) -> None:
    copied = [{"type": "user", "uuid": "a"}, {"type": "mode"}, {"type": "user", "uuid": "b"}]
    conversation.write(copied, {})
    assert not conversation.mend(copied)
    assert not conversation.mend(copied[:1])
    main = folder / f"{ID}.jsonl"
    # A line was broken off, what came then stands behind it, and one more was not copied.
    main.write_text(
        '{"type": "user", "uuid": "a"}\n{"type": "mo{"type": "user", "uuid": "b"}\n'
        '{"type": "user", "uuid": "c"}\n'
    )
    assert conversation.mend(copied)
    assert conversation.read() == [*copied, {"type": "user", "uuid": "c"}]
    assert not conversation.mend(copied)


def test_a_file_is_mended_in_the_order_of_both(folder: Path, conversation: Conversation) -> None:
    """What comes last is what the CLI goes on from."""
    a, b, c, d = ({"type": "user", "uuid": one} for one in "abcd")
    mode = {"type": "mode"}
    conversation.write([a, mode, c, d], {})
    assert conversation.mend([a, mode, b, c])
    assert conversation.read() == [a, mode, b, c, d]


def test_what_cannot_be_read_of_a_file_is_left_out(
    folder: Path, conversation: Conversation
) -> None:
    folder.mkdir(parents=True)
    (folder / f"{ID}.jsonl").write_bytes(
        b'{"type": "a"}\n\n{"type": "\xc3\n[1]\n{"type": "b"}\n{"type"'
    )
    assert conversation.read() == [{"type": "a"}, {"type": "b"}]
