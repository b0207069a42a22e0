"""Conversations go on from the store where the CLI's own files are gone, and end where erased."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from session_supervisor.agents.port import Initialized
from session_supervisor.errors import AgentStartFailed, ResumeNotFound, StoreError
from session_supervisor.stores.sqlite import SqliteStore
from session_supervisor.stores.sqlite.transcripts import SqliteTranscripts, TranscriptKey
from tests.e2e.test_claude_agent import Talk, World, bash, talking
from tests.support.trees import below

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

SUBAGENT = '[[tool Agent {"description":"d","prompt":"Say pistachio.","subagent_type":"%s"}]]'


def conversation_of(talk: Talk) -> str:
    return next(one.agent_session_id for one in talk.heard if isinstance(one, Initialized))


def lose(world: World) -> None:
    shutil.rmtree(world.folder / "config")


def files(world: World) -> list[Path]:
    return [path for path in below(world.folder / "config") if path.is_file()]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_a_conversation_goes_on_where_its_files_are_gone(
    world: World, store: SqliteStore
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint("Agent", "Bash")) as talk:
        await talk.ask("Remember marzipan.")
        await talk.ask(SUBAGENT % "general-purpose" + "[[say done]]")
        conversation = conversation_of(talk)
    before = {path: lines(path) for path in files(world) if path.suffix == ".jsonl"}
    assert len(before) == 2
    lose(world)
    other = world.agent(transcripts=store.transcripts)  # as after a restart
    async with talking(other, world.fingerprint("Agent", "Bash"), resume=conversation) as talk:
        for path, expected in before.items():
            copied = [one for one in expected if not one["type"].startswith("api-request")]
            assert lines(path)[: len(copied)] == copied
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
        (metadata,) = below(world.folder / "config", "*.meta.json")
        assert json.loads(metadata.read_text())["agentType"] == "general-purpose"
        turn = await talk.ask("What was it?")
        assert "marzipan" in turn.blocks[0]
        assert conversation_of(talk) == conversation
    assert not below(world.folder / "config", "*.tmp")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the store take its time."""
    append = SqliteTranscripts.append

    async def later(self: SqliteTranscripts, key: Any, entries: Sequence[Any]) -> None:
        await asyncio.sleep(0.3)
        await append(self, key, entries)

    monkeypatch.setattr(SqliteTranscripts, "append", later)


@pytest.mark.usefixtures("slow")
async def test_what_a_process_said_is_stored_when_it_has_stopped(
    world: World, store: SqliteStore
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
    (path,) = (path for path in files(world) if path.suffix == ".jsonl")
    key = TranscriptKey(project_key=path.parent.name, session_id=path.stem)
    written = [one for one in lines(path) if not one["type"].startswith("api-request")]
    assert await store.transcripts.load(key) == written
    assert written[-1]["type"] == "cost-state"


@pytest.mark.usefixtures("slow")
async def test_what_a_turn_said_is_stored_when_its_end_is_told(
    world: World, store: SqliteStore
) -> None:
    """A copy that was made at that moment is enough, as after the loss of the machine."""
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        shutil.copy(world.folder / "sessions.db", world.folder / "copy.db")
        shutil.copy(world.folder / "sessions.db-wal", world.folder / "copy.db-wal")
        conversation = conversation_of(talk)
    lose(world)
    copy = SqliteStore(world.folder / "copy.db")
    try:
        other = world.agent(transcripts=copy.transcripts)
        async with talking(other, world.fingerprint(), resume=conversation) as talk:
            assert "marzipan" in (await talk.ask("What was it?")).blocks[0]
    finally:
        await copy.aclose()


async def test_a_conversation_of_before_there_was_a_store_is_caught_up_with(
    world: World, store: SqliteStore
) -> None:
    async with talking(world.agent(), world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        conversation = conversation_of(talk)
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint(), resume=conversation) as talk:
        await talk.ask("Remember nougat.")
    lose(world)
    async with talking(agent, world.fingerprint(), resume=conversation) as talk:
        said = (await talk.ask("What was it?")).blocks[0]
        assert "marzipan" in said
        assert "nougat" in said


async def test_a_long_directory_has_the_name_that_the_cli_gives_it(
    world: World, store: SqliteStore
) -> None:
    cwd = world.folder.joinpath(*["x" * 100] * 3)
    cwd.mkdir(parents=True)
    agent = world.agent(transcripts=store.transcripts)
    fingerprint = world.fingerprint()
    fingerprint = type(fingerprint)(owner="local", cwd=str(cwd))
    async with talking(agent, fingerprint) as talk:
        await talk.ask("Remember marzipan.")
        conversation = conversation_of(talk)
    lose(world)
    async with talking(agent, fingerprint, resume=conversation) as talk:
        assert "marzipan" in (await talk.ask("What was it?")).blocks[0]


async def test_a_conversation_that_is_nowhere_is_not_found(
    world: World, store: SqliteStore
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    with pytest.raises(ResumeNotFound):
        await agent.spawn(world.fingerprint(), resume="00000000-0000-4000-8000-000000000000")
    with pytest.raises(AgentStartFailed):  # the CLI does not take such a name
        await agent.spawn(world.fingerprint(), resume="../../escape")


async def test_a_store_that_fails_does_not_make_the_session_begin_anew(
    world: World, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        conversation = conversation_of(talk)
    lose(world)

    async def fail(*_: object) -> None:
        raise StoreError("no")

    with monkeypatch.context() as broken:
        broken.setattr(SqliteTranscripts, "load", fail)
        with pytest.raises(AgentStartFailed, match="later"):
            await agent.spawn(world.fingerprint(), resume=conversation)
    async with talking(agent, world.fingerprint(), resume=conversation) as talk:
        assert "marzipan" in (await talk.ask("What was it?")).blocks[0]


@pytest.mark.parametrize("where", ["load", "mend"])
async def test_a_conversation_is_not_gone_on_with_before_its_file_is_whole(
    world: World, store: SqliteStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What was said then would leave aside for good what the file lacks."""
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        conversation = conversation_of(talk)
    (path,) = (path for path in files(world) if path.suffix == ".jsonl")
    path.write_text("")
    other = world.agent(transcripts=store.transcripts)
    with monkeypatch.context() as full:
        if where == "load":
            full.setattr(SqliteTranscripts, "load", AsyncMock(side_effect=StoreError("no")))
        else:
            full.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "no")))
        with pytest.raises(AgentStartFailed, match="later"):
            await other.spawn(world.fingerprint(), resume=conversation)
        with pytest.raises(AgentStartFailed, match="later"):
            await other.fork(world.fingerprint(), conversation, into=world.fingerprint())
    async with talking(other, world.fingerprint(), resume=conversation) as talk:
        assert "marzipan" in (await talk.ask("What was it?")).blocks[0]


async def test_a_copy_that_is_damaged_keeps_nobody_from_going_on_with_the_file(
    world: World, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        conversation = conversation_of(talk)
    other = world.agent(transcripts=store.transcripts)
    monkeypatch.setattr(SqliteTranscripts, "load", AsyncMock(side_effect=ValueError("no")))
    async with talking(other, world.fingerprint(), resume=conversation) as talk:
        assert "marzipan" in (await talk.ask("What was it?")).blocks[0]


async def test_a_store_that_stalls_delays_a_turn_a_little_and_loses_nothing(
    world: World, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = asyncio.Event()
    append = SqliteTranscripts.append

    async def stall(self: SqliteTranscripts, key: Any, entries: Sequence[Any]) -> None:
        await goes_on.wait()
        await append(self, key, entries)

    monkeypatch.setattr(SqliteTranscripts, "append", stall)
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        async with asyncio.timeout(60):
            await talk.ask("Remember marzipan.")
        await talk.process.probe()
        goes_on.set()
        conversation = conversation_of(talk)
    lose(world)
    async with talking(agent, world.fingerprint(), resume=conversation) as talk:
        assert "marzipan" in (await talk.ask("What was it?")).blocks[0]


async def test_a_conversation_that_is_forgotten_leaves_nothing(
    world: World, store: SqliteStore
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    fingerprint = world.fingerprint("Agent", "Bash", "Write", "Edit")
    async with talking(agent, fingerprint) as other:
        await other.ask("Remember nougat.")
        async with talking(agent, fingerprint) as talk:
            await talk.ask("Remember marzipan.")
            path = json.dumps({"file_path": str(world.cwd / "a.txt"), "content": "marzipan"})
            await talk.ask(f"[[tool Write {path}]] [[say done]]")
            await talk.ask(SUBAGENT % "general-purpose" + "[[say marzipan]]")
            await talk.ask(bash("echo marzipan"))
            conversation = conversation_of(talk)
        await agent.forget(fingerprint, conversation)
        await agent.forget(fingerprint, conversation)
        for file in files(world):
            assert conversation not in str(file)
            assert b"marzipan" not in file.read_bytes()
        (key,) = os.listdir(world.folder / "config" / "projects")
        assert (
            await store.transcripts.load({"project_key": key, "session_id": conversation}) is None
        )
        kept = await store.transcripts.list_sessions(key)
        assert [one["session_id"] for one in kept] == [conversation_of(other)]
        assert "nougat" in (await other.ask("What was it?")).blocks[0]
    with pytest.raises(ResumeNotFound):
        await agent.spawn(fingerprint, resume=conversation)
    (memory,) = below(world.folder / "config", "memory")
    memory.joinpath("about.md").write_text("The user likes nougat.")
    await agent.forget(fingerprint, conversation_of(other))
    assert memory.joinpath("about.md").exists()
    world.cwd.joinpath("a.txt").unlink()
    world.cwd.rmdir()
    await agent.forget(fingerprint, conversation_of(other))
    assert not os.listdir(world.folder / "config" / "projects")
