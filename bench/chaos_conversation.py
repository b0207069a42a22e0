"""What a client of `bench.chaos` knows of a session: what it told it, and what came of that."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.chaos_client import Answer, Api
from bench.chaos_record import Witness

REFUSALS = frozenset({409, 429, 502, 503, 504, 507})
"""Answers that say no, or that a turn failed, in the way that the API has for it."""


@dataclass(slots=True, kw_only=True)
class Told:
    """One prompt, and what was heard of it.

    Attributes:
        word: What it told.
        turn_id: Its turn, once it was acknowledged.
        outcome: How its client heard that it ended.
        response: The text that came with that.
    """

    word: str
    turn_id: str | None = None
    outcome: str | None = None
    response: str | None = None


@dataclass(slots=True, kw_only=True)
class Conversation:
    """One session, as its client knows it.

    Attributes:
        session_id: Its id.
        owner: Whose it is.
        api: The server, as its owner reaches it.
        witness: Of everything that was said of it.
        told: What it was told, in order.
        over: Why it takes no more, if it does not.
        closing: Whether its client closes it, so that from now on it may be gone.
        closed: Whether it was closed.
        transcript: Id and content of all messages that were ever read, in order.
    """

    session_id: str
    owner: str
    api: Api
    witness: Witness
    told: list[Told] = field(default_factory=list[Told])
    over: str | None = None
    closing: bool = False
    closed: bool = False
    transcript: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    @property
    def path(self) -> str:
        """Where it is."""
        return f"/session/{self.session_id}"

    def note(self, answer: Answer, to: str) -> None:
        """Take note of a status; only who closed a session may find it closed or gone."""
        record = self.witness.record
        record.answered(answer.status, answer.body, to)
        code = answer.body.get("code")
        if self.closing:
            return
        if answer.status == 404 or code in ("session_closed", "closed"):
            record.violate("a session stays until it is closed", f"{self.path}: {answer.body}")
            self.finish(f"{code}: {answer.body.get('detail')}")
        elif code == "session_failed":
            if "too often" not in str(answer.body.get("detail")):
                record.violate("only crashes end a session", f"{self.path}: {answer.body}")
            self.finish(f"{code}: {answer.body.get('detail')}")

    def finish(self, why: str) -> None:
        """Note that it takes no more."""
        self.over = self.over or why
        self.witness.record.ended(self.session_id)

    def begun(self, told: Told, turn_id: str) -> None:
        """Note which turn a prompt is; however often it is sent under a key, it is one."""
        if told.turn_id not in (None, turn_id):
            self.witness.record.violate(
                "a key stands for one turn",
                f"{self.path}: {told.word} is turn {told.turn_id}, and then {turn_id}",
            )
        told.turn_id = turn_id

    def ended(self, told: Told, outcome: str, response: str) -> None:
        """Note how a prompt's turn ended; whoever asks again hears the same."""
        if told.outcome is not None and (told.outcome, told.response) != (outcome, response):
            self.witness.record.violate(
                "what was announced stays",
                f"{self.path}, turn {told.turn_id}: announced {(told.outcome, told.response)}, and "
                f"then {(outcome, response)}",
            )
        told.outcome, told.response = outcome, response

    def read(self, messages: Sequence[tuple[str, str]]) -> None:
        """Compare a transcript with what was read of it before: it only grows."""
        before = self.transcript
        if list(messages[: len(before)]) != before:
            self.witness.record.violate(
                "a transcript only grows",
                f"{self.path}: {_brief(before)}, and then {_brief(messages)}",
            )
        self.transcript = list(messages)


async def transcript(conversation: Conversation, limit: int) -> tuple[Answer, list[dict[str, Any]]]:
    """Read the messages of a conversation, some at a time; return the last answer and them all.

    Raises:
        Broken: The connection broke.
        Silent: The server does not answer.
    """
    found: list[dict[str, Any]] = []
    while True:
        after = f"&after={found[-1]['id']}" if found else ""
        path = f"{conversation.path}/messages?limit={limit}{after}"
        answer = await conversation.api.call("GET", path)
        conversation.note(answer, "messages")
        found += answer.body.get("messages", ())
        if not answer.body.get("has_more"):
            return answer, found


class Bag:
    """Draws kinds by chance, yet each as often as the others."""

    def __init__(self, kinds: Sequence[str], chance: random.Random) -> None:
        self._kinds = tuple(kinds)
        self._chance = chance
        self._left: list[str] = []

    def draw(self) -> str:
        """Return one."""
        if not self._left:
            self._left = list(self._kinds)
            self._chance.shuffle(self._left)
        return self._left.pop()


def words(text: str) -> list[str]:
    """Return the words in a text that somebody told the model to remember."""
    return re.findall(r"Remember (\w+)\.", text)


def _brief(messages: Sequence[tuple[str, str]]) -> str:
    return str([(number[-14:], content[:30]) for number, content in messages][-4:])
