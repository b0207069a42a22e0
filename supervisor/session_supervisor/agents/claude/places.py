"""What the CLI keeps of directories in its own file of settings, and what becomes of that.

It notes each directory in which it resets a conversation, for good, and reads and writes the whole
file each time. A process that is used again has a directory of its own, of which nothing is left
once it is gone but that note: ten thousand of them are 13 MB, and every reset takes as long as that
takes to write.

Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

_log = logging.getLogger(__name__)

_NAME = ".claude.json"
_PLACES = "projects"

_OURS = re.compile(r"(process-)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Names of private directories. Others may come back, and people have said which they trust."""

_LOCK_TRIES = 10
_LOCK_PAUSE_S = 0.02
"""The CLI has its lock for a hundredth of a second."""


def forget_gone(config: str, cwd: str) -> None:
    """Erase what the CLI has noted of a private directory that is gone, and of such beside it.

    What cannot be erased now is when the next one goes.

    Args:
        config: The configuration directory of the CLI.
        cwd: The directory.
    """
    if _OURS.fullmatch(os.path.basename(cwd)) is None:
        return
    try:
        path = _file(config)
        if _gone(_read(path), beside=cwd):
            _forget(path, cwd)
    except FileNotFoundError:
        pass  # nothing was ever noted
    except (OSError, ValueError) as error:
        _log.debug("what Claude Code noted of directories stays for now: %s", error)


def _file(config: str) -> Path:
    within = Path(config, _NAME)
    # Where nobody has given it a directory, it has the file beside its own.
    return Path(os.path.realpath(within if within.exists() else Path(config).with_name(_NAME)))


def _read(path: Path) -> dict[str, Any]:
    state = json.loads(path.read_bytes())
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no object")  # it is not a caller's mistake
    return cast("dict[str, Any]", state)


def _gone(state: Mapping[str, Any], *, beside: str) -> list[str]:
    noted = state.get(_PLACES)
    places = cast("dict[str, Any]", noted) if isinstance(noted, dict) else {}
    folder = os.path.dirname(beside)
    return [
        place
        for place in places
        if os.path.dirname(place) == folder
        and _OURS.fullmatch(os.path.basename(place)) is not None
        and not os.path.lexists(place)
    ]


def _forget(path: Path, cwd: str) -> None:
    """Write the file anew, as the CLI does: with its lock, and in one step."""
    lock = f"{path}.lock"
    _take(lock)
    try:
        state = _read(path)
        for place in _gone(state, beside=cwd):
            del state[_PLACES][place]
        draft = f"{path}.tmp.{os.getpid()}.{time.monotonic_ns():x}"
        mode = stat.S_IMODE(path.stat().st_mode)
        try:
            with os.fdopen(
                os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb"
            ) as file:
                file.write(json.dumps(state, indent=2, ensure_ascii=False).encode())
                file.flush()
                os.fsync(file.fileno())  # it may be a person's own
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
    finally:
        os.rmdir(lock)


def _take(lock: str) -> None:
    """Take the CLI's lock, which is a directory.

    Raises:
        FileExistsError: Somebody else has it.
    """
    for _ in range(_LOCK_TRIES):
        with suppress(FileExistsError):
            os.mkdir(lock)
            return
        time.sleep(_LOCK_PAUSE_S)
    os.mkdir(lock)
