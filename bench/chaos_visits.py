"""What clients of `bench.chaos` do besides asking: look, hint, ask one-offs, close, and pry."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from bench.chaos_client import Answer, Broken, Silent
from bench.chaos_conversation import REFUSALS, Conversation, transcript, words
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

_FILES = """
[[tool Write {"file_path": "Remember %(word)s.txt", "content": "Remember %(word)s."}]]
[[tool Glob {"pattern": "*"}]]"""
"""Has a one-off leave a file, and answer with the names of all that there are."""

NO_FILES = "No files found"
"""How Claude Code says that there are none."""

Running = Callable[[], Collection[int]]
"""Tells which Claude Code processes run, by their ids."""


class Visitor:
    """Does it, by chance.

    Args:
        record: The run's.
        everybody: All conversations, of whichever owner.
        running: Tells which processes run.
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

    async def ask_oneoffs(self, conversation: Conversation) -> None:
        """Ask some, one after the other, as the same owner: each knows what it was told alone."""
        for _ in range(self._chance.randint(2, 6)):
            word = f"once{self._chance.getrandbits(48):x}"
            files = _FILES % {"word": word} if self._chance.random() < 0.3 else ""
            body = {"prompt": f"Remember {word}.{files}", "permission_mode": "acceptEdits"}
            hangs_up = self._chance.random() < 0.15
            asked_at = time.monotonic()
            try:
                async with asyncio.timeout(self._chance.uniform(0.02, 0.6) if hangs_up else None):
                    answer = await conversation.api.call("POST", "/query", body)
            except Broken:
                return
            except TimeoutError:  # hung up
                continue
            self._record.answered(answer.status, answer.body, "a one-off")
            self._record.oneoffs += answer.status == 200
            no_file = bool(files) and self._record.full_at >= asked_at
            check_oneoff(self._record, word, answer, no_file=no_file)

    async def close(self, conversation: Conversation) -> None:
        """Close it, whatever it does; then it is gone, with its process."""
        had = await self._process_of(conversation)
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
        if had in self._running():
            self._record.violate("closed is gone", f"{conversation.path} still has process {had}")
        for path in ("", "/turns", "/messages", "/events"):
            try:
                answer = await conversation.api.call("GET", conversation.path + path)
            except (Broken, Silent):
                continue
            conversation.note(answer, "what was closed")
            if answer.status != 404:
                self._record.violate("closed is gone", f"{conversation.path}{path}: {answer}")

    async def _process_of(self, conversation: Conversation) -> int | None:
        """Return its process, if it has one; no other session ever has that."""
        try:
            answer = await conversation.api.call("GET", f"{conversation.path}/inspect")
        except Broken:
            return None
        conversation.note(answer, "inspect")
        return answer.body.get("pid")


def check_oneoff(record: Record, word: str, answer: Answer, *, no_file: bool = False) -> None:
    """The answer to a one-off is to what it was told, and to nothing that anybody else was.

    Args:
        record: Where a violation is noted.
        word: What it was told.
        answer: What it answered.
        no_file: Whether it was to leave the word in a file's name, and to answer with those that
            it finds, while the disk was full: that takes no file, and to say so is right.
    """
    known = set(words(json.dumps(dict(answer.body))))
    if strange := sorted(known - {word}):
        record.violate("a one-off is by itself", f"told {word}, it knows {strange}: {answer}")
    says_none = no_file and NO_FILES in str(answer.body.get("response"))
    completed = answer.status == 200 and answer.body["outcome"] == "completed"
    if completed and word not in known and not says_none:
        record.violate("a one-off is by itself", f"it does not know {word}: {answer}")
    if answer.status not in (200, 500, *REFUSALS):
        record.violate("answers are those of the API", f"a one-off: {answer}")


def check_foreign(record: Record, what: str, answer: Answer) -> None:
    """Another owner's session is a 404, as one that never was."""
    if (answer.status, answer.body.get("code")) != (404, "session_not_found"):
        record.violate("others see nothing", f"{what}: {answer}")
