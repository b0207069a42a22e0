"""What clients of `bench.chaos` do besides asking: look, give hints, close, and pry."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence

from bench.chaos_client import Answer, Broken, Silent
from bench.chaos_conversation import REFUSALS, Conversation, transcript
from bench.chaos_record import Record

INTRUDER = "intruder"
"""What somebody tells a session that is not his; nobody may ever find it there."""

_FOREIGN: Sequence[tuple[str, str, Mapping[str, object] | None]] = (
    ("GET", "", None),
    ("GET", "/events", None),
    ("GET", "/turns", None),
    ("GET", "/messages", None),
    ("GET", "/inspect", None),
    ("POST", "/query", {"prompt": f"Remember {INTRUDER}."}),
    ("POST", "/query", {"prompt": f"Remember {INTRUDER}.", "stream": True}),
    ("POST", "/interrupt", {}),
    ("POST", "/wake", None),
    ("POST", "/hibernate", None),
    ("DELETE", "", None),
)

Running = Callable[[], Collection[str]]
"""Tells which sessions have processes."""


class Visitor:
    """Does it, by chance.

    Args:
        record: The run's.
        everybody: All conversations, of whichever owner.
        running: Tells which sessions have processes.
        chance: Decides.
    """

    def __init__(
        self,
        record: Record,
        everybody: Sequence[Conversation],
        running: Running,
        chance: random.Random,
    ) -> None:
        self._record = record
        self._everybody = everybody
        self._running = running
        self._chance = chance

    async def read_transcript(self, conversation: Conversation) -> None:
        """Read all messages, some at a time: what was there before is still there."""
        try:
            answer, found = await transcript(conversation, self._chance.randint(1, 6))
        except Broken:
            return
        if answer.status == 200:
            conversation.read([(str(one["id"]), str(one["content"])) for one in found])

    async def hint(self, conversation: Conversation) -> None:
        """Have it sleep or wake, now and then in the middle of a turn."""
        for _ in range(self._chance.randint(1, 4)):
            what = self._chance.choice(("wake", "hibernate"))
            try:
                answer = await conversation.api.call("POST", f"{conversation.path}/{what}")
            except Broken:
                return
            conversation.note(answer, what)
            if answer.status not in (200, 500, *REFUSALS):
                self._record.violate("answers are those of the API", f"{what}: {answer}")
            await asyncio.sleep(self._chance.uniform(0.0, 0.5))

    async def pry(self, conversation: Conversation) -> None:
        """Try what belongs to another owner: there is no such session."""
        others = [one for one in self._everybody if one.owner != conversation.owner]
        if not others:
            return
        other = self._chance.choice(others)
        for method, path, body in self._chance.sample(_FOREIGN, 4):
            try:
                answer = await conversation.api.call(method, f"{other.path}{path}", body)
            except Broken:
                return
            self._record.answered(answer.status, answer.body, f"prying {method} {path}")
            check_foreign(self._record, f"{method} {other.path}{path}", answer)
        try:
            listed = await conversation.api.call("GET", "/sessions")
        except Broken:
            return
        self._record.answered(listed.status, listed.body, "GET /sessions")
        if other.session_id in listed.body.get("active_sessions", ()):
            self._record.violate("others see nothing", f"{other.path} is listed")

    async def close(self, conversation: Conversation) -> None:
        """Close it, whatever it does; then it is gone, with its processes."""
        conversation.closing = True
        conversation.finish("its client closed it")
        for _ in range(80):
            try:
                answer = await conversation.api.call("DELETE", conversation.path)
            except Broken:
                await asyncio.sleep(0.25)
                continue
            conversation.note(answer, "DELETE in the middle")
            if answer.status in (200, 404):
                break
            await asyncio.sleep(0.25)
        else:
            self._record.violate("DELETE closes", f"{conversation.path}: not in 80 tries")
            return
        conversation.closed = True
        if conversation.session_id in self._running():
            self._record.violate("closed is gone", f"{conversation.path} still has a process")
        for path in ("", "/turns", "/messages", "/events"):
            try:
                answer = await conversation.api.call("GET", conversation.path + path)
            except (Broken, Silent):
                continue
            conversation.note(answer, "what was closed")
            if answer.status != 404:
                self._record.violate("closed is gone", f"{conversation.path}{path}: {answer}")


def check_foreign(record: Record, what: str, answer: Answer) -> None:
    """Another owner's session is a 404, as one that never was."""
    if (answer.status, answer.body.get("code")) != (404, "session_not_found"):
        record.violate("others see nothing", f"{what}: {answer}")
