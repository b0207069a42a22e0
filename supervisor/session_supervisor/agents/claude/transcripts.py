"""The transcripts that the CLI resumes conversations with: its own files, and a copy in a store.

The CLI looks for a conversation in a file below its configuration directory. Where that is gone,
with a container or a disk, it is written back from the store before the CLI starts. What the CLI
keeps of a conversation is erased here, too.

Everything here blocks: call it in a thread. Importing this module imports the SDK, which takes a
second: do it late.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from claude_agent_sdk import (
    SessionKey,
    SessionStore,
    SessionStoreEntry,
    fork_session_via_store,
    project_key_for_directory,
)

from session_supervisor.agents.claude import configdir, places
from session_supervisor.agents.claude.chains import parsed, whole
from session_supervisor.agents.claude.mirror import TranscriptKey

_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PART = re.compile(r"[\w-][\w.-]*", re.ASCII)

_METADATA = "agent_metadata"
"""The type of an entry that stands for a file beside a subagent's transcript."""

_ELSEWHERE = ("file-history/{}", "session-env/{}", "tasks/{}", "debug/{}.txt")
_TODOS = "todos"
"""What else the CLI keeps of a conversation, below its configuration directory; in the last, what
begins with the conversation's name."""


class Conversation:
    """What there is of one conversation in a configuration directory."""

    def __init__(self, config: str, *, cwd: str, agent_session_id: str) -> None:
        """Name it; nothing is looked at yet.

        Args:
            config: The configuration directory of the CLI.
            cwd: The directory that the conversation is held in.
            agent_session_id: Which it is.
        """
        self.key = TranscriptKey(
            project_key=project_key_for_directory(cwd), session_id=agent_session_id
        )
        self._config = Path(config)
        self._cwd = cwd
        self._folder = Path(configdir.projects(config), self.key["project_key"])
        # Else it could not be a file's name, and the CLI would not take it either.
        self._named = _ID.fullmatch(agent_session_id) is not None

    def is_here(self) -> bool:
        """Whether the CLI would find it."""
        return self._named and self._main.is_file()

    @property
    def can_be_here(self) -> bool:
        """Whether it has a name that the CLI would look for."""
        return self._named

    def read(self) -> list[Any]:
        """Return the lines of the conversation; none if it is not here.

        Raises:
            OSError: It cannot be read.
        """
        if not self.is_here():
            return []
        with self._main.open(encoding="utf-8", errors="replace") as file:
            return [entry for entry in map(parsed, file) if entry is not None]

    def mend(self, copied: Sequence[Any]) -> bool:
        """Write it anew if the CLI would not come to all of it when it goes on.

        Args:
            copied: The lines of the copy.

        Returns:
            Whether that was so.

        Raises:
            OSError: It cannot be read or written.
        """
        here = self.read()
        lines = whole(copied, here)
        if lines == here:
            return False
        _write(self._main, lines)
        return True

    def write(self, entries: Sequence[Any], subagents: Mapping[str, Sequence[Any]]) -> None:
        """Write it, where the CLI finds it only once it is complete.

        Args:
            entries: The lines of the conversation, as they were copied.
            subagents: Those of its subagents' transcripts, by subpath.

        Raises:
            OSError: It cannot be written.
        """
        for subpath, lines in subagents.items():
            if not all(_PART.fullmatch(part) for part in subpath.split("/")):
                continue  # no subagent's, and perhaps not even below the conversation's directory
            path = self._folder / self.key["session_id"] / f"{subpath}.jsonl"
            _write(path, [line for line in lines if not _is_metadata(line)])
            for line in [line for line in lines if _is_metadata(line)][-1:]:
                rest = {name: value for name, value in line.items() if name != "type"}
                _write(path.with_suffix(".meta.json"), [rest])
        _write(self._main, whole(entries))

    def erase(self) -> None:
        """Erase all that the CLI keeps of it.

        What it remembers of the directory, for all conversations that are held there, goes along
        with the last one if the directory is gone as well.

        Raises:
            OSError: Something cannot be erased.
        """
        if not self._named:
            return
        name = self.key["session_id"]
        self._main.unlink(missing_ok=True)
        _remove(self._folder / name)
        for place in _ELSEWHERE:
            _remove(self._config / place.format(name))
        # Its name is in no pattern: Python keeps hundreds of those, each as a program of its own.
        for path in (self._config / _TODOS).glob("*.json"):
            if path.name.startswith(f"{name}-"):
                _remove(path)
        if any(self._folder.glob("*.jsonl")):
            return
        if not os.path.isdir(self._cwd):
            shutil.rmtree(self._folder, ignore_errors=True)
            places.forget_gone(str(self._config), self._cwd)
        for empty in (self._folder / "memory", self._folder):
            with contextlib.suppress(OSError):
                empty.rmdir()

    def erase_memory(self) -> None:
        """Erase what the CLI remembers of the directory, for all conversations held there.

        Raises:
            OSError: Something cannot be erased.
        """
        memory = self._folder / "memory"
        for path in memory.iterdir() if memory.is_dir() else ():
            _remove(path)

    @property
    def path(self) -> str:
        """Where the CLI keeps it."""
        return str(self._main)

    def files(self) -> list[str]:
        """Return the paths of its transcripts, its subagents' included."""
        if not self.is_here():
            return []
        # Not `Path.rglob`, which fails where a directory vanishes meanwhile.
        walk = os.walk(self._folder / self.key["session_id"])
        found = (os.path.join(at, name) for at, _, names in walk for name in names)
        return [str(self._main), *sorted(path for path in found if path.endswith(".jsonl"))]

    @property
    def _main(self) -> Path:
        return self._folder / f"{self.key['session_id']}.jsonl"


async def forked(
    entries: Sequence[Any], key: TranscriptKey, *, cwd: str, anchor: str | None
) -> tuple[str, list[Any]]:
    """Return a new conversation that begins with what was said in another.

    Args:
        entries: The lines of that one; they stay as they are.
        key: Which it is.
        cwd: The directory that it was held in.
        anchor: Id of the last message to take over; None takes all.

    Returns:
        The id of the new one, and its lines.

    Raises:
        ValueError: There is no message, or not that one.
    """
    desk = _Desk(entries, key)
    made = await fork_session_via_store(
        cast("SessionStore", desk), key["session_id"], directory=cwd, up_to_message_id=anchor
    )
    return made.session_id, desk.written


class _Desk:
    """Where the SDK finds one transcript, and puts the other."""

    def __init__(self, entries: Sequence[Any], key: TranscriptKey) -> None:
        self._entries = entries
        self._key = key
        self.written: list[Any] = []

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        return list(self._entries) if key["session_id"] == self._key["session_id"] else None

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        self.written += entries


def _is_metadata(entry: Mapping[str, Any]) -> bool:
    return entry.get("type") == _METADATA


def _write(path: Path, entries: Sequence[Any]) -> None:
    """Write one JSON value a line, for this user alone; either the whole file is there or none."""
    if not entries:
        return
    configdir.make(str(path.parent))
    fd, draft = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with open(fd, "w", encoding="ascii") as file:
            for entry in entries:
                file.write(json.dumps(entry, separators=(",", ":")))
                file.write("\n")
            file.flush()
            os.fsync(fd)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
