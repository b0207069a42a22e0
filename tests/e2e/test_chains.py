"""Transcripts as crashes and full disks leave them: the CLI comes to all of it when it goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from session_supervisor.stores.sqlite import SqliteStore
from tests.e2e.test_claude_agent import World, talking
from tests.e2e.test_transcripts import conversation_of, files, lines

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


def prompt(said: list[Any], word: str) -> int:
    """Return where a prompt is."""
    return next(n for n, one in enumerate(said) if one["type"] == "user" and word in str(one))


def with_a_hole(said: list[Any]) -> list[Any]:
    """A prompt that failed could not be written; those before it are an hour old."""
    hole = prompt(said, "nougat")
    for one in said[:hole]:
        if "timestamp" in one:
            then = datetime.fromisoformat(one["timestamp"]) - timedelta(hours=1)
            one["timestamp"] = then.isoformat()
    return [*said[:hole], *said[hole + 1 :]]


def with_an_old_checkpoint(said: list[Any]) -> list[Any]:
    """A process was killed on a branch of its own, and the next could write no checkpoint."""
    second = prompt(said, "nougat")
    before = [one for one in said[:second] if one["type"] == "attachment"][-1]
    error = {
        **before,
        "type": "system",
        "subtype": "api_error",
        "uuid": "11111111-1111-4111-8111-111111111111",
        "parentUuid": before["uuid"],
    }
    del error["attachment"]
    checkpoint = {"type": "last-prompt", "leafUuid": error["uuid"], "sessionId": error["sessionId"]}
    later = [one for one in said[second:] if one["type"] != "last-prompt"]
    return [*said[:second], error, checkpoint, *later]


def undamaged(said: list[Any]) -> list[Any]:
    return said


@pytest.mark.parametrize(
    ("damaged", "due"),
    [
        (with_a_hole, ["marzipan", "praline"]),
        (with_an_old_checkpoint, ["marzipan", "nougat", "praline"]),
        (undamaged, ["marzipan", "nougat", "praline"]),
    ],
)
async def test_what_was_said_before_and_since_is_known(
    world: World, store: SqliteStore, damaged: Callable[[list[Any]], list[Any]], due: list[str]
) -> None:
    async with talking(world.agent(), world.fingerprint()) as talk:
        for word in ("marzipan", "nougat", "praline"):
            await talk.ask(f"Remember {word}.")
        conversation = conversation_of(talk)
    (path,) = (path for path in files(world) if path.suffix == ".jsonl")
    path.write_text("".join(json.dumps(one) + "\n" for one in damaged(lines(path))))
    agent = world.agent(transcripts=store.transcripts)
    async with talking(agent, world.fingerprint(), resume=conversation) as talk:
        said = "".join((await talk.ask("What did I say?")).blocks)
    assert re.findall(r"Remember (\w+)\.", said) == due
