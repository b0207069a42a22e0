"""What a session has made, for its owner: a list of it, and each file."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from session_http.call import Answer, Call
from session_http.downloads import Download
from session_http.files import NoSuchFile, listed, parts_of
from session_http.problems import refuse
from session_http.schemas import FilesParameters, FilesReply, NoParameters, SessionFile
from session_http.work import own_session
from session_supervisor import Session
from session_supervisor.errors import SessionClosed
from session_supervisor.lifecycle import State


async def list_files(call: Call, request: FilesParameters) -> Answer:
    """List what a session has made."""
    session = own_session(call)
    root = _private(session)
    try:
        below = parts_of(request.path.removesuffix("/")) if request.path else ()
        found = await anyio.to_thread.run_sync(
            lambda: listed(str(root), below, limit=request.limit)
        )
    except NoSuchFile as error:
        raise refuse("file_not_found", str(error)) from error
    return FilesReply(
        session_id=session.session_id,
        files=tuple(
            SessionFile(path=one.path, kind=one.kind, size=one.size, modified_at=one.modified_at)
            for one in found.found
        ),
        count=len(found.found),
        truncated=found.truncated,
    )


async def get_file(call: Call, _request: NoParameters) -> Answer:
    """Send a file that a session has made."""
    root = _private(own_session(call))
    try:
        parts = parts_of(call.path["path"])
    except NoSuchFile as error:
        raise refuse("file_not_found", str(error)) from error
    timeout_s = call.server.settings.streams.send_timeout_s
    return Download(root=str(root), parts=parts, send_timeout_s=timeout_s)


def _private(session: Session) -> Path:
    """Return the directory that is the session's alone.

    Raises:
        SessionClosed: It went with the session.
        ProblemError: The session has none.
    """
    if session.state in (State.CLOSING, State.CLOSED):
        raise SessionClosed(session.session_id)
    if session.workspace is None:
        raise refuse(
            "no_private_files",
            "The session works in a directory that its caller chose. What it makes is there, and "
            "is not given out here.",
        )
    return session.workspace
