"""Where callers may have a session work: only below the directory that the operator named.

A refusal is the same whether a path leads out, to nothing, to a file or to what nobody may look
at, so that nobody learns from it what exists on this machine.
"""

from __future__ import annotations

import os

from session_supervisor.errors import InvalidSpec, NotAllowed

OWNER = "{owner}"
"""Stands in the operator's directory for the name of the session's owner."""

_REFUSED = (
    "there is no such directory below the one that the operator of this server has set aside for "
    "sessions."
)


def resolve_cwd(root: str | os.PathLike[str] | None, owner: str, given: str) -> str:
    """Return the absolute path of the directory that a caller asks for, links resolved.

    It looks at the file system, which may take long where that is remote: call it in a thread. What
    it returns was true then; whoever starts a process there looks again.

    Args:
        root: The operator's directory, which may have `{owner}` in it; None: callers choose none.
        owner: Whose session it is.
        given: What the caller gave: absolute, or relative to the operator's directory.

    Raises:
        NotAllowed: The operator allows none, or not this one.
        InvalidSpec: It cannot be a path.
    """
    if root is None:
        raise NotAllowed(
            "cwd",
            "the operator of this server has not allowed sessions to choose their directory: that "
            "needs the setting cwd_root. Leave it out to get a private one.",
        )
    try:
        os.fsencode(given)
    except UnicodeEncodeError:
        raise InvalidSpec("cwd", "it holds half a surrogate pair, which is no text.") from None
    if "\0" in given:
        raise InvalidSpec("cwd", "it holds a NUL character.")
    named = os.path.abspath(_of(root, owner))
    base = os.path.realpath(named)
    # Whatever lies outside is not even looked at, so that not the time tells of it either.
    wanted = os.path.normpath(os.path.join(named, given))
    if not (_is_in(wanted, named) or _is_in(wanted, base)):
        raise NotAllowed("cwd", _REFUSED)
    try:
        # Not of the tidied path: the kernel follows a link before it goes up from there.
        found = os.path.realpath(os.path.join(named, given), strict=True)
    except OSError:
        raise NotAllowed("cwd", _REFUSED) from None
    if not (_is_in(found, base) and os.path.isdir(found) and os.access(found, os.X_OK)):
        raise NotAllowed("cwd", _REFUSED)
    return found


def _of(root: str | os.PathLike[str], owner: str) -> str:
    path = os.fspath(root)
    if OWNER not in path:
        return path
    if owner in ("", ".", "..") or "/" in owner or "\0" in owner:
        raise NotAllowed("cwd", "this owner's name cannot be that of a directory.")
    return path.replace(OWNER, owner)


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
