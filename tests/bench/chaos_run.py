"""A run of `bench.chaos` that is over, and in which all is well until a test tampers with it."""

from __future__ import annotations

import copy
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bench.chaos_checks import Checks
from bench.chaos_client import Answer, Api, Heard, Opened
from bench.chaos_conversation import Bag, Conversation, Told
from bench.chaos_record import Record, Witness
from bench.chaos_talk import Talker
from bench.chaos_world import Vitals

GONE = Answer(status=404, body={"code": "session_not_found"})
NEW = Vitals(tasks=7, descriptors=20, uss=80 * 2**20, clis=0, pooled=0)

TURNS: Sequence[Mapping[str, Any]] = (
    {"turn_id": "t1", "prompt": "Remember w1.", "response": "ab", "outcome": "completed"},
    {"turn_id": "t2", "prompt": "Remember w2.", "response": "c", "outcome": "failed"},
)

LOG = (
    Heard(id=1, data={"type": "text", "content": "a", "turn_id": "t1"}),
    Heard(id=2, data={"type": "text", "content": "x", "turn_id": "t1"}),
    Heard(id=3, data={"type": "discard", "after": 1, "turn_id": "t1"}),
    Heard(id=4, data={"type": "text", "content": "b", "turn_id": "t1"}),
    Heard(
        id=5,
        data={"type": "done", "outcome": "completed", "response": "ab", "turn_id": "t1"},
    ),
    Heard(id=6, data={"type": "text", "content": "c", "turn_id": "t2"}),
    Heard(id=7, data={"type": "error", "outcome": "failed", "response": "c", "turn_id": "t2"}),
)


class Books(Api):
    """A server that answers from books which a test may falsify.

    Attributes:
        turns: Of its only session, `s`.
        log: Of the same.
        messages: Of the same.
        listed: The sessions that there are.
        deaf: Whether DELETE does nothing.
        known: What the model says that it was told.
        pid: The session's process.
        broken: Paths that are answered with a 500.
    """

    def __init__(self) -> None:
        super().__init__("", 0, "")
        self.turns: list[dict[str, Any]] = [
            {**turn, "phase": "ended", "origin": "user", "started_at": str(number)}
            for number, turn in enumerate(TURNS)
        ]
        self.log = list(copy.deepcopy(LOG))
        self.messages: list[dict[str, Any]] = []
        for turn in TURNS:
            for role, content, outcome in (
                ("user", turn["prompt"], None),
                ("assistant", turn["response"], turn["outcome"]),
            ):
                self.messages.append(
                    {
                        "id": f"{turn['turn_id']}.{role}",
                        "turn_id": turn["turn_id"],
                        "role": role,
                        "content": content,
                        "outcome": outcome,
                    }
                )
        self.listed = ["s"]
        self.deaf = False
        self.known = "Remember w1."
        self.pid = 7
        self.broken: set[str] = set()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        narrow: bool = False,
    ) -> AsyncGenerator[Opened]:
        """Answer from the books."""
        answer = self.answer(method, path.partition("?")[0])
        if path.startswith("/session/s/") and "s" not in self.listed:
            answer = GONE
        events = self.log if path == "/session/s/events" else []
        yield Opened(answer=answer, events=_each(events))

    def answer(self, method: str, path: str) -> Answer:
        """Return what a request is answered with."""
        _, _, session_id, *rest = [*path.split("/"), ""]
        if path in self.broken:
            return Answer(status=500, body={"code": "internal"})
        if path == "/sessions":
            return _ok(active_sessions=tuple(self.listed), count=len(self.listed))
        if path == "/session/start":
            return _ok(session_id="new")
        if method == "DELETE" and session_id in self.listed and not self.deaf:
            self.listed.remove(session_id)
            return _ok()
        if method == "DELETE":
            return _ok()
        if session_id not in self.listed:
            return GONE
        match rest:
            case ["turns", ""]:
                return _ok(turns=self.turns)
            case ["turns", turn_id, ""]:
                return _ok(**next(one for one in self.turns if one["turn_id"] == turn_id))
            case ["messages", ""]:
                return _ok(messages=self.messages, has_more=False)
            case ["inspect", ""]:
                return _ok(pid=self.pid)
            case ["query", ""]:
                return _ok(response=self.known)
            case _:
                return _ok()


class OldRun:
    """All that a run leaves: what its only client has heard, and the server."""

    def __init__(self) -> None:
        self.record = Record()
        self.api = Books()
        self.vitals = NEW
        """What the server takes whenever it is asked."""
        self.conversation = Conversation(
            session_id="s", owner="ann", api=self.api, witness=Witness(self.record, "s")
        )
        self.conversation.told = [
            Told(word="w1", turn_id="t1", outcome="completed", response="ab"),
            Told(word="w2", turn_id="t2", outcome="failed", response="c"),
        ]
        chance = random.Random(0)
        self.talker = Talker(
            name="t",
            owner="ann",
            api=self.api,
            record=self.record,
            everybody=[],
            running=tuple,
            upstream=Bag(("x",), chance),
            manners=Bag(("x",), chance),
            seed="0",
        )
        self.talker.conversations.append(self.conversation)

    async def checked(self) -> set[str]:
        """Check everything; return the promises that were not kept."""
        checks = Checks(self.api, self.look, self.record, [self.talker])
        await checks.of_turns()
        await checks.of_contexts()
        await checks.of_the_end(NEW)
        return self.broken()

    def broken(self) -> set[str]:
        """Return the promises that were not kept."""
        return {one.promise for one in self.record.violations}

    async def look(self) -> Vitals:
        """Return what the server takes."""
        return self.vitals


async def _each(events: Sequence[Heard]) -> AsyncIterator[Heard]:
    for heard in events:
        yield heard


def _ok(**body: object) -> Answer:
    return Answer(status=200, body=body)
