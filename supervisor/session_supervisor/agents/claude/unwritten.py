"""What was said in a turn, and what of it the CLI did not get into its transcript.

Where a transcript cannot be written, because the disk is full, the CLI drops the lines that it has
just tried to write, goes on, and tells nobody until its end. The process knows what was said, the
next one will not. But we know it as well: prompts we have sent, answers and tools' results were
printed for us. From these the lines are made up that the transcript lacks.

They are stored in the copy, to which can only be added. Where one belongs is known from the order
in which things were said; it is put there when the CLI's file is mended (`chains`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import JsonValue

from session_supervisor.agents.claude.chains import BEFORE
from session_supervisor.agents.claude.translate import prompt_ids_of
from session_supervisor.spec import JsonObject

_TAKEN_OVER = ("cwd", "version", "gitBranch", "entrypoint", "userType")
"""What a line that was made up has in common with those around it."""

_SYNTHETIC = "<synthetic>"
"""The model of messages that the CLI makes itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """Something that was said, and not written.

    Attributes:
        uuid: Its id.
        line: What is known of its line: its id, its type, and the message.
        before: Id of what was written next in that turn; None: nothing was.
    """

    uuid: str
    line: JsonObject
    before: str | None


class Said:
    """What was said in the turn that one process is in."""

    def __init__(self) -> None:
        self._prompt: JsonObject | None = None
        self._turn: dict[str, JsonObject | None] = {}
        """By id, in order; None in place of what is written."""

    def handed(self, prompt_id: str, message: JsonValue) -> None:
        """Note a prompt; what was handed over before is written, or was never begun with."""
        self._prompt = {"type": "user", "message": message, "uuid": prompt_id}

    def hear(self, frame: JsonObject) -> None:
        """Note what the CLI prints of the conversation itself."""
        if frame.get("parent_tool_use_id") is not None:
            return
        if self._prompt is not None and self._prompt["uuid"] in prompt_ids_of(frame):
            self._turn.setdefault(str(self._prompt["uuid"]), self._prompt)
            self._prompt = None
        uuid = frame.get("uuid")
        if isinstance(uuid, str) and _belongs_there(frame):
            self._turn.setdefault(
                uuid, {"type": frame["type"], "message": frame["message"], "uuid": uuid}
            )

    def written(self, uuid: str) -> None:
        """Note that there is a line of something."""
        if self._prompt is not None and self._prompt["uuid"] == uuid:
            self._prompt = None
        if uuid in self._turn:
            self._turn[uuid] = None

    def over(self) -> Sequence[Missing]:
        """Return what is missing of the turn, in order; the next one begins."""
        turn, self._turn = self._turn, {}
        missing: list[Missing] = []
        before: str | None = None
        for uuid, line in reversed(turn.items()):
            if line is None:
                before = uuid
            else:
                missing.append(Missing(uuid=uuid, line=line, before=before))
        return missing[::-1]


def made_up(
    missing: Sequence[Missing], *, conversation: str, like: Mapping[str, Any], at: datetime
) -> list[JsonObject]:
    """Return lines for what is missing of a turn.

    Args:
        missing: What, in order.
        conversation: Id of the conversation, the CLI's own.
        like: A line that was written.
        at: What time it is, UTC.
    """
    common: JsonObject = {name: like[name] for name in _TAKEN_OVER if name in like}
    return [
        {
            **common,
            "isSidechain": False,
            "sessionId": conversation,
            "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            **one.line,
            BEFORE: one.before,
        }
        for one in missing
    ]


def _belongs_there(frame: JsonObject) -> bool:
    match frame:
        case {"type": "assistant", "message": {"model": model}}:
            return model != _SYNTHETIC
        case {"type": "user", "message": {"content": [*blocks]}}:
            return any(isinstance(one, dict) and one.get("type") == "tool_result" for one in blocks)
        case _:
            return False
