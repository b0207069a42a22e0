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
PROJECTS = Path("owners", "ann", "claude", "projects")


@pytest.fixture(params=[ID, "process-12345678"])
def place(request: pytest.FixtureRequest) -> str:
    """The directory that the session works in: its own, or that of its first process."""
    return str(request.param)


@pytest.fixture
def project(place: str) -> Path:
    """Where Claude Code keeps its transcripts."""
    return PROJECTS / f"-workspaces-{place}"


@pytest.fixture
def state(tmp_path: Path, place: str, project: Path) -> Path:
    """A state directory with two sessions."""
    state = tmp_path / "state"
    with closing(sqlite3.connect(tmp_path / "sessions.db")) as database:
        for table in ("sessions", "turns"):
            database.execute(f"CREATE TABLE {table} (session_id TEXT, record BLOB)")
            rows = [(ID, json.dumps({"cwd": f"/workspaces/{place}"}).encode()), ("other", b"{}")]
            database.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
        database.execute("CREATE TABLE transcripts (project_key TEXT, session_id TEXT, entry BLOB)")
        copied = [(project.name, "c", b'{"uuid": "a"}'), ("-workspaces-x", "d", b"{}")]
        database.executemany("INSERT INTO transcripts VALUES (?, ?, ?)", copied)
        database.commit()
    for one in (project, PROJECTS / "-workspaces-x"):
        (state / one).mkdir(parents=True)
        (state / one / "c.jsonl").write_text(f'{{"project": "{one.name}"}}\n')
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


def test_all_that_there_is_of_the_session_is_kept(
    tmp_path: Path, keeper: Keeper, place: str, project: Path
) -> None:
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
        record = {"cwd": f"/workspaces/{place}"}
        assert read(kept / f"{table}.json") == [{"session_id": ID, "record": record}]
    assert [one["entry"] for one in read(kept / "transcripts.json")] == [{"uuid": "a"}]
    assert read(kept / "c.jsonl") == {"project": project.name}
    assert (kept / "server.log").read_text() == f'{{"session_id": "{ID}"}}\n'


def test_of_sessions_about_which_nothing_is_said_nothing_is_kept(
    tmp_path: Path, keeper: Keeper
) -> None:
    run = OldRun()
    run.conversation.session_id = ID
    run.record.violate("no task leaks", "faults over: 12, at first 7")
    keeper.keep(run.record, [run.conversation])
    assert not (tmp_path / "kept").exists()
