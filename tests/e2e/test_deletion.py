"""What a DELETE leaves of a session, with the real CLI: nothing that anybody said or wrote."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import OFFLINE, running_server
from tests.e2e.sse import Client

SAID, WROTE, REMEMBERED = "canary-of-prompt", "canary-of-file", "canary-of-memory"
CANARIES = [word.encode() for word in (SAID, WROTE, REMEMBERED)]


def found(folder: Path, texts: list[bytes]) -> Iterator[tuple[Path, bytes]]:
    """Yield files below a folder that hold one of some texts, or have it in their names."""
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder)).encode()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        yield from ((path, text) for text in texts if text in content or text in name)


def write() -> str:
    call = {"file_path": "note.txt", "content": WROTE}
    return f"[[tool Write {json.dumps(call)}]] [[say {SAID}]]"


def talk(client: Client, folder: Path) -> str:
    """Have a conversation of everything that leaves something somewhere; return its path."""
    started = client.post(
        "/session/start",
        initial_prompt=f"Remember {SAID}.",
        allowed_tools=["Write", "Edit", "Agent", "Bash"],
        permission_mode="acceptEdits",
    )
    path = f"/session/{started['session_id']}"
    workspaces = folder / "state/offline/workspaces"
    before = set(workspaces.glob("*/note.txt"))
    assert SAID in client.ask(path, write())
    # It is not always called by the session's id: a process that stood ready brings its own.
    (note,) = set(workspaces.glob("*/note.txt")) - before
    assert WROTE in note.read_text()
    call = {"description": "d", "prompt": f"Say {SAID}.", "subagent_type": "general-purpose"}
    client.ask(path, f"[[tool Agent {json.dumps(call)}]] [[say {SAID}]]")
    call = {"command": f"echo {SAID}", "description": SAID}
    client.ask(path, f"[[tool Bash {json.dumps(call)}]] [[say {SAID}]]")
    (project,) = (folder / "state/offline/claude/projects").glob(f"*{note.parent.name}")
    memory = project / "memory"
    memory.mkdir(exist_ok=True)
    (memory / "about.md").write_text(REMEMBERED)
    return path


@pytest.mark.e2e
@pytest.mark.parametrize("hibernated", [False, True])
def test_nothing_of_a_session_stays(tmp_path: Path, hibernated: bool) -> None:
    with running_server(tmp_path, *OFFLINE) as server, server.client() as client:
        path = talk(client, server.folder)
        kept = talk(client, server.folder).rpartition("/")[2].encode()
        texts = [path.rpartition("/")[2].encode()]
        session = client.get(f"{path}/inspect")
        if hibernated:
            client.post(f"{path}/hibernate")
        state = server.folder
        assert {text for _, text in found(state, CANARIES)} == set(CANARIES)
        texts.append(session["agent_session_id"].encode())
        client.delete(path)
        # The other conversation said the same, so what is looked for is whose it was.
        # The server's own log names sessions, and the database may where nothing is any more.
        assert {one.name for one, _ in found(state, texts)} <= {"stderr", "sessions.db"}
        client.delete(f"/session/{kept.decode()}")
        # SQLite may leave pieces of what was erased in the unused room of its pages; no row has it.
        assert not [one for one, _ in found(state, CANARIES) if one.name != "sessions.db"]
        (database,) = state.rglob("sessions.db")
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as readable:
            rows = "\n".join(readable.iterdump()).encode()
        assert not [
            text for text in (*CANARIES, *texts) if text in rows or text.hex().encode() in rows
        ]
