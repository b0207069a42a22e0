"""What lies below a directory, also while somebody works there."""

from __future__ import annotations

import os
from pathlib import Path


def below(folder: Path, pattern: str = "*") -> list[Path]:
    """Return the files and directories below one whose paths end like a pattern, sorted.

    `Path.rglob` fails where a directory vanishes between being listed and being looked into, as
    Claude Code's locks do.

    Args:
        folder: Itself is not among them.
        pattern: As of `Path.match`.
    """
    return sorted(
        path
        for at, folders, files in os.walk(folder)
        for name in (*folders, *files)
        if (path := Path(at, name)).match(pattern)
    )


def holding(folder: Path, words: bytes) -> list[Path]:
    """Return the files below a directory that hold some words, sorted, without links to files."""
    files = [path for path in below(folder) if path.is_file() and not path.is_symlink()]
    return [path for path in files if words in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # it vanished meanwhile
        return b""
