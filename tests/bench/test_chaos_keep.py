"""What `bench.chaos` keeps of sessions about which a promise was not kept."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bench.chaos_keep import Keeper

from tests.bench.chaos_run import OldRun

ID = "12345678-1234-4234-8234-123456789abc"
PROJECT = Path("owners", "ann", "claude", "projects", f"-workspaces-{ID}")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with two sessions."""
    state = tmp_path / "state"
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as database:
        for table in ("sessions", "turns"):
            database.execute(f"CREATE TABLE {table} (session_id TEXT, record BLOB)")
            rows = [(ID, b'{"n": 1}'), ("other", b'{"n": 2}')]
            database.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
        database.execute("CREATE TABLE transcripts (project_key TEXT, session_id TEXT, entry BLOB)")
        copied = [(PROJECT.name, "c", b'{"uuid": "a"}'), ("-workspaces-x", "d", b"{}")]
        database.executemany("INSERT INTO transcripts VALUES (?, ?, ?)", copied)
        database.commit()
    for project in (PROJECT, PROJECT.with_name("-workspaces-x")):
        (state / project).mkdir(parents=True)
        (state / project / "c.jsonl").write_text(f'{{"project": "{project.name}"}}\n')
    (tmp_path / "server.log").write_text(f'{{"session_id": "{ID}"}}\n{{"session_id": "other"}}\n')
    return state


@pytest.fixture
def keeper(tmp_path: Path, state: Path) -> Keeper:
    return Keeper(
        tmp_path / "kept",
        state=state,
        database=tmp_path / "sessions.db",
        log=tmp_path / "server.log",
    )


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_all_that_there_is_of_the_session_is_kept(tmp_path: Path, keeper: Keeper) -> None:
    run = OldRun()
    run.conversation.session_id = ID
    run.record.inject("disk: full")
    run.record.inject("Claude Code: kill -9", ID)
    run.record.inject("Claude Code: kill -9", "another")
    run.record.violate("contexts are whole", f"{run.conversation.path}: it does not know")
    keeper.keep(run.record, [run.conversation])
    kept = tmp_path / "kept" / ID
    assert [one["promise"] for one in read(kept / "violations.json")] == ["contexts are whole"]
    assert [one["word"] for one in read(kept / "told.json")] == ["w1", "w2"]
    assert [(one["kind"], one["whom"]) for one in read(kept / "faults.json")] == [
        ("disk: full", "everybody"),
        ("Claude Code: kill -9", "it"),
    ]
    for table in ("sessions", "turns"):
        assert read(kept / f"{table}.json") == [{"session_id": ID, "record": {"n": 1}}]
    assert [one["entry"] for one in read(kept / "transcripts.json")] == [{"uuid": "a"}]
    assert read(kept / "c.jsonl") == {"project": PROJECT.name}
    assert (kept / "server.log").read_text() == f'{{"session_id": "{ID}"}}\n'


def test_of_sessions_about_which_nothing_is_said_nothing_is_kept(
    tmp_path: Path, keeper: Keeper
) -> None:
    run = OldRun()
    run.conversation.session_id = ID
    run.record.violate("no task leaks", "faults over: 12, at first 7")
    keeper.keep(run.record, [run.conversation])
    assert not (tmp_path / "kept").exists()
