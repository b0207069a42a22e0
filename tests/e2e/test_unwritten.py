"""The CLI cannot write its transcript for a while: the conversation goes on whole all the same.

A full disk does that; here a directory lies where the file should be, which needs no rights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from session_supervisor.agents.claude import process as process_module
from session_supervisor.agents.port import TextDelta
from session_supervisor.errors import StoreError
from session_supervisor.stores.sqlite import SqliteStore
from session_supervisor.stores.sqlite.transcripts import SqliteTranscripts
from tests.e2e.test_claude_agent import Talk, World, bash, talking
from tests.e2e.test_transcripts import conversation_of

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

PROJECTS = Path("config", "projects")
WORDS = ["marzipan", "nougat", "fudge", "praline"]


@contextmanager
def unwritable(path: Path) -> Generator[None]:
    """Keep everybody from writing to a file, which need not be there yet."""
    aside = path.with_suffix(".aside")
    if path.exists():
        path.rename(aside)
    path.mkdir(parents=True)
    try:
        yield
    finally:
        path.rmdir()
        if aside.exists():
            aside.rename(path)


def transcript(world: World, talk: Talk) -> Path:
    (path,) = (world.folder / PROJECTS).rglob(f"{conversation_of(talk)}.jsonl")
    return path


def messages(path: Path) -> list[tuple[str, str]]:
    written = map(json.loads, filter(None, path.read_text().splitlines()))
    said = [one for one in written if one["type"] in ("user", "assistant")]
    return [(one["type"], str(one["message"])) for one in said]


async def recall(world: World, store: SqliteStore, conversation: str) -> str:
    """Return what a process of another server says that it was told."""
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint("Bash"), resume=conversation) as talk:
        return "".join((await talk.ask("What did I say?")).blocks)


def known(said: str) -> list[str]:
    """Return the words that were remembered, in the order in which they were told."""
    return re.findall(r"Remember (\w+)\.", said)


async def test_a_turn_of_which_nothing_was_written_is_in_the_conversation(
    world: World, store: SqliteStore
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        path = transcript(world, talk)
        with unwritable(path):
            await talk.ask("Remember nougat.")
            await talk.ask("Remember fudge.")
        assert "nougat" not in path.read_text()
        await talk.ask("Remember praline.")
        conversation = conversation_of(talk)
    assert known(await recall(world, store, conversation)) == WORDS
    # What was made up is in the file by now, and stays where it is.
    assert known(await recall(world, store, conversation)) == WORDS


async def test_a_conversation_whose_first_turn_was_not_written_is_found(
    world: World, store: SqliteStore
) -> None:
    projects = world.folder / PROJECTS
    projects.parent.mkdir()
    projects.touch()
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        projects.unlink()
        assert not list(projects.parent.rglob("*.jsonl"))
        conversation = conversation_of(talk)
    assert known(await recall(world, store, conversation)) == ["marzipan"]


async def test_a_prompt_that_was_not_written_comes_before_its_answer(
    world: World, store: SqliteStore
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        path = transcript(world, talk)
        with unwritable(path):
            slowly = "[[say At once.]] [[slow tokens=30 delay_ms=50]]"
            prompt = await talk.send(f"Remember nougat. {slowly}")
            heard = sum(isinstance(one, TextDelta) for one in talk.heard)
            await talk.heard_one(TextDelta, heard + 15)
        await talk.answer_to(prompt)
        assert [kind for kind, _ in messages(path)].count("user") == 1
        conversation = conversation_of(talk)
    assert known(await recall(world, store, conversation)) == ["marzipan", "nougat"]
    said = messages(path)
    assert [kind for kind, _ in said[:4]] == ["user", "assistant", "user", "assistant"]
    assert "nougat" in said[2][1]
    assert "At once." in said[3][1]


async def test_tools_and_their_results_are_made_up_together(
    world: World, store: SqliteStore
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint("Bash")) as talk:
        await talk.ask("Remember marzipan.")
        path = transcript(world, talk)
        with unwritable(path):
            await talk.ask("Remember nougat. " + bash("echo brittle"))
        conversation = conversation_of(talk)
    assert known(await recall(world, store, conversation)) == ["marzipan", "nougat"]
    (result,) = [said for _, said in messages(path) if "tool_result" in said]
    assert "brittle" in result
    # Else the model would be asked something that it does not take.
    requests = [one for one in world.model.requests if one.prompt == "What did I say?"]
    assert [one.fault for one in requests] == [None]


async def test_a_copy_of_the_conversation_has_what_was_not_written(
    world: World, store: SqliteStore
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        with unwritable(transcript(world, talk)):
            await talk.ask("Remember nougat.")
        await talk.ask("Remember praline.")
        conversation = conversation_of(talk)
    fingerprint = world.fingerprint()
    copy = await agent.fork(fingerprint, conversation, into=fingerprint)
    assert known(await recall(world, store, copy)) == ["marzipan", "nougat", "praline"]


async def test_what_neither_the_cli_nor_the_store_could_keep_is_not_said_to_be_done(
    world: World, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_REFUSED_S", 0.1)
    agent = world.agent(transcripts=store.transcripts)

    async def refuse(*_: object) -> None:
        raise StoreError("The disk is full.")

    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        conversation = conversation_of(talk)
        with unwritable(transcript(world, talk)), monkeypatch.context() as full:
            full.setattr(SqliteTranscripts, "append", refuse)
            await talk.send("Remember nougat.")
            await talk.until(lambda: talk.process.exit is not None)
    assert talk.process.exit is not None
    assert "neither could we" in talk.process.exit.cause
    assert [turn.ended is not None for turn in talk.turns] == [True, False]
    assert "marzipan" in known(await recall(world, store, conversation))


@pytest.mark.parametrize("answered", [False, True])
async def test_what_a_process_did_not_write_at_first_follows_on_what_was_before(
    world: World, store: SqliteStore, answered: bool
) -> None:
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint()) as talk:
        await talk.ask("Remember marzipan.")
        path = transcript(world, talk)
        conversation = conversation_of(talk)
    async with talking(agent, world.fingerprint(), resume=conversation) as talk:
        with unwritable(path):
            prompt = await talk.send("Remember nougat. [[slow tokens=30 delay_ms=50]]")
            await talk.heard_one(TextDelta, 15)
            if answered:
                await talk.answer_to(prompt)
        await talk.answer_to(prompt)
        await talk.ask("Remember praline.")
    assert known(await recall(world, store, conversation)) == ["marzipan", "nougat", "praline"]
