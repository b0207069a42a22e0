"""Where the CLI keeps its transcripts and its login: one place for all, or one for each owner."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

ConfigDir: TypeAlias = str | os.PathLike[str] | Callable[[str], str | os.PathLike[str]] | None
"""A directory for all, what gives each owner's, or None for the one of this user."""


def of(given: ConfigDir, owner: str) -> str | None:
    """Return the absolute path of an owner's directory; None where the CLI is to choose."""
    if given is None:
        return None
    return os.path.abspath(given(owner) if callable(given) else given)


def used(env: Mapping[str, str]) -> str:
    """Return the directory that a process with this environment uses."""
    home = env.get("HOME") or os.path.expanduser("~")
    return env.get("CLAUDE_CONFIG_DIR") or os.path.join(home, ".claude")


def projects(config: str) -> str:
    """Return where below a configuration directory the transcripts are, as the CLI spells it."""
    return os.path.join(unicodedata.normalize("NFC", config), "projects")


def make(path: str) -> None:
    """Make a directory, and what is missing above it, for this user alone.

    One that is there stays as it is.

    Raises:
        OSError: It cannot be made, or is none.
    """
    missing: list[Path] = []
    folder = Path(path)
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        # Another session of the owner's may be making it as well.
        one.mkdir(mode=0o700, exist_ok=True)
