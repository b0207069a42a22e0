"""A copy of what the CLI writes to its transcripts, as it writes it, in a store.

The CLI prints each line that it has written, along with the file's path. The lines go to the store
in their order, in a task of their own, so that a slow store delays nobody who reads the CLI. At a
turn's end they are waited for, for a while: what was announced should be there after a crash.

The copy is a beginning of the original, and of what was said; what the CLI could not write is made
up here (`unwritten`). What the store refuses is kept and offered again, for a full disk may have
kept it from the CLI's own file as well. Where it is not known whether the store has something,
nothing after it is stored, until the rest has been caught up with from that file.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NotRequired, Protocol, TypedDict

from pydantic import JsonValue

from session_supervisor.agents.claude.chains import is_of_chain, parsed, uuid_of
from session_supervisor.agents.claude.unwritten import Said, made_up
from session_supervisor.spec import JsonObject

_log = logging.getLogger(__name__)

_MOST = 8 * 2**20
"""Characters that may wait for the store; what is more is caught up with later."""

_PAUSES_S = (0.1, 0.4)
"""Seconds before trying to store something again."""

_AGAIN_S = 0.5
"""Seconds after which what the store refused is offered again, while somebody waits for it."""

_APPEND_S = 20.0
"""Seconds that the store has for one attempt."""

_CLOSE_S = 3.0
"""Seconds that the end of a process waits for the store."""

_ONLY_LOCAL = "api-request"
"""What the types of those lines begin with that the CLI writes, but does not print."""


class TranscriptKey(TypedDict):
    """Which transcript, as the SDK's `SessionKey` says it.

    Attributes:
        project_key: The directory that the conversation is held in, in the CLI's spelling.
        session_id: The conversation's id, the CLI's own.
        subpath: Which of its subagents' transcripts; absent for the main one.
    """

    project_key: str
    session_id: str
    subpath: NotRequired[str]


class Transcripts(Protocol):
    """What is used of a store of transcripts: any `SessionStore` of the SDK's is one."""

    async def append(self, key: Any, entries: list[Any]) -> None:
        """Add lines to a transcript; one whose `uuid` is there already is not added again."""
        ...

    async def load(self, key: Any) -> list[Any] | None:
        """Return the lines of a transcript in order, None for one that there is not."""
        ...

    async def list_subkeys(self, key: Any) -> list[str]:
        """Return which subagents' transcripts a conversation has."""
        ...

    async def delete(self, key: Any) -> None:
        """Forget a transcript, and with a main one those of its subagents."""
        ...


class Mirror:
    """Copies the transcripts that one process writes."""

    def __init__(
        self,
        store: Transcripts,
        *,
        projects: str,
        path_of: Callable[[str], Awaitable[str]],
        conversation: str | None = None,
    ) -> None:
        """Begin with nothing to copy.

        Args:
            store: Where the copy is.
            projects: Path of the directory that the CLI's transcripts are in.
            path_of: Says where that of a conversation is, by its id.
            conversation: Id of the one that the process goes on with.
        """
        self._store = store
        self._projects = projects
        self._path_of = path_of
        self._pending: list[tuple[str, list[Any]]] = []
        self._size = 0
        self._torn: dict[str, None] = {}
        self._asked = False
        self._task: asyncio.Task[None] | None = None
        self._lost = False
        self._conversations = set[str]() if conversation is None else {conversation}
        self._printed = dict[str, set[str]]()
        """Of each file, the ids of the lines that the CLI said that it had written."""
        self._said = Said()
        self._last: JsonObject = {}
        """The last of the conversation's lines that it said it had written."""
        self._made_up = dict[str, list[Any]]()
        """Of each file, the lines that it lacks and that are not stored yet."""

    def catch_up(self, paths: Iterable[str]) -> None:
        """Have what the store may lack of files copied before anything else is."""
        self._torn.update(dict.fromkeys(paths))

    def accept(self, frame: JsonObject) -> None:
        """Take what the CLI has printed for it."""
        path, entries = frame.get("filePath"), frame.get("entries")
        if not isinstance(path, str) or not isinstance(entries, list) or not entries:
            return
        self._size += len(json.dumps(entries))
        lines: list[Any] = entries
        self._pending.append((path, lines))
        self._printed.setdefault(path, set()).update(filter(None, map(uuid_of, lines)))
        for line in filter(is_of_chain, lines):
            self._said.written(line["uuid"])
            self._last = line
        if self._size > _MOST:
            self._torn.update(dict.fromkeys(path for path, _ in self._pending))
            self._forget_pending()
        self._begin()

    def handed(self, prompt_id: str, message: JsonValue) -> None:
        """Note a prompt that the CLI is to write."""
        self._said.handed(prompt_id, message)

    def hear(self, frame: JsonObject) -> None:
        """Note what else the CLI prints: what it says, it is to write as well."""
        self._said.hear(frame)

    async def make_up(self, conversation: str, *, completed: bool) -> None:
        """Copy, at a turn's end, what of it the CLI should have written and has not.

        Args:
            conversation: Id of the one that the turn is of.
            completed: Whether it completed; of others, lines may be missing.
        """
        missing = self._said.over()
        if missing and completed:
            path = await self._path_of(conversation)
            _log.warning("Claude Code has not written %s lines of %s", len(missing), path)
            lines = made_up(
                missing, conversation=conversation, like=self._last, at=datetime.now(UTC)
            )
            self._printed.setdefault(path, set()).update(one.uuid for one in missing)
            self._made_up.setdefault(path, []).extend(lines)
            self._begin()

    @property
    def owes(self) -> bool:
        """Whether there is something that neither the CLI's file nor the store has."""
        return bool(self._made_up)

    async def flush(self, timeout_s: float, *, refused_s: float = 0.0) -> bool:
        """Wait until all is stored, or was refused; return whether that was within the time.

        Args:
            timeout_s: Seconds to wait for a store that takes its time.
            refused_s: Seconds to go on with one that refuses.
        """
        if self._task is None:
            return True
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.wait({self._task}, timeout=timeout_s)
        while self._task.done() and self._refused and loop.time() < start + refused_s:
            await asyncio.sleep(_AGAIN_S)
            self._begin()
            await asyncio.wait({self._task}, timeout=max(0.0, start + refused_s - loop.time()))
        return self._task.done()

    @property
    def is_settled(self) -> bool:
        """Whether all that was accepted is stored, and that is known."""
        busy = self._task is not None and not self._task.done()
        return not (busy or self._refused or self._torn or self._lost)

    def begin_anew(self) -> None:
        """Forget what was copied: it was erased, and is asked for no more."""
        self._conversations.clear()
        self._printed.clear()
        self._said, self._last = Said(), {}

    def lose(self) -> None:
        """Note that not all that the CLI printed has been accepted."""
        self._lost = True

    async def aclose(self) -> frozenset[str]:
        """Store what is left, for a while; return the conversations that are here completely.

        Which is: in the store, and in the CLI's own files. A full disk may have kept lines out of
        these, of which the CLI says nothing.
        """
        if (self._torn or self._refused) and (self._task is None or self._task.done()):
            self._begin()  # the store may have come to itself since
        done = await self.flush(_CLOSE_S)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._lost or self._torn or self._refused or not done:
            return frozenset()
        for path, printed in self._printed.items():
            if self._key(path) is not None and not await asyncio.to_thread(_has, path, printed):
                return frozenset()
        return frozenset(self._conversations)

    @property
    def _refused(self) -> bool:
        """Whether there is something that the store did not take."""
        return bool(self._pending or self._made_up)

    def _begin(self) -> None:
        self._asked = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._copy(), name="claude transcript")

    def _forget_pending(self) -> list[tuple[str, list[Any]]]:
        pending, self._pending, self._size = self._pending, [], 0
        return pending

    async def _copy(self) -> None:
        while self._asked:
            self._asked = False
            for path in tuple(self._torn):
                if await self._caught_up(path):
                    self._torn.pop(path, None)
            together: dict[str, list[Any]] = {}
            for path, entries in self._forget_pending():
                together.setdefault(path, []).extend(entries)
            for path, entries in together.items():
                if path not in self._torn and not await self._append(path, entries):
                    self._pending.insert(0, (path, entries))
                    self._size += len(json.dumps(entries))
            for path, entries in tuple(self._made_up.items()):
                # Not before what they follow on: in the copy as well they have their order.
                if path in self._torn or any(path == one for one, _ in self._pending):
                    continue
                if await self._append(path, entries) and path not in self._torn:
                    del self._made_up[path]

    async def _append(self, path: str, entries: list[Any]) -> bool:
        """Store what was printed; return False if the store has refused it."""
        key = self._key(path)
        if key is None:
            return True
        for pause_s in (*_PAUSES_S, None):
            try:
                async with asyncio.timeout(_APPEND_S):
                    await self._store.append(key, entries)
            except TimeoutError:
                self._torn[path] = None  # it may yet arrive there
                return True
            except Exception:
                if pause_s is None:
                    _log.warning("A transcript cannot be stored", exc_info=True)
                else:
                    await asyncio.sleep(pause_s)
            else:
                return True
        return False

    async def _caught_up(self, path: str) -> bool:
        key = self._key(path)
        if key is None:
            return True
        try:
            async with asyncio.timeout(_APPEND_S):
                stored = await self._store.load(key) or []
                missing = await asyncio.to_thread(_missing, path, stored)
                if missing:
                    await self._store.append(key, missing)
        except Exception:
            _log.warning("A transcript's rest cannot be stored", exc_info=True)
            return False
        return True

    def _key(self, path: str) -> TranscriptKey | None:
        key = key_of(path, self._projects)
        if key is None:
            _log.warning("Claude Code keeps a transcript where none was expected: %s", path)
        else:
            self._conversations.add(key["session_id"])
        return key


def key_of(path: str, projects: str) -> TranscriptKey | None:
    """Return which transcript a file is, None if it is none.

    Args:
        path: The file's.
        projects: The directory that all of them are in.
    """
    parts = os.path.relpath(path, projects).split(os.sep)
    last, ending = os.path.splitext(parts[-1])
    if ending != ".jsonl" or ".." in parts:
        return None
    match parts:
        case [project, _]:
            return TranscriptKey(project_key=project, session_id=last)
        case [project, conversation, *folders, _] if folders:
            return TranscriptKey(
                project_key=project, session_id=conversation, subpath="/".join([*folders, last])
            )
        case _:
            return None


def _missing(path: str, stored: list[Any]) -> list[Any]:
    """Return the lines of a file that come after those that are stored."""
    known = {uuid for one in stored if (uuid := uuid_of(one)) is not None}
    lines: list[Any] = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for entry in filter(None, map(parsed, file)):
            if uuid_of(entry) in known:
                lines.clear()
            elif not str(entry.get("type")).startswith(_ONLY_LOCAL):
                lines.append(entry)
    # Of those without an id, some may be there already, behind the last one that has one.
    last = max((n for n, one in enumerate(stored) if uuid_of(one) is not None), default=-1)
    rest = stored[last + 1 :]
    return [entry for entry in lines if entry not in rest]


def _has(path: str, uuids: set[str]) -> bool:
    """Whether a file has a whole line of each id."""
    missing = set(uuids)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for entry in filter(None, map(parsed, file)):
                missing.discard(uuid_of(entry) or "")
                if not missing:
                    break
    except OSError:
        return False
    return not missing
