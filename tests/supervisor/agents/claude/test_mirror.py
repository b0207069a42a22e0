"""The copy of a transcript: in order, always a beginning of the original, and caught up with."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import InMemorySessionStore
from pydantic import JsonValue

from session_supervisor.agents.claude import mirror as mirror_module
from session_supervisor.agents.claude.mirror import Mirror, TranscriptKey, key_of
from session_supervisor.spec import JsonObject

pytestmark = pytest.mark.anyio

KEY = TranscriptKey(project_key="-work", session_id="c")
HANGS_S = 60.0
"""Seconds after which something will not happen any more, however busy the machine is."""


class Store:
    """The SDK's own store in memory, which may fail or stall."""

    def __init__(self) -> None:
        self.inner = InMemorySessionStore()
        self.failures = 0
        self.open = asyncio.Event()
        self.open.set()
        self.appends = 0

    async def append(self, key: Any, entries: list[Any]) -> None:
        self.appends += 1
        await self.open.wait()
        if self.failures:
            self.failures -= 1
            raise OSError("no")
        known = {one.get("uuid") for one in await self.load(key) or ()} - {None}
        await self.inner.append(key, [one for one in entries if one.get("uuid") not in known])

    async def load(self, key: Any) -> list[Any] | None:
        loaded: list[Any] | None = await self.inner.load(key)
        return loaded

    async def list_subkeys(self, key: Any) -> list[str]:
        return await self.inner.list_subkeys(key)

    async def delete(self, key: Any) -> None:
        await self.inner.delete(key)


@pytest.fixture
def store() -> Store:
    return Store()


class Original:
    """A transcript as the CLI keeps it, and what it prints of it."""

    def __init__(self, folder: Path) -> None:
        self.projects = str(folder)
        self.path = folder / "-work" / "c.jsonl"
        self.path.parent.mkdir()
        self.written: list[Any] = []

    def mirror(self, store: Store, conversation: str | None = None) -> Mirror:
        return Mirror(
            store, projects=self.projects, path_of=self._path_of, conversation=conversation
        )

    async def _path_of(self, conversation: str) -> str:
        return str(self.path.with_stem(conversation))

    def write(self, *names: str) -> JsonObject:
        entries: list[JsonObject] = [
            {"type": "user", "uuid": one} if one.islower() else {"type": one} for one in names
        ]
        self.written += entries
        with self.path.open("a") as file:
            for entry in ({"type": "api-request"}, *entries):
                file.write(json.dumps(entry) + "\n")
        printed: list[JsonValue] = [*entries]
        return {"type": "transcript_mirror", "filePath": str(self.path), "entries": printed}


@pytest.fixture
def original(tmp_path: Path) -> Original:
    return Original(tmp_path)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "_PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(mirror_module, "_CLOSE_S", 0.2)


async def test_lines_are_stored_in_order_and_waited_for(store: Store, original: Original) -> None:
    mirror = original.mirror(store)
    for n in range(100):
        mirror.accept(original.write(f"a{n}", f"B{n}"))
    assert await mirror.flush(HANGS_S)
    assert await store.load(KEY) == original.written
    assert store.appends < 5
    mirror.accept(original.write("last"))
    assert await mirror.aclose() == {"c"}
    assert await store.load(KEY) == original.written


async def test_a_store_that_fails_for_a_moment_is_asked_again(
    store: Store, original: Original, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = original.mirror(store)
    store.failures = 2
    mirror.accept(original.write("a"))
    assert await mirror.aclose() == {"c"}
    assert await store.load(KEY) == original.written
    assert not caplog.records


async def test_it_is_settled_once_all_is_stored_and_no_sooner(
    store: Store, original: Original
) -> None:
    mirror = original.mirror(store)

    def settled() -> bool:
        return mirror.is_settled

    assert settled()
    store.open.clear()
    mirror.accept(original.write("a"))
    assert not settled()
    assert not await mirror.flush(0.01)
    assert not settled()
    store.open.set()
    assert await mirror.flush(HANGS_S)
    assert settled()
    store.failures = 3
    mirror.accept(original.write("b"))
    assert await mirror.flush(HANGS_S)
    assert not settled(), "the store has refused it, and gets it later"
    assert await mirror.aclose() == {"c"}
    assert settled()
    mirror.lose()
    assert not settled()


async def test_who_begins_anew_is_asked_of_nothing_before(store: Store, original: Original) -> None:
    mirror = original.mirror(store)
    mirror.accept(original.write("a"))
    assert await mirror.flush(HANGS_S)
    mirror.begin_anew()
    original.path.unlink()
    assert await mirror.aclose() == frozenset()


async def test_what_the_store_refuses_is_kept_though_the_file_lacks_it(
    store: Store, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "_AGAIN_S", 0.01)
    mirror = original.mirror(store)
    store.failures = 7
    mirror.accept(original.write("a", "B"))
    original.path.write_text("")  # the disk is full
    assert await mirror.flush(HANGS_S, refused_s=HANGS_S)
    assert await store.load(KEY) == original.written
    assert await mirror.aclose() == frozenset(), "the file is not complete"


@pytest.mark.parametrize(
    "left", ["", '{"uuid": "a"}\n', '{"uuid": "a"}\n{"uu{"uuid": "b"}\n', None]
)
async def test_a_conversation_whose_file_lacks_lines_is_not_complete(
    store: Store, original: Original, left: str | None
) -> None:
    mirror = original.mirror(store)
    mirror.accept(original.write("a", "B", "b"))
    if left is None:
        original.path.unlink()
    else:
        original.path.write_text(left)
    assert await mirror.aclose() == frozenset()
    assert await store.load(KEY) == original.written


async def test_a_store_that_refuses_is_not_waited_for_without_end(
    store: Store, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "_AGAIN_S", 0.01)
    mirror = original.mirror(store)
    store.failures = 10**6
    mirror.accept(original.write("a"))
    async with asyncio.timeout(HANGS_S):
        await mirror.flush(HANGS_S, refused_s=0.1)
        assert await mirror.aclose() == frozenset()


async def test_what_could_not_be_stored_is_caught_up_with_and_leaves_no_hole(
    store: Store, original: Original
) -> None:
    mirror = original.mirror(store)
    mirror.accept(original.write("a"))
    await mirror.flush(HANGS_S)
    store.failures = 3
    mirror.accept(original.write("b", "X"))
    assert await mirror.flush(HANGS_S)
    assert await store.load(KEY) == original.written[:1]
    store.failures = 3
    mirror.accept(original.write("c"))
    await mirror.flush(HANGS_S)
    assert await store.load(KEY) == original.written[:1]
    mirror.accept(original.write("d"))
    await mirror.flush(HANGS_S)
    assert await store.load(KEY) == original.written
    assert await mirror.aclose() == {"c"}


async def test_a_store_that_stalls_is_not_waited_for_and_memory_is_bounded(
    store: Store, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "_MOST", 1000)
    monkeypatch.setattr(mirror_module, "_APPEND_S", HANGS_S)  # it stalls for as long as the test
    mirror = original.mirror(store)
    store.open.clear()
    for n in range(500):
        mirror.accept(original.write(f"a{n}"))
        await asyncio.sleep(0)
        assert len(mirror._pending) < 50  # pyright: ignore[reportPrivateUsage]
    assert not await mirror.flush(0.01)
    store.open.set()
    assert await mirror.flush(HANGS_S)
    assert await store.load(KEY) == original.written
    assert await mirror.aclose() == {"c"}


async def test_a_copy_that_is_not_complete_is_not_said_to_be(
    store: Store, original: Original
) -> None:
    stalled = original.mirror(store)
    store.open.clear()
    stalled.accept(original.write("a"))
    async with asyncio.timeout(HANGS_S):
        assert await stalled.aclose() == frozenset()
    store.open.set()
    lost = original.mirror(store, conversation="c")
    lost.lose()
    assert await lost.aclose() == frozenset()
    assert await original.mirror(store, conversation="c").aclose() == {"c"}


async def test_what_was_written_before_is_caught_up_with_once(
    store: Store, original: Original
) -> None:
    original.write("a", "B", "c", "D", "E")
    await store.append(KEY, original.written[:4])
    for _ in range(2):
        mirror = original.mirror(store)
        mirror.catch_up([str(original.path)])
        assert await store.load(KEY) != [] or not store.appends
        assert await mirror.aclose() == {"c"}
        assert await store.load(KEY) == original.written


async def test_a_line_that_is_still_being_written_comes_later(
    store: Store, original: Original
) -> None:
    frame = original.write("a")
    with original.path.open("a") as file:
        file.write('{"type": "us')
    mirror = original.mirror(store)
    mirror.catch_up([str(original.path)])
    mirror.accept(frame)
    assert await mirror.aclose() == {"c"}
    assert await store.load(KEY) == original.written


async def test_a_line_that_was_never_written_to_its_end_hides_none_behind_it(
    store: Store, original: Original
) -> None:
    original.write("a")
    with original.path.open("ab") as file:
        file.write(b'{"type": "us\xc3\n[1]\n')
    original.write("b")
    mirror = original.mirror(store)
    mirror.catch_up([str(original.path)])
    assert await mirror.aclose() == {"c"}
    assert await store.load(KEY) == original.written


def talk(mirror: Mirror) -> None:
    """Have something said of which nothing is written."""
    mirror.handed("p", "Hello")
    frame: JsonObject = {"type": "assistant", "message": {"model": "m", "content": "Hi"}}
    mirror.hear({**frame, "uuid": "q", "user_message_uuids": ["p"]})


def owing(mirror: Mirror) -> bool:
    """Whether it owes something; a type checker does not know that this changes."""
    return mirror.owes


async def stored(store: Store) -> list[str]:
    return [one.get("uuid", one["type"]) for one in await store.load(KEY) or ()]


async def test_what_was_said_and_not_written_is_in_the_copy(
    store: Store, original: Original, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = original.mirror(store)
    mirror.accept(original.write("a"))
    talk(mirror)
    await mirror.make_up("c", completed=True)
    await mirror.flush(HANGS_S)
    assert not owing(mirror)
    mirror.accept(original.write("b"))
    await mirror.flush(HANGS_S)
    assert await stored(store) == ["a", "p", "q", "b"]
    assert "has not written 2 lines" in caplog.text
    assert await mirror.aclose() == frozenset(), "the file is not complete"
    await mirror.make_up("c", completed=True)
    assert not owing(mirror)


async def test_what_is_written_is_not_made_up(
    store: Store, original: Original, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = original.mirror(store)
    talk(mirror)
    frame = original.write("p", "q")
    frame["entries"] = [{**one, "parentUuid": None} for one in original.written]
    mirror.accept(frame)
    await mirror.make_up("c", completed=True)
    assert await mirror.aclose() == {"c"}
    assert await stored(store) == ["p", "q"]
    assert not caplog.records


async def test_of_a_turn_that_did_not_complete_nothing_is_made_up(
    store: Store, original: Original
) -> None:
    mirror = original.mirror(store)
    talk(mirror)
    await mirror.make_up("c", completed=False)
    await mirror.make_up("c", completed=True)
    await mirror.aclose()
    assert await stored(store) == []


async def test_what_is_made_up_is_stored_behind_what_it_follows_on(
    store: Store, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "_AGAIN_S", 0.01)
    mirror = original.mirror(store)
    store.failures = 5  # and so does what comes next: each is tried three times
    mirror.accept(original.write("a"))
    talk(mirror)
    await mirror.make_up("c", completed=True)
    assert owing(mirror)
    assert await mirror.flush(HANGS_S, refused_s=HANGS_S)
    assert not owing(mirror)
    assert await stored(store) == ["a", "p", "q"]


async def test_what_is_made_up_is_kept_while_it_is_not_known_to_be_stored(
    store: Store, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "_APPEND_S", 0.05)
    mirror = original.mirror(store)
    mirror.accept(original.write("a"))
    await mirror.flush(HANGS_S)
    store.open.clear()
    talk(mirror)
    await mirror.make_up("c", completed=True)
    await mirror.flush(HANGS_S)
    assert owing(mirror), "the store did not answer"
    store.open.set()
    mirror.accept(original.write("b"))
    await mirror.flush(HANGS_S)
    assert not owing(mirror)
    assert sorted(await stored(store)) == ["a", "b", "p", "q"]
    assert await mirror.aclose() == frozenset()


async def test_a_store_that_refuses_what_is_made_up_is_not_waited_for_without_end(
    store: Store, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "_AGAIN_S", 0.01)
    mirror = original.mirror(store)
    store.failures = 10**6
    talk(mirror)
    await mirror.make_up("c", completed=True)
    async with asyncio.timeout(HANGS_S):
        await mirror.flush(HANGS_S, refused_s=0.1)
        assert owing(mirror)
        assert await mirror.aclose() == frozenset()


async def test_what_is_no_transcript_is_not_stored(
    store: Store, original: Original, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = original.mirror(store)
    frame = original.write("a")
    wrong: list[JsonObject] = [
        {"filePath": "/elsewhere/c.jsonl"},
        {"filePath": None},
        {"entries": []},
        {"entries": "x"},
    ]
    for one in wrong:
        mirror.accept({**frame, **one})
    assert await mirror.aclose() == frozenset()
    assert store.appends == 0
    assert "none was expected" in caplog.text


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("-a/c.jsonl", {"project_key": "-a", "session_id": "c"}),
        (
            "-a/c/subagents/agent-1.jsonl",
            {"project_key": "-a", "session_id": "c", "subpath": "subagents/agent-1"},
        ),
        (
            "-a/c/subagents/more/agent-1.jsonl",
            {"project_key": "-a", "session_id": "c", "subpath": "subagents/more/agent-1"},
        ),
        ("c.jsonl", None),
        ("../-a/c.jsonl", None),
        ("-a/c/agent.jsonl", None),
        ("-a/c.json", None),
    ],
)
def test_a_path_says_which_transcript_it_is(path: str, key: TranscriptKey | None) -> None:
    assert key_of(f"/config/projects/{path}", "/config/projects") == key
